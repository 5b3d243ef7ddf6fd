/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Zero copy: what the driver's files need of it, and what its own files share.
 *
 * The server names ranges of a request's pages and the files or sockets they come from or go to.
 * Such a member is run here, on the pages themselves. The members of one command are a group:
 * the command ends, or its request does, after the last of them.
 *
 *   command.c  a command: its checks, its group, its end
 *   member.c   a member's checks and end
 *   pages.c    an iterator over a member's range of the request
 *   file.c     READ, WRITE, FSYNC
 *   socket.c   SEND, RECV
 *   lease.c    the lease of a request's buffer
 *   splice.c   a WRITE request's pages into a pipe
 *
 * Only the task that owns a tag gives commands for it, so a request that it holds cannot go away
 * while a command is looked at. After that a group keeps the request: MEMBERS by a reference on
 * the slot, FUSED by the server's own, which it takes over (UBLK_SLOT_FUSED).
 *
 * Members end anywhere, in interrupts too. What happens there takes no lock that sleeps.
 */
#ifndef UBLK_ZC_H
#define UBLK_ZC_H

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/skbuff.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include "../../include/uapi/ubd.h"

struct io_uring_cmd;
struct request;
struct ublk_device;
struct ublk_queue;
struct ublk_slot;
struct ublk_group;

/**
 * struct ublk_socket_io - what a member on a socket needs
 * @ubuf: what is being sent of the request's own pages; its references are the socket's, and ours
 * @wait: in the socket's wait queue @head, while it is that
 * @head: see @wait
 * @waiting: in ublk_zc.waiting, under its lock
 * @state: who may go on with it, see socket.c
 * @err: how it ends when the socket has let go of the pages
 */
struct ublk_socket_io {
	struct ubuf_info ubuf;
	struct wait_queue_entry wait;
	struct wait_queue_head *head;
	struct list_head waiting;
	atomic_t state;
	int err;
};

/**
 * struct ublk_member - one range of a request, on its way
 * @iocb: for files
 * @sk: for sockets
 * @iter: what is left of the range
 * @work: runs the part that may sleep, in the device's own queue; delayed for sockets only
 * @group: whose member it is
 * @file: referenced; NULL when none is needed
 * @bvecs: the range's own copy of the request's vectors, or NULL when it points into a bio
 * @pos: offset in the file
 * @at: offset in the request's data
 * @len: bytes
 * @done: bytes moved
 * @op: enum ubd_member_op
 * @flags: UBD_MEMBER_F_*
 * @nowait: it was issued on the condition that it does not sleep
 */
struct ublk_member {
	union {
		struct kiocb iocb;
		struct ublk_socket_io sk;
	};
	struct iov_iter iter;
	struct delayed_work work;
	struct ublk_group *group;
	struct file *file;
	struct bio_vec *bvecs;
	u64 pos;
	u32 at;
	u32 len;
	u32 done;
	u8 op;
	u8 flags;
	bool nowait;
};

/**
 * struct ublk_group - the members of one command
 * @cmd: the command
 * @q: the queue
 * @slot: the slot, which keeps the request while the group lives
 * @members: @nr of them
 * @left: members under way, and one more while they are being started
 * @err: the first member's that failed
 * @bytes: what all members move when none fails
 * @tag: the slot's
 * @nr: number of members
 * @fused: the request ends with the group
 * @leased: it belongs to the lease of the request's buffer
 * @sockets: a member may wait for a peer
 */
struct ublk_group {
	struct io_uring_cmd *cmd;
	struct ublk_queue *q;
	struct ublk_slot *slot;
	struct ublk_member *members;
	atomic_t left;
	int err;
	s32 bytes;
	u16 tag;
	u8 nr;
	bool fused;
	bool leased;
	bool sockets;
};

/* Bit in ublk_zc_tag.flags: the group is in use. */
#define UBLK_ZC_TAG_BUSY 0

/**
 * struct ublk_lease - the lease of a request's buffer; under ublk_zc.lock
 * @cmd: the leader, NULL when there is no lease
 * @users: who keeps it: groups of it under way or expected, the open lease itself, the buffer
 * @expected: groups that are to come
 * @open: it ends when it is returned
 * @buffer: its buffer, in the ring's table at @index, is one of the users
 * @index: see @buffer
 */
