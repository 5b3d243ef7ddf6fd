/* SPDX-License-Identifier: MIT */
/* The machine-dependent part of coroutines: x86-64 and arm64 in assembly, ucontext elsewhere. */
#ifndef UBD_CORO_SWITCH_H
#define UBD_CORO_SWITCH_H

#include <stddef.h>

/* Save the callee-saved registers, store the stack pointer in *save, go on at `load`. */
void coro_switch(void **save, void *load);
/* What to give to the first switch so that entry(arg) runs on the stack; entry never returns. */
void *coro_prepare(void *stack, size_t size, void (*entry)(void *), void *arg);
/* Release what prepare or switch made for a context that will not run again; NULL is fine. */
void coro_discard(void *context);

#endif
