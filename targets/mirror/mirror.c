/* SPDX-License-Identifier: MIT */
/* mirror: RAID-1 over files or block devices, with a write-intent bitmap. */
#include "mirror.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../targets.h"

#define READ_ERRORS 16 /* that a leg may have before it is left out */

enum { ROUND_ROBIN, NEAREST };

/* ---- Reading ------------------------------------------------------------------------------- */

static unsigned nth_bit(unsigned mask, unsigned n)
{
	while (n--)
		mask &= mask - 1;
	return (unsigned)__builtin_ctz(mask);
}

static unsigned nearest(const struct mirror *m, unsigned mask, uint64_t offset)
{
	uint64_t least = UINT64_MAX;
	unsigned best = 0;

	for (; mask; mask &= mask - 1) {
		unsigned i = (unsigned)__builtin_ctz(mask);
		uint64_t head = m->head[i], far = head > offset ? head - offset : offset - head;

		if (far < least) {
			least = far;
			best = i;
		}
	}
	return best;
}

static bool legs_differ(struct mirror *m, const struct ubd_io *io)
{
	uint64_t last = (io->offset + io->length - 1) / m->super.chunk;
	bool differ = false;

	if (!m->nr_differ)
		return false;
	ubd_mutex_lock(io->queue, &m->lock);
	for (uint64_t r = io->offset / m->super.chunk; r <= last; r++)
		differ = differ || m->region[r].flags & R_DIFFER;
	ubd_mutex_unlock(io->queue, &m->lock);
	return differ;
}

static unsigned choose(struct mirror *m, const struct ubd_io *io, unsigned mask)
{
	unsigned i;

	if (legs_differ(m, io))
		return (unsigned)__builtin_ctz(mask);
	if (mask & ~m->slow)
		mask &= ~m->slow;
	if (m->read_policy == NEAREST)
		i = nearest(m, mask, io->offset);
	else
		i = nth_bit(mask, m->next_read++ % (unsigned)__builtin_popcount(mask));
	m->head[i] = io->offset + io->length;
	return i;
}

/* Its bytes come from another leg; one that has too many of these is left out. */
static void read_failed(struct ubd_queue *q, struct mirror *m, unsigned i, int err)
{
	bool enough, first;

	ubd_mutex_lock(q, &m->lock);
	first = !m->read_errors[i];
	enough = ++m->read_errors[i] >= READ_ERRORS;
	ubd_mutex_unlock(q, &m->lock);
	if (first)
		ubd_device_notice(m->dev,
				  "%s cannot be read (%s): another leg is, where there is one",
				  m->leg[i]->path, strerror(-err));
	if (enough && !legs_failed(q, m, m->in_sync & ~(1u << i), 1u << i, err))
		super_commit(q, m);
}

static int mirror_read(struct ubd_io *io, struct mirror *m)
{
	unsigned tried = 0, left;
	int ret = -EIO, err = 0;

	while ((left = m->in_sync & ~tried)) {
		unsigned i = choose(m, io, left);
		struct ubd_transfer t = backing_transfer(m->leg[i], io, 0, io->length, io->offset);

		ret = ubd_io_transfer(io, &t, 1);
		if (ret >= 0) {
			/* Where legs differ, what has been read must stay: from this leg. */
			if (tried && legs_differ(m, io))
				err = source_failed(io->queue, m, tried, 1u << i);
			return err ? err : ret;
		}
		tried |= 1u << i;
		read_failed(io->queue, m, i, ret);
	}
	return ret;
}

/* ---- Writing ------------------------------------------------------------------------------- */

struct write {
	struct mirror *m;
	struct ubd_io *io;
	uint64_t first, last; /* regions */
	unsigned failed;
	int err;
};

/* Count as a writer of the regions; their bits are durable when this returns 0. */
static int begin(struct write *w)
{
	struct ubd_queue *q = w->io->queue;
	struct mirror *m = w->m;
	bool durable = true;

	ubd_mutex_lock(q, &m->lock);
	for (uint64_t i = w->first; i <= w->last; i++) {
		struct region *r = &m->region[i];
		const struct progress *p = &m->page[i / PAGE_BITS];

		while (m->copying == i + 1)
			ubd_cond_wait(q, &m->turn, &m->lock);
		r->writers++;
		if (!(r->flags & R_DIRTY)) {
			map_set(m, i, true);
			m->nr_dirty++;
		}
		r->flags |= R_DIRTY | R_USED;
		durable = durable && p->durable == p->changed;
	}
	ubd_mutex_unlock(q, &m->lock);
	return durable ? 0 : map_commit(q, m, w->first / PAGE_BITS, w->last / PAGE_BITS);
}

/* After an error nobody knows what each leg holds: copy it. */
static void mark_different(const struct write *w)
{
	ubd_mutex_lock(w->io->queue, &w->m->lock);
	for (uint64_t i = w->first; i <= w->last; i++)
		region_sync(w->m, i, R_SYNC | R_DIFFER);
	w->m->cursor_at = 0;
	ubd_mutex_unlock(w->io->queue, &w->m->lock);
}

