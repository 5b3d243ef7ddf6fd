/* SPDX-License-Identifier: MIT */
/* Coroutines that wait for one another, within a queue and across threads. */
#include "probe.h"

#include <errno.h>

#define QUEUES 4
#define THREADS 16
#define ROUNDS 200

static struct ubd_device *dev;

/* fn from many threads on all queues. */
static void everywhere(probe_fn *fn, void *arg)
{
	struct probe_caller callers[THREADS];

	dev = probe_start(QUEUES, 32);
	for (unsigned i = 0; i < THREADS; i++)
		callers[i] = (struct probe_caller){
			.dev = dev, .queue = i % QUEUES, .rounds = ROUNDS, .fn = fn, .arg = arg};
	probe_together(callers, THREADS);
	probe_end(dev);
}

struct counter {
	struct ubd_mutex lock;
	unsigned long value; /* plain: only the mutex protects it */
	bool inside;
};

static int count(struct ubd_io *io, void *arg)
{
	struct counter *c = arg;

	ubd_mutex_lock(io->queue, &c->lock);
	if (c->inside)
		return -EDEADLK;
	c->inside = true;
	c->value++;
	if (c->value % 64 == 0)
		ubd_sleep(io->queue, 1000); /* held across a wait */
	c->inside = false;
	ubd_mutex_unlock(io->queue, &c->lock);
	return 0;
}

static void test_mutex(void)
{
	struct counter c = {0};

	everywhere(count, &c);
	CHECK(c.value == THREADS * ROUNDS, "%lu", c.value);
}

struct order {
	struct ubd_mutex lock;
	unsigned next, wrong, done;
};

struct waiter {
	struct order *order;
	unsigned number;
};

static void wait_turn(struct ubd_queue *q, void *arg)
{
	struct waiter *w = arg;
	struct order *o = w->order;

	ubd_mutex_lock(q, &o->lock);
	o->wrong += o->next++ != w->number;
	ubd_mutex_unlock(q, &o->lock);
	o->done++;
}

static int try_order(struct ubd_io *io, void *arg)
{
	struct order *o = arg;
	static struct waiter waiters[50];

	ubd_mutex_lock(io->queue, &o->lock);
	for (unsigned i = 0; i < 50; i++) {
		waiters[i] = (struct waiter){o, i};
		ubd_spawn(io->queue, wait_turn, &waiters[i]);
	}
	ubd_sleep(io->queue, 1000000);
	CHECK(o->done == 0, "%u got in", o->done);
	ubd_mutex_unlock(io->queue, &o->lock);
	while (o->done < 50)
		ubd_yield(io->queue);
	CHECK(!o->wrong, "%u out of turn", o->wrong);
	return 0;
}

static void test_order(void)
{
	struct order o = {0};

	dev = probe_start(1, 4);
	CHECK(probe_run(dev, 0, try_order, &o) == 0, "failed");
	probe_end(dev);
}

struct box {
	struct ubd_mutex lock;
	struct ubd_cond changed;
	unsigned in, out, full;
};

static int put_one(struct ubd_io *io, void *arg)
{
	struct box *b = arg;

	ubd_mutex_lock(io->queue, &b->lock);
	while (b->full)
		ubd_cond_wait(io->queue, &b->changed, &b->lock);
	b->full = 1;
	b->in++;
	ubd_cond_wake_all(io->queue, &b->changed);
	ubd_mutex_unlock(io->queue, &b->lock);
	return 0;
}

static int take_one(struct ubd_io *io, void *arg)
{
	struct box *b = arg;

	ubd_mutex_lock(io->queue, &b->lock);
	while (!b->full)
		ubd_cond_wait(io->queue, &b->changed, &b->lock);
	b->full = 0;
	b->out++;
	ubd_cond_wake_all(io->queue, &b->changed);
	ubd_mutex_unlock(io->queue, &b->lock);
	return 0;
}

static void test_cond(void)
{
	struct probe_caller callers[THREADS];
	struct box b = {0};

	dev = probe_start(QUEUES, 32);
	for (unsigned i = 0; i < THREADS; i++)
		callers[i] = (struct probe_caller){.dev = dev,
						   .queue = i / 2 % QUEUES,
						   .rounds = ROUNDS,
						   .fn = i % 2 ? put_one : take_one,
						   .arg = &b};
	probe_together(callers, THREADS);
	CHECK(b.in == THREADS * ROUNDS / 2 && b.out == b.in && !b.full, "%u in, %u out", b.in,
	      b.out);
	probe_end(dev);
}

struct gate {
	struct ubd_cond cond;
	unsigned waiting, through;
};

static void pass_gate(struct ubd_queue *q, void *arg)
{
	struct gate *g = arg;

	g->waiting++;
	ubd_cond_wait(q, &g->cond, NULL);
	g->through++;
}

static int try_gate(struct ubd_io *io, void *arg)
{
	struct gate *g = arg;
	struct ubd_queue *q = io->queue;

	ubd_cond_wake_one(q, &g->cond); /* nobody there: nothing is remembered */
	for (int i = 0; i < 10; i++)
		ubd_spawn(q, pass_gate, g);
	while (g->waiting < 10)
		ubd_yield(q);
	CHECK(g->through == 0, "%u through", g->through);
	ubd_cond_wake_one(q, &g->cond);
	ubd_sleep(q, 1000000);
	CHECK(g->through == 1, "%u through", g->through);
	ubd_cond_wake_all(q, &g->cond);
	ubd_sleep(q, 1000000);
	CHECK(g->through == 10, "%u through", g->through);
	return 0;
}

static void test_gate(void)
{
	struct gate g = {0};

	dev = probe_start(1, 4);
	CHECK(probe_run(dev, 0, try_gate, &g) == 0, "failed");
	probe_end(dev);
}

static const struct tap_case cases[] = {
	{"a mutex excludes across queues", test_mutex},
	{"a mutex is first come, first served", test_order},
	{"a condition across queues loses no wake-up", test_cond},
	{"a condition without a mutex wakes one or all", test_gate},
};

TAP_MAIN(cases)
