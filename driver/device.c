// SPDX-License-Identifier: GPL-2.0-only
/*
 * A device's birth, number and death.
 *
 * A device lives as long as its struct device is referenced: by the class, by an open char
 * device, by the disk, by a control command at work. The number is free when it is gone, which
 * is what DEL_DEV waits for.
 */
#include <linux/cred.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/uidgid.h>
#include "driver.h"

static DEFINE_IDR(numbers);
static DEFINE_SPINLOCK(numbers_lock);
static DECLARE_WAIT_QUEUE_HEAD(numbers_wait);

static dev_t ch_devt;
static struct class ch_class = {
	.name = "ublk-char",
};

/**
 * ublk_features() - what this driver does on this kernel
 *
 * Return: a mask of UBLK_F_*; ADD_DEV clears every other bit.
 */
u64 ublk_features(void)
{
	return UBLK_F_URING_CMD_COMP_IN_TASK | UBLK_F_NEED_GET_DATA | UBLK_F_USER_RECOVERY |
	       UBLK_F_USER_RECOVERY_REISSUE | UBLK_F_UNPRIVILEGED_DEV | UBLK_F_CMD_IOCTL_ENCODE |
	       UBLK_F_USER_COPY | UBLK_F_USER_RECOVERY_FAIL_IO | UBLK_F_UPDATE_SIZE |
	       UBLK_F_QUIESCE | UBLK_F_PER_IO_DAEMON | UBLK_F_SAFE_STOP_DEV |
	       UBLK_F_NO_AUTO_PART_SCAN | UBLK_F_SHMEM_ZC | UBLK_F_ZONED_HERE |
	       UBLK_F_INTEGRITY_HERE | UBLK_F_BATCH_IO_HERE | UBLK_F_REGBUF_HERE;
}

/* ---- numbers ----------------------------------------------------------------------------- */

static int number_take(u32 wanted)
{
	int id;

	idr_preload(GFP_KERNEL);
	spin_lock(&numbers_lock);
	if (wanted == U32_MAX)
		id = idr_alloc(&numbers, NULL, 0, UBLK_MAX_DEVICES, GFP_NOWAIT);
	else
		id = idr_alloc(&numbers, NULL, wanted, wanted + 1, GFP_NOWAIT);
	spin_unlock(&numbers_lock);
	idr_preload_end();
	return id == -ENOSPC && wanted != U32_MAX ? -EEXIST : id;
}

/* From here on control commands find the device. */
static void number_publish(struct ublk_device *ub)
{
	spin_lock(&numbers_lock);
	idr_replace(&numbers, ub, ub->info.dev_id);
	spin_unlock(&numbers_lock);
}

/* Both at once: who finds a device by its number finds all of it. */
static void number_and_device_free(struct ublk_device *ub)
{
	spin_lock(&numbers_lock);
	idr_remove(&numbers, ub->info.dev_id);
	kfree(ub);
	spin_unlock(&numbers_lock);
	wake_up_all(&numbers_wait);
}

/* The next device with that number may be at the same address: its serial number is another. */
static bool number_is(u32 id, u64 serial)
{
	const struct ublk_device *ub;
	bool is;

	spin_lock(&numbers_lock);
	ub = idr_find(&numbers, id);
	is = ub && ub->serial == serial;
	spin_unlock(&numbers_lock);
	return is;
}

/**
 * ublk_device_find() - a device by its number
 * @id: the number
 *
 * Return: the device, referenced, or NULL.
 */
struct ublk_device *ublk_device_find(u32 id)
{
	struct ublk_device *ub;

	if (id >= UBLK_MAX_DEVICES)
		return NULL;
	spin_lock(&numbers_lock);
	ub = idr_find(&numbers, id);
	if (ub && !kobject_get_unless_zero(&ub->dev.kobj))
		ub = NULL;
	spin_unlock(&numbers_lock);
	return ub;
}

/* ---- birth ------------------------------------------------------------------------------- */

