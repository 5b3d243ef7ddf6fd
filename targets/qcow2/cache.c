/* SPDX-License-Identifier: MIT */
/* Pages of metadata in memory, and waiting for what a transaction needs. */
#include "qcow2.h"

#define MIN_PAGES 256u

/* ---- Turns --------------------------------------------------------------------------------- */

void qc_wait(struct qc_image *img, struct ubd_queue *q)
{
	struct qc_waiter w = {.next = img->waiters};

	/* Free, so this does not suspend; taking it again waits for qc_wake() to give it back. */
	ubd_mutex_lock(q, &w.gate);
	img->waiters = &w;
	pthread_mutex_unlock(&img->lock);
	ubd_mutex_lock(q, &w.gate);
	pthread_mutex_lock(&img->lock);
}

void qc_wake(struct qc_image *img, struct ubd_queue *q)
{
	struct qc_waiter *w = img->waiters, *next;

	img->waiters = NULL;
	for (; w; w = next) {
		next = w->next; /* it is gone after the unlock */
		ubd_mutex_unlock(q, &w->gate);
	}
}

/* ---- The list and the hash ----------------------------------------------------------------- */

static struct qc_chain *chain(struct qc_cache *c, uint64_t pos)
{
	uint64_t n = pos >> c->page_bits;

	return &c->hash[(n * 0x9e3779b97f4a7c15ull >> 32) & c->hash_mask];
}

static struct qc_page *find(struct qc_cache *c, uint64_t pos)
{
	struct qc_page *p;

	LIST_FOREACH(p, chain(c, pos), chain)
		if (p->pos == pos)
			break;
	return p;
}

static void remove_page(struct qc_cache *c, struct qc_page *p)
{
	LIST_REMOVE(p, chain);
	TAILQ_REMOVE(&c->by_age, p, age);
	c->count--;
	c->dirty -= p->dirty;
	free(p->data); /* and with it p */
}

/* Dirty pages stay: transactions ask for a commit long before they fill the cache. */
static void make_room(struct qc_cache *c)
{
	for (unsigned tries = 64; tries && c->count >= c->max; tries--) {
		struct qc_page *p = TAILQ_LAST(&c->by_age, qc_ages);

		if (!p->loading && !p->dirty && !p->writing) {
			remove_page(c, p);
			continue;
		}
		/* Out of the way of those that can go. */
		TAILQ_REMOVE(&c->by_age, p, age);
		TAILQ_INSERT_HEAD(&c->by_age, p, age);
	}
}

static struct qc_page *add_page(struct qc_image *img, uint64_t pos)
{
	struct qc_cache *c = &img->cache;
	struct qc_page *p;
	void *data;

	make_room(c);
	if (posix_memalign(&data, MAX(page_size(img), 512u), page_size(img) + sizeof(*p)))
		return NULL;
	p = (struct qc_page *)((uint8_t *)data + page_size(img));
	*p = (struct qc_page){.pos = pos, .data = data};
	LIST_INSERT_HEAD(chain(c, pos), p, chain);
	TAILQ_INSERT_HEAD(&c->by_age, p, age);
	c->count++;
	return p;
}

/* ---- For transactions ---------------------------------------------------------------------- */

uint8_t *qc_meta(struct qc_image *img, uint64_t pos)
{
	struct qc_cache *c = &img->cache;
	uint64_t at = pos & (page_size(img) - 1);
	struct qc_page *p = find(c, pos - at);

	if (!p || p->loading) {
		qc_needs(img, NEED_PAGE, pos - at);
		return NULL;
	}
	if (p != TAILQ_FIRST(&c->by_age)) {
		TAILQ_REMOVE(&c->by_age, p, age);
		TAILQ_INSERT_HEAD(&c->by_age, p, age);
	}
	return p->data + at;
}

void qc_meta_dirty(struct qc_image *img, uint64_t pos, enum qc_step step)
{
	struct qc_page *p = find(&img->cache, pos & ~(page_size(img) - 1));

	img->cache.dirty += !p->dirty;
	p->dirty = true;
	p->step = (uint8_t)step;
}

