/* SPDX-License-Identifier: MIT */
/*
 * What survives a killed server: a list of mappings that requests have been told of and no commit
 * has written yet, in a file in memory (tmpfs).
 *
 * A disk may forget what was not flushed when it loses power, but not when its server dies: the
 * file system on it goes on and believes its writes are in the disk's cache. So each change of
 * an L2 entry is noted here before its request is answered, and a server that finds such a list
 * does the changes again. Two halves: a commit takes one, changes during it go to the other.
 *
 * The list counts only for the image as it was left: the dirty bit in the image's header says so,
 * which any other program that writes to the image would have cleared, and the boot's identity.
 */
#define _GNU_SOURCE
#include "qcow2.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define JOURNAL_MAGIC 0x7562642d71633201ull
#define ROOM 16384u /* records in each half */

struct record {
	uint64_t guest, word, bits;
};

struct journal_file {
	uint64_t magic, device, inode, l1_offset;
	char boot[40];
	_Atomic uint32_t count[2];
	_Atomic uint32_t current; /* the half with the newer records */
	struct record records[2][ROOM];
};

struct qc_journal {
	struct journal_file *map;
	char *path;
	unsigned taken; /* half that the commit under way makes superfluous */
};

bool qc_journal_full(const struct qc_image *img)
{
	const struct qc_journal *j = img->journal;

	return j && j->map->count[j->map->current] > ROOM / 4 * 3;
}

void qc_journal_add(struct qc_image *img, uint64_t guest, uint64_t word, uint64_t bits)
{
	struct qc_journal *j = img->journal;
	uint32_t half, n;

	if (!j)
		return;
	half = j->map->current;
	n = j->map->count[half];
	/* Never, as transactions look first; but what is not noted must be on disk. */
	img->commit_first |= n == ROOM;
	if (n == ROOM)
		return;
	j->map->records[half][n] = (struct record){guest, word, bits};
	atomic_store_explicit(&j->map->count[half], n + 1, memory_order_release);
}

void qc_journal_begin(struct qc_image *img)
{
	struct qc_journal *j = img->journal;
	uint32_t half;

	if (!j)
		return;
	half = j->map->current;
	/* After a failed commit both are in use: the older one goes first. */
	if (j->map->count[half ^ 1]) {
		j->taken = half ^ 1;
		return;
	}
	j->taken = half;
	atomic_store(&j->map->current, half ^ 1);
}

void qc_journal_end(struct qc_image *img, bool done)
{
	struct qc_journal *j = img->journal;

	if (!j || !done)
		return;
	atomic_store(&j->map->count[j->taken], 0);
}

/* ---- Opening ------------------------------------------------------------------------------- */

static int by_guest(const void *a, const void *b)
{
	const struct qc_patch *x = a, *y = b;

	if (x->guest != y->guest)
		return x->guest < y->guest ? -1 : 1;
	return x->age < y->age ? -1 : x->age > y->age;
}

/* What a dead server left: the newest record of each guest cluster, in order of these. */
static int take_patches(struct qc_image *img, const struct journal_file *map)
{
	uint32_t now = map->current & 1, n = 0, kept = 0;
	uint32_t counts[2] = {MIN(map->count[0], ROOM), MIN(map->count[1], ROOM)};
	struct qc_patch *p = calloc(counts[0] + counts[1] + 1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	for (unsigned k = 0; k < 2; k++)
		for (uint32_t i = 0; i < counts[k ? now : now ^ 1]; i++, n++) {
			const struct record *r = &map->records[k ? now : now ^ 1][i];

			p[n] = (struct qc_patch){r->guest, r->word, r->bits, n};
		}
	qsort(p, n, sizeof(*p), by_guest);
	for (uint32_t i = 0; i < n; i++)
		if (i + 1 == n || p[i + 1].guest != p[i].guest)
			p[kept++] = p[i];
	img->patches = p;
	img->nr_patches = kept;
	return 0;
}

static void read_boot_id(char *boot, size_t size)
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, boot, size - 1);

	boot[MAX(n, 0)] = 0;
	if (fd >= 0)
		close(fd);
}

static bool is_ours(const struct journal_file *old, const struct journal_file *now)
{
	return old->magic == now->magic && old->device == now->device && old->inode == now->inode &&
	       old->l1_offset == now->l1_offset && !memcmp(old->boot, now->boot, sizeof(now->boot));
}

static int map_journal(struct qc_image *img, struct qc_journal *j)
{
	struct journal_file id = {.magic = JOURNAL_MAGIC, .l1_offset = img->l1_offset};
	struct stat st;
	int fd = open(j->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0 || fstat(img->file.b.fd, &st) < 0)
		goto fail;
	/* Its space is taken now: a full file system must not show when a record is written. */
	errno = posix_fallocate(fd, 0, sizeof(*j->map));
	if (errno)
		goto fail;
	id.device = st.st_dev;
	id.inode = st.st_ino;
	read_boot_id(id.boot, sizeof(id.boot));
	j->map = mmap(NULL, sizeof(*j->map), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (j->map == MAP_FAILED)
		goto fail;
	close(fd);
	if (j->map->count[0] + j->map->count[1] && is_ours(j->map, &id)) {
		if (img->incompatible & INCOMPAT_DIRTY)
			return take_patches(img, j->map);
		ubd_device_notice(img->dev,
				  "%s has been changed by another program since its server died: "
				  "what was not flushed then is lost",
				  img->file.path);
	}
	j->map->count[0] = j->map->count[1] = 0;
	memcpy(j->map, &id, offsetof(struct journal_file, count));
	return 0;
fail:
	j->map = NULL;
	if (fd >= 0)
		close(fd);
	return -errno;
}

int qc_journal_open(struct qc_image *img, const char *dir)
{
	struct qc_journal *j = calloc(1, sizeof(*j));
	struct stat st;
	int ret = -ENOMEM;

	if (!j || fstat(img->file.b.fd, &st) < 0)
		goto fail;
	mkdir(dir, 0755);
	if (asprintf(&j->path, "%s/qcow2-%llx-%llx.journal", dir, (unsigned long long)st.st_dev,
		     (unsigned long long)st.st_ino) < 0)
		goto fail;
	ret = map_journal(img, j);
	if (ret)
		goto fail;
	img->journal = j;
	return 0;
fail:
	ubd_device_notice(img->dev,
			  "no journal in %s (%s): mappings are written before writes are "
			  "answered, which is slower",
			  dir, strerror(-ret));
	if (j)
		free(j->path);
	free(j);
	img->commit_first = true;
	return 0;
}

void qc_journal_reset(struct qc_image *img)
{
	struct qc_journal *j = img->journal;

	free(img->patches);
	img->patches = NULL;
	img->nr_patches = 0;
	if (!j)
		return;
	j->map->count[0] = j->map->count[1] = 0;
	j->map->l1_offset = img->l1_offset;
}

void qc_journal_close(struct qc_image *img, bool clean)
{
	struct qc_journal *j = img->journal;

	free(img->patches);
	img->patches = NULL;
	if (!j)
		return;
	if (clean)
		unlink(j->path);
	munmap(j->map, sizeof(*j->map));
	free(j->path);
	free(j);
	img->journal = NULL;
}
