// SPDX-License-Identifier: GPL-2.0-only
/*
 * splice(2) from the char device: a WRITE request's pages into a pipe.
 *
 * Each pipe buffer has a reference on the slot, so the request ends when the pipe has been
 * emptied, whatever the server has committed before. The other way does not exist: nothing that
 * a module may call takes pages out of a pipe into a request. Memory of the slab allocator, which
 * file systems write small blocks from, is refused: whoever reads a pipe may hold its pages for
 * longer, and there a page's reference holds nothing.
 */
#include <linux/net.h>
#include <linux/pipe_fs_i.h>
#include <linux/splice.h>
#include "../driver.h"

/* At a time, on the stack. */
#define BATCH PIPE_DEF_BUFFERS

static struct ublk_queue *queue_of(const struct ublk_slot *slot)
{
	return slot->req->mq_hctx->driver_data;
}

static void buf_release(struct pipe_inode_info *pipe, struct pipe_buffer *buf)
{
	struct ublk_slot *slot = (struct ublk_slot *)buf->private;

	put_page(buf->page);
	ublk_slot_release(queue_of(slot), slot);
}

static bool buf_get(struct pipe_inode_info *pipe, struct pipe_buffer *buf)
{
	struct ublk_slot *slot = (struct ublk_slot *)buf->private;

	if (!try_get_page(buf->page))
		return false;
	refcount_inc(&slot->ref);
	return true;
}

/* They are not to be stolen: they belong to whoever writes to the disk. */
static const struct pipe_buf_operations buf_ops = {
	.release = buf_release,
	.get = buf_get,
};

static void not_taken(struct splice_pipe_desc *spd, unsigned int i)
{
	struct ublk_slot *slot = (struct ublk_slot *)spd->partial[i].private;

	put_page(spd->pages[i]);
	ublk_slot_release(queue_of(slot), slot);
}

/* Gathers pages from @off on, at most @len bytes; 0 when there are none that may be held. */
static size_t gather(struct ublk_slot *slot, u32 off, size_t len, struct splice_pipe_desc *spd)
{
	struct req_iterator it;
	struct bio_vec bv;
	size_t bytes = 0;

	spd->nr_pages = 0;
	rq_for_each_segment(bv, slot->req, it) {
		struct partial_page *part = &spd->partial[spd->nr_pages];

		if (off >= bv.bv_len) {
			off -= bv.bv_len;
			continue;
		}
		if (bytes == len || spd->nr_pages == BATCH || !sendpage_ok(bv.bv_page))
			break;
		part->offset = bv.bv_offset + off;
		part->len = min_t(size_t, bv.bv_len - off, len - bytes);
		part->private = (unsigned long)slot;
		get_page(bv.bv_page);
		refcount_inc(&slot->ref);
		spd->pages[spd->nr_pages++] = bv.bv_page;
		bytes += part->len;
		off = 0;
	}
	return bytes;
}

/* Until the pipe is full, or all of it is in there. */
static ssize_t fill_pipe(struct ublk_slot *slot, u32 off, size_t len, struct pipe_inode_info *pipe)
{
	struct page *pages[BATCH];
	struct partial_page partial[BATCH];
	struct splice_pipe_desc spd = {
		.pages = pages,
		.partial = partial,
		.nr_pages_max = BATCH,
		.ops = &buf_ops,
		.spd_release = not_taken,
	};
	ssize_t done = 0, ret;
	size_t bytes;

	len = min_t(size_t, len, blk_rq_bytes(slot->req) - off);
	while (done < len) {
		bytes = gather(slot, off + done, len - done, &spd);
		if (!bytes)
			return done ?: -EOPNOTSUPP;
		ret = splice_to_pipe(pipe, &spd);
		if (ret <= 0)
			return done ?: ret;
		done += ret;
		if (ret < bytes)
			break;
	}
	return done;
}

/**
 * ublk_ch_splice_read() - splice(2) from the char device
 * @in: the char device
 * @ppos: names queue, tag and offset, as for pread
 * @pipe: the pipe, locked
 * @len: bytes at most
 * @flags: of the system call
 *
 * Return: bytes or -errno; -EOPNOTSUPP when the first of them are the slab allocator's.
 */
ssize_t ublk_ch_splice_read(struct file *in, loff_t *ppos, struct pipe_inode_info *pipe, size_t len,
			    unsigned int flags)
{
	struct ublk_device *ub = in->private_data;
	struct ublk_slot *slot;
	struct ublk_place at;
	struct request *rq;
	ssize_t ret;

	if (!ublk_has(ub, UBD_F_SPLICE))
		return -EINVAL;
	ret = ublk_place_decode(ub, *ppos, &at);
	if (ret)
		return ret;
	slot = &ub->queues[at.q_id]->slots[at.tag];
	if (at.integrity || !ublk_slot_hold(slot))
		return -EINVAL;
	rq = slot->req;
	ret = -EINVAL;
	if (bio_has_data(rq->bio) && op_is_write(req_op(rq)) && at.off < blk_rq_bytes(rq))
		ret = fill_pipe(slot, at.off, len, pipe);
	ublk_slot_release(ub->queues[at.q_id], slot);
	if (ret > 0)
		*ppos += ret;
	return ret;
}
