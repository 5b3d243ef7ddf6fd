/* SPDX-License-Identifier: MIT */
/*
 * One queue of a device as a server sees it: a ring, the descriptors, a buffer for each tag, and
 * I/O commands as they are, good or bad.
 */
#ifndef CONFORM_IOQ_H
#define CONFORM_IOQ_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

#include "dev.h"

/* Not an error: the driver holds the command. The number is the kernel's -EIOCBQUEUED. */
#define IOQ_KEPT (-529)

struct ioq {
	struct dev *dev;
	int fd; /* of /dev/ublkcN */
	unsigned q_id;
	unsigned depth;
	size_t buf_bytes;
	uint8_t *bufs;
	const struct ublksrv_io_desc *desc;
	size_t desc_bytes;
	struct io_uring ring;
	bool user_copy; /* commands carry no address */
	bool legacy;	/* bare opcodes */
};

struct ioq_cqe {
	uint16_t tag;
	uint32_t op;
	int res;
	uint32_t flags;
};

/* Ready to fetch; fd stays the caller's. 0 or -errno. */
int ioq_open(struct ioq *q, struct dev *dev, int fd, unsigned q_id);
void ioq_close(struct ioq *q);

/* The offset and length of queue q_id's descriptors in the char device. */
off_t ioq_desc_offset(unsigned q_id);
size_t ioq_desc_bytes(unsigned depth);
/* Where a byte of a request's data is in the char device. */
off_t ioq_data_offset(unsigned q_id, unsigned tag, uint64_t offset);

uint8_t *ioq_buf(const struct ioq *q, unsigned tag);
/* What addr a well-behaved command for this tag carries. */
uint64_t ioq_addr(const struct ioq *q, unsigned tag);

/* A command with these very fields, not submitted yet. */
struct io_uring_sqe *ioq_sqe(struct ioq *q, uint32_t op, uint16_t q_id, uint16_t tag, int result,
			     uint64_t addr);
int ioq_submit(struct ioq *q);
/* The next completion: 0, or -ETIME when none comes. */
int ioq_wait(struct ioq *q, struct ioq_cqe *cqe, unsigned ms);

/* Well-behaved commands, submitted at once. */
void ioq_fetch(struct ioq *q, unsigned tag);
void ioq_fetch_all(struct ioq *q);
void ioq_commit(struct ioq *q, unsigned tag, int result);

/*
 * Submit one command that is to fail at once and return its result; IOQ_KEPT when the driver
 * keeps it. Completions of other commands must not be on their way.
 */
int ioq_refused(struct ioq *q, uint32_t op, uint16_t q_id, uint16_t tag, int result, uint64_t addr);

/* As REQUIRE: the next request, waited for as long as a case may wait. Returns its tag. */
unsigned ioq_next(struct ioq *q, const struct ublksrv_io_desc **iod);
/* Nothing comes for this long. */
bool ioq_quiet(struct ioq *q, unsigned ms);

/* Answer reads with zeroes, all else with success, until the job ends. Returns its result. */
long ioq_serve_job(struct ioq *q, struct job *job);
/* START_DEV for a server in this process, whose only queue is q. */
void ioq_start_dev(struct ioq *q);
/* STOP_DEV likewise: serves until it returns, then takes the aborted commands. */
void ioq_stop_dev(struct ioq *q);

#endif
