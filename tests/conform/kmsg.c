// SPDX-License-Identifier: MIT
/*
 * Finds splats in the kernel log, so that a case fails for what it makes the kernel say.
 */
#include "kmsg.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int fd = -1;

static bool is_splat(const char *text)
{
	static const char *const signs[] = {
		"BUG:",
		"WARNING:",
		"Oops",
		"KASAN",
		"general protection",
		"blocked for more than",
		"UBSAN:",
		"circular locking",
		"possible recursive locking",
		"rcu_sched self-detected",
		"kmemleak:",
		"refcount_t:",
	};

	/* Kernel 7.2 says this of every registered buffer, whoever registers it. */
	if (strstr(text, "UBSAN") && strstr(text, "io_uring/rsrc.c"))
		return false;
	for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]); i++) {
		if (strstr(text, signs[i]))
			return true;
	}
	return false;
}

void kmsg_open(void)
{
	fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0)
		lseek(fd, 0, SEEK_END);
}

bool kmsg_next_splat(char *line, size_t bytes)
{
	char record[8192];
	ssize_t len;
	char *text;

	while (fd >= 0) {
		len = read(fd, record, sizeof(record) - 1);
		if (len < 0 && errno == EPIPE)
			continue;
		if (len <= 0)
			return false;
		record[len] = 0;
		text = strchr(record, ';');
		text = text ? text + 1 : record;
		text[strcspn(text, "\n")] = 0;
		if (!is_splat(text))
			continue;
		strncpy(line, text, bytes - 1);
		line[bytes - 1] = 0;
		return true;
	}
	return false;
}
