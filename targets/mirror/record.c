/* SPDX-License-Identifier: MIT */
/* What a mirror keeps on its legs: one block, in two places that take turns. */
#include "mirror.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define MAGIC 0x5252494d444255ull /* "UBDMIRR" and a zero */
#define VERSION 3
#define REGION_MIN (1ull << 20)
/* Events to be ahead by after a start without a leg; one that was active counts twice. */
#define ALONE (1u << 20)

_Static_assert(sizeof(struct record) == BLOCK, "a record is one block");

/* ---- Writing ------------------------------------------------------------------------------- */

int put_record(struct ubd_queue *q, unsigned i, void *mirror)
{
	struct mirror *m = mirror;

	return backing_synced(m->leg[i],
			      copies_store(q, m->leg[i]->fd, &m->buf->out[i].copy, BLOCK));
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
		for_each_leg(i, mask) {
			m->rec.copy.sequence = m->buf->out[i].copy.sequence; /* its own */
			m->rec.slot = i;
			m->buf->out[i] = m->rec;
		}
		ubd_mutex_unlock(q, &m->lock);
		ret = legs_each(q, mask, put_record, m, &failed);
		m->durable = ret ? m->durable : seq;
		ret = ret ? drop_legs(q, m, ~failed, failed, ret) : 0;
	}
	ubd_mutex_unlock(q, &m->commit);
	ubd_cond_wake_all(q, &m->news);
	return ret;
}

int drop_legs(struct ubd_queue *q, struct mirror *m, uint64_t good, uint64_t failed, int err)
{
	bool others;

	ubd_mutex_lock(q, &m->lock);
	others = m->rec.in_sync & good;
	failed &= others ? m->rec.active : 0;
	/* First: who finds a leg out finds that this is not durable yet. */
	m->dropped = failed ? ++m->changed : m->dropped;
	m->rec.active &= ~failed;
	m->rec.in_sync &= ~failed;
	ubd_mutex_unlock(q, &m->lock);
	for_each_leg(i, failed)
		ubd_device_notice(
			m->dev, "%s failed (%s) and is left out of the mirror; %d are in sync",
			m->leg[i]->path, strerror(-err), __builtin_popcount(m->rec.in_sync));
	return others ? 0 : err;
}

void region_set(struct mirror *m, uint64_t nr, unsigned state)
{
	struct region *r = &m->region[nr];
	unsigned bit = 1u << nr % 8, bits = m->rec.map[nr / 8];

	if ((state == CLEAN) != (r->state == CLEAN))
		r->since = ++m->changed;
	m->rec.map[nr / 8] = (uint8_t)(state == CLEAN ? bits & ~bit : bits | bit);
	m->nr_dirty += (state > CLEAN) - (r->state > CLEAN);
	m->nr_sync += (state > DIRTY) - (r->state > DIRTY);
	r->state = state;
	/* Copying begins anew. */
	m->pos = state > DIRTY ? 0 : m->pos;
}

/* ---- Putting together ---------------------------------------------------------------------- */

static bool valid(const struct record *r)
{
	return r->copy.len == BLOCK && r->slots <= MIRROR_LEGS && r->slot < r->slots &&
	       r->active >> r->slot & 1 && r->size && r->chunk >= BLOCK &&
	       (r->size - 1) / r->chunk < REGIONS;
}

/* What a new mirror is like, but for its legs. */
static int make(struct mirror *m)
{
	uint64_t smallest = ubd_device_limits(m->dev)->size;
	struct record *r = &m->rec;

	*r = (struct record){.copy = {.magic = MAGIC, .len = BLOCK}, .version = VERSION};
	r->size = smallest < DATA_BEGIN + BLOCK ? BLOCK : (smallest - DATA_BEGIN) / BLOCK * BLOCK;
	r->chunk = m->chunk ? m->chunk : REGION_MIN;
	while (!m->chunk && (r->size - 1) / r->chunk >= REGIONS)
		r->chunk *= 2;
	if (ubd_device_read_only(m->dev))
		return fail(m, "a new mirror cannot be read-only");
	if (r->chunk & (r->chunk - 1) || r->chunk < BLOCK)
		return fail(m, "--bitmap-chunk must be a power of two of at least 4K");
	if ((r->size - 1) / r->chunk >= REGIONS)
		return fail(m, "a larger --bitmap-chunk is needed");
	return getrandom(r->uuid, sizeof(r->uuid), 0) < 0 ? -errno : 0;
}

