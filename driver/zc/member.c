// SPDX-License-Identifier: GPL-2.0-only
/*
 * A member: what it may be, and what its end leaves behind.
 */
#include <linux/bio.h>
#include <linux/file.h>
#include <linux/slab.h>
#include "../driver.h"

/* Which flags an operation takes. */
static u8 flags_of(u8 op)
{
	switch (op) {
	case UBD_MEMBER_READ:
		return UBD_MEMBER_F_LEASED | UBD_MEMBER_F_ZERO_EOF;
	case UBD_MEMBER_WRITE:
		return UBD_MEMBER_F_LEASED | UBD_MEMBER_F_FUA;
	case UBD_MEMBER_SEND:
		return UBD_MEMBER_F_LEASED | UBD_MEMBER_F_MORE;
	default:
		return UBD_MEMBER_F_LEASED;
	}
}

/* The request has such data, and it goes that way. */
static bool right_way(const struct ublk_member *m, const struct request *rq)
{
	if (!bio_has_data(rq->bio))
		return false;
	return ublk_member_fills(m) ? req_op(rq) == REQ_OP_READ : op_is_write(req_op(rq));
}

static bool has_file_pos(u8 op)
{
	return op == UBD_MEMBER_READ || op == UBD_MEMBER_WRITE;
}

static int check_shape(const struct ublk_member *m, const struct ubd_member *um,
		       const struct request *rq)
{
	if (m->op > UBD_MEMBER_FSYNC || um->reserved || um->reserved2 ||
	    (m->flags & ~flags_of(m->op)))
		return -EINVAL;
	if (m->pos && !has_file_pos(m->op))
		return -EINVAL;
	if (m->op == UBD_MEMBER_FSYNC)
		return m->at || m->len ? -EINVAL : 0;
	if (!right_way(m, rq))
		return -EINVAL;
	if (!m->len || m->at >= blk_rq_bytes(rq) || m->len > blk_rq_bytes(rq) - m->at)
		return -EINVAL;
	return 0;
}

/**
 * ublk_member_prepare() - check a member and get hold of its file
 * @m: the member, its group set
 * @um: what the server says of it
 * @rq: the request, which the server holds
 *
 * Return: 0, and ublk_member_drop() is owed, or -errno.
 */
int ublk_member_prepare(struct ublk_member *m, const struct ubd_member *um,
			const struct request *rq)
{
	int ret;

	m->op = um->op;
	m->flags = um->flags;
	m->at = um->at;
	m->len = um->len;
	m->pos = um->pos;
	m->done = 0;
	m->nowait = false;
	m->bvecs = NULL;
	m->file = NULL;
	ret = check_shape(m, um, rq);
	if (ret)
		return ret;
	if (m->op == UBD_MEMBER_ZERO)
		return um->fd == -1 ? 0 : -EINVAL;
	m->file = fget(um->fd);
	if (!m->file)
		return -EBADF;
	if (ublk_member_is_socket(m))
		ret = ublk_socket_check(m);
	else
		ret = ublk_file_check(m, m->group->q->ub);
	if (ret)
		ublk_member_drop(m);
	return ret;
}

/**
 * ublk_member_drop() - let go of what a member has
 * @m: the member
 */
void ublk_member_drop(struct ublk_member *m)
{
	if (m->file)
		fput(m->file);
	kfree(m->bvecs);
}

/**
 * ublk_member_start() - begin a member
 * @m: the member
 *
 * In the server's task. It may have ended on return.
 */
void ublk_member_start(struct ublk_member *m)
{
	struct ublk_slot *slot = m->group->slot;
	int ret;

	/* From here on its range is safe to show: filled by it, or zeroed at its end. */
	if (ublk_member_fills(m)) {
		ret = ublk_fill_begin(slot, slot->req, m->at, m->at + m->len, NULL);
		if (ret) {
			ublk_member_end(m, ret);
			return;
		}
	}
	if (m->op == UBD_MEMBER_ZERO)
		ublk_member_end(m, 0); /* with nothing done: all of it is zeroed */
	else if (ublk_member_is_socket(m))
		ublk_socket_start(m);
	else
		ublk_file_start(m);
}

/**
 * ublk_member_end() - a member has ended
 * @m: the member
 * @err: 0 or -errno
 *
 * In any context. What a fill did not reach is zeroed: pages have other people's data in them.
 */
void ublk_member_end(struct ublk_member *m, int err)
{
	struct ublk_group *g = m->group;

	if (ublk_member_fills(m) && m->done < m->len)
		ublk_zero_data(g->slot->req, m->at + m->done, m->at + m->len);
	/* A signal is not what the server would restart on. */
	if (err == -ERESTARTSYS || err == -ERESTARTNOINTR || err == -ERESTARTNOHAND ||
	    err == -ERESTART_RESTARTBLOCK)
		err = -EINTR;
	ublk_group_put(g, err);
}
