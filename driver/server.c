// SPDX-License-Identifier: GPL-2.0-only
/*
 * The server's coming and going: readiness, the gate, cancelling its commands.
 */
#include <linux/cred.h>
#include <linux/pid.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include "driver.h"

/* How often a dying task is looked at. */
#define DYING_POLL_MS 50

/* ---- the gate ---------------------------------------------------------------------------- */

/**
 * ublk_gate_set() - decide what happens to requests from now on
 * @ub: the device, its gate_mutex held
 * @gate: the decision
 *
 * Requests on their way act on the old decision until an RCU grace period has passed.
 */
void ublk_gate_set(struct ublk_device *ub, enum ublk_gate gate)
{
	u16 i;

	lockdep_assert_held(&ub->gate_mutex);
	ub->gate = gate;
	for (i = 0; i < ub->info.nr_hw_queues; i++)
		WRITE_ONCE(ub->queues[i]->gate, gate);
}

/**
 * ublk_gate_closed() - what becomes of requests that find no server
 * @ub: the device
 *
 * Return: UBLK_GATE_HOLD or UBLK_GATE_FAIL.
 */
enum ublk_gate ublk_gate_closed(const struct ublk_device *ub)
{
	if (ublk_recovers(ub) && !ublk_has(ub, UBLK_F_USER_RECOVERY_FAIL_IO))
		return UBLK_GATE_HOLD;
	return UBLK_GATE_FAIL;
}

/**
 * ublk_gate_open() - let requests through to the server
 * @ub: the device, its mutex held
 *
 * Return: 0, or -ENODEV when the server is not complete, or not any more.
 */
int ublk_gate_open(struct ublk_device *ub)
{
	int ret = 0;

	mutex_lock(&ub->gate_mutex);
	if (ublk_is_ready(ub))
		ublk_gate_set(ub, UBLK_GATE_PASS);
	else
		ret = -ENODEV;
	mutex_unlock(&ub->gate_mutex);
	/* Whoever saw the gate closed has put the request back: a kick finds it. */
	synchronize_rcu();
	return ret;
}

/* ---- readiness --------------------------------------------------------------------------- */

/**
 * ublk_is_ready() - has every tag been fetched?
 * @ub: the device
 *
 * Return: true when so; it lasts only as long as gate_mutex is held.
 */
bool ublk_is_ready(const struct ublk_device *ub)
{
	return READ_ONCE(ub->nr_ready) == ub->info.nr_hw_queues && !READ_ONCE(ub->closing);
}

/**
 * ublk_slot_prepare() - may a tag be fetched now?
 * @q: the queue, its device's gate_mutex held
 * @tag: the tag
 * @addr: the server's buffer
 *
 * Return: 0, or what to end the command with.
 */
int ublk_slot_prepare(struct ublk_queue *q, u16 tag, u64 addr)
{
	struct ublk_slot *slot = &q->slots[tag];

	lockdep_assert_held(&q->ub->gate_mutex);
	if (q->ub->closing)
		return UBLK_IO_RES_ABORT;
	if (ublk_is_ready(q->ub))
		return -EBUSY;
	if (slot->state != UBLK_SLOT_EMPTY)
		return -EINVAL;
	slot->addr = addr;
	return 0;
}

/**
 * ublk_slot_ready() - a tag has been fetched
 * @q: the queue, its device's gate_mutex held
 * @tag: the tag
 */
void ublk_slot_ready(struct ublk_queue *q, u16 tag)
{
	struct ublk_device *ub = q->ub;

	/* Whoever sees ARMED sees the command and the address. */
	smp_store_release(&q->slots[tag].state, UBLK_SLOT_ARMED);
	if (!capable(CAP_SYS_ADMIN))
		set_bit(UBLK_DEV_UNTRUSTED, &ub->flags);
	if (++q->nr_ready == q->depth)
		WRITE_ONCE(ub->nr_ready, ub->nr_ready + 1);
}

/**
 * ublk_slot_unready() - take back ublk_slot_ready()
 * @q: the queue, its device's gate_mutex still held
 * @tag: the tag
 */
void ublk_slot_unready(struct ublk_queue *q, u16 tag)
{
	struct ublk_device *ub = q->ub;

	WRITE_ONCE(q->slots[tag].state, UBLK_SLOT_EMPTY);
	if (q->nr_ready-- == q->depth)
		WRITE_ONCE(ub->nr_ready, ub->nr_ready - 1);
}

