// SPDX-License-Identifier: GPL-2.0-only
/*
 * A request's way to the server.
 *
 *   ublk_claim()          in the submitter: through the gate, into the tag's slot and descriptor
 *   ublk_deliver_later()  one piece of task work, for one request or a list of them
 *   deliver()             in the server's task: copy a write's data, complete the command
 *
 * No lock is taken. A tag has one request at a time, and a slot has one owner at a time; the
 * owners hand it on in the order of enum ublk_slot_state.
 */
#include <linux/blk-integrity.h>
#include <linux/sched/signal.h>
#include "driver.h"
#include "trace.h"

/* ---- requests without a server ----------------------------------------------------------- */

/**
 * ublk_reject() - end or put back a request that cannot go to a server now
 * @q: its queue
 * @rq: the request
 */
void ublk_reject(struct ublk_queue *q, struct request *rq)
{
	enum ublk_gate gate;

	if (unlikely(q->slots[rq->tag].shmem_held))
		ublk_shmem_put(q, rq);
	/* Whoever opens or shuts the gate waits for this section, then kicks the requeue list. */
	rcu_read_lock();
	gate = READ_ONCE(q->gate);
	if (gate == UBLK_GATE_PASS) /* the server is dying, the gate about to be closed */
		gate = ublk_gate_closed(q->ub);
	/* START_DEV may wait for a zone report: it must not wait for the next server. */
	if (blk_rq_is_passthrough(rq))
		gate = UBLK_GATE_FAIL;
	trace_ublk_abort(q->ub->info.dev_id, q->q_id, rq->tag, gate);
	if (gate == UBLK_GATE_HOLD)
		blk_mq_requeue_request(rq, false);
	rcu_read_unlock();
	if (gate != UBLK_GATE_HOLD)
		ublk_end_request(rq, BLK_STS_IOERR);
}

/**
 * ublk_reissue() - give a dead server's request to the next one
 * @q: its queue
 * @rq: the request
 */
void ublk_reissue(struct ublk_queue *q, struct request *rq)
{
	rcu_read_lock();
	trace_ublk_abort(q->ub->info.dev_id, q->q_id, rq->tag, UBLK_GATE_HOLD);
	blk_mq_requeue_request(rq, READ_ONCE(q->gate) != UBLK_GATE_HOLD);
	rcu_read_unlock();
}

/* ---- the descriptor ---------------------------------------------------------------------- */

static u32 desc_flags(const struct request *rq)
{
	static const struct {
		blk_opf_t rq;
		u32 desc;
	} map[] = {
		{REQ_FAILFAST_DEV, UBLK_IO_F_FAILFAST_DEV},
		{REQ_FAILFAST_TRANSPORT, UBLK_IO_F_FAILFAST_TRANSPORT},
		{REQ_FAILFAST_DRIVER, UBLK_IO_F_FAILFAST_DRIVER},
		{REQ_META, UBLK_IO_F_META},
		{REQ_FUA, UBLK_IO_F_FUA},
		{REQ_NOUNMAP, UBLK_IO_F_NOUNMAP},
		{REQ_SWAP, UBLK_IO_F_SWAP},
	};
	const blk_opf_t any = REQ_FAILFAST_DEV | REQ_FAILFAST_TRANSPORT | REQ_FAILFAST_DRIVER |
			      REQ_META | REQ_FUA | REQ_NOUNMAP | REQ_SWAP;
	u32 flags = 0;
	size_t i;

	if (!(rq->cmd_flags & any))
		return 0;
	for (i = 0; i < ARRAY_SIZE(map); i++)
		if (rq->cmd_flags & map[i].rq)
			flags |= map[i].desc;
	return flags;
}

static int desc_op(const struct request *rq)
{
	switch (req_op(rq)) {
	case REQ_OP_READ:
		return UBLK_IO_OP_READ;
	case REQ_OP_WRITE:
		return UBLK_IO_OP_WRITE;
	case REQ_OP_FLUSH:
		return UBLK_IO_OP_FLUSH;
	case REQ_OP_DISCARD:
		return UBLK_IO_OP_DISCARD;
	case REQ_OP_WRITE_ZEROES:
		return UBLK_IO_OP_WRITE_ZEROES;
	default:
		return -EOPNOTSUPP;
	}
}

/* What few devices have. */
static void fill_desc_more(struct ublk_queue *q, struct request *rq, struct ublk_slot *slot,
			   struct ublksrv_io_desc *desc)
{
	/* With members the descriptor's address is the generation. */
	if ((q->features & UBLK_F_SHMEM_ZC) && !(q->features & UBD_F_ALL)) {
		slot->shmem = bio_has_data(rq->bio) && !blk_rq_is_passthrough(rq) &&
			      ublk_shmem_find(q->ub, rq, &desc->addr);
		if (slot->shmem)
			desc->op_flags |= UBLK_IO_F_SHMEM_ZC;
	}
	if (blk_integrity_rq(rq)) {
		desc->op_flags |= UBLK_IO_F_INTEGRITY;
		ublk_integrity_prepare(rq);
	}
}

