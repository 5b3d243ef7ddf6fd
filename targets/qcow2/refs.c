/* SPDX-License-Identifier: MIT */
/* Refcounts of host clusters, and finding free ones. */
#include "qcow2.h"

#define NO_BLOCK 2

/* ---- Unmapped clusters --------------------------------------------------------------------- */

void *qc_grow(void *items, size_t count, size_t size)
{
	return count & (count - 1) ? items : realloc(items, MAX(count * 2, 1u) * size);
}

/* Out of memory only leaks the clusters: a check finds them. */
void qc_free(struct qc_image *img, uint64_t first, uint64_t count)
{
	struct qc_range *last = img->nr_freed > img->sealed ? &img->freed[img->nr_freed - 1] : NULL;
	void *more;

	if (last && last->first + last->count == first) {
		last->count += count;
		return;
	}
	more = qc_grow(img->freed, img->nr_freed, sizeof(*img->freed));
	if (!more)
		return;
	img->freed = more;
	img->freed[img->nr_freed++] = (struct qc_range){first, count};
}

/* ---- Entries of a block -------------------------------------------------------------------- */

static uint64_t peek(const uint8_t *block, unsigned bits, uint64_t i)
{
	const uint8_t *p = block + i * bits / 8;
	uint64_t value = 0;

	for (unsigned k = 0; k < MAX(bits / 8, 1u); k++)
		value = value << 8 | p[k];
	return value >> i * bits % 8 & UINT64_MAX >> (64 - bits);
}

void qc_ref_poke(uint8_t *block, unsigned bits, uint64_t i, uint64_t value)
{
	unsigned shift = (unsigned)(i * bits % 8), mask = ((1u << MIN(bits, 8u)) - 1) << shift;
	uint8_t *p = block + i * bits / 8;

	if (bits < 8)
		*p = (uint8_t)((*p & ~mask) | value << shift);
	for (unsigned k = bits / 8; k-- > 0; value >>= 8)
		p[k] = (uint8_t)value;
}

/* ---- Refcounts in the file ----------------------------------------------------------------- */

bool qc_is_metadata(const struct qc_image *img, uint64_t pos, uint64_t len)
{
	const uint64_t areas[][2] = {
		{0, cluster_size(img)},
		{img->l1_offset, (uint64_t)img->l1_entries * 8},
		{img->rt_offset, (uint64_t)img->rt_clusters << img->cluster_bits},
		{img->snapshots_offset, img->nr_snapshots ? 1 : 0},
	};

	for (unsigned i = 0; i < sizeof(areas) / sizeof(*areas); i++)
		if (areas[i][1] && pos < areas[i][0] + areas[i][1] && areas[i][0] < pos + len)
			return true;
	return false;
}

int qc_check_place(struct qc_image *img, uint64_t pos, const char *what)
{
	if (in_cluster(img, pos) ||
	    pos >= atomic_load_explicit(&img->file.end, memory_order_relaxed) ||
	    qc_is_metadata(img, pos, cluster_size(img)))
		return qc_damaged(img, what, pos);
	return 0;
}

/* Where a refcount is. */
struct place {
	uint64_t pos;  /* of its page */
	uint8_t *page; /* NULL: no block counts the cluster */
	uint64_t i;    /* which of the page's entries */
};

static int find_entry(struct qc_image *img, uint64_t cluster, struct place *at)
{
	uint64_t block = cluster >> img->block_bits;
	uint64_t per_page = page_size(img) * 8 / img->refcount_bits;
	uint8_t *table;
	int ret;

	*at = (struct place){.i = cluster & ((1ull << img->block_bits) - 1)};
	if (block >= rt_entries(img))
		return 0;
	table = qc_meta(img, img->rt_offset + block * 8);
	if (!table)
		return -EAGAIN;
	at->pos = get64(table) & RT_OFFSET_MASK;
	ret = at->pos ? qc_check_place(img, at->pos, "a refcount block") : 0;
	if (ret || !at->pos)
		return ret;
	at->pos += at->i / per_page * page_size(img);
	at->i %= per_page;
	at->page = qc_meta(img, at->pos);
	return at->page ? 0 : -EAGAIN;
}

int qc_ref_get(struct qc_image *img, uint64_t cluster, uint64_t *count)
{
	struct place at;
	int ret = find_entry(img, cluster, &at);

	*count = !ret && at.page ? peek(at.page, img->refcount_bits, at.i) : 0;
	return ret;
}

