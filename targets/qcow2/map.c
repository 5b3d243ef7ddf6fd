/* SPDX-License-Identifier: MIT */
/* From guest clusters to host clusters: L1 and L2 tables, and what their entries mean. */
#include "qcow2.h"

#include <errno.h>

/* ---- Entries ------------------------------------------------------------------------------- */

int qc_entry_parse(const struct qc_image *img, const uint8_t *p, struct qc_entry *e)
{
	bool extended = img->units > 1;
	uint64_t word = get64(p), bits = extended ? get64(p + 8) : 0;

	*e = (struct qc_entry){.word = word, .bits = bits, .copied = word & ENTRY_COPIED};
	if (word & ENTRY_PACKED) {
		e->packed = true;
		return img->external ? -EIO : 0;
	}
	e->host = word & ENTRY_OFFSET;
	e->has_host = e->host || (img->external && e->copied);
	if (extended) {
		e->alloc = (uint32_t)bits;
		e->zero = (uint32_t)(bits >> 32);
	} else if (word & ENTRY_ZERO) {
		e->zero = 1;
	} else {
		e->alloc = e->has_host;
	}
	if (e->host & (cluster_size(img) - 1) || e->alloc & e->zero || (e->alloc && !e->has_host) ||
	    (word & ENTRY_ZERO && (extended || img->version < 3)))
		return -EIO;
	return 0;
}

void qc_entry_build(const struct qc_image *img, struct qc_entry *e)
{
	e->word = e->has_host ? e->host | (e->copied ? ENTRY_COPIED : 0) : 0;
	e->bits = 0;
	if (img->units > 1)
		e->bits = (uint64_t)e->zero << 32 | e->alloc;
	else if (e->zero)
		e->word |= ENTRY_ZERO;
}

void qc_packed_range(const struct qc_image *img, uint64_t word, uint64_t *pos, uint64_t *len)
{
	unsigned x = 62 - (img->cluster_bits - 8);
	uint64_t sectors = ((word & ~(ENTRY_COPIED | ENTRY_PACKED)) >> x) + 1;

	*pos = word & ((1ull << MIN(x, 56u)) - 1);
	*len = sectors * 512 - (*pos & 511);
}

uint64_t qc_entry_clusters(const struct qc_image *img, const struct qc_entry *e, uint64_t *first)
{
	uint64_t pos = e->host, len = 1;

	/* A data file's clusters have their places whatever is mapped. */
	if (img->external || (!e->has_host && !e->packed))
		return 0;
	if (e->packed)
		qc_packed_range(img, e->word, &pos, &len);
	*first = pos >> img->cluster_bits;
	return ((pos + len - 1) >> img->cluster_bits) - *first + 1;
}

void qc_entry_drop(struct qc_image *img, const struct qc_entry *e)
{
	uint64_t first, count = qc_entry_clusters(img, e, &first);

	img->packed_seen += e->packed;
	if (count)
		qc_ranges_add(&img->freed, first, count);
}

/* ---- Tables -------------------------------------------------------------------------------- */

/* The L2 entry, in its page, and its place in the file; 0 and NULL: there is no L2 table. */
static int find_entry(struct qc_image *img, struct qc_tx *tx, uint64_t guest, uint64_t *place,
		      bool *own, uint8_t **p)
{
	uint64_t l1_index = guest >> l2_bits(img), word;
	uint8_t *l1;
	int ret;

	*place = 0;
	*p = NULL;
	if (l1_index >= img->l1_entries)
		return 0;
	l1 = qc_meta(img, tx, img->l1_offset + l1_index * 8);
	if (!l1)
		return -EAGAIN;
	word = get64(l1);
	if (!(word & ENTRY_OFFSET))
		return 0;
	ret = qc_check_place(img, word & ENTRY_OFFSET, "an L2 table");
	if (ret)
		return ret;
	*own = word & ENTRY_COPIED;
	*place = (word & ENTRY_OFFSET) + (guest & ((1ull << l2_bits(img)) - 1)) * entry_size(img);
	*p = qc_meta(img, tx, *place);
	return *p ? 0 : -EAGAIN;
}

int qc_map_get(struct qc_image *img, struct qc_tx *tx, uint64_t guest, struct qc_entry *e)
{
	uint64_t place;
	uint8_t *p;
	bool own;
	int ret = find_entry(img, tx, guest, &place, &own, &p);

	*e = (struct qc_entry){0};
	if (!ret && p && qc_entry_parse(img, p, e))
		ret = qc_damaged(img, "an L2 entry", place);
	return ret;
}

/* A new L2 table for an L1 entry: a copy of the shared one at `from`, or empty (0). */
static int new_table(struct qc_image *img, struct qc_tx *tx, uint8_t *l1, uint64_t l1_pos,
		     uint64_t from)
{
	uint64_t first, count;
	bool zeroed;
	int ret;

	/* Have all of the old one in memory before anything changes. */
	for (uint64_t at = 0; from && at < cluster_size(img); at += page_size(img))
		if (!qc_meta(img, tx, from + at))
			return -EAGAIN;
	qc_meta_dirty(img, l1_pos, STEP_MAP); /* and with that it stays */
	ret = qc_alloc(img, tx, 1, &first, &count, &zeroed);
	if (ret)
		return ret;
	/* Of a table whose place is zero on disk, only pages with something in them need to go
	 * there. */
	if (from || !zeroed)
		ret = qc_meta_table(img, tx, first << img->cluster_bits, from, STEP_MAP);
	if (ret) {
		qc_unalloc(img, first, 1);
		return ret;
	}
	put64(l1, first << img->cluster_bits | ENTRY_COPIED);
	if (from)
		qc_ranges_add(&img->freed, from >> img->cluster_bits, 1);
	return 0;
}

