/* SPDX-License-Identifier: MIT */
/*
 * Random operations on an image and on a raw copy in memory, compared all along.
 *
 *   differential IMAGE RAW SEED OPERATIONS QUEUES [option=value]...
 *
 * RAW, when it is there, is what the image must hold at the beginning; at the end it is written
 * anew, and RAW.NAME for each snapshot. Options: journal, cache, direct, snapshots=yes, resize=yes.
 */
#include "disk.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SIZE (96u << 20)
#define MAX_OP (256u << 10)
#define MAX_SNAPSHOTS 4
#define GRANULE 4096u /* threads that share clusters do not share these */

struct saved {
	char name[16];
	uint64_t size;
	uint8_t *data;
};

static struct disk disk;
static struct saved saved[MAX_SNAPSHOTS];
static bool with_snapshots, with_resize;
static unsigned snapshots_made;

struct worker {
	pthread_t thread;
	unsigned index, of;
	bool interleaved;
	uint64_t seed;
	unsigned operations;
	uint8_t *buf;
};

static void check(struct worker *w, uint64_t offset, uint32_t len, const char *when)
{
	int ret = ubd_local_io(disk.dev, w->index % disk.queues, UBD_READ, 0, offset, w->buf, len);

	if (ret != (int)len)
		die("read of %u at %llu (%s): %s", len, (unsigned long long)offset, when,
		    strerror(-ret));
	for (uint32_t i = 0; i < len; i++)
		if (w->buf[i] != disk.model[offset + i])
			die("at %llu (%s): %02x read, %02x expected",
			    (unsigned long long)offset + i, when, w->buf[i],
			    disk.model[offset + i]);
}

static void check_all(struct worker *w, const char *when)
{
	for (uint64_t at = 0; at < disk.size; at += MAX_OP)
		check(w, at, (uint32_t)(disk.size - at < MAX_OP ? disk.size - at : MAX_OP), when);
}

/* A discarded sector holds its old contents or zeroes: find out which. */
static void adopt_discard(struct worker *w, uint64_t offset, uint32_t len)
{
	static const uint8_t zero[512];
	int ret = ubd_local_io(disk.dev, w->index % disk.queues, UBD_READ, 0, offset, w->buf, len);

	if (ret != (int)len)
		die("read after discard: %s", strerror(-ret));
	for (uint32_t i = 0; i < len; i += 512) {
		if (!memcmp(w->buf + i, zero, 512))
			memset(disk.model + offset + i, 0, 512);
		else if (memcmp(w->buf + i, disk.model + offset + i, 512) != 0)
			die("discard at %llu left neither the old contents nor zeroes",
			    (unsigned long long)offset + i);
	}
}

/* A range of this worker's own. */
static void choose(struct worker *w, uint64_t *offset, uint32_t *len)
{
	uint64_t r = random_next(&w->seed), sectors, first, most = MAX_OP / 512;

	if (w->interleaved) {
		uint64_t granules = disk.size / GRANULE / w->of;

		first = (r % granules * w->of + w->index) * GRANULE / 512;
		sectors = GRANULE / 512;
	} else {
		sectors = disk.size / 512 / w->of;
		first = sectors * w->index;
	}
	/* Small ones, large ones, and some that begin and end with pages. */
	if (r >> 60 < 9)
		most = 32;
	*offset = first + (r >> 8) % sectors;
	*len = (uint32_t)(1 + random_next(&w->seed) % most);
	if (r >> 40 & 1) {
		*offset &= ~7ull;
		*len = (*len + 7) & ~7u;
	}
	if (*offset < first)
		*offset = first;
	if (*offset + *len > first + sectors)
		*len = (uint32_t)(first + sectors - *offset);
	*offset *= 512;
	*len *= 512;
}