static void forget(struct qc_image *img, uint64_t pos)
{
	for (uint64_t at = pos; at < pos + cluster_size(img); at += page_size(img)) {
		struct qc_page *p = find(&img->cache, at);

		if (p && !p->loading && !p->writing)
			remove_page(&img->cache, p);
	}
}

int qc_meta_table(struct qc_image *img, uint64_t pos, uint64_t from, enum qc_step step)
{
	for (uint64_t at = 0; at < cluster_size(img); at += page_size(img)) {
		const uint8_t *old = from ? qc_meta(img, from + at) : NULL;
		struct qc_page *p = find(&img->cache, pos + at) ?: add_page(img, pos + at);

		/* Room for the new pages may have been made of the old ones. */
		if (!p || p->loading || (from && !old)) {
			forget(img, pos);
			return !p ? -ENOMEM : p->loading ? -EBUSY : -EAGAIN;
		}
		if (old)
			memcpy(p->data, old, page_size(img));
		else
			memset(p->data, 0, page_size(img));
		p->fresh = true;
		qc_meta_dirty(img, pos + at, step);
	}
	return 0;
}

/* ---- Waiting ------------------------------------------------------------------------------- */

/* Lock held; given back while the page is being read, by us or by another. */
static int load_page(struct qc_image *img, struct ubd_queue *q, uint64_t pos)
{
	struct qc_page *p = find(&img->cache, pos);
	int ret;

	if (p && p->loading)
		qc_wait(img, q);
	if (p)
		return 0;
	p = add_page(img, pos);
	if (!p)
		return -ENOMEM;
	p->loading = true;
	pthread_mutex_unlock(&img->lock);
	ret = qc_file_read(&img->file, q, p->data, page_size(img), pos);
	pthread_mutex_lock(&img->lock);
	p->loading = false;
	if (ret)
		remove_page(&img->cache, p);
	qc_wake(img, q);
	return ret;
}

int qc_needs(struct qc_image *img, enum qc_need_kind what, uint64_t pos)
{
	img->need->what = what;
	img->need->pos = pos;
	return -EAGAIN;
}

bool qc_again(struct qc_image *img, struct ubd_queue *q, struct qc_need *need, int *ret)
{
	if (*ret != -EAGAIN) {
		pthread_mutex_unlock(&img->lock);
		return false;
	}
	*ret = 0;
	if (need->what == NEED_TURN)
		qc_wait(img, q);
	else if (need->what == NEED_PAGE)
		*ret = load_page(img, q, need->pos);
	pthread_mutex_unlock(&img->lock);
	if (need->what == NEED_COMMIT)
		*ret = qc_commit(img, q);
	else if (need->what == NEED_ROOM)
		*ret = qc_file_reserve(&img->file, q, need->pos);
	return !*ret;
}

/* ---- All of it ----------------------------------------------------------------------------- */

int qc_cache_init(struct qc_image *img, uint64_t bytes)
{
	struct qc_cache *c = &img->cache;
	uint64_t pages, buckets = 64;

	c->page_bits = MIN(img->cluster_bits, 12);
	/* Copying a shared L2 table has two of them in memory at once. */
	pages = MAX(bytes >> c->page_bits, MIN_PAGES);
	pages = MAX(pages, 4ull << (img->cluster_bits - c->page_bits));
	c->max = (unsigned)MIN(pages, 1u << 26);
	while (buckets < c->max)
		buckets *= 2;
	c->hash_mask = (unsigned)(buckets - 1);
	TAILQ_INIT(&c->by_age);
	c->hash = calloc(buckets, sizeof(*c->hash));
	return c->hash ? 0 : -ENOMEM;
}

void qc_cache_drop(struct qc_image *img)
{
	while (!TAILQ_EMPTY(&img->cache.by_age))
		remove_page(&img->cache, TAILQ_FIRST(&img->cache.by_age));
}