static void device_free(struct device *dev)
{
	struct ublk_device *ub = container_of(dev, struct ublk_device, dev);

	WARN_ON_ONCE(ub->disk);
	ublk_zc_exit(ub);
	ublk_queues_exit(ub);
	ublk_shmem_exit(ub);
	if (test_bit(UBLK_DEV_TAG_SET, &ub->flags))
		blk_mq_free_tag_set(&ub->tag_set);
	if (test_bit(UBLK_DEV_CHARGED, &ub->flags))
		ublk_unprivileged_uncharge();
	mutex_destroy(&ub->gate_mutex);
	mutex_destroy(&ub->mutex);
	/* Last, for unloading waits for the numbers. */
	number_and_device_free(ub);
}

static int check_info(const struct ublksrv_ctrl_dev_info *info)
{
	if (!info->queue_depth || info->queue_depth > UBLK_MAX_QUEUE_DEPTH)
		return -EINVAL;
	if (!info->nr_hw_queues || info->nr_hw_queues > UBLK_MAX_NR_QUEUES)
		return -EINVAL;
	if (info->dev_id != U32_MAX && info->dev_id >= UBLK_MAX_DEVICES)
		return -EINVAL;
	return 0;
}

static int check_recovery(u64 flags)
{
	u64 how = flags & (UBLK_F_USER_RECOVERY_REISSUE | UBLK_F_USER_RECOVERY_FAIL_IO);

	if (how && !(flags & UBLK_F_USER_RECOVERY))
		return -EINVAL;
	if (how == (UBLK_F_USER_RECOVERY_REISSUE | UBLK_F_USER_RECOVERY_FAIL_IO))
		return -EINVAL;
	if ((flags & UBLK_F_QUIESCE) && !(flags & UBLK_F_USER_RECOVERY))
		return -EINVAL;
	return 0;
}

/* Settles what of the wanted features the device gets. */
static int negotiate(struct ublksrv_ctrl_dev_info *info)
{
	u64 always = UBLK_F_CMD_IOCTL_ENCODE | UBLK_F_URING_CMD_COMP_IN_TASK |
		     UBLK_F_PER_IO_DAEMON | UBLK_F_SAFE_STOP_DEV;
	int ret = check_recovery(info->flags);

	if (ret)
		return ret;
	ret = ublk_may_add(info);
	if (ret)
		return ret;
	if ((info->flags & UBLK_F_INTEGRITY) && !(info->flags & UBLK_F_USER_COPY))
		return -EINVAL;
	always |= UBLK_F_REGBUF_HERE & UBLK_F_BUF_REG_OFF_DAEMON;
	info->flags = (info->flags & (ublk_features() | ublk_zc_features())) | always;
	/* A fused command has no place for its next request's buffer. */
	if (info->flags & UBD_F_ALL)
		info->flags &= ~UBLK_F_AUTO_BUF_REG;
	if (info->flags & (UBLK_F_NO_PLAIN_COPY | UBLK_F_BATCH_IO))
		info->flags &= ~UBLK_F_NEED_GET_DATA;
	/* With batches no task owns a tag. */
	if (info->flags & UBLK_F_BATCH_IO)
		info->flags &= ~(UBLK_F_PER_IO_DAEMON | UBD_F_ALL);
	/* An append's place comes back where the buffer's address would be. */
	if ((info->flags & UBLK_F_ZONED) &&
	    !(info->flags & (UBLK_F_USER_COPY | UBLK_F_SUPPORT_ZERO_COPY)))
		return -EINVAL;
	return 0;
}

