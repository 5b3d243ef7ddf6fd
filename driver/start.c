// SPDX-License-Identifier: GPL-2.0-only
/*
 * The disk comes and goes: START_DEV, STOP_DEV, TRY_STOP_DEV, UPDATE_SIZE.
 */
#include <linux/module.h>
#include <linux/sched/signal.h>
#include "driver.h"

/* How often a command that waits for a device's end looks whether it has been cancelled. */
#define CANCEL_POLL_MS 100

/* ---- the disk ---------------------------------------------------------------------------- */

/**
 * ublk_disk_get() - the device's disk, for those who do not hold the mutex
 * @ub: the device
 *
 * Return: the disk, referenced, or NULL.
 */
struct gendisk *ublk_disk_get(struct ublk_device *ub)
{
	struct gendisk *disk;

	spin_lock(&ub->disk_lock);
	disk = ub->disk;
	if (disk)
		get_device(disk_to_dev(disk));
	spin_unlock(&ub->disk_lock);
	return disk;
}

/**
 * ublk_disk_put() - done with ublk_disk_get()'s disk
 * @disk: the disk or NULL
 */
void ublk_disk_put(struct gendisk *disk)
{
	if (disk)
		put_device(disk_to_dev(disk));
}

static void disk_set(struct ublk_device *ub, struct gendisk *disk)
{
	spin_lock(&ub->disk_lock);
	ub->disk = disk;
	spin_unlock(&ub->disk_lock);
}

UBLK_DISK_OPEN(disk_open)
{
	struct ublk_device *ub = disk->private_data;

	if (!ublk_may_open(ub))
		return -EPERM;
	return test_bit(UBLK_DEV_REFUSE_OPENS, &ub->flags) ? -ENXIO : 0;
}

static void disk_free(struct gendisk *disk)
{
	ublk_put(disk->private_data);
}

static const struct block_device_operations disk_ops = {
	.owner = THIS_MODULE,
	.open = disk_open,
	.free_disk = disk_free,
#ifdef CONFIG_BLK_DEV_ZONED
	.report_zones = ublk_report_zones,
#endif
};

/**
 * ublk_scan_work() - read the partition table
 * @work: ublk_device.scan_work
 *
 * Not in START_DEV: the reads need a server, and it may die over them with the mutex held.
 */
void ublk_scan_work(struct work_struct *work)
{
	struct ublk_device *ub = container_of(work, struct ublk_device, scan_work);
	struct gendisk *disk = ublk_disk_get(ub);

	if (!disk)
		return;
	clear_bit(GD_SUPPRESS_PART_SCAN, &disk->state);
	mutex_lock(&disk->open_mutex);
	bdev_disk_changed(disk, false);
	mutex_unlock(&disk->open_mutex);
	ublk_disk_put(disk);
}

static struct gendisk *disk_make(struct ublk_device *ub)
{
	const struct ublk_param_basic *basic = &ub->params.basic;
	struct ublk_limits lim;
	struct gendisk *disk;

	/* TRY_STOP_DEV may have met a START_DEV that failed. */
	clear_bit(UBLK_DEV_REFUSE_OPENS, &ub->flags);
	ublk_params_limits(ub, &lim);
	disk = ublk_compat_alloc_disk(&ub->tag_set, &lim);
	if (IS_ERR(disk))
		return disk;
	snprintf(disk->disk_name, sizeof(disk->disk_name), "ublkb%u", ub->info.dev_id);
	disk->fops = &disk_ops;
	disk->private_data = ub;
	set_capacity(disk, basic->dev_sectors);
	if (basic->attrs & UBLK_ATTR_READ_ONLY)
		set_disk_ro(disk, true);
	/* Never for a server that is not trusted: a table is a way into the kernel's parsers. */
	set_bit(GD_SUPPRESS_PART_SCAN, &disk->state);
	return disk;
}

/* Opens the gate and shows the disk; on failure nothing of it remains. */
static int disk_show(struct ublk_device *ub, struct gendisk *disk)
{
	int ret = ublk_gate_open(ub);

	if (ret)
		return ret;
	ublk_get(ub); /* disk_free() gives it back */
	disk_set(ub, disk);
	ublk_state_set(ub, UBLK_DEV_LIVE);
	if (ublk_has(ub, UBLK_F_ZONED))
		ret = ublk_revalidate_zones(disk);
	if (!ret)
		ret = add_disk(disk);
	if (!ret)
		return 0;
	ublk_state_set(ub, UBLK_DEV_NEW);
	disk_set(ub, NULL);
	mutex_lock(&ub->gate_mutex);
	ublk_gate_set(ub, UBLK_GATE_FAIL);
	mutex_unlock(&ub->gate_mutex);
	ublk_put(ub);
	return ret;
}

