/* SPDX-License-Identifier: MIT */
/* A plugin that works: every byte of its disk is the same. */
#include <errno.h>
#include <string.h>

#include <ubd/target.h>

struct good {
	uint64_t byte;
};

static int good_open(struct ubd_device *dev, void *self)
{
	(void)self;
	ubd_device_limits(dev)->size = 1 << 20;
	return 0;
}

static int good_handle(struct ubd_io *io, void *self)
{
	void *data;

	if (io->op != UBD_READ)
		return -EOPNOTSUPP;
	data = ubd_io_data(io);
	if (!data)
		return -ENOMEM;
	memset(data, (int)((struct good *)self)->byte, io->length);
	return (int)io->length;
}

static const struct ubd_option options[] = {
	{"byte", UBD_UINT, offsetof(struct good, byte), "what to fill with", .max = 255},
	{0},
};

static const struct ubd_target good = {
	.api = UBD_TARGET_API,
	.flags = UBD_TARGET_SEES_DATA,
	.name = "good",
	.options = options,
	.size = sizeof(struct good),
	.open = good_open,
	.handle = good_handle,
};
UBD_PLUGIN(good);
