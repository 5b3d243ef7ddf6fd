/* SPDX-License-Identifier: MIT */
/* Several backings that make one disk. */
#include "legs.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static uint64_t most(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- Opening ------------------------------------------------------------------------------- */

static bool same(const char *a, const char *b)
{
	struct stat x, y;

	if (stat(a, &x) || stat(b, &y))
		return false; /* what is not there has its own sentence */
	if (S_ISBLK(x.st_mode) || S_ISBLK(y.st_mode))
		return (x.st_mode & S_IFMT) == (y.st_mode & S_IFMT) && x.st_rdev == y.st_rdev;
	return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Refuse too many, and the same file or device twice. */
static int check(struct ubd_device *dev, const struct ubd_list *paths)
{
	if (paths->count > LEGS_MAX)
		return ubd_device_fail(dev, -EINVAL, "%zu legs are too many: at most %u are taken",
				       paths->count, LEGS_MAX);
	for (size_t i = 0; i < paths->count; i++)
		for (size_t k = 0; k < i; k++)
			if (same(paths->items[i], paths->items[k]))
				return ubd_device_fail(dev, -EINVAL,
						       "%s and %s are the same: name each leg once",
						       paths->items[k], paths->items[i]);
	return 0;
}

/* The nth leg's value of an option that is given for none, for all or for each. */
static int pick(struct ubd_device *dev, const char *name, const struct ubd_list *list,
		const struct ubd_list *paths, size_t n, uint64_t *value)
{
	const char *text;

	*value = 0;
	if (!list || !list->count)
		return 0;
	if (list->count != 1 && list->count != paths->count)
		return ubd_device_fail(dev, -EINVAL,
				       "option %s is given %zu times: once for all %zu legs, or "
				       "once for each",
				       name, list->count, paths->count);
	text = list->items[list->count == 1 ? 0 : n];
	if (ubd_size_parse(text, value))
		return ubd_device_fail(dev, -EINVAL, "option %s: \"%s\" is not a size", name, text);
	return 0;
}

static int open_leg(struct legs *l, struct ubd_device *dev, const struct ubd_list *offsets,
		    const struct ubd_list *sizes, size_t n)
{
	struct backing *b = &l->leg[l->count];
	struct backing_request r = {
		.path = l->paths.items[n],
		.direct = (enum backing_direct)l->direct,
		.read_only = ubd_device_read_only(dev),
		.any_size = true, /* to be trimmed */
	};
	int ret = pick(dev, "offset", offsets, &l->paths, n, &r.start);

	if (!ret)
		ret = pick(dev, "size", sizes, &l->paths, n, &r.size);
	if (!ret)
		ret = backing_open(b, dev, &r);
	if (!ret && b->start % b->block) {
		backing_close(b);
		ret = ubd_device_fail(dev, -EINVAL,
				      "%s: the offset %llu is not a multiple of its block size %u",
				      b->path, (unsigned long long)b->start, b->block);
	}
	return ret;
}

/* Limits that suit all. */
static void set_limits(const struct legs *l, struct ubd_limits *all)
{
	backing_limits(&l->leg[0], all);
	for (unsigned i = 1; i < l->count; i++) {
		struct ubd_limits one = {0};

		backing_limits(&l->leg[i], &one);
		all->size = least(all->size, one.size);
		all->logical_block = (uint32_t)most(all->logical_block, one.logical_block);
		all->physical_block = (uint32_t)most(all->physical_block, one.physical_block);
		all->io_min = (uint32_t)most(all->io_min, one.io_min);
		all->io_opt = (uint32_t)most(all->io_opt, one.io_opt);
		all->dma_alignment = (uint32_t)most(all->dma_alignment, one.dma_alignment);
		all->discard_granularity =
			(uint32_t)most(all->discard_granularity, one.discard_granularity);
		all->max_discard = least(all->max_discard, one.max_discard);
		all->max_write_zeroes = least(all->max_write_zeroes, one.max_write_zeroes);
		all->rotational = all->rotational || one.rotational;
		all->fua = all->fua && one.fua;
	}
}

int legs_open(struct legs *l, struct ubd_device *dev, const struct ubd_list *offsets,
	      const struct ubd_list *sizes)
{
	int ret = check(dev, &l->paths);

	l->count = 0;
	for (size_t n = 0; !ret && n < l->paths.count; n++) {
		ret = open_leg(l, dev, offsets, sizes, n);
		l->count += !ret;
		/* What another uses is not gone: that may be written to. */
		if (ret && ret != -EBUSY && l->some) {
			ubd_device_notice(dev, "%s cannot be opened (%s): going on without it",
					  l->paths.items[n], strerror(-ret));
			ret = 0;
		}
	}
	if (!ret && !l->count)
		ret = ubd_device_fail(dev, -ENODEV, "none of the legs can be opened");
	if (ret)
		legs_close(l);
	else
		set_limits(l, ubd_device_limits(dev));
	return ret;
}

void legs_close(struct legs *l)
{
	while (l->count)
		backing_close(&l->leg[--l->count]);
}

void legs_trim(struct legs *l, struct ubd_device *dev, unsigned i, uint64_t size)
{
	struct backing *b = &l->leg[i];

	if (size != b->size)
		ubd_device_notice(dev, "%s: the last %llu of its %llu bytes are not used", b->path,
				  (unsigned long long)(b->size - size),
				  (unsigned long long)b->size);
	b->size = size;
}

/* ---- Using --------------------------------------------------------------------------------- */

struct round {
	legs_call *fn;
	void *arg;
	uint64_t failed;
	unsigned left;
	int ret;
	struct ubd_cond done;
};

struct turn {
	struct round *round;
	unsigned leg;
};

static void take_turn(struct ubd_queue *q, void *arg)
{
	const struct turn *t = arg;
	struct round *r = t->round;
	int ret = r->fn(q, t->leg, r->arg);

	r->failed |= (uint64_t)(ret < 0) << t->leg;
	if (ret < 0 && !r->ret)
		r->ret = ret;
	if (!--r->left && q)
		ubd_cond_wake_one(q, &r->done);
}

int legs_each(struct ubd_queue *q, uint64_t mask, legs_call *fn, void *arg, uint64_t *failed)
{
	struct round r = {.fn = fn, .arg = arg, .left = (unsigned)__builtin_popcountll(mask)};
	struct turn turns[LEGS_MAX];

	for_each_leg(i, mask) {
		turns[i] = (struct turn){&r, i};
		/* The last one here, and those for which there is no memory. */
		if (!q || mask >> i == 1 || ubd_spawn(q, take_turn, &turns[i]))
			take_turn(q, &turns[i]);
	}
	while (r.left)
		ubd_cond_wait(q, &r.done, NULL);
	if (failed)
		*failed = r.failed;
	return r.ret;
}

struct application {
	struct legs *legs;
	const struct ubd_io *io;
	const struct leg_range *range;
};

static int apply(struct ubd_queue *q, unsigned i, void *arg)
{
	const struct application *a = arg;

	(void)q;
	return backing_apply(&a->legs->leg[i], a->io, a->range[i].pos, a->range[i].len);
}

int legs_apply(struct legs *l, const struct ubd_io *io, const struct leg_range *range)
{
	bool by_range = io->op == UBD_DISCARD || io->op == UBD_WRITE_ZEROES;
	struct application a = {l, io, range};
	uint64_t mask = 0;

	for (unsigned i = 0; i < l->count; i++)
		if (range[i].len || !by_range)
			mask |= 1ull << i;
	return legs_each(io->queue, mask, apply, &a, NULL);
}
