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
#include "conn.h"

#include <inttypes.h>

#define TICK_NS 250000000
#define FIRST_PAUSE_MS 20
#define LONGEST_PAUSE_MS 5000

/* ---- Time ---------------------------------------------------------------------------------- */

static bool expired(const struct conn *c, const struct req *r)
{
	uint64_t limit = c->nbd->timeout * 1000, now = link_now();

	return (!c->up && (c->closing || ubd_queue_stopping(c->q))) ||
	       (limit && (now - r->born >= limit || (!c->up && now - c->down_since >= limit)));
}

/* Replies are due and nothing comes. A payload that comes slowly is heard of when it is whole; that
 * it comes, TCP knows. */
static bool stalled(const struct conn *c)
{
	uint64_t stall = c->nbd->stall * 1000;

	return stall && c->up && c->requests && link_now() - c->last_heard >= stall &&
	       link_silence(&c->link) >= stall;
}

/* Is the server still with us? */
static void tick(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;

	while (c->requests) {
		ubd_sleep(q, TICK_NS);
		if (stalled(c))
			conn_break(c, "replies are due, but nothing came for too long (--stall)");
		for (unsigned i = 0; c->up && i < ubd_device_depth(c->nbd->dev); i++)
			if (c->due[i] && expired(c, c->due[i]))
				conn_break(c, "no reply to a request for too long (--timeout)");
		ubd_cond_wake_all(q, &c->change);
	}
	c->ticking = false;
}

/* ---- Who is due ---------------------------------------------------------------------------- */

void conn_expect(struct conn *c, struct req *r)
{
	r->on.cookie = c->serial++ << 16 | r->io->tag;
	r->result = REQ_DUE;
	c->due[r->io->tag] = r;
}

void conn_settle(struct conn *c, struct req *r, int result)
{
	c->due[r->io->tag] = NULL;
	r->result = result;
	ubd_cond_wake_one(c->q, &r->settled);
}

void conn_heard(struct conn *c)
{
	c->last_heard = link_now();
	c->pause = FIRST_PAUSE_MS;
}

void conn_begin_turn(struct conn *c)
{
	c->senders++;
	ubd_mutex_lock(c->q, &c->turn);
}

void conn_end_turn(struct conn *c)
{
	ubd_mutex_unlock(c->q, &c->turn);
	c->senders--;
}

/* ---- Loss and return ----------------------------------------------------------------------- */

void conn_break(struct conn *c, const char *why)
{
	if (!c->up)
		return;
	c->up = false;
	c->down_since = link_now();
	if (!c->closing)
		ubd_device_notice(c->nbd->dev, "nbd: connection %u to %s lost: %s",
				  (unsigned)(c - c->nbd->conns), c->nbd->address.name, why);
	link_cut(&c->link, !c->closing);
}

/* Give it up, with all that it still owed. */
static void bury(struct conn *c)
{
	conn_begin_turn(c);
	link_close(&c->link);
	for (unsigned i = 0; i < ubd_device_depth(c->nbd->dev); i++)
		if (c->due[i])
			conn_settle(c, c->due[i], REQ_LOST);
	for (; c->first; c->first = c->first->next)
		conn_settle(c, c->first, REQ_LOST);
	c->in_pos = c->in_len = 0;
	c->large = false;
	conn_end_turn(c);
}

/*
 * What the disk promises its users, the export must still be able to do. One whose server had no
 * cache is not flushed, nor written through.
 */
const char *conn_misfit(const struct link_export *disk, const struct link_export *now)
{
	if (now->size < __atomic_load_n(&disk->size, __ATOMIC_RELAXED))
		return "the export is smaller than the disk";
	if (now->can & ~disk->can & LINK_READ_ONLY)
		return "the export is read-only now";
	if (now->can & (LINK_FLUSH | LINK_FUA) &&
	    !(disk->can & (LINK_FLUSH | LINK_FUA | LINK_READ_ONLY)))
		return "the export has to be flushed now";
	if (disk->can & ~now->can & LINK_PROMISES)
		return "the export cannot flush, trim, zero or be shared as it could";
	if (now->min > disk->min || (now->max && now->max < disk->max))
		return "the export's block sizes have changed";
	return NULL;
}

/*
 * An export that grew makes the disk grow, where the driver can, as soon as all connections know.
 * Apart from the connection: the driver may first wait for the disk's requests.
 */
