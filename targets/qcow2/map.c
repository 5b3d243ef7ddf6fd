/* SPDX-License-Identifier: MIT */
/* From guest clusters to host clusters: L1 and L2 tables, and what their entries mean. */
#include "qcow2.h"

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
	if (in_cluster(img, e->host) || e->alloc & e->zero || (e->alloc && !e->has_host) ||
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

void qc_entry_store(const struct qc_image *img, uint8_t *p, uint64_t word, uint64_t bits)
{
	put64(p, word);
	if (img->units > 1)
		put64(p + 8, bits);
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
	if (count && qc_is_metadata(img, first << img->cluster_bits, count << img->cluster_bits))
		qc_damaged(img, "a guest cluster's place", first << img->cluster_bits);
	else if (count)
		qc_free(img, first, count);
}

/* ---- Tables -------------------------------------------------------------------------------- */

int qc_map_get(struct qc_image *img, uint64_t guest, struct qc_entry *e)
{
	uint64_t l1_index = guest >> img->l2_bits, l1, place;
	uint64_t i = guest & ((1ull << img->l2_bits) - 1);
	uint8_t *p;
	int ret;

	*e = (struct qc_entry){0};
	if (l1_index >= img->l1_entries)
		return 0;
	p = qc_meta(img, img->l1_offset + l1_index * 8);
	if (!p)
		return -EAGAIN;
	l1 = get64(p);
	if (!(l1 & ENTRY_OFFSET))
		return 0;
	ret = qc_check_place(img, l1 & ENTRY_OFFSET, "an L2 table");
	if (ret)
		return ret;
	place = (l1 & ENTRY_OFFSET) + i * img->entry_size;
	p = qc_meta(img, place);
	if (!p)
		return -EAGAIN;
	if (qc_entry_parse(img, p, e))
		return qc_damaged(img, "an L2 entry", place);
	e->place = place;
	e->own_table = l1 & ENTRY_COPIED;
	return 0;
}

/* A new L2 table for the L1 entry at l1_pos: a copy of the shared one at `from`, or empty (0). */
static int new_table(struct qc_image *img, uint64_t l1_pos, uint64_t from)
{
	uint8_t *l1 = qc_meta(img, l1_pos);
	uint64_t first, count;
	bool zeroed;
	int ret;

	if (!l1)
		return -EAGAIN;
	/* Have all of the old one in memory before anything changes. */
	for (uint64_t at = 0; from && at < cluster_size(img); at += page_size(img))
		if (!qc_meta(img, from + at))
			return -EAGAIN;
	qc_meta_dirty(img, l1_pos, STEP_MAP); /* and with that it stays */
	ret = qc_alloc(img, 1, &first, &count, &zeroed);
	if (ret)
		return ret;
	/* Where its place is zero on disk, only pages with something in them need to go there. */
	if (from || !zeroed)
		ret = qc_meta_table(img, first << img->cluster_bits, from, STEP_MAP);
	if (ret) {
		qc_free(img, first, 1);
		return ret;
	}
	put64(l1, first << img->cluster_bits | ENTRY_COPIED);
	if (from)
		qc_free(img, from >> img->cluster_bits, 1);
	return 0;
}

int qc_map_prepare(struct qc_image *img, uint64_t guest, struct qc_entry *e)
{
	int ret = qc_map_get(img, guest, e);

	if (ret)
		return ret;
	if (img->broken || guest >> img->l2_bits >= img->l1_entries)
		return -EIO;
	if (qc_journal_full(img) || img->cache.dirty > img->cache.max / 2)
		return qc_needs(img, NEED_COMMIT, 0);
	if (e->own_table)
		return 0;
	return new_table(img, img->l1_offset + (guest >> img->l2_bits) * 8,
			 e->place - in_cluster(img, e->place))
		       ?: qc_map_get(img, guest, e);
}

void qc_map_set(struct qc_image *img, uint64_t guest, const struct qc_entry *old,
		const struct qc_entry *e)
{
	qc_entry_store(img, qc_meta(img, old->place), e->word, e->bits);
	qc_meta_dirty(img, old->place, STEP_MAP);
	qc_journal_add(img, guest, e->word, e->bits);
}

/* ---- Looking up ---------------------------------------------------------------------------- */

/* What bytes from `at` on, in one cluster, are, as far as that stays the same. */
static struct qc_extent classify(struct qc_image *img, const struct qc_entry *e, uint64_t at)
{
	unsigned first = (unsigned)(at >> img->unit_bits), units = img->units - first;
	uint32_t zero = e->zero >> first, alloc = e->alloc >> first;
	/* Units that are not as the first. */
	uint32_t others = (zero & 1 ? ~zero : zero) | (alloc & 1 ? ~alloc : alloc);
	struct qc_extent x = {.img = img, .host = e->host + at, .word = e->word};

	if (others)
		units = MIN(units, (unsigned)__builtin_ctz(others));
	x.len = ((uint64_t)(first + units) << img->unit_bits) - at;
	if (e->packed)
		x.kind = KIND_PACKED;
	else
		x.kind = zero & 1 ? KIND_ZERO : alloc & 1 ? KIND_DATA : KIND_HOLE;
	return x;
}

/* Lock held. One image's answer for up to len bytes, neighbours joined. */
static int lookup(struct qc_image *img, uint64_t offset, uint64_t len, struct qc_extent *x)
{
	struct qc_extent next;
	struct qc_entry e;
	int ret = qc_map_get(img, offset >> img->cluster_bits, &e);

	if (ret)
		return ret;
	*x = classify(img, &e, in_cluster(img, offset));
	while (x->len < len && x->kind != KIND_PACKED &&
	       !qc_map_get(img, (offset + x->len) >> img->cluster_bits, &e)) {
		next = classify(img, &e, in_cluster(img, offset + x->len));
		if (next.kind != x->kind || (x->kind == KIND_DATA && next.host != x->host + x->len))
			break;
		x->len += next.len;
	}
	x->len = MIN(x->len, len);
	return 0;
}

int qc_find(struct qc_image *top, struct ubd_queue *q, uint64_t offset, uint64_t len,
	    struct qc_extent *x)
{
	for (struct qc_image *img = top; img; img = img->backing) {
		/* Whole sectors, as direct I/O wants them. */
		uint64_t end = img->raw ? img->size : (img->size + 511) & ~511ull;
		int ret = 0;

		/* A backing that is smaller than its overlay reads as zeroes behind its end. */
		if (img != top || img->raw) {
			if (offset >= end)
				break;
			len = MIN(len, end - offset);
		}
		*x = (struct qc_extent){.kind = KIND_DATA, .img = img, .len = len, .host = offset};
		if (!img->raw)
			ret = QC_TRANSACTION(img, q, lookup(img, offset, len, x));
		if (ret)
			return ret;
		/* Data past the end of its file is zero: as long as that is by now. */
		end = atomic_load(&img->data->end);
		if (x->kind == KIND_DATA && x->host >= end)
			x->kind = KIND_ZERO;
		else if (x->kind == KIND_DATA)
			x->len = MIN(x->len, end - x->host);
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
