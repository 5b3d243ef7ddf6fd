/* SPDX-License-Identifier: MIT */
/* Coroutines waiting for one another, across queues: a mutex and a condition, both first come,
 * first served. Guards are held for a few instructions only, so they spin. */
#include "internal.h"

static void guard_lock(uint32_t *guard)
{
	while (__atomic_exchange_n(guard, 1, __ATOMIC_ACQUIRE))
		while (__atomic_load_n(guard, __ATOMIC_RELAXED))
			;
}

static void guard_unlock(uint32_t *guard)
{
	__atomic_store_n(guard, 0, __ATOMIC_RELEASE);
}

static void append(struct ubd_waiter **head, struct ubd_waiter **tail, struct ubd_waiter *w)
{
	w->next = NULL;
	if (*tail)
		(*tail)->next = w;
	else
		*head = w;
	*tail = w;
}

static struct ubd_waiter *take_first(struct ubd_waiter **head, struct ubd_waiter **tail)
{
	struct ubd_waiter *w = *head;

	if (w) {
		*head = w->next;
		if (!*head)
			*tail = NULL;
	}
	return w;
}

void ubd_mutex_lock(struct ubd_queue *q, struct ubd_mutex *m)
{
	struct ubd_waiter w = {.q = q, .co = q ? queue_current(q) : NULL};

	guard_lock(&m->guard);
	if (!m->held) {
		m->held = 1;
		guard_unlock(&m->guard);
		return;
	}
	append(&m->head, &m->tail, &w);
	guard_unlock(&m->guard);
	/* A wake that comes before this only makes the coroutine ready: nothing is lost, because
	 * ready coroutines run from this thread's loop. */
	queue_suspend(q);
}

void ubd_mutex_unlock(struct ubd_queue *q, struct ubd_mutex *m)
{
	struct ubd_waiter *w;

	guard_lock(&m->guard);
	w = take_first(&m->head, &m->tail);
	/* Handed over, not released: nobody can slip in between. */
	if (!w)
		m->held = 0;
	guard_unlock(&m->guard);
	if (w)
		queue_wake(q, w);
}

void ubd_cond_wait(struct ubd_queue *q, struct ubd_cond *c, struct ubd_mutex *m)
{
	struct ubd_waiter w = {.q = q, .co = queue_current(q)};

	guard_lock(&c->guard);
	append(&c->head, &c->tail, &w);
	guard_unlock(&c->guard);
	if (m)
		ubd_mutex_unlock(q, m);
	queue_suspend(q);
	if (m)
		ubd_mutex_lock(q, m);
}

void ubd_cond_wake_one(struct ubd_queue *q, struct ubd_cond *c)
{
	struct ubd_waiter *w;

	guard_lock(&c->guard);
	w = take_first(&c->head, &c->tail);
	guard_unlock(&c->guard);
	if (w)
		queue_wake(q, w);
}

void ubd_cond_wake_all(struct ubd_queue *q, struct ubd_cond *c)
{
	struct ubd_waiter *w, *next;

	guard_lock(&c->guard);
	w = c->head;
	c->head = c->tail = NULL;
	guard_unlock(&c->guard);
	for (; w; w = next) {
		next = w->next;
		queue_wake(q, w);
	}
}