/* Everything but what the server may choose is the driver's to fill in. */
static void own_info(struct ublk_device *ub, const struct ublksrv_ctrl_dev_info *want, u32 id)
{
	ub->info = (struct ublksrv_ctrl_dev_info){
		.nr_hw_queues = min_t(u32, want->nr_hw_queues, nr_cpu_ids),
		.queue_depth = want->queue_depth,
		.state = UBLK_S_DEV_DEAD,
		.max_io_buf_bytes = min_t(u32, round_down(want->max_io_buf_bytes, PAGE_SIZE),
					  1U << UBLK_IO_BUF_BITS),
		.dev_id = id,
		.ublksrv_pid = -1,
		.flags = want->flags,
		.ublksrv_flags = want->ublksrv_flags,
		.owner_uid = from_kuid(&init_user_ns, current_uid()),
		.owner_gid = from_kgid(&init_user_ns, current_gid()),
	};
}

static struct ublk_device *device_alloc(const struct ublksrv_ctrl_dev_info *want)
{
	static atomic64_t serials;
	struct ublk_device *ub;
	int id;

	ub = kzalloc(struct_size(ub, queues, min_t(u32, want->nr_hw_queues, nr_cpu_ids)),
		     GFP_KERNEL);
	if (!ub)
		return ERR_PTR(-ENOMEM);
	id = number_take(want->dev_id);
	if (id < 0) {
		kfree(ub);
		return ERR_PTR(id);
	}
	own_info(ub, want, id);
	ub->serial = atomic64_inc_return(&serials);
	mutex_init(&ub->mutex);
	mutex_init(&ub->gate_mutex);
	spin_lock_init(&ub->disk_lock);
	init_waitqueue_head(&ub->wait);
	INIT_WORK(&ub->release_work, ublk_release_work);
	INIT_DELAYED_WORK(&ub->close_work, ublk_close_work);
	INIT_WORK(&ub->scan_work, ublk_scan_work);
	INIT_WORK(&ub->end_work, ublk_end_work);
	INIT_DELAYED_WORK(&ub->watch_work, ublk_watch_work);
	device_initialize(&ub->dev);
	ub->dev.class = &ch_class;
	ub->dev.devt = MKDEV(MAJOR(ch_devt), id);
	ub->dev.release = device_free;
	return ub;
}

static int device_prepare(struct ublk_device *ub)
{
	int ret;

	if (ublk_has(ub, UBLK_F_UNPRIVILEGED_DEV)) {
		if (!ublk_unprivileged_charge())
			return -EACCES;
		set_bit(UBLK_DEV_CHARGED, &ub->flags);
	}
	ret = dev_set_name(&ub->dev, "ublkc%u", ub->info.dev_id);
	if (ret)
		return ret;
	/* The queues ask the set which CPUs they serve: it comes first. */
	ub->tag_set.ops = &ublk_mq_ops;
	ub->tag_set.nr_hw_queues = ub->info.nr_hw_queues;
	ub->tag_set.queue_depth = ub->info.queue_depth;
	ub->tag_set.numa_node = NUMA_NO_NODE;
	ub->tag_set.flags = UBLK_TAG_SET_FLAGS;
	/* What is below the server sorts its I/O; only zones need their writes in order here. */
	if (!ublk_has(ub, UBLK_F_ZONED))
		ub->tag_set.flags |= BLK_MQ_F_NO_SCHED_BY_DEFAULT;
	ub->tag_set.cmd_size = ublk_has(ub, UBLK_F_ZONED) ? ublk_zoned_cmd_size() : 0;
	ub->tag_set.driver_data = ub;
	ret = blk_mq_alloc_tag_set(&ub->tag_set);
	if (ret)
		return ret;
	set_bit(UBLK_DEV_TAG_SET, &ub->flags);
	ret = ublk_queues_init(ub);
	if (!ret && ublk_has(ub, UBLK_F_SHMEM_ZC))
		ret = ublk_shmem_init(ub);
	return ret ?: ublk_zc_init(ub);
}

/**
 * ublk_device_add() - ADD_DEV
 * @h: the command; its buffer holds struct ublksrv_ctrl_dev_info, in and out
 *
 * Return: 0 or -errno.
 */
