/* SPDX-License-Identifier: MIT */
/*
 * Power loss at every point: a load runs on an image, what its file is told is recorded, and for
 * every moment what may be left of the file is opened:
 *
 *   crash WORK SEED OPERATIONS STEP [unsynced]
 *
 * Each zone must be as it was after one of its operations, none before the last that was flushed;
 * below its write pointer is what was written, above it are zeroes. unsynced: fdatasync
 * counts for nothing, which must be noticed.
 */
#define _GNU_SOURCE
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../../targets/backing/backing.h"

#define THREADS 3u
#define MAX_BLOCKS 48u
#define MAX_EVENTS 16384u
#define MAX_STATES 4096u
#define OPTIONS "size=3M zone-size=256K zone-capacity=192K"

/* ---- Recording ----------------------------------------------------------------------------- */

struct event {
	bool sync, dsync, zeroes;
	uint64_t pos, len, start, end; /* end 0: never */
	uint8_t *data;
};

static struct event events[MAX_EVENTS];
static _Atomic unsigned nr_events;
static _Atomic uint64_t now = 1;
static bool recording, unsynced;

static struct event *begin(struct event e)
{
	unsigned i = atomic_fetch_add(&nr_events, 1);

	if (i >= MAX_EVENTS)
		die("too many events");
	events[i] = e;
	events[i].start = atomic_fetch_add(&now, 1);
	return &events[i];
}

static void end(struct event *e)
{
	e->end = atomic_fetch_add(&now, 1);
}

/* The names are the linker's. */
ssize_t __real_pwritev64v2(int fd, const struct iovec *iov, int n, off_t pos, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int n, off_t pos, int flags);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_ubd_io_transfer(struct ubd_io *io, const struct ubd_transfer *t, unsigned n);
int __wrap_ubd_io_transfer(struct ubd_io *io, const struct ubd_transfer *t, unsigned n);
int __real_backing_discard(const struct backing *b, struct ubd_queue *q, uint64_t pos,
			   uint64_t len);
int __wrap_backing_discard(const struct backing *b, struct ubd_queue *q, uint64_t pos,
			   uint64_t len);

ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int n, off_t pos, int flags)
{
	struct event *e = NULL;
	ssize_t ret;

	if (recording)
		e = begin((struct event){
			.dsync = true,
			.pos = (uint64_t)pos,
			.len = iov->iov_len,
			.data = memcpy(malloc(iov->iov_len), iov->iov_base, iov->iov_len)});
	ret = __real_pwritev64v2(fd, iov, n, pos, flags);
	if (e)
		end(e);
	return ret;
}

int __wrap_fdatasync(int fd)
{
	struct event *e = recording ? begin((struct event){.sync = true}) : NULL;
	int ret = __real_fdatasync(fd);

	if (e)
		end(e);
	return ret;
}

int __wrap_ubd_io_transfer(struct ubd_io *io, const struct ubd_transfer *t, unsigned n)
{
	struct event *e = NULL;
	int ret;

	if (recording && io->op != UBD_READ) {
		uint8_t *data = malloc(t->len);

		ubd_io_get(io, t->at, data, t->len); /* a copy: nothing awaits */
		e = begin((struct event){.pos = t->pos, .len = t->len, .data = data});
	}
	ret = __real_ubd_io_transfer(io, t, n);
	if (e)
		end(e);
	return ret;
}

int __wrap_backing_discard(const struct backing *b, struct ubd_queue *q, uint64_t pos, uint64_t len)
{
	struct event *e = NULL;
	int ret;

	if (recording)
		e = begin((struct event){.zeroes = true, .pos = pos, .len = len});
	ret = __real_backing_discard(b, q, pos, len);
	if (e)
		end(e);
	return ret;
}

/* ---- What may be left ---------------------------------------------------------------------- */

enum way { ALL, NONE, SOME, SECTORS, WAYS };

static bool is_durable(const struct event *e, uint64_t cut)
{
	if (!e->end || e->end > cut)
		return false;
	for (unsigned i = 0; i < nr_events && !e->dsync && !unsynced; i++)
		if (events[i].sync && events[i].start > e->end && events[i].end &&
		    events[i].end <= cut)
			return true;
	return e->dsync;
}

static void arrive(uint8_t *image, const struct event *e, uint64_t at, uint64_t len)
{
	if (e->zeroes)
		memset(image + e->pos + at, 0, len);
	else
		memcpy(image + e->pos + at, e->data + at, len);
}

