/* SPDX-License-Identifier: MIT */
/* WRITE_ZEROES and DISCARD: changes of the mapping, where it can say "zeroes". */
#include "qcow2.h"

#include <errno.h>

#define ZERO_DATA_STEP (1u << 20)

struct zeroing {
	bool discard; /* need not take effect */
	bool keep;    /* the space stays allocated */
};

/* 1: the entry is to become *e; 0: it may stay; -ENOTSUP: only zeroes as data will do. */
static int new_entry(const struct qc_image *img, const struct zeroing *z,
		     const struct qc_entry *old, struct qc_entry *e)
{
	bool empty = !old->has_host && !old->packed && !old->zero;

	*e = (struct qc_entry){.zero = 0};
	if (!img->backing && !z->keep) {
		qc_entry_build(img, e);
		return !empty;
	}
	if (img->version < 3)
		return z->discard ? 0 : -ENOTSUP;
	e->zero = all_units(img);
	if (z->keep && old->has_host && old->copied) {
		e->has_host = e->copied = true;
		e->host = old->host;
	}
	qc_entry_build(img, e);
	return e->word != old->word || e->bits != old->bits;
}

/* Lock held. Whole clusters from `guest` on, at most n, as far as their page of L2 reaches. */
static int zero_clusters(struct qc_image *img, struct qc_tx *tx, uint64_t guest, uint64_t n,
			 const struct zeroing *z, uint64_t *done)
{
	uint64_t per_page = page_size(img) / entry_size(img);

	n = MIN(n, per_page - guest % per_page);
	for (*done = 0; *done < n; ++*done) {
		struct qc_entry old, e;
		int ret = qc_turn(img, tx, guest + *done);

		if (!ret)
			ret = qc_map_get(img, tx, guest + *done, &old);
		if (!ret)
			ret = new_entry(img, z, &old, &e);
		if (ret > 0)
			ret = qc_map_prepare(img, tx, guest + *done) ?: 1;
		if (ret < 0)
			return *done ? 0 : ret;
		if (!ret)
			continue;
		qc_map_set(img, tx, guest + *done, &e);
		if (old.packed || (old.has_host && !e.has_host))
			qc_entry_drop(img, &old);
	}
	return 0;
}

/* Part of one cluster: as data, where it is not zero already. */
static int zero_part(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len)
{
	int ret = qc_is_zero(img, q, offset, len);

	return ret ? MIN(ret, 0) : qc_write_range(img, q, NULL, offset, len);
}

/* A raw data file has the zeroes itself. */
static int zero_raw(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len,
		    const struct zeroing *z)
{
	int ret = z->keep ? -EOPNOTSUPP : qc_file_punch(img->data, q, offset, len);

	while (ret == -EOPNOTSUPP && len && !z->discard) {
		uint64_t part = MIN(len, ZERO_DATA_STEP);
		int err = qc_write_range(img, q, NULL, offset, part);

		if (err)
			return err;
		offset += part;
		len -= part;
	}
	return ret == -EOPNOTSUPP ? 0 : ret;
}

static int zero_whole(struct qc_image *img, struct ubd_queue *q, uint64_t guest, uint64_t n,
		      const struct zeroing *z)
{
	while (n) {
		uint64_t done;
		int ret;

		QC_TRANSACTION(img, q, ret, zero_clusters(img, tx, guest, n, z, &done));
		if (ret == -ENOTSUP) {
			ret = qc_write_range(img, q, NULL, guest << img->cluster_bits,
					     cluster_size(img));
			done = 1;
		}
		if (ret)
			return ret;
		guest += done;
		n -= done;
	}
	return 0;
}

int qc_zero(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len, bool discard,
	    bool keep)
{
	const struct zeroing z = {.discard = discard, .keep = keep};
	uint64_t mask = cluster_size(img) - 1, end = offset + len;
	uint64_t whole = (offset + mask) & ~mask, whole_end = end & ~mask;
	int ret = 0;

	/* The disk's last cluster may be cut short; nobody sees the rest of it. */
	if (end >= img->size)
		whole_end = (end + mask) & ~mask;
	if (img->data_raw)
		return zero_raw(img, q, offset, len, &z);
	if (end <= whole)
		return discard ? 0 : zero_part(img, q, offset, len);
	if (offset < whole && !discard)
		ret = zero_part(img, q, offset, whole - offset);
	if (!ret && whole < whole_end)
		ret = zero_whole(img, q, whole >> img->cluster_bits,
				 (whole_end - whole) >> img->cluster_bits, &z);
	if (!ret && whole_end < end && !discard)
		ret = zero_part(img, q, whole_end, end - whole_end);
	if (!ret && atomic_load(&img->commit_first))
		ret = qc_commit(img, q);
	return ret;
}
