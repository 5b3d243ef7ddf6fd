/* SPDX-License-Identifier: MIT */
/*
 * Functions run in processes of their own: clients of a device, control commands, servers.
 *
 * They are forked by a process that was made before the case opened anything, so that no file
 * descriptor or mapping of a device is inherited by accident: who holds /dev/ublkcN decides
 * when it goes away. Memory from shared_alloc() is shared with them.
 */
#ifndef CONFORM_JOB_H
#define CONFORM_JOB_H

#include <semaphore.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define JOB_MAX 96
/* Not an errno: a job that has not ended yet. */
#define JOB_RUNNING (-1000001)
#define JOB_ARG_BYTES 512
#define JOB_DATA_BYTES (4U << 20)

struct job {
	sem_t started;
	sem_t ended;
	pid_t pid;
	bool used;
	bool over;  /* ended has been taken */
	int status; /* as of waitpid */
	long result;
	long (*fn)(struct job *job);
	uint64_t arg[JOB_ARG_BYTES / 8];
	uint8_t *data; /* JOB_DATA_BYTES, shared */
};

/* Called once, at the very start of a case. */
void jobs_init(void);

/* A job not started yet, its data zeroed as far as dirty bytes say. */
struct job *job_new(long (*fn)(struct job *job), const void *arg, size_t bytes);
void job_start(struct job *job);
/* Send a signal; nothing when the process has ended. */
void job_signal(const struct job *job, int sig);
/* True when the process has ended: nothing it had open is open any more. */
bool job_ended(struct job *job);
/* 0 and the function's result, JOB_RUNNING, or -ECHILD when something killed the process. */
int job_wait(struct job *job, unsigned ms, long *result);
/* For the next job_new(); the job must have ended. */
void job_put(struct job *job);

#endif
