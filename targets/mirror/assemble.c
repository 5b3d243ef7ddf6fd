/* SPDX-License-Identifier: MIT */
/* Making a mirror, and finding out which of its legs are here and in what state. */
#define _GNU_SOURCE
#include "mirror.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

struct candidates {
	struct super s[MIRROR_LEGS];
	bool found[MIRROR_LEGS];
	unsigned best; /* has seen the latest events */
	bool any;
};

#define fail(m, ...) ubd_device_fail((m)->dev, -EINVAL, __VA_ARGS__)

static const char *path(const struct mirror *m, unsigned i)
{
	return m->legs.leg[i].path;
}

static int random_fill(void *p, size_t n)
{
	return getrandom(p, n, 0) == (ssize_t)n ? 0 : -EIO;
}

static int read_all(struct mirror *m, struct candidates *c)
{
	for (unsigned i = 0; i < m->legs.count; i++) {
		int ret = super_read(m, &m->legs.leg[i], &c->s[i]);

		if (ret < 0)
			return ret;
		c->found[i] = ret;
		if (ret && (!c->any || c->s[i].events > c->s[c->best].events))
			c->best = i;
		c->any = c->any || ret;
	}
	return 0;
}

/* A slot for a leg that is new to the mirror. */
static int join(struct mirror *m, unsigned i, unsigned slot, enum leg_state state)
{
	m->leg[slot] = &m->legs.leg[i];
	m->super.state[slot] = (uint8_t)state;
	if (slot >= m->super.legs)
		m->super.legs = slot + 1;
	return random_fill(&m->super.id[slot], sizeof(m->super.id[slot]));
}

/* ---- A new mirror -------------------------------------------------------------------------- */

static int make(struct mirror *m, const struct candidates *c)
{
	uint64_t size = UINT64_MAX;
	int ret = random_fill(m->super.uuid, sizeof(m->super.uuid));

	if (m->read_only || m->chunk & (m->chunk - 1))
		return fail(m, m->read_only ? "--create cannot make a mirror that is read-only"
					    : "the bitmap chunk must be a power of two");
	for (unsigned i = 0; i < m->legs.count && !ret; i++) {
		uint64_t all = m->legs.leg[i].size;

		if (c->found[i])
			return fail(m,
				    "%s is a leg of a mirror already: erase its first 8K to use it "
				    "for a new one",
				    path(m, i));
		if (all < DATA_BEGIN + META_BLOCK)
			return fail(m, "%s is too small for a leg: 1M is the mirror's own",
				    path(m, i));
		all = (all - DATA_BEGIN) / META_BLOCK * META_BLOCK;
		size = all < size ? all : size;
		ret = join(m, i, i, LEG_IN_SYNC);
	}
	m->super.size = size;
	m->super.chunk = m->chunk;
	return ret;
}

/* ---- A mirror that is there ---------------------------------------------------------------- */

static bool known(const struct mirror *m, const struct super *s)
{
	return s->slot < m->super.legs && s->id[s->slot] == m->super.id[s->slot];
}

/* A leg with metadata: whether it is one of this mirror and what it holds can be trusted. */
static int admit(struct mirror *m, const struct candidates *c, unsigned i, bool *changed)
{
	const struct super *s = &c->s[i];
	struct backing *b = &m->legs.leg[i];
	unsigned first = c->s[c->best].slot;

	if (memcmp(s->uuid, m->super.uuid, sizeof(s->uuid)) != 0)
		return fail(m, "%s belongs to another mirror than %s", b->path, path(m, c->best));
	if (!known(m, s))
		return fail(m,
			    "%s has been replaced in this mirror: erase its first 8K to use it "
			    "again",
			    b->path);
	if (m->leg[s->slot])
		return fail(m, "%s and %s are the same leg of the mirror: one is a copy",
			    m->leg[s->slot]->path, b->path);
	/* Fewer events and not out: the last superblock had not come to it yet. */
	if (i != c->best && s->state[s->slot] == LEG_IN_SYNC && s->state[first] == LEG_OUT &&
	    (m->super.state[s->slot] == LEG_OUT || s->events == m->super.events))
		return fail(m,
			    "%s and %s were each written to without the other: leave one out, "
			    "or erase its first 8K and --rebuild it",
			    path(m, c->best), b->path);
	if (b->size < DATA_BEGIN + m->super.size)
		return fail(m, "%s has shrunk: it needs %llu bytes", b->path,
			    (unsigned long long)(DATA_BEGIN + m->super.size));
	m->leg[s->slot] = b;
	m->place[s->slot] = s->place;
	if (m->super.state[s->slot] != LEG_OUT)
		return 0;
	if (!m->rebuild)
		return fail(m,
			    "%s is stale, the mirror was written to without it: leave it out, or "
			    "give --rebuild to copy to it what it lacks",
			    b->path);
	m->super.state[s->slot] = LEG_REBUILDING;
	*changed = true;
	return 0;
}

