/* SPDX-License-Identifier: MIT */
/* mirror: RAID-1 over files or block devices, with a write-intent bitmap. */
#include "mirror.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../targets.h"

#define READ_ERRORS 16 /* that a leg may have before it is left out */

/* The regions that a request touches; a FLUSH, wherever it says it is, none. */
#define for_each_region(i, m, io)                        \
	for (uint64_t i = (io)->offset / (m)->rec.chunk; \
	     (io)->length && i * (m)->rec.chunk < (io)->offset + (io)->length; i++)

/* All that a request is for one leg. */
static int leg_io(struct ubd_queue *q, unsigned i, void *request)
{
	struct ubd_io *io = request, zero = *io;
	const struct mirror *m = ubd_queue_data(io->queue);
	struct ubd_transfer t = backing_transfer(m->leg[i], io, 0, io->length, io->offset);
	ssize_t n;

	switch (io->op) {
	case UBD_READ:
	case UBD_WRITE:
		return ubd_io_transfer(io, &t, 1);
	case MIRROR_FETCH:
	case MIRROR_COPY:
		n = io->op == MIRROR_FETCH ? ubd_pread(q, t.fd, m->buf->piece, t.len, t.pos)
					   : ubd_pwrite(q, t.fd, m->buf->piece, t.len, t.pos, 0);
		return n == t.len ? 0 : n < 0 ? (int)n : -EIO;
	case UBD_DISCARD:
		/* Discarded bytes read as zeroes, so that the legs agree on them. */
		zero.op = UBD_WRITE_ZEROES;
	}
	return backing_apply(m->leg[i], &zero, io->offset, io->length);
}

/* ---- Reading ------------------------------------------------------------------------------- */

static bool legs_differ(struct mirror *m, const struct ubd_io *io)
{
	for_each_region(i, m, io)
		if (m->nr_sync && m->region[i].state == DIFFERENT)
			return true;
	return false;
}

/* Of the legs in mask the one read longest ago, or nearby; where they differ always the first. */
static unsigned choose(struct mirror *m, const struct ubd_io *io, unsigned mask)
{
	uint64_t least = UINT64_MAX;
	unsigned best = (unsigned)__builtin_ctz(mask);

	if (legs_differ(m, io))
		return best;
	mask = mask & ~m->slow ?: mask;
	for_each_leg(i, mask) {
		uint64_t last = m->last[i], at = io->offset;
		uint64_t far = !m->nearest ? last : last > at ? last - at : at - last;

		if (far < least) {
			least = far;
			best = i;
		}
	}
	m->last[best] = m->nearest ? io->offset + io->length : ++m->reads;
	return best;
}

/*
 * One leg, the request's note. Those that could not be read are left out if it was once too often,
 * or if legs differ here: then what has been read must stay.
 */
static int read_leg(struct ubd_io *io, struct mirror *m)
{
	unsigned tried = 0, bad = 0, left;
	int ret = -EIO;

	/* The first may have been tried: mirror_handle() did. */
	for (int err = io->error; ret < 0 && (left = m->rec.in_sync & ~tried); err = 0) {
		io->note = err ? io->note : choose(m, io, left);
		ret = err ?: leg_io(io->queue, io->note, io);
		tried |= (unsigned)(ret < 0) << io->note;
		if (ret < 0 && !m->read_errors[io->note]++)
			ubd_device_notice(m->dev, "%s cannot be read (%s): another leg is, if any",
					  m->leg[io->note]->path, strerror(-ret));
	}
	if (ret < 0)
		return ret;
	for_each_leg(i, tried)
		if (m->read_errors[i] >= READ_ERRORS || legs_differ(m, io))
			bad |= 1u << i;
	return bad ? drop_legs(io->queue, m, 1u << io->note, bad, -EIO) : 0;
}

/* ---- Writing ------------------------------------------------------------------------------- */

/* Count as a writer of the regions; their bits are durable when this returns 0. */
static int begin(const struct ubd_io *io, struct mirror *m)
{
	uint64_t want = 0;

	ubd_mutex_lock(io->queue, &m->lock);
	for_each_region(i, m, io) {
		struct region *r = &m->region[i];

		while (m->copying == r)
			ubd_cond_wait(io->queue, &m->news, &m->lock);
		r->writers++;
		if (r->state < DIRTY)
			region_set(m, i, DIRTY);
		want = r->since > want ? r->since : want;
	}
	ubd_mutex_unlock(io->queue, &m->lock);
	return commit(io->queue, m, want);
}

