/* SPDX-License-Identifier: MIT */
/*
 * A mirror's worker: copies regions whose legs may differ, clears bits of regions that are at rest,
 * and takes legs back that work again.
 */
#define _GNU_SOURCE
#include "mirror.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TICK 50000000ull /* ns: how soon the end of the queue is noticed */
#define RETRY_MAX 64	 /* times --retry, after that many failures */

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static void wait_until(struct ubd_queue *q, uint64_t when)
{
	for (uint64_t t = now(); t < when && !ubd_queue_stopping(q); t = now())
		ubd_sleep(q, when - t < TICK ? when - t : TICK);
}

/* ---- Copying ------------------------------------------------------------------------------- */

struct copy {
	struct mirror *m;
	uint64_t pos;
	uint32_t len;
	unsigned failed;
	int err;
};

static int write_leg(struct ubd_queue *q, unsigned i, void *arg)
{
	struct copy *c = arg;
	const struct backing *b = c->m->leg[i];
	ssize_t n = ubd_pwrite(q, b->fd, c->m->piece, c->len, b->start + c->pos, 0);

	if (n != (ssize_t)c->len) {
		c->failed |= 1u << i;
		c->err = n < 0 ? (int)n : -EIO;
	}
	return 0;
}

/* From the first leg in sync that can be read; its bit, or 0. */
static unsigned read_source(struct ubd_queue *q, struct copy *c, bool differ)
{
	unsigned failed = 0;

	for (unsigned left = c->m->in_sync; left; left &= left - 1) {
		const struct backing *b = c->m->leg[__builtin_ctz(left)];
		ssize_t n = ubd_pread(q, b->fd, c->m->piece, c->len, b->start + c->pos);

		if (n != (ssize_t)c->len)
			failed |= left & -left;
		else if (!failed || !differ || !source_failed(q, c->m, failed, left & -left))
			return left & -left;
	}
	return 0;
}

/* Writers of the region have been kept out. */
static int copy_piece(struct ubd_queue *q, struct copy *c, bool differ)
{
	unsigned source, told;

	if (!(c->m->active & (c->m->active - 1)))
		return 0; /* nobody to copy to */
	source = read_source(q, c, differ);
	if (!source)
		return -EIO;
	told = c->m->active & ~(differ ? source : c->m->in_sync);
	legs_each(q, told, write_leg, c);
	/* The source has it, so that any other may be left out. */
	return c->failed ? legs_failed(q, c->m, told | source, c->failed, c->err) : 0;
}

/* The next region to copy, from the cursor on; with the lock. */
static uint64_t next_region(struct mirror *m)
{
	for (uint64_t n = 0; n < m->regions; n++, m->cursor = (m->cursor + 1) % m->regions) {
		if (m->region[m->cursor].flags & R_SYNC)
			break;
		m->cursor_at = 0;
	}
	return m->cursor;
}

/* One piece. A region that cannot be read is left for later. */
static void copy_next(struct ubd_queue *q, struct mirror *m)
{
	uint64_t begin = now(), nr, end;
	struct copy c = {.m = m};
	struct region *r;
	bool whole, differ;
	int ret;

	ubd_mutex_lock(q, &m->lock);
	nr = next_region(m);
	r = &m->region[nr];
	c.pos = nr * m->super.chunk + m->cursor_at;
	end = (nr + 1) * m->super.chunk;
	if (end > m->super.size)
		end = m->super.size;
	c.len = (uint32_t)(end - c.pos < PIECE ? end - c.pos : PIECE);
	m->cursor_at += c.len;
	whole = c.pos + c.len == end;
	m->copying = nr + 1;
	while (r->writers)
		ubd_cond_wait(q, &m->turn, &m->lock);
	differ = r->flags & R_DIFFER;
	ubd_mutex_unlock(q, &m->lock);
	ret = copy_piece(q, &c, differ);
	ubd_mutex_lock(q, &m->lock);
	m->copying = 0;
	/* Not if a leg came meanwhile, or a write failed: then it begins anew. */
	if (!ret && whole && m->cursor == nr && m->cursor_at) {
		m->nr_sync -= (r->flags & R_SYNC) != 0;
		m->nr_differ -= (r->flags & R_DIFFER) != 0;
		r->flags &= (uint8_t) ~(R_SYNC | R_DIFFER);
	}
	if (ret || whole) {
		m->cursor = (nr + 1) % m->regions;
		m->cursor_at = 0;
	}
	ubd_cond_wake_all(q, &m->turn);
	ubd_mutex_unlock(q, &m->lock);
	if (ret)
		begin += 1000000000;
	wait_until(q, begin + (m->rate ? c.len * 1000000000ull / m->rate : 0));
}

/* All is copied: legs that were being rebuilt are in sync, once that is durable. */
static int finish_rebuild(struct ubd_queue *q, struct mirror *m)
{
	unsigned done = m->active;
	/* First that they are being rebuilt: else the next leg that fails knows them as out. */
	int ret = super_commit(q, m);

	if (!ret)
		ret = legs_flush(q, m, done);

	ubd_mutex_lock(q, &m->lock);
	map_touch(m);
	ubd_mutex_unlock(q, &m->lock);
	if (!ret)
		ret = map_commit(q, m, 0, m->pages - 1);
	ubd_mutex_lock(q, &m->lock);
	done &= m->active;
	for (unsigned i = 0; i < m->super.legs && !ret && !m->nr_sync; i++)
		if ((done & ~m->in_sync) >> i & 1) {
			m->super.state[i] = LEG_IN_SYNC;
			m->in_sync |= 1u << i;
			m->saved.changed++;
			ubd_device_notice(m->dev, "%s is in sync again", m->leg[i]->path);
		}
	ubd_mutex_unlock(q, &m->lock);
	return ret ? ret : super_commit(q, m);
}

