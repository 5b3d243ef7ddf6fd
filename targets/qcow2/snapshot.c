/* SPDX-License-Identifier: MIT */
/* Internal snapshots, resize and repair: each is a new image described, then rebuilt into. */
#define _GNU_SOURCE
#include "qcow2.h"

#include <stdio.h>
#include <time.h>

#define MAX_EXTRA 1024u
#define MAX_ENTRY (512 + MAX_EXTRA + 2 * 65536u) /* whole sectors, as direct I/O wants them */

/* ---- The table ----------------------------------------------------------------------------- */

void qc_snapshots_free(struct qc_snapshots *s)
{
	for (unsigned i = 0; i < s->count; i++)
		free(s->items[i].id);
	free(s->items);
	free(s->table);
	*s = (struct qc_snapshots){0};
}

/* The entry at p, of which `left` bytes are there. */
static int parse(const struct qc_image *img, uint8_t *p, uint64_t left, struct qc_snapshot *s)
{
	uint32_t extra, id, name;

	if (left < SNAP_FIXED)
		return -EINVAL;
	extra = get32(p + SNAP_EXTRA_LENGTH);
	id = get16(p + SNAP_ID_LENGTH);
	name = get16(p + SNAP_NAME_LENGTH);
	*s = (struct qc_snapshot){
		.raw = p,
		.length = (SNAP_FIXED + (uint64_t)extra + id + name + 7) & ~7ull,
		.l1_offset = get64(p + SNAP_L1_OFFSET),
		.l1_entries = get32(p + SNAP_L1_ENTRIES),
		.size = extra >= SNAP_EXTRA_END - SNAP_FIXED ? get64(p + SNAP_EXTRA_SIZE)
							     : img->size,
	};
	if (extra > MAX_EXTRA || left < s->length)
		return -EINVAL;
	s->id = calloc(1, id + name + 2u);
	if (!s->id)
		return -ENOMEM;
	s->name = s->id + id + 1;
	memcpy(s->id, p + SNAP_FIXED + extra, id);
	memcpy(s->name, p + SNAP_FIXED + extra + id, name);
	return strlen(s->id) == id && strlen(s->name) == name ? 0 : -EINVAL;
}

