// SPDX-License-Identifier: GPL-2.0-only
/*
 * Without a server: what becomes of the device, of its requests, and how a new server takes over.
 */
#include <linux/delay.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include "driver.h"

/* How often QUIESCE_DEV looks for an idle tag. */
#define QUIESCE_POLL_MS 3

/* ---- the server has released the char device --------------------------------------------- */

/**
 * ublk_reissues() - does the next server get what this one has not answered?
 * @ub: the device
 * @rq: the request
 *
 * Return: true when so.
 */
bool ublk_reissues(const struct ublk_device *ub, struct request *rq)
{
	return ublk_recovers(ub) && ublk_has(ub, UBLK_F_USER_RECOVERY_REISSUE) &&
	       !blk_rq_is_passthrough(rq);
}

/**
 * ublk_abandon() - a dead server's request: the next server's, or failed
 * @q: the queue
 * @slot: the slot, which the server had
 *
 * Others that still hold the request keep it until they are done.
 */
void ublk_abandon(struct ublk_queue *q, struct ublk_slot *slot)
{
	struct request *rq = slot->req;

	slot->res = ublk_reissues(q->ub, rq) ? UBLK_RES_REISSUE : -EIO;
	/* Its place in the ring's table has gone with the ring: it is not a command. */
	slot->cmd = NULL;
	WRITE_ONCE(slot->state, UBLK_SLOT_EMPTY);
	if (!(q->features & UBLK_F_HELD) || refcount_dec_and_test(&slot->ref))
		ublk_complete(q, slot, rq, 0, NULL);
}

/* Once, whoever else comes by: close_work may run beside the release. */
static void abandon_served(struct ublk_queue *q, struct ublk_slot *slot)
{
	u8 state = READ_ONCE(slot->state);

	if ((state == UBLK_SLOT_SERVED || state == UBLK_SLOT_NEED_DATA) &&
	    try_cmpxchg(&slot->state, &state, UBLK_SLOT_CLAIMED))
		ublk_abandon(q, slot);
}

/*
 * Every command held a reference on the char device's file: there are none left, and no task
 * work. What the slots still have is requests.
 */
static void abandon_all(struct ublk_device *ub)
{
	u16 i, tag;

	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		struct ublk_queue *q = ub->queues[i];

		for (tag = 0; tag < q->depth; tag++)
			abandon_served(q, &q->slots[tag]);
		if (q->batch)
			ublk_batch_abandon(q);
	}
}

/**
 * ublk_abandon_dead() - let go of requests whose task is dead, while the char device stays open
 * @ub: the device, closing
 *
 * Somebody else may have the file: a child, another thread. A dead task's requests nobody can
 * commit, they need not wait for the release.
 *
 * Return: true when a task is still dying: come again.
 */
bool ublk_abandon_dead(struct ublk_device *ub)
{
	bool more = false;
	u16 i, tag;

	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		struct ublk_queue *q = ub->queues[i];

		for (tag = 0; tag < q->depth; tag++) {
			struct ublk_slot *slot = &q->slots[tag];
			u8 state = READ_ONCE(slot->state);

			if (state != UBLK_SLOT_SERVED && state != UBLK_SLOT_NEED_DATA)
				continue;
			/* With batches any task may commit. */
			if (!slot->task)
				continue;
			/* Past its last task work. */
			if (smp_load_acquire(&slot->task->exit_state))
				abandon_served(q, slot);
			else if (ublk_task_is_leaving(slot->task))
				more = true;
		}
	}
	return more;
}

static void settle(struct ublk_device *ub)
{
	if (!ublk_has(ub, UBLK_F_USER_RECOVERY))
		ublk_stop_locked(ub);
	if (ub->state != UBLK_DEV_LIVE)
		return;
	ublk_state_set(ub, ublk_gate_closed(ub) == UBLK_GATE_HOLD ? UBLK_DEV_QUIESCED
								  : UBLK_DEV_FAILING);
	WRITE_ONCE(ub->info.ublksrv_pid, -1);
}

/**
 * ublk_release_work() - the last reference to the char device's file is gone
 * @work: ublk_device.release_work
 *
 * Lets the requests go before it takes the mutex: its holder may wait for them.
 */
void ublk_release_work(struct work_struct *work)
{
	struct ublk_device *ub = container_of(work, struct ublk_device, release_work);

	cancel_delayed_work_sync(&ub->watch_work);
	ublk_close(ub);
	/* What was put back is kicked by who brings the next server or stops the device. */
	abandon_all(ub);

	mutex_lock(&ub->mutex);
	settle(ub);
	/* Who holds the mutex has it run; from here on it would meet the next server. */
	if (cancel_delayed_work_sync(&ub->close_work))
		ublk_put(ub);
	ublk_server_reset(ub);
	clear_bit_unlock(UBLK_DEV_OPEN, &ub->flags);
	mutex_unlock(&ub->mutex);
	wake_up_all(&ub->wait);
	ublk_put(ub);
}

