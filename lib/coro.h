/* SPDX-License-Identifier: MIT */
/*
 * Stackful coroutines of one thread: a pool of stacks with guard pages, and a switch of a few
 * instructions. No scheduler: whoever enters a coroutine gets control back when it suspends.
 */
#ifndef UBD_CORO_H
#define UBD_CORO_H

#include <stdbool.h>
#include <stddef.h>

struct coro_pool;

struct coro {
	void *sp; /* saved stack pointer, or the fallback's context */
	struct coro_pool *pool;
	struct coro *next; /* in the pool's free list or the queue's ready list */
	void (*fn)(void *arg);
	void *arg;
	bool done;
	void *stack; /* lowest usable address */
	size_t size;
	void *fake_stack; /* AddressSanitizer's */
	void *fiber;	  /* ThreadSanitizer's */
};

struct coro_pool {
	struct coro main; /* the thread's own stack */
	struct coro *free;
	struct coro *current; /* NULL on the thread's own stack */
	size_t stack_size;
	unsigned live; /* coroutines started and not done */
	bool lock;     /* keep stacks in memory */
};

/* stack_size: bytes per coroutine. lock: mlock stacks where permitted. */
void coro_pool_init(struct coro_pool *pool, size_t stack_size, bool lock);
/* All coroutines must be done. */
void coro_pool_destroy(struct coro_pool *pool);
/* Make n stacks now, so that none is allocated on the I/O path. -ENOMEM. */
int coro_pool_reserve(struct coro_pool *pool, unsigned n);

/* A coroutine that will run fn(arg) when entered. NULL: out of memory. */
struct coro *coro_new(struct coro_pool *pool, void (*fn)(void *arg), void *arg);
/* From the thread's own stack: run co until it suspends or ends (then it is back in the pool). */
void coro_enter(struct coro *co);
/* From a coroutine: back to whoever entered it. */
void coro_suspend(struct coro_pool *pool);

#endif