/* Before the answer: that a leg is out has been noted on the others. */
static int end(struct write *w, int ret)
{
	struct ubd_queue *q = w->io->queue;
	struct mirror *m = w->m;
	bool noted;
	int err = 0;

	if (ret < 0)
		mark_different(w);
	ubd_mutex_lock(q, &m->lock);
	for (uint64_t i = w->first; i <= w->last; i++)
		m->region[i].writers--;
	noted = m->saved.durable == m->saved.changed;
	if (m->copying)
		ubd_cond_wake_all(q, &m->turn);
	if (m->idle)
		ubd_cond_wake_one(q, &m->work);
	ubd_mutex_unlock(q, &m->lock);
	if (!noted && ret >= 0)
		err = super_commit(q, m);
	if (err)
		mark_different(w);
	return err ? err : ret;
}

static void note(struct write *w, unsigned i, int ret)
{
	if (ret < 0) {
		w->failed |= 1u << i;
		w->err = ret;
	}
}

static void write_data(struct write *w, unsigned mask)
{
	struct ubd_transfer t[MIRROR_LEGS];
	unsigned n = 0;

	for (unsigned left = mask; left; left &= left - 1)
		t[n++] = backing_transfer(w->m->leg[__builtin_ctz(left)], w->io, 0, w->io->length,
					  w->io->offset);
	if (ubd_io_transfer(w->io, t, n) >= 0)
		return;
	/* Whose fault was it? One at a time. */
	for (unsigned i = 0; i < n; i++)
		note(w, nth_bit(mask, i), ubd_io_transfer(w->io, &t[i], 1));
}

/* Discarded bytes read as zeroes, so that the legs agree on them. */
static int zero_leg(struct ubd_queue *q, unsigned i, void *arg)
{
	struct write *w = arg;
	const struct ubd_io *io = w->io;
	const struct backing *b = w->m->leg[i];
	int ret = backing_zero(b, q, io->offset, io->length, !(io->flags & UBD_IO_NO_UNMAP));

	if (!ret && io->flags & UBD_IO_FUA)
		ret = backing_flush(b, q);
	note(w, i, ret);
	return 0;
}

static int mirror_write(struct ubd_io *io, struct mirror *m)
{
	struct write w = {
		.m = m,
		.io = io,
		.first = io->offset / m->super.chunk,
		.last = (io->offset + io->length - 1) / m->super.chunk,
	};
	unsigned mask;
	int ret;

	if (!io->length)
		return 0;
	ret = begin(&w);
	mask = m->active;
	if (!ret && io->op == UBD_WRITE)
		write_data(&w, mask);
	else if (!ret)
		legs_each(io->queue, mask, zero_leg, &w);
	if (w.failed)
		ret = w.err == -EOPNOTSUPP ? w.err
					   : legs_failed(io->queue, m, mask, w.failed, w.err);
	return end(&w, ret ? ret : (int)io->length);
}

static int mirror_flush(struct ubd_io *io, struct mirror *m)
{
	int ret = m->read_only ? 0 : legs_flush(io->queue, m, m->active);

	return ret ? ret : super_commit(io->queue, m);
}

static int mirror_handle(struct ubd_io *io, void *self)
{
	switch (io->op) {
	case UBD_READ:
		return mirror_read(io, self);
	case UBD_WRITE:
	case UBD_DISCARD:
	case UBD_WRITE_ZEROES:
		return mirror_write(io, self);
	case UBD_FLUSH:
		return mirror_flush(io, self);
	default:
		return -EOPNOTSUPP;
	}
}

static void mirror_status(void *self, struct ubd_status *out)
{
	static const char *const words[] = {"out", "rebuilding", "in sync"};
	const struct mirror *m = self;
	uint64_t left = m->nr_sync, total = m->sync_total;

	for (unsigned i = 0; i < m->super.legs; i++) {
		unsigned state = atomic_load(&m->super.state[i]);
		char name[16];

		snprintf(name, sizeof(name), "leg_%u", i);
		ubd_status_text(out, name, "%s, %s", words[state],
				m->leg[i] ? m->leg[i]->path : "not here");
	}
	ubd_status_number(out, "regions_dirty", m->nr_dirty);
	ubd_status_number(out, "regions_to_copy", left);
	if (left && total >= left)
		ubd_status_text(out, "resync", "%llu %%",
				(unsigned long long)((total - left) * 100 / total));
}

/* ---- The device ---------------------------------------------------------------------------- */

static void release(struct mirror *m)
{
	for (unsigned i = 0; i < MIRROR_LEGS; i++)
		free(m->out[i]);
	free(m->piece);
	free(m->map);
	free(m->region);
	legs_close(&m->legs);
}

static int prepare(struct mirror *m)
{
	int ret = posix_memalign((void **)&m->piece, META_BLOCK, PIECE);

	for (unsigned i = 0; i < MIRROR_LEGS && !ret; i++)
		ret = posix_memalign((void **)&m->out[i], META_BLOCK, META_BLOCK);
	return -ret;
}

