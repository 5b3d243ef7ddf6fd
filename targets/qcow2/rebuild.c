/* SPDX-License-Identifier: MIT */
/*
 * A new image beside the old one, in the same file: repair, snapshots, resize and recovery all
 * write new refcounts (and L1, L2 and snapshot tables where they differ) to clusters that the
 * image as it is does not use, and then replace the header's first sector. Before that write the
 * image is the old one, after it the new one; there is nothing in between, and no step to undo.
 *
 * References are counted from the tables themselves, refcounts unseen.
 */
#define _GNU_SOURCE
#include "qcow2.h"

#include <sys/mman.h>

#define MAX_CLUSTERS (1ull << 31)
#define MAX_L1_ENTRIES (1ull << 26)

/* Of a host cluster: references in the image to come, and these. */
#define MARK_USED (1u << 31)  /* part of the image as it is or is to be: not to be taken */
#define MARK_TABLE (1u << 30) /* an L2 table in .tables */
#define MARK_COUNT (MARK_TABLE - 1)

/* An L2 table, and how often it counts in the image to come. */
struct table {
	uint64_t cluster;
	uint32_t times;
};

struct rebuild {
	struct qc_image *img;
	struct ubd_queue *q;
	const struct qc_world *w;
	uint8_t *header; /* of the image to come */
	uint32_t *marks; /* of each host cluster */
	uint64_t room;	 /* clusters in .marks */
	uint64_t top;	 /* the highest used, plus 1 */
	uint64_t cursor; /* no free one below */
	struct table *tables;
	size_t nr_tables;
	uint64_t l1_seen;    /* entries looked at: bounds the work a hostile image can ask for */
	uint8_t *buffer;     /* a cluster */
	uint8_t *l1;	     /* the new one */
	uint64_t l1_entries; /* of it */
	uint32_t patch;	     /* the next to be worked in */
};

static int damaged(struct rebuild *r, const char *what, unsigned long long pos)
{
	qc_damaged(r->img, what, pos);
	return qc_fail(r->img, -EIO,
		       " is damaged: %s at %llu is wrong; try qemu-img check -r all on a copy",
		       what, pos);
}

static int read_cluster(struct rebuild *r, uint64_t pos)
{
	return qc_file_read(&r->img->file, r->q, r->buffer, cluster_size(r->img), pos);
}

/* ---- Counting references ------------------------------------------------------------------- */

/* `count` clusters from the byte pos on are in use, and have `times` more references. */
static int mark(struct rebuild *r, uint64_t pos, uint64_t count, uint32_t times)
{
	uint64_t first = pos >> r->img->cluster_bits;
	uint64_t end = clusters_for(r->img, atomic_load(&r->img->file.end));

	if (count > end || first > end - count)
		return damaged(r, "a reference past the end of the file,", pos);
	for (uint64_t i = first; i < first + count; i++) {
		if ((r->marks[i] & MARK_COUNT) + (uint64_t)times > MARK_COUNT)
			return damaged(r, "the number of references to a cluster", pos);
		r->marks[i] = (r->marks[i] + times) | MARK_USED;
	}
	r->top = MAX(r->top, first + count);
	return 0;
}

/* The L2 table at pos counts `times` times more. */
static int mark_table(struct rebuild *r, uint64_t pos, uint32_t times)
{
	uint64_t cluster = pos >> r->img->cluster_bits;
	void *more;
	int ret;

	if (in_cluster(r->img, pos))
		return damaged(r, "an L2 table", pos);
	ret = mark(r, pos, 1, times);
	if (ret || r->marks[cluster] & MARK_TABLE)
		return ret;
	r->marks[cluster] |= MARK_TABLE;
	more = qc_grow(r->tables, r->nr_tables, sizeof(*r->tables));
	if (!more)
		return -ENOMEM;
	r->tables = more;
	r->tables[r->nr_tables++].cluster = cluster;
	return 0;
}

