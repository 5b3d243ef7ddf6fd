/* SPDX-License-Identifier: MIT */
/*
 * WRITE. Data goes in place where the mapping allows; otherwise to clusters taken for it, together
 * with what must be kept of the old contents, and then the mapping follows.
 */
#include "qcow2.h"

/* A stretch of a request that is written in one go. */
struct run {
	uint64_t offset, len;	/* of the disk, bytes */
	struct qc_busy guest;	/* clusters it touches */
	uint64_t host;		/* where the first of them is to lie, bytes */
	bool in_place;		/* nothing to do but to write */
	bool taken;		/* the host clusters are new, not yet mapped */
	bool zeroed;		/* and zero */
	struct qc_entry old;	/* of the first cluster */
	uint64_t before, after; /* bytes around them that are written as well, as they were */
};

/* ---- Which guest clusters are being changed ------------------------------------------------ */

int qc_turn(struct qc_image *img, uint64_t guest)
{
	const struct qc_busy *b;

	LIST_FOREACH(b, &img->busy, others)
		if (guest - b->first < b->count)
			return qc_needs(img, NEED_TURN, 0);
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
	const char *what = "a guest cluster's place";

	if (!img->external)
		return qc_check_place(img, e->host, what);
	return e->host == guest << img->cluster_bits ? 0 : qc_damaged(img, what, e->host);
}

/* Whether bytes [from, to) of a cluster can be written where they lie. 1, 0 or -errno. */
static int in_place(struct qc_image *img, uint64_t guest, uint64_t from, uint64_t to,
		    struct qc_entry *e)
{
	uint32_t need = units_of(img, from, to);
	int ret = qc_map_get(img, guest, e);

	if (ret || !e->copied || (e->alloc & need) != need)
		return ret;
	return check_host(img, guest, e) ?: 1;
}

/* How many clusters from the first on are to be written whole, to new places, at once. */
static uint64_t count_whole(struct qc_image *img, const struct run *r, uint64_t len)
{
	uint64_t per_page = page_size(img) / img->entry_size, n = 1;
	uint64_t most = MIN(len >> img->cluster_bits, per_page - r->guest.first % per_page);
	struct qc_entry e;

	while (n < most && !qc_turn(img, r->guest.first + n) &&
	       !qc_map_get(img, r->guest.first + n, &e) &&
	       (img->external || !e.has_host || !e.copied))
		n++;
	return n;
}

static int plan_new(struct qc_image *img, uint64_t len, struct run *r)
{
	uint64_t at = in_cluster(img, r->offset), first;
	bool whole = !at && len >= cluster_size(img);
	int ret = qc_turn(img, r->guest.first) ?: qc_map_prepare(img, r->guest.first, &r->old);

	if (ret)
		return ret;
	if (r->old.has_host && r->old.copied) {
		r->host = r->old.host;
		ret = check_host(img, r->guest.first, &r->old);
	} else if (whole) {
		r->guest.count = count_whole(img, r, len);
	}
	if (img->external) {
		r->host = r->guest.first << img->cluster_bits;
	} else if (!r->host) {
		ret = qc_alloc(img, r->guest.count, &first, &r->guest.count, &r->zeroed);
		r->host = first << img->cluster_bits;
		r->taken = true;
	}
	if (ret)
		return ret;
	r->len = whole ? r->guest.count << img->cluster_bits : MIN(len, cluster_size(img) - at);
	LIST_INSERT_HEAD(&img->busy, &r->guest, others);
	return 0;
}

static int plan(struct qc_image *img, uint64_t offset, uint64_t len, struct run *r)
{
	uint64_t at = in_cluster(img, offset), part = MIN(len, cluster_size(img) - at);
	struct qc_entry e;
	int ret;

	*r = (struct run){.offset = offset,
			  .guest = {.first = offset >> img->cluster_bits, .count = 1}};
	ret = in_place(img, r->guest.first, at, at + part, &r->old);
	if (ret <= 0)
		return ret ? ret : plan_new(img, len, r);
	r->in_place = true;
	r->host = r->old.host;
	/* And those that follow, as far as they lie side by side. */
	for (r->len = part; r->len < len; r->len += part, r->guest.count++) {
		part = MIN(len - r->len, cluster_size(img));
		if (in_place(img, r->guest.first + r->guest.count, 0, part, &e) <= 0 ||
		    e.host != r->host + (r->guest.count << img->cluster_bits))
			break;
	}
	return 0;
}

/* ---- Writing ------------------------------------------------------------------------------- */

