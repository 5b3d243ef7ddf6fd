/* SPDX-License-Identifier: MIT */
/*
 * Control commands as they are, good or bad. Each runs in a process of its own, so that none can
 * hang the case, and so that it can be another user's.
 */
#ifndef CONFORM_CTRL_H
#define CONFORM_CTRL_H

#include <stdbool.h>
#include <stdint.h>

#include "job.h"
#include "uapi/ublk.h"

struct ctrl {
	uint32_t op;
	uint32_t id;
	void *buf;	   /* copied to the command and back ... */
	uint16_t len;	   /* ... as many bytes */
	uint64_t addr;	   /* without buf: the address as it is */
	uint64_t data;	   /* the immediate value */
	uint16_t queue;	   /* with queue_set; else (u16)-1 */
	bool queue_set;	   /* */
	uint16_t path_len; /* of the path that buf begins with */
	bool sqe64;	   /* on a ring of plain SQEs */
	uint32_t uid;	   /* not 0: as this user and group */
	unsigned limit_ms; /* 0: 20 s */
	bool leave;	   /* ctrl_direct(): begin it only */
};

/* The command's result, JOB_RUNNING when it does not end, -ECHILD when its process was killed. */
long ctrl_run(struct ctrl *c);
/* Begin it, for job_wait(). */
struct job *ctrl_begin(const struct ctrl *c);

/* ctrl(op, id, .field = value ...) */
#define ctrl(op_, id_, ...) ctrl_run(&(struct ctrl){.op = (op_), .id = (id_), ##__VA_ARGS__})
#define ctrl_async(op_, id_, ...) \
	ctrl_begin(&(struct ctrl){.op = (op_), .id = (id_), ##__VA_ARGS__})

/* The same in the calling process; it waits as long as the driver does, or not at all (leave). */
long ctrl_direct(const struct ctrl *c);

#endif
