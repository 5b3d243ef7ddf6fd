/* SPDX-License-Identifier: MIT */
/* The coroutine pool: stacks, starting, and telling sanitizers about every switch. */
#define _GNU_SOURCE
#include "coro.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "coro_switch.h"

/* gcc defines these itself; clang answers a question. */
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

/* The switch itself, wrapped so that sanitizers follow. `from` is left, `to` goes on. */
static void switch_to(struct coro *from, struct coro *to)
{
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->size);
#endif
#ifdef __SANITIZE_THREAD__
	__tsan_switch_to_fiber(to->fiber, 0);
#endif
	coro_switch(&from->sp, to->sp);
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

/* Every coroutine lives here: it runs one function after another as the pool hands them out. */
static void coro_main(void *arg)
{
	struct coro *co = arg;
	struct coro_pool *pool = co->pool;

#ifdef __SANITIZE_ADDRESS__
	/* The first entry: learn the bounds of the thread's own stack on the way. */
	const void *bottom;
	size_t size;

	__sanitizer_finish_switch_fiber(NULL, &bottom, &size);
	pool->main.stack = (void *)(uintptr_t)bottom;
	pool->main.size = size;
#endif
	for (;;) {
		co->fn(co->arg);
		co->done = true;
		switch_to(co, &pool->main);
	}
}

void coro_pool_init(struct coro_pool *pool, size_t stack_size, bool lock)
{
	*pool = (struct coro_pool){.stack_size = stack_size, .lock = lock};
#ifdef __SANITIZE_ADDRESS__
	pool->stack_size *= 4;
#endif
}

/* Bytes of a stack that are in memory from the start: a request should not need more. */
#define LIKELY ((size_t)16 * 1024)

static struct coro *coro_create(struct coro_pool *pool)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t size = pool->stack_size;
	struct coro *co = calloc(1, sizeof(*co));
	char *map;

	if (!co)
		return NULL;
	map = mmap(NULL, size + page, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED) {
		free(co);
		return NULL;
	}
	/* Stacks grow down: overrunning one faults instead of reaching its neighbour. */
	mprotect(map, page, PROT_NONE);
	if (pool->lock) {
		mlock2(map + page, size, MLOCK_ONFAULT);
		/* What a request needs must not have to be reclaimed through this very device. */
		madvise(map + page + size - LIKELY, LIKELY, MADV_POPULATE_WRITE);
	}
	co->pool = pool;
	co->stack = map + page;
	co->size = size;
	co->sp = coro_prepare(co->stack, size, coro_main, co);
	if (!co->sp) {
		munmap(map, size + page);
		free(co);
		return NULL;
	}
#ifdef __SANITIZE_THREAD__
	co->fiber = __tsan_create_fiber(0);
#endif
	return co;
}

static void coro_destroy(struct coro *co)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

#ifdef __SANITIZE_THREAD__
	__tsan_destroy_fiber(co->fiber);
#endif
	coro_discard(co->sp);
#ifdef __SANITIZE_ADDRESS__
	/* coro_main() never returned: its frame must not haunt what is mapped here next. */
	__asan_unpoison_memory_region(co->stack, co->size);
#endif
	munmap((char *)co->stack - page, co->size + page);
	free(co);
}

static void coro_recycle(struct coro *co)
{
	co->next = co->pool->free;
	co->pool->free = co;
}

void coro_pool_destroy(struct coro_pool *pool)
{
	while (pool->free) {
		struct coro *co = pool->free;

		pool->free = co->next;
		coro_destroy(co);
	}
	coro_discard(pool->main.sp);
	pool->main.sp = NULL;
}

int coro_pool_reserve(struct coro_pool *pool, unsigned n)
{
	while (n--) {
		struct coro *co = coro_create(pool);

		if (!co)
			return -ENOMEM;
		coro_recycle(co);
	}
	return 0;
}

struct coro *coro_new(struct coro_pool *pool, void (*fn)(void *arg), void *arg)
{
	struct coro *co = pool->free;

	if (co)
		pool->free = co->next;
	else
		co = coro_create(pool);
	if (!co)
		return NULL;
	co->fn = fn;
	co->arg = arg;
	co->done = false;
	co->next = NULL;
	pool->live++;
	return co;
}

void coro_enter(struct coro *co)
{
	struct coro_pool *pool = co->pool;

#ifdef __SANITIZE_THREAD__
	pool->main.fiber = __tsan_get_current_fiber();
#endif
	pool->current = co;
	switch_to(&pool->main, co);
	pool->current = NULL;
	if (co->done) {
		pool->live--;
		coro_recycle(co);
	}
}

void coro_suspend(struct coro_pool *pool)
{
	switch_to(pool->current, &pool->main);
}
