/* SPDX-License-Identifier: MIT */
/* Counting references to host clusters. */
#define _GNU_SOURCE
#include "census.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define MAX_CLUSTERS (1ull << 31)
#define MAX_L1_ENTRIES (1ull << 26)

int census_begin(struct census *c, struct qc_image *img, struct ubd_queue *q)
{
	uint64_t clusters = clusters_for(img, atomic_load(&img->file.end));

	*c = (struct census){.img = img, .q = q};
	/* Room for a second copy of all tables and for larger ones. */
	c->room = clusters * 2 + clusters_for(img, img->l1_entries * 16ull) + 65536;
	if (c->room > MAX_CLUSTERS)
		return ubd_device_fail(img->dev, -EFBIG,
				       "%s has too many clusters (%llu) to count their references",
				       img->file.path, (unsigned long long)clusters);
	c->marks = mmap(NULL, c->room * sizeof(*c->marks), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (c->marks == MAP_FAILED)
		c->marks = NULL;
	if (!c->marks || posix_memalign((void **)&c->buffer, 4096, cluster_size(img)))
		return -ENOMEM;
	return 0;
}

void census_end(struct census *c)
{
	if (c->marks)
		munmap(c->marks, c->room * sizeof(*c->marks));
	free(c->tables);
	free(c->buffer);
}

int census_damaged(struct census *c, const char *what, uint64_t pos)
{
	qc_damaged(c->img, what, pos);
	return ubd_device_fail(
		c->img->dev, -EIO,
		"%s is damaged: %s at %llu cannot be right; try qemu-img check -r all "
		"on a copy",
		c->img->file.path, what, (unsigned long long)pos);
}

int census_mark(struct census *c, uint64_t pos, uint64_t count, uint32_t times, uint32_t flags)
{
	uint64_t first = pos >> c->img->cluster_bits;
	uint64_t end = clusters_for(c->img, atomic_load(&c->img->file.end));

	if (count > end || first > end - count)
		return census_damaged(c, "a reference past the end of the file,", pos);
	for (uint64_t i = first; i < first + count; i++) {
		if ((c->marks[i] & CENSUS_COUNT) + (uint64_t)times > CENSUS_COUNT)
			return census_damaged(c, "the number of references to a cluster", pos);
		c->marks[i] = (c->marks[i] + times) | flags;
	}
	c->top = MAX(c->top, first + count);
	return 0;
}

int census_read(struct census *c, void *buf, uint64_t len, uint64_t pos)
{
	return qc_file_read(&c->img->file, c->q, buf, len, pos);
}

/* The table at pos counts `times` times more. */
static int add_table(struct census *c, uint64_t pos, uint32_t times)
{
	uint64_t cluster = pos >> c->img->cluster_bits;
	int ret;

	if (pos & (cluster_size(c->img) - 1) || !pos)
		return census_damaged(c, "an L2 table", pos);
	ret = census_mark(c, pos, 1, times, CENSUS_OLD);
	if (ret || c->marks[cluster] & CENSUS_TABLE)
		return ret;
	c->marks[cluster] |= CENSUS_TABLE;
	if (c->nr_tables == c->room_tables) {
		size_t room = c->room_tables ? c->room_tables * 2 : 256;
		void *more = realloc(c->tables, room * sizeof(*c->tables));

		if (!more)
			return -ENOMEM;
		c->tables = more;
		c->room_tables = room;
	}
	c->tables[c->nr_tables++].cluster = cluster;
	return 0;
}

int census_l1(struct census *c, uint64_t pos, uint64_t entries, uint32_t times)
{
	uint64_t size = cluster_size(c->img), in_one = size / 8;
	int ret;

	c->l1_entries += entries;
	if (entries > MAX_L1_BYTES / 8 || c->l1_entries > MAX_L1_ENTRIES || pos & (size - 1))
		return census_damaged(c, "an L1 table", pos);
	ret = census_mark(c, pos, clusters_for(c->img, entries * 8), times, CENSUS_OLD);
	for (uint64_t i = 0; i < entries && !ret; i++) {
		uint64_t word;

		if (i % in_one == 0)
			ret = census_read(c, c->buffer, size, pos + i * 8);
		word = get64(c->buffer + i % in_one * 8) & ENTRY_OFFSET;
		if (!ret && word)
			ret = add_table(c, word, times);
	}
	return ret;
}

int census_entry(struct census *c, const struct qc_entry *e, uint32_t times)
{
	uint64_t pos = e->host, len = 1;

	if (c->img->external || (!e->has_host && !e->packed))
		return 0;
	if (e->packed)
		qc_packed_range(c->img, e->word, &pos, &len);
	return census_mark(c, pos,
			   ((pos + len - 1) >> c->img->cluster_bits) -
				   (pos >> c->img->cluster_bits) + 1,
			   times, CENSUS_OLD);
}

static int count_table(struct census *c, const struct census_table *t)
{
	unsigned step = entry_size(c->img);
	int ret =
		census_read(c, c->buffer, cluster_size(c->img), t->cluster << c->img->cluster_bits);

	for (uint64_t at = 0; at < cluster_size(c->img) && !ret; at += step) {
		uint64_t word = get64(c->buffer + at);
		uint64_t bits = step > 8 ? get64(c->buffer + at + 8) : 0;
		struct qc_entry e;

		if (!word)
			continue;
		if (qc_entry_parse(c->img, word, bits, &e))
			return census_damaged(c, "an L2 entry",
					      (t->cluster << c->img->cluster_bits) + at);
		ret = census_entry(c, &e, t->times);
	}
	return ret;
}

int census_tables(struct census *c)
{
	int ret = 0;

	/* Before data is counted: a table that is data as well must not count for both. */
	for (size_t i = 0; i < c->nr_tables; i++)
		c->tables[i].times = c->marks[c->tables[i].cluster] & CENSUS_COUNT;
	for (size_t i = 0; i < c->nr_tables && !ret; i++)
		ret = count_table(c, &c->tables[i]);
	return ret;
}

int census_take(struct census *c, uint64_t count, uint64_t *pos)
{
	uint64_t first = c->cursor, n = 0;

	while (n < count) {
		if (first + n >= c->room)
			return -ENOSPC;
		if (c->marks[first + n]) {
			first += n + 1;
			n = 0;
		} else {
			n++;
		}
	}
	for (uint64_t i = 0; i < count; i++)
		c->marks[first + i] = 1;
	/* Runs may have left single ones behind: only those count as looked at. */
	if (count == 1)
		c->cursor = first + 1;
	c->top = MAX(c->top, first + count);
	*pos = first << c->img->cluster_bits;
	return qc_file_reserve(&c->img->file, c->q, (first + count) << c->img->cluster_bits);
}
