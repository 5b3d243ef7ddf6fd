// SPDX-License-Identifier: GPL-2.0-only
/*
 * A request's way back: from the server's result to the end of the request.
 */
#include <linux/blkdev.h>
#include <linux/sched/signal.h>
#include "driver.h"
#include "trace.h"

/*
 * A bio's end may drop the last reference to the block device's file; in the server's task that
 * would close the disk there and then, waiting for a lock whose holder waits for the server. So
 * bios end as if in softirq, unless it is an interrupt already, where members may end.
 */
static bool bh_begin(void)
{
	if (in_hardirq() || irqs_disabled())
		return false;
	local_bh_disable();
	return true;
}

static void bh_end(bool begun)
{
	if (begun)
		local_bh_enable();
}

/**
 * ublk_end_request() - end a request
 * @rq: the request
 * @status: how
 *
 * In any context.
 */
void ublk_end_request(struct request *rq, blk_status_t status)
{
	bool bh = bh_begin();

	blk_mq_end_request(rq, status);
	bh_end(bh);
}

static void end_whole(struct request *rq, struct io_comp_batch *iob)
{
	if (!blk_mq_add_to_batch(rq, iob, false, blk_mq_end_request_batch))
		ublk_end_request(rq, BLK_STS_OK);
}

/**
 * ublk_complete_batch() - end what ublk_complete() has put into a batch
 * @iob: the batch
 */
void ublk_complete_batch(struct io_comp_batch *iob)
{
	bool bh;

	if (!iob->complete)
		return;
	bh = bh_begin();
	iob->complete(iob);
	bh_end(bh);
}

/* Ends the first @bytes and has the rest served again. */
static void end_part(struct request *rq, u32 bytes)
{
	bool bh = bh_begin();
	bool more = blk_update_request(rq, BLK_STS_OK, bytes);

	bh_end(bh);
	if (more)
		blk_mq_requeue_request(rq, true);
	else
		__blk_mq_end_request(rq, BLK_STS_OK);
}

/* What the reader gets was written by the server, or is zero. */
static bool fill_read(struct ublk_queue *q, struct ublk_slot *slot, struct request *rq, u64 addr,
		      u32 len)
{
	if (slot->shmem)
		return true;
	if (ublk_queue_copies(q))
		return ublk_copy_from_server(rq, addr, len);
	if (slot->filled < len)
		ublk_zero_data(rq, slot->filled, len);
	return true;
}

/* A killed server's memory cannot be faulted in: that is no error of the disk's. */
static void fill_failed(struct ublk_queue *q, struct request *rq)
{
	if (fatal_signal_pending(current) && ublk_reissues(q->ub, rq))
		ublk_reissue(q, rq);
	else
		ublk_end_request(rq, BLK_STS_IOERR);
}

static void complete_data(struct ublk_queue *q, struct ublk_slot *slot, struct request *rq,
			  u64 addr, struct io_comp_batch *iob)
{
	u32 bytes = blk_rq_bytes(rq);
	u32 done = min_t(u32, slot->res, bytes);

	/* The rest is a request too: it begins with a block. */
	if (unlikely(done < bytes))
		done = round_down(done, queue_logical_block_size(rq->q));
	/* Nothing read is the end of the server's data; nothing written is asked for again. */
	if (req_op(rq) == REQ_OP_READ && unlikely(!done))
		ublk_end_request(rq, BLK_STS_IOERR);
	else if (req_op(rq) == REQ_OP_READ && unlikely(!fill_read(q, slot, rq, addr, done)))
		fill_failed(q, rq);
	else if (likely(done == bytes))
		end_whole(rq, iob);
	else
		end_part(rq, done);
}

/**
 * ublk_complete() - end a request by its slot's result
 * @q: the queue
 * @slot: the slot; armed again already, but for its result and what was filled
 * @rq: the request
 * @addr: the server's buffer, where data is copied
 * @iob: may take it, to be ended by ublk_complete_batch(); or NULL
 */
void ublk_complete(struct ublk_queue *q, struct ublk_slot *slot, struct request *rq, u64 addr,
		   struct io_comp_batch *iob)
{
	s32 res = slot->res;

	if (unlikely(slot->shmem_held))
		ublk_shmem_put(q, rq);
	trace_ublk_commit(q->ub->info.dev_id, q->q_id, rq->tag, res);
	if (unlikely(res < 0)) {
		if (res == UBLK_RES_REISSUE)
			ublk_reissue(q, rq);
		else
			ublk_end_request(rq, errno_to_blk_status(res));
		return;
	}
	switch (req_op(rq)) {
	case REQ_OP_READ:
	case REQ_OP_WRITE:
		complete_data(q, slot, rq, addr, iob);
		break;
	default:
		ublk_end_request(rq, BLK_STS_OK);
		break;
	}
}
