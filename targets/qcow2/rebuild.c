/* SPDX-License-Identifier: MIT */
/*
 * A new image beside the old one, in the same file: repair, snapshots, resize and recovery all
 * write new refcounts (and L1, L2 and snapshot tables where they differ) to clusters that the
 * image as it is does not use, and then replace the header's first sector. Before that write the
 * image is the old one, after it the new one; there is nothing in between, and no step to undo.
 */
#include "census.h"

#include <errno.h>
#include <stdlib.h>

struct rebuild {
	struct census c;
	struct qc_image *img;
	const struct qc_world *w;
	struct qc_image next;	 /* only what the header says */
	uint8_t *l1;		 /* the new one */
	uint64_t source_entries; /* of the L1 that the new one is made from */
	uint32_t patch;		 /* the next to be worked in */
};

/* ---- The disk's tables --------------------------------------------------------------------- */

/* Contents of L2 table i of the new disk in c.buffer. 1: there is one, at *pos before; 0: none. */
static int next_table(struct rebuild *r, uint64_t i, uint64_t *pos, bool *changed)
{
	struct qc_image *img = r->img;
	uint64_t per = 1ull << l2_bits(img), first = i << l2_bits(img),
		 end = clusters_for(img, r->w->size);
	unsigned step = entry_size(img);
	int ret = 0;

	*pos = i < r->source_entries ? get64(r->l1 + i * 8) & ENTRY_OFFSET : 0;
	*changed = false;
	if (*pos)
		ret = qc_file_read(&img->file, r->c.q, r->c.buffer, cluster_size(img), *pos);
	else
		memset(r->c.buffer, 0, cluster_size(img));
	for (; r->patch < img->nr_patches && img->patches[r->patch].guest < first + per;
	     r->patch++) {
		const struct qc_patch *p = &img->patches[r->patch];
		uint8_t *at = r->c.buffer + (p->guest - first) * step;

		put64(at, p->word);
		if (step > 8)
			put64(at + 8, p->bits);
		*changed = true;
	}
	for (uint64_t k = end > first ? end - first : 0; k < per && r->w->size < img->size; k++) {
		uint8_t *at = r->c.buffer + k * step;

		*changed |= get64(at) != 0;
		memset(at, 0, step);
	}
	return ret ? ret : *pos || *changed;
}

/* Its data: one reference each. */
static int count_table(struct rebuild *r, uint64_t i, uint64_t pos, bool changed)
{
	(void)i;
	(void)changed;
	return census_entries(&r->c, pos, 1);
}

/* Each entry says whether its cluster is its own. What differs from before gets a new place. */
static int write_table(struct rebuild *r, uint64_t i, uint64_t pos, bool changed)
{
	struct qc_image *img = r->img;
	int ret;

	for (uint64_t at = 0; at < cluster_size(img); at += entry_size(img)) {
		uint64_t first;
		struct qc_entry e;
		bool own;

		if (qc_entry_parse(img, r->c.buffer + at, &e))
			return census_damaged(&r->c, "an L2 entry", pos + at);
		if (e.packed || !qc_entry_clusters(img, &e, &first))
			continue;
		own = (r->c.marks[first] & CENSUS_COUNT) == 1;
		if (own != e.copied) {
			put64(r->c.buffer + at, e.word ^ ENTRY_COPIED);
			changed = true;
		}
	}
	/* A snapshot's table stays the snapshot's. */
	if (changed || r->c.marks[pos >> img->cluster_bits] & CENSUS_COUNT)
		ret = census_put(&r->c, r->c.buffer, 1, &pos);
	else
		ret = census_mark(&r->c, pos, 1, 1, 0);
	put64(r->l1 + i * 8, pos | ENTRY_COPIED);
	return ret;
}

static int each_table(struct rebuild *r,
		      int (*fn)(struct rebuild *r, uint64_t i, uint64_t pos, bool changed))
{
	int ret = 0;

	r->patch = 0;
	for (uint64_t i = 0; i < r->next.l1_entries && !ret; i++) {
		uint64_t pos;
		bool changed;

		ret = next_table(r, i, &pos, &changed);
		if (ret > 0)
			ret = fn(r, i, pos, changed);
		else
			put64(r->l1 + i * 8, 0);
	}
	return ret;
}

/* First all references, then who has a cluster to itself. */
static int make_disk(struct rebuild *r)
{
	return each_table(r, count_table) ?: each_table(r, write_table);
}

/* ---- Everything else ----------------------------------------------------------------------- */

