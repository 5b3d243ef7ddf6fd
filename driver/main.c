// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loading and unloading.
 */
#include <linux/miscdevice.h>
#include <linux/module.h>
#include "driver.h"
#define CREATE_TRACE_POINTS
#include "trace.h"

/*
 * Work that must run for memory to be freed: requests end in it. What is done by ublk_release_wq
 * takes a device's mutex, whose holder may wait for what is done by ublk_wq; the holder is often
 * found on ublk_end_wq.
 */
struct workqueue_struct *ublk_wq;
struct workqueue_struct *ublk_release_wq;
struct workqueue_struct *ublk_end_wq;

static struct miscdevice control = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ublk-control",
	.fops = &ublk_control_fops,
};

static int __init ublk_init(void)
{
	int ret;

	ublk_wq = alloc_workqueue("ublk", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!ublk_wq)
		return -ENOMEM;
	ret = -ENOMEM;
	ublk_release_wq = alloc_workqueue("ublk-release", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	if (!ublk_release_wq)
		goto free_wq;
	/* Each may wait for a server: none shall wait for another. */
	ublk_end_wq = alloc_workqueue("ublk-end", WQ_UNBOUND, WQ_MAX_ACTIVE);
	if (!ublk_end_wq)
		goto free_release_wq;
	ret = ublk_devices_init();
	if (ret)
		goto free_end_wq;
	ret = misc_register(&control);
	if (ret)
		goto exit_devices;
	return 0;

exit_devices:
	ublk_devices_exit();
free_end_wq:
	destroy_workqueue(ublk_end_wq);
free_release_wq:
	destroy_workqueue(ublk_release_wq);
free_wq:
	destroy_workqueue(ublk_wq);
	return ret;
}

static void __exit ublk_exit(void)
{
	misc_deregister(&control);
	ublk_devices_exit();
	destroy_workqueue(ublk_end_wq);
	destroy_workqueue(ublk_release_wq);
	destroy_workqueue(ublk_wq);
}

module_init(ublk_init);
module_exit(ublk_exit);

MODULE_DESCRIPTION("Block devices served from userspace");
MODULE_AUTHOR("The ubd project");
MODULE_VERSION(UBLK_DRIVER_VERSION);
MODULE_LICENSE("GPL");
