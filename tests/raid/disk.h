/* SPDX-License-Identifier: MIT */
/* A target opened in this process, and what the test programs share. */
#ifndef RAID_DISK_H
#define RAID_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../lib/local.h"

/*
 * Open target NAME with words "option=value"; queues of depth 64. Sentences go to stderr unless
 * quiet; error, of size bytes, gets the last. NULL when it does not open.
 */
struct ubd_device *disk_open(const char *name, unsigned queues, char *const *words, bool quiet,
			     char *error, size_t size);

/* Notices so far, that a leg was left out of a mirror, and that one is in sync again. */
extern _Atomic unsigned disk_drops, disk_returns;

/*
 * Each thread's operations that are over; UINT64_MAX: all. Those of now are when the call returns,
 * so that a fault which one of them met has been found out, and the mirror has had time for its
 * own.
 */
extern _Atomic uint64_t disk_ended[8];
void disk_wait_for_operations(unsigned threads);

/* A mirror: all legs are here and hold the same; and the items that its status has, as text. */
bool disk_in_sync(const struct ubd_device *dev);
void disk_status(const struct ubd_device *dev, char *text, size_t size);

/* Whole files; the caller's to free. */
uint8_t *load(const char *path, uint64_t *size);
void store(const char *path, const uint8_t *data, uint64_t size);

#endif
