/* SPDX-License-Identifier: MIT */
/* WRITE_ZEROES and DISCARD: changes of the mapping, where it can say "zeroes". */
#include "qcow2.h"

#define ZERO_DATA_STEP (1u << 20)

/* 1: the entry is to become *e; 0: it may stay; -ENOTSUP: only zeroes as data will do. */
static int new_entry(const struct qc_image *img, enum qc_zeroing how, const struct qc_entry *old,
		     struct qc_entry *e)
{
	*e = (struct qc_entry){.zero = 0};
	if (!img->backing && how != ZERO_KEEP) {
		qc_entry_build(img, e);
		return old->has_host || old->packed || old->zero;
	}
	if (img->version < 3)
		return how == ZERO_DISCARD ? 0 : -ENOTSUP;
	e->zero = img->all_units;
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
			ret = qc_map_prepare(img, guest) ?: 1;
		if (ret < 0)
			return *done ? 0 : ret;
		if (!ret)
			continue;
		qc_map_set(img, guest, &e);
		if (old.packed || (old.has_host && !e.has_host))
			qc_entry_drop(img, &old);
	}
	return 0;
}

/* A raw data file has the zeroes itself. */
static int zero_raw(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len,
		    enum qc_zeroing how)
{
	int ret = how == ZERO_KEEP ? -EOPNOTSUPP : qc_file_punch(img->data, q, offset, len);

	if (ret != -EOPNOTSUPP)
		return ret;
	for (uint64_t end = offset + len; offset < end && how != ZERO_DISCARD;
	     offset += ZERO_DATA_STEP) {
		ret = qc_write_range(img, q, NULL, offset, MIN(end - offset, ZERO_DATA_STEP));
		if (ret)
			return ret;
	}
	return 0;
}

int qc_zero(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len,
	    enum qc_zeroing how)
{
	uint64_t size = cluster_size(img), end = offset + len, done;
	/* The disk's last cluster may be cut short; nobody sees the rest of it. */
	uint64_t whole_end = (end < img->size ? end : end + size - 1) & ~(size - 1);
	bool mapped = false;
	int ret = 0;

	if (img->data_raw)
		return zero_raw(img, q, offset, len, how);
	for (; offset < end && !ret; offset += done) {
		done = MIN(end - offset, size - in_cluster(img, offset));
		if (!in_cluster(img, offset) && offset < whole_end) {
			mapped = true;
			ret = QC_TRANSACTION(
				img, q, zero_clusters(img, offset, whole_end - offset, how, &done));
			if (ret != -ENOTSUP)
				continue;
			done = size;
			ret = qc_write_range(img, q, NULL, offset, size);
		} else if (how != ZERO_DISCARD) {
			/* As data, where it is not zero already. */
			ret = qc_is_zero(img, q, offset, done);
			ret = ret ? MIN(ret, 0) : qc_write_range(img, q, NULL, offset, done);
		}
	}
	return !ret && mapped && atomic_load(&img->commit_first) ? qc_commit(img, q) : ret;
}
