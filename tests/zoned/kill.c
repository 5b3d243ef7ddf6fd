/* SPDX-License-Identifier: MIT */
/*
 * A server is killed under load, again and again; the next one must have every zone as it was:
 *
 *   kill IMAGE ROUNDS SEED
 *
 * A zone whose operation was not answered may be as before it or as after it. All data below the
 * write pointer is what was written.
 */
#include "disk.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 4u
#define MAX_BLOCKS 64u

/* Shared with the process that dies: of each zone the state before and after the last operation,
 * condition and blocks as one number so that they change at once, and tags of its blocks. */
struct told {
	_Atomic uint64_t answered, asked;
	_Atomic uint64_t tags[MAX_BLOCKS];
};

static struct told *told;
static unsigned nr_zones;
static uint64_t zone_size, capacity;
static struct ubd_device *dev;
static char options[256];

#define STATE(cond, blocks) ((uint64_t)(blocks) << 8 | (cond))

static uint64_t reported(const struct blk_zone *z)
{
	uint64_t blocks = z->cond == BLK_ZONE_COND_FULL ? 0 : (z->wp - z->start) / 8;

	return STATE(z->cond, blocks);
}

struct worker {
	pthread_t thread;
	unsigned index;
	uint64_t seed;
};

static void one(struct worker *w, unsigned i, uint8_t *buf)
{
	struct told *t = &told[i];
	unsigned cond = t->answered & 0xff, what = (unsigned)(random_next(&w->seed) % 100);
	uint64_t blocks = t->answered >> 8, n = 1 + random_next(&w->seed) % 8, next = t->answered;
	enum ubd_op op = UBD_WRITE;
	int ret;

	if (cond == BLK_ZONE_COND_FULL || what < 10) {
		op = UBD_ZONE_RESET;
		next = STATE(BLK_ZONE_COND_EMPTY, 0);
	} else if (what < 13) {
		op = UBD_ZONE_FINISH;
		next = STATE(BLK_ZONE_COND_FULL, 0);
	} else if (what < 20) {
		op = UBD_ZONE_OPEN;
		next = STATE(BLK_ZONE_COND_EXP_OPEN, blocks);
	} else if (what < 30 && cond != BLK_ZONE_COND_EMPTY) {
		op = UBD_ZONE_CLOSE;
		next = STATE(blocks ? BLK_ZONE_COND_CLOSED : BLK_ZONE_COND_EMPTY, blocks);
	} else if (what < 40) {
		op = UBD_FLUSH;
	} else {
		n = n > capacity - blocks ? capacity - blocks : n;
		next = STATE(cond == BLK_ZONE_COND_EXP_OPEN ? cond : BLK_ZONE_COND_IMP_OPEN,
			     blocks + n);
		if (blocks + n == capacity)
			next = STATE(BLK_ZONE_COND_FULL, 0);
		for (uint64_t k = 0; k < n; k++) {
			uint64_t tag = random_next(&w->seed) | 1;

			block_fill(buf + k * BLOCK, tag);
			t->tags[blocks + k] = tag;
		}
	}
	t->asked = next;
	ret = ubd_local_io(dev, w->index % 2, op, 0,
			   i * zone_size + (op == UBD_WRITE ? blocks * BLOCK : 0), buf,
			   op == UBD_WRITE ? (uint32_t)(n * BLOCK) : 0);
	if (ret < 0)
		die("operation %d on zone %u: %s", op, i, strerror(-ret));
	t->answered = next;
}

static void *load(void *arg)
{
	struct worker *w = arg;
	uint8_t *buf = aligned_alloc(BLOCK, 8 * BLOCK);

	for (;;)
		one(w,
		    (unsigned)(random_next(&w->seed) % (nr_zones / THREADS)) * THREADS + w->index,
		    buf);
	return NULL;
}

static void serve(uint64_t seed)
{
	struct worker w[THREADS];

	dev = disk_open(options);
	if (!dev)
		die("%s", disk_error);
	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.index = i, .seed = random_next(&seed)};
		pthread_create(&w[i].thread, NULL, load, &w[i]);
	}
	pause();
}

static void verify(void)
{
	static uint8_t buf[MAX_BLOCKS * BLOCK] __attribute__((aligned(4096)));
	struct blk_zone zones[MAX_ZONES];

	dev = disk_open(options);
	if (!dev)
		die("cannot be opened again: %s", disk_error);
	disk_report(dev, zones);
	for (unsigned i = 0; i < nr_zones; i++) {
		struct told *t = &told[i];
		uint64_t now = reported(&zones[i]), blocks = now >> 8;

		/* A write opens the zone before its data arrives. */
		bool opened = t->asked != t->answered &&
			      now == STATE(BLK_ZONE_COND_IMP_OPEN, t->answered >> 8);

		if (now != t->answered && now != t->asked && !opened)
			die("zone %u is %#llx; %#llx was answered, %#llx asked for", i,
			    (unsigned long long)now, (unsigned long long)t->answered,
			    (unsigned long long)t->asked);
		t->answered = t->asked = now;
		/* The load does not count what a finished zone holds: what is there must be right.
		 */
		if ((now & 0xff) == BLK_ZONE_COND_FULL)
			blocks = 0;
		if (ubd_local_io(dev, 0, UBD_READ, 0, i * zone_size, buf, MAX_BLOCKS * BLOCK) < 0)
			die("zone %u cannot be read", i);
		for (uint64_t k = 0; k < MAX_BLOCKS; k++) {
			bool zero = block_is(buf + k * BLOCK, 0);

			if ((now & 0xff) == BLK_ZONE_COND_FULL
				    ? !zero && !block_is(buf + k * BLOCK, t->tags[k])
			    : k < blocks ? !block_is(buf + k * BLOCK, t->tags[k])
					 : !zero)
				die("zone %u, %#llx: other data in block %llu", i,
				    (unsigned long long)now, (unsigned long long)k);
		}
	}
}

/* Fault for the test of the test: forget the live file. */
static void forget(void)
{
	if (getenv("FORGET") && system("rm -f \"$UBD_RUN_DIR\"/*.live"))
		die("cannot forget");
}

int main(int argc, char **argv)
{
	struct blk_zone zones[MAX_ZONES];
	uint64_t seed;

	if (argc != 4)
		die("usage: kill IMAGE ROUNDS SEED");
	seed = strtoull(argv[3], NULL, 0);
	snprintf(options, sizeof(options),
		 "file=%s format size=8M zone-size=256K zone-capacity=192K", argv[1]);
	dev = disk_open(options);
	if (!dev)
		die("%s", disk_error);
	nr_zones = disk_report(dev, zones);
	zone_size = zones[0].len << 9;
	capacity = zones[0].capacity / 8;
	if (disk_close(dev))
		die("does not close");
	told = mmap(NULL, nr_zones * sizeof(*told), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (unsigned i = 0; i < nr_zones; i++)
		told[i].answered = told[i].asked = BLK_ZONE_COND_EMPTY;
	snprintf(options, sizeof(options), "file=%s queues=2", argv[1]);
	for (int round = 0; round < atoi(argv[2]); round++) {
		uint64_t load_seed = random_next(&seed);
		pid_t pid = fork();
		int status;

		if (!pid)
			serve(load_seed);
		usleep(20000 + (unsigned)(random_next(&seed) % 200000));
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		forget();
		/* It is killed as well, so that nothing is closed. */
		pid = fork();
		if (!pid) {
			verify();
			kill(getpid(), SIGKILL);
		}
		if (waitpid(pid, &status, 0) < 0 || !WIFSIGNALED(status))
			return 1;
	}
	return 0;
}
