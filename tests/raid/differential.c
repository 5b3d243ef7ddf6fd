/* SPDX-License-Identifier: MIT */
/*
 * Random operations on a target and on a copy in memory, compared all along.
 *
 *   differential [--chaos LEG... --] RAW BLOCK QUEUES SEED OPERATIONS TARGET option=value...
 *
 * With --chaos the legs of a mirror fail, stall, return errors at random and recover meanwhile,
 * never all at once. At the end all must be in sync again. Requests are multiples of BLOCK bytes.
 * RAW is written at the end: what the disk must hold. With OPERATIONS 0 the disk is only read into
 * it.
 */
#include "disk.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "seam.h"

#define MAX_OP (512u << 10)
#define MAX_THREADS 8

static struct ubd_device *dev;
static uint64_t size;
static uint8_t *model;
static unsigned block, queues;

struct worker {
	pthread_t thread;
	uint64_t first, last; /* bytes: its own range */
	uint64_t seed;
	unsigned index, operations;
	uint8_t *buf;
};

static void read_back(struct worker *w, uint64_t offset, uint32_t len)
{
	int ret =
		ubd_local_io(dev, random_next(&w->seed) % queues, UBD_READ, 0, offset, w->buf, len);

	if (ret != (int)len)
		die("read of %u at %llu: %s", len, (unsigned long long)offset, strerror(-ret));
}

static void check(struct worker *w, uint64_t offset, uint32_t len, const char *when)
{
	read_back(w, offset, len);
	for (uint32_t i = 0; i < len; i++)
		if (w->buf[i] != model[offset + i])
			die("at %llu (%s): %02x read, %02x expected",
			    (unsigned long long)offset + i, when, w->buf[i], model[offset + i]);
}

/* A discarded block holds its old contents or zeroes: find out which. */
static void adopt_discard(struct worker *w, uint64_t offset, uint32_t len)
{
	static const uint8_t zero[512];

	read_back(w, offset, len);
	for (uint32_t i = 0; i < len; i += 512) {
		if (!memcmp(w->buf + i, zero, 512))
			memset(model + offset + i, 0, 512);
		else if (memcmp(w->buf + i, model + offset + i, 512) != 0)
			die("discard at %llu left neither the old contents nor zeroes",
			    (unsigned long long)offset + i);
	}
}

static void choose(struct worker *w, uint64_t *offset, uint32_t *len)
{
	uint64_t blocks = (w->last - w->first) / block;
	uint64_t most = random_next(&w->seed) % 4 ? 65536 / block : MAX_OP / block;

	*offset = w->first + random_next(&w->seed) % blocks * block;
	*len = (uint32_t)(1 + random_next(&w->seed) % most) * block;
	if (*offset + *len > w->last)
		*len = (uint32_t)(w->last - *offset);
}

static void operate(struct worker *w)
{
	unsigned q = random_next(&w->seed) % queues, what = random_next(&w->seed) % 100;
	unsigned fua = random_next(&w->seed) % 16 ? 0 : UBD_IO_FUA;
	uint64_t offset;
	uint32_t len;
	int ret = 0;

	choose(w, &offset, &len);
	if (what < 45) {
		fill_pattern(w->buf, len, random_next(&w->seed));
		ret = ubd_local_io(dev, q, UBD_WRITE, fua, offset, w->buf, len);
		memcpy(model + offset, w->buf, len);
		if (ret >= 0)
			ret = ret == (int)len ? 0 : -5;
	} else if (what < 57) {
		ret = ubd_local_io(dev, q, UBD_WRITE_ZEROES, fua | (what & 1 ? UBD_IO_NO_UNMAP : 0),
				   offset, NULL, len);
		memset(model + offset, 0, len);
	} else if (what < 68) {
		ret = ubd_local_io(dev, q, UBD_DISCARD, 0, offset, NULL, len);
		adopt_discard(w, offset, len);
	} else if (what < 72) {
		ret = ubd_local_io(dev, q, UBD_FLUSH, 0, 0, NULL, 0);
	} else {
		check(w, offset, len, "during");
	}
	if (ret < 0)
		die("operation %u on %u at %llu: %s", what, len, (unsigned long long)offset,
		    strerror(-ret));
}

static void *work(void *arg)
{
	struct worker *w = arg;

	for (unsigned i = 0; i < w->operations; i++) {
		operate(w);
		disk_ended[w->index]++;
	}
	disk_ended[w->index] = UINT64_MAX;
	return NULL;
}

/* ---- Chaos --------------------------------------------------------------------------------- */

static unsigned nr_legs;
static _Atomic bool over;

