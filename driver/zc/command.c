// SPDX-License-Identifier: GPL-2.0-only
/*
 * Commands with members: looked at, begun, ended.
 */
#include <linux/file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "../driver.h"

/* An armed command is the base's. */
static_assert(offsetof(struct ublk_zc_pdu, q) == offsetof(struct ublk_cmd_pdu, q));
static_assert(offsetof(struct ublk_zc_pdu, tag) == offsetof(struct ublk_cmd_pdu, tag));

/* Of one command, read from the SQE once. */
struct zc_args {
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
	return UBD_F_ALL;
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
		.version = UBLK_DRIVER_VERSION,
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

		q->zc = kvzalloc(struct_size(q->zc, tags, q->depth), GFP_KERNEL);
		if (!q->zc)
			return -ENOMEM;
		spin_lock_init(&q->zc->lock);
		INIT_LIST_HEAD(&q->zc->waiting);
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

/**
 * ublk_zc_is_dying() - is there nothing to wait for, neither of the server nor of a peer?
 * @q: the queue
 *
 * To be asked by whoever has just joined what ublk_zc_kick() goes through, too.
 *
 * Return: true when so.
 */
bool ublk_zc_is_dying(const struct ublk_queue *q)
{
	return test_bit(UBLK_DEV_DYING, &q->ub->flags);
}

/**
 * ublk_zc_kick() - let nothing wait that only the server or a peer could end
 * @ub: the device, its server dying
 */
void ublk_zc_kick(struct ublk_device *ub)
{
	u16 i;

	if (!ublk_has(ub, UBD_F_ALL))
		return;
	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		ublk_socket_kick(ub->queues[i]);
		ublk_lease_kick(ub->queues[i]);
	}
}

