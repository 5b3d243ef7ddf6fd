/* SPDX-License-Identifier: MIT */
/*
 * Use a target inside this process, with no block device: the same target code on the same
 * queues, fed by calls instead of the kernel. For tools (convert, check, compare), tests and
 * programs that want an image's contents and not a disk.
 */
#ifndef UBD_LOCAL_H
#define UBD_LOCAL_H

#include <ubd/device.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Open the target and start its queues, without a kernel device. Instead of ubd_device_start();
 * ubd_device_stop(), _wait() and _free() work as ever.
 */
int ubd_local_start(struct ubd_device *dev);
/*
 * One request to queue q: op and flags as in <ubd/target.h>; offset and length in bytes; buf
 * holds length bytes for READ, WRITE and ZONE_APPEND, length struct blk_zone for REPORT_ZONES,
 * otherwise NULL. Any number of threads may call at once, up to the queue's depth are in flight.
 * Returns bytes (0 for other ops) or -errno.
 */
int ubd_local_io(struct ubd_device *dev, unsigned q, enum ubd_op op, unsigned flags,
		 uint64_t offset, void *buf, uint32_t length);
/* The same for a ZONE_APPEND to the zone at offset; *at is where it went, bytes. */
int ubd_local_append(struct ubd_device *dev, unsigned q, unsigned flags, uint64_t offset, void *buf,
		     uint32_t length, uint64_t *at);

#ifdef __cplusplus
}
#endif

#endif
