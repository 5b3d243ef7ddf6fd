/* SPDX-License-Identifier: MIT */
/* What the test programs share that drive a target in their own process (<ubd/local.h>). */
#ifndef UBD_TESTS_LOCAL_H
#define UBD_TESTS_LOCAL_H

#include <stddef.h>
#include <stdint.h>

#include <ubd/local.h>

#include "random.h"

/* End a target that ubd_local_start() started. 0, or the queues' first error. */
int disk_close(struct ubd_device *dev);

void fill_pattern(uint8_t *buf, size_t len, uint64_t seed);
/* Print a sentence on stderr and end the program with status 1. */
void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

#endif
