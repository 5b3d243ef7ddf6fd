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

/* The regions that a request touches. */
#define for_each_region(r, m, io)                        \
	for (uint64_t r = (io)->offset / (m)->rec.chunk; \
	     r * (m)->rec.chunk < (io)->offset + (io)->length; r++)

static struct ubd_transfer transfer(const struct mirror *m, const struct ubd_io *io, unsigned leg)
{
	return backing_transfer(m->leg[leg], io, 0, io->length, io->offset);
}

/* ---- Reading ------------------------------------------------------------------------------- */

static bool legs_differ(struct mirror *m, const struct ubd_io *io)
{
	bool differ = false;

	if (!m->differ)
		return false;
	ubd_mutex_lock(io->queue, &m->lock);
	for_each_region(r, m, io)
		differ = differ || m->region[r].sync;
	ubd_mutex_unlock(io->queue, &m->lock);
	return differ;
}

static unsigned choose(struct mirror *m, const struct ubd_io *io, unsigned mask)
{
	uint64_t least = UINT64_MAX;
	unsigned best = 0, turn;

	if (legs_differ(m, io))
		return (unsigned)__builtin_ctz(mask);
	if (mask & ~m->slow)
		mask &= ~m->slow;
	turn = m->next_read++ % (unsigned)__builtin_popcount(mask);
	for_each_leg(i, mask) {
		uint64_t head = m->head[i], far = turn--; /* 0 for the one whose turn it is */

		if (m->read_policy == NEAREST)
			far = head > io->offset ? head - io->offset : io->offset - head;
		if (far < least) {
			least = far;
			best = i;
		}
	}
	m->head[best] = io->offset + io->length;
	return best;
}

/* Its bytes come from another leg; one that has too many of these is left out. */
static void read_failed(struct ubd_queue *q, struct mirror *m, unsigned i, int err)
{
	unsigned n = ++m->read_errors[i];

	if (n == 1)
		ubd_device_notice(m->dev,
				  "%s cannot be read (%s): another leg is, where there is one",
				  m->leg[i]->path, strerror(-err));
	if (n >= READ_ERRORS)
		drop_legs(q, m, ~(1u << i), 1u << i, err);
}

static int mirror_read(struct ubd_io *io, struct mirror *m)
{
	unsigned tried = 0, left, i;
	struct ubd_transfer t;
	int ret = -EIO, err;

	while ((left = m->rec.in_sync & ~tried)) {
		i = choose(m, io, left);
		t = transfer(m, io, i);
		ret = ubd_io_transfer(io, &t, 1);
		if (ret >= 0)
			break;
		tried |= 1u << i;
		read_failed(io->queue, m, i, ret);
	}
	if (ret < 0 || !tried || !legs_differ(m, io))
		return ret;
	/* Where legs differ, what has been read must stay: from this leg. */
	err = drop_legs(io->queue, m, 1u << i, tried, -EIO);
	if (!err)
		err = commit(io->queue, m, m->dropped);
	return err ? err : ret;
}

/* ---- Writing ------------------------------------------------------------------------------- */

/* Count as a writer of the regions; their bits are durable when this returns 0. */
static int begin(const struct ubd_io *io, struct mirror *m)
{
	uint64_t want = 0;

	ubd_mutex_lock(io->queue, &m->lock);
	for_each_region(i, m, io) {
		struct region *r = &m->region[i];

		while (m->copying == i + 1)
			ubd_cond_wait(io->queue, &m->turn, &m->lock);
		r->writers++;
		region_mark(m, i, false);
		want = r->since > want ? r->since : want;
	}
	ubd_mutex_unlock(io->queue, &m->lock);
	return commit(io->queue, m, want);
}

/*
 * After an error nobody knows what each leg holds: copy it. Before the answer, that a leg is out
 * has been noted on the others.
 */