/* A leg without metadata takes the place of one that is not here, or a new one. */
static int adopt(struct mirror *m, unsigned i, bool *changed)
{
	struct backing *b = &m->legs.leg[i];
	unsigned slot = 0;

	while (slot < m->super.legs && m->leg[slot])
		slot++;
	if (!m->rebuild)
		return fail(m,
			    "%s is not a leg of the mirror: give --rebuild to make it one (what it "
			    "holds is lost)",
			    b->path);
	if (slot == MIRROR_LEGS)
		return fail(m, "%s is one leg too many: a mirror has up to %u", b->path,
			    MIRROR_LEGS);
	if (b->size < DATA_BEGIN + m->super.size)
		return fail(m, "%s is too small: a leg of this mirror needs %llu bytes", b->path,
			    (unsigned long long)(DATA_BEGIN + m->super.size));
	*changed = true;
	return join(m, i, slot, LEG_REBUILDING);
}

/* Legs that should be here and are not. */
static int check_missing(struct mirror *m, bool *changed)
{
	bool any = false;

	for (unsigned i = 0; i < m->super.legs; i++) {
		if (m->leg[i]) {
			any = any || m->super.state[i] == LEG_IN_SYNC;
			continue;
		}
		if (m->super.state[i] == LEG_IN_SYNC && !m->degraded)
			return fail(m,
				    "leg %u of the mirror's %u is missing: name it as well, or "
				    "give --degraded to go on without it",
				    i, m->super.legs);
		*changed = *changed || m->super.state[i] != LEG_OUT;
		m->super.state[i] = LEG_OUT;
	}
	return any ? 0 : fail(m, "no leg that is up to date is among those named");
}

static int join_legs(struct mirror *m, const struct candidates *c, bool *changed, bool *fresh)
{
	int ret = 0;

	if (!c->any)
		return fail(m, "there is no mirror on %s%s: give --create to make one", path(m, 0),
			    m->legs.count > 1 ? " and the others" : "");
	m->super = c->s[c->best];
	for (unsigned i = 0; i < m->legs.count && !ret; i++)
		if (c->found[i])
			ret = admit(m, c, i, changed);
	for (unsigned i = 0; i < m->legs.count && !ret; i++)
		if (!c->found[i]) {
			*fresh = true;
			ret = adopt(m, i, changed);
		}
	return ret ? ret : check_missing(m, changed);
}

/* ---- Both ---------------------------------------------------------------------------------- */

static int allocate(struct mirror *m)
{
	uint64_t pages;

	m->regions = (m->super.size + m->super.chunk - 1) / m->super.chunk;
	pages = (m->regions + PAGE_BITS - 1) / PAGE_BITS;
	if (pages > MAX_PAGES)
		return fail(m,
			    "the bitmap would have %llu regions: a larger --bitmap-chunk is needed",
			    (unsigned long long)m->regions);
	m->pages = (unsigned)pages;
	m->region = calloc(m->regions, sizeof(*m->region));
	m->map = calloc(pages, META_BLOCK);
	return m->region && m->map ? 0 : -ENOMEM;
}

/* What each bit that is set asks for. */
static void take_bits(struct mirror *m, bool make_all, bool differ)
{
	for (uint64_t r = 0; r < m->regions; r++) {
		if (make_all)
			map_set(m, r, true);
		if (!map_test(m, r))
			continue;
		m->region[r].flags |= R_DIRTY;
		m->nr_dirty++;
		region_sync(m, r, (uint8_t)(R_SYNC | (differ ? R_DIFFER : 0)));
	}
}

int assemble(struct mirror *m)
{
	bool changed = m->create, fresh = m->create;
	struct candidates c = {0};
	int ret = read_all(m, &c);

	if (!ret)
		ret = m->create ? make(m, &c) : join_legs(m, &c, &changed, &fresh);
	if (!ret)
		ret = allocate(m);
	if (ret)
		return ret;
	for (unsigned i = 0; i < m->super.legs; i++) {
		if (!m->leg[i])
			continue;
		m->leg[i]->start = DATA_BEGIN;
		m->leg[i]->size = m->super.size;
		m->active |= 1u << i;
		if (m->super.state[i] != LEG_IN_SYNC)
			continue;
		m->in_sync |= 1u << i;
		if (!m->create)
			map_read(m, m->leg[i]);
	}
	/* Any bit may be left by a crash, and then no leg is better than another but by its place.
	 */
	take_bits(m, fresh, true);
	if (!changed && !m->nr_dirty)
		return 0;
	/*
	 * A crash may have left a bit on one leg only. And bits come first: a leg is not being
	 * rebuilt before it is known what it lacks.
	 */
	map_touch(m);
	m->saved.changed += changed;
	return meta_commit(NULL, m);
}
