/* SPDX-License-Identifier: MIT */
/* null: reads are zeroes, writes vanish. For measuring everything but the backing. */
#include "../targets.h"

struct null {
	uint64_t size;
	bool untouched;
};

static int null_open(struct ubd_device *dev, void *self)
{
	*ubd_device_limits(dev) = (struct ubd_limits){.size = ((struct null *)self)->size,
						      .max_discard = UBD_NO_LIMIT,
						      .max_write_zeroes = UBD_NO_LIMIT};
	return 0;
}

static int null_handle(struct ubd_io *io, void *self)
{
	return ((struct null *)self)->untouched ? ubd_io_untouched(io) : (int)io->length;
}

static const struct ubd_option null_options[] = {
	{"size", UBD_SIZE, offsetof(struct null, size), "size of the device", .fallback = "250G"},
	{"untouched", UBD_BOOL, offsetof(struct null, untouched),
	 "do not even zero what is read: old memory shows, for benchmarks only"},
	{0},
};

/* clang-format off */
const struct ubd_target target_null = {
	.api = UBD_TARGET_API, .name = "null", .summary = "reads zeroes, drops writes",
	.options = null_options, .size = sizeof(struct null),
	.open = null_open, .handle = null_handle,
};
