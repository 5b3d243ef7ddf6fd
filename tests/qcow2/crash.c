/* SPDX-License-Identifier: MIT */
/*
 * Power loss at every point: run a load on an image, record what its files are told, and check
 * what may be left of them for every moment and in several ways.
 *
 *   crash IMAGE WORK SEED OPERATIONS WAYS STEP [data-file=PATH] [snapshots=yes] [resize=yes]
 *
 * Every STEP-th moment is tried. For each state qemu-img check must find nothing but leaks, the
 * contents must hold everything flushed, and our own server must put the image in order.
 */
#define _GNU_SOURCE
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "record.h"

#define SECTOR 512u
#define THREADS 3
#define MAX_SECTORS 128u
#define INITIAL UINT64_MAX

/* What a sector was told: a tag that fills it, 0 for zeroes. */
struct told {
	uint64_t tag, start, end; /* end 0: never answered */
	bool fua, maybe;	  /* maybe: a discard, which need not take effect */
};

struct history {
	struct told *items;
	unsigned count;
};

static struct history *sectors;
static uint64_t nr_sectors;
static uint8_t *initial;
static struct {
	uint64_t start, end;
} flushes[65536];
static _Atomic unsigned nr_flushes;
static struct ubd_device *dev;
static _Atomic uint64_t tags;
static bool with_snapshots, with_resize;
static uint64_t *saved; /* tags of the snapshot */

static struct told *tell(uint64_t sector, uint64_t tag, uint64_t start)
{
	struct history *h = &sectors[sector];

	h->items = realloc(h->items, (h->count + 1) * sizeof(*h->items));
	h->items[h->count] = (struct told){.tag = tag, .start = start};
	return &h->items[h->count++];
}

static void flush(unsigned q)
{
	uint64_t start = record_tick();
	int ret = ubd_local_io(dev, q, UBD_FLUSH, 0, 0, NULL, 0);
	unsigned n;

	if (ret)
		die("flush: %s", strerror(-ret));
	n = atomic_fetch_add(&nr_flushes, 1);
	flushes[n].end = record_tick();
	flushes[n].start = start;
}

static void change(unsigned q, uint64_t first, unsigned n, enum ubd_op op, unsigned flags)
{
	uint64_t tag = op == UBD_WRITE ? atomic_fetch_add(&tags, 1) + 1 : 0;
	uint64_t start = record_tick(), end;
	uint8_t *buf = aligned_alloc(4096, MAX_SECTORS * SECTOR);
	int ret;

	for (unsigned i = 0; i < n * SECTOR / 8; i++)
		memcpy(buf + i * 8, &tag, 8);
	for (unsigned i = 0; i < n; i++)
		*tell(first + i, tag, start) = (struct told){.tag = tag,
							     .start = start,
							     .fua = flags & UBD_IO_FUA,
							     .maybe = op == UBD_DISCARD};
	ret = ubd_local_io(dev, q, op, flags, first * SECTOR, buf, n * SECTOR);
	end = record_tick();
	if (ret < 0)
		die("operation %d: %s", op, strerror(-ret));
	for (unsigned i = 0; i < n; i++)
		sectors[first + i].items[sectors[first + i].count - 1].end = end;
	free(buf);
}

struct worker {
	pthread_t thread;
	unsigned index, operations;
	uint64_t seed;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	uint64_t part = nr_sectors / THREADS;

	for (unsigned i = 0; i < w->operations; i++) {
		unsigned what = random_next(&w->seed) % 100;
		unsigned flags = random_next(&w->seed) % 10 ? 0 : UBD_IO_FUA;
		unsigned n = 1 + random_next(&w->seed) % (what & 1 ? MAX_SECTORS : 12);
		uint64_t first = part * w->index + random_next(&w->seed) % (part - n);

		if (what < 60)
			change(w->index, first, n, UBD_WRITE, flags);
		else if (what < 72)
			change(w->index, first, n, UBD_WRITE_ZEROES, flags);
		else if (what < 85)
			change(w->index, first, n, UBD_DISCARD, 0);
		else
			flush(w->index);
	}
	return NULL;
}

static uint64_t last_tag(uint64_t sector)
{
	const struct history *h = &sectors[sector];

	return h->count ? h->items[h->count - 1].tag : INITIAL;
}

static void use_snapshots(unsigned round)
{
	static const char *const jobs[] = {"create", "apply", "delete"};
	bool apply = round % 3 == 1;
	uint64_t start = record_tick(), end;
	int ret;

	/* What a snapshot takes must be known: discards leave it open, so flush and forget them. */
	if (apply)
		for (uint64_t i = 0; i < nr_sectors; i++)
			tell(i, saved[i], start);
	ret = disk_command(dev, "snapshot", jobs[round % 3], "s");
	if (ret)
		die("snapshot: %s", strerror(-ret));
	end = record_tick();
	for (uint64_t i = 0; i < nr_sectors && apply; i++) {
		struct told *t = &sectors[i].items[sectors[i].count - 1];

		t->end = end;
		t->fua = true;
	}
}

