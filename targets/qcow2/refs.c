/* SPDX-License-Identifier: MIT */
/* Refcounts of host clusters, and finding free ones. */
#include "qcow2.h"

#include <errno.h>
#include <stdlib.h>

/* ---- Ranges -------------------------------------------------------------------------------- */

/* Out of memory only leaks the clusters: a check finds them. */
int qc_ranges_add(struct qc_ranges *r, uint64_t first, uint64_t count)
{
	struct qc_range *last = r->count ? &r->items[r->count - 1] : NULL;

	if (last && last->first + last->count == first) {
		last->count += count;
		return 0;
	}
	if (r->count == r->room) {
		size_t room = r->room ? r->room * 2 : 64;
		void *more = realloc(r->items, room * sizeof(*r->items));

		if (!more)
			return -ENOMEM;
		r->items = more;
		r->room = room;
	}
	r->items[r->count++] = (struct qc_range){first, count};
	return 0;
}

/* ---- Entries of a block -------------------------------------------------------------------- */

uint64_t qc_ref_peek(const uint8_t *block, unsigned bits, uint64_t i)
{
	switch (bits) {
	case 8:
		return block[i];
	case 16:
		return get16(block + i * 2);
	case 32:
		return get32(block + i * 4);
	case 64:
		return get64(block + i * 8);
	default:
		return block[i * bits / 8] >> (i * bits % 8) & ((1u << bits) - 1);
	}
}

void qc_ref_poke(uint8_t *block, unsigned bits, uint64_t i, uint64_t value)
{
	unsigned shift = (unsigned)(i * bits % 8), mask;

	switch (bits) {
	case 8:
		block[i] = (uint8_t)value;
		break;
	case 16:
		put16(block + i * 2, (uint16_t)value);
		break;
	case 32:
		put32(block + i * 4, (uint32_t)value);
		break;
	case 64:
		put64(block + i * 8, value);
		break;
	default:
		mask = ((1u << bits) - 1) << shift;
		block[i * bits / 8] = (uint8_t)((block[i * bits / 8] & ~mask) | value << shift);
	}
}

/* ---- Refcounts in the file ----------------------------------------------------------------- */

static unsigned block_bits(const struct qc_image *img)
{
	return img->cluster_bits + 3 - (unsigned)__builtin_ctz(img->refcount_bits);
}

static uint64_t table_entries(const struct qc_image *img)
{
	return (uint64_t)img->rt_clusters << (img->cluster_bits - 3);
}

bool qc_is_metadata(const struct qc_image *img, uint64_t pos, uint64_t len)
{
	struct {
		uint64_t pos, len;
	} areas[] = {
		{0, cluster_size(img)},
		{img->l1_offset, (uint64_t)img->l1_entries * 8},
		{img->rt_offset, (uint64_t)img->rt_clusters << img->cluster_bits},
		{img->snapshots_offset, img->nr_snapshots ? 1 : 0},
	};

	for (unsigned i = 0; i < sizeof(areas) / sizeof(*areas); i++)
		if (areas[i].len && pos < areas[i].pos + areas[i].len && areas[i].pos < pos + len)
			return true;
	return false;
}

/* Position of the block that counts `cluster`; 0: there is none. */
static int find_block(struct qc_image *img, struct qc_tx *tx, uint64_t cluster, uint64_t *pos)
{
	uint64_t i = cluster >> block_bits(img);
	uint8_t *p;

	*pos = 0;
	if (i >= table_entries(img))
		return 0;
	p = qc_meta(img, tx, img->rt_offset + i * 8);
	if (!p)
		return -EAGAIN;
	*pos = get64(p) & RT_OFFSET_MASK;
	if (*pos & (cluster_size(img) - 1) || (*pos && *pos >= atomic_load(&img->file.end)) ||
	    (*pos && qc_is_metadata(img, *pos, cluster_size(img))))
		return qc_damaged(img, "a refcount block", *pos);
	return 0;
}

