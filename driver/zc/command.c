// SPDX-License-Identifier: GPL-2.0-only
/*
 * Commands with members: looked at, begun, ended.
 */
#include <linux/file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "../driver.h"

#define DRIVER_VERSION "0.1"

/* A command's private area: the base's, which it needs when FUSED becomes a fetch. */
struct zc_pdu {
	struct ublk_cmd_pdu base;
	s32 res;
};

/* One command, read from the SQE once. */
struct zc_args {
	u32 nr;
	u32 generation;
	u8 count;
	u64 addr;
};

/**
 * ublk_zc_features() - what of our own this driver does on this kernel
 *
 * Return: a mask of UBD_F_*.
 */
u64 ublk_zc_features(void)
{
	return UBD_F_MEMBERS | UBD_F_FUSED;
}

/**
 * ublk_zc_query() - UBD_U_CMD_QUERY
 * @addr: where the answer goes
 * @len: how much of it
 *
 * Return: 0 or -errno.
 */
int ublk_zc_query(u64 addr, u16 len)
{
	struct ubd_query answer = {
		.abi_version = UBD_ABI_VERSION,
		.features = ublk_zc_features(),
		.version = DRIVER_VERSION,
	};

	if (!addr || !len)
		return -EINVAL;
	if (copy_to_user(u64_to_user_ptr(addr), &answer, min_t(size_t, len, sizeof(answer))))
		return -EFAULT;
	return 0;
}

/* ---- memory ------------------------------------------------------------------------------ */

/**
 * ublk_zc_init() - get what a device with our features needs
 * @ub: the device, with its queues
 *
 * Return: 0 or -ENOMEM; ublk_zc_exit() frees what there is.
 */
int ublk_zc_init(struct ublk_device *ub)
{
	u16 i;

	if (!ublk_has(ub, UBD_F_ALL))
		return 0;
	/* One for each device: one's members may wait for another's, below it. */
	ub->zc_wq = alloc_workqueue("ublk%u", WQ_MEM_RECLAIM | WQ_UNBOUND, 0, ub->info.dev_id);
	if (!ub->zc_wq)
		return -ENOMEM;
	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		struct ublk_queue *q = ub->queues[i];

		q->zc = kvcalloc(q->depth, sizeof(*q->zc), GFP_KERNEL);
		if (!q->zc)
			return -ENOMEM;
	}
	return 0;
}

/**
 * ublk_zc_exit() - give it back
 * @ub: the device, which nobody uses
 */
void ublk_zc_exit(struct ublk_device *ub)
{
	u16 i;

	if (ub->zc_wq)
		destroy_workqueue(ub->zc_wq);
	for (i = 0; i < ub->info.nr_hw_queues; i++)
		if (ub->queues[i])
			kvfree(ub->queues[i]->zc);
}

/* A group of one is the tag's own, unless that is in use. */
static struct ublk_group *group_alloc(struct ublk_queue *q, u16 tag, u8 nr)
{
	struct ublk_zc_tag *own = &q->zc[tag];
	struct ublk_group *g;

	if (nr == 1 && !test_and_set_bit_lock(UBLK_ZC_TAG_BUSY, &own->flags)) {
		own->group.members = &own->member;
		return &own->group;
	}
	/* Not cleared: each field is set in its time. */
	g = kmalloc(sizeof(*g) + nr * sizeof(*g->members), GFP_NOIO | __GFP_NOWARN);
	if (g)
		g->members = (struct ublk_member *)(g + 1);
	return g;
}

static void group_free(struct ublk_group *g)
{
	struct ublk_zc_tag *own = &g->q->zc[g->tag];

	if (g == &own->group)
		clear_bit_unlock(UBLK_ZC_TAG_BUSY, &own->flags);
	else
		kfree(g);
}

/* ---- the end ----------------------------------------------------------------------------- */

/* FUSED is for the request's end, and only for that: the server has it again. */
static void give_back(struct ublk_queue *q, struct ublk_slot *slot)
{
	WRITE_ONCE(slot->state, UBLK_SLOT_SERVED);
	/* Whoever looked for a dying task's requests did not see this one. */
	if (current != slot->task || (current->flags & PF_EXITING))
		ublk_close_later(q->ub);
}

