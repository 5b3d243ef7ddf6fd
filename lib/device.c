/* SPDX-License-Identifier: MIT */
/* A device as an object: made and freed, its options, its errors, what it answers. life.c starts
 * and ends it. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Making one ---------------------------------------------------------------------------- */

struct ubd_device *ubd_device_new(const struct ubd_target *target,
				  const struct ubd_device_config *config)
{
	struct ubd_device *dev = calloc(1, sizeof(*dev));

	if (!dev)
		return NULL;
	dev->target = target;
	if (config)
		dev->cfg = *config;
	dev->char_fd = -1;
	pthread_mutex_init(&dev->lock, NULL);
	pthread_cond_init(&dev->cond, NULL);
	dev->values = option_values_new(target);
	dev->self = calloc(1, target->size ? target->size : 1);
	if (dev->cfg.fault)
		dev->fault = strdup(dev->cfg.fault);
	if (!dev->values || !dev->self || (dev->cfg.fault && !dev->fault)) {
		ubd_device_free(dev);
		return NULL;
	}
	return dev;
}

int ubd_device_set_option(struct ubd_device *dev, const char *name, const char *value)
{
	dev->error[0] = 0;
	return option_set(dev, name, value);
}

/* ---- Errors and notices -------------------------------------------------------------------- */

static int record(struct ubd_device *dev, int err, const char *fmt, va_list ap)
{
	pthread_mutex_lock(&dev->lock);
	if (!dev->error[0])
		vsnprintf(dev->error, sizeof(dev->error), fmt, ap);
	pthread_mutex_unlock(&dev->lock);
	return err;
}

int device_fail(struct ubd_device *dev, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	err = record(dev, err, fmt, ap);
	va_end(ap);
	return err;
}

int ubd_device_fail(struct ubd_device *dev, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	err = record(dev, err, fmt, ap);
	va_end(ap);
	return err;
}

void ubd_device_notice(struct ubd_device *dev, const char *fmt, ...)
{
	char line[ERROR_SIZE];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (dev->cfg.notice)
		dev->cfg.notice(dev->cfg.notice_arg, line);
	else
		fprintf(stderr, "ubd: %s\n", line);
}

bool ubd_device_failed(const struct ubd_device *dev)
{
	return dev->error[0];
}

const char *ubd_device_error(const struct ubd_device *dev)
{
	return dev->error;
}

/* ---- Small answers ------------------------------------------------------------------------- */

struct ubd_limits *ubd_device_limits(struct ubd_device *dev)
{
	return &dev->limits;
}

bool ubd_device_read_only(const struct ubd_device *dev)
{
	return dev->cfg.read_only;
}

bool ubd_device_takes_over(const struct ubd_device *dev)
{
	return dev->cfg.take_over;
}

unsigned ubd_device_queues(const struct ubd_device *dev)
{
	return dev->nr_queues ? dev->nr_queues : dev->cfg.queues;
}

int ubd_device_id(const struct ubd_device *dev)
{
	return dev->started && !dev->local ? (int)dev->info.dev_id : -ENODEV;
}

const char *ubd_device_path(const struct ubd_device *dev)
{
	return dev->path;
}

unsigned ubd_device_depth(const struct ubd_device *dev)
{
	return dev->info.queue_depth;
}

uint64_t ubd_device_size(const struct ubd_device *dev)
{
	/* A target may be resizing it. */
	return __atomic_load_n(&dev->limits.size, __ATOMIC_RELAXED);
}

enum ubd_zero_copy ubd_device_zero_copy(const struct ubd_device *dev)
{
	return dev->zero_copy;
}

int ubd_device_add_fd(struct ubd_device *dev, int fd)
{
	if (!dev->nr_fds)
		dev->nr_fds = 1; /* the char device's place */
	if (dev->nr_fds == MAX_FDS)
		return -ENOSPC;
	dev->fds[dev->nr_fds++] = fd;
	return 0;
}

void ubd_device_stats(const struct ubd_device *dev, struct ubd_stats *sum)
{
	uint64_t *to = (uint64_t *)sum;

	memset(sum, 0, sizeof(*sum));
	for (unsigned i = 0; i < dev->nr_queues; i++) {
		const uint64_t *from = (const uint64_t *)&dev->queues[i].stats;

		for (size_t w = 0; w < sizeof(*sum) / sizeof(*to); w++)
			to[w] += __atomic_load_n(&from[w], __ATOMIC_RELAXED);
	}
}

struct ubd_queue *ubd_device_queue(struct ubd_device *dev, unsigned n)
{
	return dev->started && n < dev->nr_queues ? &dev->queues[n] : NULL;
}

int ubd_queue_fd(const struct ubd_queue *q)
{
	return q->ring.ring_fd;
}

int ubd_queue_process(struct ubd_queue *q)
{
	int ret;

	if (q->ended)
		return q->error;
	ret = queue_round(q, false);
	if (q->ended) {
		queue_refuse(q);
		queue_close(q);
		life_queue_ended(q);
	} else {
		queue_flush(q);
	}
	return ret;
}

struct resize {
	struct ubd_device *dev;
	uint64_t size;
};

static int do_resize(void *arg)
{
	struct resize *r = arg;
	struct ubd_ctrl *ctrl;
	int ret = ubd_ctrl_open(&ctrl);

	if (ret)
		return ret;
	ubd_ctrl_set_deadline(ctrl, r->dev->cfg.deadline_ms);
	ret = ubd_ctrl_resize(ctrl, r->dev->info.dev_id, r->size);
	ubd_ctrl_close(ctrl);
	return ret;
}

int ubd_device_resize(struct ubd_queue *q, uint64_t size)
{
	struct ubd_device *dev = q->dev;
	struct resize r = {.dev = dev, .size = size};
	int ret;

	if (!size || size % dev->limits.logical_block)
		return -EINVAL;
	if (!dev->local && !(dev->info.flags & UBLK_F_UPDATE_SIZE))
		return -EOPNOTSUPP;
	ret = dev->local ? 0 : ubd_offload(q, do_resize, &r);
	if (!ret)
		__atomic_store_n(&dev->limits.size, size, __ATOMIC_RELAXED);
	return ret;
}

/* ---- The end ---------------------------------------------------------------------------- */

static void destroy(struct ubd_device *dev, bool keep)
{
	if (!dev)
		return;
	life_end(dev, keep);
	option_values_free(dev->values);
	free(dev->self);
	free(dev->fault);
	pthread_cond_destroy(&dev->cond);
	pthread_mutex_destroy(&dev->lock);
	free(dev);
}

void ubd_device_free(struct ubd_device *dev)
{
	destroy(dev, false);
}

void ubd_device_leave(struct ubd_device *dev)
{
	destroy(dev, true);
}
