/* SPDX-License-Identifier: MIT */
/*
 * Transmission through libnbd, which has the session's keys. Its calls never block: we wait for the
 * socket on its behalf. Data is always in memory.
 */
#include "conn.h"

#include <errno.h>
#include <libnbd.h>
#include <poll.h>

/* Called by libnbd from within the calls below, or when it gives up. */
static int completed(void *user, int *error)
{
	struct req *r = user;

	/* No answers: the request stays due until the connection is buried. */
	r->conn->over |= *error == ESHUTDOWN;
	if (*error == ENOTCONN || *error == ESHUTDOWN)
		return 1;
	conn_heard(r->conn);
	conn_settle(r->conn, r, -*error);
	return 1;
}

static int64_t issue(struct nbd_handle *h, struct req *r)
{
	nbd_completion_callback done = {.callback = completed, .user_data = r};
	const struct nbd_request *n = &r->on;
	void *data = n->cmd <= NBD_CMD_WRITE ? ubd_io_data(r->io) : NULL;

	switch (n->cmd) {
	case NBD_CMD_READ:
		return data ? nbd_aio_pread(h, data, n->length, n->offset, done, n->flags) : -1;
	case NBD_CMD_WRITE:
		return data ? nbd_aio_pwrite(h, data, n->length, n->offset, done, n->flags) : -1;
	case NBD_CMD_FLUSH:
		return nbd_aio_flush(h, done, n->flags);
	case NBD_CMD_TRIM:
		return nbd_aio_trim(h, n->length, n->offset, done, n->flags);
	default:
		return nbd_aio_zero(h, n->length, n->offset, done, n->flags);
	}
}

/* libnbd may find that out in any call, those that succeed included. */
static bool check(struct conn *c, int ret)
{
	struct nbd_handle *h = c->link.h;

	if (ret < 0 || c->over || nbd_aio_is_dead(h) || nbd_aio_is_closed(h))
		conn_break(c, c->over ? "the server is shutting down" : link_error());
	return c->up;
}

static bool wants(const struct conn *c, unsigned direction)
{
	return c->up && nbd_aio_get_direction(c->link.h) & direction;
}

/* What did not go out at once, of whoever it is. Counted among the senders before it begins. */
static void write_rest(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;

	ubd_mutex_lock(q, &c->turn);
	while (wants(c, LIBNBD_AIO_DIRECTION_WRITE))
		if (ubd_poll(q, c->link.fd, POLLOUT) && wants(c, LIBNBD_AIO_DIRECTION_WRITE))
			check(c, nbd_aio_notify_write(c->link.h));
	conn_end_turn(c);
}

void tls_send(struct conn *c, struct req *r)
{
	bool refused;

	conn_expect(c, r);
	/* A request refused is failed here; one that is lost comes back when the connection is
	 * buried. */
	refused = issue(c->link.h, r) < 0;
	if (check(c, 0) && refused)
		conn_settle(c, r, nbd_get_errno() ? -nbd_get_errno() : -EIO);
	if (c->senders || !wants(c, LIBNBD_AIO_DIRECTION_WRITE))
		return;
	/* Not here: while there is always more, this request would never end. */
	c->senders++;
	if (ubd_spawn(c->q, write_rest, c))
		write_rest(c->q, c);
}

void tls_receive(struct conn *c)
{
	struct nbd_handle *h = c->link.h;

	while (c->up) {
		/* What libnbd held back while it was in the middle of a reply has no sender. */
		bool write = !c->senders && wants(c, LIBNBD_AIO_DIRECTION_WRITE);
		int events = ubd_poll(c->q, c->link.fd, (short)(POLLIN | (write ? POLLOUT : 0)));

		if (events == POLLOUT && wants(c, LIBNBD_AIO_DIRECTION_WRITE))
			check(c, nbd_aio_notify_write(h));
		else
			check(c, wants(c, LIBNBD_AIO_DIRECTION_READ) ? nbd_aio_notify_read(h) : 0);
	}
}
