/* SPDX-License-Identifier: MIT */
/* Processes, told apart from later ones of the same number. */
#ifndef CLI_PROCESS_H
#define CLI_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct process {
	pid_t pid;
	uint64_t born; /* clock ticks since boot; with pid it names one process for ever */
	char state;    /* R, S, D, T ... */
	char name[64];
};

/* false: no such process, or a zombie. */
bool process_read(pid_t pid, struct process *process);
/* A pidfd of exactly this process, or -1 with errno (ESRCH: it has ended). */
int process_open(const struct process *process);

#endif