int qc_ref_set(struct qc_image *img, uint64_t cluster, uint64_t count)
{
	struct place at;
	int ret = find_entry(img, cluster, &at);

	if (ret)
		return ret;
	if (!at.page)
		return qc_damaged(img, "the refcount of a cluster in use", cluster);
	qc_ref_poke(at.page, img->refcount_bits, at.i, count);
	qc_meta_dirty(img, at.pos, STEP_REFS);
	return 0;
}

/* ---- Finding free clusters ----------------------------------------------------------------- */

/* A block for the clusters around `cluster`, which no block counts: put there, it counts itself. */
static int new_block(struct qc_image *img, uint64_t cluster)
{
	uint64_t table_pos = img->rt_offset + (cluster >> img->block_bits) * 8;
	uint64_t pos = cluster << img->cluster_bits;
	uint8_t *table = qc_meta(img, table_pos);
	int ret;

	if (!table)
		return -EAGAIN;
	if (qc_is_metadata(img, pos, cluster_size(img)) || qc_meta(img, pos))
		return qc_damaged(img, "the lack of a refcount block for metadata", pos);
	qc_meta_dirty(img, table_pos, STEP_TABLE); /* and with that it stays */
	ret = qc_meta_table(img, pos, 0, STEP_REFS);
	if (ret)
		return ret;
	put64(table, pos);
	img->zero_from = MAX(img->zero_from, cluster + 1);
	return qc_ref_set(img, cluster, 1);
}

/* Whether a cluster may be taken: 1, 0, NO_BLOCK that counts it, or -errno. */
static int is_free(struct qc_image *img, uint64_t cluster)
{
	struct place at;
	int ret = find_entry(img, cluster, &at);

	if (ret || !at.page)
		return ret ?: NO_BLOCK;
	if (peek(at.page, img->refcount_bits, at.i))
		return 0;
	/* A refcount of 0 on what is plainly in use: never hand that out. */
	if (qc_is_metadata(img, cluster << img->cluster_bits, cluster_size(img)))
		return qc_damaged(img, "the refcount of metadata", cluster << img->cluster_bits);
	return 1;
}

static int need_room(struct qc_image *img, uint64_t end)
{
	if (!img->file.b.is_block)
		return qc_needs(img, NEED_ROOM, end);
	/* A disk does not grow, but a commit may free what has been unmapped. */
	if (img->need->commits++ || !img->nr_freed)
		return -ENOSPC;
	return qc_needs(img, NEED_COMMIT, 0);
}

/* The first free cluster from the hint on, with a block to count it. */
static int first_free(struct qc_image *img, uint64_t *first)
{
	/* What the hint passes is taken whether or not the rest of the transaction is repeated. */
	for (;; img->hint++) {
		uint64_t at = *first = img->hint;
		int ret;

		/* The table has been made large enough for what the disk can need. */
		if (at >> img->block_bits >= rt_entries(img) ||
		    at >= ENTRY_OFFSET >> img->cluster_bits)
			return -EFBIG;
		if ((at + 1) << img->cluster_bits > atomic_load(&img->file.end))
			return need_room(img, (at + 1) << img->cluster_bits);
		ret = is_free(img, at);
		if (ret == NO_BLOCK)
			ret = new_block(img, at);
		if (ret)
			return MIN(ret, 0);
	}
}

int qc_alloc(struct qc_image *img, uint64_t want, uint64_t *first, uint64_t *count, bool *zeroed)
{
	int ret;

	if (img->broken)
		return -EIO;
	ret = first_free(img, first);
	if (ret)
		return ret;
	*zeroed = *first >= img->zero_from;
	/* More than one, as long as they are there without further ado. */
	for (*count = 0;
	     !*count || (*count < want && (img->hint >= img->zero_from) == *zeroed &&
			 (img->hint + 1) << img->cluster_bits <= atomic_load(&img->file.end) &&
			 is_free(img, img->hint) == 1);
	     ++*count) {
		/* Cached: it has just been looked at. */
		ret = qc_ref_set(img, img->hint, 1);
		if (ret)
			return ret;
		img->hint++;
	}
	img->zero_from = MAX(img->zero_from, img->hint);
	return 0;
}
