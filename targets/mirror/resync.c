/* SPDX-License-Identifier: MIT */
/*
 * A mirror's worker: copies regions whose legs may differ, clears bits of regions that are at rest,
 * and takes legs back that work again.
 */
#define _GNU_SOURCE
#include "mirror.h"

#include <errno.h>
#include <time.h>

#define MS 1000000ull
#define TICK (50 * MS)	  /* how soon the end of the queue is noticed */
#define PAUSE (1000 * MS) /* after an error */
#define RETRY_MAX 6	  /* doublings of --retry */

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 * MS + (uint64_t)ts.tv_nsec;
}

static void wait_until(struct ubd_queue *q, uint64_t when)
{
	for (uint64_t t = now(); t < when && !ubd_queue_stopping(q); t = now())
		ubd_sleep(q, when - t < TICK ? when - t : TICK);
}

/* ---- Copying ------------------------------------------------------------------------------- */

static int copy_to(struct ubd_queue *q, unsigned i, void *mirror)
{
	const struct mirror *m = mirror;
	const struct backing *b = m->leg[i];
	ssize_t n = ubd_pwrite(q, b->fd, m->piece, m->copy_len, b->start + m->copy_at, 0);

	return n == (ssize_t)m->copy_len ? 0 : n < 0 ? (int)n : -EIO;
}

/* From the first leg in sync that can be read. Writers of the region have been kept out. */
static int copy(struct ubd_queue *q, struct mirror *m)
{
	unsigned failed = 0, source = 0, told;
	uint64_t lost;
	int ret = 0;

	if (!(m->rec.active & (m->rec.active - 1)))
		return 0; /* nobody to copy to */
	for_each_leg(i, m->rec.in_sync) {
		const struct backing *b = m->leg[i];
		ssize_t n = ubd_pread(q, b->fd, m->piece, m->copy_len, b->start + m->copy_at);

		if (n == (ssize_t)m->copy_len) {
			source = 1u << i;
			break;
		}
		failed |= 1u << i;
	}
	if (!source)
		return -EIO;
	/* Where they differ, what is read must be what has been copied. */
	if (failed && m->differ)
		ret = drop_legs(q, m, source, failed, -EIO);
	if (!ret)
		ret = commit(q, m, m->dropped);
	told = m->rec.active & ~(m->differ ? source : m->rec.in_sync);
	if (ret)
		return ret;
	ret = legs_each(q, told, copy_to, m, &lost);
	return ret ? drop_legs(q, m, source | (told & ~(unsigned)lost), (unsigned)lost, ret) : 0;
}

/* The region to copy from, at m->pos; with the lock. */
static uint64_t next_region(struct mirror *m)
{
	for (;; m->pos = (m->pos / m->rec.chunk + 1) * m->rec.chunk) {
		if (m->pos >= m->rec.size)
			m->pos = 0;
		if (m->region[m->pos / m->rec.chunk].sync)
			return m->pos / m->rec.chunk;
	}
}

/* One piece. A region that cannot be read is left for later. */
static void copy_next(struct ubd_queue *q, struct mirror *m)
{
	uint64_t begin = now(), nr, end;
	int ret;

	ubd_mutex_lock(q, &m->lock);
	nr = next_region(m);
	end = (nr + 1) * m->rec.chunk;
	end = end < m->rec.size ? end : m->rec.size;
	m->copy_at = m->pos;
	m->copy_len = (uint32_t)(end - m->pos < PIECE ? end - m->pos : PIECE);
	m->pos += m->copy_len;
	m->copying = nr + 1;
	while (m->region[nr].writers)
		ubd_cond_wait(q, &m->turn, &m->lock);
	ubd_mutex_unlock(q, &m->lock);
	ret = copy(q, m);
	ubd_mutex_lock(q, &m->lock);
	m->copying = 0;
	/* Unless a leg came meanwhile, or a write failed: then it begins anew, at 0. */
	if (m->pos == m->copy_at + m->copy_len && ret) {
		m->pos = end;
	} else if (m->pos == end && !ret) {
		m->region[nr].sync = false;
		if (!--m->nr_sync)
			m->differ = false;
	}
	ubd_cond_wake_all(q, &m->turn);
	ubd_mutex_unlock(q, &m->lock);
	wait_until(q, begin + (ret ? PAUSE : m->rate ? m->copy_len * 1000 * MS / m->rate : 0));
}