static void replay(uint8_t *image, uint64_t cut, enum way way, uint64_t seed)
{
	for (unsigned i = 0; i < nr_events; i++) {
		const struct event *e = &events[i];
		bool durable = is_durable(e, cut);

		if (e->sync || e->start > cut)
			continue;
		if (durable || way == ALL || (way == SOME && random_next(&seed) % 2))
			arrive(image, e, 0, e->len);
		for (uint64_t at = 0; way == SECTORS && !durable && at < e->len; at += 512)
			if (random_next(&seed) % 2)
				arrive(image, e, at, 512);
	}
}

/* ---- The load ------------------------------------------------------------------------------ */

struct state {
	unsigned cond;
	uint32_t written; /* blocks */
	uint64_t tags[MAX_BLOCKS];
	uint64_t start, end; /* of the operation that brought it */
	bool durable;	     /* when it was answered */
};

struct history {
	struct state states[MAX_STATES];
	unsigned count;
};

static struct history *histories;
static struct {
	uint64_t start, end;
} flushes[MAX_EVENTS];
static _Atomic unsigned nr_flushes;
static unsigned nr_zones;
static uint64_t zone_size;
static struct ubd_device *dev;

struct worker {
	pthread_t thread;
	unsigned index, operations;
	uint64_t seed;
};

static void flush(unsigned q)
{
	unsigned n = atomic_fetch_add(&nr_flushes, 1);

	flushes[n].start = atomic_fetch_add(&now, 1);
	if (ubd_local_io(dev, q, UBD_FLUSH, 0, 0, NULL, 0))
		die("flush fails");
	flushes[n].end = atomic_fetch_add(&now, 1);
}

static void one(struct worker *w, uint8_t *buf)
{
	unsigned i = (unsigned)(random_next(&w->seed) % (nr_zones / THREADS)) * THREADS + w->index;
	unsigned what = (unsigned)(random_next(&w->seed) % 100);
	struct history *h = &histories[i];
	struct state s = h->states[h->count - 1];
	uint32_t n = 1 + (uint32_t)(random_next(&w->seed) % 8), first = s.written;
	unsigned flags = random_next(&w->seed) % 10 ? 0 : UBD_IO_FUA;
	enum ubd_op op = UBD_WRITE;

	if (what < 15) {
		flush(w->index);
		return;
	}
	n = n > MAX_BLOCKS - first ? MAX_BLOCKS - first : n;
	s.durable = flags;
	if (s.cond == BLK_ZONE_COND_FULL || what < 25) {
		op = UBD_ZONE_RESET;
		memset(&s, 0, sizeof(s));
		s.cond = BLK_ZONE_COND_EMPTY;
		s.durable = true;
	} else if (what < 28) {
		op = UBD_ZONE_FINISH;
		s.cond = BLK_ZONE_COND_FULL;
		s.durable = true;
	} else {
		for (uint32_t k = 0; k < n; k++) {
			s.tags[first + k] = random_next(&w->seed) | 1;
			block_fill(buf + k * BLOCK, s.tags[first + k]);
		}
		s.written += n;
		s.cond = s.written == MAX_BLOCKS ? BLK_ZONE_COND_FULL : BLK_ZONE_COND_CLOSED;
	}
	s.start = atomic_fetch_add(&now, 1);
	s.end = 0;
	if (ubd_local_io(dev, w->index, op, op == UBD_WRITE ? flags : 0,
			 i * zone_size + (op == UBD_WRITE ? first * BLOCK : 0), buf,
			 op == UBD_WRITE ? n * BLOCK : 0) < 0)
		die("operation %d on zone %u fails", op, i);
	s.end = atomic_fetch_add(&now, 1);
	if (h->count == MAX_STATES)
		die("too many operations");
	h->states[h->count++] = s;
}

static void *load(void *arg)
{
	struct worker *w = arg;
	uint8_t *buf = aligned_alloc(BLOCK, 8 * BLOCK);

	for (unsigned n = 0; n < w->operations; n++)
		one(w, buf);
	free(buf);
	return NULL;
}

/* ---- Checking ------------------------------------------------------------------------------ */

