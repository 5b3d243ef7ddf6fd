/* SPDX-License-Identifier: MIT */
/* What a mirror keeps on its legs: one block, in two places that take turns. */
#define _GNU_SOURCE
#include "mirror.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <zlib.h>

#define MAGIC "UBDMIRR"
#define VERSION 2
#define REGION_MIN (1ull << 20)
#define ALONE (1u << 20) /* events to be ahead by after a start without a leg */

_Static_assert(sizeof(struct record) == BLOCK, "a record is one block");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a record is kept as it is in memory");

#define fail(m, ...) ubd_device_fail((m)->dev, -EINVAL, __VA_ARGS__)

/* ---- Writing ------------------------------------------------------------------------------- */

static uint32_t checksum(const struct record *r)
{
	return (uint32_t)crc32(0, (const Bytef *)r, offsetof(struct record, crc));
}

int put_record(struct ubd_queue *q, unsigned i, void *mirror)
{
	struct mirror *m = mirror;
	struct record *r = &m->out[i];
	ssize_t n;

	r->slot = i;
	r->crc = checksum(r);
	n = ubd_pwrite(q, m->leg[i]->fd, r, BLOCK, (m->place[i] ^ 1u) * BLOCK, UBD_RW_FUA);
	m->place[i] ^= n == BLOCK;
	return n == BLOCK ? 0 : n < 0 ? (int)n : -EIO;
}

/* A leg that fails while it is told that another has failed makes for one more turn. */
int commit(struct ubd_queue *q, struct mirror *m, uint64_t want)
{
	uint64_t seq, failed;
	unsigned mask;
	int ret = 0;

	if (m->durable >= want || ubd_device_read_only(m->dev))
		return 0;
	ubd_mutex_lock(q, &m->commit);
	while (!ret && (m->durable < want || m->durable < m->dropped)) {
		ubd_mutex_lock(q, &m->lock);
		seq = m->changed;
		mask = m->rec.active;
		m->rec.events++;
		for_each_leg(i, mask)
			m->out[i] = m->rec;
		ubd_mutex_unlock(q, &m->lock);
		ret = legs_each(q, mask, put_record, m, &failed);
		if (!ret)
			m->durable = seq;
		else
			ret = drop_legs(q, m, ~(unsigned)failed, (unsigned)failed, ret);
	}
	ubd_mutex_unlock(q, &m->commit);
	ubd_cond_wake_one(q, &m->work);
	return ret;
}

int drop_legs(struct ubd_queue *q, struct mirror *m, unsigned good, unsigned failed, int err)
{
	bool others;

	ubd_mutex_lock(q, &m->lock);
	others = m->rec.in_sync & good;
	failed &= others ? m->rec.active : 0;
	m->rec.active &= ~failed;
	m->rec.in_sync &= ~failed;
	if (failed)
		m->dropped = ++m->changed;
	ubd_mutex_unlock(q, &m->lock);
	for_each_leg(i, failed)
		ubd_device_notice(m->dev,
				  "%s failed (%s) and is left out of the mirror; the I/O goes on "
				  "with %d in sync",
				  m->leg[i]->path, strerror(-err),
				  __builtin_popcount(m->rec.in_sync));
	return others ? 0 : err;
}

void region_mark(struct mirror *m, uint64_t nr, bool sync)
{
	struct region *r = &m->region[nr];

	if (!r->since) {
		r->since = ++m->changed;
		m->rec.map[nr / 8] |= (uint8_t)(1u << nr % 8);
		m->nr_dirty++;
	}
	if (!sync)
		return;
	m->nr_sync += !r->sync;
	r->sync = true;
	m->pos = 0;
}

/* ---- Putting together ---------------------------------------------------------------------- */

static bool valid(const struct record *r)
{
	return !memcmp(r->magic, MAGIC, sizeof(r->magic)) && r->crc == checksum(r) &&
	       (r->version != VERSION ||
		(r->slots <= MIRROR_LEGS && r->slot < r->slots && r->active >> r->slot & 1 &&
		 r->size && r->chunk >= BLOCK && (r->size - 1) / r->chunk < REGIONS));
}

/* The newest record of the nth leg, by name, into out[n]. */
static int read_record(struct mirror *m, unsigned n)
{
	const struct backing *b = &m->legs.leg[n];
	struct record *r = m->piece, *best = &m->out[n];

	for (unsigned i = 0; i < 2; i++) {
		if (pread(b->fd, r, BLOCK, i * BLOCK) != BLOCK || !valid(r) ||
		    r->events <= best->events)
			continue;
		if (r->version != VERSION)
			return fail(m, "%s: the mirror's version %u is not known to this ubd",
				    b->path, r->version);
		*best = *r;
		best->place = i;
	}
	return 0;
}

/* What a new mirror is like, but for its legs. */
static int make(struct mirror *m)
{
	uint64_t smallest = ubd_device_limits(m->dev)->size;
	struct record *r = &m->rec;
	const char *why = NULL;

	*r = (struct record){.magic = MAGIC, .version = VERSION};
	r->size = smallest < DATA_BEGIN + BLOCK ? BLOCK : (smallest - DATA_BEGIN) / BLOCK * BLOCK;
	r->chunk = m->chunk ? m->chunk : REGION_MIN;
	while (!m->chunk && (r->size - 1) / r->chunk >= REGIONS)
		r->chunk *= 2;
	if (ubd_device_read_only(m->dev))
		why = "it would be read-only";
	else if (r->chunk & (r->chunk - 1) || r->chunk < BLOCK)
		why = "--bitmap-chunk must be a power of two of at least 4K";
	else if ((r->size - 1) / r->chunk >= REGIONS)
		why = "a larger --bitmap-chunk is needed";
	if (why)
		return fail(m, "the mirror cannot be made: %s", why);
	return getrandom(r->uuid, sizeof(r->uuid), 0) < 0 ? -errno : 0;
}

