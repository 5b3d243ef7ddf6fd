/* SPDX-License-Identifier: MIT */
/*
 * Making changes durable, in an order that leaves a sound image wherever it is cut:
 *
 *   1. data (written already), new tables, refcounts that grew     | sync
 *   2. L1 and L2 tables, which may now point at all that           | sync
 *   3. clusters that these no longer point at become free, once requests that may still use
 *      them have ended; their refcounts fall with the next commit
 *
 * A commit takes a copy of all dirty pages at one moment, so what it writes is consistent.
 */
#include "qcow2.h"

/* ---- Requests under way -------------------------------------------------------------------- */

unsigned qc_enter(struct qc_image *img, struct ubd_queue *q)
{
	for (;;) {
		unsigned e = atomic_load(&img->epoch) & 1;

		atomic_fetch_add(&img->inflight[e], 1);
		if (!atomic_load(&img->paused))
			return e;
		qc_leave(img, q, e);
		pthread_mutex_lock(&img->lock);
		while (atomic_load(&img->paused))
			qc_wait(img, q);
		pthread_mutex_unlock(&img->lock);
	}
}

void qc_leave(struct qc_image *img, struct ubd_queue *q, unsigned epoch)
{
	if (atomic_fetch_sub(&img->inflight[epoch], 1) > 1 || !atomic_load(&img->paused))
		return;
	pthread_mutex_lock(&img->lock);
	qc_wake(img, q);
	pthread_mutex_unlock(&img->lock);
}

void qc_pause(struct qc_image *img, struct ubd_queue *q)
{
	pthread_mutex_lock(&img->lock);
	atomic_store(&img->paused, true);
	while (atomic_load(&img->inflight[0]) || atomic_load(&img->inflight[1]))
		qc_wait(img, q);
	pthread_mutex_unlock(&img->lock);
}

void qc_resume(struct qc_image *img, struct ubd_queue *q)
{
	pthread_mutex_lock(&img->lock);
	atomic_store(&img->paused, false);
	qc_wake(img, q);
	pthread_mutex_unlock(&img->lock);
}

/* ---- What a commit writes ------------------------------------------------------------------ */

struct batch {
	struct qc_page **pages; /* by step, then by place */
	uint8_t *copies;	/* in that order */
	unsigned count;
};

static int by_step_and_place(const void *a, const void *b)
{
	const struct qc_page *p = *(struct qc_page *const *)a, *o = *(struct qc_page *const *)b;

	return COMPARE(p->now, o->now) ?: COMPARE(p->pos, o->pos);
}

/* Lock held: a copy of everything that has changed. */
static int collect(struct qc_image *img, struct batch *b)
{
	unsigned n = img->cache.dirty;
	struct qc_page *p;

	img->commits_begun++;
	b->pages = malloc((n + 1) * sizeof(*b->pages));
	b->copies = qc_buffer((n + 1) * page_size(img));
	if (!b->pages || !b->copies)
		return -ENOMEM;
	for (p = TAILQ_FIRST(&img->cache.by_age); p && b->count < n; p = TAILQ_NEXT(p, age)) {
		if (!p->dirty)
			continue;
		b->pages[b->count++] = p;
		p->now = p->fresh ? STEP_REFS : p->step;
		p->writing = true;
		p->dirty = false;
	}
	img->cache.dirty = 0;
	qsort(b->pages, b->count, sizeof(*b->pages), by_step_and_place);
	for (unsigned i = 0; i < b->count; i++)
		memcpy(b->copies + i * page_size(img), b->pages[i]->data, page_size(img));
	img->sealed = img->nr_freed;
	qc_journal_begin(img);
	return 0;
}

int qc_sync(struct qc_image *img, struct ubd_queue *q)
{
	/* A data file that is not there was never written to. */
	return qc_file_sync(&img->data_file, q) ?: qc_file_sync(&img->file, q);
}

/* One step after the other, neighbouring pages in one write; *steps of them are durable. */
static int write_batch(struct qc_image *img, struct ubd_queue *q, const struct batch *b,
		       unsigned *steps)
{
	unsigned at = 0;

	/* Of those under way some may have ended without our knowing. */
	if (atomic_load(&img->inflight[0]) || atomic_load(&img->inflight[1]))
		atomic_store(&img->data->needs_sync, true);
	for (*steps = 0; *steps < NR_STEPS; ++*steps) {
		unsigned first = at, n;
		int ret = 0;

		for (; at < b->count && b->pages[at]->now == *steps && !ret; at += n) {
			for (n = 1;
			     at + n < b->count && b->pages[at + n]->now == *steps &&
			     b->pages[at + n]->pos == b->pages[at]->pos + n * page_size(img);)
				n++;
			ret = qc_file_write(&img->file, q, b->copies + at * page_size(img),
					    n * page_size(img), b->pages[at]->pos);
		}
		/* The table rarely changes: no sync for what others have written meanwhile. */
		if (!ret && (*steps != STEP_TABLE || at > first))
			ret = qc_sync(img, q);
		if (ret)
			return ret;
	}
	return 0;
}

