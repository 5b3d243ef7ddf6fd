// SPDX-License-Identifier: GPL-2.0-only
/*
 * The server's I/O commands: FETCH, COMMIT_AND_FETCH, NEED_GET_DATA.
 */
#include "driver.h"

/* One command, read from the SQE once: the server may change it under us. */
struct io_args {
	u32 nr;
	u16 q_id;
	u16 tag;
	s32 result;
	u64 addr;
	u64 slot_addr; /* where the next request's data is wanted */
};

static bool takes_buffer(const struct ublk_queue *q)
{
	return ublk_queue_copies(q) && !(q->features & UBLK_F_NEED_GET_DATA);
}

static int fetch(struct ublk_queue *q, const struct io_args *a, struct io_uring_cmd *cmd,
		 unsigned int issue_flags)
{
	if (ublk_queue_copies(q) ? takes_buffer(q) && !a->addr : !!a->addr)
		return -EINVAL;
	if ((q->features & UBLK_F_AUTO_BUF_REG) && !ublk_auto_is_good(a->slot_addr))
		return -EINVAL;
	return ublk_slot_fetch(q, a->tag, a->slot_addr, cmd, issue_flags);
}

static int check_commit_addr(const struct ublk_queue *q, const struct request *rq,
			     const struct io_args *a)
{
	if ((q->features & UBLK_F_AUTO_BUF_REG) && !ublk_auto_is_good(a->slot_addr))
		return -EINVAL;
	if (!ublk_queue_copies(q))
		return a->addr && req_op(rq) != REQ_OP_ZONE_APPEND ? -EINVAL : 0;
	/* A buffer for the next request, and for this one's data when it is a read. */
	if (!a->addr && (takes_buffer(q) || req_op(rq) == REQ_OP_READ))
		return -EINVAL;
	return 0;
}

static int commit(struct ublk_queue *q, struct ublk_slot *slot, const struct io_args *a,
		  struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	struct ublk_cmd_pdu *pdu = ublk_cmd_pdu(cmd, struct ublk_cmd_pdu);
	struct request *rq = slot->req;
	bool armed;
	int ret;

	if (slot->state != UBLK_SLOT_SERVED)
		return -EINVAL;
	ret = check_commit_addr(q, rq, a);
	if (ret)
		return ret;
	pdu->q = q;
	pdu->tag = a->tag;
	ublk_cmd_mark_cancelable(cmd, issue_flags);
	slot->res = max(a->result, -MAX_ERRNO);
	if (req_op(rq) == REQ_OP_ZONE_APPEND && slot->res >= 0 && !ublk_zoned_appended(rq, a->addr))
		slot->res = -EIO;
	if (q->features & UBLK_F_AUTO_BUF_REG)
		ublk_auto_unregister(slot, cmd, issue_flags);
	slot->addr = a->slot_addr;
	/* Before the request ends: its tag may be used again at once. */
	armed = ublk_slot_arm(q, slot, cmd);
	if (!(q->features & UBLK_F_HELD) || refcount_dec_and_test(&slot->ref))
		ublk_complete(q, slot, rq, a->slot_addr, NULL);
	return armed ? 0 : UBLK_IO_RES_ABORT;
}

/* The server has a buffer now for the write it was told of: the same command brings the data. */
static int get_data(struct ublk_queue *q, struct ublk_slot *slot, const struct io_args *a)
{
	struct request *rq = slot->req;

	if (slot->state != UBLK_SLOT_NEED_DATA || !a->addr)
		return -EINVAL;
	if (!ublk_copy_to_server(rq, a->addr))
		return -EFAULT;
	slot->addr = a->addr;
	q->desc[a->tag].addr = a->addr;
	WRITE_ONCE(slot->state, UBLK_SLOT_SERVED);
	return UBLK_IO_RES_OK;
}

/*
 * Does one command. Returns true when the driver keeps @cmd, else what to end it with in @ret.
 */