/* The byte where the cluster's refcount is, rounded down to the page; *i: which entry of it. */
static int find_entry(struct qc_image *img, struct qc_tx *tx, uint64_t cluster, uint64_t *pos,
		      uint8_t **page, uint64_t *i)
{
	uint64_t per_page = page_size(img) * 8 / img->refcount_bits;
	int ret = find_block(img, tx, cluster, pos);

	*page = NULL;
	if (ret || !*pos)
		return ret;
	*i = cluster & ((1ull << block_bits(img)) - 1);
	*pos += *i / per_page * page_size(img);
	*i %= per_page;
	*page = qc_meta(img, tx, *pos);
	return *page ? 0 : -EAGAIN;
}

int qc_ref_get(struct qc_image *img, struct qc_tx *tx, uint64_t cluster, uint64_t *count)
{
	uint64_t pos, i;
	uint8_t *page;
	int ret = find_entry(img, tx, cluster, &pos, &page, &i);

	*count = !ret && page ? qc_ref_peek(page, img->refcount_bits, i) : 0;
	return ret;
}

int qc_ref_set(struct qc_image *img, struct qc_tx *tx, uint64_t cluster, uint64_t count)
{
	uint64_t pos, i;
	uint8_t *page;
	int ret = find_entry(img, tx, cluster, &pos, &page, &i);

	if (ret)
		return ret;
	if (!page)
		return qc_damaged(img, "the refcount of a cluster in use", cluster);
	qc_ref_poke(page, img->refcount_bits, i, count);
	qc_meta_dirty(img, pos, STEP_REFS);
	return 0;
}

/* ---- Finding free clusters ----------------------------------------------------------------- */

/* A block for the clusters around `cluster`, which no block counts: put there, it counts itself. */
static int new_block(struct qc_image *img, struct qc_tx *tx, uint64_t cluster)
{
	uint64_t table_pos = img->rt_offset + (cluster >> block_bits(img)) * 8;
	uint64_t pos = cluster << img->cluster_bits;
	bool zeroed = cluster >= img->zero_from;
	uint8_t *table = qc_meta(img, tx, table_pos), *page, *own;
	uint64_t own_pos, i;
	int ret;

	if (!table)
		return -EAGAIN;
	if (qc_is_metadata(img, pos, cluster_size(img)) || qc_cache_holds(img, pos))
		return qc_damaged(img, "the lack of a refcount block for metadata", pos);
	if (img->table_growing) {
		tx->need = NEED_TURN;
		return -EAGAIN;
	}
	/* All pages that may have to be written; where the disk is zero, only the one with its own
	 * count. */
	own_pos = pos + (cluster & ((1ull << block_bits(img)) - 1)) /
				(page_size(img) * 8 / img->refcount_bits) * page_size(img);
	for (uint64_t at = pos; at < pos + cluster_size(img); at += page_size(img)) {
		if (zeroed && at != own_pos)
			continue;
		ret = qc_meta_new(img, at, &page);
		if (ret) {
			qc_cache_forget(img, pos, cluster_size(img));
			return ret;
		}
		qc_meta_dirty(img, at, STEP_REFS);
	}
	put64(table, pos);
	qc_meta_dirty(img, table_pos, STEP_REFS);
	img->zero_from = MAX(img->zero_from, cluster + 1);
	ret = find_entry(img, tx, cluster, &own_pos, &own, &i);
	if (ret || !own)
		return ret ? ret : -EIO;
	qc_ref_poke(own, img->refcount_bits, i, 1);
	return 0;
}

/* Whether a cluster may be taken. 1: yes, 0: no. */
static int is_free(struct qc_image *img, struct qc_tx *tx, uint64_t cluster)
{
	uint64_t count;
	int ret = qc_ref_get(img, tx, cluster, &count);

	if (ret || count)
		return ret;
	/* A refcount of 0 on what is plainly in use: never hand that out. */
	if (qc_is_metadata(img, cluster << img->cluster_bits, cluster_size(img)))
		return qc_damaged(img, "the refcount of metadata", cluster << img->cluster_bits);
	return 1;
}

