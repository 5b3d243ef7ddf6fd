/* SPDX-License-Identifier: MIT */
/* linear: several files or block devices one after the other. */
#include "../backing/legs.h"
#include "../targets.h"

#include <errno.h>

struct linear {
	struct legs legs;
	struct ubd_list offsets, sizes;
	uint64_t begin[LEGS_MAX + 1]; /* where each leg begins on the disk; the last one's end */
};

static int linear_open(struct ubd_device *dev, void *self)
{
	struct linear *s = self;
	struct ubd_limits *l = ubd_device_limits(dev);
	int ret = legs_open(&s->legs, dev, &s->offsets, &s->sizes);

	if (ret)
		return ret;
	for (unsigned i = 0; i < s->legs.count; i++) {
		struct backing *b = &s->legs.leg[i];
		uint64_t whole = b->size - b->size % l->logical_block;

		if (!whole) {
			ret = ubd_device_fail(dev, -EINVAL, "%s has less than a block of %u bytes",
					      b->path, l->logical_block);
			legs_close(&s->legs);
			return ret;
		}
		legs_trim(&s->legs, dev, i, whole);
		if (__builtin_add_overflow(s->begin[i], whole, &s->begin[i + 1])) {
			legs_close(&s->legs);
			return ubd_device_fail(dev, -EINVAL, "the legs have 16E or more in all");
		}
	}
	l->size = s->begin[s->legs.count];
	return 0;
}

static void linear_close(struct ubd_device *dev, void *self)
{
	(void)dev;
	legs_close(&((struct linear *)self)->legs);
}

static int linear_handle(struct ubd_io *io, void *self)
{
	struct linear *s = self;
	bool data = io->op == UBD_READ || io->op == UBD_WRITE;
	struct ubd_transfer t[LEGS_MAX];
	struct leg_range range[LEGS_MAX];
	uint64_t end = io->offset + io->length;
	unsigned n = 0;

	for (unsigned i = 0; i < s->legs.count; i++) {
		uint64_t from = io->offset > s->begin[i] ? io->offset : s->begin[i];
		uint64_t to = end < s->begin[i + 1] ? end : s->begin[i + 1];

		range[i] = (struct leg_range){from - s->begin[i], from < to ? to - from : 0};
		if (data && range[i].len)
			t[n++] =
				backing_transfer(&s->legs.leg[i], io, (uint32_t)(from - io->offset),
						 (uint32_t)range[i].len, range[i].pos);
	}
	return data ? ubd_io_finish(io, t, n) : legs_apply(&s->legs, io, range);
}

static const struct ubd_option linear_options[] = {
	LEGS_OPTIONS(struct linear, legs),
	{"offset", UBD_LIST, offsetof(struct linear, offsets),
	 "bytes to leave out at a leg's beginning: once for all, or for each", .metavar = "SIZE"},
	{"size", UBD_LIST, offsetof(struct linear, sizes),
	 "bytes to use of a leg, 0: all the rest; once for all, or for each", .metavar = "SIZE"},
	{0},
};

const struct ubd_target target_linear = {
	.api = UBD_TARGET_API,
	.name = "linear",
	.summary = "several files or block devices one after the other",
	.options = linear_options,
	.size = sizeof(struct linear),
	.open = linear_open,
	.close = linear_close,
	.handle = linear_handle,
};