/* The last state that nothing may fall behind. */
static unsigned oldest(const struct history *h, uint64_t cut)
{
	unsigned k = 0;

	for (unsigned j = 0; j < h->count; j++) {
		const struct state *s = &h->states[j];

		if (!s->end || s->end > cut)
			continue;
		if (s->durable)
			k = j;
		for (unsigned f = 0; f < nr_flushes; f++)
			if (flushes[f].start > s->end && flushes[f].end && flushes[f].end <= cut)
				k = j;
	}
	return k;
}

static bool matches(const struct state *s, const struct blk_zone *z, const uint8_t *buf)
{
	uint64_t wp = s->cond == BLK_ZONE_COND_FULL ? z->len : s->written * 8ull;

	if (z->cond != s->cond || z->wp - z->start != wp)
		return false;
	for (unsigned k = 0; k < zone_size / BLOCK; k++)
		if (!block_is(buf + k * BLOCK, k < s->written ? s->tags[k] : 0))
			return false;
	return true;
}

static void check(const char *path, uint64_t cut, enum way way)
{
	static uint8_t buf[256 << 10] __attribute__((aligned(4096)));
	struct blk_zone zones[MAX_ZONES];
	char options[512];

	snprintf(options, sizeof(options), "file=%s", path);
	dev = disk_open(options);
	if (!dev)
		die("cut at %llu, way %d: %s", (unsigned long long)cut, way, disk_error);
	disk_report(dev, zones);
	for (unsigned i = 0; i < nr_zones; i++) {
		struct history *h = &histories[i];
		unsigned j = oldest(h, cut);

		if (ubd_local_io(dev, 0, UBD_READ, 0, i * zone_size, buf, (uint32_t)zone_size) < 0)
			die("zone %u cannot be read", i);
		while (j < h->count && h->states[j].start <= cut &&
		       !matches(&h->states[j], &zones[i], buf))
			j++;
		if (j == h->count || h->states[j].start > cut)
			die("cut at %llu, way %d: zone %u, condition %u, %llu sectors, is as it "
			    "never was since it was flushed",
			    (unsigned long long)cut, way, i, zones[i].cond,
			    (unsigned long long)(zones[i].wp - zones[i].start));
	}
	disk_close(dev);
}

int main(int argc, char **argv)
{
	struct worker w[THREADS];
	struct blk_zone zones[MAX_ZONES];
	char options[512], path[256];
	uint8_t *base, *image;
	unsigned cuts = 0;
	uint64_t seed;
	struct stat st;
	int fd;

	if (argc < 5)
		die("usage: crash WORK SEED OPERATIONS STEP [unsynced]");
	unsynced = argc > 5;
	seed = strtoull(argv[2], NULL, 0);
	snprintf(path, sizeof(path), "%s/image", argv[1]);
	snprintf(options, sizeof(options), "file=%s format queues=3 " OPTIONS, path);
	dev = disk_open(options);
	if (!dev)
		die("%s", disk_error);
	nr_zones = disk_report(dev, zones);
	zone_size = zones[0].len << 9;
	histories = calloc(nr_zones, sizeof(*histories));
	for (unsigned i = 0; i < nr_zones; i++)
		histories[i] = (struct history){.states[0].cond = BLK_ZONE_COND_EMPTY, .count = 1};
	fd = open(path, O_RDONLY | O_CLOEXEC);
	fstat(fd, &st);
	base = malloc((size_t)st.st_size);
	image = malloc((size_t)st.st_size);
	if (pread(fd, base, (size_t)st.st_size, 0) != st.st_size)
		die("cannot read the image");
	close(fd);
	recording = true;
	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.index = i,
				       .operations = (unsigned)atoi(argv[3]),
				       .seed = random_next(&seed)};
		pthread_create(&w[i].thread, NULL, load, &w[i]);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(w[i].thread, NULL);
	recording = false;
	disk_close(dev);
	for (uint64_t cut = 1; cut < now; cut += (uint64_t)atoi(argv[4]))
		for (int way = 0; way < WAYS; way++, cuts++) {
			memcpy(image, base, (size_t)st.st_size);
			replay(image, cut, (enum way)way, random_next(&seed));
			unlink(path);
			fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
			if (write(fd, image, (size_t)st.st_size) != st.st_size)
				die("cannot write the image");
			close(fd);
			check(path, cut, (enum way)way);
		}
	printf("%u cuts, %u events\n", cuts, nr_events);
	free(base);
	free(image);
	return 0;
}