/* Why a leg that has the record s cannot be taken; NULL: it can. best: of the latest events. */
static const char *why_not(const struct mirror *m, const struct record *s,
			   const struct record *best)
{
	bool active = best->active >> s->slot & 1;

	if (!s->events)
		return m->create || m->rebuild ? NULL
					       : "is not a leg of the mirror: give --rebuild to "
						 "make it one (what it holds is lost)";
	if (m->create)
		return "is a leg of a mirror already: erase its first 8K to use it for a new one";
	if (memcmp(s->uuid, best->uuid, sizeof(s->uuid)) != 0)
		return "belongs to another mirror than the rest";
	if (s->slot >= best->slots || s->id[s->slot] != best->id[s->slot])
		return "has been replaced in this mirror: erase its first 8K to use it again";
	if (m->leg[s->slot])
		return "is the same leg of the mirror as another: one is a copy";
	/* Fewer events and not out: the last record had not come to it yet. */
	if (s->in_sync >> s->slot & 1 && !(s->active >> best->slot & 1) &&
	    (!active || s->events == best->events))
		return "and another leg were each written to without the other: leave one out, or "
		       "erase its first 8K and --rebuild it";
	if (!active && !m->rebuild)
		return "is stale, the mirror was written to without it: leave it out, or give "
		       "--rebuild to copy to it what it lacks";
	return NULL;
}

/* The nth leg, by name. One that is new gets the first slot that is free. */
static int take(struct mirror *m, unsigned n, const struct record *best)
{
	struct backing *b = &m->legs.leg[n];
	const struct record *s = &m->out[n];
	unsigned slot = s->events ? s->slot : (unsigned)__builtin_ctz(~m->here);
	const char *why = why_not(m, s, best);

	if (!why && b->size < DATA_BEGIN + m->rec.size)
		why = "is too small for a leg of this mirror";
	if (why)
		return fail(m, "%s %s", b->path, why);
	b->start = DATA_BEGIN;
	b->size = m->rec.size;
	m->leg[slot] = b;
	m->place[slot] = (uint8_t)s->place;
	m->here |= 1u << slot;
	m->rec.active |= 1u << slot;
	if (s->events)
		return 0;
	m->rec.in_sync &= ~(1u << slot);
	m->rec.in_sync |= (unsigned)m->create << slot;
	m->rec.slots = slot < m->rec.slots ? m->rec.slots : slot + 1;
	return getrandom(&m->rec.id[slot], sizeof(m->rec.id[slot]), 0) < 0 ? -errno : 0;
}

/* Of all that the record speaks of go on with those that are here. */
static int leave_out_missing(struct mirror *m)
{
	unsigned missing = m->rec.in_sync & ~m->here;

	/* It may have had a record or two that no other got. */
	m->rec.events += m->rec.active & ~m->here ? ALONE : 0;
	m->rec.active &= m->here;
	m->rec.in_sync &= m->here;
	if (!m->rec.in_sync)
		return fail(m, "no leg that is up to date is among those named");
	if (missing && !m->degraded)
		return fail(m,
			    "leg %d of the mirror's %u is missing: name it as well, or give "
			    "--degraded to go on without it",
			    __builtin_ctz(missing), m->rec.slots);
	return 0;
}

int assemble(struct mirror *m)
{
	const struct record *best = m->out;
	bool fresh = false;
	int ret = 0;

	memset(m->out, 0, MIRROR_LEGS * sizeof(*m->out));
	for (unsigned n = 0; n < m->legs.count && !ret; n++) {
		ret = read_record(m, n);
		best = m->out[n].events > best->events ? &m->out[n] : best;
		fresh = fresh || !m->out[n].events;
	}
	m->rec = *best;
	if (!ret && m->create)
		ret = make(m);
	else if (!ret && !best->events)
		ret = fail(m, "there is no mirror on %s%s: give --create to make one",
			   m->legs.leg[0].path, m->legs.count > 1 ? " and the others" : "");
	/* Those without a record take what the others leave. */
	for (unsigned k = 0; k < 2 * m->legs.count && !ret; k++)
		if ((k < m->legs.count) == (m->out[k % m->legs.count].events != 0))
			ret = take(m, k % m->legs.count, best);
	ret = ret ?: leave_out_missing(m);
	if (ret)
		return ret;
	/* What the bits ask for. After a crash a leg is better by its place only. */
	m->regions = (m->rec.size - 1) / m->rec.chunk + 1;
	m->region = calloc(m->regions, sizeof(*m->region));
	for (uint64_t r = 0; m->region && r < m->regions; r++)
		if (fresh || m->rec.map[r / 8] >> r % 8 & 1)
			region_mark(m, r, true);
	m->differ = m->nr_sync;
	m->changed++;
	return m->region ? 0 : -ENOMEM;
}
