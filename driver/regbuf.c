// SPDX-License-Identifier: GPL-2.0-only
/*
 * Request buffers in a ring's table of buffers, where ordinary requests of the ring find them:
 * REGISTER_IO_BUF, UNREGISTER_IO_BUF, UBLK_F_AUTO_BUF_REG.
 *
 * A buffer keeps its request by a reference on the slot, until io_uring has let go of it: it may
 * still be at work when the server commits.
 *
 * With UBLK_F_AUTO_BUF_REG a slot's addr holds the place in the table that the server chose, as
 * it came in sqe->addr, and slot->ring the ring whose table that is.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include "driver.h"

#ifdef UBLK_HAVE_BUFFER_BVEC

static void buffer_released(void *priv)
{
	struct request *rq = priv;
	struct ublk_queue *q = rq->mq_hctx->driver_data;

	ublk_slot_release(q, &q->slots[rq->tag]);
}

static bool pages_are_pinned(const struct bio_vec *bv)
{
	size_t at = bv->bv_offset, end = at + bv->bv_len;

	while (at < end) {
		struct page *page = bv->bv_page + (at >> PAGE_SHIFT);
		struct folio *folio = page_folio(page);

		if (!folio_maybe_dma_pinned(folio))
			return false;
		/* On to the next folio. */
		at += folio_size(folio) - folio_page_idx(folio, page) * PAGE_SIZE -
		      offset_in_page(at);
	}
	return true;
}

/* Pinned for direct I/O. A bio that was split off does not say so, its pages do. */
static bool is_pinned(const struct bio *bio)
{
	struct bvec_iter it;
	struct bio_vec bv;

	if (bio_flagged(bio, BIO_PAGE_PINNED))
		return true;
	bio_for_each_bvec(bv, bio, it)
		if (!pages_are_pinned(&bv))
			return false;
	return true;
}

/* Are all pages the reader's own, so that nothing in them is new to it? */
static bool is_of_the_reader(const struct request *rq)
{
	const struct bio *bio;

	__rq_for_each_bio(bio, rq)
		if (!is_pinned(bio))
			return false;
	return true;
}

/* Ordinary requests may leave holes, and nobody tells: no old data is there to be seen. */
static int make_safe(struct ublk_slot *slot, struct request *rq)
{
	u32 bytes = blk_rq_bytes(rq);

	if (req_op(rq) != REQ_OP_READ)
		return 0;
	if (is_of_the_reader(rq)) {
		slot->filled = bytes;
		return 0;
	}
	return ublk_fill_begin(slot, rq, bytes, bytes, NULL);
}

/**
 * ublk_buffer_put() - put a request's buffer into a ring's table
 * @slot: the slot, held by the caller
 * @index: the place in the table
 * @released: called with the request once io_uring has let go of it, in any context
 * @cmd: a command that came through the ring
 * @issue_flags: io_uring's
 *
 * Return: 0, and the caller's hold is @released's to give up; or -errno.
 */
int ublk_buffer_put(struct ublk_slot *slot, u32 index, void (*released)(void *),
		    struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	struct request *rq = slot->req;
	int ret = make_safe(slot, rq);

	return ret ?: io_buffer_register_bvec(cmd, rq, released, index, issue_flags);
}

/**
 * ublk_buffer_register() - REGISTER_IO_BUF
 * @q: the queue
 * @tag: the tag, checked
 * @index: place in the table of the command's ring
 * @cmd: the command, of any task
 * @issue_flags: io_uring's
 *
 * Return: 0; -EBUSY when the tag has no request, or the place is taken; -EINVAL.
 */