/* ---- commands ---------------------------------------------------------------------------- */

static bool is_serverless(const struct ublk_device *ub)
{
	return ub->state == UBLK_DEV_QUIESCED || ub->state == UBLK_DEV_FAILING;
}

/**
 * ublk_recovery_start() - START_USER_RECOVERY: may a new server come?
 * @ub: the device
 *
 * Return: 0; -EINVAL for a device that does not recover; -EBUSY while the old server is there.
 */
int ublk_recovery_start(struct ublk_device *ub)
{
	int ret = 0;

	if (!ublk_has(ub, UBLK_F_USER_RECOVERY))
		return -EINVAL;
	if (mutex_lock_killable(&ub->mutex))
		return -EINTR;
	if (test_bit(UBLK_DEV_OPEN, &ub->flags) || !is_serverless(ub))
		ret = -EBUSY;
	mutex_unlock(&ub->mutex);
	return ret;
}

/**
 * ublk_recovery_end() - END_USER_RECOVERY: wait for the new server and let requests through
 * @ub: the device
 * @pid: the server's process
 *
 * Return: 0 or -errno; -EBUSY when the device has a server already.
 */
int ublk_recovery_end(struct ublk_device *ub, pid_t pid)
{
	int ret;

	if (!ublk_has(ub, UBLK_F_USER_RECOVERY))
		return -EINVAL;
	ret = ublk_wait_ready_lock(ub, pid);
	if (ret)
		return ret;
	if (!is_serverless(ub))
		ret = -EBUSY;
	else
		ret = ublk_gate_open(ub);
	if (!ret) {
		WRITE_ONCE(ub->info.ublksrv_pid, pid);
		ublk_state_set(ub, UBLK_DEV_LIVE);
		blk_mq_kick_requeue_list(ub->disk->queue);
	}
	mutex_unlock(&ub->mutex);
	return ret;
}

/*
 * Can this queue's server be told? By the end of an armed command, or when it commits; not while
 * all its tags are on their way to a task that takes none of them.
 */
static bool can_be_told(const struct ublk_queue *q)
{
	u16 tag;

	if (q->batch)
		return true;
	for (tag = 0; tag < q->depth; tag++)
		if (READ_ONCE(q->slots[tag].state) != UBLK_SLOT_CLAIMED)
			return true;
	return false;
}

static bool all_can_be_told(const struct ublk_device *ub)
{
	u16 i;

	for (i = 0; i < ub->info.nr_hw_queues; i++)
		if (!can_be_told(ub->queues[i]))
			return false;
	return true;
}

/* Waits until every queue's server thread will hear of it. */
static int wait_for_ears(struct ublk_device *ub, u64 timeout_ms)
{
	u64 waited = 0;

	while (!READ_ONCE(ub->closing) && !all_can_be_told(ub)) {
		if (signal_pending(current))
			return -EINTR;
		if (timeout_ms && waited >= timeout_ms)
			return -EBUSY;
		msleep(QUIESCE_POLL_MS);
		waited += QUIESCE_POLL_MS;
	}
	return 0;
}

static int quiesce_locked(struct ublk_device *ub, u64 timeout_ms)
{
	int ret;

	mutex_lock(&ub->gate_mutex);
	ublk_gate_set(ub, ublk_gate_closed(ub));
	mutex_unlock(&ub->gate_mutex);
	synchronize_rcu();
	ret = wait_for_ears(ub, timeout_ms);
	/* Not done: as it was, unless the server died meanwhile. */
	if (!ret)
		ublk_send_away(ub);
	else if (!ublk_gate_open(ub))
		blk_mq_kick_requeue_list(ub->disk->queue);
	return ret;
}

/**
 * ublk_quiesce() - QUIESCE_DEV: send the server away, keep its device
 * @ub: the device
 * @timeout_ms: how long to wait for each queue to have an idle tag, 0 for ever
 *
 * Return: 0; -EBUSY when time is up and nothing has changed; -ENODEV without a disk.
 */
int ublk_quiesce(struct ublk_device *ub, u64 timeout_ms)
{
	int ret = 0;

	if (!ublk_has(ub, UBLK_F_QUIESCE))
		return -EOPNOTSUPP;
	if (mutex_lock_killable(&ub->mutex))
		return -EINTR;
	if (!ub->disk)
		ret = -ENODEV;
	else if (ub->state == UBLK_DEV_LIVE)
		ret = quiesce_locked(ub, timeout_ms);
	mutex_unlock(&ub->mutex);
	return ret;
}