static bool run(struct ublk_device *ub, const struct io_args *a, struct io_uring_cmd *cmd,
		unsigned int issue_flags, int *ret)
{
	struct ublk_slot *slot;
	struct ublk_queue *q;

	*ret = -EINVAL;
	if (a->nr == _IOC_NR(UBLK_U_IO_UNREGISTER_IO_BUF)) {
		*ret = ublk_buffer_unregister(ub, a->addr, cmd, issue_flags);
		return false;
	}
	if (a->q_id >= ub->info.nr_hw_queues || a->tag >= ub->info.queue_depth)
		return false;
	q = ub->queues[a->q_id];
	slot = &q->slots[a->tag];
	if (a->nr == _IOC_NR(UBLK_U_IO_REGISTER_IO_BUF)) {
		*ret = ublk_buffer_register(q, a->tag, a->addr, cmd, issue_flags);
		return false;
	}
	if (a->nr == UBLK_IO_FETCH_REQ) {
		*ret = fetch(q, a, cmd, issue_flags);
		return !*ret;
	}
	if (a->nr >= UBLK_ZC_FIRST_NR)
		return ublk_zc_command(q, a->tag, cmd, issue_flags, ret);
	if (a->nr != UBLK_IO_COMMIT_AND_FETCH_REQ && a->nr != UBLK_IO_NEED_GET_DATA)
		return false;
	if (READ_ONCE(slot->task) != current)
		return false;
	if (slot->state != UBLK_SLOT_SERVED && slot->state != UBLK_SLOT_NEED_DATA) {
		*ret = -EBUSY;
		return false;
	}
	if (a->nr == UBLK_IO_NEED_GET_DATA) {
		*ret = get_data(q, slot, a);
		return false;
	}
	*ret = commit(q, slot, a, cmd, issue_flags);
	return !*ret;
}

static bool is_about_buffers(const struct io_uring_cmd *cmd)
{
	return cmd->cmd_op == UBLK_U_IO_REGISTER_IO_BUF ||
	       cmd->cmd_op == UBLK_U_IO_UNREGISTER_IO_BUF;
}

static u64 next_addr(const struct ublk_device *ub, const struct io_uring_cmd *cmd, u64 addr)
{
	if (ublk_has(ub, UBLK_F_AUTO_BUF_REG))
		return ublk_cmd_sqe_addr(cmd);
	return ublk_has(ub, UBLK_F_NO_PLAIN_COPY) ? 0 : addr;
}

static void handle(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	struct ublk_device *ub = cmd->file->private_data;
	const struct ublksrv_io_cmd *sqe = ublk_cmd_payload(cmd);
	struct io_args a = {
		.nr = _IOC_NR(cmd->cmd_op),
		.q_id = READ_ONCE(sqe->q_id),
		.tag = READ_ONCE(sqe->tag),
		.result = READ_ONCE(sqe->result),
		.addr = READ_ONCE(sqe->addr),
	};
	int ret;

	if (ublk_has(ub, UBLK_F_BATCH_IO) && !is_about_buffers(cmd)) {
		ublk_batch_command(ub, cmd, issue_flags);
		return;
	}
	a.slot_addr = next_addr(ub, cmd, a.addr);
	if (_IOC_TYPE(cmd->cmd_op) != 'u' && _IOC_TYPE(cmd->cmd_op) != 0)
		ret = -EOPNOTSUPP;
	else if (run(ub, &a, cmd, issue_flags, &ret))
		return;
	ublk_cmd_done(cmd, ret, issue_flags);
}

UBLK_TASK_WORK(handle_in_task)
{
	/* io_uring runs a dead task's work in another, whose memory is not the server's. */
	if (unlikely(current->flags & (PF_EXITING | PF_KTHREAD)))
		ublk_cmd_done(cmd, UBLK_IO_RES_ABORT, issue_flags);
	else
		handle(cmd, issue_flags);
}

/*
 * The submitter or its ring is going away. In a command's private area, of whichever kind it is,
 * the queue comes first.
 */
static void cancel(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	const struct ublk_cmd_pdu *pdu = ublk_cmd_pdu(cmd, struct ublk_cmd_pdu);
	struct ublk_queue *q = pdu->q;
	struct ublk_device *ub = q->ub;
	u16 tag = pdu->tag;

	ublk_close(ub);
	/* What other tasks and rings hold needs other locks than we have. */
	ublk_close_later(ub);
	if (q->batch)
		ublk_batch_cancel(q, cmd, issue_flags);
	else
		ublk_cancel_slot(q, tag, cmd, issue_flags);
}

/**
 * ublk_ch_uring_cmd() - a command on the char device
 * @cmd: the command
 * @issue_flags: io_uring's
 *
 * Return: -EIOCBQUEUED always; the result is in the command's completion.
 */
int ublk_ch_uring_cmd(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	if (unlikely(ublk_cmd_is_cancel(issue_flags)))
		cancel(cmd, issue_flags);
	else if (unlikely(issue_flags & IO_URING_F_UNLOCKED))
		/* From a worker thread, which is not the task that the tags belong to. */
		io_uring_cmd_complete_in_task(cmd, handle_in_task_tw);
	else
		handle(cmd, issue_flags);
	return -EIOCBQUEUED;
}