static blk_status_t fill_desc(struct ublk_queue *q, struct request *rq, struct ublk_slot *slot)
{
	struct ublksrv_io_desc *desc = &q->desc[rq->tag];
	int op = desc_op(rq);

	desc->nr_sectors = blk_rq_sectors(rq);
	desc->start_sector = blk_rq_pos(rq);
	desc->addr = slot->addr;
	if (unlikely(op < 0) && (q->features & UBLK_F_ZONED))
		op = ublk_zoned_desc(rq, desc);
	if (unlikely(op < 0))
		return BLK_STS_NOTSUPP;
	desc->op_flags = op | desc_flags(rq);
	if (q->features & (UBLK_F_SHMEM_ZC | UBLK_F_INTEGRITY))
		fill_desc_more(q, rq, slot, desc);
	if (q->features & UBD_F_ALL)
		desc->addr = slot->generation = ublk_zc_next(slot->generation);
	return BLK_STS_OK;
}

/* ---- the submitter's part ---------------------------------------------------------------- */

/**
 * ublk_claim() - let a request through the gate and into its slot
 * @q: its queue
 * @rq: the request
 *
 * Return: the slot, whose task work is now the caller's to order; NULL when the request went
 * another way.
 */
struct ublk_slot *ublk_claim(struct ublk_queue *q, struct request *rq)
{
	struct ublk_slot *slot = &q->slots[rq->tag];
	blk_status_t status;

	rcu_read_lock();
	/*
	 * With the gate open a free tag's slot is armed, but for the moments between a dying
	 * task's last work and its cancellation.
	 */
	if (unlikely(READ_ONCE(q->gate) != UBLK_GATE_PASS ||
		     READ_ONCE(slot->state) != UBLK_SLOT_ARMED)) {
		rcu_read_unlock();
		ublk_reject(q, rq);
		return NULL;
	}
	status = fill_desc(q, rq, slot);
	if (unlikely(status != BLK_STS_OK)) {
		rcu_read_unlock();
		ublk_end_request(rq, status);
		return NULL;
	}
	blk_mq_start_request(rq);
	slot->req = rq;
	WRITE_ONCE(slot->state, UBLK_SLOT_CLAIMED);
	rcu_read_unlock();
	rq->rq_next = NULL;
	return slot;
}

/* ---- the server's part ------------------------------------------------------------------- */

static bool needs_get_data(const struct ublk_queue *q, const struct request *rq)
{
	return (q->features & UBLK_F_NEED_GET_DATA) && req_op(rq) == REQ_OP_WRITE &&
	       !q->slots[rq->tag].shmem;
}

/* The task died before it got the request. */
static void deliver_to_nobody(struct ublk_queue *q, struct ublk_slot *slot, struct request *rq,
			      unsigned int issue_flags)
{
	struct io_uring_cmd *cmd = slot->cmd;

	slot->cmd = NULL;
	WRITE_ONCE(slot->state, UBLK_SLOT_EMPTY);
	ublk_close_later(q->ub);
	ublk_reject(q, rq);
	ublk_cmd_done(cmd, UBLK_IO_RES_ABORT, issue_flags);
}

/* The server's own hold on the request. */
static void hold_begin(struct ublk_queue *q, struct ublk_slot *slot)
{
	if (!(q->features & UBLK_F_HELD))
		return;
	slot->filled = 0;
	/* Others look at req once they hold a reference. */
	smp_wmb();
	refcount_set(&slot->ref, 1);
}

static void hold_failed(struct ublk_queue *q, struct ublk_slot *slot, struct request *rq)
{
	/* A killed task's memory cannot be faulted in: that is no error of the disk's. */
	slot->res = ublk_recovers(q->ub) && fatal_signal_pending(current) &&
		    !blk_rq_is_passthrough(rq) ? UBLK_RES_REISSUE : -EIO;
	if (!(q->features & UBLK_F_HELD) || refcount_dec_and_test(&slot->ref))
		ublk_complete(q, slot, rq, 0, NULL);
}

static void hand_over(struct ublk_queue *q, struct ublk_slot *slot, struct io_uring_cmd *cmd,
		      enum ublk_slot_state state, int res, unsigned int issue_flags)
{
	trace_ublk_dispatch(q->ub->info.dev_id, q->q_id, slot->req->tag, res);
	WRITE_ONCE(slot->state, state);
	ublk_cmd_done(cmd, res, issue_flags);
}