/* ---- waiting for the server -------------------------------------------------------------- */

static bool ready_or_lost(struct ublk_device *ub, u32 closes)
{
	return ublk_is_ready(ub) || test_bit(UBLK_DEV_DELETED, &ub->flags) ||
	       READ_ONCE(ub->closes) != closes;
}

/**
 * ublk_wait_ready_lock() - wait until the server has fetched every tag
 * @ub: the device
 * @pid: the server's process, as the caller sees it
 *
 * A server that comes and dies meanwhile ends the wait, and so does DEL_DEV.
 *
 * Return: 0 with the device's mutex held; -EINTR, -ENODEV, or -EINVAL when another process
 * opened the char device.
 */
int ublk_wait_ready_lock(struct ublk_device *ub, pid_t pid)
{
	u32 closes = READ_ONCE(ub->closes);
	int ret;

	for (;;) {
		if (wait_event_interruptible(ub->wait, ready_or_lost(ub, closes)))
			return -EINTR;
		if (mutex_lock_killable(&ub->mutex))
			return -EINTR;
		if (ublk_is_ready(ub)) {
			if (ublk_server_vnr(ub) == pid)
				return 0;
			ret = -EINVAL;
			break;
		}
		if (ready_or_lost(ub, closes)) {
			ret = -ENODEV;
			break;
		}
		mutex_unlock(&ub->mutex);
	}
	mutex_unlock(&ub->mutex);
	return ret;
}

/* ---- commands ---------------------------------------------------------------------------- */

static void start_scan(struct ublk_device *ub, struct gendisk *disk)
{
	if (test_bit(UBLK_DEV_UNTRUSTED, &ub->flags))
		return;
	if (ublk_has(ub, UBLK_F_NO_AUTO_PART_SCAN))
		clear_bit(GD_SUPPRESS_PART_SCAN, &disk->state);
	else
		/* Not on our own queue: the release that a scan may wait for is there. */
		queue_work(system_long_wq, &ub->scan_work);
}

/**
 * ublk_start() - START_DEV
 * @ub: the device
 * @pid: the server's process
 *
 * Return: 0 or -errno; -EEXIST when the device has been started before.
 */
int ublk_start(struct ublk_device *ub, pid_t pid)
{
	struct gendisk *disk;
	int ret;

	if (pid <= 0 || !(READ_ONCE(ub->params.types) & UBLK_PARAM_TYPE_BASIC))
		return -EINVAL;
	ret = ublk_wait_ready_lock(ub, pid);
	if (ret)
		return ret;
	if (ub->state != UBLK_DEV_NEW) {
		ret = -EEXIST;
		goto unlock;
	}
	/* Others may have been refused since, which leaves none. */
	if (!(ub->params.types & UBLK_PARAM_TYPE_BASIC)) {
		ret = -EINVAL;
		goto unlock;
	}
	disk = disk_make(ub);
	if (IS_ERR(disk)) {
		ret = PTR_ERR(disk);
		goto unlock;
	}
	WRITE_ONCE(ub->info.ublksrv_pid, pid);
	ret = disk_show(ub, disk);
	if (ret) {
		WRITE_ONCE(ub->info.ublksrv_pid, -1);
		put_disk(disk);
		goto unlock;
	}
	start_scan(ub, disk);
unlock:
	mutex_unlock(&ub->mutex);
	return ret;
}

/**
 * ublk_stop_locked() - take the disk away
 * @ub: the device, its mutex held
 *
 * With a server all I/O is served before; without one it fails. A server that dies meanwhile
 * is the release work's to notice, which needs no mutex for letting I/O fail.
 */
