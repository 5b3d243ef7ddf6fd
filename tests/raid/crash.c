/* SPDX-License-Identifier: MIT */
/*
 * Power loss at every point of a mirror's work: run a load, record what the legs are told, and for
 * moments all over it make what may be left of each leg. Whatever is left, the mirror opens, all
 * legs are the same once they have been copied, and nothing that a flush acknowledged is lost.
 *
 *   crash WORK SEED OPERATIONS CUTS failures=yes|no LEG... -- option=value...
 */
#include "disk.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "seam.h"

#define SECTOR 512u
#define THREADS 3
#define MAX_SECTORS 96u
#define DATA_BEGIN (1u << 20)

/* What a sector was told: a tag that fills it, 0 for zeroes. */
struct told {
	uint64_t tag, start, end; /* end 0: never answered */
	bool fua, maybe;	  /* maybe: a discard, which need not take effect */
};

static struct history {
	struct told *items;
	unsigned count;
} * sectors;

static uint64_t nr_sectors;
static struct {
	uint64_t start, end;
} flushes[65536];
static _Atomic unsigned nr_flushes;
static _Atomic uint64_t tags;
static struct ubd_device *dev;
static unsigned one_in = 10; /* writes is a FUA write */
static unsigned nr_legs;
static char *legs[SEAM_LEGS];

static void flush(unsigned q)
{
	uint64_t start = seam_tick();
	int ret = ubd_local_io(dev, q, UBD_FLUSH, 0, 0, NULL, 0);
	unsigned n;

	if (ret)
		die("flush: %s", strerror(-ret));
	n = atomic_fetch_add(&nr_flushes, 1);
	flushes[n].start = start;
	flushes[n].end = seam_tick();
}

static void change(unsigned q, uint64_t first, unsigned n, enum ubd_op op, unsigned flags)
{
	uint64_t tag = op == UBD_WRITE ? atomic_fetch_add(&tags, 1) + 1 : 0;
	uint64_t start = seam_tick(), end;
	uint8_t *buf = aligned_alloc(4096, MAX_SECTORS * SECTOR);
	int ret;

	for (unsigned i = 0; i < n * SECTOR / 8; i++)
		memcpy(buf + i * 8, &tag, 8);
	for (unsigned i = 0; i < n; i++) {
		struct history *h = &sectors[first + i];

		h->items = realloc(h->items, (h->count + 1) * sizeof(*h->items));
		h->items[h->count++] = (struct told){.tag = tag,
						     .start = start,
						     .fua = flags & UBD_IO_FUA,
						     .maybe = op == UBD_DISCARD};
	}
	ret = ubd_local_io(dev, q, op, flags, first * SECTOR, buf, n * SECTOR);
	end = seam_tick();
	if (ret < 0)
		die("operation %d: %s", (int)op, strerror(-ret));
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
		unsigned flags = random_next(&w->seed) % one_in ? 0 : UBD_IO_FUA;
		unsigned n = 1 + random_next(&w->seed) % (what & 1 ? MAX_SECTORS : 12);
		uint64_t first = part * w->index + random_next(&w->seed) % (part - n);

		if (what < 62)
			change(w->index, first, n, UBD_WRITE, flags);
		else if (what < 72)
			change(w->index, first, n, UBD_WRITE_ZEROES, flags);
		else if (what < 82)
			change(w->index, first, n, UBD_DISCARD, 0);
		else if (what < 94)
			flush(w->index);
		else
			usleep(1000 *
			       (random_next(&w->seed) % 40)); /* bits are cleared meanwhile */
		disk_ended[w->index]++;
	}
	disk_ended[w->index] = UINT64_MAX;
	return NULL;
}

static _Atomic bool over;
static const struct seam_fault slow = {.stall = 30, .stall_ms = 4};

