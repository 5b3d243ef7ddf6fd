/* SPDX-License-Identifier: MIT */
/*
 * Random operations beside a model:
 *
 *   model "OPTIONS" SEED OPERATIONS THREADS MAX-OPEN MAX-ACTIVE
 *
 * One thread: every answer and every zone's state after it must be the model's; which implicitly
 * open zone is closed for another is the device's choice. Several: each has zones of its own, where
 * others may close what is implicitly open and take up the limits. In the end all append to the
 * same zones.
 */
#include "disk.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BLOCKS 64u /* of a zone */
#define MAX_THREADS 16u

#define EMPTY BLK_ZONE_COND_EMPTY
#define IMPLICIT BLK_ZONE_COND_IMP_OPEN
#define EXPLICIT BLK_ZONE_COND_EXP_OPEN
#define CLOSED BLK_ZONE_COND_CLOSED
#define FULL BLK_ZONE_COND_FULL

struct model_zone {
	unsigned cond;
	uint32_t capacity, written; /* blocks */
	uint64_t tags[MAX_BLOCKS];
};

static struct ubd_device *dev;
static struct model_zone model[MAX_ZONES];
static unsigned nr_zones, threads, max_open, max_active, queues;
static uint64_t zone_size;
static _Atomic uint64_t tags = 1;

struct worker {
	pthread_t thread;
	unsigned index, operations;
	uint64_t seed;
	uint8_t *buf;
};

static unsigned pick(struct worker *w, unsigned n)
{
	return (unsigned)(random_next(&w->seed) % n);
}

static bool is_open(unsigned cond)
{
	return cond == IMPLICIT || cond == EXPLICIT;
}

static unsigned count(unsigned cond)
{
	unsigned n = 0;

	for (unsigned i = 0; i < nr_zones; i++)
		n += model[i].cond == cond;
	return n;
}

/* What opening the zone must say; *closes: another is closed for it. */
static int may_open(const struct model_zone *z, bool *closes)
{
	unsigned open = count(IMPLICIT) + count(EXPLICIT);

	if (z->cond == EMPTY && max_active && open + count(CLOSED) >= max_active)
		return -EOVERFLOW;
	if (is_open(z->cond) || !max_open || open < max_open)
		return 0;
	*closes = count(IMPLICIT);
	return *closes ? 0 : -ETOOMANYREFS;
}

static void compare(unsigned changed, bool closes)
{
	struct blk_zone zones[MAX_ZONES];

	disk_report(dev, zones);
	for (unsigned i = 0; i < nr_zones; i++) {
		struct model_zone *m = &model[i];
		uint64_t wp = m->cond == FULL ? zone_size : m->written * BLOCK;

		if (m->cond == BLK_ZONE_COND_NOT_WP)
			continue;
		if (closes && i != changed && m->cond == IMPLICIT && zones[i].cond == CLOSED) {
			m->cond = CLOSED;
			closes = false;
		}
		if (zones[i].cond != m->cond || zones[i].wp != (i * zone_size + wp) >> 9)
			die("zone %u: condition %u, write pointer %llu; %u and %llu were expected",
			    i, zones[i].cond, (unsigned long long)(zones[i].wp << 9), m->cond,
			    (unsigned long long)(i * zone_size + wp));
	}
	if (closes)
		die("nothing was closed for zone %u", changed);
}

/* Whether ret is right, and success. Among several threads limits may be met at any time. */
static bool answer(unsigned i, const char *what, int ret, int expected)
{
	if (threads > 1 && expected >= 0 &&
	    ((max_open && ret == -ETOOMANYREFS) || (max_active && ret == -EOVERFLOW)))
		return false;
	if (ret != expected)
		die("%s, zone %u, condition %u, %u blocks: %d; %d was expected", what, i,
		    model[i].cond, model[i].written, ret, expected);
	return ret >= 0;
}