static void follow_size(struct ubd_queue *q, void *arg)
{
	struct nbd *n = arg;
	uint64_t size = UINT64_MAX;
	int ret;

	ubd_mutex_lock(q, &n->resizing);
	for (unsigned i = 0; i < n->nr_conns; i++) {
		uint64_t known = __atomic_load_n(&n->conns[i].size, __ATOMIC_SEQ_CST);

		size = MIN(size, known);
	}
	size &= ~(uint64_t)(n->disk.min - 1);
	ret = size > n->disk.size ? ubd_device_resize(q, size) : 0;
	if (ret)
		ubd_device_notice(n->dev,
				  "nbd: the export has grown to %" PRIu64
				  " bytes; the disk stays at %" PRIu64 ": %s",
				  size, n->disk.size, strerror(-ret));
	else if (size > n->disk.size)
		__atomic_store_n(&n->disk.size, size, __ATOMIC_RELAXED);
	ubd_mutex_unlock(q, &n->resizing);
}

static int try_link(void *arg)
{
	struct conn *c = arg;

	return link_open(&c->link, &c->nbd->address, &c->closing);
}

/* Once. Says why not, the first time of an outage. */
static bool reconnect(struct conn *c, bool first)
{
	int ret = ubd_offload(c->q, try_link, c);
	const char *why = ret ? c->link.why : conn_misfit(&c->nbd->disk, &c->link.export);

	if (!why) {
		__atomic_store_n(&c->size, c->link.export.size, __ATOMIC_SEQ_CST);
		/* Without memory for that the disk grows another time. */
		ubd_spawn(c->q, follow_size, c->nbd);
		ubd_device_notice(c->nbd->dev, "nbd: connected again to %s after %" PRIu64 " ms",
				  c->nbd->address.name, link_now() - c->down_since);
		return true;
	}
	if (first && !c->closing)
		ubd_device_notice(c->nbd->dev, "nbd: cannot connect again to %s yet: %s",
				  c->nbd->address.name, why);
	link_close(&c->link);
	return false;
}

static void run(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;

	for (bool there = true; !c->closing;) {
		if (there) {
			c->last_heard = link_now();
			c->up = true;
			c->over = false;
			ubd_cond_wake_all(q, &c->change);
			(c->link.tls ? tls_receive : plain_receive)(c);
			bury(c);
		}
		for (uint64_t end = link_now() + c->pause; link_now() < end && !c->closing;)
			ubd_sleep(q, FIRST_PAUSE_MS * 1000000);
		c->pause = MIN(c->pause * 2, LONGEST_PAUSE_MS);
		there = !c->closing && reconnect(c, there);
	}
	/* Connected at the last moment. */
	link_close(&c->link);
}

/* ---- Requests ------------------------------------------------------------------------------ */

int conn_request(struct conn *c, struct req *r)
{
	r->conn = c;
	r->born = link_now();
	if (!c->requests++)
		c->last_heard = r->born;
	c->ticking = c->ticking || !ubd_spawn(c->q, tick, c);
	do {
		while (!c->up && !expired(c, r))
			ubd_cond_wait(c->q, &c->change, NULL);
		r->result = c->up ? REQ_LOST : -ETIMEDOUT;
		if (c->up)
			(c->link.tls ? tls_send : plain_send)(c, r);
		while (r->result == REQ_DUE)
			ubd_cond_wait(c->q, &r->settled, NULL);
	} while (r->result == REQ_LOST);
	c->requests--;
	/*
	 * The server may not be done with what a lost connection brought it, and nothing stops it.
	 * So nobody is told of a write that was sent twice, and writes there anew, before it is.
	 */
	for (uint64_t now, end = c->down_since + c->nbd->linger * 1000;
	     r->on.cmd && r->born <= c->down_since && (now = link_now()) < end;)
		ubd_sleep(c->q, (end - now) * 1000000);
	return r->result;
}

/* ---- Start and end ------------------------------------------------------------------------- */

int conn_start(struct conn *c, struct nbd *n, struct ubd_queue *q)
{
	c->nbd = n;
	c->q = q;
	c->pause = FIRST_PAUSE_MS;
	/* Before the first request: it is none that a loss delays. */
	c->down_since = link_now() - 1;
	return ubd_spawn(q, run, c);
}

void conn_stop(struct conn *c)
{
	__atomic_store_n(&c->closing, true, __ATOMIC_RELAXED);
	conn_break(c, "closed");
}