/* What the entries of a table at pos point at: L2 tables, or refcount blocks as they are. */
static int mark_below(struct rebuild *r, uint64_t pos, uint64_t entries, bool l1, uint32_t times)
{
	uint64_t size = cluster_size(r->img), mask = l1 ? ENTRY_OFFSET : RT_OFFSET_MASK, word;
	int ret = 0;

	for (uint64_t i = 0; i < entries * 8 && !ret; i += 8) {
		if (i % size == 0)
			ret = read_cluster(r, pos + i);
		word = get64(r->buffer + i % size) & mask;
		if (ret || !word)
			continue;
		/* A block whose place cannot be right is replaced. */
		if (l1)
			ret = mark_table(r, word, times);
		else if (word < atomic_load(&r->img->file.end))
			ret = mark(r, word, 1, times);
	}
	return ret;
}

/* An L1 table, its own clusters and its L2 tables; these count `times` times. */
static int mark_l1(struct rebuild *r, uint64_t pos, uint64_t entries, uint32_t times)
{
	r->l1_seen += entries;
	if (entries > MAX_L1_BYTES / 8 || r->l1_seen > MAX_L1_ENTRIES || in_cluster(r->img, pos))
		return damaged(r, "an L1 table", pos);
	return mark(r, pos, clusters_for(r->img, entries * 8), times)
		       ?: mark_below(r, pos, entries, true, times);
}

/* The data of the L2 table in .buffer, which is at pos. */
static int mark_data(struct rebuild *r, uint64_t pos, uint32_t times)
{
	int ret = 0;

	for (uint64_t at = 0; at < cluster_size(r->img) && !ret; at += r->img->entry_size) {
		uint64_t first, count;
		struct qc_entry e;

		if (qc_entry_parse(r->img, r->buffer + at, &e))
			return damaged(r, "an L2 entry", pos + at);
		count = qc_entry_clusters(r->img, &e, &first);
		if (count)
			ret = mark(r, first << r->img->cluster_bits, count, times);
	}
	return ret;
}

/* The image as it is, and of the new one everything but the disk. */
static int take_stock(struct rebuild *r)
{
	const struct qc_world *w = r->w;
	struct qc_image *img = r->img;
	uint64_t snapshots = clusters_for(img, w->now->bytes);
	int ret;

	/* The refcounts as they are are not counted: others take their place. */
	ret = mark(r, 0, 1, 1)
		      ?: mark(r, img->rt_offset, img->rt_clusters, 0)
		      ?: mark_below(r, img->rt_offset, rt_entries(img), false, 0)
		      ?: mark_l1(r, img->l1_offset, img->l1_entries, w->created)
		      ?: snapshots ? mark(r, img->snapshots_offset, snapshots, 0) : 0;
	for (unsigned i = 0; i < w->now->count && !ret; i++) {
		const struct qc_snapshot *s = &w->now->items[i];

		ret = mark_l1(r, s->l1_offset, s->l1_entries, s != w->gone);
	}
	/* Before data is counted: a table that is data as well must not count for both. */
	for (size_t i = 0; i < r->nr_tables; i++)
		r->tables[i].times = r->marks[r->tables[i].cluster] & MARK_COUNT;
	for (size_t i = 0; i < r->nr_tables && !ret; i++) {
		uint64_t pos = r->tables[i].cluster << img->cluster_bits;

		ret = read_cluster(r, pos) ?: mark_data(r, pos, r->tables[i].times);
	}
	return ret;
}

/* ---- New clusters -------------------------------------------------------------------------- */

/* Clusters in a row that neither the image as it is nor the one to come uses; now referenced. */
static int take(struct rebuild *r, uint64_t count, uint64_t *pos)
{
	uint64_t first = r->cursor, n = 0;

	while (n < count) {
		if (first + n >= r->room)
			return -ENOSPC;
		if (r->marks[first + n]) {
			first += n + 1;
			n = 0;
		} else {
			n++;
		}
	}
	/* Runs may have left single ones behind: only those count as looked at. */
	if (count == 1)
		r->cursor = first + 1;
	*pos = first << r->img->cluster_bits;
	return qc_file_reserve(&r->img->file, r->q, (first + count) << r->img->cluster_bits)
		       ?: mark(r, *pos, count, 1);
}