static void operate(struct worker *w)
{
	unsigned q = random_next(&w->seed) % disk.queues, what = random_next(&w->seed) % 100;
	unsigned fua = random_next(&w->seed) % 16 ? 0 : UBD_IO_FUA;
	uint64_t offset;
	uint32_t len;
	int ret = 0;

	choose(w, &offset, &len);
	if (what < 45) {
		fill_pattern(w->buf, len, random_next(&w->seed));
		ret = ubd_local_io(disk.dev, q, UBD_WRITE, fua, offset, w->buf, len);
		memcpy(disk.model + offset, w->buf, len);
		if (ret >= 0 && ret != (int)len)
			ret = -EIO;
	} else if (what < 60) {
		ret = ubd_local_io(disk.dev, q, UBD_WRITE_ZEROES,
				   fua | (what & 1 ? UBD_IO_NO_UNMAP : 0), offset, NULL, len);
		memset(disk.model + offset, 0, len);
	} else if (what < 72) {
		ret = ubd_local_io(disk.dev, q, UBD_DISCARD, 0, offset, NULL, len);
		adopt_discard(w, offset, len);
	} else if (what < 76) {
		ret = ubd_local_io(disk.dev, q, UBD_FLUSH, 0, 0, NULL, 0);
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

	for (unsigned i = 0; i < w->operations; i++)
		operate(w);
	return NULL;
}

/* ---- Between rounds ------------------------------------------------------------------------ */

static void use_snapshot(uint64_t *seed)
{
	struct saved *s = &saved[random_next(seed) % MAX_SNAPSHOTS];
	int ret;

	if (!s->data) {
		snprintf(s->name, sizeof(s->name), "s%u", ++snapshots_made);
		ret = disk_command(disk.dev, "snapshot", "create", s->name);
		s->size = disk.size;
		s->data = malloc(MAX_SIZE);
		memcpy(s->data, disk.model, disk.size);
	} else if (random_next(seed) % 2) {
		ret = disk_command(disk.dev, "snapshot", "delete", s->name);
		free(s->data);
		s->data = NULL;
	} else {
		ret = disk_command(disk.dev, "snapshot", "apply", s->name);
		memcpy(disk.model, s->data, s->size);
		disk.size = s->size;
	}
	if (ret)
		die("snapshot: %s (%s)", strerror(-ret), ubd_device_error(disk.dev));
}

static void use_resize(uint64_t *seed)
{
	uint64_t size = (8u << 20) + random_next(seed) % (MAX_SIZE / 512 - (8u << 11)) * 512;
	char text[32];
	int ret;

	snprintf(text, sizeof(text), "%llu", (unsigned long long)size);
	ret = disk_command(disk.dev, "resize", text, NULL);
	if (ret)
		die("resize to %llu: %s (%s)", (unsigned long long)size, strerror(-ret),
		    ubd_device_error(disk.dev));
	if (size > disk.size)
		memset(disk.model + disk.size, 0, size - disk.size);
	disk.size = size;
}

static void load(const char *path)
{
	FILE *f = fopen(path, "rb");

	if (!f)
		return;
	if (fread(disk.model, 1, disk.size, f) != disk.size)
		die("%s is shorter than the disk", path);
	fclose(f);
}

static void store(const char *path, const uint8_t *data, uint64_t size)
{
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(data, 1, size, f) != size || fclose(f))
		die("cannot write %s", path);
}

static void run_rounds(uint64_t seed, unsigned operations)
{
	struct worker w[8] = {0};

	for (unsigned i = 0; i < 8; i++)
		w[i].buf = aligned_alloc(4096, MAX_OP);
	check_all(&w[0], "at the beginning");
	while (operations) {
		unsigned threads = random_next(&seed) % 3 ? 1 + random_next(&seed) % 8 : 1;
		unsigned each = 1 + random_next(&seed) % 400;
		bool interleaved = random_next(&seed) % 2;

		each = each * threads > operations ? operations / threads + 1 : each;
		for (unsigned i = 0; i < threads; i++) {
			w[i].index = i;
			w[i].of = threads;
			w[i].interleaved = interleaved;
			w[i].seed = random_next(&seed);
			w[i].operations = each;
			pthread_create(&w[i].thread, NULL, work, &w[i]);
		}
		for (unsigned i = 0; i < threads; i++)
			pthread_join(w[i].thread, NULL);
		operations -= each * threads < operations ? each * threads : operations;
		if (with_snapshots && random_next(&seed) % 3 == 0)
			use_snapshot(&seed);
		if (with_resize && random_next(&seed) % 4 == 0)
			use_resize(&seed);
		if (random_next(&seed) % 4 == 0)
			check_all(&w[0], "between");
	}
	check_all(&w[0], "at the end");
	for (unsigned i = 0; i < 8; i++)
		free(w[i].buf);
}

int main(int argc, char **argv)
{
	struct disk_options o = {0};
	char error[512], path[512];

	if (argc < 6)
		die("usage: differential IMAGE RAW SEED OPERATIONS QUEUES [option=value]...");
	o.image = argv[1];
	o.queues = disk.queues = (unsigned)atoi(argv[5]);
	for (int i = 6; i < argc; i++) {
		char *value = strchr(argv[i], '=');

		if (!value)
			die("%s: no value", argv[i]);
		*value++ = 0;
		if (!strcmp(argv[i], "journal"))
			o.journal = value;
		else if (!strcmp(argv[i], "cache"))
			o.cache = value;
		else if (!strcmp(argv[i], "direct"))
			o.direct = value;
		else if (!strcmp(argv[i], "snapshots"))
			with_snapshots = true;
		else if (!strcmp(argv[i], "resize"))
			with_resize = true;
	}
	disk.dev = disk_open(&o, error, sizeof(error));
	if (!disk.dev)
		return 1;
	disk.size = ubd_device_size(disk.dev);
	disk.model = calloc(1, MAX_SIZE);
	if (disk.size > MAX_SIZE)
		die("the image is larger than this test's model");
	load(argv[2]);
	run_rounds(strtoull(argv[3], NULL, 0), (unsigned)atoi(argv[4]));
	if (disk_close(disk.dev))
		die("the device did not end well");
	store(argv[2], disk.model, disk.size);
	for (unsigned i = 0; i < MAX_SNAPSHOTS; i++) {
		if (!saved[i].data)
			continue;
		snprintf(path, sizeof(path), "%s.%s", argv[2], saved[i].name);
		store(path, saved[i].data, saved[i].size);
		free(saved[i].data);
	}
	free(disk.model);
	return 0;
}