static void do_write(struct worker *w, unsigned i, bool append)
{
	struct model_zone *m = &model[i];
	bool conv = m->cond == BLK_ZONE_COND_NOT_WP, closes = false;
	uint32_t n = 1 + pick(w, pick(w, 4) ? 4 : MAX_BLOCKS / 4), first = conv ? 0 : m->written;
	unsigned flags = pick(w, 8) ? 0 : UBD_IO_FUA;
	uint64_t tag = atomic_fetch_add(&tags, n), at;
	int ret, expected = (int)(n * BLOCK);

	if (conv || (!append && !pick(w, 10)))
		first = pick(w, m->capacity);
	if (first + n > zone_size / BLOCK)
		n = (uint32_t)(zone_size / BLOCK) - first;
	expected = (int)(n * BLOCK);
	if (!conv && (m->cond == FULL || first != m->written || first + n > m->capacity))
		expected = -EIO;
	else if (!conv && threads == 1 && may_open(m, &closes))
		expected = may_open(m, &closes);
	if (conv && append)
		expected = -EIO;
	for (uint32_t k = 0; k < n; k++)
		block_fill(w->buf + k * BLOCK, tag + k);
	if (append) {
		ret = ubd_local_append(dev, pick(w, queues), flags, i * zone_size, w->buf,
				       n * BLOCK, &at);
		if (ret > 0 && at != i * zone_size + first * BLOCK)
			die("zone %u: appended at %llu, not %llu", i, (unsigned long long)at,
			    (unsigned long long)(i * zone_size + first * BLOCK));
	} else {
		ret = ubd_local_io(dev, pick(w, queues), UBD_WRITE, flags,
				   i * zone_size + first * BLOCK, w->buf, n * BLOCK);
	}
	if (answer(i, append ? "append" : "write", ret, expected)) {
		for (uint32_t k = 0; k < n; k++)
			m->tags[first + k] = tag + k;
		if (!conv) {
			m->written += n;
			m->cond = m->written == m->capacity ? FULL
				  : m->cond == EXPLICIT	    ? EXPLICIT
							    : IMPLICIT;
		}
	} else {
		closes = false;
	}
	if (threads == 1)
		compare(i, closes);
}

static void do_read(struct worker *w, unsigned i)
{
	struct model_zone *m = &model[i];
	uint32_t all = (uint32_t)(zone_size / BLOCK), first = pick(w, all);
	uint32_t n = 1 + pick(w, all - first);
	int ret = ubd_local_io(dev, pick(w, queues), UBD_READ, 0, i * zone_size + first * BLOCK,
			       w->buf, n * BLOCK);

	if (ret != (int)(n * BLOCK))
		die("read of zone %u: %d", i, ret);
	for (uint32_t k = 0; k < n; k++)
		if (!block_is(w->buf + k * BLOCK, m->tags[first + k]))
			die("zone %u: other data in block %u of %u written", i, first + k,
			    m->written);
}

static void do_manage(struct worker *w, unsigned i, enum ubd_op op)
{
	struct model_zone *m = &model[i];
	unsigned cond = m->cond;
	bool closes = false;
	int expected = 0, ret;

	if (cond == BLK_ZONE_COND_NOT_WP || (op == UBD_ZONE_OPEN && cond == FULL) ||
	    (op == UBD_ZONE_CLOSE && (cond == FULL || cond == EMPTY)))
		expected = -EIO;
	else if (op == UBD_ZONE_OPEN && threads == 1)
		expected = may_open(m, &closes);
	ret = ubd_local_io(dev, pick(w, queues), op, 0, i * zone_size, NULL, 0);
	if (answer(i, "operation", ret, expected)) {
		if (op == UBD_ZONE_OPEN)
			m->cond = EXPLICIT;
		else if (op == UBD_ZONE_CLOSE)
			m->cond = m->written ? CLOSED : EMPTY;
		else if (op == UBD_ZONE_FINISH)
			m->cond = FULL;
		if (op == UBD_ZONE_RESET) {
			m->cond = EMPTY;
			m->written = 0;
			memset(m->tags, 0, sizeof(m->tags));
		}
	} else {
		closes = false;
	}
	if (threads == 1)
		compare(i, closes);
}

static void reset_all(struct worker *w)
{
	if (ubd_local_io(dev, pick(w, queues), UBD_ZONE_RESET_ALL, 0, 0, NULL, 0))
		die("reset all fails");
	for (unsigned i = 0; i < nr_zones; i++) {
		if (model[i].cond == BLK_ZONE_COND_NOT_WP)
			continue;
		model[i].cond = EMPTY;
		model[i].written = 0;
		memset(model[i].tags, 0, sizeof(model[i].tags));
	}
	compare(0, false);
}

