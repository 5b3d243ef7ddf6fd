/* SPDX-License-Identifier: MIT */
/*
 * Users of a block device, each in a process of its own, since what waits for a device that is not
 * served cannot be killed.
 */
#ifndef CONFORM_CLIENT_H
#define CONFORM_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "dev.h"
#include "job.h"

enum io_kind {
	IO_READ,      /* O_DIRECT */
	IO_WRITE,     /* O_DIRECT */
	IO_WRITE_FUA, /* O_DIRECT and RWF_DSYNC */
	IO_FLUSH,     /* fsync */
	IO_DISCARD,
	IO_ZERO,      /* fallocate(PUNCH_HOLE): may unmap */
	IO_ZERO_KEEP, /* fallocate(ZERO_RANGE): must not unmap */
	IO_SECURE,    /* BLKSECDISCARD */
	IO_OPEN,      /* open for length milliseconds */
	IO_READS,     /* O_DIRECT; 4 KiB each, all of them submitted at once */
	IO_WRITES,    /* the same */
};

struct io {
	enum io_kind kind;
	char path[64];
	uint64_t offset;
	uint64_t bytes;
	uint32_t seed; /* of what is written */
	uint32_t uid;
	uint32_t shift; /* of the memory from a page's beginning */
};

/* Bytes done, 0 for what has no bytes, or -errno. What was read is in job->data. */
struct job *io_begin(const struct dev *dev, enum io_kind kind, uint64_t offset, uint64_t bytes);
struct job *io_begin_seeded(const struct dev *dev, enum io_kind kind, uint64_t offset,
			    uint64_t bytes, uint32_t seed);
struct job *io_begin_as(const struct io *io);
/* Result of a begun one; the case ends when it does not. Frees it. */
long io_end(struct job *job);
/* Same, within ms; JOB_RUNNING leaves it running and owned by the caller. */
long io_end_within(struct job *job, unsigned ms);
/* Both at once. */
long io_run(const struct dev *dev, enum io_kind kind, uint64_t offset, uint64_t bytes);
long io_write(const struct dev *dev, uint64_t offset, uint64_t bytes, uint32_t seed);
/* Reads and says whether it is what io_write() with this seed wrote; seed 0: zeroes. */
long io_verify(const struct dev *dev, uint64_t offset, uint64_t bytes, uint32_t seed);

/* The test pattern: depends on seed and on the byte's place on the device. */
void pattern_fill(uint8_t *buf, uint64_t offset, uint64_t bytes, uint32_t seed);
/* Index of the first byte that is not the pattern's, or -1. */
int64_t pattern_check(const uint8_t *buf, uint64_t offset, uint64_t bytes, uint32_t seed);

#endif