int ublk_device_add(const struct ublksrv_ctrl_cmd *h)
{
	void __user *argp = u64_to_user_ptr(h->addr);
	struct ublksrv_ctrl_dev_info info;
	struct ublk_device *ub;
	int ret;

	if (h->len < sizeof(info) || !h->addr || h->queue_id != U16_MAX)
		return -EINVAL;
	if (copy_from_user(&info, argp, sizeof(info)))
		return -EFAULT;
	ret = check_info(&info);
	if (ret)
		return ret;
	ret = negotiate(&info);
	if (ret)
		return ret;
	if (h->dev_id != info.dev_id)
		return -EINVAL;
	ub = device_alloc(&info);
	if (IS_ERR(ub))
		return PTR_ERR(ub);
	ret = device_prepare(ub);
	if (ret)
		goto put;
	ret = -EFAULT;
	if (copy_to_user(argp, &ub->info, sizeof(ub->info)))
		goto put;
	cdev_init(&ub->cdev, &ublk_ch_fops);
	ub->cdev.owner = THIS_MODULE;
	ret = cdev_device_add(&ub->cdev, &ub->dev);
	if (ret)
		goto put;
	number_publish(ub);
	return 0;

put:
	ublk_put(ub);
	return ret;
}

/* ---- death ------------------------------------------------------------------------------- */

/**
 * ublk_device_remove() - take the char device away, and the reference that ADD_DEV took
 * @ub: the device, deleted, its disk gone; the caller has a reference of its own
 */
void ublk_device_remove(struct ublk_device *ub)
{
	cdev_device_del(&ub->cdev, &ub->dev);
	ublk_put(ub);
}

/**
 * ublk_device_del() - DEL_DEV and DEL_DEV_ASYNC
 * @ub: the device; the caller's reference is consumed
 * @wait: until the number is free
 *
 * Return: 0, or -EINTR when a signal ended the wait; the deletion goes on.
 */
int ublk_device_del(struct ublk_device *ub, bool wait)
{
	u32 id = ub->info.dev_id;
	u64 serial = ub->serial;
	int ret;

	set_bit(UBLK_DEV_DELETED, &ub->flags);
	/* An end that begins after this sees it. */
	smp_mb__after_atomic();
	ret = ublk_end(ub);
	ublk_put(ub);
	if (!ret && wait && wait_event_interruptible(numbers_wait, !number_is(id, serial)))
		return -EINTR;
	return ret;
}

/* Moves @id on to the next number taken; true when there is none. */
static bool numbers_empty_from(u32 *id)
{
	int next = *id;
	bool empty;

	spin_lock(&numbers_lock);
	empty = !idr_get_next(&numbers, &next);
	spin_unlock(&numbers_lock);
	*id = next;
	return empty;
}

static bool numbers_empty(void)
{
	u32 id = 0;

	return numbers_empty_from(&id);
}

/**
 * ublk_devices_init() - get the char devices' class and numbers
 *
 * Return: 0 or -errno.
 */
int ublk_devices_init(void)
{
	int ret = alloc_chrdev_region(&ch_devt, 0, UBLK_MAX_DEVICES, "ublk-char");

	if (ret)
		return ret;
	ret = class_register(&ch_class);
	if (ret)
		unregister_chrdev_region(ch_devt, UBLK_MAX_DEVICES);
	return ret;
}

/**
 * ublk_devices_exit() - delete every device and give back the class and numbers
 *
 * The control device is gone: nobody adds or deletes beside us.
 */
void ublk_devices_exit(void)
{
	struct ublk_device *ub;
	u32 id;

	for (id = 0; !numbers_empty_from(&id); id++) {
		ub = ublk_device_find(id);
		if (ub)
			ublk_device_del(ub, false);
	}
	/* The last references are the class's and sysfs's to drop: short. */
	wait_event(numbers_wait, numbers_empty());
	class_unregister(&ch_class);
	unregister_chrdev_region(ch_devt, UBLK_MAX_DEVICES);
	idr_destroy(&numbers);
}