/* In the server's task, or, when that is dead, in another. */
static void command_end(struct io_uring_cmd *cmd, int res, unsigned int issue_flags)
{
	const struct zc_pdu *pdu = ublk_cmd_pdu(cmd, struct zc_pdu);
	struct ublk_queue *q = pdu->base.q;

	if (cmd->cmd_op == UBD_U_IO_FUSED && res != UBLK_IO_RES_ABORT)
		give_back(q, &q->slots[pdu->base.tag]);
	ublk_cmd_done(cmd, res, issue_flags);
}

UBLK_TASK_WORK(command_end_in_task)
{
	command_end(cmd, ublk_cmd_pdu(cmd, struct zc_pdu)->res, issue_flags);
}

/*
 * Commits the request with the sum of the members and arms its command for the next one. The
 * tag may be used again at once: the group is gone before.
 */
static bool fused_end(struct ublk_queue *q, struct ublk_slot *slot, struct io_uring_cmd *cmd,
		      s32 bytes)
{
	struct request *rq = slot->req;
	bool armed;

	slot->res = bytes;
	armed = ublk_slot_arm(q, slot, cmd);
	if (refcount_dec_and_test(&slot->ref))
		ublk_complete(q, slot, rq);
	return armed;
}

static void members_end(struct ublk_queue *q, struct ublk_slot *slot)
{
	struct request *rq = slot->req;

	if (refcount_dec_and_test(&slot->ref))
		ublk_complete(q, slot, rq);
}

/*
 * The last member has ended, and with it the group. Returns true when its command, which is
 * stored, is to end with the result stored; else the driver keeps it.
 */
static bool group_end(struct ublk_group *g, struct io_uring_cmd **cmd, int *res)
{
	struct ublk_queue *q = g->q;
	struct ublk_slot *slot = g->slot;
	bool fused = g->fused;

	*cmd = g->cmd;
	*res = g->err ?: g->bytes;
	group_free(g);
	if (!fused) {
		members_end(q, slot);
		return true;
	}
	if (*res >= 0) {
		if (fused_end(q, slot, *cmd, *res))
			return false;
		*res = UBLK_IO_RES_ABORT;
	} else if (*res == UBLK_IO_RES_ABORT) {
		*res = -EIO;
	}
	return true;
}

/**
 * ublk_group_put() - one of a group's members has ended
 * @g: the group
 * @err: 0 or the member's -errno
 *
 * In any context.
 */
void ublk_group_put(struct ublk_group *g, int err)
{
	struct io_uring_cmd *cmd;
	int res;

	if (err)
		cmpxchg(&g->err, 0, err);
	if (!atomic_dec_and_test(&g->left) || !group_end(g, &cmd, &res))
		return;
	ublk_cmd_pdu(cmd, struct zc_pdu)->res = res;
	io_uring_cmd_complete_in_task(cmd, command_end_in_task_tw);
}

/* ---- the beginning ----------------------------------------------------------------------- */

static void drop_members(struct ublk_group *g, u8 nr)
{
	while (nr--)
		ublk_member_drop(&g->members[nr]);
}

/* All of them are looked at before the first is begun. */
static int prepare_members(struct ublk_group *g, u64 addr)
{
	const struct ubd_member __user *from = u64_to_user_ptr(addr);
	u64 bytes = 0;
	u8 i;

	for (i = 0; i < g->nr; i++) {
		struct ublk_member *m = &g->members[i];
		struct ubd_member um;
		int ret = -EFAULT;

		m->group = g;
		if (!copy_from_user(&um, &from[i], sizeof(um)))
			ret = ublk_member_prepare(m, &um, g->slot->req);
		if (ret) {
			drop_members(g, i);
			return ret;
		}
		bytes += m->len;
	}
	g->bytes = min_t(u64, bytes, S32_MAX);
	return 0;
}