/* One leg at a time goes, and comes back. */
static void *fail_legs(void *arg)
{
	uint64_t seed = *(uint64_t *)arg;

	while (!over) {
		unsigned leg = random_next(&seed) % nr_legs;
		struct seam_fault bad = {.fail = 1000, .err = -5};

		usleep(1000 * (random_next(&seed) % 20));
		seam_set_fault(leg, &bad);
		usleep(1000 * (random_next(&seed) % 20));
		seam_set_fault(leg, &slow);
		/* Until it is back: another may not go before. */
		disk_wait_for_operations(THREADS);
		while (!over && !disk_in_sync(dev))
			usleep(1000);
	}
	return NULL;
}

/* ---- Checking ------------------------------------------------------------------------------ */

/* Whether a sector may read so when power was lost at `cut`. */
static bool allowed(const uint8_t *data, uint64_t i, uint64_t cut, uint64_t flushed)
{
	const struct history *h = &sectors[i];
	uint64_t tag;

	memcpy(&tag, data, 8);
	for (unsigned k = 8; k < SECTOR; k += 8)
		if (memcmp(data + k, &tag, 8) != 0)
			return false;
	for (unsigned k = h->count; k-- > 0;) {
		const struct told *t = &h->items[k];

		if (t->start > cut)
			continue;
		if (t->tag == tag)
			return true;
		/* Nothing older may show. */
		if (t->end && !t->maybe && (t->end <= flushed || (t->fua && t->end <= cut)))
			return false;
	}
	return tag == 0; /* as it was made */
}

static void read_all(struct ubd_device *d, uint8_t *to, const char *what)
{
	for (uint64_t i = 0; i < nr_sectors; i += MAX_SECTORS) {
		uint64_t n = nr_sectors - i < MAX_SECTORS ? nr_sectors - i : MAX_SECTORS;
		int ret = ubd_local_io(d, 0, UBD_READ, 0, i * SECTOR, to + i * SECTOR,
				       (uint32_t)n * SECTOR);

		if (ret < 0)
			die("%s: sector %llu cannot be read: %s", what, (unsigned long long)i,
			    strerror(-ret));
	}
}

static void check_contents(const uint8_t *data, uint64_t cut, const char *what)
{
	uint64_t flushed = 0, got;

	for (unsigned i = 0; i < nr_flushes; i++)
		if (flushes[i].end <= cut && flushes[i].start > flushed)
			flushed = flushes[i].start;
	for (uint64_t i = 0; i < nr_sectors; i++)
		if (!allowed(data + i * SECTOR, i, cut, flushed)) {
			for (unsigned k = 0; k < sectors[i].count; k++)
				fprintf(stderr, "# told %llu from %llu to %llu%s%s\n",
					(unsigned long long)sectors[i].items[k].tag,
					(unsigned long long)sectors[i].items[k].start,
					(unsigned long long)sectors[i].items[k].end,
					sectors[i].items[k].fua ? ", durable" : "",
					sectors[i].items[k].maybe ? ", perhaps" : "");
			memcpy(&got, data + i * SECTOR, 8);
			die("%s: sector %llu holds %llu, which is lost or was never written; "
			    "flushed at "
			    "%llu",
			    what, (unsigned long long)i, (unsigned long long)got,
			    (unsigned long long)flushed);
		}
}

static void wait_in_sync(struct ubd_device *d, const char *what)
{
	for (unsigned n = 0; !disk_in_sync(d); n++) {
		if (n > 20000)
			die("%s: the legs are still being copied", what);
		usleep(1000);
	}
}