static int end(const struct ubd_io *io, struct mirror *m, int ret)
{
	int err;

	ubd_mutex_lock(io->queue, &m->lock);
	for_each_region(i, m, io) {
		m->region[i].writers--;
		m->region[i].used = m->round;
		if (ret < 0)
			region_mark(m, i, true);
	}
	if (ret < 0) {
		m->differ = true;
		m->pos = 0;
	}
	if (m->copying)
		ubd_cond_wake_all(io->queue, &m->turn);
	ubd_cond_wake_one(io->queue, &m->work);
	ubd_mutex_unlock(io->queue, &m->lock);
	err = ret < 0 ? ret : commit(io->queue, m, m->dropped);
	return err ? err : ret;
}

struct write {
	struct mirror *m;
	struct ubd_io *io;
};

static int write_leg(struct ubd_queue *q, unsigned i, void *arg)
{
	const struct write *w = arg;
	struct ubd_transfer t = transfer(w->m, w->io, i);
	struct ubd_io zero = *w->io;

	(void)q;
	if (w->io->op == UBD_WRITE)
		return ubd_io_transfer(w->io, &t, 1);
	/* Discarded bytes read as zeroes, so that the legs agree on them. */
	zero.op = UBD_WRITE_ZEROES;
	return backing_apply(w->m->leg[i], &zero, zero.offset, zero.length);
}

static int mirror_write(struct ubd_io *io, struct mirror *m)
{
	bool data = io->op == UBD_WRITE;
	struct ubd_transfer t[MIRROR_LEGS];
	unsigned mask, n = 0;
	uint64_t failed = 0;
	int ret = begin(io, m);

	if (ret)
		return end(io, m, ret);
	mask = m->rec.active;
	for_each_leg(i, mask)
		t[n++] = transfer(m, io, i);
	/* All at once; if some failed, whose fault was it? Then data one after the other. */
	if (!data || ubd_io_transfer(io, t, n) < 0)
		ret = legs_each(data ? NULL : io->queue, mask, write_leg, &(struct write){m, io},
				&failed);
	if (failed && ret != -EOPNOTSUPP)
		ret = drop_legs(io->queue, m, mask & ~(unsigned)failed, (unsigned)failed, ret);
	return end(io, m, ret ? ret : (int)io->length);
}

static int mirror_handle(struct ubd_io *io, void *self)
{
	struct mirror *m = self;

	switch (io->op) {
	case UBD_READ:
		return mirror_read(io, m);
	case UBD_WRITE:
	case UBD_DISCARD:
	case UBD_WRITE_ZEROES:
		return mirror_write(io, m);
	case UBD_FLUSH:
		return flush_legs(io->queue, m);
	default:
		return -EOPNOTSUPP;
	}
}

static void mirror_status(void *self, struct ubd_status *out)
{
	const struct mirror *m = self;
	uint64_t left = m->nr_sync, total = m->sync_total;

	for (unsigned i = 0; i < m->rec.slots; i++) {
		const char *state = m->rec.in_sync >> i & 1  ? "in sync"
				    : m->rec.active >> i & 1 ? "rebuilding"
							     : "out";
		char name[] = {'l', 'e', 'g', '_', (char)('0' + i), '\0'};

		ubd_status_text(out, name, "%s, %s", state,
				m->leg[i] ? m->leg[i]->path : "not here");
	}
	ubd_status_number(out, "regions_dirty", m->nr_dirty);
	ubd_status_number(out, "regions_to_copy", left);
	if (left && total >= left)
		ubd_status_text(out, "resync", "%llu %%",
				(unsigned long long)((total - left) * 100 / total));
}

/* ---- The device ---------------------------------------------------------------------------- */

/* The legs that --write-mostly names. */
static int find_slow(struct mirror *m)
{
	for (size_t k = 0; k < m->write_mostly.count; k++) {
		unsigned i = 0;

		while (i < m->rec.slots &&
		       (!m->leg[i] || strcmp(m->leg[i]->path, m->write_mostly.items[k]) != 0))
			i++;
		if (i == m->rec.slots)
			return ubd_device_fail(m->dev, -EINVAL,
					       "--write-mostly %s: it is not among the legs named",
					       m->write_mostly.items[k]);
		m->slow |= 1u << i;
	}
	return 0;
}