int qc_map_prepare(struct qc_image *img, struct qc_tx *tx, uint64_t guest)
{
	uint64_t l1_pos = img->l1_offset + (guest >> l2_bits(img)) * 8, place;
	bool own;
	uint8_t *l1, *p;
	int ret = find_entry(img, tx, guest, &place, &own, &p);

	if (ret)
		return ret;
	if (img->broken)
		return -EIO;
	if (qc_journal_full(img) || img->cache.dirty > img->cache.max / 2) {
		tx->need = NEED_COMMIT;
		return -EAGAIN;
	}
	if (place && own)
		return 0;
	l1 = qc_meta(img, tx, l1_pos);
	if (!l1)
		return -EAGAIN;
	ret = new_table(img, tx, l1, l1_pos, place ? place & ~(cluster_size(img) - 1) : 0);
	return ret ? ret : find_entry(img, tx, guest, &place, &own, &p);
}

void qc_map_set(struct qc_image *img, struct qc_tx *tx, uint64_t guest, const struct qc_entry *e)
{
	uint64_t place;
	bool own;
	uint8_t *p;

	/* All of it is cached: qc_map_prepare() has seen to that. */
	if (find_entry(img, tx, guest, &place, &own, &p) || !p)
		return;
	put64(p, e->word);
	if (img->units > 1)
		put64(p + 8, e->bits);
	qc_meta_dirty(img, place, STEP_MAP);
	qc_journal_add(img, guest, e->word, e->bits);
}

/* ---- Looking up ---------------------------------------------------------------------------- */

/* What bytes from `offset` on, within one cluster, are; sets kind and place and the length. */
static void classify(struct qc_image *img, const struct qc_entry *e, uint64_t offset,
		     struct qc_extent *x)
{
	uint64_t at = offset & (cluster_size(img) - 1), end;
	unsigned first = (unsigned)(at >> img->unit_bits), unit = first;
	uint32_t bit = 1u << first;

	if (e->packed) {
		x->kind = KIND_PACKED;
		x->word = e->word;
		x->at = at;
		x->len = cluster_size(img) - at;
		return;
	}
	x->kind = e->zero & bit ? KIND_ZERO : e->alloc & bit ? KIND_DATA : KIND_HOLE;
	while (unit < img->units && !((e->zero & bit) ^ (e->zero >> (unit - first) & bit)) &&
	       !((e->alloc & bit) ^ (e->alloc >> (unit - first) & bit)))
		unit++;
	end = (uint64_t)unit << img->unit_bits;
	x->len = end - at;
	x->host = e->host + at;
}

/* Lock held. One image's answer for up to len bytes, neighbours joined. */
static int lookup(struct qc_image *img, struct qc_tx *tx, uint64_t offset, uint64_t len,
		  struct qc_extent *x)
{
	uint64_t last = ((offset >> img->cluster_bits) | ((1ull << l2_bits(img)) - 1));
	struct qc_entry e;
	int ret = qc_map_get(img, tx, offset >> img->cluster_bits, &e);

	x->img = img;
	x->len = 0;
	if (!ret)
		classify(img, &e, offset, x);
	while (!ret && x->len < len && x->kind != KIND_PACKED &&
	       (offset + x->len) >> img->cluster_bits <= last) {
		struct qc_extent next;

		if (qc_map_get(img, tx, (offset + x->len) >> img->cluster_bits, &e))
			break;
		classify(img, &e, offset + x->len, &next);
		if (next.kind != x->kind || (x->kind == KIND_DATA && next.host != x->host + x->len))
			break;
		x->len += next.len;
	}
	x->len = MIN(x->len, len);
	return ret;
}

/* Data past the end of its file is zero. */
static void clip_to_file(struct qc_extent *x)
{
	uint64_t end = atomic_load(&x->img->data->end);

	if (x->kind != KIND_DATA)
		return;
	if (x->host >= end)
		x->kind = KIND_ZERO;
	else
		x->len = MIN(x->len, end - x->host);
}

int qc_find(struct qc_image *top, struct ubd_queue *q, uint64_t offset, uint64_t len,
	    struct qc_extent *x)
{
	for (struct qc_image *img = top; img; img = img->backing) {
		int ret = 0;

		/* A backing that is smaller than its overlay reads as zeroes behind its end. */
		if (img != top || img->raw) {
			if (offset >= img->size)
				break;
			len = MIN(len, img->size - offset);
		}
		*x = (struct qc_extent){.kind = KIND_DATA, .img = img, .len = len, .host = offset};
		if (!img->raw)
			QC_TRANSACTION(img, q, ret, lookup(img, tx, offset, len, x));
		if (ret)
			return ret;
		clip_to_file(x);
		if (x->kind != KIND_HOLE)
			return 0;
		len = x->len;
	}
	*x = (struct qc_extent){.kind = KIND_ZERO, .img = top, .len = len};
	return 0;
}

int qc_is_zero(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len)
{
	struct qc_extent x;

	for (; len; offset += x.len, len -= x.len) {
		int ret = qc_find(img, q, offset, len, &x);

		if (ret || x.kind != KIND_ZERO)
			return ret;
	}
	return 1;
}
