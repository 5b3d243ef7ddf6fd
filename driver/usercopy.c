// SPDX-License-Identifier: GPL-2.0-only
/*
 * UBLK_F_USER_COPY: the server moves a request's data with pread and pwrite on the char device.
 *
 * A reader must never see what the pages held before. slot->filled is the length of the prefix
 * that is safe: written by the server, or zeroed. A write beyond it zeroes the gap first; the
 * commit zeroes what is missing at the end. A server that fills in order, or at once, pays
 * nothing for it.
 */
#include <linux/uio.h>
#include <linux/wait_bit.h>
#include "driver.h"

/**
 * ublk_place_decode() - take a position on the char device apart
 * @ub: the device
 * @pos: the position
 * @p: its parts
 *
 * Return: 0, or -EINVAL for a place that the device does not have.
 */
int ublk_place_decode(struct ublk_device *ub, loff_t pos, struct ublk_place *p)
{
	u64 at;

	p->integrity = pos & UBLKSRV_IO_INTEGRITY_FLAG;
	if (p->integrity && !ublk_has(ub, UBLK_F_INTEGRITY))
		return -EINVAL;
	pos &= ~UBLKSRV_IO_INTEGRITY_FLAG;
	at = pos - UBLKSRV_IO_BUF_OFFSET;
	if (pos < UBLKSRV_IO_BUF_OFFSET || at >= UBLKSRV_IO_BUF_TOTAL_SIZE)
		return -EINVAL;
	p->off = at & UBLK_IO_BUF_BITS_MASK;
	p->tag = (at >> UBLK_TAG_OFF) & UBLK_TAG_BITS_MASK;
	p->q_id = (at >> UBLK_QID_OFF) & UBLK_QID_BITS_MASK;
	if (p->q_id >= ub->info.nr_hw_queues || p->tag >= ub->info.queue_depth)
		return -EINVAL;
	return 0;
}

/**
 * ublk_slot_hold() - keep a slot's request
 * @slot: the slot
 *
 * Return: true, and ublk_slot_release() is owed; false when there is none to keep.
 */
bool ublk_slot_hold(struct ublk_slot *slot)
{
	if (!refcount_inc_not_zero(&slot->ref))
		return false;
	/* Pairs with hold_begin(): the request is there. */
	smp_rmb();
	return true;
}

/**
 * ublk_slot_release() - let go of a slot's request
 * @q: its queue
 * @slot: the slot
 *
 * In any context. The last one ends the request.
 */
void ublk_slot_release(struct ublk_queue *q, struct ublk_slot *slot)
{
	struct request *rq = slot->req;

	if (refcount_dec_and_test(&slot->ref))
		ublk_complete(q, slot, rq, 0, NULL);
}

/**
 * ublk_fill_begin() - promise that part of a read's data will be filled
 * @slot: the slot, its request held
 * @rq: the request
 * @from: first byte
 * @end: byte after the last
 * @before: how far the safe prefix reached, for a fill that comes short; may be NULL
 *
 * Makes everything before @from safe to show as well.
 *
 * Return: 0, or -EINTR.
 */
int ublk_fill_begin(struct ublk_slot *slot, struct request *rq, u32 from, u32 end, u32 *before)
{
	if (wait_on_bit_lock(&slot->lock, UBLK_SLOT_FILL_LOCK, TASK_KILLABLE))
		return -EINTR;
	if (before)
		*before = slot->filled;
	if (from > slot->filled)
		ublk_zero_data(rq, slot->filled, from);
	if (end > slot->filled)
		slot->filled = end;
	clear_and_wake_up_bit(UBLK_SLOT_FILL_LOCK, &slot->lock);
	return 0;
}

static ssize_t copy_in(struct ublk_slot *slot, struct request *rq, u32 off, struct iov_iter *iter)
{
	u32 end = off + min_t(size_t, iov_iter_count(iter), blk_rq_bytes(rq) - off);
	u32 before, got;
	int ret = ublk_fill_begin(slot, rq, off, end, &before);

	if (ret)
		return ret;
	got = ublk_copy_data(rq, off, iter);
	/* Promised to be filled and was not; nobody else had filled it before. */
	if (off + got < end && end > before)
		ublk_zero_data(rq, max(off + got, before), end);
	return got;
}

/* The request goes to the server: only data of its own direction. */
static bool right_way(const struct request *rq, bool to_user)
{
	if (to_user)
		return req_op(rq) == REQ_OP_WRITE || req_op(rq) == REQ_OP_ZONE_APPEND;
	return req_op(rq) == REQ_OP_READ || req_op(rq) == REQ_OP_DRV_IN;
}

static ssize_t copy_slot(struct ublk_slot *slot, const struct ublk_place *at, struct iov_iter *iter,
			 bool to_user)
{
	struct request *rq = slot->req;
	u32 bytes = at->integrity ? ublk_integrity_bytes(rq) : blk_rq_bytes(rq);
	ssize_t ret;

	if (!bio_has_data(rq->bio) || at->off > bytes)
		return -EINVAL;
	if (!right_way(rq, to_user))
		return -EACCES;
	if (!iov_iter_count(iter) || at->off == bytes)
		return 0;
	if (at->integrity)
		ret = ublk_integrity_copy(rq, at->off, iter);
	else
		ret = to_user ? ublk_copy_data(rq, at->off, iter)
			      : copy_in(slot, rq, at->off, iter);
	return ret ?: -EFAULT;
}

static ssize_t user_copy(struct kiocb *iocb, struct iov_iter *iter, bool to_user)
{
	struct ublk_device *ub = iocb->ki_filp->private_data;
	struct ublk_slot *slot;
	struct ublk_queue *q;
	struct ublk_place at;
	ssize_t ret;

	/* Not from inside the kernel: a pipe could take the pages themselves. */
	if (!user_backed_iter(iter) || !ublk_has(ub, UBLK_F_USER_COPY))
		return -EACCES;
	if (READ_ONCE(ub->info.state) == UBLK_S_DEV_DEAD)
		return -EACCES;
	ret = ublk_place_decode(ub, iocb->ki_pos, &at);
	if (ret)
		return ret;
	q = ub->queues[at.q_id];
	slot = &q->slots[at.tag];
	/* The commit comes from this very task: the request cannot go away. */
	if (READ_ONCE(slot->task) == current && READ_ONCE(slot->state) == UBLK_SLOT_SERVED)
		return copy_slot(slot, &at, iter, to_user);
	if (!ublk_slot_hold(slot))
		return -EINVAL;
	ret = copy_slot(slot, &at, iter, to_user);
	ublk_slot_release(q, slot);
	return ret;
}

/**
 * ublk_ch_read_iter() - pread on the char device: a write request's data
 * @iocb: its position names queue, tag and offset
 * @to: where to
 *
 * Return: bytes or -errno.
 */
ssize_t ublk_ch_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	return user_copy(iocb, to, true);
}

/**
 * ublk_ch_write_iter() - pwrite on the char device: a read request's data
 * @iocb: its position names queue, tag and offset
 * @from: where from
 *
 * Return: bytes or -errno.
 */
ssize_t ublk_ch_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	return user_copy(iocb, from, false);
}