static void mirror_close(struct ubd_device *dev, void *self)
{
	struct mirror *m = self;

	(void)dev;
	free(m->out);
	free(m->region);
	legs_close(&m->legs);
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
	if (l->logical_block > BLOCK)
		ret = ubd_device_fail(dev, -EINVAL, "legs with blocks of %u bytes cannot be used",
				      l->logical_block);
	if (!ret)
		ret = -posix_memalign((void **)&m->out, BLOCK, MIRROR_LEGS * BLOCK + PIECE);
	m->piece = m->out ? m->out + MIRROR_LEGS : NULL;
	if (!ret)
		ret = assemble(m);
	if (!ret)
		ret = find_slow(m);
	if (ret)
		mirror_close(dev, m);
	l->size = m->rec.size;
	l->max_discard = l->max_discard ? l->max_write_zeroes : 0;
	return ret;
}

static int mirror_queue_open(struct ubd_queue *q, void *self)
{
	struct mirror *m = self;
	int ret;

	if (ubd_queue_index(q) || m->read_only)
		return 0;
	ret = commit(q, m, m->changed);
	return ret ? ret : ubd_spawn(q, mirror_worker, m);
}

static void mirror_queue_close(struct ubd_queue *q, void *self)
{
	struct mirror *m = self;

	if (ubd_queue_index(q))
		return;
	ubd_cond_wake_all(q, &m->work);
	clean(q, m, UINT32_MAX);
}

/* clang-format off */
#define AT(member) offsetof(struct mirror, member)
static const struct ubd_option mirror_options[] = {
	{"leg", UBD_PATHS, AT(paths), "files or block devices", .required = true, .positional = true},
	{"create", UBD_BOOL, AT(create), "make a new mirror; what the legs hold is lost"},
	{"rebuild", UBD_BOOL, AT(rebuild), "bring stale legs up to date, make new ones legs"},
	{"degraded", UBD_BOOL, AT(degraded), "go on without legs that are not named"},
	{"read-policy", UBD_CHOICE, AT(read_policy), "which leg is read: each in turn, or the one last read nearby",
	 .fallback = "round-robin", .choices = "round-robin|nearest"},
	{"write-mostly", UBD_PATHS, AT(write_mostly), "a leg that is read only when there is no other"},
	{"bitmap-chunk", UBD_SIZE, AT(chunk), "with --create: bytes that a bit stands for; 0: by size",
	 .fallback = "0", .max = 1ull << 40},
	{"bitmap-delay", UBD_UINT, AT(delay), "milliseconds that a region is at rest before its bit is cleared",
	 .metavar = "MS", .fallback = "5000", .min = 1, .max = 3600000},
	{"resync-rate", UBD_SIZE, AT(rate), "bytes per second copied to legs that lack them; 0: no limit",
	 .fallback = "200M"},
	{"retry", UBD_UINT, AT(retry), "milliseconds before a leg that failed is tried again, longer each time; 0: never",
	 .metavar = "MS", .fallback = "10000", .max = 3600000},
	{"direct", UBD_CHOICE, AT(direct), "go past the page cache (O_DIRECT); auto: where that works",
	 .fallback = "auto", .choices = "auto|on|off"},
	{0},
};

const struct ubd_target target_mirror = {
	.api = UBD_TARGET_API, .name = "mirror",
	.summary = "two or more files or block devices that hold the same (RAID-1)",
	.options = mirror_options, .size = sizeof(struct mirror), .status = mirror_status,
	.open = mirror_open, .close = mirror_close, .handle = mirror_handle,
	.queue_open = mirror_queue_open, .queue_close = mirror_queue_close,
};
