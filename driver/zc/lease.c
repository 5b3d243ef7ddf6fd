// SPDX-License-Identifier: GPL-2.0-only
/*
 * The lease of a request's buffer: a leader, and the groups of members that it waits for.
 *
 * The lease keeps the request by a reference on its slot, and counts its users: the groups that
 * are to come or under way; an open lease itself, until it is returned; and, where the kernel
 * can do it, the buffer in the ring's table, until io_uring has let go of it. The last one ends
 * the leader.
 *
 * A ring lets go of its buffers when it has ended, and it waits for the leader before that: when
 * the server goes, the leader waits for the buffer no more. The buffer has a reference of its own.
 */
#include <linux/bio.h>
#include <linux/uaccess.h>
#include "../driver.h"

static struct ublk_lease *lease_of(struct ublk_queue *q, u16 tag)
{
	return &q->zc->tags[tag].lease;
}

/* @n users have gone. In any context. */
static void users_gone(struct ublk_queue *q, u16 tag, u32 n)
{
	struct ublk_lease *lease = lease_of(q, tag);
	struct io_uring_cmd *cmd = NULL;
	unsigned long flags;

	spin_lock_irqsave(&q->zc->lock, flags);
	lease->users -= n;
	if (!lease->users)
		swap(cmd, lease->cmd);
	spin_unlock_irqrestore(&q->zc->lock, flags);
	if (!cmd)
		return;
	ublk_slot_release(q, &q->slots[tag]);
	ublk_zc_command_end(cmd, 0);
}

/* Nobody new, and no waiting for those who have not come. Returns how many users go by that. */
static u32 lease_shut(struct ublk_lease *lease)
{
	u32 gone = lease->expected + lease->open;

	lease->expected = 0;
	lease->open = false;
	return gone;
}

/* io_uring has let go of the buffer. */
static void buffer_released(void *priv)
{
	struct request *rq = priv;
	struct ublk_queue *q = rq->mq_hctx->driver_data;
	struct ublk_lease *lease = lease_of(q, rq->tag);
	unsigned long flags;
	bool counted;

	spin_lock_irqsave(&q->zc->lock, flags);
	counted = lease->buffer;
	lease->buffer = false;
	spin_unlock_irqrestore(&q->zc->lock, flags);
	if (counted)
		users_gone(q, rq->tag, 1);
	ublk_slot_release(q, &q->slots[rq->tag]);
}

/* ---- commands ---------------------------------------------------------------------------- */

static int lease_check(const struct ubd_lease *want)
{
	bool open = want->flags & UBD_LEASE_OPEN, index = want->flags & UBD_LEASE_INDEX;

	if (want->flags & ~(UBD_LEASE_OPEN | UBD_LEASE_INDEX))
		return -EINVAL;
	if (want->reserved[0] || want->reserved[1] || want->reserved[2])
		return -EINVAL;
	if (open == !!want->nr_members || (index && !open) || (!index && want->buf_index))
		return -EINVAL;
	return 0;
}

/**
 * ublk_lease_begin() - UBD_U_IO_LEASE
 * @q: the queue
 * @tag: the tag, whose request the server holds
 * @addr: of struct ubd_lease
 * @cmd: the leader
 * @issue_flags: io_uring's
 *
 * Return: 0 when the leader is the lease's, or -errno.
 */