struct ublk_lease {
	struct io_uring_cmd *cmd;
	u32 users;
	u32 expected;
	bool open;
	bool buffer;
	u16 index;
};

/**
 * struct ublk_zc_tag - what the usual command needs, so that it allocates nothing
 * @flags: UBLK_ZC_TAG_BUSY
 * @group: a group of one
 * @member: its member
 * @lease: of its request
 */
struct ublk_zc_tag {
	unsigned long flags;
	struct ublk_group group;
	struct ublk_member member;
	struct ublk_lease lease;
} ____cacheline_aligned_in_smp;

/**
 * struct ublk_zc - what a queue has for zero copy
 * @lock: of the two below; taken in interrupts
 * @waiting: members that wait for a socket
 * @tags: one per tag
 */
struct ublk_zc {
	spinlock_t lock;
	struct list_head waiting;
	struct ublk_zc_tag tags[];
};

/* A command's private area: the base's, which it needs when FUSED becomes a fetch. */
struct ublk_zc_pdu {
	struct ublk_queue *q;
	struct request *list;
	u16 tag;
	s32 res;
};

/* ---- for the rest of the driver ---------------------------------------------------------- */

/* The first number of a command of ours, of either kind. */
#define UBLK_ZC_FIRST_NR 0x60

/* The generation after @generation: 24 bits, never 0. */
static inline u32 ublk_zc_next(u32 generation)
{
	return (generation & UBD_GENERATION_MASK) % UBD_GENERATION_MASK + 1;
}

u64 ublk_zc_features(void);
int ublk_zc_query(u64 addr, u16 len);
int ublk_zc_init(struct ublk_device *ub);
void ublk_zc_exit(struct ublk_device *ub);
void ublk_zc_kick(struct ublk_device *ub);
bool ublk_zc_command(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd,
		     unsigned int issue_flags, int *ret);

/* splice.c */
struct pipe_inode_info;
ssize_t ublk_ch_splice_read(struct file *in, loff_t *ppos, struct pipe_inode_info *pipe, size_t len,
			    unsigned int flags);

/* ---- among zero copy's own files --------------------------------------------------------- */

/* command.c */
void ublk_group_put(struct ublk_group *g, int err);
void ublk_zc_command_end(struct io_uring_cmd *cmd, int res);
bool ublk_zc_is_dying(const struct ublk_queue *q);

/* member.c */
int ublk_member_prepare(struct ublk_member *m, const struct ubd_member *um,
			const struct request *rq);
void ublk_member_drop(struct ublk_member *m);
void ublk_member_start(struct ublk_member *m);
void ublk_member_end(struct ublk_member *m, int err);

static inline bool ublk_member_is_socket(const struct ublk_member *m)
{
	return m->op == UBD_MEMBER_SEND || m->op == UBD_MEMBER_RECV;
}

/* The request's pages are filled by it. */
static inline bool ublk_member_fills(const struct ublk_member *m)
{
	return m->op == UBD_MEMBER_READ || m->op == UBD_MEMBER_RECV || m->op == UBD_MEMBER_ZERO;
}

/* pages.c */
void ublk_member_iter(struct ublk_member *m);

/* file.c */
int ublk_file_check(const struct ublk_member *m, const struct ublk_device *ub);
void ublk_file_start(struct ublk_member *m);

/* socket.c */
int ublk_socket_check(const struct ublk_member *m);
void ublk_socket_start(struct ublk_member *m);
void ublk_socket_kick(struct ublk_queue *q);

/* lease.c */
int ublk_lease_begin(struct ublk_queue *q, u16 tag, u64 addr, struct io_uring_cmd *cmd,
		     unsigned int issue_flags);
int ublk_lease_return(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd,
		      unsigned int issue_flags);
bool ublk_lease_join(struct ublk_queue *q, u16 tag);
void ublk_lease_leave(struct ublk_queue *q, u16 tag);
void ublk_lease_kick(struct ublk_queue *q);

#endif