static int fetch_locked(struct ublk_queue *q, u16 tag, u64 addr, struct io_uring_cmd *cmd,
			unsigned int issue_flags)
{
	struct ublk_cmd_pdu *pdu = ublk_cmd_pdu(cmd, struct ublk_cmd_pdu);
	struct ublk_slot *slot = &q->slots[tag];
	int ret = ublk_slot_prepare(q, tag, addr);

	if (ret)
		return ret;
	pdu->q = q;
	pdu->tag = tag;
	/* Before anybody may end the command. */
	ublk_cmd_mark_cancelable(cmd, issue_flags);
	slot->cmd = cmd;
	WRITE_ONCE(slot->task, get_task_struct(current));
	ublk_slot_ready(q, tag);
	return 0;
}

/**
 * ublk_slot_fetch() - a tag's first command
 * @q: the queue
 * @tag: the tag
 * @addr: the server's buffer
 * @cmd: the command
 * @issue_flags: io_uring's
 *
 * Makes the current task the tag's own.
 *
 * Return: 0 when the driver has taken the command, or what to end it with.
 */
int ublk_slot_fetch(struct ublk_queue *q, u16 tag, u64 addr, struct io_uring_cmd *cmd,
		    unsigned int issue_flags)
{
	struct ublk_device *ub = q->ub;
	bool ready;
	int ret;

	mutex_lock(&ub->gate_mutex);
	ret = fetch_locked(q, tag, addr, cmd, issue_flags);
	ready = ublk_is_ready(ub);
	mutex_unlock(&ub->gate_mutex);
	if (ready)
		wake_up_all(&ub->wait);
	return ret;
}

/* ---- cancelling -------------------------------------------------------------------------- */

/*
 * Nothing new for the server: on return no armed command can be claimed and no command can be
 * armed until the char device has been released.
 */
static void close_locked(struct ublk_device *ub)
{
	u16 i;

	lockdep_assert_held(&ub->gate_mutex);
	if (ub->closing)
		return;
	WRITE_ONCE(ub->closing, true);
	for (i = 0; i < ub->info.nr_hw_queues; i++)
		WRITE_ONCE(ub->queues[i]->closing, true);
	if (ub->gate == UBLK_GATE_PASS)
		ublk_gate_set(ub, ublk_gate_closed(ub));
	synchronize_rcu();
}

/* As ublk_close(), for a server that lives and does what it has begun. */
static void close_to_new(struct ublk_device *ub)
{
	mutex_lock(&ub->gate_mutex);
	close_locked(ub);
	mutex_unlock(&ub->gate_mutex);
}

/**
 * ublk_close() - the server goes away: nothing new for it, and nothing waits for it
 * @ub: the device
 *
 * Also after it was sent away.
 */
void ublk_close(struct ublk_device *ub)
{
	mutex_lock(&ub->gate_mutex);
	close_locked(ub);
	/* Who is not on its lists yet looks at the flag after joining them. */
	if (!test_and_set_bit(UBLK_DEV_DYING, &ub->flags))
		ublk_zc_kick(ub);
	mutex_unlock(&ub->gate_mutex);
}

/**
 * ublk_cancel_slot() - end a slot's armed command
 * @q: the queue, closing
 * @tag: the slot's tag
 * @cmd: only this command, or NULL for whichever there is
 * @issue_flags: io_uring's, or IO_URING_F_UNLOCKED outside of its calls
 *
 * A claimed command is left alone: its task work ends it.
 */
void ublk_cancel_slot(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd,
		      unsigned int issue_flags)
{
	struct ublk_slot *slot = &q->slots[tag];
	struct io_uring_cmd *victim = NULL;

	spin_lock(&q->lock);
	if (slot->state == UBLK_SLOT_ARMED && (!cmd || slot->cmd == cmd)) {
		victim = slot->cmd;
		slot->cmd = NULL;
		WRITE_ONCE(slot->state, UBLK_SLOT_EMPTY);
	}
	spin_unlock(&q->lock);
	if (victim)
		ublk_cmd_done(victim, UBLK_IO_RES_ABORT, issue_flags);
}

/* Ends every armed command. The device is closing. */
static void cancel_all(struct ublk_device *ub)
{
	u16 i, tag;

	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		for (tag = 0; tag < ub->info.queue_depth; tag++)
			ublk_cancel_slot(ub->queues[i], tag, NULL, IO_URING_F_UNLOCKED);
		if (ub->queues[i]->batch)
			ublk_batch_cancel(ub->queues[i], NULL, IO_URING_F_UNLOCKED);
	}
}

/*
 * A server that was sent away may end its tasks one after the other, as they have done what they
 * had. Who leaves with a request in its hands takes all along, as ever.
 */
static bool a_holder_is_leaving(const struct ublk_device *ub)
{
	u16 i, tag;

	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		for (tag = 0; tag < ub->info.queue_depth; tag++) {
			const struct ublk_slot *slot = &ub->queues[i]->slots[tag];
			const struct task_struct *task = READ_ONCE(slot->task);

			/* Committed already, it may still be held by members. */
			if (READ_ONCE(slot->state) == UBLK_SLOT_EMPTY && !refcount_read(&slot->ref))
				continue;
			/* An exec waits for the commands. */
			if (task && (ublk_task_is_leaving(task) || ublk_task_is_in_exec(task)))
				return true;
		}
	}
	return false;
}

