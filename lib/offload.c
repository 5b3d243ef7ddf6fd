/* SPDX-License-Identifier: MIT */
/*
 * Helper threads of a device, for calls that block: a few, made when first needed; or as many as
 * are asked for, at once, where calls must not have to wait for a thread's memory.
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

#define FEW_THREADS 4
#define MAX_THREADS 32

struct job {
	int (*fn)(void *arg);
	void *arg;
	int result;
	struct ubd_waiter waiter;
	struct job *next;
};

struct offload {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct job *head, *tail;
	unsigned idle, threads, limit;
	bool waking, stop;
	pthread_t ids[MAX_THREADS];
};

void offload_free(struct offload *o)
{
	if (!o)
		return;
	pthread_mutex_lock(&o->lock);
	o->stop = true;
	pthread_cond_broadcast(&o->more);
	pthread_mutex_unlock(&o->lock);
	for (unsigned i = 0; i < o->threads; i++)
		pthread_join(o->ids[i], NULL);
	pthread_cond_destroy(&o->more);
	pthread_mutex_destroy(&o->lock);
	free(o);
}

/*
 * For what is queued: one helper, and only when none is on its way. It wakes the next before it
 * begins, so that jobs that wait do so together, and short ones are all done by the first.
 */
static void wake_one(struct offload *o)
{
	if (!o->head || !o->idle || o->waking)
		return;
	o->waking = true;
	pthread_cond_signal(&o->more);
}

static void *worker(void *arg)
{
	struct offload *o = arg;

	queue_io_flusher();
	pthread_mutex_lock(&o->lock);
	for (;;) {
		struct job *j = o->head;

		if (!j) {
			if (o->stop)
				break;
			o->idle++;
			pthread_cond_wait(&o->more, &o->lock);
			o->idle--;
			o->waking = false;
			continue;
		}
		o->head = j->next;
		if (!o->head)
			o->tail = NULL;
		wake_one(o);
		pthread_mutex_unlock(&o->lock);
		j->result = j->fn(j->arg);
		queue_wake(NULL, &j->waiter);
		pthread_mutex_lock(&o->lock);
	}
	pthread_mutex_unlock(&o->lock);
	return NULL;
}

static bool add_thread(struct offload *o)
{
	if (o->threads == o->limit || pthread_create(&o->ids[o->threads], NULL, worker, o))
		return false;
	o->threads++;
	return true;
}

struct offload *offload_new(unsigned ready)
{
	struct offload *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->limit = MIN(MAX(ready, FEW_THREADS), MAX_THREADS);
	pthread_mutex_init(&o->lock, NULL);
	pthread_cond_init(&o->more, NULL);
	while (o->threads < MIN(ready, o->limit))
		if (!add_thread(o)) {
			offload_free(o);
			return NULL;
		}
	return o;
}

int ubd_offload(struct ubd_queue *q, int (*fn)(void *arg), void *arg)
{
	struct offload *o = q->dev->offload;
	struct job j = {.fn = fn, .arg = arg, .waiter = {.q = q, .co = queue_current(q)}};

	pthread_mutex_lock(&o->lock);
	/* One that is on its way to another call is none for this. */
	if (!o->idle || o->waking)
		add_thread(o);
	if (!o->threads) {
		pthread_mutex_unlock(&o->lock);
		return -EAGAIN;
	}
	if (o->tail)
		o->tail->next = &j;
	else
		o->head = &j;
	o->tail = &j;
	wake_one(o);
	pthread_mutex_unlock(&o->lock);
	queue_suspend(q);
	return j.result;
}