/* What must be written around the data for each touched unit to be whole: sets before and after. */
static int widen(struct qc_image *img, struct ubd_queue *q, struct run *r)
{
	uint64_t at = in_cluster(img, r->offset), end = at + r->len;
	uint64_t in_unit = (1ull << img->unit_bits) - 1;
	uint32_t there = r->taken ? 0 : r->old.alloc;
	int zero;

	if (r->in_place || r->guest.count > 1)
		return 0;
	if (r->old.packed || (r->old.alloc && r->taken)) {
		r->before = at;
		r->after = cluster_size(img) - end;
		return 0;
	}
	if (!(there >> (at >> img->unit_bits) & 1))
		r->before = at & in_unit;
	if (!(there >> ((end - 1) >> img->unit_bits) & 1))
		r->after = -end & in_unit;
	if (!r->zeroed)
		return 0;
	/* New space that is zero already needs no zeroes. */
	zero = qc_is_zero(img, q, r->offset - r->before, r->before);
	if (zero > 0)
		zero = qc_is_zero(img, q, r->offset + r->len, r->after);
	if (zero > 0)
		r->before = r->after = 0;
	return MIN(zero, 0);
}

/* The data, in the midst of what is kept, in one write. io NULL: zeroes. */
static int write_data(struct qc_image *img, struct ubd_queue *q, struct ubd_io *io,
		      const struct run *r)
{
	uint64_t len = r->before + r->len + r->after;
	uint64_t pos = r->host + in_cluster(img, r->offset) - r->before;
	uint32_t at = io ? (uint32_t)(r->offset - io->offset) : 0;
	uint8_t *buf, *data;
	int ret;

	if (io && len == r->len)
		return qc_file_transfer_write(img->data, io, at, (uint32_t)len, pos,
					      r->in_place && len == io->length &&
						      !(io->flags & UBD_IO_FUA));
	buf = qc_buffer(len);
	if (!buf)
		return -ENOMEM;
	data = buf + r->before;
	ret = qc_read_memory(img, q, r->offset - r->before, buf, r->before)
		      ?: qc_read_memory(img, q, r->offset + r->len, data + r->len, r->after);
	if (!ret && io)
		ret = MIN(ubd_io_get(io, at, data, (uint32_t)r->len), 0);
	else if (!ret)
		memset(data, 0, r->len);
	ret = ret ?: qc_file_write(img->data, q, buf, len, pos);
	free(buf);
	return ret;
}

/* ---- Mapping ------------------------------------------------------------------------------- */

static int map_run(struct qc_image *img, const struct run *r)
{
	uint64_t at = in_cluster(img, r->offset);
	uint32_t units = r->guest.count > 1 ? img->all_units
					    : units_of(img, at - r->before, at + r->len + r->after);

	/* All are in the first one's page. */
	for (uint64_t i = 0; i < r->guest.count; i++) {
		struct qc_entry old, e = {.has_host = true, .copied = true, .alloc = units};
		int ret = (i ? qc_map_get : qc_map_prepare)(img, r->guest.first + i, &old);

		if (ret)
			return ret;
		e.host = r->host + (i << img->cluster_bits);
		if (!old.packed && units != img->all_units) {
			e.alloc |= r->taken ? 0 : old.alloc;
			e.zero = old.zero & ~e.alloc;
		}
		qc_entry_build(img, &e);
		qc_map_set(img, r->guest.first + i, &old, &e);
		if (r->taken)
			qc_entry_drop(img, &old);
	}
	return 0;
}

/* One run from plan to mapping. */
static int write_run(struct qc_image *img, struct ubd_queue *q, struct ubd_io *io, struct run *r)
{
	int ret = widen(img, q, r) ?: write_data(img, q, io, r);

	if (r->in_place)
		return ret;
	ret = ret ?: QC_TRANSACTION(img, q, map_run(img, r));
	pthread_mutex_lock(&img->lock);
	if (ret && r->taken)
		qc_free(img, r->host >> img->cluster_bits, r->guest.count);
	LIST_REMOVE(&r->guest, others);
	qc_wake(img, q);
	pthread_mutex_unlock(&img->lock);
	return ret;
}

/* ---- Requests ------------------------------------------------------------------------------ */

int qc_write_range(struct qc_image *img, struct ubd_queue *q, struct ubd_io *io, uint64_t offset,
		   uint64_t len)
{
	bool mapped = false;
	struct run r;

	for (; len; offset += r.len, len -= r.len) {
		int ret = QC_TRANSACTION(img, q, plan(img, offset, len, &r))
				  ?: write_run(img, q, io, &r);

		if (ret)
			return ret;
		mapped |= !r.in_place;
	}
	return mapped && atomic_load(&img->commit_first) ? qc_commit(img, q) : 0;
}
