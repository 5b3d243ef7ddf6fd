/* SPDX-License-Identifier: MIT */
/* mirror: RAID-1 over files or block devices, with a write-intent bitmap. */
#include "mirror.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../targets.h"

#define READ_ERRORS 16 /* that a leg may have before it is left out */

enum { ROUND_ROBIN, NEAREST };

/* The regions that a request touches; a FLUSH, wherever it says it is, none. */
#define for_each_region(r, m, io)                        \
	for (uint64_t r = (io)->offset / (m)->rec.chunk; \
	     (io)->length && r * (m)->rec.chunk < (io)->offset + (io)->length; r++)

/* All that a request is for one leg. */
static int leg_io(struct ubd_queue *q, unsigned i, void *request)
{
	struct ubd_io *io = request, zero = *io;
	const struct mirror *m = ubd_queue_data(io->queue);
	const struct backing *b = m->leg[i];
	uint64_t pos = b->start + io->offset;
	struct ubd_transfer t;
	ssize_t n;

	switch (io->op) {
	case UBD_READ:
	case UBD_WRITE:
		t = backing_transfer(b, io, 0, io->length, io->offset);
		return ubd_io_transfer(io, &t, 1);
	case MIRROR_FETCH:
	case MIRROR_COPY:
		n = io->op == MIRROR_FETCH ? ubd_pread(q, b->fd, m->piece, io->length, pos)
					   : ubd_pwrite(q, b->fd, m->piece, io->length, pos, 0);
		return n == (ssize_t)io->length ? 0 : n < 0 ? (int)n : -EIO;
	case UBD_DISCARD:
		/* Discarded bytes read as zeroes, so that the legs agree on them. */
		zero.op = UBD_WRITE_ZEROES;
	}
	return backing_apply(b, &zero, io->offset, io->length);
}

/* ---- Reading ------------------------------------------------------------------------------- */

