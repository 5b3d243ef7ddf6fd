/* SPDX-License-Identifier: MIT */
/* A zoned device opened in this process, and what the tests ask of it. */
#ifndef DISK_H
#define DISK_H

#include <linux/blkzoned.h>
#include <ubd/local.h>

#define BLOCK 4096u
#define MAX_ZONES 512u

/* options: "name=value" words, a space between; the target's, and queues=N, read-only. NULL, with
 * the sentence in disk_error. */
struct ubd_device *disk_open(const char *options);
extern char disk_error[512];
/* 0, or the queues' first error. */
int disk_close(struct ubd_device *dev);

/* All zones; returns how many. */
unsigned disk_report(struct ubd_device *dev, struct blk_zone *zones);

uint64_t random_next(uint64_t *state);
/* A block of a tag, never zero, and is it? */
void block_fill(void *block, uint64_t tag);
bool block_is(const void *block, uint64_t tag);
/* A sentence on stderr, and the end. */
void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

#endif
