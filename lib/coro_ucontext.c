/* SPDX-License-Identifier: MIT */
/* Coroutine switching through <ucontext.h>, for machines without an assembly version: slower by
 * two system calls a switch. */
#include "coro_switch.h"

#include <stdint.h>
#include <stdlib.h>
#include <ucontext.h>

struct context {
	ucontext_t uc;
	void (*entry)(void *);
	void *arg;
};

void coro_switch(void **save, void *load)
{
	struct context *to = load;

	/* The thread's own stack gets its context the first time it is left. */
	if (!*save)
		*save = calloc(1, sizeof(struct context));
	if (!*save)
		abort();
	swapcontext(&((struct context *)*save)->uc, &to->uc);
}

/* makecontext passes ints only. */
static void start(unsigned high, unsigned low)
{
	struct context *c = (struct context *)(uintptr_t)((uint64_t)high << 32 | low);

	c->entry(c->arg);
}

void *coro_prepare(void *stack, size_t size, void (*entry)(void *), void *arg)
{
	struct context *c = calloc(1, sizeof(*c));
	uint64_t p = (uintptr_t)c;

	if (!c)
		return NULL;
	getcontext(&c->uc);
	c->uc.uc_stack.ss_sp = stack;
	c->uc.uc_stack.ss_size = size;
	c->entry = entry;
	c->arg = arg;
	makecontext(&c->uc, (void (*)(void))start, 2, (unsigned)(p >> 32), (unsigned)p);
	return c;
}

void coro_discard(void *context)
{
	free(context);
}