/* The image as it is, and of the new one everything but the disk. */
static int take_stock(struct rebuild *r)
{
	const struct qc_world *w = r->w;
	struct qc_image *img = r->img;
	int ret = census_mark(&r->c, 0, 1, 1, CENSUS_OLD) ?: census_spare_refcounts(&r->c);

	if (!ret && w->now->count)
		ret = census_mark(&r->c, img->snapshots_offset, clusters_for(img, w->now->bytes),
				  !w->added && !w->gone, CENSUS_OLD);
	if (!ret)
		ret = census_l1(&r->c, img->l1_offset, img->l1_entries, w->added != NULL);
	for (unsigned i = 0; i < w->now->count && !ret; i++) {
		const struct qc_snapshot *s = &w->now->items[i];

		ret = census_l1(&r->c, s->l1_offset, s->l1_entries, s != w->gone);
	}
	return ret ? ret : census_tables(&r->c);
}

static int load_source(struct rebuild *r)
{
	const struct qc_world *w = r->w;
	unsigned shift = r->img->cluster_bits + l2_bits(r->img);
	uint64_t entries = (w->size + (1ull << shift) - 1) >> shift, bytes;
	uint64_t source = w->adopt ? w->adopt->l1_offset : r->img->l1_offset;

	r->source_entries = w->adopt ? w->adopt->l1_entries : r->img->l1_entries;
	if (entries > MAX_L1_BYTES / 8)
		return qc_fail(
			r->img, -EFBIG, ": a disk of %llu bytes is too large for clusters of %llu",
			(unsigned long long)w->size, (unsigned long long)cluster_size(r->img));
	r->next.l1_entries = (uint32_t)entries;
	bytes = clusters_for(r->img, MAX(entries, r->source_entries) * 8) << r->img->cluster_bits;
	if (posix_memalign((void **)&r->l1, 4096, bytes))
		return -ENOMEM;
	memset(r->l1, 0, bytes);
	return qc_file_read(&r->img->file, r->c.q, r->l1,
			    clusters_for(r->img, r->source_entries * 8) << r->img->cluster_bits,
			    source);
}

static int write_l1(struct rebuild *r)
{
	uint64_t used = r->next.l1_entries * 8ull, n = clusters_for(r->img, used);

	memset(r->l1 + used, 0, (n << r->img->cluster_bits) - used);
	return census_put(&r->c, r->l1, n, &r->next.l1_offset);
}

static int write_snapshots(struct rebuild *r)
{
	const struct qc_world *w = r->w;
	uint64_t bytes = w->now->bytes + (w->added ? w->added->length : 0);
	uint64_t n = clusters_for(r->img, bytes), at = 0;
	uint8_t *table;
	int ret;

	if (!w->added && !w->gone)
		return 0;
	if (posix_memalign((void **)&table, 4096, n << r->img->cluster_bits))
		return -ENOMEM;
	memset(table, 0, n << r->img->cluster_bits);
	r->next.nr_snapshots = 0;
	for (unsigned i = 0; i <= w->now->count; i++) {
		const struct qc_snapshot *s = i < w->now->count ? &w->now->items[i] : w->added;

		if (!s || s == w->gone)
			continue;
		memcpy(table + at, s->raw, s->length);
		at += s->length;
		r->next.nr_snapshots++;
	}
	r->next.snapshots_offset = 0;
	ret = at ? census_put(&r->c, table, clusters_for(r->img, at), &r->next.snapshots_offset)
		 : 0;
	free(table);
	return ret;
}

/* ---- Refcounts ----------------------------------------------------------------------------- */

/* What a table should be able to count: all there is and a disk full of new data, and as much
 * again. */
static uint64_t wanted_reach(const struct qc_image *img, uint64_t clusters, uint64_t size)
{
	return 2 * (clusters + clusters_for(img, size)) + 65536;
}

bool qc_table_is_small(const struct qc_image *img)
{
	uint64_t entries = (uint64_t)img->rt_clusters << (img->cluster_bits - 3);
	uint64_t clusters = clusters_for(img, atomic_load(&img->file.end));

	clusters += clusters_for(img, img->size) + clusters_for(img, img->size / 8);
	return entries * 8 < MAX_RT_BYTES && entries * refs_per_block(img) < clusters;
}

/* Table and blocks in one run; its blocks are dense: they count all there is, themselves included.
 */
static int place_refcounts(struct rebuild *r, uint64_t *blocks, uint64_t *table)
{
	const struct qc_image *img = r->img;
	uint64_t per = refs_per_block(img), in_one = cluster_size(img) / 8, n;
	uint64_t most = MAX(MAX_RT_BYTES >> img->cluster_bits, 1u);

	*blocks = *table = 0;
	do {
		n = *blocks + *table;
		*blocks = (r->c.top + n + per - 1) / per;
		*table = wanted_reach(img, r->c.top + n, r->w->size) / per / in_one + 1;
		*table = MIN(*table, most);
	} while (*blocks + *table != n);
	if (*blocks > *table * in_one)
		return -EFBIG;
	r->next.rt_clusters = (uint32_t)*table;
	return census_take(&r->c, n, &r->next.rt_offset);
}

