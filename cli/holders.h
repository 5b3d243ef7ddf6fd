/* SPDX-License-Identifier: MIT */
/* Who uses a block device: mounts, devices on top of it, swap, processes that have it open. */
#ifndef CLI_HOLDERS_H
#define CLI_HOLDERS_H

#include <stdbool.h>

/*
 * "mounted on /mnt, open by fio (process 12)" for /dev/ublkb<id> and its partitions, or NULL:
 * nobody that can be seen. *lasting is set when more than passing openers are among them. The
 * caller's to free.
 */
char *holders_of(unsigned id, bool *lasting);
/* Whether a process that can be seen has /dev/ublkc<id> open: it serves the device, or will. */
bool holders_serve(unsigned id);

#endif
