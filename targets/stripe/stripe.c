/* SPDX-License-Identifier: MIT */
/* stripe: RAID-0, chunks dealt out to several files or block devices in turn. */
#include "../backing/legs.h"
#include "../targets.h"

#include <errno.h>

#define PIECES 32 /* of a request, under way together */

struct stripe {
	struct legs legs;
	uint64_t chunk;
};

/* The legs give alike, whole chunks; 0 or -errno. */
static int trim(struct stripe *s, struct ubd_device *dev, struct ubd_limits *l)
{
	struct backing *smallest = &s->legs.leg[0];
	uint64_t each;

	for (unsigned i = 1; i < s->legs.count; i++)
		if (s->legs.leg[i].size < smallest->size)
			smallest = &s->legs.leg[i];
	each = smallest->size / s->chunk * s->chunk;
	if (!each || s->chunk & (s->chunk - 1) || s->chunk % l->logical_block)
		return ubd_device_fail(dev, -EINVAL,
				       each ? "a chunk of %llu bytes: a power of two and a "
					      "multiple of %s's block size is needed"
					    : "a chunk of %llu bytes is more than %s has",
				       (unsigned long long)s->chunk, smallest->path);
	for (unsigned i = 0; i < s->legs.count; i++)
		legs_trim(&s->legs, dev, i, each);
	if (__builtin_mul_overflow(each, s->legs.count, &l->size))
		return ubd_device_fail(dev, -EINVAL, "the legs have 16E or more in all");
	return 0;
}

static int stripe_open(struct ubd_device *dev, void *self)
{
	struct stripe *s = self;
	struct ubd_limits *l = ubd_device_limits(dev);
	uint64_t row;
	int ret = legs_open(&s->legs, dev, NULL, NULL);

	if (ret)
		return ret;
	ret = trim(s, dev, l);
	if (ret) {
		legs_close(&s->legs);
		return ret;
	}
	row = s->chunk * s->legs.count;
	l->io_min = (uint32_t)s->chunk;
	l->io_opt = row & (row - 1) || row > UINT32_MAX ? 0 : (uint32_t)row;
	l->max_io = (uint32_t)s->chunk * (PIECES - 1); /* it may begin inside a chunk */
	return 0;
}

static void stripe_close(struct ubd_device *dev, void *self)
{
	(void)dev;
	legs_close(&((struct stripe *)self)->legs);
}

/* How many of the disk's first `end` bytes leg i has. */
static uint64_t share(const struct stripe *s, unsigned i, uint64_t end)
{
	uint64_t row = s->chunk * s->legs.count, rest = end % row, before = i * s->chunk;
	uint64_t own = rest < before ? 0 : rest - before;

	return end / row * s->chunk + (own < s->chunk ? own : s->chunk);
}

static int move(const struct stripe *s, struct ubd_io *io)
{
	struct ubd_transfer t[PIECES];
	unsigned n = 0;
	int ret;

	for (uint32_t at = 0, len; at < io->length; at += len) {
		uint64_t pos = io->offset + at, chunk = pos / s->chunk, inside = pos % s->chunk;

		if (n == PIECES) {
			ret = ubd_io_transfer(io, t, n);
			if (ret < 0)
				return ret;
			n = 0;
		}
		len = io->length - at;
		if (len > s->chunk - inside)
			len = (uint32_t)(s->chunk - inside);
		t[n++] = backing_transfer(&s->legs.leg[chunk % s->legs.count], io, at, len,
					  chunk / s->legs.count * s->chunk + inside);
	}
	ret = ubd_io_finish(io, t, n);
	return ret < 0 ? ret : (int)io->length;
}

static int stripe_handle(struct ubd_io *io, void *self)
{
	struct stripe *s = self;
	struct leg_range range[LEGS_MAX];

	if (io->op == UBD_READ || io->op == UBD_WRITE)
		return move(s, io);
	for (unsigned i = 0; i < s->legs.count; i++) {
		range[i].pos = share(s, i, io->offset);
		range[i].len = share(s, i, io->offset + io->length) - range[i].pos;
	}
	return legs_apply(&s->legs, io, range);
}

static const struct ubd_option stripe_options[] = {
	LEGS_OPTIONS(struct stripe, legs),
	{"chunk", UBD_SIZE, offsetof(struct stripe, chunk),
	 "bytes before it is the next leg's turn", .fallback = "64K", .min = 4096, .max = 64 << 20},
	{0},
};

const struct ubd_target target_stripe = {
	.api = UBD_TARGET_API,
	.name = "stripe",
	.summary = "several files or block devices in parallel (RAID-0)",
	.options = stripe_options,
	.size = sizeof(struct stripe),
	.open = stripe_open,
	.close = stripe_close,
	.handle = stripe_handle,
};