/* Returns true when the driver keeps the command. */
static bool run_group(struct ublk_group *g, unsigned int issue_flags, int *ret)
{
	struct zc_pdu *pdu = ublk_cmd_pdu(g->cmd, struct zc_pdu);
	struct io_uring_cmd *cmd;
	u8 i, nr = g->nr;

	pdu->base.q = g->q;
	pdu->base.tag = g->tag;
	if (g->fused) {
		/* While its submitter is here to do it. */
		ublk_cmd_mark_cancelable(g->cmd, issue_flags);
		WRITE_ONCE(g->slot->state, UBLK_SLOT_FUSED);
	} else {
		refcount_inc(&g->slot->ref);
	}
	g->err = 0;
	atomic_set(&g->left, nr + 1);
	for (i = 0; i < nr; i++)
		ublk_member_start(&g->members[i]);
	if (!atomic_dec_and_test(&g->left) || !group_end(g, &cmd, ret))
		return true;
	command_end(cmd, *ret, issue_flags);
	return true;
}

static bool run_members(struct ublk_queue *q, u16 tag, const struct zc_args *a,
			struct io_uring_cmd *cmd, unsigned int issue_flags, int *ret)
{
	struct ublk_group *g;

	*ret = -EINVAL;
	if (!a->count)
		return false;
	g = group_alloc(q, tag, a->count);
	*ret = -ENOMEM;
	if (!g)
		return false;
	g->cmd = cmd;
	g->q = q;
	g->slot = &q->slots[tag];
	g->tag = tag;
	g->nr = a->count;
	g->fused = a->nr == _IOC_NR(UBD_U_IO_FUSED);
	*ret = prepare_members(g, a->addr);
	if (*ret) {
		group_free(g);
		return false;
	}
	return run_group(g, issue_flags, ret);
}

/* Buffers that io_uring would choose have no meaning here. */
static bool names_buffers(struct io_uring_cmd *cmd)
{
	unsigned int flags = IORING_URING_CMD_FIXED;

#ifdef IORING_URING_CMD_MULTISHOT
	flags |= IORING_URING_CMD_MULTISHOT;
#endif
	return (cmd->flags & flags) || (cmd_to_io_kiocb(cmd)->flags & REQ_F_BUFFER_SELECT);
}

static int check_command(const struct ublk_queue *q, u16 tag, const struct zc_args *a)
{
	const struct ublk_slot *slot = &q->slots[tag];

	/* Its files are looked up in the current task. */
	if (READ_ONCE(slot->task) != current)
		return -EINVAL;
	if (slot->generation != a->generation)
		return -ESTALE;
	if (slot->state == UBLK_SLOT_FUSED)
		return -EBUSY;
	return slot->state == UBLK_SLOT_SERVED ? 0 : -ESTALE;
}

/**
 * ublk_zc_command() - an I/O command of ours
 * @q: its queue
 * @tag: its tag, checked
 * @cmd: the command
 * @issue_flags: io_uring's
 * @ret: what to end the command with
 *
 * Return: true when the driver keeps @cmd, or has ended it.
 */
bool ublk_zc_command(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd,
		     unsigned int issue_flags, int *ret)
{
	const struct ubd_io_cmd *sqe = ublk_cmd_payload(cmd);
	u32 generation_nr = READ_ONCE(sqe->generation_nr);
	struct zc_args a = {
		.nr = _IOC_NR(cmd->cmd_op),
		.generation = generation_nr >> 8,
		.count = (u8)generation_nr,
		.addr = READ_ONCE(sqe->addr),
	};
	u64 needs;

	if (cmd->cmd_op == UBD_U_IO_MEMBERS) {
		needs = UBD_F_MEMBERS;
	} else if (cmd->cmd_op == UBD_U_IO_FUSED) {
		needs = UBD_F_FUSED;
	} else {
		*ret = -EOPNOTSUPP;
		return false;
	}
	*ret = -EOPNOTSUPP;
	if (!(q->features & needs))
		return false;
	*ret = -EINVAL;
	if (names_buffers(cmd))
		return false;
	*ret = check_command(q, tag, &a);
	if (*ret)
		return false;
	return run_members(q, tag, &a, cmd, issue_flags, ret);
}