/* A group of one is the tag's own, unless that is in use. */
static struct ublk_group *group_alloc(struct ublk_queue *q, u16 tag, u8 nr)
{
	struct ublk_zc_tag *own = &q->zc->tags[tag];
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

static void drop_members(struct ublk_group *g, u8 nr)
{
	while (nr--)
		ublk_member_drop(&g->members[nr]);
}

static void group_free(struct ublk_group *g)
{
	struct ublk_zc_tag *own = &g->q->zc->tags[g->tag];

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
	const struct ublk_zc_pdu *pdu = ublk_cmd_pdu(cmd, struct ublk_zc_pdu);
	struct ublk_queue *q = pdu->q;

	if (cmd->cmd_op == UBD_U_IO_FUSED && res != UBLK_IO_RES_ABORT)
		give_back(q, &q->slots[pdu->tag]);
	ublk_cmd_done(cmd, res, issue_flags);
}

UBLK_TASK_WORK(command_end_in_task)
{
	command_end(cmd, ublk_cmd_pdu(cmd, struct ublk_zc_pdu)->res, issue_flags);
}

/**
 * ublk_zc_command_end() - end a command
 * @cmd: the command
 * @res: its result
 *
 * In any context: it is done in the server's task.
 */
void ublk_zc_command_end(struct io_uring_cmd *cmd, int res)
{
	ublk_cmd_pdu(cmd, struct ublk_zc_pdu)->res = res;
	io_uring_cmd_complete_in_task(cmd, command_end_in_task_tw);
}

/*
 * Commits the request with the sum of the members and arms its command for the next one. The
 * tag may be used again at once: the group is gone before. A server that does not wait for the
 * next request sees the end in the descriptor.
 */
static bool fused_end(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd, s32 bytes)
{
	struct ublk_slot *slot = &q->slots[tag];
	bool armed;

	smp_store_release(&q->desc[tag].addr, 0);
	slot->res = bytes;
	armed = ublk_slot_arm(q, slot, cmd);
	ublk_slot_release(q, slot);
	return armed;
}

/*
 * The last member has ended, and with it the group. Returns true when its command, which is
 * stored, is to end with the result stored; else the driver keeps it.
 */
static bool group_end(struct ublk_group *g, struct io_uring_cmd **cmd, int *res)
{
	struct ublk_queue *q = g->q;
	struct ublk_slot *slot = g->slot;
	bool fused = g->fused, leased = g->leased;
	u16 tag = g->tag;

	*cmd = g->cmd;
	*res = g->err ?: g->bytes;
	drop_members(g, g->nr);
	group_free(g);
	if (!fused) {
		ublk_slot_release(q, slot);
		if (leased)
			ublk_lease_leave(q, tag);
		return true;
	}
	if (*res >= 0) {
		if (fused_end(q, tag, *cmd, *res))
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
	ublk_zc_command_end(cmd, res);
}

/* ---- the beginning ----------------------------------------------------------------------- */

/* All of them are looked at before the first is begun. */
static int prepare_members(struct ublk_group *g, u64 addr)
{
	const struct ubd_member __user *from = u64_to_user_ptr(addr);
	u64 bytes = 0;
	u8 i, leased = 0;

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
		leased += !!(m->flags & UBD_MEMBER_F_LEASED);
		g->sockets |= ublk_member_is_socket(m);
	}
	g->leased = leased;
	/* All or none, and no command that lasts longer than the lease. */
	if (leased && (leased != g->nr || g->fused)) {
		drop_members(g, g->nr);
		return -EINVAL;
	}
	g->bytes = min_t(u64, bytes, S32_MAX);
	return 0;
}

/* Returns true when the driver keeps the command. */
static bool run_group(struct ublk_group *g, unsigned int issue_flags, int *ret)
{
	struct ublk_zc_pdu *pdu = ublk_cmd_pdu(g->cmd, struct ublk_zc_pdu);
	struct io_uring_cmd *cmd;
	u8 i, nr = g->nr;

	pdu->q = g->q;
	pdu->tag = g->tag;
	/* Who is told that the server goes away need not wait for a peer. */
	if (g->fused || g->sockets)
		ublk_cmd_mark_cancelable(g->cmd, issue_flags);
	if (g->fused) {
		WRITE_ONCE(g->slot->state, UBLK_SLOT_FUSED);
	} else {
		refcount_inc(&g->slot->ref);
	}
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
	/* Only a commit can tell where the data went. */
	if (cmd->cmd_op == UBD_U_IO_FUSED && req_op(q->slots[tag].req) == REQ_OP_ZONE_APPEND)
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
	g->fused = cmd->cmd_op == UBD_U_IO_FUSED;
	g->sockets = false;
	g->err = 0;
	*ret = prepare_members(g, a->addr);
	if (!*ret && g->leased && !ublk_lease_join(q, tag)) {
		drop_members(g, g->nr);
		*ret = -ECANCELED;
	}
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

static int check_command(const struct ublk_queue *q, u16 tag, u32 op, u32 generation)
{
	const struct ublk_slot *slot = &q->slots[tag];

	/* Its files are looked up in the current task. */
	if (READ_ONCE(slot->task) != current)
		return -EINVAL;
	if (slot->generation != generation)
		return -ESTALE;
	/* A lease is returned after the commit as well. */
	if (op == UBD_U_IO_RETURN || slot->state == UBLK_SLOT_SERVED)
		return 0;
	return slot->state == UBLK_SLOT_FUSED ? -EBUSY : -ESTALE;
}

static u64 feature_of(u32 op)
{
	switch (op) {
	case UBD_U_IO_MEMBERS:
		return UBD_F_MEMBERS;
	case UBD_U_IO_FUSED:
		return UBD_F_FUSED;
	case UBD_U_IO_LEASE:
	case UBD_U_IO_RETURN:
		return UBD_F_LEASE;
	default:
		return 0;
	}
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
		.count = (u8)generation_nr,
		.addr = READ_ONCE(sqe->addr),
	};

	*ret = -EOPNOTSUPP;
	if (!(q->features & feature_of(cmd->cmd_op)))
		return false;
	*ret = -EINVAL;
	if (names_buffers(cmd))
		return false;
	*ret = check_command(q, tag, cmd->cmd_op, generation_nr >> 8);
	if (*ret)
		return false;
	if (cmd->cmd_op == UBD_U_IO_MEMBERS || cmd->cmd_op == UBD_U_IO_FUSED)
		return run_members(q, tag, &a, cmd, issue_flags, ret);
	*ret = -EINVAL;
	if (a.count)
		return false;
	if (cmd->cmd_op == UBD_U_IO_LEASE)
		*ret = ublk_lease_begin(q, tag, a.addr, cmd, issue_flags);
	else
		*ret = a.addr ? -EINVAL : ublk_lease_return(q, tag, cmd, issue_flags);
	/* The leader stays until its lease ends. */
	return cmd->cmd_op == UBD_U_IO_LEASE && !*ret;
}
