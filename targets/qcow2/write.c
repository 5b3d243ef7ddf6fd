/* SPDX-License-Identifier: MIT */
/*
 * WRITE. Data goes in place where the mapping allows; otherwise to clusters taken for it, together
 * with what must be kept of the old contents, and then the mapping follows.
 */
#include "qcow2.h"

#include <errno.h>
#include <stdlib.h>

/* A stretch of a request that is written in one go. */
struct run {
	uint64_t offset, len;  /* of the disk, bytes */
	uint64_t guest, count; /* clusters it touches */
	uint64_t host;	       /* where the first of them is to lie, bytes */
	bool in_place;	       /* nothing to do but to write */
	bool taken;	       /* the host clusters are new, not yet mapped */
	bool zeroed;	       /* and zero */
	struct qc_entry old;   /* of the first cluster */
	struct qc_busy busy;
	uint64_t from, to; /* what is written, in bytes from the first cluster's start */
};

/* ---- Which guest clusters are being changed ------------------------------------------------ */

int qc_turn(const struct qc_image *img, struct qc_tx *tx, uint64_t guest)
{
	const struct qc_busy *b;

	LIST_FOREACH(b, &img->busy, others)
		if (guest - b->first < b->count) {
			tx->need = NEED_TURN;
			return -EAGAIN;
		}
	return 0;
}

/* ---- Planning, under the lock -------------------------------------------------------------- */

static uint32_t units_of(const struct qc_image *img, uint64_t from, uint64_t to)
{
	unsigned first = (unsigned)(from >> img->unit_bits);
	unsigned last = (unsigned)((to - 1) >> img->unit_bits);

	return (UINT32_MAX >> (31 - (last - first))) << first;
}

static int check_host(struct qc_image *img, uint64_t guest, const struct qc_entry *e)
{
	if (!img->external)
		return qc_check_place(img, e->host, "a guest cluster's place");
	return e->host == guest << img->cluster_bits
		       ? 0
		       : qc_damaged(img, "a guest cluster's place", e->host);
}

/* Whether bytes [from, to) of a cluster can be written where they lie. 1, 0 or -errno. */
static int in_place(struct qc_image *img, struct qc_tx *tx, uint64_t guest, uint64_t from,
		    uint64_t to, struct qc_entry *e)
{
	uint32_t need = units_of(img, from, to);
	int ret = qc_map_get(img, tx, guest, e);

	if (ret || !e->has_host || !e->copied || e->packed || (e->alloc & need) != need)
		return ret;
	ret = check_host(img, guest, e);
	return ret ? ret : 1;
}

/* How many clusters from the first on are to be written whole, to new places, at once. */
static uint64_t count_whole(struct qc_image *img, struct qc_tx *tx, const struct run *r,
			    uint64_t len)
{
	uint64_t per_page = page_size(img) / entry_size(img), n = 1;
	uint64_t most = MIN(len >> img->cluster_bits, per_page - r->guest % per_page);
	struct qc_entry e;

	while (n < most && !qc_turn(img, tx, r->guest + n) &&
	       !qc_map_get(img, tx, r->guest + n, &e) &&
	       (img->external || !e.has_host || !e.copied))
		n++;
	return n;
}

static int plan_new(struct qc_image *img, struct qc_tx *tx, uint64_t len, struct run *r)
{
	uint64_t at = r->offset & (cluster_size(img) - 1), first;
	bool whole = !at && len >= cluster_size(img);
	int ret = qc_turn(img, tx, r->guest);

	if (!ret)
		ret = qc_map_prepare(img, tx, r->guest);
	if (ret)
		return ret;
	if (r->old.has_host && r->old.copied) {
		r->host = r->old.host;
		ret = check_host(img, r->guest, &r->old);
	} else if (whole) {
		r->count = count_whole(img, tx, r, len);
	}
	if (img->external) {
		r->host = r->guest << img->cluster_bits;
	} else if (!r->host) {
		ret = qc_alloc(img, tx, r->count, &first, &r->count, &r->zeroed);
		r->host = first << img->cluster_bits;
		r->taken = true;
	}
	if (ret)
		return ret;
	r->len = whole ? r->count << img->cluster_bits : MIN(len, cluster_size(img) - at);
	r->busy = (struct qc_busy){.first = r->guest, .count = r->count};
	LIST_INSERT_HEAD(&img->busy, &r->busy, others);
	return 0;
}

static int plan(struct qc_image *img, struct qc_tx *tx, uint64_t offset, uint64_t len,
		struct run *r)
{
	uint64_t at = offset & (cluster_size(img) - 1), part = MIN(len, cluster_size(img) - at);
	struct qc_entry e;
	int ret;

	*r = (struct run){.offset = offset, .guest = offset >> img->cluster_bits, .count = 1};
	ret = in_place(img, tx, r->guest, at, at + part, &r->old);
	if (ret <= 0)
		return ret ? ret : plan_new(img, tx, len, r);
	r->in_place = true;
	r->host = r->old.host;
	/* And those that follow, as far as they lie side by side. */
	for (r->len = part; r->len < len; r->len += part, r->count++) {
		part = MIN(len - r->len, cluster_size(img));
		if (in_place(img, tx, r->guest + r->count, 0, part, &e) <= 0 ||
		    e.host != r->host + (r->count << img->cluster_bits))
			break;
	}
	return 0;
}

/* ---- Writing ------------------------------------------------------------------------------- */