/* The same, with what is to be in them. */
static int put(struct rebuild *r, const void *data, uint64_t count, uint64_t *pos)
{
	return take(r, count, pos)
		       ?: qc_file_write(&r->img->file, r->q, data, count << r->img->cluster_bits,
					*pos);
}

/* ---- The disk's tables --------------------------------------------------------------------- */

/* The L1 that the new one is made from, and no entry more than either has. */
static int load_source(struct rebuild *r)
{
	const struct qc_world *w = r->w;
	const struct qc_image *img = r->img;
	unsigned shift = img->cluster_bits + img->l2_bits;
	uint64_t source = w->adopt ? w->adopt->l1_offset : img->l1_offset;
	uint64_t there = (w->adopt ? w->adopt->l1_entries : img->l1_entries) * 8ull, used, room;
	int ret;

	r->l1_entries = (w->size + (1ull << shift) - 1) >> shift;
	if (r->l1_entries > MAX_L1_BYTES / 8)
		return qc_fail(img, -EFBIG,
			       ": a disk of %llu bytes is too large for clusters of %llu",
			       (unsigned long long)w->size, (unsigned long long)cluster_size(img));
	used = MIN(r->l1_entries * 8, there);
	room = clusters_for(img, MAX(r->l1_entries * 8, there)) << img->cluster_bits;
	r->l1 = qc_buffer(room);
	if (!r->l1)
		return -ENOMEM;
	ret = qc_file_read(&r->img->file, r->q, r->l1, room, source);
	memset(r->l1 + used, 0, room - used);
	return ret;
}

/* The new disk's L2 table i in .buffer, from the one at pos (0: none). 1: changed, 0 or -errno. */
static int load_table(struct rebuild *r, uint64_t i, uint64_t pos)
{
	struct qc_image *img = r->img;
	uint64_t per = 1ull << img->l2_bits, first = i << img->l2_bits;
	uint64_t used = MIN(per, clusters_for(img, r->w->size) - first) * img->entry_size;
	bool changed = false;
	int ret = 0;

	if (pos)
		ret = read_cluster(r, pos);
	else
		memset(r->buffer, 0, cluster_size(img));
	for (; r->patch < img->nr_patches && img->patches[r->patch].guest < first + per;
	     r->patch++) {
		const struct qc_patch *p = &img->patches[r->patch];

		qc_entry_store(img, r->buffer + (p->guest - first) * img->entry_size, p->word,
			       p->bits);
		changed = true;
	}
	/* What lies behind the end of a disk that becomes smaller. */
	if (r->w->size < img->size && used < cluster_size(img)) {
		memset(r->buffer + used, 0, cluster_size(img) - used);
		changed |= pos != 0;
	}
	return ret ?: changed;
}

/* Each entry says whether its cluster is its own. What differs from before gets a new place. */
static int write_table(struct rebuild *r, uint64_t i, uint64_t pos, bool changed)
{
	struct qc_image *img = r->img;
	int ret;

	for (uint64_t at = 0; at < cluster_size(img); at += img->entry_size) {
		uint64_t first;
		struct qc_entry e;

		if (qc_entry_parse(img, r->buffer + at, &e))
			return damaged(r, "an L2 entry", pos + at);
		if (!e.packed && qc_entry_clusters(img, &e, &first) &&
		    e.copied != ((r->marks[first] & MARK_COUNT) == 1)) {
			put64(r->buffer + at, e.word ^ ENTRY_COPIED);
			changed = true;
		}
	}
	/* A snapshot's table stays the snapshot's. */
	if (changed || r->marks[pos >> img->cluster_bits] & MARK_COUNT)
		ret = put(r, r->buffer, 1, &pos);
	else
		ret = mark(r, pos, 1, 1);
	put64(r->l1 + i * 8, pos | ENTRY_COPIED);
	return ret;
}