/* The request's data, or its buffer, to where the server wants it. */
static bool bring_data(struct ublk_queue *q, struct ublk_slot *slot, struct request *rq,
		       struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	if (!ublk_queue_copies(q))
		return !(q->features & UBLK_F_AUTO_BUF_REG) ||
		       ublk_auto_register(q, slot, cmd, issue_flags);
	return req_op(rq) != REQ_OP_WRITE || slot->shmem || ublk_copy_to_server(rq, slot->addr);
}

/* That cannot be done: the command stays, the request fails. */
static void deliver_failed(struct ublk_queue *q, struct ublk_slot *slot, struct request *rq,
			   struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	if (!ublk_slot_arm(q, slot, cmd))
		ublk_cmd_done(cmd, UBLK_IO_RES_ABORT, issue_flags);
	hold_failed(q, slot, rq);
}

static void deliver(struct ublk_queue *q, struct request *rq, unsigned int issue_flags)
{
	struct ublk_slot *slot = &q->slots[rq->tag];
	struct io_uring_cmd *cmd = slot->cmd;

	/* io_uring runs a dead task's work in another. */
	if (unlikely(current != slot->task || (current->flags & PF_EXITING) ||
		     fatal_signal_pending(current) || ublk_ring_is_dying(cmd))) {
		deliver_to_nobody(q, slot, rq, issue_flags);
		return;
	}
	slot->cmd = NULL;
	if (needs_get_data(q, rq)) {
		hand_over(q, slot, cmd, UBLK_SLOT_NEED_DATA, UBLK_IO_RES_NEED_GET_DATA,
			  issue_flags);
		return;
	}
	hold_begin(q, slot);
	if (unlikely(!bring_data(q, slot, rq, cmd, issue_flags)))
		deliver_failed(q, slot, rq, cmd, issue_flags);
	else
		hand_over(q, slot, cmd, UBLK_SLOT_SERVED, UBLK_IO_RES_OK, issue_flags);
}

UBLK_TASK_WORK(deliver_list)
{
	const struct ublk_cmd_pdu *pdu = ublk_cmd_pdu(cmd, struct ublk_cmd_pdu);
	struct request *rq = pdu->list, *next;

	/* The first one delivered ends @cmd. */
	for (; rq; rq = next) {
		next = rq->rq_next;
		deliver(rq->mq_hctx->driver_data, rq, issue_flags);
	}
}

/**
 * ublk_deliver_later() - have requests delivered in the server's task
 * @list: claimed requests, linked by rq_next, of one task and one ring, or of one batch queue
 */
void ublk_deliver_later(struct request *list)
{
	struct ublk_queue *q = list->mq_hctx->driver_data;
	struct io_uring_cmd *cmd = q->slots[list->tag].cmd;

	if (q->batch) {
		ublk_batch_queue(q, list);
		return;
	}
	ublk_cmd_pdu(cmd, struct ublk_cmd_pdu)->list = list;
	io_uring_cmd_complete_in_task(cmd, deliver_list_tw);
}

/**
 * ublk_deliver_batched() - hand a claimed request over, in a fetching command's task
 * @q: the queue
 * @tag: the request's tag
 * @cmd: the fetching command
 * @issue_flags: io_uring's
 *
 * Return: true; false when the request has failed and its tag must not be shown.
 */
bool ublk_deliver_batched(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd,
			  unsigned int issue_flags)
{
	struct ublk_slot *slot = &q->slots[tag];
	struct request *rq = slot->req;

	/* Not when it was handed over before, in a buffer that did not reach the server. */
	if (!refcount_read(&slot->ref))
		hold_begin(q, slot);
	if (unlikely(!bring_data(q, slot, rq, cmd, issue_flags))) {
		ublk_slot_arm(q, slot, NULL);
		hold_failed(q, slot, rq);
		return false;
	}
	trace_ublk_dispatch(q->ub->info.dev_id, q->q_id, tag, UBLK_IO_RES_OK);
	/* From here on it may be committed. */
	smp_store_release(&slot->state, UBLK_SLOT_SERVED);
	return true;
}

/**
 * ublk_slot_arm() - the driver gets a command for the slot's next request
 * @q: the queue
 * @slot: the slot, the caller its owner
 * @cmd: the command, marked cancelable
 *
 * Return: true; false when the server is going away and @cmd is the caller's to abort.
 */
bool ublk_slot_arm(struct ublk_queue *q, struct ublk_slot *slot, struct io_uring_cmd *cmd)
{
	bool armed;

	/* ublk_close() waits for this section: it finds the command, or we find it closing. */
	rcu_read_lock();
	armed = !READ_ONCE(q->closing);
	slot->cmd = armed ? cmd : NULL;
	/* Whoever sees ARMED sees the command. */
	smp_store_release(&slot->state, armed ? UBLK_SLOT_ARMED : UBLK_SLOT_EMPTY);
	rcu_read_unlock();
	return armed;
}
