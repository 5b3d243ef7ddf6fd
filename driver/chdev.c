// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/ublkcN: opened by one server at a time, which maps the descriptors and sends I/O commands.
 */
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/sched/signal.h>
#include "driver.h"

static int ch_open(struct inode *inode, struct file *file)
{
	struct ublk_device *ub = container_of(inode->i_cdev, struct ublk_device, cdev);

	if (test_and_set_bit_lock(UBLK_DEV_OPEN, &ub->flags))
		return -EBUSY;
	/* Either DEL_DEV finds the device open and sends us away, or we find it deleted. */
	smp_mb__after_atomic();
	if (test_bit(UBLK_DEV_DELETED, &ub->flags)) {
		clear_bit_unlock(UBLK_DEV_OPEN, &ub->flags);
		return -ENXIO;
	}
	ublk_server_set(ub, get_pid(task_tgid(current)));
	file->private_data = ub;
	ublk_watch_start(ub);
	return 0;
}

/* May be called from the end of a ring with its locks held: the rest is the work's. */
static int ch_release(struct inode *inode, struct file *file)
{
	struct ublk_device *ub = file->private_data;

	ublk_get(ub);
	queue_work(ublk_release_wq, &ub->release_work);
	return 0;
}

/* The descriptors belong to one address space, the first that maps them. */
static bool is_servers_mm(struct ublk_device *ub)
{
	bool same;

	spin_lock(&ub->disk_lock);
	if (!ub->mm)
		ub->mm = current->mm;
	same = ub->mm == current->mm;
	spin_unlock(&ub->disk_lock);
	return same;
}

static int ch_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct ublk_device *ub = file->private_data;
	size_t bytes = ublk_desc_bytes(ub->info.queue_depth);
	unsigned long stride = ublk_desc_bytes(UBLK_MAX_QUEUE_DEPTH) >> PAGE_SHIFT;
	unsigned long q_id = vma->vm_pgoff / stride;

	if (vma->vm_flags & VM_WRITE)
		return -EPERM;
	if (q_id >= ub->info.nr_hw_queues || vma->vm_end - vma->vm_start != bytes)
		return -EINVAL;
	if (!is_servers_mm(ub))
		return -EINVAL;
	ublk_vma_forbid_write(vma);
	return remap_pfn_range(vma, vma->vm_start,
			       virt_to_phys(ub->queues[q_id]->desc) >> PAGE_SHIFT, bytes,
			       vma->vm_page_prot);
}

const struct file_operations ublk_ch_fops = {
	.owner = THIS_MODULE,
	.open = ch_open,
	.release = ch_release,
	.mmap = ch_mmap,
	.uring_cmd = ublk_ch_uring_cmd,
	.read_iter = ublk_ch_read_iter,
	.write_iter = ublk_ch_write_iter,
	.splice_read = ublk_ch_splice_read,
};
