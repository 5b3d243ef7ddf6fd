/* SPDX-License-Identifier: MIT */
/* Helper threads of a device, for calls that block: made when first needed, a few at most. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

#define MAX_THREADS 4

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
	unsigned idle, threads;
	bool stop;
	pthread_t ids[MAX_THREADS];
};

struct offload *offload_new(void)
{
	struct offload *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	pthread_mutex_init(&o->lock, NULL);
	pthread_cond_init(&o->more, NULL);
	return o;
}

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

static void *worker(void *arg)
{
	struct offload *o = arg;

	pthread_mutex_lock(&o->lock);
	for (;;) {
		struct job *j = o->head;

		if (!j) {
			if (o->stop)
				break;
			o->idle++;
			pthread_cond_wait(&o->more, &o->lock);
			o->idle--;
			continue;
		}
		o->head = j->next;
		if (!o->head)
			o->tail = NULL;
		pthread_mutex_unlock(&o->lock);
		j->result = j->fn(j->arg);
		queue_wake(NULL, &j->waiter);
		pthread_mutex_lock(&o->lock);
	}
	pthread_mutex_unlock(&o->lock);
	return NULL;
}

int ubd_offload(struct ubd_queue *q, int (*fn)(void *arg), void *arg)
{
	struct offload *o = q->dev->offload;
	struct job j = {.fn = fn, .arg = arg, .waiter = {.q = q, .co = queue_current(q)}};

	pthread_mutex_lock(&o->lock);
	if (!o->idle && o->threads < MAX_THREADS &&
	    !pthread_create(&o->ids[o->threads], NULL, worker, o))
		o->threads++;
	if (!o->threads) {
		pthread_mutex_unlock(&o->lock);
		return -EAGAIN;
	}
	if (o->tail)
		o->tail->next = &j;
	else
		o->head = &j;
	o->tail = &j;
	pthread_cond_signal(&o->more);
	pthread_mutex_unlock(&o->lock);
	queue_suspend(q);
	return j.result;
}