/* The legs that --write-mostly names. */
static int find_slow(struct mirror *m)
{
	for (size_t k = 0; k < m->write_mostly.count; k++) {
		unsigned i = 0;

		while (i < m->super.legs &&
		       (!m->leg[i] || strcmp(m->leg[i]->path, m->write_mostly.items[k]) != 0))
			i++;
		if (i == m->super.legs)
			return ubd_device_fail(m->dev, -EINVAL,
					       "--write-mostly %s: it is not among the legs named",
					       m->write_mostly.items[k]);
		m->slow |= 1u << i;
	}
	return 0;
}

static int mirror_open(struct ubd_device *dev, void *self)
{
	struct mirror *m = self;
	struct ubd_limits *l = ubd_device_limits(dev);
	int ret;

	m->dev = dev;
	m->read_only = ubd_device_read_only(dev);
	if (m->paths.count > MIRROR_LEGS || (m->create && m->paths.count < 2))
		return ubd_device_fail(dev, -EINVAL, "%zu legs: a mirror has 2 to %u",
				       m->paths.count, MIRROR_LEGS);
	ret = legs_open(&m->legs, dev,
			&(struct legs_request){.paths = &m->paths, .direct = m->direct});
	if (ret)
		return ret;
	legs_limits(m->legs.leg, m->legs.count, l);
	if (l->logical_block > META_BLOCK)
		ret = ubd_device_fail(dev, -EINVAL, "legs with blocks of %u bytes cannot be used",
				      l->logical_block);
	if (!ret)
		ret = prepare(m);
	if (!ret)
		ret = assemble(m);
	if (!ret)
		ret = find_slow(m);
	if (ret)
		release(m);
	l->size = m->super.size;
	l->max_discard = l->max_discard ? l->max_write_zeroes : 0;
	return ret;
}

static void mirror_close(struct ubd_device *dev, void *self)
{
	(void)dev;
	mirror_settle(self);
	release(self);
}

static int mirror_queue_open(struct ubd_queue *q, void *self)
{
	const struct mirror *m = self;

	return ubd_queue_index(q) || m->read_only ? 0 : ubd_spawn(q, mirror_worker, self);
}

static void mirror_queue_close(struct ubd_queue *q, void *self)
{
	struct mirror *m = self;

	if (!ubd_queue_index(q))
		ubd_cond_wake_all(q, &m->work);
}

static const struct ubd_option mirror_options[] = {
	{"leg", UBD_PATHS, offsetof(struct mirror, paths), "files or block devices",
	 .required = true, .positional = true},
	{"create", UBD_BOOL, offsetof(struct mirror, create),
	 "make a new mirror; what the legs hold is lost"},
	{"rebuild", UBD_BOOL, offsetof(struct mirror, rebuild),
	 "bring stale legs up to date, make new ones legs"},
	{"degraded", UBD_BOOL, offsetof(struct mirror, degraded),
	 "go on without legs that are not named"},
	{"read-policy", UBD_CHOICE, offsetof(struct mirror, read_policy),
	 "which leg is read: each in turn, or the one that was last read nearby",
	 .fallback = "round-robin", .choices = "round-robin|nearest"},
	{"write-mostly", UBD_PATHS, offsetof(struct mirror, write_mostly),
	 "a leg that is read only when there is no other"},
	{"bitmap-chunk", UBD_SIZE, offsetof(struct mirror, chunk),
	 "with --create: bytes that a bit stands for", .fallback = "16M", .min = META_BLOCK,
	 .max = 1ull << 40},
	{"bitmap-delay", UBD_UINT, offsetof(struct mirror, delay),
	 "milliseconds that a region is at rest before its bit is cleared", .metavar = "MS",
	 .fallback = "5000", .min = 1, .max = 3600000},
	{"resync-rate", UBD_SIZE, offsetof(struct mirror, rate),
	 "bytes per second copied to legs that lack them; 0: as fast as it goes",
	 .fallback = "200M"},
	{"retry", UBD_UINT, offsetof(struct mirror, retry),
	 "milliseconds before a leg that failed is tried again, longer each time; 0: never",
	 .metavar = "MS", .fallback = "10000", .max = 3600000},
	{"direct", UBD_CHOICE, offsetof(struct mirror, direct),
	 "go past the page cache (O_DIRECT); auto: where that works", .fallback = "auto",
	 .choices = "auto|on|off"},
	{0},
};

const struct ubd_target target_mirror = {
	.api = UBD_TARGET_API,
	.name = "mirror",
	.summary = "two or more files or block devices that hold the same (RAID-1)",
	.options = mirror_options,
	.size = sizeof(struct mirror),
	.open = mirror_open,
	.close = mirror_close,
	.handle = mirror_handle,
	.queue_open = mirror_queue_open,
	.queue_close = mirror_queue_close,
	.status = mirror_status,
};
