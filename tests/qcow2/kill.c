/* SPDX-License-Identifier: MIT */
/*
 * The server dies, the machine does not: a process that serves an image under load is killed with
 * SIGKILL, another opens the image again, and every write that was answered must be there, whether
 * or not it was flushed.
 *
 *   kill IMAGE JOURNAL ROUNDS SEED
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk.h"

#define SECTOR 512u
#define THREADS 4
#define MAX_LENGTH (32u << 10)

/* Shared with the process that dies: of each sector the tag asked for last and answered last. */
struct sector {
	_Atomic uint32_t asked, answered;
};
static struct sector *told;
static uint64_t nr_sectors;
static struct ubd_device *dev;

struct worker {
	pthread_t thread;
	unsigned index, round;
	uint64_t seed;
};

static void *load(void *arg)
{
	struct worker *w = arg;
	uint8_t *buf = aligned_alloc(4096, MAX_LENGTH);
	uint64_t part = nr_sectors / THREADS;

	for (uint32_t n = 1;; n++) {
		uint32_t count = (uint32_t)(1 + random_next(&w->seed) % (MAX_LENGTH / SECTOR));
		uint64_t first = part * w->index + random_next(&w->seed) % (part - count);
		unsigned what = random_next(&w->seed) % 50;
		uint32_t tag = what < 35 ? w->round << 24 | w->index << 20 | (n & 0xfffff) : 0;
		enum ubd_op op = what < 35 ? UBD_WRITE : what < 49 ? UBD_WRITE_ZEROES : UBD_FLUSH;
		int ret;

		if (op == UBD_FLUSH)
			first = count = 0;
		for (uint32_t i = 0; i < count * SECTOR / 4; i++)
			memcpy(buf + i * 4, &tag, 4);
		for (uint32_t i = 0; i < count; i++)
			told[first + i].asked = tag;
		ret = ubd_local_io(dev, w->index % 2, op, 0, first * SECTOR, buf, count * SECTOR);
		if (ret < 0)
			die("operation %u: %s", what, strerror(-ret));
		for (uint32_t i = 0; i < count; i++)
			told[first + i].answered = tag;
	}
	return NULL;
}

static void serve(const struct disk_options *o, unsigned round, uint64_t seed)
{
	struct worker w[THREADS];
	char error[512];

	dev = disk_open(o, error, sizeof(error));
	if (!dev)
		die("%s", error);
	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.index = i, .round = round, .seed = random_next(&seed)};
		pthread_create(&w[i].thread, NULL, load, &w[i]);
	}
	pause();
}

static void verify(const struct disk_options *o)
{
	static uint8_t buf[SECTOR] __attribute__((aligned(4096)));
	char error[512];

	dev = disk_open(o, error, sizeof(error));
	if (!dev)
		die("cannot be opened again: %s", error);
	for (uint64_t i = 0; i < nr_sectors; i++) {
		uint32_t tag;

		if (ubd_local_io(dev, 0, UBD_READ, 0, i * SECTOR, buf, SECTOR) != (int)SECTOR)
			die("sector %llu cannot be read", (unsigned long long)i);
		memcpy(&tag, buf, 4);
		for (unsigned k = 4; k < SECTOR; k += 4)
			if (memcmp(buf + k, &tag, 4) != 0)
				die("sector %llu is mixed", (unsigned long long)i);
		if (tag != told[i].answered && tag != told[i].asked)
			die("sector %llu holds %08x; %08x was answered, %08x asked for",
			    (unsigned long long)i, tag, told[i].answered, told[i].asked);
		told[i].answered = told[i].asked = tag;
	}
	if (disk_close(dev))
		die("does not close");
}

int main(int argc, char **argv)
{
	struct disk_options o = {.queues = 2, .quiet = true};
	char error[512];
	uint64_t seed;

	if (argc != 5)
		die("usage: kill IMAGE JOURNAL ROUNDS SEED");
	o.image = argv[1];
	o.journal = argv[2];
	seed = strtoull(argv[4], NULL, 0);
	dev = disk_open(&o, error, sizeof(error));
	if (!dev)
		die("%s", error);
	nr_sectors = ubd_device_size(dev) / SECTOR;
	told = mmap(NULL, nr_sectors * sizeof(*told), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (uint64_t i = 0; i < nr_sectors; i++) {
		uint8_t buf[SECTOR];
		uint32_t tag;

		ubd_local_io(dev, 0, UBD_READ, 0, i * SECTOR, buf, SECTOR);
		memcpy(&tag, buf, 4);
		told[i].asked = told[i].answered = tag;
	}
	disk_close(dev);
	for (unsigned round = 1; round <= (unsigned)atoi(argv[3]); round++) {
		pid_t pid = fork();

		if (!pid)
			serve(&o, round, random_next(&seed) + round);
		random_next(&seed);
		usleep(50000 + random_next(&seed) % 400000);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		verify(&o);
	}
	return 0;
}
