/* SPDX-License-Identifier: MIT */
/*
 * Load on a target in this process, whose every byte is checked: threads read, write, zero, trim
 * and flush, each in a part of the disk of its own, and know what must be where.
 *
 *   load [-q queues] [-d depth] [-j threads] [-n ops | -s seconds] [-m max-io] [-e] [-w]
 *        [-p PERCENT] [-o OTHERS] TARGET [NAME=VALUE]...
 *
 * -e: errors are no failure, wrong data is; -w: no trim and zero; -p: part of reads; -o: no request
 * may see so many others end. Exit status: 0 good, 1 wrong data or errors, 2 the target did not
 * start. SIGTERM ends the load before its time, reading back what was written as always.
 */
#include "../lib/random.h"

#include <ubd/local.h>
#include <ubd/target.h>
#include <ubd/ubd.h>

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define ZERO 0u		    /* generation: zeroes */
#define ANYTHING ~0u	    /* generation: a write failed, who knows */
#define TRIMMED 0x80000000u /* or-ed in: zeroes will do as well */

struct worker {
	pthread_t id;
	unsigned index;
	uint64_t random, first, blocks; /* its part */
	uint32_t *generation, next;
	uint64_t ops, errors, wrong;
	uint8_t *buf;
};

static struct ubd_device *dev;
static unsigned threads = 8, max_io = 128 << 10, reads = 45;
static uint64_t max_ops, seconds = 5, total, max_others = UINT64_MAX;
static _Atomic uint64_t ended, most_others;
static bool allow_errors, writes_only;
static struct timespec begin;
static atomic_bool told_to_end;

static uint64_t word(uint64_t block, uint32_t generation, unsigned i)
{
	return generation == ZERO ? 0 : random_mix(block << 32 ^ (uint64_t)generation << 8 ^ i);
}

static void fill(uint8_t *p, uint64_t block, uint32_t generation)
{
	for (unsigned i = 0; i < BLOCK / 8; i++) {
		uint64_t v = word(block, generation, i);

		memcpy(p + i * 8, &v, 8);
	}
}

static bool is(const uint8_t *p, uint64_t block, uint32_t generation)
{
	for (unsigned i = 0; i < BLOCK / 8; i++) {
		uint64_t v = word(block, generation, i);

		if (memcmp(p + i * 8, &v, 8))
			return false;
	}
	return true;
}

static void verify(struct worker *w, uint64_t at, const uint8_t *p)
{
	uint32_t g = w->generation[at];

	if (g == ANYTHING || is(p, w->first + at, g & ~TRIMMED) ||
	    (g & TRIMMED && is(p, w->first + at, ZERO)))
		return;
	if (!w->wrong++)
		printf("# block %llu is not of generation %u\n",
		       (unsigned long long)(w->first + at), g & ~TRIMMED);
}

static int one(struct worker *w, enum ubd_op op, uint64_t at, uint64_t n)
{
	uint64_t r = random_next(&w->random);
	unsigned flags = op != UBD_READ && r % 10 == 0 ? UBD_IO_FUA : 0;
	bool data = op == UBD_READ || op == UBD_WRITE;
	/* Aligned memory is used by the target itself, other memory by a copy. */
	uint8_t *buf = w->buf + (r >> 8) % 2 * 512;
	uint32_t generation = op == UBD_WRITE ? ++w->next : ZERO;
	uint64_t before = ended, others;
	int ret;

	for (uint64_t i = 0; op == UBD_WRITE && i < n; i++)
		fill(buf + i * BLOCK, w->first + at + i, generation);
	ret = ubd_local_io(dev, w->index % ubd_device_queues(dev), op, flags,
			   op == UBD_FLUSH ? 0 : (w->first + at) * BLOCK, data ? buf : NULL,
			   op == UBD_FLUSH ? 0 : (uint32_t)(n * BLOCK));
	w->ops++;
	others = ended++ - before;
	if (others > most_others)
		most_others = others; /* or nearly */
	if (data && ret >= 0 && ret != (int)(n * BLOCK))
		ret = -1;
	if (ret < 0 && !w->errors++ && !allow_errors)
		printf("# op %d: %s\n", op, strerror(-ret));
	for (uint64_t i = 0; i < n; i++) {
		uint32_t *g = &w->generation[at + i];

		if (op == UBD_READ && ret >= 0)
			verify(w, at + i, buf + i * BLOCK);
		else if (op == UBD_DISCARD && *g != ANYTHING)
			*g |= TRIMMED;
		else if (op == UBD_WRITE || op == UBD_WRITE_ZEROES)
			*g = ret < 0 ? ANYTHING : generation;
	}
	return ret;
}

