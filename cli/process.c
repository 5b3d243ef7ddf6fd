/* SPDX-License-Identifier: MIT */
/* Processes, told apart from later ones of the same number. */
#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

bool process_read(pid_t pid, struct process *p)
{
	char path[32], line[512], *open, *close;
	size_t n, len;
	FILE *f;

	if (pid <= 0)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return false;
	n = fread(line, 1, sizeof(line) - 1, f);
	fclose(f);
	line[n] = '\0';
	/* The name may hold anything, brackets included: it ends at the last one. */
	open = strchr(line, '(');
	close = strrchr(line, ')');
	if (!open || !close)
		return false;
	memset(p, 0, sizeof(*p));
	p->pid = pid;
	len = (size_t)(close - open) - 1;
	if (len >= sizeof(p->name))
		len = sizeof(p->name) - 1;
	memcpy(p->name, open + 1, len);
	/* Field 3 is the state, field 22 the start. */
	if (sscanf(close + 1,
		   " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
		   "%*s %" SCNu64,
		   &p->state, &p->born) != 2)
		return false;
	return p->state != 'Z' && p->state != 'X';
}

int process_open(const struct process *process)
{
	int fd = pidfd_open(process->pid, 0);
	struct process now;

	if (fd < 0)
		return -1;
	/* The number may have been given away between the reading and the opening. */
	if (!process_read(process->pid, &now) || now.born != process->born) {
		close(fd);
		errno = ESRCH;
		return -1;
	}
	return fd;
}
