/* SPDX-License-Identifier: MIT */
/*
 * Requests on a connection that may be lost at any time.
 *
 * One coroutine, the manager, sees to it that there is a connection: it watches for silence while
 * replies are due, and when the connection broke, waits until nobody uses it any more, tells every
 * request that was not answered, and connects again, more and more patiently. Requests send
 * themselves again, until they are answered or have waited for too long.
 */
#define _GNU_SOURCE
#include "conn.h"

#include <ubd/device.h>

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS 250
#define CONNECT_MS 10000
#define FIRST_PAUSE_MS 20
#define LONGEST_PAUSE_MS 5000
#define NO_SLOT UINT32_MAX

/* ---- Time ---------------------------------------------------------------------------------- */

static void look_at_clock(struct conn *c)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	c->now = (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* 0: not at all. */
static void set_timer(struct conn *c, uint64_t ns)
{
	struct itimerspec when = {
		.it_value = {.tv_sec = (time_t)(ns / 1000000000),
			     .tv_nsec = (long)(ns % 1000000000)},
	};

	timerfd_settime(c->timer, 0, &when, NULL);
}

/* The manager sleeps: ms, or for good when it is 0; conn_kick() and the first request wake it. */
static void nap(struct conn *c, uint64_t ms)
{
	if (!c->kicked) {
		c->ticking = ms;
		set_timer(c, ms * 1000000);
		ubd_poll(c->q, c->timer, POLLIN);
	}
	c->kicked = false;
	look_at_clock(c);
}

static void kick(struct conn *c)
{
	c->kicked = true;
	set_timer(c, 1);
}

/* Something is due: from now on time counts. */
static void start_clock(struct conn *c)
{
	if (c->ticking)
		return;
	look_at_clock(c);
	c->ticking = true;
	set_timer(c, TICK_MS * 1000000ULL);
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

/* ---- Who is due ---------------------------------------------------------------------------- */

static int more_slots(struct conn *c)
{
	uint32_t n = c->nr_slots ? 2 * c->nr_slots : 128;
	struct conn_slot *bigger = realloc(c->slots, n * sizeof(*bigger));

	if (!bigger)
		return -ENOMEM;
	for (uint32_t i = c->nr_slots; i < n; i++)
		bigger[i] = (struct conn_slot){.next_free = i + 1 < n ? i + 1 : NO_SLOT};
	c->free_slot = c->nr_slots;
	c->slots = bigger;
	c->nr_slots = n;
	return 0;
}

/* Count a reply, in or out. */
static void count(struct conn *c, const struct req *r, int sign)
{
	uint32_t payload = r->cmd == NBD_CMD_READ ? r->length : 0;

	c->due += (unsigned)sign;
	if (payload >= CONN_LARGE)
		c->large_due += (unsigned)sign;
	else
		c->small_due_bytes += (uint32_t)sign * (NBD_REPLY_SIZE + payload);
}

int conn_expect(struct conn *c, struct req *r)
{
	struct conn_slot *s;

	if (c->free_slot == NO_SLOT && more_slots(c))
		return -ENOMEM;
	r->slot = c->free_slot;
	s = &c->slots[r->slot];
	c->free_slot = s->next_free;
	s->req = r;
	r->state = REQ_SENT;
	start_clock(c);
	if (!c->due)
		c->last_heard = c->now;
	count(c, r, 1);
	return 0;
}

uint64_t conn_cookie(const struct conn *c, const struct req *r)
{
	return (uint64_t)c->slots[r->slot].generation << 32 | r->slot;
}

struct req *conn_find(struct conn *c, uint64_t cookie)
{
	uint32_t slot = (uint32_t)cookie;

	if (slot >= c->nr_slots || c->slots[slot].generation != cookie >> 32)
		return NULL;
	return c->slots[slot].req;
}

void conn_settle(struct conn *c, struct req *r, enum req_state state, int result)
{
	struct conn_slot *s = &c->slots[r->slot];

	s->req = NULL;
	s->generation++;
	s->next_free = c->free_slot;
	c->free_slot = r->slot;
	count(c, r, -1);
	r->state = state;
	r->result = result;
	ubd_cond_wake_one(c->q, &r->cond);
}

void conn_heard(struct conn *c)
{
	c->last_heard = c->now;
	c->answered = true;
}

void conn_unuse(struct conn *c)
{
	if (!--c->busy)
		ubd_cond_wake_all(c->q, &c->idle);
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
	link_cut(&c->link);
	plain_wake(c);
	kick(c);
}

/* Nobody reads or writes it any more: give it up, with all that it still owed. */
static void bury(struct conn *c)
{
	look_at_clock(c);
	c->down_since = c->now;
	while (c->busy)
		ubd_cond_wait(c->q, &c->idle, NULL);
	link_close(&c->link);
	for (uint32_t i = 0; i < c->nr_slots; i++)
		if (c->slots[i].req)
			conn_settle(c, c->slots[i].req, REQ_LOST, 0);
	for (int i = 0; i < 2; i++)
		plain_forget(c, &c->out[i]);
	c->in_pos = c->in_len = 0;
	c->last_large = false;
}

static bool rise(struct conn *c)
{
	look_at_clock(c);
	c->last_heard = c->now;
	c->answered = false;
	c->up = true;
	/* What starts uses the connection until it has seen that there is none. */
	if (c->link.h ? tls_start(c) : plain_start(c)) {
		conn_break(c, "out of memory");
		return false;
	}
	plain_wake(c);
	return true;
}

/* What the disk promises its users, the export must still be able to do. */
static const char *misfit(const struct link_export *disk, uint64_t size,
			  const struct link_export *now, char text[LINK_WHY])
{
	if (now->size < size) {
		snprintf(text, LINK_WHY,
			 "the export has shrunk to %" PRIu64 " bytes, the disk has %" PRIu64,
			 now->size, size);
		return text;
	}
	if (now->read_only && !disk->read_only)
		return "the export is read-only now";
	if ((disk->flush && !now->flush) || (disk->fua && !now->fua))
		return "the export cannot flush any more";
	if ((disk->trim && !now->trim) || (disk->zero && !now->zero) ||
	    (disk->fast_zero && !now->fast_zero))
		return "the export cannot trim or zero any more";
	if (now->min > disk->min || (now->max && (!disk->max || now->max < disk->max)))
		return "the export's block sizes have changed";
	return NULL;
}

/* An export that grew makes the disk grow, where the driver can. */
static void follow_size(struct conn *c, uint64_t was)
{
	struct ubd_device *dev = c->cfg->dev;
	uint64_t size = c->link.export.size & ~(uint64_t)(c->cfg->disk.min - 1);
	int ret;

	if (size <= was)
		return;
	ret = ubd_device_resize(c->q, size);
	if (!ret)
		__atomic_store_n(c->cfg->size, size, __ATOMIC_RELAXED);
	else
		ubd_device_notice(dev,
				  "nbd: the export has grown to %" PRIu64
				  " bytes; the disk stays at %" PRIu64 ": %s",
				  size, was, strerror(-ret));
}

struct attempt {
	struct conn *c;
	struct link link;
	char why[LINK_WHY];
};

static int try_link(void *arg)
{
	struct attempt *a = arg;
	const struct conn_config *cfg = a->c->cfg;

	return link_open(&a->link, &cfg->address, &a->c->closing, CONNECT_MS, a->why);
}

/* Once. Says why not, the first time of an outage. */
static bool reconnect(struct conn *c, bool first)
{
	struct attempt a = {.c = c};
	uint64_t size = __atomic_load_n(c->cfg->size, __ATOMIC_RELAXED);
	const char *why = a.why;
	int ret = ubd_offload(c->q, try_link, &a);

	if (!ret) {
		char text[LINK_WHY];

		why = misfit(&c->cfg->disk, size, &a.link.export, text);
		if (!why) {
			c->link = a.link;
			follow_size(c, size);
			return true;
		}
		snprintf(a.why, sizeof(a.why), "%s", why);
		link_close(&a.link);
	}
	if (first && !c->closing)
		ubd_device_notice(c->cfg->dev, "nbd: cannot connect again to %s yet: %s",
				  link_name(&c->cfg->address), a.why);
	return false;
}

static void pause_for(struct conn *c, uint64_t ms)
{
	uint64_t end = c->now + ms;

	while (!c->closing && c->now < end) {
		nap(c, end - c->now < TICK_MS ? end - c->now : TICK_MS);
		plain_wake(c);
	}
}

static void come_back(struct conn *c, uint64_t *pause)
{
	uint64_t lost = c->now;
	bool first = true;

	if (c->answered)
		*pause = FIRST_PAUSE_MS;
	while (!c->closing) {
		pause_for(c, *pause);
		*pause = *pause * 2 < LONGEST_PAUSE_MS ? *pause * 2 : LONGEST_PAUSE_MS;
		if (c->closing || !reconnect(c, first)) {
			first = false;
			continue;
		}
		look_at_clock(c);
		ubd_device_notice(c->cfg->dev, "nbd: connected again to %s after %" PRIu64 " ms",
				  link_name(&c->cfg->address), c->now - lost);
		return;
	}
}

/* Is the server still with us? */
static void watch(struct conn *c)
{
	uint64_t silent = c->now - c->last_heard;

	if (!c->up || !c->due)
		return;
	if (c->cfg->stall_ms && silent >= c->cfg->stall_ms) {
		conn_break(c, "%u replies are due and nothing came for %" PRIu64 " s", c->due,
			   silent / 1000);
		return;
	}
	for (uint32_t i = 0; i < c->nr_slots; i++)
		if (c->slots[i].req && expired(c, c->slots[i].req)) {
			conn_break(c, "no reply to a request within %" PRIu64 " s",
				   c->cfg->timeout_ms / 1000);
			return;
		}
}

static void manage(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;
	uint64_t pause = FIRST_PAUSE_MS;

	(void)q;
	while (!c->closing) {
		rise(c);
		while (c->up) {
			nap(c, c->due ? TICK_MS : 0);
			watch(c);
		}
		bury(c);
		come_back(c, &pause);
	}
	/* Connected at the last moment. */
	link_close(&c->link);
}

/* ---- Requests ------------------------------------------------------------------------------ */

int conn_wait(struct conn *c, struct req *r)
{
	if (expired(c, r))
		return -ETIMEDOUT;
	ubd_cond_wait(c->q, &c->room, NULL);
	return 0;
}

static int carry_out(struct conn *c, struct req *r)
{
	int ret;

	start_clock(c);
	r->born = c->now;
	do {
		while (!c->up) {
			ret = conn_wait(c, r);
			if (ret)
				return ret;
		}
		ret = c->link.h ? tls_send(c, r) : plain_send(c, r);
		if (ret)
			return ret;
		/* The server may answer before it has taken all of the data. */
		while (r->state == REQ_SENT || r->streaming)
			ubd_cond_wait(c->q, &r->cond, NULL);
		if (r->state == REQ_ARRIVED)
			return plain_fetch(c, r);
	} while (r->state == REQ_LOST);
	return r->result;
}

static void carry_foreign(struct ubd_queue *q, void *arg)
{
	struct req *r = arg;
	struct conn *c = r->conn;
	int ret = carry_out(c, r);

	ubd_mutex_lock(q, &c->lock);
	r->result = ret;
	r->finished = true;
	if (!--c->foreign)
		ubd_cond_wake_all(q, &c->gone);
	ubd_cond_wake_one(q, &r->finish);
	ubd_mutex_unlock(q, &c->lock);
}

static void receive_mail(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;

	ubd_mutex_lock(q, &c->lock);
	while (c->inbox || !c->shut) {
		struct req *r = c->inbox;

		if (!r) {
			ubd_cond_wait(q, &c->mail, &c->lock);
			continue;
		}
		c->inbox = r->next;
		ubd_mutex_unlock(q, &c->lock);
		/* Out of memory: one after the other, then. */
		if (ubd_spawn(q, carry_foreign, r))
			carry_foreign(q, r);
		ubd_mutex_lock(q, &c->lock);
	}
	ubd_mutex_unlock(q, &c->lock);
}

int conn_request(struct conn *c, struct ubd_queue *q, struct req *r)
{
	r->conn = c;
	if (conn_is_home(c, q))
		return carry_out(c, r);
	ubd_mutex_lock(q, &c->lock);
	if (c->shut || !c->started) {
		ubd_mutex_unlock(q, &c->lock);
		return -ENODEV;
	}
	c->foreign++;
	/* The order does not matter: NBD has none. */
	r->next = c->inbox;
	c->inbox = r;
	ubd_cond_wake_one(q, &c->mail);
	while (!r->finished)
		ubd_cond_wait(q, &r->finish, &c->lock);
	ubd_mutex_unlock(q, &c->lock);
	return r->result;
}

/* ---- Start and end ------------------------------------------------------------------------- */

/* Locked: memory reclaim may depend on this disk. */
static int get_buffers(struct conn *c)
{
	uint8_t *map = mmap(NULL, 4 * CONN_BUFFER, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (map == MAP_FAILED)
		return -errno;
	mlock2(map, 4 * CONN_BUFFER, MLOCK_ONFAULT);
	for (int i = 0; i < 2; i++) {
		c->out[i].buf = map + i * CONN_BUFFER;
		c->in[i].buf = map + (2 + i) * CONN_BUFFER;
	}
	return 0;
}

void conn_init(struct conn *c, const struct conn_config *cfg, unsigned index)
{
	*c = (struct conn){.cfg = cfg, .index = index, .link.fd = -1, .timer = -1};
}

bool conn_is_home(const struct conn *c, const struct ubd_queue *q)
{
	return ubd_queue_index(q) == c->index % ubd_device_queues(c->cfg->dev);
}

int conn_start(struct conn *c, struct ubd_queue *q)
{
	int ret;

	c->free_slot = NO_SLOT;
	c->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	ret = c->timer < 0 ? -errno : get_buffers(c);
	c->q = q;
	look_at_clock(c);
	c->down_since = c->now;
	if (!ret)
		ret = ubd_spawn(q, manage, c);
	if (!ret)
		ret = ubd_spawn(q, receive_mail, c);
	ubd_mutex_lock(q, &c->lock);
	c->started = !ret;
	ubd_mutex_unlock(q, &c->lock);
	return ret;
}

void conn_stop(struct conn *c)
{
	struct ubd_queue *q = c->q;

	ubd_mutex_lock(q, &c->lock);
	c->shut = true;
	while (c->foreign)
		ubd_cond_wait(q, &c->gone, &c->lock);
	ubd_cond_wake_all(q, &c->mail);
	ubd_mutex_unlock(q, &c->lock);
	__atomic_store_n(&c->closing, true, __ATOMIC_RELAXED);
	if (c->up)
		plain_say_goodbye(c);
	conn_break(c, "closed");
	kick(c);
}

void conn_free(struct conn *c)
{
	if (c->out[0].buf)
		munmap(c->out[0].buf, 4 * CONN_BUFFER);
	if (c->timer >= 0)
		close(c->timer);
	free(c->slots);
	link_close(&c->link);
}