/* After create: the contents, read back, as the tags that they are. */
static void take_tags(void)
{
	uint8_t *buf = aligned_alloc(4096, SECTOR * 8);

	for (uint64_t i = 0; i < nr_sectors; i++) {
		if (ubd_local_io(dev, 0, UBD_READ, 0, i * SECTOR, buf, SECTOR) != (int)SECTOR)
			die("cannot read back");
		memcpy(&saved[i], buf, 8);
		if (last_tag(i) == INITIAL ||
		    (saved[i] != last_tag(i) && !memcmp(buf, initial + i * SECTOR, SECTOR)))
			saved[i] = INITIAL;
	}
	free(buf);
}

/* ---- Checking ------------------------------------------------------------------------------ */

static bool matches(const uint8_t *sector, uint64_t i, uint64_t tag)
{
	if (tag == INITIAL)
		return !memcmp(sector, initial + i * SECTOR, SECTOR);
	for (unsigned k = 0; k < SECTOR; k += 8)
		if (memcmp(sector + k, &tag, 8) != 0)
			return false;
	return true;
}

static uint64_t get_tag(const uint8_t *sector)
{
	uint64_t tag;

	memcpy(&tag, sector, 8);
	return tag;
}

/* Whether a sector may read so when power was lost at `cut`. */
static bool allowed(const uint8_t *data, uint64_t i, uint64_t cut, uint64_t flushed)
{
	const struct history *h = &sectors[i];

	for (unsigned k = h->count; k-- > 0;) {
		const struct told *t = &h->items[k];

		if (t->start > cut)
			continue;
		if (matches(data, i, t->tag))
			return true;
		/* Nothing older may show. */
		if (t->end && !t->maybe && (t->end <= flushed || (t->fua && t->end <= cut)))
			return false;
	}
	return matches(data, i, INITIAL);
}

/* Say what the sector had been told, and end. */
static void lost(uint64_t i, const uint8_t *data, uint64_t flushed, const char *what)
{
	const struct history *h = &sectors[i];

	for (unsigned k = 0; k < h->count; k++)
		fprintf(stderr, "# told %016llx from %llu to %llu%s%s\n",
			(unsigned long long)h->items[k].tag, (unsigned long long)h->items[k].start,
			(unsigned long long)h->items[k].end, h->items[k].fua ? ", durable" : "",
			h->items[k].maybe ? ", perhaps" : "");
	die("%s: sector %llu holds %016llx, which is lost or was never written; flushed at %llu",
	    what, (unsigned long long)i, (unsigned long long)get_tag(data),
	    (unsigned long long)flushed);
}

static void check_contents(struct ubd_device *d, uint64_t cut, const char *what)
{
	static uint8_t buf[MAX_SECTORS * SECTOR] __attribute__((aligned(4096)));
	uint64_t flushed = 0;

	for (unsigned i = 0; i < nr_flushes; i++)
		if (flushes[i].end <= cut && flushes[i].start > flushed)
			flushed = flushes[i].start;
	for (uint64_t i = 0; i < nr_sectors; i++) {
		uint64_t at = i % MAX_SECTORS;
		uint32_t n =
			(uint32_t)(nr_sectors - i < MAX_SECTORS ? nr_sectors - i : MAX_SECTORS);

		if (!at && ubd_local_io(d, 0, UBD_READ, 0, i * SECTOR, buf, n * SECTOR) < 0)
			die("%s: sector %llu cannot be read", what, (unsigned long long)i);
		if (!allowed(buf + at * SECTOR, i, cut, flushed))
			lost(i, buf + at * SECTOR, flushed, what);
	}
}

static void store(const char *path, const uint8_t *data, uint64_t size)
{
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(data, 1, size, f) != size || fclose(f))
		die("cannot write %s", path);
}

static uint8_t *load(const char *path, uint64_t *size)
{
	struct stat st;
	FILE *f = fopen(path, "rb");
	uint8_t *data;

	if (!f || fstat(fileno(f), &st))
		die("cannot read %s", path);
	*size = (uint64_t)st.st_size;
	data = malloc(*size + 1);
	if (fread(data, 1, *size, f) != *size)
		die("cannot read %s", path);
	fclose(f);
	return data;
}

