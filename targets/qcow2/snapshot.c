/* SPDX-License-Identifier: MIT */
/* Internal snapshots, resize and repair: each is a new image described, then rebuilt into. */
#define _GNU_SOURCE
#include "qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MAX_EXTRA 1024u

/* ---- The table ----------------------------------------------------------------------------- */

void qc_snapshots_free(struct qc_snapshots *s)
{
	for (unsigned i = 0; i < s->count; i++) {
		free(s->items[i].id);
		free(s->items[i].name);
	}
	free(s->items);
	free(s->table);
	*s = (struct qc_snapshots){0};
}

/* One entry at p, of which `left` bytes are there. 1, 0: more are needed, or -errno. */
static int parse(const struct qc_image *img, uint8_t *p, uint64_t left, struct qc_snapshot *s)
{
	uint32_t extra, id, name;

	if (left < SNAP_FIXED)
		return 0;
	extra = get32(p + SNAP_EXTRA_LENGTH);
	id = get16(p + SNAP_ID_LENGTH);
	name = get16(p + SNAP_NAME_LENGTH);
	if (extra > MAX_EXTRA)
		return -EINVAL;
	*s = (struct qc_snapshot){
		.raw = p,
		.length = (SNAP_FIXED + (uint64_t)extra + id + name + 7) & ~7ull,
		.l1_offset = get64(p + SNAP_L1_OFFSET),
		.l1_entries = get32(p + SNAP_L1_ENTRIES),
		.size = extra >= SNAP_EXTRA_END - SNAP_FIXED && left >= SNAP_EXTRA_END
				? get64(p + SNAP_EXTRA_SIZE)
				: img->size,
	};
	if (left < s->length)
		return 0;
	s->id = strndup((const char *)p + SNAP_FIXED + extra, id);
	s->name = strndup((const char *)p + SNAP_FIXED + extra + id, name);
	if (!s->id || !s->name)
		return -ENOMEM;
	return strlen(s->id) == id && strlen(s->name) == name ? 1 : -EINVAL;
}

/* All entries from `bytes` of the table. 1, 0: more bytes are needed, or -errno. */
static int parse_all(const struct qc_image *img, uint64_t bytes, struct qc_snapshots *s)
{
	int ret = 1;

	s->items = calloc(img->nr_snapshots, sizeof(*s->items));
	if (!s->items)
		return -ENOMEM;
	for (; ret > 0 && s->count < img->nr_snapshots; s->count++) {
		ret = parse(img, s->table + s->bytes, bytes - s->bytes, &s->items[s->count]);
		s->bytes += s->items[s->count].length;
	}
	return ret;
}

int qc_snapshots_read(struct qc_image *img, struct ubd_queue *q, struct qc_snapshots *s)
{
	uint64_t most = MIN(MAX_SNAPSHOT_TABLE, atomic_load(&img->file.end));
	int ret = 0;

	*s = (struct qc_snapshots){0};
	if (!img->nr_snapshots)
		return 0;
	for (uint64_t bytes = 65536; !ret && bytes <= most * 2; bytes *= 4) {
		qc_snapshots_free(s);
		if (posix_memalign((void **)&s->table, 4096, bytes))
			return -ENOMEM;
		ret = qc_file_read(&img->file, q, s->table, bytes, img->snapshots_offset);
		if (!ret)
			ret = parse_all(img, bytes, s);
	}
	if (ret > 0)
		return 0;
	qc_snapshots_free(s);
	return qc_fail(img, ret ? ret : -EINVAL, ": its snapshot table at %llu is damaged",
		       (unsigned long long)img->snapshots_offset);
}

const struct qc_snapshot *qc_snapshot_find(const struct qc_snapshots *s, const char *word)
{
	for (unsigned i = 0; i < s->count; i++)
		if (!strcmp(s->items[i].name, word))
			return &s->items[i];
	for (unsigned i = 0; i < s->count; i++)
		if (!strcmp(s->items[i].id, word))
			return &s->items[i];
	return NULL;
}

/* ---- Changes ------------------------------------------------------------------------------- */

/* The disk as it is, a new entry of the table; .raw is the caller's to free. */
static int describe(const struct qc_image *img, const struct qc_snapshots *now, const char *name,
		    struct qc_snapshot *s)
{
	uint8_t *raw;
	unsigned long top = 0;
	struct timespec t;
	int id;

