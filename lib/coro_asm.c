/* SPDX-License-Identifier: MIT */
/* First frames for coro_asm.S, on the machines it knows. */
#include "coro_switch.h"

#include <stdint.h>
#include <string.h>

extern void coro_start(void);

void *coro_prepare(void *stack, size_t size, void (*entry)(void *), void *arg)
{
	uintptr_t top = ((uintptr_t)stack + size) & ~(uintptr_t)15;
	uintptr_t *frame;

#if defined(__x86_64__)
	/* r15 r14 r13 r12 rbx rbp, return address; then 16-byte aligned, as calls want it. */
	frame = (uintptr_t *)(top - 9 * sizeof(*frame));
	memset(frame, 0, 9 * sizeof(*frame));
	frame[3] = (uintptr_t)arg;
	frame[4] = (uintptr_t)entry;
	frame[6] = (uintptr_t)coro_start;
#elif defined(__aarch64__)
	/* x19 … x30, d8 … d15 */
	frame = (uintptr_t *)(top - 20 * sizeof(*frame));
	memset(frame, 0, 20 * sizeof(*frame));
	frame[0] = (uintptr_t)entry;
	frame[1] = (uintptr_t)arg;
	frame[11] = (uintptr_t)coro_start;
#endif
	return frame;
}

void coro_discard(void *context)
{
	(void)context;
}