static int need_room(struct qc_image *img, struct qc_tx *tx, uint64_t end)
{
	tx->need = NEED_ROOM;
	tx->page = end;
	if (!img->file.b.is_block)
		return -EAGAIN;
	/* A disk does not grow, but a commit may free what has been unmapped. */
	if (tx->commits++ || !(img->freed.count + img->limbo.count + img->leaving.count))
		return -ENOSPC;
	tx->need = NEED_COMMIT;
	return -EAGAIN;
}

/* The first free cluster from the hint on, with a block to count it. */
static int first_free(struct qc_image *img, struct qc_tx *tx, uint64_t *first)
{
	for (;;) {
		uint64_t block, at = img->hint;
		int ret;

		if (at >> block_bits(img) >= table_entries(img)) {
			tx->need = NEED_TABLE;
			tx->page = img->rt_offset;
			return -EAGAIN;
		}
		if (at >= ENTRY_OFFSET >> img->cluster_bits)
			return -EFBIG;
		if ((at + 1) << img->cluster_bits > atomic_load(&img->file.end))
			return need_room(img, tx, (at + 1) << img->cluster_bits);
		ret = find_block(img, tx, at, &block);
		if (!ret && !block)
			ret = new_block(img, tx, at);
		if (!ret)
			ret = is_free(img, tx, at);
		if (ret < 0)
			return ret;
		if (ret) {
			*first = at;
			return 0;
		}
		img->hint++; /* a fact whether or not the rest of the transaction is repeated */
	}
}

int qc_alloc(struct qc_image *img, struct qc_tx *tx, uint64_t want, uint64_t *first,
	     uint64_t *count, bool *zeroed)
{
	uint64_t n = 1, block;
	int ret;

	if (img->broken)
		return -EIO;
	ret = first_free(img, tx, first);
	if (ret)
		return ret;
	*zeroed = *first >= img->zero_from;
	/* More, as long as they are there without further ado. */
	while (n < want && (*first + n >= img->zero_from) == *zeroed &&
	       !find_block(img, tx, *first + n, &block) && block &&
	       (*first + n + 1) << img->cluster_bits <= atomic_load(&img->file.end) &&
	       is_free(img, tx, *first + n) == 1)
		n++;
	for (uint64_t i = 0; i < n; i++) {
		/* Cached, all of them: they have just been looked at. */
		ret = qc_ref_set(img, tx, *first + i, 1);
		if (ret)
			return ret;
	}
	img->zero_from = MAX(img->zero_from, *first + n);
	img->hint = *first + n;
	*count = n;
	return 0;
}

void qc_unalloc(struct qc_image *img, uint64_t first, uint64_t count)
{
	struct qc_tx tx = {0};

	for (uint64_t i = 0; i < count; i++)
		if (qc_ref_set(img, &tx, first + i, 0) == -EAGAIN)
			qc_ranges_add(&img->freed, first + i, 1);
	img->hint = MIN(img->hint, first);
}

/* ---- A larger table ------------------------------------------------------------------------ */

struct growth {
	uint64_t first; /* cluster of the first new block; the table follows the blocks */
	uint64_t blocks, clusters, entries;
	uint8_t *data; /* blocks and table */
};