/* Why leg b, with the record s or none, cannot be taken; NULL: it can. */
static const char *why_not(const struct mirror *m, const struct backing *b, const struct record *s)
{
	const struct record *best = &m->rec;
	bool out = s && !(best->active >> s->slot & 1);

	if (!s && !m->create && !m->rebuild)
		return "is not a leg of the mirror: give --rebuild to add it, its data is lost";
	if (s && m->create)
		return "is a leg of a mirror already: erase its first 8K to use it for a new one";
	if (s && memcmp(s->uuid, best->uuid, sizeof(s->uuid)) != 0)
		return "belongs to another mirror than the rest";
	if (s && (s->slot >= best->slots || s->id[s->slot] != best->id[s->slot]))
		return "has been replaced in this mirror: erase its first 8K to use it again";
	if (s && m->leg[s->slot])
		return "is the same leg of the mirror as another: one is a copy";
	/* Fewer events and not out: the last record had not come to it yet. */
	if (s && s->in_sync >> s->slot & 1 && !(s->active >> best->slot & 1) &&
	    (out || s->events == best->events))
		return "and another leg were each written to without the other: leave one out, or "
		       "erase its first 8K and --rebuild it";
	/* On taking over it would have been tried again: what it lacks is in the map. */
	if (out && !m->rebuild && !m->legs.some)
		return "is stale, the mirror was used without it: leave it out, or give --rebuild";
	return b->size < DATA_BEGIN + best->size ? "is too small for a leg of this mirror" : NULL;
}

/* The nth leg, by name. One that is new gets the first slot that is free. */
static int take(struct mirror *m, unsigned n, const struct record *s)
{
	struct backing *b = &m->legs.leg[n];
	const char *why = why_not(m, b, s);
	unsigned slot = s ? s->slot : (unsigned)__builtin_ctz(~m->here);

	if (why)
		return fail(m, "%s %s", b->path, why);
	b->start = DATA_BEGIN;
	b->size = m->rec.size;
	m->leg[slot] = b;
	m->here |= 1u << slot;
	if (s) {
		m->buf->out[slot] = *s;
		return 0;
	}
	/* Whatever it holds, and whoever had the slot. */
	memset(m->rec.map, 0xff, sizeof(m->rec.map));
	m->rec.in_sync &= ~(1u << slot);
	m->rec.in_sync |= (unsigned)m->create << slot;
	m->rec.slots = slot < m->rec.slots ? m->rec.slots : slot + 1;
	return getrandom(&m->rec.id[slot], sizeof(m->rec.id[slot]), 0) < 0 ? -errno : 0;
}

int assemble(struct mirror *m)
{
	const struct record *found[MIRROR_LEGS] = {0};
	const struct backing *leg = m->legs.leg;
	unsigned count = m->legs.count, missing;
	char *room = m->buf->piece;
	int ret = 0;

	memset(m->buf, 0, sizeof(*m->buf));
	for (unsigned n = 0; n < count; n++, room += 2ul * BLOCK) {
		const struct record *r = copies_load(leg[n].fd, room, BLOCK, MAGIC);

		/* The other copy may be an older one. */
		if (errno && !m->legs.some)
			return fail(m, "cannot read %s: %s", leg[n].path, strerror(errno));
		found[n] = r && !errno && valid(r) ? r : NULL;
		if (r && r->version != VERSION)
			return fail(m, "%s: version %u is not known", leg[n].path, r->version);
		if (found[n] && r->events > m->rec.events)
			m->rec = *r;
	}
	if (m->create)
		ret = make(m);
	else if (!m->rec.events)
		ret = fail(m, "there is no mirror on %s: give --create to make one", leg->path);
	/* Those without a record take what the others leave; on taking over they are missing. */
	for (unsigned k = 0; k < count << !m->legs.some && !ret; k++)
		if ((k < count) == (found[k % count] != NULL))
			ret = take(m, k % count, found[k % count]);
	if (ret)
		return ret;
	/*
	 * Go on without the others; one may have had records that nobody else got: also one that
	 * is out for those who are here, and was being copied to while they failed.
	 */
	missing = m->rec.in_sync & ~m->here;
	m->rec.events += m->rec.active & ~m->here ? 2 * ALONE : 0;
	m->rec.events += m->here + 1 != 1u << m->rec.slots ? ALONE : 0;
	m->rec.active = m->here;
	m->rec.in_sync &= m->here;
	if (!m->rec.in_sync)
		return fail(m, "no leg that is up to date is among those named");
	if (missing && !m->degraded)
		return fail(m, "leg %d of the mirror's %u is missing: name it or give --degraded",
			    __builtin_ctz(missing), m->rec.slots);
	/* What the bits ask for. After a crash a leg is better by its place only. */
	for (uint64_t nr = 0; nr * m->rec.chunk < m->rec.size; nr++)
		if (m->rec.map[nr / 8] >> nr % 8 & 1)
			region_set(m, nr, DIFFERENT);
	m->changed++;
	return 0;
}