int ublk_lease_begin(struct ublk_queue *q, u16 tag, u64 addr, struct io_uring_cmd *cmd,
		     unsigned int issue_flags)
{
	struct ublk_zc_pdu *pdu = ublk_cmd_pdu(cmd, struct ublk_zc_pdu);
	struct ublk_lease *lease = lease_of(q, tag);
	struct ublk_slot *slot = &q->slots[tag];
	struct ubd_lease want;
	int ret;

	if (copy_from_user(&want, u64_to_user_ptr(addr), sizeof(want)))
		return -EFAULT;
	ret = lease_check(&want);
	if (ret)
		return ret;
	/* Only this task begins one. */
	if (READ_ONCE(lease->cmd))
		return -EBUSY;
	if (!bio_has_data(slot->req->bio))
		return -EINVAL;
	/* The last one's buffer may still be there. */
	if (ublk_zc_is_dying(q))
		return UBLK_IO_RES_ABORT;
	/* The ring's lock is held: nobody takes it out again before this is over. */
	if (want.flags & UBD_LEASE_INDEX) {
		refcount_inc(&slot->ref);
		ret = ublk_buffer_put(slot, want.buf_index, buffer_released, cmd, issue_flags);
		if (ret) {
			ublk_slot_release(q, slot);
			return ret;
		}
	}
	pdu->q = q;
	pdu->tag = tag;
	ublk_cmd_mark_cancelable(cmd, issue_flags);
	refcount_inc(&slot->ref);
	spin_lock_irq(&q->zc->lock);
	lease->open = want.flags & UBD_LEASE_OPEN;
	lease->buffer = want.flags & UBD_LEASE_INDEX;
	lease->index = want.buf_index;
	lease->expected = want.nr_members;
	lease->users = want.nr_members + lease->open + lease->buffer;
	lease->cmd = cmd;
	spin_unlock_irq(&q->zc->lock);
	/* Who has begun to go away meanwhile brings no members. */
	if (ublk_zc_is_dying(q))
		ublk_lease_kick(q);
	return 0;
}

/**
 * ublk_lease_return() - UBD_U_IO_RETURN
 * @q: the queue
 * @tag: the tag
 * @cmd: the command
 * @issue_flags: io_uring's
 *
 * Return: 0 or -errno; -EINVAL when there is no lease that waits for more users.
 */
int ublk_lease_return(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd,
		      unsigned int issue_flags)
{
	struct ublk_lease *lease = lease_of(q, tag);
	int ret = -EINVAL;
	bool buffer = false;
	u16 index = 0;
	u32 gone = 0;

	spin_lock_irq(&q->zc->lock);
	if (lease->cmd && (lease->open || lease->expected) &&
	    (!lease->buffer || ublk_cmd_ring(cmd) == ublk_cmd_ring(lease->cmd))) {
		buffer = lease->buffer;
		index = lease->index;
		gone = lease_shut(lease);
		ret = 0;
	}
	spin_unlock_irq(&q->zc->lock);
	/* Unless somebody else took it out. */
	if (buffer)
		ublk_buffer_take(index, cmd, issue_flags);
	if (!ret)
		users_gone(q, tag, gone);
	return ret;
}

/**
 * ublk_lease_join() - a group wants to be the lease's
 * @q: the queue
 * @tag: the tag
 *
 * Return: true, and ublk_lease_leave() is owed; false when there is no lease that expects it.
 */
bool ublk_lease_join(struct ublk_queue *q, u16 tag)
{
	struct ublk_lease *lease = lease_of(q, tag);
	bool joined;

	spin_lock_irq(&q->zc->lock);
	joined = lease->cmd && (lease->open || lease->expected);
	if (joined && lease->open)
		lease->users++;
	else if (joined)
		lease->expected--;
	spin_unlock_irq(&q->zc->lock);
	return joined;
}

/**
 * ublk_lease_leave() - a group of the lease has ended
 * @q: the queue
 * @tag: the tag
 */
void ublk_lease_leave(struct ublk_queue *q, u16 tag)
{
	users_gone(q, tag, 1);
}

/**
 * ublk_lease_kick() - end the leases of a server that brings nothing any more
 * @q: the queue, its server dying
 *
 * Groups under way still end them. A buffer in a ring's table goes with the ring.
 */
void ublk_lease_kick(struct ublk_queue *q)
{
	unsigned long flags;
	u16 tag;

	for (tag = 0; tag < q->depth; tag++) {
		struct ublk_lease *lease = lease_of(q, tag);
		u32 gone = 0;

		spin_lock_irqsave(&q->zc->lock, flags);
		if (lease->cmd) {
			gone = lease_shut(lease) + lease->buffer;
			lease->buffer = false;
		}
		spin_unlock_irqrestore(&q->zc->lock, flags);
		if (gone)
			users_gone(q, tag, gone);
	}
}