static bool over(const struct worker *w)
{
	struct timespec now;

	if (told_to_end)
		return true;
	if (max_ops)
		return w->ops >= max_ops / threads;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)(now.tv_sec - begin.tv_sec) >= seconds;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	bool read_only = false;

	while (!over(w)) {
		uint64_t r = random_next(&w->random), n = 1 + (r >> 32) % (max_io / BLOCK), at;
		unsigned kind = (unsigned)(r % 100);
		enum ubd_op op = kind < reads  ? UBD_READ
				 : kind < 90   ? UBD_WRITE
				 : writes_only ? UBD_READ
				 : kind < 95   ? UBD_WRITE_ZEROES
				 : kind < 98   ? UBD_DISCARD
					       : UBD_FLUSH;

		if (r >> 60 < 8)
			n = 1; /* many small ones */
		if (n > w->blocks)
			n = w->blocks;
		at = random_next(&w->random) % (w->blocks - n + 1);
		if (read_only)
			op = UBD_READ;
		if (one(w, op, at, op == UBD_FLUSH ? 0 : n) == -1 && op != UBD_READ)
			read_only = true; /* EPERM */
	}
	for (uint64_t at = 0; at < w->blocks; at += max_io / BLOCK)
		one(w, UBD_READ, at,
		    w->blocks - at < max_io / BLOCK ? w->blocks - at : max_io / BLOCK);
	return NULL;
}

static int start(struct ubd_device_config *config, int argc, char **argv)
{
	const char *why;
	const struct ubd_target *t = ubd_target_find(argv[0], &why);
	int ret = 0;

	if (!t) {
		printf("# %s\n", why);
		return -1;
	}
	dev = ubd_device_new(t, config);
	for (int i = 1; i < argc && !ret; i++) {
		char *value = strstr(argv[i], "://") ? NULL : strchr(argv[i], '=');

		if (value)
			*value++ = 0;
		/* A URI is positional. */
		ret = strstr(argv[i], "://") ? ubd_device_set_option(dev, NULL, argv[i])
					     : ubd_device_set_option(dev, argv[i], value);
	}
	if (!ret)
		ret = ubd_local_start(dev);
	if (ret)
		printf("# %s\n", ubd_device_error(dev));
	return ret;
}

static void notice(void *arg, const char *line)
{
	(void)arg;
	printf("# %s\n", line);
	fflush(stdout);
}

static void on_sigterm(int sig)
{
	(void)sig;
	told_to_end = true;
}

static int run(void)
{
	struct worker *workers = calloc(threads, sizeof(*workers));
	uint64_t blocks = ubd_device_size(dev) / BLOCK / threads, ops = 0, errors = 0, wrong = 0;
	struct timespec end;

	signal(SIGTERM, on_sigterm);
	notice(NULL, "begun");
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (unsigned i = 0; i < threads; i++) {
		struct worker *w = &workers[i];

		w->index = i;
		w->random = seconds + (uint64_t)i * 7919 + max_ops;
		w->first = i * blocks;
		w->blocks = blocks;
		w->generation = calloc(blocks, sizeof(*w->generation));
		/* What is there before is not known. */
		memset(w->generation, 0xff, blocks * sizeof(*w->generation));
		w->buf = aligned_alloc(BLOCK, max_io + BLOCK);
		pthread_create(&w->id, NULL, work, w);
	}
	for (unsigned i = 0; i < threads; i++) {
		struct worker *w = &workers[i];

		pthread_join(w->id, NULL);
		ops += w->ops;
		errors += w->errors;
		wrong += w->wrong;
		free(w->generation);
		free(w->buf);
	}
	free(workers);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("# %llu operations, %llu errors, %llu wrong blocks, %ld ms\n",
	       (unsigned long long)ops, (unsigned long long)errors, (unsigned long long)wrong,
	       (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
	printf("# at most %llu others ended during one\n", (unsigned long long)most_others);
	total = ops;
	return wrong || (errors && !allow_errors) || most_others > max_others;
}

int main(int argc, char **argv)
{
	struct ubd_device_config config = {.depth = 64, .notice = notice};
	struct ubd_stats stats;
	int opt, ret;

	while ((opt = getopt(argc, argv, "q:d:j:n:s:m:p:o:ew")) != -1)
		switch (opt) {
		case 'q':
			config.queues = (unsigned)atoi(optarg);
			break;
		case 'd':
			config.depth = (unsigned)atoi(optarg);
			break;
		case 'j':
			threads = (unsigned)atoi(optarg);
			break;
		case 'n':
			max_ops = (uint64_t)atoll(optarg);
			break;
		case 's':
			seconds = (uint64_t)atoll(optarg);
			break;
		case 'm':
			max_io = (unsigned)atoi(optarg) << 10;
			break;
		case 'p':
			reads = (unsigned)atoi(optarg);
			break;
		case 'o':
			max_others = (uint64_t)atoll(optarg);
			break;
		case 'e':
			allow_errors = true;
			break;
		case 'w':
			writes_only = true;
			break;
		default:
			return 2;
		}
	if (optind == argc)
		return 2;
	config.max_io = max_io < 512 << 10 ? 512 << 10 : max_io;
	ret = start(&config, argc - optind, argv + optind);
	if (ret) {
		ubd_device_free(dev);
		return 2;
	}
	ret = run();
	ubd_device_stop(dev);
	ubd_device_wait(dev);
	ubd_device_stats(dev, &stats);
	printf("# per operation: %.2f SQEs, %.2f CQEs, %.2f enters\n",
	       (double)stats.sqes / (double)total, (double)stats.cqes / (double)total,
	       (double)stats.enters / (double)total);
	ubd_device_free(dev);
	return ret;
}