int qc_snapshots_read(struct qc_image *img, struct ubd_queue *q, struct qc_snapshots *s)
{
	/* As much as the entries can be; what lies past the end of the file reads as zeroes. */
	uint64_t bytes = MIN((uint64_t)img->nr_snapshots * MAX_ENTRY, MAX_SNAPSHOT_TABLE);
	uint64_t room = clusters_for(img, bytes + MAX_ENTRY) << img->cluster_bits;
	int ret = 0;

	*s = (struct qc_snapshots){.table = qc_buffer(room)};
	s->items = calloc(img->nr_snapshots + 1u, sizeof(*s->items));
	if (!s->table || !s->items)
		ret = -ENOMEM;
	else if (bytes)
		ret = qc_file_read(&img->file, q, s->table, bytes, img->snapshots_offset);
	for (; !ret && s->count < img->nr_snapshots; s->count++) {
		ret = parse(img, s->table + s->bytes, bytes - s->bytes, &s->items[s->count]);
		s->bytes += s->items[s->count].length;
	}
	if (!ret) {
		memset(s->table + s->bytes, 0, room - s->bytes);
		return 0;
	}
	qc_snapshots_free(s);
	return ret == -ENOMEM ? ret
			      : qc_fail(img, ret, ": its snapshot table at %llu is damaged",
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

int qc_snapshot_check(const struct qc_image *img, const struct qc_snapshot *s)
{
	if (s->size && s->size <= MAX_DISK && qc_l1_fits(img, s->l1_offset, s->l1_entries, s->size))
		return 0;
	return qc_fail(img, -EINVAL, ": its snapshot '%s' is damaged", s->name);
}

/* ---- Changes ------------------------------------------------------------------------------- */

/* One more entry of the table: the disk as it is. */
static int create(struct qc_image *img, struct qc_snapshots *now, const char *name,
		  struct qc_world *w)
{
	uint8_t *raw = now->table + now->bytes;
	unsigned long top = 0;
	struct timespec t;
	int id;

	if (img->external)
		return qc_fail(img, -EOPNOTSUPP, " has a data file: such images have no snapshots");
	if (!*name || strlen(name) > UINT16_MAX || img->nr_snapshots == MAX_SNAPSHOTS ||
	    now->bytes + MAX_ENTRY > MAX_SNAPSHOT_TABLE)
		return qc_fail(img, -EINVAL,
			       ": a snapshot needs a name; there may be %u, in a table of %u MiB",
			       MAX_SNAPSHOTS, MAX_SNAPSHOT_TABLE >> 20);
	for (unsigned i = 0; i < now->count; i++)
		top = MAX(top, strtoul(now->items[i].id, NULL, 10));
	clock_gettime(CLOCK_REALTIME, &t);
	id = sprintf((char *)raw + SNAP_EXTRA_END, "%lu", top + 1);
	memcpy(raw + SNAP_EXTRA_END + id, name, strlen(name));
	put64(raw + SNAP_L1_OFFSET, img->l1_offset);
	put32(raw + SNAP_L1_ENTRIES, img->l1_entries);
	put16(raw + SNAP_ID_LENGTH, (uint16_t)id);
	put16(raw + SNAP_NAME_LENGTH, (uint16_t)strlen(name));
	put32(raw + SNAP_SECONDS, (uint32_t)t.tv_sec);
	put32(raw + SNAP_NANOSECONDS, (uint32_t)t.tv_nsec);
	put32(raw + SNAP_EXTRA_LENGTH, SNAP_EXTRA_END - SNAP_FIXED);
	put64(raw + SNAP_EXTRA_SIZE, img->size);
	w->created = true;
	w->bytes = now->bytes + ((SNAP_EXTRA_END + (uint64_t)id + strlen(name) + 7) & ~7ull);
	return 0;
}

/* Its entry leaves the table. */
static void drop(struct qc_snapshots *now, const struct qc_snapshot *s, struct qc_world *w)
{
	uint8_t *end = now->table + now->bytes, *next = s->raw + s->length;

	memmove(s->raw, next, (size_t)(end - next));
	memset(end - s->length, 0, s->length);
	w->gone = s;
	w->bytes = now->bytes - s->length;
}

int qc_remake(struct qc_image *img, struct ubd_queue *q, uint64_t size, const char *job,
	      const char *name)
{
	struct qc_snapshots now;
	struct qc_world w = {.size = size, .now = &now};
	const struct qc_snapshot *s;
	int ret = qc_snapshots_read(img, q, &now);

	if (ret)
		return ret;
	w.bytes = now.bytes;
	s = job ? qc_snapshot_find(&now, name) : NULL;
	if (job && !strcmp(job, "create")) {
		ret = s ? qc_fail(img, -EEXIST, " has a snapshot '%s' already", name)
			: create(img, &now, name, &w);
	} else if (job && !s) {
		ret = qc_fail(img, -ENOENT, " has no snapshot '%s'", name);
	} else if (job && !strcmp(job, "apply")) {
		ret = qc_snapshot_check(img, s);
		w.adopt = s;
		w.size = s->size;
	} else if (job) {
		drop(&now, s, &w);
	}
	ret = ret ?: qc_rebuild(img, q, &w);
	qc_snapshots_free(&now);
	return ret;
}

/* Zeroes where nobody looks: behind the disk's end, or before anybody knows of it. */
static int clear(struct qc_image *img, struct ubd_queue *q, uint64_t from, uint64_t to)
{
	if (from >= to)
		return 0;
	return qc_header_mark(img, q) ?: qc_zero(img, q, from, to - from, ZERO_UNMAP);
}

int qc_resize(struct qc_image *img, struct ubd_queue *q, uint64_t size)
{
	const struct ubd_limits *l = ubd_device_limits(img->dev);
	/* What was told, where growing has failed midway; and the last block is a whole one. */
	uint64_t old = MIN(((img->size - 1) | (l->logical_block - 1)) + 1, l->size);
	uint64_t edge = MIN(size, old), end = img->data_raw ? 0 : edge + in_cluster(img, -edge);
	int ret;

	if (!size || size % l->logical_block || size > MAX_DISK)
		return ubd_device_fail(img->dev, -EINVAL,
				       "the disk's size must be a multiple of %u bytes, not %llu",
				       l->logical_block, (unsigned long long)size);
	if (size == old && size == img->size)
		return 0;
	/* What lies behind the nearer end must not show when it moves on. */
	ret = (size > old ? clear(img, q, edge, end) : 0)
		      ?: qc_remake(img, q, size, NULL, NULL)
		      ?: size < old ? clear(img, q, edge, end) : 0;
	if (!ret && img->data_raw)
		ret = qc_file_truncate(img->data, q, edge) ?: qc_file_truncate(img->data, q, size);
	ret = ret ?: img->backing ? clear(img, q, end, MIN(size, img->backing->size)) : 0;
	ret = ret ?: qc_commit(img, q);
	if (ret && img->size > old)
		qc_remake(img, q, old, NULL, NULL);
	return ret;
}
