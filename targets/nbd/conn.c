/* SPDX-License-Identifier: MIT */
/*
 * Requests on a connection that may be lost at any time.
 *
 * One coroutine, the receiver, sees to it that there is a connection: it takes replies, and when
 * the connection broke, waits until nobody sends any more, tells every request that was not
 * answered, and connects again, more and more patiently. Requests send themselves again, until they
 * are answered or have waited for too long. Another coroutine is the clock while there are
 * requests.
 */
#define _GNU_SOURCE
#include "conn.h"

#include <ubd/device.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define TICK_MS 250
#define CONNECT_MS 10000
#define FIRST_PAUSE_MS 20
#define LONGEST_PAUSE_MS 5000
#define MAX_TAGS 65536u
#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* ---- Time ---------------------------------------------------------------------------------- */

static void look_at_clock(struct conn *c)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	c->now = (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void pass_time(struct conn *c, uint64_t ms)
{
	ubd_sleep(c->q, ms * 1000000);
	look_at_clock(c);
}

static bool expired(const struct conn *c, const struct req *r)
{
	uint64_t limit = c->cfg->timeout_ms;

	if (!c->up && (c->closing || ubd_queue_stopping(c->q)))
		return true;
	if (!limit)
		return false;
	return c->now - r->born >= limit || (!c->up && c->now - c->down_since >= limit);
}

/* Is the server still with us? */
static void watch(struct conn *c)
{
	uint64_t silent = c->now - c->last_heard;

	if (c->cfg->stall_ms && silent >= c->cfg->stall_ms)
		conn_break(c, "%u replies are due and nothing came for %" PRIu64 " s", c->requests,
			   silent / 1000);
	for (unsigned i = 0; c->up && i < c->tags; i++)
		if (c->due[i] && expired(c, c->due[i]))
			conn_break(c, "no reply to a request within %" PRIu64 " s",
				   c->cfg->timeout_ms / 1000);
}

static void tick(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;

	while (c->requests) {
		pass_time(c, TICK_MS);
		if (c->up && c->requests)
			watch(c);
		ubd_cond_wake_all(q, &c->change);
	}
	c->ticking = false;
}

static void start_clock(struct conn *c)
{
	if (c->ticking)
		return;
	look_at_clock(c);
	c->ticking = !ubd_spawn(c->q, tick, c);
}

/* ---- Who is due ---------------------------------------------------------------------------- */

void conn_expect(struct conn *c, struct req *r)
{
	uint16_t tag = r->io->tag;

	r->on.cookie = c->serial++ << 16 | tag;
	r->state = REQ_DUE;
	c->due[tag] = r;
	if (tag >= c->tags)
		c->tags = tag + 1u;
}

struct req *conn_find(const struct conn *c, uint64_t cookie)
{
	struct req *r = c->due[(uint16_t)cookie];

	return r && r->on.cookie == cookie ? r : NULL;
}

void conn_settle(struct conn *c, struct req *r, enum req_state state, int result)
{
	c->due[r->io->tag] = NULL;
	r->state = state;
	r->result = result;
	ubd_cond_wake_one(c->q, &r->settled);
}

void conn_heard(struct conn *c)
{
	c->last_heard = c->now;
	c->answered = true;
}

void conn_sent(struct conn *c)
{
	if (!--c->senders)
		ubd_cond_wake_one(c->q, &c->idle);
}

/* ---- Loss and return ----------------------------------------------------------------------- */

void conn_break(struct conn *c, const char *fmt, ...)
{
	char why[LINK_WHY];
	va_list ap;

	if (!c->up)
		return;
	c->up = false;
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	if (!c->closing)
		ubd_device_notice(c->cfg->dev, "nbd: connection %u to %s lost: %s", c->index,
				  link_name(&c->cfg->address), why);
	link_cut(&c->link, !c->closing);
	ubd_cond_wake_all(c->q, &c->room);
}

/* Give it up, with all that it still owed. */
static void bury(struct conn *c)
{
	look_at_clock(c);
	c->down_since = c->now;
	while (c->senders)
		ubd_cond_wait(c->q, &c->idle, NULL);
	link_close(&c->link);
	for (unsigned i = 0; i < c->tags; i++)
		if (c->due[i])
			conn_settle(c, c->due[i], REQ_LOST, 0);
	c->sent = c->filled = 0;
	c->in_pos = c->in_len = 0;
	c->large = false;
}

/* What the disk promises its users, the export must still be able to do. */
static const char *misfit(const struct link_export *disk, uint64_t size,
			  const struct link_export *now)
{
	if (now->size < size)
		return "the export is smaller than it was";
	if (now->can & LINK_READ_ONLY & ~disk->can)
		return "the export is read-only now";
	if (disk->can & ~now->can & LINK_PROMISES)
		return "the export cannot flush, trim or zero any more as it could";
	if (now->min > disk->min || (now->max && now->max < disk->max))
		return "the export's block sizes have changed";
	return NULL;
}

/* An export that grew makes the disk grow, where the driver can. */
static void follow_size(struct conn *c, uint64_t was)
{
	uint64_t size = c->link.export.size & ~(uint64_t)(c->cfg->disk.min - 1);
	int ret = size > was ? ubd_device_resize(c->q, size) : 0;

	if (ret)
		ubd_device_notice(c->cfg->dev,
				  "nbd: the export has grown to %" PRIu64
				  " bytes; the disk stays at %" PRIu64 ": %s",
				  size, was, strerror(-ret));
	else if (size > was)
		__atomic_store_n(c->cfg->size, size, __ATOMIC_RELAXED);
}

struct attempt {
	struct conn *c;
	struct link link;
	char why[LINK_WHY];
};

static int try_link(void *arg)
{
	struct attempt *a = arg;

	return link_open(&a->link, &a->c->cfg->address, &a->c->closing, CONNECT_MS, a->why);
}

/* Once. Says why not, the first time of an outage. */
static bool reconnect(struct conn *c, bool first)
{
	struct attempt a = {.c = c};
	uint64_t size = __atomic_load_n(c->cfg->size, __ATOMIC_RELAXED);
	const char *why = a.why;

	if (!ubd_offload(c->q, try_link, &a)) {
		why = misfit(&c->cfg->disk, size, &a.link.export);
		if (!why) {
			c->link = a.link;
			follow_size(c, size);
			look_at_clock(c);
			ubd_device_notice(c->cfg->dev,
					  "nbd: connected again to %s after %" PRIu64 " ms",
					  link_name(&c->cfg->address), c->now - c->down_since);
			return true;
		}
		link_close(&a.link);
	}
	if (first && !c->closing)
		ubd_device_notice(c->cfg->dev, "nbd: cannot connect again to %s yet: %s",
				  link_name(&c->cfg->address), why);
	return false;
}

static void serve(struct conn *c)
{
	c->last_heard = c->now;
	c->answered = false;
	c->up = true;
	ubd_cond_wake_all(c->q, &c->change);
	if (c->link.h)
		tls_receive(c);
	else
		plain_receive(c);
	bury(c);
}

static void run(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;
	uint64_t pause = FIRST_PAUSE_MS;
	bool there = true;

	(void)q;
	while (!c->closing) {
		bool first = there;

		if (there)
			serve(c);
		if (c->answered)
			pause = FIRST_PAUSE_MS;
		c->answered = false;
		for (uint64_t end = c->now + pause; c->now < end && !c->closing;)
			pass_time(c, MIN(end - c->now, TICK_MS));
		pause = MIN(pause * 2, LONGEST_PAUSE_MS);
		there = !c->closing && reconnect(c, first);
	}
	/* Connected at the last moment. */
	link_close(&c->link);
}

/* ---- Requests ------------------------------------------------------------------------------ */

int conn_request(struct conn *c, struct req *r)
{
	int ret = 0;

	start_clock(c);
	if (!c->requests++)
		c->last_heard = c->now;
	r->conn = c;
	r->born = c->now;
	do {
		while (!c->up && !expired(c, r))
			ubd_cond_wait(c->q, &c->change, NULL);
		if (!c->up) {
			ret = -ETIMEDOUT;
			break;
		}
		if (c->link.h)
			tls_send(c, r);
		else
			plain_send(c, r);
		while (r->state == REQ_DUE)
			ubd_cond_wait(c->q, &r->settled, NULL);
		ret = r->result;
	} while (r->state == REQ_LOST);
	c->requests--;
	return ret;
}

/* ---- Start and end ------------------------------------------------------------------------- */

void conn_init(struct conn *c, const struct conn_config *cfg, unsigned index)
{
	*c = (struct conn){.cfg = cfg, .index = index, .link.fd = -1};
}

int conn_start(struct conn *c, struct ubd_queue *q)
{
	c->q = q;
	c->due = calloc(MAX_TAGS, sizeof(*c->due));
	c->out = mmap(NULL, 2 * CONN_BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (!c->due || c->out == MAP_FAILED)
		return -ENOMEM;
	/* Memory reclaim may depend on this disk. */
	mlock2(c->out, 2 * CONN_BUFFER, MLOCK_ONFAULT);
	c->in = c->out + CONN_BUFFER;
	look_at_clock(c);
	c->down_since = c->now;
	return ubd_spawn(q, run, c);
}

void conn_stop(struct conn *c)
{
	__atomic_store_n(&c->closing, true, __ATOMIC_RELAXED);
	if (c->up && !c->link.h)
		plain_say_goodbye(c);
	conn_break(c, "closed");
}

void conn_free(struct conn *c)
{
	if (c->in)
		munmap(c->out, 2 * CONN_BUFFER);
	free(c->due);
	link_close(&c->link);
}
