/* SPDX-License-Identifier: MIT */
/*
 * Embedding: the caller owns the thread and the event loop.
 *
 * With config.embedded the library makes no thread. After ubd_device_start(), which serves the
 * queues itself while it waits, poll ubd_queue_fd() for POLLIN and call ubd_queue_process() when it
 * is readable. All calls on one queue come from the thread that called ubd_device_start(). A target
 * that writes to sockets may get it SIGPIPE, which the library's own queue threads block: do so as
 * well.
 */
#ifndef UBD_QUEUE_H
#define UBD_QUEUE_H

#include <ubd/device.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Queue n (from 0) of a started device, owned by it; NULL when there is none. */
struct ubd_queue *ubd_device_queue(struct ubd_device *dev, unsigned n);
/* An fd to poll for POLLIN, owned by the queue. */
int ubd_queue_fd(const struct ubd_queue *q);
/*
 * Handle what is there and submit what follows from it, without blocking. Returns 1 while the
 * queue lives, 0 when it has ended (the device was stopped), or -errno when it broke.
 */
int ubd_queue_process(struct ubd_queue *q);

#ifdef __cplusplus
}
#endif

#endif
