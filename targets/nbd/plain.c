/* SPDX-License-Identifier: MIT */
/*
 * Transmission on our own socket.
 *
 * Small things travel in company: the first request of a round sends all that came in it, data
 * included, from one buffer; replies are received many at once. So the cost of
 * a system call is shared by as many requests as are under way. Large payloads travel alone,
 * straight between socket and request, without a copy where the driver allows.
 */
#define _GNU_SOURCE
#include "conn.h"

#include <errno.h>
#include <sys/socket.h>

/* The payload of a large request, from byte `at` on. -errno when it failed. */
static int stream(struct conn *c, struct req *r, uint32_t at)
{
	const struct ubd_transfer t = {
		.where = UBD_SOCKET, .fd = c->link.fd, .at = at, .len = r->on.length - at};

	return ubd_io_transfer(r->io, &t, 1);
}

/* ---- Sending ------------------------------------------------------------------------------- */

/* A request into the buffer, its data included if that is small: there is room. */
static void append(struct conn *c, struct req *r)
{
	uint32_t data = r->on.cmd == NBD_CMD_WRITE && r->on.length < CONN_LARGE ? r->on.length : 0;
	uint8_t *p = c->out + c->filled;
	int ret = data ? ubd_io_get(r->io, 0, p + NBD_REQUEST_SIZE, data) : 0;

	conn_expect(c, r);
	if (ret < 0) {
		conn_settle(c, r, ret);
		return;
	}
	nbd_request_put(p, &r->on);
	c->filled += NBD_REQUEST_SIZE + data;
}

static int send_buffer(struct conn *c, int more)
{
	for (uint32_t sent = 0; sent < c->filled;) {
		const uint8_t *p = c->out + sent;
		size_t len = c->filled - sent;
		/* There is nearly always room for all of it: then this is cheaper than by the ring,
		 * whose completion would wake us up for nothing. Errors come again there. */
		ssize_t ret = send(c->link.fd, p, len, MSG_DONTWAIT | MSG_NOSIGNAL | more);

		if (ret <= 0)
			ret = ubd_send(c->q, c->link.fd, p, len, more);
		if (ret < 0)
			return (int)ret;
		sent += (uint32_t)ret;
	}
	return 0;
}

/* Send those that wait, as many as the buffer holds, and this large one. Who comes meanwhile is
 * the next sender's. */
static void send_some(struct conn *c, struct req *large)
{
	int ret;

	conn_begin_turn(c);
	/* Whoever comes in the same round comes along. */
	if (!large)
		ubd_yield(c->q);
	for (c->filled = 0; c->up && c->first && c->filled < CONN_BUFFER; c->first = c->first->next)
		append(c, c->first);
	if (c->up && large)
		append(c, large);
	ret = c->up ? send_buffer(c, large ? MSG_MORE : 0) : -ENOTCONN;
	if (!ret && large)
		ret = stream(c, large, 0);
	if (ret < 0)
		conn_break(c, strerror(-ret));
	conn_end_turn(c);
}

/* What came in while the last sender sent. */
static void send_rest(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;

	(void)q;
	while (c->up && c->first && !c->senders)
		send_some(c, NULL);
}

void plain_send(struct conn *c, struct req *r)
{
	bool large = r->on.cmd == NBD_CMD_WRITE && r->on.length >= CONN_LARGE;

	if (!large) {
		r->result = REQ_DUE;
		r->next = NULL;
		*(c->first ? &c->last->next : &c->first) = r;
		c->last = r;
		if (c->senders)
			return;
	}
	send_some(c, large ? r : NULL);
	/* Not here: while there is always more, this request would never end. */
	if (c->first && ubd_spawn(c->q, send_rest, c))
		send_rest(c->q, c);
}

/* ---- Receiving ----------------------------------------------------------------------------- */

/* Part of a large payload may be in the buffer already; the rest is still to come. */
static void receive_large(struct conn *c, struct req *r)
{
	uint32_t here = MIN(c->in_len - c->in_pos, r->on.length);
	int ret = here ? ubd_io_put(r->io, 0, c->in + c->in_pos, here) : 0;

	c->in_pos += here;
	if (ret >= 0 && here < r->on.length)
		ret = stream(c, r, here);
	conn_heard(c);
	if (ret < 0)
		conn_break(c, strerror(-ret));
	else
		conn_settle(c, r, 0);
}

/* One reply, if all of it is there, or all but a large payload. Returns the bytes that are not. */
static uint32_t take_reply(struct conn *c)
{
	uint32_t have = c->in_len - c->in_pos, data;
	const uint8_t *p = c->in + c->in_pos;
	struct nbd_reply reply;
	struct req *r;
	int ret;

	if (have < NBD_REPLY_SIZE)
		return NBD_REPLY_SIZE - have;
	ret = nbd_reply_get(p, &reply);
	r = c->due[(uint16_t)reply.cookie];
	if (r && r->on.cookie != reply.cookie)
		r = NULL;
	if (ret || !r || reply.error == NBD_ESHUTDOWN) {
		conn_break(c, ret  ? "the server sent something that is not a reply"
			      : !r ? "the server answered a request that is not due"
				   : "the server is shutting down");
		return 0;
	}
	data = r->on.cmd == NBD_CMD_READ && !reply.error ? r->on.length : 0;
	if (r->on.cmd == NBD_CMD_READ)
		c->large = r->on.length >= CONN_LARGE;
	if (data && c->large) {
		c->in_pos += NBD_REPLY_SIZE;
		receive_large(c, r);
		return 0;
	}
	if (have < NBD_REPLY_SIZE + data)
		return NBD_REPLY_SIZE + data - have;
	c->in_pos += NBD_REPLY_SIZE + data;
	ret = data ? ubd_io_put(r->io, 0, p + NBD_REPLY_SIZE, data) : nbd_errno(reply.error);
	conn_settle(c, r, MIN(ret, 0));
	return 0;
}

/* At least `missing` bytes to a reply; more if replies are small: the payload of a large one is
 * better not received into the buffer. */
static void receive_more(struct conn *c, uint32_t missing)
{
	uint32_t have = c->in_len - c->in_pos;
	ssize_t ret;

	memmove(c->in, c->in + c->in_pos, have);
	c->in_pos = 0;
	c->in_len = have;
	ret = ubd_recv_some(c->q, c->link.fd, c->in + have,
			    c->large ? missing : CONN_BUFFER - have);
	if (ret <= 0) {
		conn_break(c, ret ? strerror((int)-ret) : "the server closed it");
		return;
	}
	c->in_len += (uint32_t)ret;
	conn_heard(c);
}

void plain_receive(struct conn *c)
{
	while (c->up) {
		uint32_t missing = take_reply(c);

		if (missing)
			receive_more(c, missing);
	}
}
