/* SPDX-License-Identifier: MIT */
/* Recording file operations through the target's seam, and cutting them off. */
#include "record.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "../../targets/qcow2/file.h"
#include "disk.h"

#define SECTOR 512u

struct event {
	const struct qc_file_op *op; /* while it is under way */
	enum qc_file_op_kind kind;
	char *path;
	uint64_t pos, len, start, end; /* end 0: never */
	uint8_t *data;
	bool failed;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct event *events;
static size_t count, room;
static _Atomic uint64_t now;

uint64_t record_tick(void)
{
	return atomic_fetch_add(&now, 1) + 1;
}

uint64_t record_now(void)
{
	return atomic_load(&now);
}

static int before(const struct qc_file_op *op)
{
	struct event *e;

	if (op->kind == QC_READ)
		return 0;
	pthread_mutex_lock(&lock);
	if (count == room) {
		room = room ? room * 2 : 1024;
		events = realloc(events, room * sizeof(*events));
	}
	e = &events[count++];
	*e = (struct event){.op = op,
			    .kind = op->kind,
			    .path = strdup(op->file->path),
			    .pos = op->pos,
			    .len = op->len,
			    .start = record_tick()};
	if (op->kind == QC_WRITE)
		e->data = malloc(op->len);
	if (op->kind == QC_WRITE && op->data)
		memcpy(e->data, op->data, op->len);
	else if (op->kind == QC_WRITE)
		ubd_io_get(op->io, op->at, e->data, (uint32_t)op->len); /* a copy: nothing awaits */
	pthread_mutex_unlock(&lock);
	return 0;
}

static void after(const struct qc_file_op *op, int ret)
{
	pthread_mutex_lock(&lock);
	for (size_t i = count; i-- > 0;)
		if (events[i].op == op) {
			events[i].op = NULL;
			events[i].failed = ret < 0;
			events[i].end = record_tick();
			break;
		}
	pthread_mutex_unlock(&lock);
}

static const struct qc_file_hooks hooks = {before, after};

void record_begin(void)
{
	qc_file_hooks = &hooks;
}

void record_end(void)
{
	qc_file_hooks = NULL;
}

/* ---- Cutting ------------------------------------------------------------------------------- */

struct state {
	uint8_t *data;
	uint64_t size, room;
};

static void need(struct state *s, uint64_t size)
{
	if (size > s->room) {
		s->data = realloc(s->data, size * 2);
		s->room = size * 2;
	}
	if (size > s->size) {
		memset(s->data + s->size, 0, size - s->size);
		s->size = size;
	}
}

static void apply(struct state *s, const struct event *e, bool torn, uint64_t *seed)
{
	uint64_t end = e->pos + e->len;

	if (e->kind == QC_TRUNCATE) {
		need(s, e->pos);
		s->size = e->pos;
		return;
	}
	if (e->kind == QC_PUNCH)
		end = end < s->size ? end : s->size;
	for (uint64_t at = e->pos; at < end;) {
		uint64_t stop = (at / SECTOR + 1) * SECTOR, len = (stop < end ? stop : end) - at;

		if (!torn || random_next(seed) % 2) {
			need(s, at + len);
			if (e->kind == QC_WRITE)
				memcpy(s->data + at, e->data + (at - e->pos), len);
			else
				memset(s->data + at, 0, len);
		}
		at += len;
	}
}

/* Whether a sync that ended by the cut began after the operation's end. */
static bool durable(const struct event *e, uint64_t last_sync)
{
	return e->end && e->end < last_sync;
}

static void shuffle(const struct event **list, size_t n, uint64_t *seed)
{
	for (size_t i = n; i > 1; i--) {
		size_t k = random_next(seed) % i;
		const struct event *t = list[k];

		list[k] = list[i - 1];
		list[i - 1] = t;
	}
}

uint8_t *record_state(const char *path, const uint8_t *base, uint64_t *size, uint64_t cut,
		      enum record_way way, uint64_t seed)
{
	struct state s = {malloc(*size + 1), *size, *size};
	const struct event **loose = malloc((count + 1) * sizeof(*loose));
	uint64_t last_sync = 0;
	size_t n = 0;

	memcpy(s.data, base, *size);
	for (size_t i = 0; i < count; i++)
		if (events[i].kind == QC_SYNC && !strcmp(events[i].path, path) &&
		    !events[i].failed && events[i].end && events[i].end <= cut &&
		    events[i].start > last_sync)
			last_sync = events[i].start;
	for (size_t i = 0; i < count; i++) {
		const struct event *e = &events[i];

		if (e->kind == QC_SYNC || strcmp(e->path, path) != 0 || e->start > cut)
			continue;
		if (durable(e, last_sync))
			apply(&s, e, false, &seed);
		else
			loose[n++] = e;
	}
	if (way == RECORD_SECTORS)
		shuffle(loose, n, &seed);
	for (size_t i = 0; i < n && way != RECORD_NONE; i++)
		if (way == RECORD_ALL || random_next(&seed) % 2)
			apply(&s, loose[i], way == RECORD_SECTORS, &seed);
	free(loose);
	*size = s.size;
	return s.data;
}
