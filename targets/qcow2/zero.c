/* SPDX-License-Identifier: MIT */
/* WRITE_ZEROES and DISCARD: changes of the mapping, where it can say "zeroes". */
#include "qcow2.h"

#define RAW_STEP (1u << 20)

/* 1: the entry is to become *e; 0: it may stay; -ENOTSUP: only zeroes as data will do. */
static int new_entry(const struct qc_image *img, enum qc_zeroing how, const struct qc_entry *old,
		     struct qc_entry *e)
{
	bool unmap = !img->backing && how != ZERO_KEEP;

	if (!unmap && img->version < 3)
		return how == ZERO_DISCARD ? 0 : -ENOTSUP;
	*e = (struct qc_entry){.zero = unmap ? 0 : img->all_units};
	if (how == ZERO_KEEP && old->has_host && old->copied) {
		e->has_host = e->copied = true;
		e->host = old->host;
	}
	qc_entry_build(img, e);
	return e->word != old->word || e->bits != old->bits;
}

/* Lock held. Whole clusters in len bytes from offset on, as far as their page of L2 reaches. */
static int zero_clusters(struct qc_image *img, uint64_t offset, uint64_t len, enum qc_zeroing how,
			 uint64_t *done)
{
	uint64_t per_page = page_size(img) / img->entry_size, guest = offset >> img->cluster_bits;
	uint64_t end = guest + MIN(len >> img->cluster_bits, per_page - guest % per_page);

	for (*done = 0; guest < end; guest++, *done += cluster_size(img)) {
		struct qc_entry old, e;
		int ret = qc_turn(img, guest)
				  ?: qc_map_get(img, guest, &old)
				  ?: new_entry(img, how, &old, &e);

		if (ret > 0)
			ret = qc_map_prepare(img, guest, &old) ?: 1;
		if (ret < 0)
			return *done ? 0 : ret;
		if (!ret)
			continue;
		qc_map_set(img, guest, &old, &e);
		if (old.packed || (old.has_host && !e.has_host))
			qc_entry_drop(img, &old);
	}
	return 0;
}

int qc_zero(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len,
	    enum qc_zeroing how)
{
	uint64_t size = cluster_size(img), end = offset + len, done;
	uint64_t step = img->data_raw ? RAW_STEP : size;
	/* The disk's last cluster may be cut short; nobody sees the rest of it. */
	uint64_t whole_end = (end < img->size ? end : end + size - 1) & ~(size - 1);
	int ret = -ENOTSUP;

	/* A raw data file has the zeroes itself. */
	if (img->data_raw && how != ZERO_KEEP)
		ret = qc_file_punch(img->data, q, offset, len);
	if (ret != -ENOTSUP)
		return ret;
	for (ret = 0; offset < end && !ret; offset += done) {
		if (!img->data_raw && !in_cluster(img, offset) && offset < whole_end) {
			ret = QC_TRANSACTION(
				img, q, zero_clusters(img, offset, whole_end - offset, how, &done));
			if (ret != -ENOTSUP)
				continue;
		}
		done = MIN(end - offset, step - offset % step);
		/* As data, where it is not zero already. */
		ret = how == ZERO_DISCARD ? 1 : qc_is_zero(img, q, offset, done);
		ret = ret ? MIN(ret, 0) : qc_write_range(img, q, NULL, offset, done);
	}
	return !ret && atomic_load(&img->commit_first) ? qc_commit(img, q) : ret;
}
