/* SPDX-License-Identifier: MIT */
/* What the test programs share. */
#include "disk.h"

#include <stdio.h>

#include "../../targets/targets.h"

static void ignore_notice(void *arg, const char *line)
{
	(void)arg;
	(void)line;
}

struct ubd_device *disk_open(const struct disk_options *o, char *error, size_t size)
{
	struct ubd_device_config config = {
		.queues = o->queues ? o->queues : 1,
		.depth = 64,
		.read_only = o->read_only,
		.notice = o->quiet ? ignore_notice : NULL,
	};
	const char *const options[][2] = {
		{"file", o->image},
		{"journal", o->journal},
		{"cache", o->cache},
		{"snapshot", o->snapshot},
		{"direct", o->direct},
		{"data-file", o->data_file},
		{"repair", o->repair ? "yes" : NULL},
	};
	struct ubd_device *dev = ubd_device_new(&target_qcow2, &config);
	int ret = dev ? 0 : -1;

	for (size_t i = 0; i < sizeof(options) / sizeof(*options) && !ret; i++)
		if (options[i][1])
			ret = ubd_device_set_option(dev, options[i][0], options[i][1]);
	if (!ret)
		ret = ubd_local_start(dev);
	if (!ret)
		return dev;
	snprintf(error, size, "%s", dev ? ubd_device_error(dev) : "out of memory");
	if (!o->quiet)
		fprintf(stderr, "%s\n", error);
	if (dev)
		ubd_device_free(dev);
	return NULL;
}

static void ignore_item(void *arg, const char *name, const char *text, uint64_t number)
{
	(void)arg;
	(void)name;
	(void)text;
	(void)number;
}

int disk_command(struct ubd_device *dev, const char *verb, const char *job, const char *name)
{
	const char *words[] = {verb, job, name};

	return ubd_device_command(dev, words, name ? 3 : 2, ignore_item, NULL);
}