static void *work(void *arg)
{
	struct worker *w = arg;

	for (unsigned n = 0; n < w->operations; n++) {
		unsigned i = pick(w, nr_zones / threads) * threads + w->index;
		unsigned what = pick(w, 100);

		if (what < 35)
			do_write(w, i, false);
		else if (what < 55)
			do_write(w, i, true);
		else if (what < 75)
			do_read(w, i);
		else if (what < 79)
			do_manage(w, i, UBD_ZONE_OPEN);
		else if (what < 84)
			do_manage(w, i, UBD_ZONE_CLOSE);
		else if (what < 88)
			do_manage(w, i, UBD_ZONE_FINISH);
		else if (what < 97)
			do_manage(w, i, UBD_ZONE_RESET);
		else if (what == 97 && threads == 1 && !pick(w, 8))
			reset_all(w);
		else if (ubd_local_io(dev, pick(w, queues), UBD_FLUSH, 0, 0, NULL, 0))
			die("flush fails");
	}
	return NULL;
}

/* Append to zone 8 until it is full, and note what went where. */
static uint64_t placed[MAX_BLOCKS];
#define SHARED 8u

static void *append_all(void *arg)
{
	struct worker *w = arg;

	for (;;) {
		uint64_t tag = atomic_fetch_add(&tags, 1), at;
		int ret;

		block_fill(w->buf, tag);
		ret = ubd_local_append(dev, pick(w, queues), 0, SHARED * zone_size, w->buf, BLOCK,
				       &at);
		if (ret == -EIO)
			return NULL;
		if (ret != (int)BLOCK)
			die("append: %d", ret);
		at = (at - SHARED * zone_size) / BLOCK;
		if (at >= MAX_BLOCKS || placed[at])
			die("two appends in one place");
		placed[at] = tag;
	}
}

static void appended(struct worker *w)
{
	uint32_t n = model[SHARED].capacity;

	if (ubd_local_io(dev, 0, UBD_READ, 0, SHARED * zone_size, w->buf, n * BLOCK) !=
	    (int)(n * BLOCK))
		die("read of what was appended");
	for (uint32_t k = 0; k < n; k++)
		if (!placed[k] || !block_is(w->buf + k * BLOCK, placed[k]))
			die("appended block %u differs", k);
}

static void run(struct worker *w, void *(*fn)(void *))
{
	for (unsigned t = 0; t < threads; t++)
		pthread_create(&w[t].thread, NULL, fn, &w[t]);
	for (unsigned t = 0; t < threads; t++)
		pthread_join(w[t].thread, NULL);
}

int main(int argc, char **argv)
{
	static struct worker w[MAX_THREADS];
	struct blk_zone zones[MAX_ZONES];
	uint64_t seed;

	if (argc != 7)
		die("usage: see the head of model.c");
	seed = strtoull(argv[2], NULL, 0);
	threads = (unsigned)atoi(argv[4]);
	max_open = (unsigned)atoi(argv[5]);
	max_active = (unsigned)atoi(argv[6]);
	queues = threads == 1 ? 1 : 4;
	dev = disk_open(argv[1]);
	if (!dev)
		die("%s", disk_error);
	nr_zones = disk_report(dev, zones);
	zone_size = zones[0].len << 9;
	for (unsigned i = 0; i < nr_zones; i++)
		model[i] = (struct model_zone){.cond = zones[i].cond,
					       .capacity = (uint32_t)(zones[i].capacity / 8)};
	for (unsigned t = 0; t < threads; t++)
		w[t] = (struct worker){.index = t,
				       .operations = (unsigned)atoi(argv[3]) / threads,
				       .seed = random_next(&seed),
				       .buf = aligned_alloc(BLOCK, MAX_BLOCKS * BLOCK)};
	run(w, work);
	for (unsigned n = 0; n < 2 * nr_zones; n++)
		do_read(&w[0], n / 2);
	if (ubd_local_io(dev, 0, UBD_ZONE_RESET_ALL, 0, 0, NULL, 0))
		die("reset all fails");
	run(w, append_all);
	appended(&w[0]);
	if (disk_close(dev))
		die("does not close");
	return 0;
}
