/* SPDX-License-Identifier: MIT */
/*
 * A mirror's worker: copies regions whose legs may differ, clears bits of regions that are at rest,
 * and takes legs back that work again.
 */
#include "mirror.h"

#define MS 1000000ull
#define TICK (50 * MS)	  /* how soon the end of the queue is noticed */
#define PAUSE (1000 * MS) /* after an error */
#define RETRY_MAX 6	  /* doublings of --retry */

/* ---- Copying ------------------------------------------------------------------------------- */

/*
 * One piece, from where the last one ended; returns when it may be the next one's turn. A region
 * that cannot be read is left for later.
 */
static uint64_t copy_next(struct ubd_queue *q, struct mirror *m)
{
	uint64_t begin = ubd_now(), chunk = m->rec.chunk, end;
	struct ubd_io io = {.queue = q, .op = MIRROR_FETCH};
	int ret = 0;

	ubd_mutex_lock(q, &m->lock);
	while (m->pos >= m->rec.size || m->region[m->pos / chunk].state < LACKED)
		m->pos = m->pos < m->rec.size ? (m->pos / chunk + 1) * chunk : 0;
	end = (m->pos / chunk + 1) * chunk;
	end = end < m->rec.size ? end : m->rec.size;
	io.offset = m->pos;
	io.length = (uint32_t)(end - m->pos < PIECE ? end - m->pos : PIECE);
	m->copying = &m->region[m->pos / chunk];
	while (m->copying->writers)
		ubd_cond_wait(q, &m->news, &m->lock);
	ubd_mutex_unlock(q, &m->lock);
	/* Or there is nobody to copy to. */
	if (m->rec.active & (m->rec.active - 1))
		ret = commit(q, m, m->copying->since) ?: mirror_copy(&io, m);
	ret = ret ?: commit(q, m, m->dropped);
	ubd_mutex_lock(q, &m->lock);
	m->copying = NULL;
	ubd_cond_wake_all(q, &m->news);
	/* Unless a write failed meanwhile: then it begins anew, at 0. */
	if (m->pos == io.offset)
		m->pos = ret ? end : io.offset + io.length;
	if (!ret && m->pos == end)
		region_set(m, io.offset / chunk, DIRTY);
	ubd_mutex_unlock(q, &m->lock);
	return begin + (ret ? PAUSE : m->rate ? io.length * MS * 1000 / m->rate : 0);
}

/* ---- Settling ------------------------------------------------------------------------------ */

/* Bits tell what a leg that is out lacks: then they stay. */
static bool to_clean(const struct mirror *m)
{
	return m->nr_dirty > m->nr_sync && m->rec.active == (1u << m->rec.slots) - 1;
}

/*
 * Flush: then regions that nobody has written to since the last time are clean, and legs to which
 * all has been copied are in sync.
 */
static int settle(struct ubd_queue *q, struct mirror *m)
{
	unsigned done;
	int ret = mirror_write(&(struct ubd_io){.queue = q, .op = UBD_FLUSH}, m);

	if (ret)
		return ret;
	ubd_mutex_lock(q, &m->lock);
	done = m->nr_sync ? 0 : m->rec.active & ~m->rec.in_sync;
	m->rec.in_sync |= done;
	m->changed += done != 0;
	for (uint64_t nr = 0; nr * m->rec.chunk < m->rec.size && to_clean(m); nr++) {
		if (m->region[nr].state == RESTING)
			region_set(m, nr, CLEAN);
		else if (m->region[nr].state == DIRTY && !m->region[nr].writers)
			region_set(m, nr, RESTING);
	}
	ubd_mutex_unlock(q, &m->lock);
	for_each_leg(i, done)
		ubd_device_notice(m->dev, "%s is in sync again", m->leg[i]->path);
	m->tries = done ? 0 : m->tries;
	return commit(q, m, m->changed);
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
		/* From its beginning also the one that is being copied: it lacks that. */
		for (uint64_t n = 0; n * m->rec.chunk < m->rec.size; n++)
			if (m->region[n].state != CLEAN)
				region_set(m, n, m->region[n].state > LACKED ? DIFFERENT : LACKED);
		m->changed++;
		ubd_mutex_unlock(q, &m->lock);
		ubd_device_notice(m->dev, "%s works again: copying what it lacks", m->leg[i]->path);
		commit(q, m, m->changed);
	}
}

/* When to do something that is due so many ms after it was wanted first; 0: it is not. */
static uint64_t due(uint64_t when, bool wanted, uint64_t ms)
{
	return !wanted ? 0 : when ? when : ubd_now() + ms * MS;
}

void mirror_worker(struct ubd_queue *q, void *self)
{
	struct mirror *m = self;
	uint64_t retry = 0, settling = 0;

	while (!ubd_queue_stopping(q)) {
		uint64_t until = 0;

		ubd_mutex_lock(q, &m->lock);
		retry = due(retry, m->retry && m->here & ~m->rec.active, m->retry << m->tries);
		settling = due(settling, to_clean(m), m->delay);
		/* What has been copied to whom it lacked need not rest. */
		if (!m->nr_sync && m->rec.active != m->rec.in_sync)
			settling = ubd_now();
		if (!retry && !settling && !m->nr_sync && !ubd_queue_stopping(q))
			ubd_cond_wait(q, &m->news, &m->lock);
		ubd_mutex_unlock(q, &m->lock);
		if (retry && ubd_now() >= retry) {
			retry = 0;
			m->tries += m->tries < RETRY_MAX;
			take_back(q, m);
		} else if (settling && ubd_now() >= settling) {
			settling = 0;
			until = settle(q, m) ? ubd_now() + PAUSE : 0;
		} else if (m->nr_sync) {
			until = copy_next(q, m);
		} else {
			until = ubd_now() + TICK;
		}
		for (uint64_t t = ubd_now(); t < until && !ubd_queue_stopping(q); t = ubd_now())
			ubd_sleep(q, until - t < TICK ? until - t : TICK);
	}
	/* What has been written is at rest: once to note that, once to clean. */
	settle(q, m);
	settle(q, m);
}