/**
 * ublk_close_work() - the server is sent away, or one of its tasks is dying: and so are the others
 * @work: ublk_device.close_work
 *
 * Comes again until the dying are dead and their requests let go.
 */
void ublk_close_work(struct work_struct *work)
{
	struct ublk_device *ub = container_of(work, struct ublk_device, close_work.work);

	if (test_bit(UBLK_DEV_SENT_AWAY, &ub->flags) && !a_holder_is_leaving(ub))
		close_to_new(ub);
	else
		ublk_close(ub);
	cancel_all(ub);
	wake_up_all(&ub->wait);
	if (ublk_abandon_dead(ub) &&
	    queue_delayed_work(ublk_wq, &ub->close_work, msecs_to_jiffies(DYING_POLL_MS)))
		return;
	ublk_put(ub);
}

/**
 * ublk_close_later() - have ublk_close_work() run
 * @ub: the device, its char device open
 */
void ublk_close_later(struct ublk_device *ub)
{
	ublk_get(ub);
	if (!queue_delayed_work(ublk_wq, &ub->close_work, 0))
		ublk_put(ub);
}

/**
 * ublk_send_away() - tell the server, if there is one, to go
 * @ub: the device, its mutex held: the release, which makes room for the next server, waits
 *
 * It goes on with what it has: members that wait for a peer are not cancelled, leases stay open.
 *
 * A command's end may drop the last reference to the char device's file. In the caller's task
 * its release would then wait for the caller to return, and DEL_DEV waits for the release: so
 * it is done in a worker, whose files are released elsewhere.
 */
void ublk_send_away(struct ublk_device *ub)
{
	lockdep_assert_held(&ub->mutex);
	if (!test_bit(UBLK_DEV_OPEN, &ub->flags))
		return;
	set_bit(UBLK_DEV_SENT_AWAY, &ub->flags);
	ublk_close_later(ub);
	flush_delayed_work(&ub->close_work);
}

/**
 * ublk_server_reset() - forget the server that has released the char device
 * @ub: the device, without a command
 */
void ublk_server_reset(struct ublk_device *ub)
{
	u16 i, tag;

	mutex_lock(&ub->gate_mutex);
	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		struct ublk_queue *q = ub->queues[i];

		for (tag = 0; tag < q->depth; tag++) {
			struct ublk_slot *slot = &q->slots[tag];

			WARN_ON_ONCE(slot->state != UBLK_SLOT_EMPTY);
			if (slot->task)
				put_task_struct(slot->task);
			slot->task = NULL;
			slot->addr = 0;
		}
		q->nr_ready = 0;
		WRITE_ONCE(q->closing, false);
	}
	WRITE_ONCE(ub->nr_ready, 0);
	WRITE_ONCE(ub->closing, false);
	WRITE_ONCE(ub->closes, ub->closes + 1);
	clear_bit(UBLK_DEV_SENT_AWAY, &ub->flags);
	clear_bit(UBLK_DEV_DYING, &ub->flags);
	clear_bit(UBLK_DEV_UNTRUSTED, &ub->flags);
	mutex_unlock(&ub->gate_mutex);
	ublk_server_set(ub, NULL);
}

/* ---- the process ------------------------------------------------------------------------- */

/**
 * ublk_server_set() - note who opened the char device
 * @ub: the device
 * @pid: the thread group, whose reference becomes the device's, or NULL
 */
void ublk_server_set(struct ublk_device *ub, struct pid *pid)
{
	struct pid *old;

	spin_lock(&ub->disk_lock);
	old = ub->server;
	ub->server = pid;
	ub->mm = NULL;
	spin_unlock(&ub->disk_lock);
	put_pid(old);
}

/**
 * ublk_server_vnr() - the server's process id, as the caller's namespace has it
 * @ub: the device
 *
 * Return: the id; 0 when there is no server or the caller cannot see it.
 */
pid_t ublk_server_vnr(struct ublk_device *ub)
{
	pid_t nr;

	spin_lock(&ub->disk_lock);
	nr = pid_vnr(ub->server);
	spin_unlock(&ub->disk_lock);
	return nr;
}

/**
 * ublk_server_kill() - end a server that lets requests wait
 * @ub: the device
 */
void ublk_server_kill(struct ublk_device *ub)
{
	struct pid *pid;

	spin_lock(&ub->disk_lock);
	pid = get_pid(ub->server);
	spin_unlock(&ub->disk_lock);
	if (pid)
		kill_pid(pid, SIGKILL, 1);
	put_pid(pid);
}
