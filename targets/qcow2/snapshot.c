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
		free(s->items[i].extra);
	}
	free(s->items);
	*s = (struct qc_snapshots){0};
}

/* One entry at p, of which `left` bytes are there. Its length, 0: more are needed, or -EINVAL. */
static int64_t parse(const struct qc_image *img, const uint8_t *p, uint64_t left,
		     struct qc_snapshot *s)
{
	uint32_t extra, id, name;
	uint64_t len;

	if (left < SNAP_FIXED)
		return 0;
	extra = get32(p + SNAP_EXTRA_LENGTH);
	id = get16(p + SNAP_ID_LENGTH);
	name = get16(p + SNAP_NAME_LENGTH);
	if (extra > MAX_EXTRA)
		return -EINVAL;
	len = (SNAP_FIXED + (uint64_t)extra + id + name + 7) & ~7ull;
	if (left < len)
		return 0;
	*s = (struct qc_snapshot){
		.l1_offset = get64(p + SNAP_L1_OFFSET),
		.l1_entries = get32(p + SNAP_L1_ENTRIES),
		.seconds = get32(p + SNAP_SECONDS),
		.nanoseconds = get32(p + SNAP_NANOSECONDS),
		.clock = get64(p + SNAP_CLOCK),
		.vm_state = get32(p + SNAP_VM_STATE),
		.size = img->size,
		.extra_length = extra,
		.extra = malloc(extra + 1),
		.id = strndup((const char *)p + SNAP_FIXED + extra, id),
		.name = strndup((const char *)p + SNAP_FIXED + extra + id, name),
	};
	if (!s->extra || !s->id || !s->name)
		return -ENOMEM;
	memcpy(s->extra, p + SNAP_FIXED, extra);
	if (extra >= SNAP_EXTRA_END - SNAP_FIXED)
		s->size = get64(p + SNAP_EXTRA_SIZE);
	return strlen(s->id) == id && strlen(s->name) == name ? (int64_t)len : -EINVAL;
}

/* All entries from `bytes` of the table. 1: done; 0: more bytes are needed; or -errno. */
static int parse_all(const struct qc_image *img, const uint8_t *table, uint64_t bytes,
		     struct qc_snapshots *s)
{
	uint64_t at = 0;

	s->items = calloc(img->nr_snapshots, sizeof(*s->items));
	if (!s->items)
		return -ENOMEM;
	while (s->count < img->nr_snapshots) {
		struct qc_snapshot *one = &s->items[s->count];
		int64_t len = parse(img, table + at, bytes - at, one);

		if (!len)
			return 0;
		s->count++;
		if (len < 0)
			return (int)len;
		at += (uint64_t)len;
	}
	return 1;
}

int qc_snapshots_read(struct qc_image *img, struct ubd_queue *q, struct qc_snapshots *s)
{
	uint64_t most = MIN(MAX_SNAPSHOT_TABLE, atomic_load(&img->file.end));
	int ret = 0;

	*s = (struct qc_snapshots){0};
	if (!img->nr_snapshots)
		return 0;
	for (uint64_t bytes = 65536; !ret && bytes <= most * 2; bytes *= 4) {
		uint8_t *table;

		if (posix_memalign((void **)&table, 4096, bytes))
			return -ENOMEM;
		ret = qc_file_read(&img->file, q, table, bytes, img->snapshots_offset);
		qc_snapshots_free(s);
		if (!ret)
			ret = parse_all(img, table, bytes, s);
		free(table);
	}
	if (ret <= 0) {
		qc_snapshots_free(s);
		return ubd_device_fail(img->dev, ret ? ret : -EINVAL,
				       "%s: its snapshot table at %llu is damaged", img->file.path,
				       (unsigned long long)img->snapshots_offset);
	}
	return 0;
}

int qc_snapshot_find(const struct qc_snapshots *s, const char *word)
{
	for (unsigned i = 0; i < s->count; i++)
		if (!strcmp(s->items[i].name, word))
			return (int)i;
	for (unsigned i = 0; i < s->count; i++)
		if (!strcmp(s->items[i].id, word))
			return (int)i;
	return -1;
}

/* ---- Changes ------------------------------------------------------------------------------- */

static int none(struct qc_image *img, const char *name)
{
	return ubd_device_fail(img->dev, -ENOENT, "%s has no snapshot '%s'", img->file.path, name);
}

static int new_snapshot(struct qc_image *img, const struct qc_snapshots *now, const char *name,
			struct qc_snapshot *s)
{
	unsigned long top = 0;
	struct timespec t;

	for (unsigned i = 0; i < now->count; i++) {
		unsigned long n = strtoul(now->items[i].id, NULL, 10);

		top = MAX(top, n);
	}
	clock_gettime(CLOCK_REALTIME, &t);
	*s = (struct qc_snapshot){
		.l1_offset = img->l1_offset,
		.l1_entries = img->l1_entries,
		.seconds = (uint32_t)t.tv_sec,
		.nanoseconds = (uint32_t)t.tv_nsec,
		.size = img->size,
		.extra_length = SNAP_EXTRA_END - SNAP_FIXED,
		.extra = calloc(1, SNAP_EXTRA_END - SNAP_FIXED),
		.name = strdup(name),
	};
	if (asprintf(&s->id, "%lu", top + 1) < 0)
		s->id = NULL;
	if (!s->extra || !s->name || !s->id)
		return -ENOMEM;
	put64(s->extra + (SNAP_EXTRA_SIZE - SNAP_FIXED), img->size);
	return 0;
}

