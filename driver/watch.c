// SPDX-License-Identifier: GPL-2.0-only
/*
 * Noticing that a server goes away, on kernels where io_uring does not tell.
 *
 * There a dying task waits in its exit for its commands to end, and a closed ring lives on for
 * them. Nobody calls: every WATCH_MS a look is taken at the tasks, and at the rings of queues
 * that had nothing to do since the last look. Busy queues look at their ring at each delivery.
 */
#include <linux/percpu-refcount.h>
#include <linux/sched.h>
#include "driver.h"

#ifndef UBLK_HAVE_CMD_CANCEL

#define WATCH_MS 400

/**
 * ublk_ring_is_dying() - has the command's ring been closed?
 * @cmd: a command that cannot end meanwhile
 *
 * Return: true when so.
 */
bool ublk_ring_is_dying(struct io_uring_cmd *cmd)
{
	return percpu_ref_is_dying(&cmd_to_io_kiocb(cmd)->ctx->refs);
}

/* An exec ends the task's commands as well, but one that fails at once does not: look twice. */
static bool task_is_leaving(struct task_struct *task, bool *in_exec)
{
	if (READ_ONCE(task->flags) & PF_EXITING)
		return true;
	if (task->in_execve)
		*in_exec = true;
	return false;
}

static bool a_task_is_leaving(struct ublk_queue *q, bool *in_exec)
{
	const struct task_struct *last = NULL;
	u16 tag;

	for (tag = 0; tag < q->depth; tag++) {
		struct task_struct *task = q->slots[tag].task;

		if (task && task != last && task_is_leaving(task, in_exec))
			return true;
		last = task;
	}
	return false;
}

/*
 * Adds up the commands that wait for requests. The same twice: none of them has seen work since.
 * Adding up something else by chance costs one look at the rings too many.
 */
static unsigned long waiting_sum(const struct ublk_queue *q)
{
	unsigned long sum = 0;
	u16 tag;

	for (tag = 0; tag < q->depth; tag++)
		if (READ_ONCE(q->slots[tag].state) == UBLK_SLOT_ARMED)
			sum += (unsigned long)READ_ONCE(q->slots[tag].cmd) ^ (tag + 1);
	return sum;
}

/* No request can claim a slot, the lock keeps others from ending the commands. */
static bool a_ring_is_dying(struct ublk_queue *q)
{
	bool dying = false;
	void *last = NULL;
	u16 tag;

	spin_lock(&q->lock);
	for (tag = 0; tag < q->depth && !dying; tag++) {
		struct ublk_slot *slot = &q->slots[tag];

		if (slot->state != UBLK_SLOT_ARMED || ublk_cmd_ring(slot->cmd) == last)
			continue;
		last = ublk_cmd_ring(slot->cmd);
		dying = ublk_ring_is_dying(slot->cmd);
	}
	spin_unlock(&q->lock);
	return dying;
}

static bool rings_are_dying(struct ublk_device *ub)
{
	struct gendisk *disk = ublk_disk_get(ub);
	bool dying = false;
	u16 i;

	if (disk)
		blk_mq_quiesce_queue(disk->queue);
	for (i = 0; i < ub->info.nr_hw_queues && !dying; i++)
		if (ub->queues[i]->idle)
			dying = a_ring_is_dying(ub->queues[i]);
	if (disk)
		blk_mq_unquiesce_queue(disk->queue);
	ublk_disk_put(disk);
	return dying;
}

/* The fetches hold the mutex as well: a task that is seen stays. */
static bool is_leaving_locked(struct ublk_device *ub, bool *any_idle)
{
	bool in_exec = false, leaving = false;
	u16 i;

	mutex_lock(&ub->gate_mutex);
	for (i = 0; i < ub->info.nr_hw_queues && !leaving; i++) {
		struct ublk_queue *q = ub->queues[i];
		unsigned long sum = waiting_sum(q);

		leaving = a_task_is_leaving(q, &in_exec);
		q->idle = sum && sum == q->sum_before;
		q->sum_before = sum;
		*any_idle |= q->idle;
	}
	leaving |= in_exec && ub->exec_before;
	ub->exec_before = in_exec;
	mutex_unlock(&ub->gate_mutex);
	return leaving;
}

/**
 * ublk_watch_work() - take a look
 * @work: ublk_device.watch_work; runs from the first fetch to the release
 */
void ublk_watch_work(struct work_struct *work)
{
	struct ublk_device *ub = container_of(work, struct ublk_device, watch_work.work);
	bool any_idle = false;

	if (READ_ONCE(ub->closing))
		return;
	if (is_leaving_locked(ub, &any_idle) || (any_idle && rings_are_dying(ub)))
		ublk_close_later(ub);
	else
		queue_delayed_work(ublk_wq, &ub->watch_work, msecs_to_jiffies(WATCH_MS));
}

/**
 * ublk_watch_start() - begin to look after the server
 * @ub: the device, its char device open
 */
void ublk_watch_start(struct ublk_device *ub)
{
	queue_delayed_work(ublk_wq, &ub->watch_work, msecs_to_jiffies(WATCH_MS));
}

#endif
