/* SPDX-License-Identifier: MIT */
/* A start that fails when some queues have been opened: what these had begun comes to its end. */
#include "../../lib/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include <tap.h>

static _Atomic unsigned ended, closed;

static int block(void *arg)
{
	struct timespec ts = {.tv_nsec = 100000000};

	(void)arg;
	return nanosleep(&ts, NULL);
}

static void work(struct ubd_queue *q, void *arg)
{
	ubd_offload(q, block, arg);
	ended++;
}

/* The last queue cannot be opened. */
static int open_queue(struct ubd_queue *q, void *self)
{
	return ubd_queue_index(q) == 1 ? -EIO : ubd_spawn(q, work, self);
}

static void close_queue(struct ubd_queue *q, void *self)
{
	(void)q;
	(void)self;
	closed++;
}

static int handle(struct ubd_io *io, void *self)
{
	(void)io;
	(void)self;
	return -EIO;
}

static const struct ubd_target target = {
	.api = UBD_TARGET_API,
	.name = "begins",
	.handle = handle,
	.queue_open = open_queue,
	.queue_close = close_queue,
};

/* As ubd_device_start() does it without threads, which needs the driver. */
static void test_embedded(void)
{
	struct ubd_device_config config = {.queues = 2, .depth = 4, .embedded = true};
	struct ubd_device *dev = ubd_device_new(&target, &config);

	dev->local = true;
	dev->zero_copy = UBD_ZC_OFF;
	dev->info = (struct ublksrv_ctrl_dev_info){
		.nr_hw_queues = 2, .queue_depth = 4, .max_io_buf_bytes = 65536};
	dev->offload = offload_new(0);
	dev->queues = aligned_alloc(CACHE_LINE, 2 * sizeof(*dev->queues));
	REQUIRE(dev->offload && dev->queues, "no memory");
	for (; dev->nr_queues < 2; dev->nr_queues++)
		REQUIRE(!queue_init(&dev->queues[dev->nr_queues], dev, dev->nr_queues), "init");
	REQUIRE(!queue_open(&dev->queues[0]), "the first queue");
	/* Its call is under way. */
	queue_round(&dev->queues[0], false);
	CHECK(queue_open(&dev->queues[1]) == -EIO, "the second queue");
	life_end(dev, false);
	CHECK(ended == 1 && closed == 1, "%u coroutines ended, %u queues closed", ended, closed);
	ubd_device_free(dev);
}

/* The same with threads. */
static void test_threads(void)
{
	struct ubd_device_config config = {.queues = 2, .depth = 4};
	struct ubd_device *dev = ubd_device_new(&target, &config);

	ended = closed = 0;
	ubd_device_limits(dev)->size = 1 << 20;
	CHECK(ubd_local_start(dev) == -EIO, "it started");
	CHECK(ended == 1 && closed == 1, "%u coroutines ended, %u queues closed", ended, closed);
	ubd_device_free(dev);
}

static const struct tap_case cases[] = {
	{"embedded: queues that were opened end as they should", test_embedded},
	{"with threads as well", test_threads},
};

TAP_MAIN(cases)