static int create(struct qc_image *img, struct ubd_queue *q, const struct qc_snapshots *now,
		  const char *name)
{
	struct qc_snapshots then = {.count = now->count + 1};
	struct qc_world w = {.size = img->size, .now = now, .then = &then, .adopt = -1};
	struct qc_snapshot *last;
	int ret;

	if (then.count > MAX_SNAPSHOTS)
		return ubd_device_fail(img->dev, -E2BIG, "%s has %u snapshots already: no more fit",
				       img->file.path, now->count);
	then.items = calloc(then.count, sizeof(*then.items));
	if (!then.items)
		return -ENOMEM;
	if (now->count)
		memcpy(then.items, now->items, now->count * sizeof(*then.items));
	last = &then.items[now->count];
	ret = new_snapshot(img, now, name, last);
	if (!ret)
		ret = qc_rebuild(img, q, &w);
	free(last->id);
	free(last->name);
	free(last->extra);
	free(then.items);
	return ret;
}

int qc_snapshot_create(struct qc_image *img, struct ubd_queue *q, const char *name)
{
	struct qc_snapshots now;
	int ret;

	if (img->external)
		return ubd_device_fail(img->dev, -EOPNOTSUPP,
				       "%s has a data file: such images cannot have snapshots",
				       img->file.path);
	if (!*name || strlen(name) > UINT16_MAX)
		return ubd_device_fail(img->dev, -EINVAL, "a snapshot needs a name");
	ret = qc_commit(img, q);
	if (!ret)
		ret = qc_snapshots_read(img, q, &now);
	if (ret)
		return ret;
	if (qc_snapshot_find(&now, name) >= 0)
		ret = ubd_device_fail(img->dev, -EEXIST, "%s has a snapshot '%s' already",
				      img->file.path, name);
	else
		ret = create(img, q, &now, name);
	qc_snapshots_free(&now);
	return ret;
}

int qc_snapshot_delete(struct qc_image *img, struct ubd_queue *q, const char *name)
{
	struct qc_snapshots now, then = {0};
	struct qc_world w = {.size = img->size, .now = &now, .then = &then, .adopt = -1};
	int ret = qc_snapshots_read(img, q, &now), at;

	if (ret)
		return ret;
	at = qc_snapshot_find(&now, name);
	if (at < 0) {
		ret = none(img, name);
	} else {
		then.items = calloc(now.count, sizeof(*then.items));
		ret = then.items ? 0 : -ENOMEM;
	}
	if (!ret) {
		for (unsigned i = 0; i < now.count; i++)
			if (i != (unsigned)at)
				then.items[then.count++] = now.items[i];
		ret = qc_rebuild(img, q, &w);
	}
	free(then.items);
	qc_snapshots_free(&now);
	return ret;
}

int qc_snapshot_apply(struct qc_image *img, struct ubd_queue *q, const char *name)
{
	struct qc_snapshots now;
	struct qc_world w = {.now = &now, .then = &now};
	int ret = qc_snapshots_read(img, q, &now);

	if (ret)
		return ret;
	w.adopt = qc_snapshot_find(&now, name);
	if (w.adopt < 0) {
		ret = none(img, name);
	} else {
		w.size = now.items[w.adopt].size;
		ret = qc_rebuild(img, q, &w);
	}
	qc_snapshots_free(&now);
	return ret;
}

static int rebuild_as(struct qc_image *img, struct ubd_queue *q, uint64_t size)
{
	struct qc_snapshots now;
	struct qc_world w = {.size = size, .now = &now, .then = &now, .adopt = -1};
	int ret = qc_snapshots_read(img, q, &now);

	if (!ret)
		ret = qc_rebuild(img, q, &w);
	qc_snapshots_free(&now);
	return ret;
}

int qc_repair(struct qc_image *img, struct ubd_queue *q)
{
	return rebuild_as(img, q, img->size);
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

	if (!size || size % block || size > INT64_MAX - (4ull << 20))
		return ubd_device_fail(img->dev, -EINVAL,
				       "the disk's size must be a multiple of %u bytes, not %llu",
				       block, (unsigned long long)size);
	if (size == old)
		return 0;
	/* What lies behind the nearer end must not show when it moves on. */
	ret = size > old ? clear(img, q, edge, edge_end) : 0;
	if (!ret)
		ret = rebuild_as(img, q, size);
	if (!ret && size < old)
		ret = clear(img, q, edge, edge_end);
	if (!ret && img->data_raw)
		ret = qc_file_truncate(&img->data_file, size);
	if (!ret && img->backing)
		ret = clear(img, q, edge_end, MIN(size, img->backing->size));
	return ret ? ret : qc_commit(img, q);
}
