/* SPDX-License-Identifier: MIT */
/*
 * Transmission on our own socket.
 *
 * Small things travel in company: requests write themselves, data included, into one of two
 * buffers while the other is being sent; replies are received many at once into one of two buffers,
 * and the requests take their data out while the other is being filled. So the cost of a system
 * call is shared by as many requests as are under way. Large payloads travel alone, straight
 * between socket and request, without a copy where the driver allows.
 */
#define _GNU_SOURCE
#include "conn.h"

#include <errno.h>
#include <sys/socket.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

static const char *cause(ssize_t ret)
{
	return ret < 0 ? strerror((int)-ret) : "the server closed it";
}

static bool is_large(const struct req *r)
{
	return r->length >= CONN_LARGE;
}

/* ---- A request's data ---------------------------------------------------------------------- */

static int copy_in(struct req *r, uint32_t at, const void *from, uint32_t len)
{
	if (!r->mem)
		return ubd_io_put(r->io, at, from, len);
	memcpy((char *)r->mem + at, from, len);
	return (int)len;
}

static int copy_out(struct req *r, void *to)
{
	if (!r->mem)
		return ubd_io_get(r->io, 0, to, r->length);
	memcpy(to, r->mem, r->length);
	return (int)r->length;
}

/* The rest of the payload, from byte `at` on, straight between request and socket. */
static int stream(struct conn *c, struct req *r, uint32_t at)
{
	const struct ubd_transfer t = {
		.where = UBD_SOCKET,
		.fd = c->link.fd,
		.at = at,
		.len = r->length - at,
	};
	ssize_t ret;

	if (!r->mem)
		return ubd_io_transfer(r->io, &t, 1);
	if (r->cmd == NBD_CMD_WRITE)
		ret = ubd_send(c->q, t.fd, (char *)r->mem + at, t.len, 0);
	else
		ret = ubd_recv(c->q, t.fd, (char *)r->mem + at, t.len);
	return ret < 0 ? (int)ret : ret < t.len ? -EPIPE : (int)ret;
}

/* ---- Sending ------------------------------------------------------------------------------- */

static bool has_room(const struct conn *c, uint32_t bytes)
{
	const struct conn_out *o = &c->out[c->filling];

	return !o->tail && o->used + bytes <= CONN_BUFFER;
}

int plain_send(struct conn *c, struct req *r)
{
	bool write = r->cmd == NBD_CMD_WRITE, alone = write && is_large(r);
	uint32_t data = write && !alone ? r->length : 0;
	struct conn_out *o;
	int ret;

	while (!c->up || !has_room(c, NBD_REQUEST_SIZE + data)) {
		ret = conn_wait(c, r);
		if (ret)
			return ret;
	}
	ret = conn_expect(c, r);
	if (ret)
		return ret;
	o = &c->out[c->filling];
	nbd_request_put(o->buf + o->used, r->flags, r->cmd, conn_cookie(c, r), r->offset,
			r->length);
	o->used += NBD_REQUEST_SIZE;
	if (alone) {
		o->tail = r;
		r->streaming = true;
	}
	ubd_cond_wake_one(c->q, &c->work);
	if (data) {
		uint8_t *to = o->buf + o->used;

		o->used += data;
		o->fillers++;
		c->busy++;
		ret = copy_out(r, to);
		/* The header is on its way: what follows it must be the data or nothing. */
		if (ret < 0)
			conn_break(c, "cannot read a request's data: %s", strerror(-ret));
		if (!--o->fillers)
			ubd_cond_wake_one(c->q, &c->filled);
		conn_unuse(c);
	}
	if (!alone)
		ubd_cond_wake_one(c->q, &c->room);
	return 0;
}

void plain_forget(struct conn *c, struct conn_out *o)
{
	struct req *r = o->tail;

	o->used = 0;
	o->tail = NULL;
	if (r) {
		r->streaming = false;
		ubd_cond_wake_one(c->q, &r->cond);
	}
}

/* Everything in the buffer, and the payload that follows it. */
static int flush_out(struct conn *c, struct conn_out *o)
{
	int more = o->tail ? MSG_MORE : 0, fd = c->link.fd;
	/* There is nearly always room for all of it: then this is cheaper than by the ring, whose
	 * completion would wake us up for nothing. Errors come again below. */
	ssize_t ret = send(fd, o->buf, o->used, MSG_DONTWAIT | MSG_NOSIGNAL | more);
	uint32_t sent = ret > 0 ? (uint32_t)ret : 0;

	if (sent < o->used)
		ret = ubd_send(c->q, fd, o->buf + sent, o->used - sent, more);
	if (ret >= 0 && o->tail)
		ret = stream(c, o->tail, 0);
	plain_forget(c, o);
	return ret < 0 ? (int)ret : 0;
}

static void sender(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;

	while (c->up) {
		struct conn_out *o = &c->out[c->filling];
		int ret;

		if (!o->used) {
			ubd_cond_wait(q, &c->work, NULL);
			continue;
		}
		c->filling ^= 1;
		ubd_cond_wake_one(q, &c->room);
		while (o->fillers)
			ubd_cond_wait(q, &c->filled, NULL);
		if (!c->up)
			break;
		ret = flush_out(c, o);
		if (ret)
			conn_break(c, "%s", cause(ret));
	}
	conn_unuse(c);
}