static void check_state(char *const *copies, char *const *words, uint64_t cut, enum seam_way way,
			uint64_t seed)
{
	uint8_t *early = aligned_alloc(4096, nr_sectors * SECTOR);
	char what[128], error[512];
	struct ubd_device *d;

	snprintf(what, sizeof(what), "cut at %llu, way %u, seed %llu", (unsigned long long)cut,
		 (unsigned)way, (unsigned long long)seed);
	for (unsigned i = 0; i < nr_legs; i++) {
		uint64_t size;
		uint8_t *data = seam_state(i, cut, way, random_next(&seed), &size);

		store(copies[i], data, size);
		free(data);
	}
	d = disk_open("mirror", 1, words, true, error, sizeof(error));
	if (!d)
		die("%s: cannot be opened: %s", what, error);
	read_all(d, early, what);
	check_contents(early, cut, what);
	wait_in_sync(d, what);
	if (disk_close(d))
		die("%s: does not close", what);
	for (unsigned i = 0; i < nr_legs; i++) {
		uint64_t size;
		uint8_t *data = load(copies[i], &size);

		/* What has been read stays. */
		if (memcmp(data + DATA_BEGIN, early, nr_sectors * SECTOR) != 0)
			die("%s: leg %u is not the same as what was read", what, i);
		free(data);
	}
	free(early);
}

static void run_load(uint64_t seed, unsigned operations, bool failures)
{
	pthread_t failer;
	struct worker w[THREADS];

	for (unsigned i = 0; i < nr_legs; i++)
		seam_set_fault(i, &slow);
	/* What has missed one of these must be known before the answer. */
	if (failures) {
		one_in = 2;
		pthread_create(&failer, NULL, fail_legs, &seed);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){
			.index = i, .operations = operations / THREADS, .seed = seed + 1000 * i};
		pthread_create(&w[i].thread, NULL, work, &w[i]);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(w[i].thread, NULL);
	over = true;
	if (failures)
		pthread_join(failer, NULL);
}

int main(int argc, char **argv)
{
	static char word[32][512], copy[SEAM_LEGS][512], leg[SEAM_LEGS][520];
	char *words[32] = {0}, *copies[SEAM_LEGS], error[512];
	uint64_t seed, end;
	unsigned n = 0, cuts, drops, returns;

	if (argc < 8)
		die("usage: crash WORK SEED OPERATIONS CUTS failures=yes|no LEG... -- "
		    "option=value...");
	seed = strtoull(argv[2], NULL, 0);
	cuts = (unsigned)atoi(argv[4]);
	for (int i = 6; i < argc; i++) {
		bool options = n > nr_legs;

		snprintf(word[n], sizeof(word[n]), options ? "%s" : "leg=%s", argv[i]);
		if (!strcmp(argv[i], "--"))
			snprintf(word[n], sizeof(word[n]), "rebuild=yes");
		else if (!options)
			legs[nr_legs++] = argv[i];
		words[n] = word[n];
		n++;
	}
	for (unsigned i = 0; i < nr_legs; i++)
		seam_leg(legs[i]);
	seam_record(true);
	dev = disk_open("mirror", THREADS, words, true, error, sizeof(error));
	if (!dev)
		die("%s", error);
	nr_sectors = ubd_device_size(dev) / SECTOR;
	sectors = calloc(nr_sectors, sizeof(*sectors));
	run_load(seed, (unsigned)atoi(argv[3]), !strcmp(argv[5], "failures=yes"));
	if (disk_close(dev))
		die("the device did not end well");
	for (unsigned i = 0; i < nr_legs; i++)
		seam_set_fault(i, &(struct seam_fault){0});
	seam_record(false);
	drops = disk_drops;
	returns = disk_returns;
	for (unsigned i = 0; i < nr_legs; i++) {
		snprintf(copy[i], sizeof(copy[i]), "%s/state%u", argv[1], i);
		snprintf(leg[i], sizeof(leg[i]), "leg=%s", copy[i]);
		copies[i] = copy[i];
		words[i] = leg[i];
	}
	end = seam_now() + 1;
	for (unsigned i = 0; i < cuts; i++)
		check_state(copies, words, 1 + (end - 1) * i / (cuts > 1 ? cuts - 1 : 1),
			    (enum seam_way)(i < 4 ? i : random_next(&seed) % 4),
			    random_next(&seed));
	printf("%u cuts of %llu moments, %u flushes, %u times a leg was left out, %u times it was "
	       "back\n",
	       cuts, (unsigned long long)end, nr_flushes, drops, returns);
	return 0;
}
