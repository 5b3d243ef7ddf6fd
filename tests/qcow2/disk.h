/* SPDX-License-Identifier: MIT */
/* A qcow2 image opened in this process, and a raw copy in memory of what must be on it. */
#ifndef DISK_H
#define DISK_H

#include "../lib/local.h"

struct disk {
	struct ubd_device *dev;
	unsigned queues;
	uint64_t size;	/* bytes, also of the model */
	uint8_t *model; /* room for max_size */
};

struct disk_options {
	const char *image, *journal, *cache, *snapshot, *direct, *data_file;
	unsigned queues;
	bool read_only, repair, quiet;
};

/* NULL after saying why on stderr, unless quiet. */
struct ubd_device *disk_open(const struct disk_options *o, char *error, size_t size);
/* As `ubd snapshot` and `ubd resize`: words, the last of which may be NULL. 0 or -errno. */
int disk_command(struct ubd_device *dev, const char *verb, const char *job, const char *name);

#endif