static bool legs_differ(struct mirror *m, const struct ubd_io *io)
{
	bool differ = false;

	if (m->differ)
		for_each_region(r, m, io)
			differ = differ || m->region[r].sync;
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

/*
 * Returns the leg that has been read, or -errno. Those that could not be are left out, before the
 * answer, if it was once too often, or if legs differ here: then what has been read must stay.
 */
static int read_leg(struct ubd_io *io, struct mirror *m)
{
	unsigned tried = 0, bad = 0, left, i = 0;
	int ret = -EIO;
	bool again;

	while (ret < 0 && (left = m->rec.in_sync & ~tried)) {
		/* The first has been tried: mirror_handle() did. */
		again = io->error && !tried;
		i = again ? io->note : choose(m, io, left);
		ret = again ? io->error : leg_io(io->queue, i, io);
		tried |= (unsigned)(ret < 0) << i;
		if (ret < 0 && !m->read_errors[i]++)
			ubd_device_notice(m->dev,
					  "%s cannot be read (%s): another leg is, where "
					  "there is one",
					  m->leg[i]->path, strerror(-ret));
	}
	if (ret < 0)
		return ret;
	for_each_leg(k, tried)
		if (m->read_errors[k] >= READ_ERRORS || legs_differ(m, io))
			bad |= 1u << k;
	ret = bad ? drop_legs(io->queue, m, 1u << i, bad, -EIO) : 0;
	ret = ret ?: commit(io->queue, m, m->dropped);
	return ret ?: (int)i;
}

/* ---- Writing ------------------------------------------------------------------------------- */

/*
 * Count as a writer of the regions; their bits are durable when this returns 0. A copier is the
 * only one, and others wait until it has ended.
 */
static int begin(const struct ubd_io *io, struct mirror *m)
{
	bool copier = io->op == MIRROR_COPY;
	uint64_t want = 0;

	ubd_mutex_lock(io->queue, &m->lock);
	for_each_region(i, m, io) {
		struct region *r = &m->region[i];

		if (copier)
			m->copying = i + 1;
		while (copier ? r->writers : m->copying == i + 1)
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
	bool copier = io->op == MIRROR_COPY;

	ubd_mutex_lock(io->queue, &m->lock);
	for_each_region(i, m, io) {
		m->region[i].writers--;
		m->region[i].used = m->round;
		if (ret && !copier) {
			region_mark(m, i, true);
			m->differ = true;
			ubd_cond_wake_one(io->queue, &m->work);
		}
	}
	if (m->copying)
		ubd_cond_wake_all(io->queue, &m->turn);
	if (copier)
		m->copying = 0;
	ubd_mutex_unlock(io->queue, &m->lock);
	return ret ?: commit(io->queue, m, m->dropped);
}

/* The copier's data; leaves in *mask the legs that lack it. */
static int fetch(struct ubd_io *io, struct mirror *m, unsigned *mask)
{
	int from;

	io->op = MIRROR_FETCH;
	from = read_leg(io, m);
	io->op = MIRROR_COPY;
	if (from < 0)
		return from;
	*mask = m->rec.active & ~(m->differ ? 1u << from : m->rec.in_sync);
	return 0;
}

int mirror_write(struct ubd_io *io, struct mirror *m)
{
	bool data = io->op == UBD_WRITE;
	struct ubd_transfer t[MIRROR_LEGS];
	unsigned mask, n = 0;
	uint64_t failed = 0;
	int ret = begin(io, m);

	mask = m->rec.active;
	if (!ret && io->op == MIRROR_COPY)
		ret = fetch(io, m, &mask);
	for_each_leg(i, mask)
		t[n++] = backing_transfer(m->leg[i], io, 0, io->length, io->offset);
	/* All at once; if some failed, whose fault was it? Then data one after the other. */
	if (!ret && (!data || ubd_io_transfer(io, t, n) < 0))
		ret = legs_each(data ? NULL : io->queue, mask, leg_io, io, &failed);
	if (failed && ret != -EOPNOTSUPP)
		ret = drop_legs(io->queue, m, ~(unsigned)failed, (unsigned)failed, ret);
	return end(io, m, ret);
}

static int mirror_handle(struct ubd_io *io, void *self)
{
	struct mirror *m = self;
	struct ubd_transfer t;
	int ret;

	if (io->op == UBD_READ && !io->error && m->durable >= m->dropped) {
		io->note = choose(m, io, m->rec.in_sync);
		t = backing_transfer(m->leg[io->note], io, 0, io->length, io->offset);
		return ubd_io_finish(io, &t, 1);
	}
	ret = io->op == UBD_READ ? read_leg(io, m) : mirror_write(io, m);
	return ret < 0 ? ret : (int)io->length;
}

static void mirror_status(void *self, struct ubd_status *out)
{
	const struct mirror *m = self;

	for (unsigned i = 0; i < m->rec.slots; i++) {
		const char *state = m->rec.in_sync >> i & 1  ? "in sync"
				    : m->rec.active >> i & 1 ? "rebuilding"
							     : "out";
		char name[] = {'l', 'e', 'g', '_', (char)('0' + i), '\0'};

		ubd_status_text(out, name, "%s, %s", state,
				m->leg[i] ? m->leg[i]->path : "not here");
	}
	ubd_status_number(out, "regions_dirty", m->nr_dirty);
	ubd_status_number(out, "regions_to_copy", m->nr_sync);
	if (m->nr_sync)
		ubd_status_text(out, "resync", "%u %%", (unsigned)(m->pos * 100 / m->rec.size));
}

/* ---- The device ---------------------------------------------------------------------------- */

/* The legs that --write-mostly names. */
static int find_slow(struct mirror *m)
{
	for (size_t k = 0; k < m->write_mostly.count; k++) {
		const char *name = m->write_mostly.items[k];
		unsigned named = 0;

		for_each_leg(i, m->here)
			named |= (unsigned)!strcmp(m->leg[i]->path, name) << i;
		m->slow |= named;
		if (!named)
			return ubd_device_fail(m->dev, -EINVAL,
					       "--write-mostly %s: it is not among the legs named",
					       name);
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
	m->create = m->create && !ubd_device_takes_over(dev);
	if (m->paths.count > MIRROR_LEGS || (m->create && m->paths.count < 2))
		return ubd_device_fail(dev, -EINVAL, "%zu legs: a mirror has 2 to %u",
				       m->paths.count, MIRROR_LEGS);
	ret = legs_open(&m->legs, dev,
			&(struct legs_request){.paths = &m->paths, .direct = m->direct});
	if (!ret && l->logical_block > BLOCK)
		ret = ubd_device_fail(dev, -EINVAL, "legs with blocks of %u bytes cannot be used",
				      l->logical_block);
	if (!ret)
		ret = -posix_memalign((void **)&m->out, BLOCK, MIRROR_LEGS * BLOCK + PIECE);
	m->piece = m->out ? m->out + MIRROR_LEGS : NULL;
	ret = ret ?: assemble(m);
	ret = ret ?: find_slow(m);
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
	struct mirror *m = self;

	if (ubd_queue_index(q))
		return;
	ubd_cond_wake_all(q, &m->work);
	settle(q, m, m->round + 1);
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
	.api = UBD_TARGET_API, .flags = UBD_TARGET_RETRIES, .name = "mirror",
	.summary = "two or more files or block devices that hold the same (RAID-1)",
	.options = mirror_options, .size = sizeof(struct mirror), .status = mirror_status,
	.open = mirror_open, .close = mirror_close, .handle = mirror_handle,
	.queue_open = mirror_queue_open, .queue_close = mirror_queue_close,
};
