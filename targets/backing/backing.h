/* SPDX-License-Identifier: MIT */
/*
 * A file or block device that holds a disk's bytes, for targets that stand on one or several:
 * opened with the best access it allows, its limits known, flush, discard and zeroing mapped to
 * what it can do.
 */
#ifndef UBD_BACKING_H
#define UBD_BACKING_H

#include <ubd/target.h>

enum backing_direct { BACKING_DIRECT_AUTO, BACKING_DIRECT_ON, BACKING_DIRECT_OFF };

struct backing {
	const char *path; /* the caller's */
	int fd;
	bool is_block;
	bool direct; /* O_DIRECT */
	bool read_only;
	bool rotational;
	bool can_punch; /* hole punching or BLKDISCARD */
	bool can_zero;
	/* A sync of the page cache has failed. It says so once, and takes what it could not write
	 * for written from then on: no later sync tells whether anything is durable. */
	_Atomic bool lost;
	struct ubd_mutex syncing;
	uint64_t start; /* first byte used */
	uint64_t size;	/* bytes used */
	uint32_t block; /* smallest I/O and its alignment, bytes */
	uint32_t physical_block, io_min, io_opt;
	uint32_t discard_granularity;
};

struct backing_request {
	const char *path;
	enum backing_direct direct;
	bool read_only;
	uint64_t start; /* bytes to leave out at the beginning */
	uint64_t size;	/* bytes to use; 0: all the rest */
	bool any_size;	/* need not be whole blocks: the bytes are not a disk's but a format's */
	uint32_t max_block; /* with auto: no direct I/O in larger blocks than this; 0: any */
};

/*
 * Open and lock, so that no other server writes it. Sentences for what is wrong go to dev.
 * 0 or -errno.
 */
int backing_open(struct backing *b, struct ubd_device *dev, const struct backing_request *want);
void backing_close(struct backing *b);
/* Limits of a disk that is this backing. */
void backing_limits(const struct backing *b, struct ubd_limits *l);

/* Offsets below are bytes from .start. The calls are made on coroutines and await. */

/* One piece of a request's data: [at, at + len) of it, at offset pos. */
struct ubd_transfer backing_transfer(const struct backing *b, const struct ubd_io *io, uint32_t at,
				     uint32_t len, uint64_t pos);
/* What a sync that gave ret is worth: -EIO for good once one of the page cache has failed. */
int backing_synced(struct backing *b, int ret);
int backing_flush(struct backing *b, struct ubd_queue *q);
int backing_discard(const struct backing *b, struct ubd_queue *q, uint64_t pos, uint64_t len);
/* unmap: the space may be given back. */
int backing_zero(const struct backing *b, struct ubd_queue *q, uint64_t pos, uint64_t len,
		 bool unmap);
/* All of a request that moves no data: FLUSH, or DISCARD or WRITE_ZEROES of [pos, pos + len). */
int backing_apply(struct backing *b, const struct ubd_io *io, uint64_t pos, uint64_t len);

#endif