/* ---- Receiving ----------------------------------------------------------------------------- */

int plain_fetch(struct conn *c, struct req *r)
{
	struct conn_in *in = &c->in[r->from];
	int ret = copy_in(r, 0, r->data, r->length);

	if (!--in->users)
		ubd_cond_wake_one(c->q, &c->drained);
	conn_unuse(c);
	return ret < 0 ? ret : 0;
}

/* Part of a large payload may be in the buffer already; the rest is still to come. */
static int receive_large(struct conn *c, struct req *r)
{
	struct conn_in *in = &c->in[c->reading];
	uint32_t here = MIN(c->in_len - c->in_pos, r->length);
	int ret = 0;

	if (here)
		ret = copy_in(r, 0, in->buf + c->in_pos, here);
	c->in_pos += here;
	if (ret >= 0 && here < r->length)
		ret = stream(c, r, here);
	if (ret < 0)
		return ret;
	conn_settle(c, r, REQ_DONE, 0);
	return 0;
}

/* One reply, if it is there. 1: it was; 0: more has to come first; or -errno. */
static int take_reply(struct conn *c)
{
	struct conn_in *in = &c->in[c->reading];
	uint32_t have = c->in_len - c->in_pos;
	const uint8_t *p = in->buf + c->in_pos;
	struct nbd_reply reply;
	struct req *r;
	int ret;

	if (have < NBD_REPLY_SIZE)
		return 0;
	ret = nbd_reply_get(p, &reply);
	if (ret) {
		conn_break(c, "the server sent something that is not a reply");
		return ret;
	}
	r = conn_find(c, reply.cookie);
	if (!r) {
		conn_break(c, "the server answered a request that is not due");
		return -EPROTO;
	}
	if (reply.error == NBD_ESHUTDOWN) {
		conn_break(c, "the server is shutting down");
		return -ESHUTDOWN;
	}
	if (reply.error || r->cmd != NBD_CMD_READ) {
		c->in_pos += NBD_REPLY_SIZE;
		conn_settle(c, r, REQ_DONE, nbd_errno(reply.error));
		return 1;
	}
	c->last_large = is_large(r);
	if (c->last_large) {
		c->in_pos += NBD_REPLY_SIZE;
		ret = receive_large(c, r);
		if (ret)
			conn_break(c, "%s", cause(ret));
		return ret ? ret : 1;
	}
	if (have < NBD_REPLY_SIZE + r->length)
		return 0;
	r->data = p + NBD_REPLY_SIZE;
	r->from = c->reading;
	in->users++;
	c->busy++;
	c->in_pos += NBD_REPLY_SIZE + r->length;
	conn_settle(c, r, REQ_ARRIVED, 0);
	return 1;
}

/*
 * How much to receive at once: no more than what the small replies that are due take together, for
 * the payload of a large one is better not received into the buffer. What is there already, `have`,
 * is an incomplete one of them.
 */
static uint32_t window(const struct conn *c, uint32_t have)
{
	uint32_t room = CONN_BUFFER - have;

	if (!c->large_due && !c->last_large)
		return room;
	return MIN(room, MAX(NBD_REPLY_SIZE, c->small_due_bytes) - have);
}

static int receive_more(struct conn *c)
{
	uint32_t rest = c->in_len - c->in_pos;
	unsigned next = c->reading ^ 1;
	struct conn_in *in = &c->in[next];
	ssize_t ret;

	while (in->users)
		ubd_cond_wait(c->q, &c->drained, NULL);
	if (!c->up)
		return -ENOTCONN;
	memcpy(in->buf, c->in[c->reading].buf + c->in_pos, rest);
	c->reading = next;
	c->in_pos = 0;
	c->in_len = rest;
	ret = ubd_recv_some(c->q, c->link.fd, in->buf + rest, window(c, rest));
	if (ret <= 0) {
		conn_break(c, "%s", cause(ret));
		return ret ? (int)ret : -EPIPE;
	}
	c->in_len += (uint32_t)ret;
	conn_heard(c);
	return 0;
}

static void receiver(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;
	int ret = 0;

	(void)q;
	while (c->up && ret >= 0) {
		ret = take_reply(c);
		if (!ret)
			ret = receive_more(c);
	}
	conn_unuse(c);
}

/* ---- Start and end ------------------------------------------------------------------------- */

int plain_start(struct conn *c)
{
	int ret = ubd_spawn(c->q, sender, c);

	if (!ret)
		c->busy++;
	if (!ret)
		ret = ubd_spawn(c->q, receiver, c);
	if (!ret)
		c->busy++;
	return ret;
}

void plain_wake(struct conn *c)
{
	ubd_cond_wake_all(c->q, &c->room);
	ubd_cond_wake_all(c->q, &c->work);
	ubd_cond_wake_all(c->q, &c->filled);
	ubd_cond_wake_all(c->q, &c->drained);
}

void plain_say_goodbye(struct conn *c)
{
	uint8_t request[NBD_REQUEST_SIZE];

	nbd_request_put(request, 0, NBD_CMD_DISC, 0, 0, 0);
	send(c->link.fd, request, sizeof(request), MSG_DONTWAIT | MSG_NOSIGNAL);
}
