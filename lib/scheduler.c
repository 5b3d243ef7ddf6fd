/* SPDX-License-Identifier: MIT */
/*
 * No I/O scheduler for the disk, unless somebody chooses one later. The kernel gives a disk with
 * one queue to mq-deadline, unless the driver objects, and the kernel's own ublk driver does not.
 * But a server has no heads to move, and works best on requests that come in batches.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PATH_SIZE 64

/* The change waits for I/O in flight, which waits for the target: nobody waits for the change. */
static void *write_none(void *arg)
{
	char *path = arg;
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	/* Without sysfs or the right to write there, the disk works as well. */
	if (fd >= 0) {
		ssize_t ret = write(fd, "none", 4);

		(void)ret;
		close(fd);
	}
	free(path);
	return NULL;
}

void scheduler_none(const struct ubd_device *dev)
{
	char *path;
	pthread_attr_t attr;
	pthread_t thread;

	/* Disks with several queues have none; zoned ones need theirs. */
	if (dev->nr_queues > 1 || dev->limits.zone_size)
		return;
	path = malloc(PATH_SIZE);
	if (!path)
		return;
	snprintf(path, PATH_SIZE, "/sys/block/ublkb%u/queue/scheduler", dev->info.dev_id);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attr, write_none, path))
		free(path);
	pthread_attr_destroy(&attr);
}