/* After an error, the note of a write, nobody knows what each leg holds: copy it. */
static void mirror_finished(struct ubd_io *io, void *self)
{
	struct mirror *m = self;

	if (io->op == UBD_READ)
		return;
	ubd_mutex_lock(io->queue, &m->lock);
	for_each_region(i, m, io) {
		m->region[i].writers--;
		if (io->note)
			region_set(m, i, DIFFERENT);
	}
	if (io->note || m->copying)
		ubd_cond_wake_all(io->queue, &m->news);
	ubd_mutex_unlock(io->queue, &m->lock);
}

/* One leg after the other with a request's data, else all at once; those that fail are left out. */
static int on_legs(struct ubd_io *io, struct mirror *m, unsigned mask)
{
	uint64_t failed;
	int ret = legs_each(io->op == UBD_WRITE ? NULL : io->queue, mask, leg_io, io, &failed);

	return ret && ret != -EOPNOTSUPP ? drop_legs(io->queue, m, ~failed, failed, ret) : ret;
}

int mirror_write(struct ubd_io *io, struct mirror *m)
{
	struct ubd_transfer t[MIRROR_LEGS];
	int ret = io->error ? 0 : begin(io, m);
	unsigned mask = m->rec.active, n = 0;

	for_each_leg(i, mask)
		t[n++] = backing_transfer(m->leg[i], io, 0, io->length, io->offset);
	/* Of the end of what the driver finishes we hear late: not while a copy may wait for it. */
	if (!ret && io->op == UBD_WRITE && !io->error && m->durable >= m->dropped && !m->nr_sync)
		return ubd_io_finish(io, t, n);
	/* Data to all in one group; if that failed, whose fault was it? */
	if (!ret && (io->op != UBD_WRITE || io->error || ubd_io_transfer(io, t, n) < 0))
		ret = on_legs(io, m, mask);
	io->note = ret != 0;
	return ret;
}

int mirror_copy(struct ubd_io *io, struct mirror *m)
{
	int ret = read_leg(io, m);

	if (ret)
		return ret;
	io->op = MIRROR_COPY;
	return on_legs(io, m,
		       m->rec.active & ~(legs_differ(m, io) ? 1u << io->note : m->rec.in_sync));
}

static int mirror_handle(struct ubd_io *io, void *self)
{
	struct mirror *m = self;
	struct ubd_transfer t;
	int ret;

	/* First the leg: one that was not chosen because another is out waits for that to be
	 * durable. */
	if (io->op == UBD_READ && !io->error) {
		io->note = choose(m, io, m->rec.in_sync);
		t = backing_transfer(m->leg[io->note], io, 0, io->length, io->offset);
		if (m->durable >= m->dropped)
			return ubd_io_finish(io, &t, 1);
	}
	ret = io->op == UBD_READ ? read_leg(io, m) : mirror_write(io, m);
	return ret ?: commit(io->queue, m, m->dropped) ?: (int)io->length;
}

static void mirror_status(void *self, struct ubd_status *out)
{
	static const char *const states[] = {"out", "rebuilding", "in sync"};
	const struct mirror *m = self;

	for (unsigned i = 0; i < m->rec.slots; i++) {
		unsigned state = (m->rec.active >> i & 1) + (m->rec.in_sync >> i & 1);
		char name[] = {'l', 'e', 'g', '_', (char)('0' + i), '\0'};

		ubd_status_text(out, name, "%s, %s", states[state],
				m->leg[i] ? m->leg[i]->path : "not here");
	}
	ubd_status_number(out, "regions_dirty", m->nr_dirty);
	ubd_status_number(out, "regions_to_copy", m->nr_sync);
	if (m->nr_sync)
		ubd_status_text(out, "resync", "%u %%", (unsigned)(m->pos * 100 / m->rec.size));
}

/* ---- The device ---------------------------------------------------------------------------- */