/* The new structure lies where the old table could not count, and counts itself. */
static int plan_growth(const struct qc_image *img, struct growth *g)
{
	uint64_t per_block = 1ull << block_bits(img);

	g->first = table_entries(img) << block_bits(img);
	g->clusters = (uint64_t)img->rt_clusters * 2;
	for (g->blocks = 1; g->blocks * per_block < g->blocks + g->clusters;)
		g->blocks++;
	while (g->clusters << (img->cluster_bits - 3) < table_entries(img) + g->blocks)
		g->clusters++;
	if (g->clusters << img->cluster_bits > MAX_RT_BYTES && img->rt_clusters > 1)
		return -EFBIG;
	g->entries = g->clusters << (img->cluster_bits - 3);
	if (posix_memalign((void **)&g->data, 4096, (g->blocks + g->clusters) << img->cluster_bits))
		return -ENOMEM;
	memset(g->data, 0, (g->blocks + g->clusters) << img->cluster_bits);
	for (uint64_t i = 0; i < g->blocks + g->clusters; i++)
		qc_ref_poke(g->data + ((i / per_block) << img->cluster_bits), img->refcount_bits,
			    i % per_block, 1);
	return 0;
}

static int write_growth(struct qc_image *img, struct ubd_queue *q, struct growth *g)
{
	uint8_t *table = g->data + (g->blocks << img->cluster_bits);
	uint64_t old = table_entries(img) * 8, pos = g->first << img->cluster_bits;
	uint64_t len = (g->blocks + g->clusters) << img->cluster_bits;
	struct qc_image next = *img;
	uint8_t *header;
	int ret = qc_file_reserve(&img->file, q, pos + len);

	/* Written or half written, it is zero no longer. */
	pthread_mutex_lock(&img->lock);
	img->zero_from = MAX(img->zero_from, g->first + g->blocks + g->clusters);
	pthread_mutex_unlock(&img->lock);

	if (!ret)
		ret = qc_file_read(&img->file, q, table, old, img->rt_offset);
	if (ret)
		return ret;
	for (uint64_t i = 0; i < g->blocks; i++)
		put64(table + old + i * 8, (g->first + i) << img->cluster_bits);
	ret = qc_file_write(&img->file, q, g->data, len, pos);
	if (!ret)
		ret = qc_file_sync(&img->file, q);
	if (ret || posix_memalign((void **)&header, 4096, page_size(img)))
		return ret ? ret : -ENOMEM;
	memcpy(header, img->header, page_size(img));
	next.rt_offset = (g->first + g->blocks) << img->cluster_bits;
	next.rt_clusters = (uint32_t)g->clusters;
	qc_header_fill(&next, header);
	/* The next commit makes it durable, before anything that relies on it. */
	ret = qc_header_write(img, q, header);
	free(header);
	return ret;
}

static void adopt_growth(struct qc_image *img, const struct growth *g)
{
	pthread_mutex_lock(&img->lock);
	qc_cache_forget(img, img->rt_offset, (uint64_t)img->rt_clusters << img->cluster_bits);
	qc_ranges_add(&img->freed, img->rt_offset >> img->cluster_bits, img->rt_clusters);
	img->rt_offset = (g->first + g->blocks) << img->cluster_bits;
	img->rt_clusters = (uint32_t)g->clusters;
	qc_header_fill(img, img->header);
	pthread_mutex_unlock(&img->lock);
}

int qc_table_grow(struct qc_image *img, struct ubd_queue *q, uint64_t old_offset)
{
	struct growth g = {0};
	int ret = 0;

	if (q)
		ubd_mutex_lock(q, &img->commit_lock);
	if (img->rt_offset != old_offset)
		goto out; /* somebody else has */
	pthread_mutex_lock(&img->lock);
	img->table_growing = true;
	pthread_mutex_unlock(&img->lock);
	/* Then the table on disk is the one in memory, and stays so. */
	ret = qc_commit_locked(img, q);
	if (!ret)
		ret = plan_growth(img, &g);
	if (!ret)
		ret = write_growth(img, q, &g);
	if (!ret)
		adopt_growth(img, &g);
	free(g.data);
	pthread_mutex_lock(&img->lock);
	img->table_growing = false;
	if (q)
		qc_wake(img, q);
	pthread_mutex_unlock(&img->lock);
out:
	if (q)
		ubd_mutex_unlock(q, &img->commit_lock);
	return ret;
}