static int write_block(struct rebuild *r, uint64_t i, uint64_t pos)
{
	uint64_t per = refs_per_block(r->img);
	unsigned bits = r->img->refcount_bits;
	uint64_t most = bits >= 32 ? CENSUS_COUNT : (1ull << bits) - 1;

	memset(r->c.buffer, 0, cluster_size(r->img));
	for (uint64_t k = 0; k < per && i * per + k < r->c.top; k++) {
		uint32_t n = r->c.marks[i * per + k] & CENSUS_COUNT;

		if (n > most)
			return qc_fail(r->img, -E2BIG,
				       ": a cluster would have %u references, more than its "
				       "refcounts of %u bits can say",
				       n, bits);
		qc_ref_poke(r->c.buffer, bits, k, n);
	}
	return qc_file_write(&r->img->file, r->c.q, r->c.buffer, cluster_size(r->img), pos);
}

static int write_refcounts(struct rebuild *r)
{
	uint64_t blocks, clusters, bytes, pos;
	int ret = place_refcounts(r, &blocks, &clusters);
	uint8_t *table;

	bytes = clusters << r->img->cluster_bits;
	if (ret || posix_memalign((void **)&table, 4096, bytes))
		return ret ? ret : -ENOMEM;
	memset(table, 0, bytes);
	for (uint64_t i = 0; i < blocks && !ret; i++) {
		pos = r->next.rt_offset + bytes + (i << r->img->cluster_bits);
		put64(table + i * 8, pos);
		ret = write_block(r, i, pos);
	}
	if (!ret)
		ret = qc_file_write(&r->img->file, r->c.q, table, bytes, r->next.rt_offset);
	free(table);
	return ret;
}

/* ---- The switch ---------------------------------------------------------------------------- */

static void forget(struct qc_ranges *r)
{
	free(r->items);
	*r = (struct qc_ranges){0};
}

static void adopt(struct qc_image *img, const uint8_t *header)
{
	pthread_mutex_lock(&img->lock);
	memcpy(img->header, header, page_size(img));
	qc_header_take(img, header);
	atomic_store(&img->marked, false);
	atomic_store(&img->broken, false);
	qc_cache_drop(img);
	forget(&img->freed);
	forget(&img->limbo);
	forget(&img->leaving);
	img->hint = 0;
	img->packed_seen++;
	qc_journal_reset(img);
	pthread_mutex_unlock(&img->lock);
}

static int switch_over(struct rebuild *r)
{
	struct qc_image *img = r->img;
	uint8_t *header;
	int ret = qc_file_sync(&img->file, r->c.q);

	if (ret || posix_memalign((void **)&header, 4096, page_size(img)))
		return ret ? ret : -ENOMEM;
	memcpy(header, img->header, page_size(img));
	r->next.size = r->w->size;
	r->next.incompatible &= ~(INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
	qc_header_fill(&r->next, header);
	ret = qc_file_write(&img->file, r->c.q, header, page_size(img), 0);
	/* Written: whatever the sync says, the file may say so from now on. */
	if (!ret)
		adopt(img, header);
	free(header);
	return ret ? ret : qc_file_sync(&img->file, r->c.q);
}

int qc_rebuild(struct qc_image *img, struct ubd_queue *q, const struct qc_world *w)
{
	static int (*const steps[])(struct rebuild * r) = {
		take_stock,	 load_source,	  make_disk,   write_l1,
		write_snapshots, write_refcounts, switch_over,
	};
	struct rebuild r = {.img = img, .w = w};
	int ret;

	/* Before anything changes: can the kernel be told of another size at all? */
	if (q && w->size != img->size && ubd_device_resize(q, ubd_device_limits(img->dev)->size))
		return ubd_device_fail(img->dev, -EOPNOTSUPP,
				       "this driver cannot give a running device another size");
	if (q)
		ubd_mutex_lock(q, &img->commit_lock);
	ret = img->cache.dirty || img->freed.count ? qc_commit_locked(img, q) : 0;
	memcpy(&r.next, img, sizeof(r.next));
	if (!ret)
		ret = census_begin(&r.c, img, q);
	for (unsigned i = 0; !ret && i < sizeof(steps) / sizeof(*steps); i++)
		ret = steps[i](&r);
	pthread_mutex_lock(&img->lock);
	img->zero_from = MAX(img->zero_from, r.c.top);
	pthread_mutex_unlock(&img->lock);
	census_end(&r.c);
	free(r.l1);
	if (q)
		ubd_mutex_unlock(q, &img->commit_lock);
	return ret;
}