static int set_slow(struct mirror *m, const char *path)
{
	unsigned found = 0;

	for_each_leg(i, m->here)
		found |= (unsigned)!strcmp(m->leg[i]->path, path) << i;
	m->slow |= found;
	return found || m->legs.some ? 0 : fail(m, "--write-mostly %s: not among the legs", path);
}

static void mirror_close(struct ubd_device *dev, void *self)
{
	struct mirror *m = self;

	(void)dev;
	free(m->buf);
	legs_close(&m->legs);
}

static int mirror_open(struct ubd_device *dev, void *self)
{
	struct mirror *m = self;
	struct ubd_limits *l = ubd_device_limits(dev);
	int ret;

	m->dev = dev;
	m->legs.some = ubd_device_takes_over(dev);
	m->create = m->create && !m->legs.some;
	if (m->legs.paths.count > MIRROR_LEGS || (m->create && m->legs.paths.count < 2))
		return fail(m, "%zu legs: a mirror has 2 to %u", m->legs.paths.count, MIRROR_LEGS);
	ret = legs_open(&m->legs, dev, NULL, NULL);
	if (!ret && l->logical_block > BLOCK)
		ret = fail(m, "legs with blocks of %u bytes cannot be used", l->logical_block);
	ret = ret ?: -posix_memalign((void **)&m->buf, BLOCK, sizeof(*m->buf));
	ret = ret ?: assemble(m);
	for (size_t k = 0; !ret && k < m->write_mostly.count; k++)
		ret = set_slow(m, m->write_mostly.items[k]);
	if (ret)
		mirror_close(dev, m);
	l->size = m->rec.size;
	l->max_discard = l->max_discard ? l->max_write_zeroes : 0;
	return ret;
}

static int mirror_queue_open(struct ubd_queue *q, void *self)
{
	struct mirror *m = self;

	ubd_queue_set_data(q, m);
	if (ubd_queue_index(q) || ubd_device_read_only(m->dev))
		return 0;
	return commit(q, m, m->changed) ?: ubd_spawn(q, mirror_worker, m);
}

static void mirror_queue_close(struct ubd_queue *q, void *self)
{
	ubd_cond_wake_all(q, &((struct mirror *)self)->news);
}

/* clang-format off */
#define AT(member) offsetof(struct mirror, member)
static const struct ubd_option mirror_options[] = {
	LEGS_OPTIONS(struct mirror, legs),
	{"create", UBD_BOOL, AT(create), "make a new mirror; what the legs hold is lost"},
	{"rebuild", UBD_BOOL, AT(rebuild), "bring stale legs up to date, make new ones legs"},
	{"degraded", UBD_BOOL, AT(degraded), "go on without legs that are not named"},
	{"read-policy", UBD_CHOICE, AT(nearest), "which leg is read: each in turn, or the one last read nearby",
	 .fallback = "round-robin", .choices = "round-robin|nearest"},
	{"write-mostly", UBD_PATHS, AT(write_mostly), "a leg that is read only when there is no other"},
	{"bitmap-chunk", UBD_SIZE, AT(chunk), "with --create: bytes that a bit stands for; 0: by size", .fallback = "0", .max = 1ull << 40},
	{"bitmap-delay", UBD_UINT, AT(delay), "milliseconds that a region is at rest before its bit is cleared",
	 .metavar = "MS", .fallback = "5000", .min = 1, .max = 3600000},
	{"resync-rate", UBD_SIZE, AT(rate), "bytes per second copied to legs that lack them; 0: no limit",
	 .fallback = "200M"},
	{"retry", UBD_UINT, AT(retry), "milliseconds before a leg that failed is tried again, longer each time; 0: never",
	 .metavar = "MS", .fallback = "10000", .max = 3600000},
	{0},
};

const struct ubd_target target_mirror = {
	.api = UBD_TARGET_API, .flags = UBD_TARGET_RETRIES, .name = "mirror",
	.summary = "two or more files or block devices that hold the same (RAID-1)",
	.options = mirror_options, .size = sizeof(struct mirror), .status = mirror_status,
	.open = mirror_open, .close = mirror_close, .handle = mirror_handle, .finished = mirror_finished,
	.queue_open = mirror_queue_open, .queue_close = mirror_queue_close,
};