static const struct seam_fault moods[] = {
	{.fail = 1000, .err = -EIO},   {.fail = 1000, .err = -ENXIO, .stall = 1000, .stall_ms = 20},
	{.fail = 20, .err = -EIO},     {.fail = 200, .err = -EIO, .reads_only = true},
	{.stall = 200, .stall_ms = 5}, {.fail = 5, .err = -ENOSPC, .stall = 100, .stall_ms = 2},
};

/* The first failures may hit any leg, but one at a time: until it is back no other may go. */
static void *chaos(void *arg)
{
	uint64_t seed = *(const uint64_t *)arg;

	while (!over) {
		unsigned leg = random_next(&seed) % nr_legs;

		seam_set_fault(leg, &moods[random_next(&seed) % (sizeof(moods) / sizeof(*moods))]);
		usleep(1000 * (random_next(&seed) % 100));
		seam_set_fault(leg, &(struct seam_fault){0});
		disk_wait_for_operations(MAX_THREADS);
		for (unsigned n = 0; n < 10000 && !disk_in_sync(dev); n++)
			usleep(1000);
	}
	return NULL;
}

static void wait_in_sync(void)
{
	char text[1024];

	for (unsigned n = 0; nr_legs && !disk_in_sync(dev); n++) {
		usleep(1000);
		if (n > 30000) {
			disk_status(dev, text, sizeof(text));
			die("the legs are not in sync again:\n%s", text);
		}
	}
}

static void run(uint64_t seed, unsigned operations)
{
	struct worker w[MAX_THREADS] = {0};
	uint64_t chaos_seed = seed;
	pthread_t troubles;

	wait_in_sync();
	if (nr_legs)
		pthread_create(&troubles, NULL, chaos, &chaos_seed);
	for (unsigned i = 0; i < MAX_THREADS; i++) {
		uint64_t part = size / MAX_THREADS / block * block;

		w[i] = (struct worker){.first = i * part,
				       .index = i,
				       .last = i == MAX_THREADS - 1 ? size : (i + 1) * part,
				       .seed = random_next(&seed),
				       .operations = operations / MAX_THREADS,
				       .buf = aligned_alloc(4096, MAX_OP)};
		pthread_create(&w[i].thread, NULL, work, &w[i]);
	}
	for (unsigned i = 0; i < MAX_THREADS; i++)
		pthread_join(w[i].thread, NULL);
	over = true;
	if (nr_legs)
		pthread_join(troubles, NULL);
	wait_in_sync();
	for (uint64_t at = 0; at < size; at += MAX_OP)
		check(&w[0], at, (uint32_t)(size - at < MAX_OP ? size - at : MAX_OP), "at the end");
	for (unsigned i = 0; i < MAX_THREADS; i++)
		free(w[i].buf);
}

int main(int argc, char **argv)
{
	const char *chaos_legs[SEAM_LEGS];
	char error[512];

	if (argc > 1 && !strcmp(argv[1], "--chaos"))
		for (argv++, argc--; argc > 1 && strcmp(argv[1], "--") != 0; argv++, argc--)
			chaos_legs[nr_legs++] = argv[1];
	argv += nr_legs != 0;
	argc -= nr_legs != 0;
	if (argc < 8)
		die("usage: differential [--chaos LEG... --] RAW BLOCK QUEUES SEED OPERATIONS "
		    "TARGET option=value...");
	block = (unsigned)atoi(argv[2]);
	queues = (unsigned)atoi(argv[3]);
	for (unsigned i = 0; i < nr_legs; i++)
		seam_leg(chaos_legs[i]);
	dev = disk_open(argv[6], queues, argv + 7, nr_legs != 0, error, sizeof(error));
	if (!dev)
		return 1;
	size = ubd_device_size(dev);
	model = aligned_alloc(4096, (size + 4095) & ~4095ull);
	for (uint64_t at = 0; at < size; at += MAX_OP) {
		uint32_t len = (uint32_t)(size - at < MAX_OP ? size - at : MAX_OP);

		if (ubd_local_io(dev, 0, UBD_READ, 0, at, model + at, len) != (int)len)
			die("cannot read at %llu", (unsigned long long)at);
	}
	if (atoi(argv[5]))
		run(strtoull(argv[4], NULL, 0), (unsigned)atoi(argv[5]));
	if (disk_close(dev))
		die("the device did not end well");
	store(argv[1], model, size);
	if (nr_legs)
		printf("%u times a leg was left out, %u times it was back\n", disk_drops,
		       disk_returns);
	free(model);
	return 0;
}