/* ---- Cleaning ------------------------------------------------------------------------------ */

/* Bits tell what a leg that is out lacks: then they stay. */
static bool may_clean(const struct mirror *m)
{
	return m->active == (1u << m->super.legs) - 1 && !m->read_only;
}

static bool to_clean(const struct mirror *m)
{
	return m->nr_dirty > m->nr_sync && may_clean(m);
}

static void clear_idle(struct mirror *m)
{
	for (uint64_t i = 0; i < m->regions; i++) {
		struct region *r = &m->region[i];

		if (r->flags & R_IDLE && !(r->flags & (R_USED | R_SYNC)) && !r->writers) {
			map_set(m, i, false);
			r->flags &= (uint8_t)~R_DIRTY;
			m->nr_dirty--;
		}
		r->flags &= (uint8_t)~R_IDLE;
	}
}

/* Regions not written to since the last time: flush them, and if they still are not, clear. */
static void clean(struct ubd_queue *q, struct mirror *m)
{
	unsigned mask = m->active;
	bool some = false;
	int ret;

	ubd_mutex_lock(q, &m->lock);
	for (uint64_t i = 0; i < m->regions; i++) {
		struct region *r = &m->region[i];

		if (r->flags & R_DIRTY && !(r->flags & (R_USED | R_SYNC)) && !r->writers) {
			r->flags |= R_IDLE;
			some = true;
		}
		r->flags &= (uint8_t)~R_USED;
	}
	ubd_mutex_unlock(q, &m->lock);
	ret = some ? legs_flush(q, m, mask) : -EAGAIN;
	if (ret)
		return;
	ubd_mutex_lock(q, &m->lock);
	if (may_clean(m))
		clear_idle(m);
	ubd_mutex_unlock(q, &m->lock);
	map_commit(q, m, 0, m->pages - 1);
}

void mirror_settle(struct mirror *m)
{
	if (!may_clean(m) || legs_flush(NULL, m, m->active) || !may_clean(m))
		return;
	for (uint64_t i = 0; i < m->regions; i++)
		m->region[i].flags = (uint8_t)((m->region[i].flags & ~R_USED) |
					       (m->region[i].flags & R_DIRTY ? R_IDLE : 0));
	clear_idle(m);
	meta_commit(NULL, m);
}

/* ---- Coming back --------------------------------------------------------------------------- */

static bool leg_answers(struct ubd_queue *q, struct mirror *m, unsigned i)
{
	const struct backing *b = m->leg[i];
	uint64_t end = b->start + b->size - META_BLOCK;
	int ret;

	ubd_mutex_lock(q, &m->commit);
	ret = ubd_pread(q, b->fd, m->out[i], META_BLOCK, end & ~(META_BLOCK - 1ull)) == META_BLOCK;
	/* Its own old superblock, in the place that is written next: shows whether it can be. */
	if (ret)
		ret = ubd_pread(q, b->fd, m->out[i], META_BLOCK, 0) == META_BLOCK &&
		      ubd_pwrite(q, b->fd, m->out[i], META_BLOCK, 0, UBD_RW_FUA) == META_BLOCK;
	ubd_mutex_unlock(q, &m->commit);
	return ret;
}

/* What was written without it has its bits set: that is copied. */
static void take_back(struct ubd_queue *q, struct mirror *m)
{
	for (unsigned i = 0; i < m->super.legs; i++) {
		if (m->super.state[i] != LEG_OUT || !m->leg[i] || !leg_answers(q, m, i))
			continue;
		ubd_mutex_lock(q, &m->lock);
		m->super.state[i] = LEG_REBUILDING;
		m->active |= 1u << i;
		m->read_errors[i] = 0;
		for (uint64_t r = 0; r < m->regions; r++)
			if (m->region[r].flags & R_DIRTY)
				region_sync(m, r, R_SYNC);
		m->cursor = m->cursor_at = 0;
		m->saved.changed++;
		map_touch(m);
		ubd_mutex_unlock(q, &m->lock);
		ubd_device_notice(m->dev, "%s works again: copying what it lacks", m->leg[i]->path);
		meta_commit(q, m);
	}
}

static bool someone_out(const struct mirror *m)
{
	for (unsigned i = 0; i < m->super.legs; i++)
		if (m->super.state[i] == LEG_OUT && m->leg[i])
			return true;
	return false;
}

void mirror_worker(struct ubd_queue *q, void *self)
{
	struct mirror *m = self;
	uint64_t retry = 0, tries = 1, cleaned = now();

	while (!ubd_queue_stopping(q)) {
		if (m->in_sync == m->active && !someone_out(m))
			tries = 1;
		if (!retry && m->retry && someone_out(m))
			retry = now() + m->retry * 1000000 * tries;
		if (retry && now() >= retry) {
			tries = tries < RETRY_MAX ? tries * 2 : tries;
			retry = 0;
			take_back(q, m);
		} else if (to_clean(m) && now() >= cleaned + m->delay * 1000000) {
			clean(q, m);
			cleaned = now();
		} else if (m->nr_sync) {
			copy_next(q, m);
		} else if (m->active != m->in_sync) {
			if (finish_rebuild(q, m))
				wait_until(q, now() + 1000000000);
		} else if (retry || to_clean(m)) {
			wait_until(q, now() + TICK);
		} else {
			ubd_mutex_lock(q, &m->lock);
			m->idle = !m->nr_sync && !to_clean(m) && !(m->retry && someone_out(m));
			if (m->idle && !ubd_queue_stopping(q))
				ubd_cond_wait(q, &m->work, &m->lock);
			m->idle = false;
			ubd_mutex_unlock(q, &m->lock);
		}
	}
}