	if (img->external)
		return qc_fail(img, -EOPNOTSUPP,
			       " has a data file: such images cannot have snapshots");
	if (!*name || strlen(name) > UINT16_MAX || img->nr_snapshots == MAX_SNAPSHOTS)
		return ubd_device_fail(img->dev, -EINVAL,
				       "a snapshot needs a name, and there may be %u of them",
				       MAX_SNAPSHOTS);
	s->raw = raw = calloc(1, SNAP_EXTRA_END + 32 + strlen(name));
	if (!raw)
		return -ENOMEM;
	for (unsigned i = 0; i < now->count; i++)
		top = MAX(top, strtoul(now->items[i].id, NULL, 10));
	clock_gettime(CLOCK_REALTIME, &t);
	id = sprintf((char *)raw + SNAP_EXTRA_END, "%lu", top + 1);
	memcpy(raw + SNAP_EXTRA_END + id, name, strlen(name));
	s->length = (SNAP_EXTRA_END + (uint64_t)id + strlen(name) + 7) & ~7ull;
	put64(raw + SNAP_L1_OFFSET, img->l1_offset);
	put32(raw + SNAP_L1_ENTRIES, img->l1_entries);
	put16(raw + SNAP_ID_LENGTH, (uint16_t)id);
	put16(raw + SNAP_NAME_LENGTH, (uint16_t)strlen(name));
	put32(raw + SNAP_SECONDS, (uint32_t)t.tv_sec);
	put32(raw + SNAP_NANOSECONDS, (uint32_t)t.tv_nsec);
	put32(raw + SNAP_EXTRA_LENGTH, SNAP_EXTRA_END - SNAP_FIXED);
	put64(raw + SNAP_EXTRA_SIZE, img->size);
	return 0;
}

int qc_remake(struct qc_image *img, struct ubd_queue *q, uint64_t size, const char *job,
	      const char *name)
{
	bool create = job && !strcmp(job, "create"), apply = job && !strcmp(job, "apply");
	struct qc_snapshots now;
	struct qc_world w = {.size = size, .now = &now};
	struct qc_snapshot new = {.raw = NULL};
	const struct qc_snapshot *s;
	int ret = qc_snapshots_read(img, q, &now);

	if (ret)
		return ret;
	s = job ? qc_snapshot_find(&now, name) : NULL;
	if (create && s) {
		ret = qc_fail(img, -EEXIST, " has a snapshot '%s' already", name);
	} else if (create) {
		ret = describe(img, &now, name, &new);
		w.added = &new;
	} else if (job && !s) {
		ret = qc_fail(img, -ENOENT, " has no snapshot '%s'", name);
	} else if (apply) {
		w.adopt = s;
		w.size = s->size;
	} else {
		w.gone = s;
	}
	if (!ret)
		ret = qc_rebuild(img, q, &w);
	free(new.raw);
	qc_snapshots_free(&now);
	return ret;
}

/* Zeroes where nobody looks: behind the disk's end, or before anybody knows of it. */
static int clear(struct qc_image *img, struct ubd_queue *q, uint64_t from, uint64_t to)
{
	int ret = from < to ? qc_header_mark(img, q) : 0;

	return ret || from >= to ? ret : qc_zero(img, q, from, to - from, false, false);
}

int qc_resize(struct qc_image *img, struct ubd_queue *q, uint64_t size)
{
	uint64_t mask = cluster_size(img) - 1, old = img->size;
	uint64_t edge = MIN(size, old), edge_end = img->data_raw ? 0 : (edge + mask) & ~mask;
	unsigned block = ubd_device_limits(img->dev)->logical_block;
	int ret;

	if (!size || size % block || size > MAX_DISK)
		return ubd_device_fail(img->dev, -EINVAL,
				       "the disk's size must be a multiple of %u bytes, not %llu",
				       block, (unsigned long long)size);
	if (size == old)
		return 0;
	/* What lies behind the nearer end must not show when it moves on. */
	ret = size > old ? clear(img, q, edge, edge_end) : 0;
	if (!ret)
		ret = qc_remake(img, q, size, NULL, NULL);
	if (!ret && size < old)
		ret = clear(img, q, edge, edge_end);
	if (!ret && img->data_raw)
		ret = qc_file_truncate(&img->data_file, size);
	if (!ret && img->backing)
		ret = clear(img, q, edge_end, MIN(size, img->backing->size));
	return ret ? ret : qc_commit(img, q);
}