/* Lock held. */
static void finish_batch(struct qc_image *img, struct batch *b, int ret, unsigned steps)
{
	for (unsigned i = 0; i < b->count; i++) {
		struct qc_page *p = b->pages[i];

		p->writing = false;
		/* Something on disk may point at what was fresh when the first step is durable. */
		if (steps > STEP_REFS && p->now == STEP_REFS)
			p->fresh = false;
		img->cache.dirty += ret && !p->dirty;
		p->dirty |= ret != 0;
	}
	if (!ret) {
		img->commits_done = img->commits_begun;
		img->limbo = img->sealed;
		qc_journal_end(img);
	}
}

/* ---- Free clusters ------------------------------------------------------------------------- */

#define PART 4096u /* clusters: their refcounts fill few pages */

static int unref(struct qc_image *img, uint64_t cluster)
{
	uint64_t count;
	int ret = qc_ref_get(img, cluster, &count);

	if (ret)
		return ret;
	if (!count)
		return qc_damaged(img, "the refcount of a cluster that was in use",
				  cluster << img->cluster_bits);
	ret = qc_ref_set(img, cluster, count - 1);
	if (!ret && count == 1)
		img->hint = MIN(img->hint, cluster);
	return ret;
}

/* First the hole, then the refcount: a cluster that can be allocated is nobody else's. */
static int release_range(struct qc_image *img, struct ubd_queue *q, const struct qc_range *r)
{
	uint64_t at = r->first, end = r->first + r->count, run, count;
	int ret = 0;

	while (at < end && !ret) {
		for (run = at; run < end; run++) {
			ret = QC_TRANSACTION(img, q, qc_ref_get(img, run, &count));
			if (ret || count != 1)
				break;
		}
		if (!ret && run > at)
			qc_file_punch(&img->file, q, at << img->cluster_bits,
				      (run - at) << img->cluster_bits);
		for (run = MAX(run, at + 1); at < run && !ret; at++)
			ret = QC_TRANSACTION(img, q, unref(img, at));
	}
	return ret;
}

/*
 * What has been unmapped for good becomes free when no request can still be using it: those that
 * began before now are counted in one place, from now on others in another. Refcounts fill pages:
 * what would be too many of these waits for the next commit.
 */
static void release(struct qc_image *img, struct ubd_queue *q)
{
	size_t ready = 0, done = 0;
	unsigned now;
	int ret = 0;

	pthread_mutex_lock(&img->lock);
	now = atomic_load(&img->epoch) & 1;
	if (!atomic_load(&img->inflight[now ^ 1])) {
		ready = img->leaving;
		if (img->limbo > ready) {
			img->leaving = img->limbo;
			atomic_store(&img->epoch, now ^ 1);
			if (!atomic_load(&img->inflight[now]))
				ready = img->leaving;
		}
	}
	while (done < ready && !ret && img->cache.dirty <= img->cache.max / 4) {
		struct qc_range r = {img->freed[done].first, MIN(img->freed[done].count, PART)};

		pthread_mutex_unlock(&img->lock);
		ret = release_range(img, q, &r);
		pthread_mutex_lock(&img->lock);
		img->freed[done].first += r.count;
		img->freed[done].count -= r.count;
		done += !img->freed[done].count;
	}
	img->nr_freed -= done;
	img->sealed -= done;
	img->limbo -= done;
	img->leaving -= done;
	if (done)
		memmove(img->freed, img->freed + done, img->nr_freed * sizeof(*img->freed));
	pthread_mutex_unlock(&img->lock);
}

/* ---- Commit -------------------------------------------------------------------------------- */

int qc_commit_locked(struct qc_image *img, struct ubd_queue *q)
{
	struct batch b = {0};
	unsigned steps;
	int ret;

	pthread_mutex_lock(&img->lock);
	ret = collect(img, &b);
	pthread_mutex_unlock(&img->lock);
	if (!ret) {
		ret = write_batch(img, q, &b, &steps);
		pthread_mutex_lock(&img->lock);
		finish_batch(img, &b, ret, steps);
		pthread_mutex_unlock(&img->lock);
	}
	free(b.pages);
	free(b.copies);
	if (!ret)
		release(img, q);
	return ret;
}

int qc_commit(struct qc_image *img, struct ubd_queue *q)
{
	uint64_t before = atomic_load(&img->commits_begun);
	int ret = 0;

	ubd_mutex_lock(q, &img->commit_lock);
	/* One that began after this call has done this one's work. */
	if (img->commits_done <= before)
		ret = qc_commit_locked(img, q);
	ubd_mutex_unlock(q, &img->commit_lock);
	return ret;
}