/* First all references, then who has a cluster to itself. */
static int each_table(struct rebuild *r, bool write)
{
	int ret = 0;

	r->patch = 0;
	for (uint64_t i = 0; i < r->l1_entries && !ret; i++) {
		uint64_t pos = get64(r->l1 + i * 8) & ENTRY_OFFSET;
		int changed = load_table(r, i, pos);

		ret = MIN(changed, 0);
		if (ret || (!pos && !changed))
			put64(r->l1 + i * 8, 0);
		else
			ret = write ? write_table(r, i, pos, changed) : mark_data(r, pos, 1);
	}
	return ret;
}

/* The disk's tables, and that of the snapshots. */
static int make_tables(struct rebuild *r)
{
	const struct qc_world *w = r->w;
	uint64_t l1 = 0, snapshots = 0;
	/* Others' bitmaps lie in clusters that are not counted: stale before one is taken. */
	int ret = each_table(r, false)
			  ?: qc_header_claim(r->img, r->q, 0)
			  ?: each_table(r, true)
			  ?: put(r, r->l1, clusters_for(r->img, r->l1_entries * 8), &l1);

	memcpy(r->header, r->img->header, page_size(r->img));
	if (!ret && w->bytes)
		ret = put(r, w->now->table, clusters_for(r->img, w->bytes), &snapshots);
	put32(r->header + HDR_L1_ENTRIES, (uint32_t)r->l1_entries);
	put64(r->header + HDR_L1_OFFSET, l1);
	put32(r->header + HDR_SNAPSHOTS, w->now->count + w->created - (w->gone != NULL));
	put64(r->header + HDR_SNAPSHOTS_OFFSET, snapshots);
	return ret;
}

/* ---- Refcounts ----------------------------------------------------------------------------- */

bool qc_table_is_small(const struct qc_image *img)
{
	uint64_t clusters = clusters_for(img, atomic_load(&img->file.end));

	clusters += clusters_for(img, img->size) + clusters_for(img, img->size / 8);
	return rt_entries(img) * 8 < MAX_RT_BYTES && rt_entries(img) << img->block_bits < clusters;
}

static int write_block(struct rebuild *r, uint64_t i, uint64_t pos)
{
	uint64_t per = 1ull << r->img->block_bits;
	unsigned bits = r->img->refcount_bits;
	uint64_t most = bits >= 32 ? MARK_COUNT : (1ull << bits) - 1;

	memset(r->buffer, 0, cluster_size(r->img));
	for (uint64_t k = 0; k < per && i * per + k < r->top; k++) {
		uint32_t n = r->marks[i * per + k] & MARK_COUNT;

		if (n > most)
			return qc_fail(r->img, -E2BIG,
				       ": a cluster would have %u references, too many for %u bits",
				       n, bits);
		qc_ref_poke(r->buffer, bits, k, n);
	}
	return qc_file_write(&r->img->file, r->q, r->buffer, cluster_size(r->img), pos);
}

/*
 * Table and blocks in one run. The blocks are dense: they count all there is, themselves included.
 * The table could count that and a disk full of new data, and as much again.
 */
static int write_refcounts(struct rebuild *r)
{
	const struct qc_image *img = r->img;
	uint64_t per = 1ull << img->block_bits, per_table = per * (cluster_size(img) / 8);
	uint64_t want = 2 * (r->top + r->top / per + clusters_for(img, r->w->size)) + 65536;
	uint64_t count = MIN(want / per_table + 1, MAX(MAX_RT_BYTES >> img->cluster_bits, 1u));
	uint64_t blocks = (r->top + count + per - 2) / (per - 1);
	uint64_t bytes = count << img->cluster_bits, start = 0, pos;
	uint8_t *table;
	int ret;

	if (blocks * per > count * per_table)
		return -EFBIG;
	table = qc_buffer(bytes);
	if (!table)
		return -ENOMEM;
	memset(table, 0, bytes);
	ret = take(r, count + blocks, &start);
	for (uint64_t i = 0; i < blocks && !ret; i++) {
		pos = start + bytes + (i << img->cluster_bits);
		put64(table + i * 8, pos);
		ret = write_block(r, i, pos);
	}
	ret = ret ?: qc_file_write(&r->img->file, r->q, table, bytes, start);
	put32(r->header + HDR_RT_CLUSTERS, (uint32_t)count);
	put64(r->header + HDR_RT_OFFSET, start);
	free(table);
	return ret;
}