void ublk_stop_locked(struct ublk_device *ub)
{
	struct gendisk *disk = ub->disk;

	lockdep_assert_held(&ub->mutex);
	if (!disk)
		return;
	WRITE_ONCE(ub->stopping, true);
	mutex_lock(&ub->gate_mutex);
	if (ub->gate != UBLK_GATE_PASS)
		ublk_gate_set(ub, UBLK_GATE_FAIL);
	mutex_unlock(&ub->gate_mutex);
	/* Whoever put a request back for the next server has done so now. */
	synchronize_rcu();
	blk_mq_kick_requeue_list(disk->queue);
	del_gendisk(disk);
	/* Its reads have ended or fail at once. */
	cancel_work_sync(&ub->scan_work);
	disk_set(ub, NULL);
	WRITE_ONCE(ub->info.ublksrv_pid, -1);
	ublk_state_set(ub, UBLK_DEV_STOPPED);
	put_disk(disk);
}

/**
 * ublk_end_work() - take the disk away and tell the server; the device, too, when it is deleted
 * @work: ublk_device.end_work
 */
void ublk_end_work(struct work_struct *work)
{
	struct ublk_device *ub = container_of(work, struct ublk_device, end_work);
	int nr = atomic_inc_return(&ub->ends_begun);

	mutex_lock(&ub->mutex);
	ublk_stop_locked(ub);
	ublk_send_away(ub);
	mutex_unlock(&ub->mutex);
	if (test_bit(UBLK_DEV_DELETED, &ub->flags) &&
	    !test_and_set_bit(UBLK_DEV_REMOVED, &ub->flags))
		ublk_device_remove(ub);
	WRITE_ONCE(ub->ends_done, nr);
	wake_up_all(&ub->wait);
	ublk_put(ub);
}

/**
 * ublk_end() - have ublk_end_work() run, and wait for it
 * @ub: the device
 *
 * It waits for I/O, which may be the very server's that waits here. To io_uring a task has ended
 * only when its own commands to devices have, so that those are not what does the waiting: they
 * end when their task does. A killed one has a signal, one whose ring has cancelled it, because
 * the task goes away alone, a notification.
 *
 * Return: 0, or -EINTR: it will be done all the same.
 */
int ublk_end(struct ublk_device *ub)
{
	int before = atomic_read(&ub->ends_begun);
	long left;

	ublk_get(ub);
	if (!queue_work(ublk_end_wq, &ub->end_work))
		ublk_put(ub);
	do {
		/* One that was under way when we came may have looked too early. */
		left = wait_event_killable_timeout(ub->wait, READ_ONCE(ub->ends_done) - before > 0,
						   msecs_to_jiffies(CANCEL_POLL_MS));
	} while (!left && !test_thread_flag(TIF_NOTIFY_SIGNAL));
	return left > 0 ? 0 : -EINTR;
}

/**
 * ublk_try_stop() - TRY_STOP_DEV: stop unless somebody has the disk open
 * @ub: the device
 *
 * Return: 0; -EINTR as ublk_end(), or before anything was done; -EBUSY; -ENODEV when there is no
 * disk.
 */
int ublk_try_stop(struct ublk_device *ub)
{
	struct gendisk *disk = ublk_disk_get(ub);
	int ret = -EBUSY;

	if (!disk)
		return -ENODEV;
	/* Without the device's mutex: who opens the disk may wait for the next server. */
	if (mutex_lock_killable(&disk->open_mutex)) {
		ret = -EINTR;
		goto put;
	}
	if (!disk_openers(disk)) {
		set_bit(UBLK_DEV_REFUSE_OPENS, &ub->flags);
		ret = 0;
	}
	mutex_unlock(&disk->open_mutex);
	if (!ret)
		ret = ublk_end(ub);
put:
	ublk_disk_put(disk);
	return ret;
}

/**
 * ublk_update_size() - UPDATE_SIZE
 * @ub: the device
 * @sectors: the new size
 *
 * Return: 0, -EINVAL for a size that no device can have, -EOPNOTSUPP for a zoned device, -ENODEV
 * when there is no disk.
 */
int ublk_update_size(struct ublk_device *ub, u64 sectors)
{
	int ret = 0;

	if (sectors > UBLK_MAX_SECTORS)
		return -EINVAL;
	/* The block layer's maps have as many zones as there were at START_DEV. */
	if (ublk_has(ub, UBLK_F_ZONED))
		return -EOPNOTSUPP;
	if (mutex_lock_killable(&ub->mutex))
		return -EINTR;
	if (ub->disk) {
		ub->params.basic.dev_sectors = sectors;
		set_capacity_and_notify(ub->disk, sectors);
	} else {
		ret = -ENODEV;
	}
	mutex_unlock(&ub->mutex);
	return ret;
}