static int qemu_check(const char *image)
{
	const char *const argv[] = {"qemu-img", "check", "-q", "-f", "qcow2", image, NULL};
	posix_spawn_file_actions_t quiet;
	int status = 0;
	pid_t pid;

	posix_spawn_file_actions_init(&quiet);
	posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_adddup2(&quiet, 1, 2);
	if (posix_spawnp(&pid, argv[0], &quiet, NULL, (char **)(uintptr_t)argv, environ))
		die("cannot run qemu-img");
	posix_spawn_file_actions_destroy(&quiet);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

struct subject {
	const char *path;
	uint8_t *base;
	uint64_t size;
};

static void check_state(const struct subject *files, const char *const *copies, uint64_t cut,
			unsigned way, uint64_t seed)
{
	struct disk_options o = {
		.image = copies[0], .data_file = copies[1], .journal = "off", .quiet = true};
	char what[128], error[512];
	struct ubd_device *d;
	int status;

	snprintf(what, sizeof(what), "cut at %llu, way %u, seed %llu", (unsigned long long)cut, way,
		 (unsigned long long)seed);
	for (int i = 0; i < 2 && files[i].path; i++) {
		uint64_t size = files[i].size;
		uint8_t *data = record_state(files[i].path, files[i].base, &size, cut,
					     way < 3 ? way : RECORD_SECTORS, seed);

		store(copies[i], data, size);
		free(data);
	}
	status = qemu_check(copies[0]);
	if (status && status != 3)
		die("%s: qemu-img check says %d", what, status);
	d = disk_open(&o, error, sizeof(error));
	if (!d)
		die("%s: cannot be opened: %s", what, error);
	check_contents(d, cut, what);
	if (disk_close(d))
		die("%s: does not close", what);
	status = seed % 4 ? 0 : qemu_check(copies[0]); /* it is slow: some will do */
	/* Leaks stay where the file could not say that it was in use. */
	if (status && status != 3)
		die("%s: damaged after we opened it: qemu-img check says %d", what, status);
}

/* What lies in the first nr_sectors must stay, whatever the size. */
static void resize(uint64_t to)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)to * SECTOR);
	if (disk_command(dev, "resize", text, NULL))
		die("resize: %s", ubd_device_error(dev));
}

static void put_under_load(unsigned operations, uint64_t *seed)
{
	struct worker w[THREADS];

	for (unsigned round = 0; round < 6; round++) {
		for (unsigned i = 0; i < THREADS; i++) {
			w[i] = (struct worker){.index = i,
					       .operations = operations / 6 / THREADS,
					       .seed = random_next(seed)};
			pthread_create(&w[i].thread, NULL, work, &w[i]);
		}
		for (unsigned i = 0; i < THREADS; i++)
			pthread_join(w[i].thread, NULL);
		if (with_resize)
			resize(round % 2 ? nr_sectors : nr_sectors * 2 + 7);
		if (with_snapshots) {
			use_snapshots(round);
			if (round % 3 == 0)
				take_tags();
		}
	}
}

int main(int argc, char **argv)
{
	struct disk_options o = {.queues = THREADS, .journal = "off"};
	static struct subject files[2];
	char copy[2][512], error[512];
	const char *copies[2] = {copy[0], NULL};
	uint64_t seed, end, states = 0;
	unsigned operations, ways, step;

	if (argc < 7)
		die("usage: crash IMAGE WORK SEED OPERATIONS WAYS STEP [option=value]...");
	/* As the target knows them. */
	o.image = files[0].path = realpath(argv[1], NULL);
	seed = strtoull(argv[3], NULL, 0);
	operations = (unsigned)atoi(argv[4]);
	ways = (unsigned)atoi(argv[5]);
	step = (unsigned)atoi(argv[6]);
	for (int i = 7; i < argc; i++) {
		if (!strncmp(argv[i], "data-file=", 10))
			files[1].path = realpath(argv[i] + 10, NULL);
		with_snapshots |= !strcmp(argv[i], "snapshots=yes");
		with_resize |= !strcmp(argv[i], "resize=yes");
	}
	snprintf(copy[0], sizeof(copy[0]), "%s/state", argv[2]);
	snprintf(copy[1], sizeof(copy[1]), "%s/state-data", argv[2]);
	if (files[1].path)
		copies[1] = copy[1];
	for (int i = 0; i < 2 && files[i].path; i++)
		files[i].base = load(files[i].path, &files[i].size);
	record_begin();
	dev = disk_open(&o, error, sizeof(error));
	if (!dev)
		return 1;
	nr_sectors = ubd_device_size(dev) / SECTOR;
	sectors = calloc(nr_sectors, sizeof(*sectors));
	saved = calloc(nr_sectors, sizeof(*saved));
	initial = aligned_alloc(4096, nr_sectors * SECTOR);
	for (uint64_t i = 0; i < nr_sectors; i += 8)
		ubd_local_io(dev, 0, UBD_READ, 0, i * SECTOR, initial + i * SECTOR,
			     (nr_sectors - i < 8 ? (uint32_t)(nr_sectors - i) : 8) * SECTOR);
	put_under_load(operations, &seed);
	if (disk_close(dev))
		die("the device did not end well");
	record_end();
	end = record_now();
	for (uint64_t cut = 1 + seed % step; cut <= end + 1; cut += step)
		for (unsigned way = 0; way < ways; way++, states++)
			check_state(files, copies, cut, way, random_next(&seed));
	printf("%llu states of %llu moments\n", (unsigned long long)states,
	       (unsigned long long)end);
	return 0;
}