/* ---- The switch ---------------------------------------------------------------------------- */

static int switch_over(struct rebuild *r)
{
	struct qc_image *img = r->img;
	/* Also what a dead server's journal maps in the data file, and is durable nowhere. */
	int ret = qc_sync(img, r->q);

	if (ret)
		return ret;
	put64(r->header + HDR_SIZE, r->w->size);
	if (img->version > 2)
		put64(r->header + HDR_INCOMPATIBLE,
		      img->incompatible & ~(INCOMPAT_DIRTY | INCOMPAT_CORRUPT));
	ret = qc_file_write(&img->file, r->q, r->header, page_size(img), 0);
	/* It may be there all the same, with tables that the old one knows nothing of. */
	if (ret && (qc_file_write(&img->file, r->q, img->header, page_size(img), 0)
			    ?: qc_file_sync(&img->file, r->q)))
		return qc_damaged(img, "the header, which could not be written,", 0);
	if (ret)
		return ret;
	/* Written: whatever the sync says, the file may say so from now on. */
	pthread_mutex_lock(&img->lock);
	memcpy(img->header, r->header, page_size(img));
	qc_header_take(img, r->header);
	atomic_store(&img->marked, false);
	atomic_store(&img->broken, false);
	qc_cache_drop(img);
	/* Unmapped clusters: no longer counted, whatever they were. */
	img->nr_freed = img->sealed = img->limbo = img->leaving = 0;
	img->hint = 0;
	img->packed_seen++;
	qc_journal_reset(img);
	pthread_mutex_unlock(&img->lock);
	/* The old header may be what is durable: none of its tables' clusters is taken again. */
	ret = qc_file_sync(&img->file, r->q);
	return ret ? qc_damaged(img, "the header, which may not be durable,", 0) : 0;
}

static int make_room(struct rebuild *r)
{
	const struct qc_image *img = r->img;
	uint64_t count = clusters_for(img, atomic_load(&img->file.end));

	/* Room for a second copy of all tables and for larger ones. */
	r->room = count * 2 + clusters_for(img, img->l1_entries * 16ull) + 65536;
	if (r->room > MAX_CLUSTERS)
		return qc_fail(img, -EFBIG,
			       " has too many clusters (%llu) to count their references",
			       (unsigned long long)count);
	r->marks = mmap(NULL, r->room * sizeof(*r->marks), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	r->buffer = qc_buffer(cluster_size(img));
	r->header = qc_buffer(page_size(img));
	if (r->marks == MAP_FAILED || !r->buffer || !r->header)
		return -ENOMEM;
	return 0;
}

int qc_rebuild(struct qc_image *img, struct ubd_queue *q, const struct qc_world *w)
{
	struct rebuild r = {.img = img, .q = q, .w = w, .marks = MAP_FAILED};
	int ret;

	/* Before anything changes: can the kernel be told of another size at all? */
	if (q && w->size != img->size && ubd_device_resize(q, ubd_device_limits(img->dev)->size))
		return ubd_device_fail(img->dev, -EOPNOTSUPP,
				       "this driver cannot give a running device another size");
	ubd_mutex_lock(q, &img->commit_lock);
	/* Never at opening: a commit would be the end of a dead server's journal. */
	ret = img->cache.dirty || img->nr_freed ? qc_commit_locked(img, q) : 0;
	ret = ret ?: make_room(&r) ?: take_stock(&r) ?: load_source(&r) ?: make_tables(&r);
	ret = ret ?: write_refcounts(&r) ?: switch_over(&r);
	/* Also where it failed; nobody else is inside. */
	img->zero_from = MAX(img->zero_from, r.top);
	if (r.marks != MAP_FAILED)
		munmap(r.marks, r.room * sizeof(*r.marks));
	free(r.tables);
	free(r.buffer);
	free(r.header);
	free(r.l1);
	ubd_mutex_unlock(q, &img->commit_lock);
	return ret;
}
