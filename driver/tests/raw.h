/* SPDX-License-Identifier: MIT */
/*
 * io_uring and ublk's control commands with nothing between: for smoke tests of the driver that
 * run before there is a library.
 */
#ifndef UBLK_TESTS_RAW_H
#define UBLK_TESTS_RAW_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "../../include/uapi/ublk.h"

/* A ring with 128-byte SQEs, used by one thread. */
struct raw_ring {
	int fd;
	unsigned *sq_tail, *sq_mask, *sq_array;
	unsigned *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	unsigned queued;
};

int raw_ring_open(struct raw_ring *r, unsigned entries);
/* A command on @fd; the payload is copied to the SQE. */
struct io_uring_sqe *raw_cmd(struct raw_ring *r, int fd, uint32_t op, const void *payload,
			     size_t bytes, uint64_t user_data);
/* Submits what is queued, waits @ms for a completion. 0, or -ETIME. */
int raw_wait(struct raw_ring *r, struct io_uring_cqe *cqe, int ms);
int raw_submit(struct raw_ring *r);

/* One control command, from begin to end. */
int raw_control(uint32_t op, int dev, uint64_t data, void *buf, unsigned len);

void tap(bool ok, const char *name);
int tap_end(void);

#endif
