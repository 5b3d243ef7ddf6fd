/* SPDX-License-Identifier: MIT */
/*
 * What survives a killed server: a list of mappings that requests have been told of and no commit
 * has written yet, in a file in memory (tmpfs).
 *
 * A disk may forget what was not flushed when it loses power, but not when its server dies: the
 * file system on it goes on and believes its writes are in the disk's cache. So each change of
 * an L2 entry is noted here before its request is answered, and a server that finds such a list
 * does the changes again. It is a ring: a commit makes superfluous what is in it when it begins.
 *
 * The list counts only for the image as it was left: the dirty bit in the image's header says so,
 * which any other program that writes to the image would have cleared, and the boot's identity.
 */
#define _GNU_SOURCE
#include "qcow2.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define JOURNAL_MAGIC 0x7562642d71633202ull
#define ROOM 32768u /* records */

struct record {
	uint64_t guest, word, bits;
};

struct identity {
	uint64_t magic, device, inode, l1_offset;
	char boot[40];
};

struct qc_journal {
	struct identity id;
	_Atomic uint64_t head, tail; /* records ever written, and superfluous */
	struct record records[ROOM];
};

bool qc_journal_full(const struct qc_image *img)
{
	const struct qc_journal *j = img->journal;

	/* A commit under way leaves room for as much again; failed ones leave less and less. */
	return j &&
	       (j->head - img->journal_taken > ROOM / 8 * 3 || j->head - j->tail > ROOM / 8 * 7);
}

void qc_journal_add(struct qc_image *img, uint64_t guest, uint64_t word, uint64_t bits)
{
	struct qc_journal *j = img->journal;

	if (j && j->head - j->tail < ROOM) {
		j->records[j->head % ROOM] = (struct record){guest, word, bits};
		atomic_store_explicit(&j->head, j->head + 1, memory_order_release);
	} else if (j) {
		/* Never, as transactions look first; but what is not noted must be on disk. */
		img->commit_first = true;
	}
}

void qc_journal_begin(struct qc_image *img)
{
	if (img->journal)
		img->journal_taken = img->journal->head;
}

void qc_journal_end(struct qc_image *img)
{
	if (img->journal)
		atomic_store(&img->journal->tail, img->journal_taken);
}

/* ---- Opening ------------------------------------------------------------------------------- */

static int by_guest(const void *a, const void *b)
{
	const struct qc_patch *x = a, *y = b;

	return COMPARE(x->guest, y->guest) ?: COMPARE(x->age, y->age);
}

/* What a dead server left, by guest cluster, the newest of each last. */
static int take_patches(struct qc_image *img)
{
	const struct qc_journal *j = img->journal;

	img->nr_patches = (uint32_t)MIN(j->head - j->tail, ROOM);
	img->patches = calloc(img->nr_patches + 1u, sizeof(*img->patches));
	if (!img->patches)
		return -ENOMEM;
	for (uint32_t i = 0; i < img->nr_patches; i++) {
		const struct record *r = &j->records[(j->tail + i) % ROOM];

		img->patches[i] = (struct qc_patch){r->guest, r->word, r->bits, i};
	}
	qsort(img->patches, img->nr_patches, sizeof(*img->patches), by_guest);
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

/* An empty one, or what there is for this image as it was left. */
static int map_journal(struct qc_image *img, const struct stat *st)
{
	struct identity id = {JOURNAL_MAGIC, st->st_dev, st->st_ino, img->l1_offset};
	int fd = open(img->journal_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), err;
	struct qc_journal *j = MAP_FAILED;

	if (fd < 0)
		return -errno;
	/* Its space is taken now: a full file system must not show when a record is written. */
	err = posix_fallocate(fd, 0, sizeof(*j));
	if (!err)
		j = mmap(NULL, sizeof(*j), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (!err && j == MAP_FAILED)
		err = errno;
	close(fd);
	if (err)
		return -err;
	img->journal = j;
	read_boot_id(id.boot, sizeof(id.boot));
	if (j->head != j->tail && !memcmp(&j->id, &id, sizeof(id))) {
		if (img->incompatible & INCOMPAT_DIRTY)
			return 0;
		ubd_device_notice(img->dev,
				  "%s has been changed by another program since its server died: "
				  "what was not flushed then is lost",
				  img->file.path);
	}
	j->head = j->tail = 0;
	j->id = id;
	return 0;
}

int qc_journal_open(struct qc_image *img, const char *dir)
{
	struct stat st;
	int ret = fstat(img->file.b.fd, &st) < 0 ? -errno : 0;

	mkdir(dir, 0755);
	if (!ret && asprintf(&img->journal_path, "%s/qcow2-%llx-%llx.journal", dir,
			     (unsigned long long)st.st_dev, (unsigned long long)st.st_ino) < 0) {
		img->journal_path = NULL;
		return -ENOMEM;
	}
	ret = ret ?: map_journal(img, &st);
	if (!ret)
		return take_patches(img);
	ubd_device_notice(img->dev, "no journal in %s (%s): first writes to a cluster are slower",
			  dir, strerror(-ret));
	img->commit_first = true;
	return 0;
}

void qc_journal_reset(struct qc_image *img)
{
	free(img->patches);
	img->patches = NULL;
	img->nr_patches = 0;
	if (!img->journal)
		return;
	img->journal->tail = img->journal_taken = img->journal->head;
	img->journal->id.l1_offset = img->l1_offset;
}

void qc_journal_close(struct qc_image *img, bool clean)
{
	if (img->journal && clean)
		unlink(img->journal_path);
	if (img->journal)
		munmap(img->journal, sizeof(*img->journal));
	free(img->patches);
	free(img->journal_path);
}