/* What must be written around the data so that each touched unit is whole: sets from and to. */
static int widen(struct qc_image *img, struct ubd_queue *q, struct run *r)
{
	uint64_t from = r->offset & (cluster_size(img) - 1), to = from + r->len;
	uint64_t unit = 1ull << img->unit_bits, start = r->guest << img->cluster_bits;
	uint32_t there = r->taken ? 0 : r->old.alloc;
	int zero;

	r->from = from;
	r->to = to;
	if (r->in_place || r->count > 1)
		return 0;
	if (r->old.packed || (r->old.alloc && r->taken)) {
		r->from = 0;
		r->to = cluster_size(img);
		return 0;
	}
	if (!(there >> (from >> img->unit_bits) & 1))
		r->from = from & ~(unit - 1);
	if (!(there >> ((to - 1) >> img->unit_bits) & 1))
		r->to = (to + unit - 1) & ~(unit - 1);
	/* New space that is zero already needs no zeroes. */
	zero = r->zeroed ? qc_is_zero(img, q, start + r->from, from - r->from) : 0;
	if (zero > 0)
		zero = qc_is_zero(img, q, start + to, r->to - to);
	if (zero > 0) {
		r->from = from;
		r->to = to;
	}
	return MIN(zero, 0);
}

/* Old contents, the new in their midst, in one write. io NULL: zeroes. */
static int write_merged(struct qc_image *img, struct ubd_queue *q, struct ubd_io *io,
			const struct run *r)
{
	uint64_t from = r->offset & (cluster_size(img) - 1), to = from + r->len;
	uint64_t start = r->guest << img->cluster_bits;
	uint8_t *buf;
	int ret;

	if (posix_memalign((void **)&buf, 4096, r->to - r->from))
		return -ENOMEM;
	ret = qc_read_memory(img, q, start + r->from, buf, from - r->from);
	if (!ret)
		ret = qc_read_memory(img, q, start + to, buf + (to - r->from), r->to - to);
	if (!ret && io)
		ret = MIN(ubd_io_get(io, (uint32_t)(r->offset - io->offset), buf + (from - r->from),
				     (uint32_t)r->len),
			  0);
	else if (!ret)
		memset(buf + (from - r->from), 0, r->len);
	if (!ret)
		ret = qc_file_write(img->data, q, buf, r->to - r->from, r->host + r->from);
	free(buf);
	return ret;
}

static int write_data(struct qc_image *img, struct ubd_queue *q, struct ubd_io *io,
		      const struct run *r)
{
	uint64_t at = r->offset & (cluster_size(img) - 1);

	if (io && r->from == at && r->to == at + r->len)
		return qc_file_transfer_write(img->data, io, (uint32_t)(r->offset - io->offset),
					      (uint32_t)r->len, r->host + at);
	return write_merged(img, q, io, r);
}

/* ---- Mapping ------------------------------------------------------------------------------- */

static int map_run(struct qc_image *img, struct qc_tx *tx, const struct run *r)
{
	int ret = qc_map_prepare(img, tx, r->guest);

	for (uint64_t i = 0; i < r->count && !ret; i++) {
		struct qc_entry old, e = {.has_host = true, .copied = true};
		uint32_t units = r->count > 1 ? all_units(img) : units_of(img, r->from, r->to);

		ret = qc_map_get(img, tx, r->guest + i, &old);
		if (ret)
			break;
		e.host = r->host + (i << img->cluster_bits);
		e.alloc = units;
		if (!old.packed && units != all_units(img)) {
			e.alloc |= r->taken ? 0 : old.alloc;
			e.zero = old.zero & ~e.alloc;
		}
		qc_entry_build(img, &e);
		qc_map_set(img, tx, r->guest + i, &e);
		if (r->taken)
			qc_entry_drop(img, &old);
	}
	return ret;
}

/* One run from plan to mapping. */
static int write_run(struct qc_image *img, struct ubd_queue *q, struct ubd_io *io, struct run *r)
{
	int ret;

	ret = widen(img, q, r);
	if (!ret)
		ret = write_data(img, q, io, r);
	if (r->in_place)
		return ret;
	if (!ret)
		QC_TRANSACTION(img, q, ret, map_run(img, tx, r));
	pthread_mutex_lock(&img->lock);
	if (ret && r->taken)
		qc_unalloc(img, r->host >> img->cluster_bits, r->count);
	LIST_REMOVE(&r->busy, others);
	qc_wake(img, q);
	pthread_mutex_unlock(&img->lock);
	return ret;
}

/* ---- Requests ------------------------------------------------------------------------------ */

int qc_write_range(struct qc_image *img, struct ubd_queue *q, struct ubd_io *io, uint64_t offset,
		   uint64_t len)
{
	bool mapped = false;

	while (len) {
		struct run r;
		int ret;

		QC_TRANSACTION(img, q, ret, plan(img, tx, offset, len, &r));
		if (!ret)
			ret = write_run(img, q, io, &r);
		if (ret)
			return ret;
		mapped |= !r.in_place;
		offset += r.len;
		len -= r.len;
	}
	return mapped && atomic_load(&img->commit_first) ? qc_commit(img, q) : 0;
}

int qc_write(struct qc_image *img, struct ubd_io *io)
{
	int ret = qc_write_range(img, io->queue, io, io->offset, io->length);

	return ret ? ret : (int)io->length;
}
