// SPDX-License-Identifier: GPL-2.0-only
/*
 * Noticing that a server goes away when io_uring does not tell.
 *
 * It tells at the end of a ring, which comes when all threads of the process have let go of their
 * files. One that reads this very disk never does. So a look is taken at the tasks every now and
 * then.
 *
 * Some kernels never tell. There a dying task waits in its exit for its commands to end, and a
 * closed ring lives on for them: the rings of queues that had nothing to do since the last look
 * are looked at as well. Busy queues look at their ring at each delivery.
 */
#include <linux/percpu-refcount.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/timer.h>
#include "driver.h"

/**
 * ublk_task_is_leaving() - will a task never see userspace again?
 * @task: the task, referenced
 *
 * A killed process is leaving before its threads are in their exit: they may wait on the way.
 *
 * Return: true when so.
 */
bool ublk_task_is_leaving(const struct task_struct *task)
{
	return (READ_ONCE(task->flags) & PF_EXITING) ||
	       (READ_ONCE(task->signal->flags) & SIGNAL_GROUP_EXIT);
}

#ifdef UBLK_HAVE_CMD_CANCEL

/* When the processor wakes up for others, too. */
static unsigned long next_look(void)
{
	return round_jiffies_relative(HZ);
}

bool ublk_task_is_in_exec(const struct task_struct *task)
{
	return false;
}

static bool rings_are_dying(struct ublk_device *ub)
{
	return false;
}

#else

#define WATCH_MS 400

static unsigned long next_look(void)
{
	return msecs_to_jiffies(WATCH_MS);
}

/**
 * ublk_task_is_in_exec() - does a task begin another program, which ends its commands here?
 * @task: the task, referenced
 *
 * It may fail yet. Kernels that cancel commands tell of it themselves.
 *
 * Return: true when so.
 */
bool ublk_task_is_in_exec(const struct task_struct *task)
{
	return task->in_execve;
}

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

/* Which queues have had nothing to do? Returns whether there are any. */
static bool note_idle(struct ublk_device *ub)
{
	bool any = false;
	u16 i;

	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		struct ublk_queue *q = ub->queues[i];
		unsigned long sum = waiting_sum(q);

		q->idle = sum && sum == q->sum_before;
		q->sum_before = sum;
		any |= q->idle;
	}
	return any;
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

		/* Commits arm without the lock. */
		if (smp_load_acquire(&slot->state) != UBLK_SLOT_ARMED ||
		    ublk_cmd_ring(slot->cmd) == last)
			continue;
		last = ublk_cmd_ring(slot->cmd);
		dying = ublk_ring_is_dying(slot->cmd);
	}
	spin_unlock(&q->lock);
	return dying;
}

static bool rings_are_dying(struct ublk_device *ub)
{
	struct gendisk *disk;
	bool dying = false;
	u16 i;

	if (!note_idle(ub))
		return false;
	disk = ublk_disk_get(ub);
	if (disk)
		blk_mq_quiesce_queue(disk->queue);
	/* START_DEV, and with it requests, may come at any time; not while the gate stays shut. */
	mutex_lock(&ub->gate_mutex);
	for (i = 0; i < ub->info.nr_hw_queues && !dying; i++)
		if (ub->queues[i]->idle && (disk || ub->gate != UBLK_GATE_PASS))
			dying = a_ring_is_dying(ub->queues[i]);
	mutex_unlock(&ub->gate_mutex);
	if (disk)
		blk_mq_unquiesce_queue(disk->queue);
	ublk_disk_put(disk);
	return dying;
}

#endif

static bool a_task_is_leaving(const struct ublk_queue *q, bool *in_exec)
{
	const struct task_struct *last = NULL;
	u16 tag;

	for (tag = 0; tag < q->depth; tag++) {
		const struct task_struct *task = q->slots[tag].task;

		if (task && task != last) {
			if (ublk_task_is_leaving(task))
				return true;
			*in_exec |= ublk_task_is_in_exec(task);
		}
		last = task;
	}
	return false;
}

/*
 * The fetches hold the mutex as well, and so does who forgets the tasks: one that is seen stays.
 * An exec that fails at once ends nothing: look twice.
 */
static bool tasks_are_leaving(struct ublk_device *ub)
{
	bool in_exec = false, leaving = false;
	u16 i;

	mutex_lock(&ub->gate_mutex);
	for (i = 0; i < ub->info.nr_hw_queues && !leaving; i++)
		leaving = a_task_is_leaving(ub->queues[i], &in_exec);
	leaving |= in_exec && ub->exec_before;
	ub->exec_before = in_exec;
	mutex_unlock(&ub->gate_mutex);
	return leaving;
}

/**
 * ublk_watch_work() - take a look
 * @work: ublk_device.watch_work; runs from the open of the char device to its release
 *
 * Who leaves may take others along later: it goes on.
 */
void ublk_watch_work(struct work_struct *work)
{
	struct ublk_device *ub = container_of(work, struct ublk_device, watch_work.work);

	if (tasks_are_leaving(ub) || rings_are_dying(ub))
		ublk_close_later(ub);
	ublk_watch_start(ub);
}

/**
 * ublk_watch_start() - look after the server
 * @ub: the device, its char device open
 */
void ublk_watch_start(struct ublk_device *ub)
{
	queue_delayed_work(ublk_wq, &ub->watch_work, next_look());
}
