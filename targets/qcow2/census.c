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
		return qc_fail(img, -EFBIG,
			       " has too many clusters (%llu) to count their references",
			       (unsigned long long)clusters);
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
	return qc_fail(
		c->img, -EIO,
		" is damaged: %s at %llu cannot be right; try qemu-img check -r all on a copy",
		what, (unsigned long long)pos);
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

/* Calls fn with what the entries of a table at pos point at, where that is something. */
static int walk(struct census *c, uint64_t pos, uint64_t entries, uint64_t mask,
		int (*fn)(struct census *c, uint64_t pos, uint32_t times), uint32_t times)
{
	uint64_t size = cluster_size(c->img), word;
	int ret = 0;

	for (uint64_t i = 0; i < entries * 8 && !ret; i += 8) {
		if (i % size == 0)
			ret = qc_file_read(&c->img->file, c->q, c->buffer, size, pos + i);
		word = get64(c->buffer + i % size) & mask;
		if (!ret && word)
			ret = fn(c, word, times);
	}
	return ret;
}

/* The table at pos counts `times` times more. */
static int add_table(struct census *c, uint64_t pos, uint32_t times)
{
	uint64_t cluster = pos >> c->img->cluster_bits;
	void *more;
	int ret;

	if (pos & (cluster_size(c->img) - 1))
		return census_damaged(c, "an L2 table", pos);
	ret = census_mark(c, pos, 1, times, CENSUS_OLD);
	if (ret || c->marks[cluster] & CENSUS_TABLE)
		return ret;
	c->marks[cluster] |= CENSUS_TABLE;
	more = qc_grow(c->tables, c->nr_tables, sizeof(*c->tables));
	if (!more)
		return -ENOMEM;
	c->tables = more;
	c->tables[c->nr_tables++].cluster = cluster;
	return 0;
}

int census_l1(struct census *c, uint64_t pos, uint64_t entries, uint32_t times)
{
	int ret;

	c->l1_entries += entries;
	if (entries > MAX_L1_BYTES / 8 || c->l1_entries > MAX_L1_ENTRIES ||
	    pos & (cluster_size(c->img) - 1))
		return census_damaged(c, "an L1 table", pos);
	ret = census_mark(c, pos, clusters_for(c->img, entries * 8), times, CENSUS_OLD);
	return ret ? ret : walk(c, pos, entries, ENTRY_OFFSET, add_table, times);
}

/* One that cannot be right is about to be replaced. */
static int spare_block(struct census *c, uint64_t pos, uint32_t times)
{
	return pos < atomic_load(&c->img->file.end) ? census_mark(c, pos, 1, times, CENSUS_OLD) : 0;
}

int census_spare_refcounts(struct census *c)
{
	const struct qc_image *img = c->img;
	uint64_t entries = (uint64_t)img->rt_clusters << (img->cluster_bits - 3);

	return census_mark(c, img->rt_offset, img->rt_clusters, 0, CENSUS_OLD)
		       ?: walk(c, img->rt_offset, entries, RT_OFFSET_MASK, spare_block, 0);
}

int census_entries(struct census *c, uint64_t pos, uint32_t times)
{
	int ret = 0;

	for (uint64_t at = 0; at < cluster_size(c->img) && !ret; at += entry_size(c->img)) {
		uint64_t first, count;
		struct qc_entry e;

		if (qc_entry_parse(c->img, c->buffer + at, &e))
			return census_damaged(c, "an L2 entry", pos + at);
		count = qc_entry_clusters(c->img, &e, &first);
		if (count)
			ret = census_mark(c, first << c->img->cluster_bits, count, times,
					  CENSUS_OLD);
	}
	return ret;
}

int census_tables(struct census *c)
{
	int ret = 0;

	/* Before data is counted: a table that is data as well must not count for both. */
	for (size_t i = 0; i < c->nr_tables; i++)
		c->tables[i].times = c->marks[c->tables[i].cluster] & CENSUS_COUNT;
	for (size_t i = 0; i < c->nr_tables && !ret; i++) {
		uint64_t pos = c->tables[i].cluster << c->img->cluster_bits;

		ret = qc_file_read(&c->img->file, c->q, c->buffer, cluster_size(c->img), pos);
		if (!ret)
			ret = census_entries(c, pos, c->tables[i].times);
	}
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

int census_put(struct census *c, const void *data, uint64_t count, uint64_t *pos)
{
	return census_take(c, count, pos)
		       ?: qc_file_write(&c->img->file, c->q, data, count << c->img->cluster_bits,
					*pos);
}
