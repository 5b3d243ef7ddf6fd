/* SPDX-License-Identifier: MIT */
/*
 * What the zero-copy cases share: the extension commands by hand, and the files, disks and
 * sockets that members work on.
 */
#ifndef ZERO_COPY_ZC_H
#define ZERO_COPY_ZC_H

#include "hand.h"
#include "uapi/ubd.h"

#define ZC_FILE_BYTES DEV_BYTES

/* Places that ./guest has made. */
enum backing {
	TMPFS,
	EXT4_BUFFERED,
	EXT4_DIRECT,
	XFS_BUFFERED,
	XFS_DIRECT,
	BTRFS_BUFFERED,
	BLOCK_BUFFERED,
	BLOCK_DIRECT,
	NR_BACKINGS,
};

extern const char *const backing_names[NR_BACKINGS];

/* One queue of this depth with these UBD_F_* and user copy, served by the case's own hands. */
void zc_up(struct hand *h, uint64_t features, unsigned depth);

/* A file of ZC_FILE_BYTES with pattern 7 in it, or that disk; the case skips where it is not. */
int backing_open(enum backing b);
/* Another, empty, on tmpfs. */
int scratch_open(uint64_t bytes);

/* The generation of the request that the tag has. */
uint32_t zc_generation(const struct ioq *q, unsigned tag);
/* A command of ours, submitted: for the request that the tag has. */
void zc_submit(struct ioq *q, uint32_t op, unsigned tag, const struct ubd_member *m, unsigned nr);
/* The same with any generation and address. */
void zc_submit_raw(struct ioq *q, uint32_t op, unsigned tag, uint32_t generation_nr, uint64_t addr);
/* UBD_U_IO_LEASE; lease must live until it is submitted, which it is on return. */
void zc_lease(struct ioq *q, unsigned tag, const struct ubd_lease *lease);
/* The next completion's result; the case ends when none comes, or another than this one's. */
int zc_result(struct ioq *q, uint32_t op, unsigned tag);
/* UBD_U_IO_MEMBERS, and its result. */
int zc_members(struct ioq *q, unsigned tag, const struct ubd_member *m, unsigned nr);

struct ubd_member zc_read(int fd, uint32_t at, uint32_t len, uint64_t pos);
struct ubd_member zc_write(int fd, uint32_t at, uint32_t len, uint64_t pos);
struct ubd_member zc_send(int fd, uint32_t at, uint32_t len);
struct ubd_member zc_recv(int fd, uint32_t at, uint32_t len);

/* Two ends of a stream: unix, or TCP over the loopback. */
void stream_pair(bool tcp, int fds[2]);
/* Without it nothing sent over TCP arrives, or is acknowledged. */
void stream_loopback(bool up);
/* Send or receive all of it within the time a case may wait; false when the stream ended. */
bool stream_put(int fd, const void *buf, size_t bytes);
bool stream_get(int fd, void *buf, size_t bytes);
/* Leaves a notice in the error queue of TCP's fds[0]: from now on poll calls it ready. */
void stream_leave_error(int fds[2]);

/* The device's data, as a client's read brought it: -1, or where it first differs. */
int64_t zc_data_differs(const struct job *io, uint64_t offset, uint64_t bytes, uint32_t seed);
bool zc_data_is_zero(const struct job *io, uint64_t from, uint64_t to);

#endif
