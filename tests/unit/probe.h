/* SPDX-License-Identifier: MIT */
/*
 * A target whose requests run a function of the test, to try on a coroutine of a real queue what
 * targets may call. probe_start() makes the device, probe_run() calls the function there.
 */
#ifndef UBD_TEST_PROBE_H
#define UBD_TEST_PROBE_H

#include <pthread.h>
#include <stdlib.h>

#include <tap.h>
#include <ubd/ubd.h>

typedef int probe_fn(struct ubd_io *io, void *arg);

struct probe_call {
	probe_fn *fn;
	void *arg;
};

/* The call travels as the request's offset: there is nothing behind the device anyway. */
static int probe_handle(struct ubd_io *io, void *self)
{
	const struct probe_call *call = (const struct probe_call *)(uintptr_t)io->offset;

	(void)self;
	return call->fn(io, call->arg);
}

static int probe_open(struct ubd_device *dev, void *self)
{
	(void)self;
	ubd_device_limits(dev)->size = 1ULL << 62;
	return 0;
}

static const struct ubd_target probe_target = {
	.api = UBD_TARGET_API,
	.name = "probe",
	.open = probe_open,
	.handle = probe_handle,
};

__attribute__((unused)) static struct ubd_device *probe_start(unsigned queues, unsigned depth)
{
	struct ubd_device_config config = {.queues = queues, .depth = depth, .max_io = 65536};
	struct ubd_device *dev = ubd_device_new(&probe_target, &config);
	int ret = ubd_local_start(dev);

	if (ret) {
		printf("Bail out! cannot start the probe: %s\n", ubd_device_error(dev));
		exit(3);
	}
	return dev;
}

/* Returns what fn returned, when that is negative; 0 otherwise, as a FLUSH does. */
__attribute__((unused)) static int probe_run(struct ubd_device *dev, unsigned queue, probe_fn *fn,
					     void *arg)
{
	struct probe_call call = {fn, arg};

	return ubd_local_io(dev, queue, UBD_FLUSH, 0, (uintptr_t)&call, NULL, 0);
}

/* A thread that does so again and again, until fn fails. */
struct probe_caller {
	struct ubd_device *dev;
	unsigned queue, rounds;
	probe_fn *fn;
	void *arg;
	int ret;
	pthread_t thread;
};

static void *probe_caller_run(void *arg)
{
	struct probe_caller *c = arg;

	for (unsigned i = 0; i < c->rounds && !c->ret; i++)
		c->ret = probe_run(c->dev, c->queue, c->fn, c->arg);
	return NULL;
}

/* n of them at the same time; checks that none fails. */
__attribute__((unused)) static void probe_together(struct probe_caller *callers, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		pthread_create(&callers[i].thread, NULL, probe_caller_run, &callers[i]);
	for (unsigned i = 0; i < n; i++) {
		pthread_join(callers[i].thread, NULL);
		CHECK(callers[i].ret == 0, "caller %u: %d", i, callers[i].ret);
	}
}

__attribute__((unused)) static void probe_end(struct ubd_device *dev)
{
	CHECK(ubd_device_stop(dev) == 0, "stop");
	CHECK(ubd_device_wait(dev) == 0, "%s", ubd_device_error(dev));
	ubd_device_free(dev);
}

#endif