int ublk_buffer_register(struct ublk_queue *q, u16 tag, u64 index, struct io_uring_cmd *cmd,
			 unsigned int issue_flags)
{
	struct ublk_slot *slot = &q->slots[tag];
	int ret = -EINVAL;

	if (!(q->features & UBLK_F_SUPPORT_ZERO_COPY) || index > U32_MAX)
		return -EINVAL;
	if (READ_ONCE(slot->task) == current && READ_ONCE(slot->state) != UBLK_SLOT_SERVED)
		return -EBUSY;
	if (!ublk_slot_hold(slot))
		return -EINVAL;
	if (bio_has_data(slot->req->bio))
		ret = ublk_buffer_put(slot, index, buffer_released, cmd, issue_flags);
	if (ret)
		ublk_slot_release(q, slot);
	return ret;
}

/**
 * ublk_buffer_take() - take a buffer out of a ring's table
 * @index: the place in the table
 * @cmd: a command that came through the ring
 * @issue_flags: io_uring's
 *
 * Return: 0; -EINVAL when there is no such buffer.
 */
int ublk_buffer_take(u32 index, struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	return io_buffer_unregister_bvec(cmd, index, issue_flags);
}

/**
 * ublk_buffer_unregister() - UNREGISTER_IO_BUF
 * @ub: the device
 * @index: place in the table of the command's ring
 * @cmd: the command, of any task
 * @issue_flags: io_uring's
 *
 * Return: 0; -EINVAL when there is no such buffer.
 */
int ublk_buffer_unregister(const struct ublk_device *ub, u64 index, struct io_uring_cmd *cmd,
			   unsigned int issue_flags)
{
	if (!ublk_has(ub, UBLK_F_SUPPORT_ZERO_COPY) || index > U32_MAX)
		return -EINVAL;
	return ublk_buffer_take(index, cmd, issue_flags);
}

/**
 * ublk_auto_is_good() - is this a place as UBLK_F_AUTO_BUF_REG wants it?
 * @addr: what the server gave
 *
 * Return: true when so.
 */
bool ublk_auto_is_good(u64 addr)
{
	struct ublk_auto_buf_reg reg = ublk_sqe_addr_to_auto_buf_reg(addr);

	return !reg.reserved0 && !reg.reserved1 && !(reg.flags & ~UBLK_AUTO_BUF_REG_F_MASK);
}

/**
 * ublk_auto_register() - put a request's buffer where the server wants it
 * @q: the queue, with UBLK_F_AUTO_BUF_REG
 * @slot: the slot, held by the caller
 * @cmd: a command of the server's, in its task
 * @issue_flags: io_uring's
 *
 * Return: true; false when the request must not go to the server.
 */
bool ublk_auto_register(struct ublk_queue *q, struct ublk_slot *slot, struct io_uring_cmd *cmd,
			unsigned int issue_flags)
{
	struct ublk_auto_buf_reg reg = ublk_sqe_addr_to_auto_buf_reg(slot->addr);

	slot->ring = NULL;
	if (!bio_has_data(slot->req->bio))
		return true;
	refcount_inc(&slot->ref);
	if (!ublk_buffer_put(slot, reg.index, buffer_released, cmd, issue_flags)) {
		slot->ring = ublk_cmd_ring(cmd);
		return true;
	}
	/* The caller's own hold is left. */
	refcount_dec(&slot->ref);
	if (!(reg.flags & UBLK_AUTO_BUF_REG_FALLBACK))
		return false;
	q->desc[slot->req->tag].op_flags |= UBLK_IO_F_NEED_REG_BUF;
	return true;
}

/**
 * ublk_auto_unregister() - take a buffer back that ublk_auto_register() put into a table
 * @slot: the slot
 * @cmd: the commit, or whatever takes the request away from the server
 * @issue_flags: io_uring's
 *
 * From another ring it cannot be done: the server does it there. Nor is it an error when the
 * server has done so before.
 */
void ublk_auto_unregister(struct ublk_slot *slot, struct io_uring_cmd *cmd,
			  unsigned int issue_flags)
{
	struct ublk_auto_buf_reg reg = ublk_sqe_addr_to_auto_buf_reg(slot->addr);

	if (slot->ring == ublk_cmd_ring(cmd))
		ublk_buffer_take(reg.index, cmd, issue_flags);
	slot->ring = NULL;
}

#endif
