/* SPDX-License-Identifier: MIT */
/* A zoned device opened in this process, and what the tests ask of it. */
#ifndef DISK_H
#define DISK_H

#include <linux/blkzoned.h>
#include "../lib/local.h"

#define BLOCK 4096u
#define MAX_ZONES 512u

/* options: "name=value" words, a space between; the target's, and queues=N, read-only. NULL, with
 * the sentence in disk_error. */
struct ubd_device *disk_open(const char *options);
extern char disk_error[512];

/* All zones; returns how many. */
unsigned disk_report(struct ubd_device *dev, struct blk_zone *zones);

/* A block of a tag, never zero, and is it? */
void block_fill(void *block, uint64_t tag);
bool block_is(const void *block, uint64_t tag);

#endif