/* All is copied: legs that were being rebuilt are in sync. */
static int finish_rebuild(struct ubd_queue *q, struct mirror *m)
{
	unsigned done = m->rec.active;
	int ret = flush_legs(q, m);

	if (ret)
		return ret;
	ubd_mutex_lock(q, &m->lock);
	done &= m->nr_sync ? 0 : m->rec.active & ~m->rec.in_sync;
	m->rec.in_sync |= done;
	m->changed++;
	ubd_mutex_unlock(q, &m->lock);
	for_each_leg(i, done)
		ubd_device_notice(m->dev, "%s is in sync again", m->leg[i]->path);
	return commit(q, m, m->changed);
}

/* ---- Cleaning ------------------------------------------------------------------------------ */

/* Bits tell what a leg that is out lacks: then they stay. */
static bool to_clean(const struct mirror *m)
{
	return m->nr_dirty > m->nr_sync && m->rec.active == (1u << m->rec.slots) - 1 &&
	       !m->read_only;
}

void clean(struct ubd_queue *q, struct mirror *m, uint32_t round)
{
	m->round++;
	if (flush_legs(q, m))
		return;
	ubd_mutex_lock(q, &m->lock);
	for (uint64_t i = 0; i < m->regions && to_clean(m); i++) {
		struct region *r = &m->region[i];

		if (!r->since || r->sync || r->writers || r->used >= round)
			continue;
		r->since = 0;
		m->rec.map[i / 8] &= (uint8_t) ~(1u << i % 8);
		m->nr_dirty--;
		m->changed++;
	}
	ubd_mutex_unlock(q, &m->lock);
	commit(q, m, m->changed);
}

/* ---- Coming back --------------------------------------------------------------------------- */

/* What was written without it has its bits set: that is copied. */
static void take_back(struct ubd_queue *q, struct mirror *m)
{
	for_each_leg(i, m->here & ~m->rec.active) {
		int ret;

		/* Does it take what it was told before, in the place that counts less? */
		ubd_mutex_lock(q, &m->commit);
		ret = put_record(q, i, m);
		ubd_mutex_unlock(q, &m->commit);
		if (ret)
			continue;
		ubd_mutex_lock(q, &m->lock);
		m->rec.active |= 1u << i;
		m->read_errors[i] = 0;
		for (uint64_t r = 0; r < m->regions; r++)
			if (m->region[r].since)
				region_mark(m, r, true);
		m->pos = 0;
		m->changed++;
		ubd_mutex_unlock(q, &m->lock);
		ubd_device_notice(m->dev, "%s works again: copying what it lacks", m->leg[i]->path);
		commit(q, m, m->changed);
	}
}

/* Not until a request comes; with the lock. */
static bool nothing_to_do(const struct mirror *m)
{
	return !m->nr_sync && !to_clean(m) && m->rec.in_sync == m->rec.active &&
	       !(m->retry && m->here & ~m->rec.active);
}

/* When to do something that is due so many ms after it was wanted first; 0: it is not. */
static uint64_t due(uint64_t when, bool wanted, uint64_t ms)
{
	return !wanted ? 0 : when ? when : now() + ms * MS;
}

void mirror_worker(struct ubd_queue *q, void *self)
{
	struct mirror *m = self;
	uint64_t retry = 0, cleaning = 0;
	unsigned tries = 0;

	while (!ubd_queue_stopping(q)) {
		retry = due(retry, m->retry && m->here & ~m->rec.active, m->retry << tries);
		cleaning = due(cleaning, to_clean(m), m->delay);
		if (retry && now() >= retry) {
			tries += tries < RETRY_MAX;
			retry = 0;
			take_back(q, m);
		} else if (cleaning && now() >= cleaning) {
			cleaning = 0;
			clean(q, m, m->round);
		} else if (m->nr_sync) {
			copy_next(q, m);
		} else if (m->rec.active != m->rec.in_sync) {
			if (finish_rebuild(q, m))
				wait_until(q, now() + PAUSE);
			else
				tries = 0;
		} else if (retry || cleaning) {
			ubd_sleep(q, TICK);
		} else {
			ubd_mutex_lock(q, &m->lock);
			if (nothing_to_do(m) && !ubd_queue_stopping(q))
				ubd_cond_wait(q, &m->work, &m->lock);
			ubd_mutex_unlock(q, &m->lock);
		}
	}
}
