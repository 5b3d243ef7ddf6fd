/* SPDX-License-Identifier: MIT */
/*
 * Transmission through libnbd, which has the session's keys. Its calls never block: two coroutines
 * wait for the socket on its behalf. Data is always in memory.
 */
#include "conn.h"

#include <errno.h>
#include <libnbd.h>
#include <poll.h>

/* Called by libnbd from within the calls below, or when it gives up. */
static int completed(void *user, int *error)
{
	struct req *r = user;
	struct conn *c = r->conn;

	/* No answers: the request stays due until the connection is buried. */
	if (*error == ENOTCONN || *error == ESHUTDOWN)
		return 1;
	conn_heard(c);
	conn_settle(c, r, REQ_DONE, -*error);
	return 1;
}

static int64_t issue(struct nbd_handle *h, struct req *r)
{
	nbd_completion_callback done = {.callback = completed, .user_data = r};

	switch (r->cmd) {
	case NBD_CMD_READ:
		return nbd_aio_pread(h, r->mem, r->length, r->offset, done, r->flags);
	case NBD_CMD_WRITE:
		return nbd_aio_pwrite(h, r->mem, r->length, r->offset, done, r->flags);
	case NBD_CMD_FLUSH:
		return nbd_aio_flush(h, done, r->flags);
	case NBD_CMD_TRIM:
		return nbd_aio_trim(h, r->length, r->offset, done, r->flags);
	default:
		return nbd_aio_zero(h, r->length, r->offset, done, r->flags);
	}
}

/* libnbd may find that out in any call, those that succeed included. */
static bool check(struct conn *c, int ret)
{
	struct nbd_handle *h = c->link.h;

	if (ret < 0 || nbd_aio_is_dead(h) || nbd_aio_is_closed(h))
		conn_break(c, "%s", link_error());
	return c->up;
}

int tls_send(struct conn *c, struct req *r)
{
	int ret = conn_expect(c, r);

	if (ret)
		return ret;
	/* A request refused is failed here; one that is lost comes back when the connection is
	 * buried. */
	if (issue(c->link.h, r) < 0 && check(c, 0))
		conn_settle(c, r, REQ_DONE, nbd_get_errno() ? -nbd_get_errno() : -EIO);
	check(c, 0);
	ubd_cond_wake_one(c->q, &c->work);
	return 0;
}

static bool wants(const struct conn *c, unsigned direction)
{
	return nbd_aio_get_direction(c->link.h) & direction;
}

/* Sends what did not go out at once. */
static void writer(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;

	while (c->up) {
		if (!wants(c, LIBNBD_AIO_DIRECTION_WRITE)) {
			ubd_cond_wait(q, &c->work, NULL);
			continue;
		}
		ubd_poll(q, nbd_aio_get_fd(c->link.h), POLLOUT);
		if (c->up && wants(c, LIBNBD_AIO_DIRECTION_WRITE))
			check(c, nbd_aio_notify_write(c->link.h));
	}
	conn_unuse(c);
}

static void reader(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;

	while (c->up) {
		ubd_poll(q, nbd_aio_get_fd(c->link.h), POLLIN);
		if (c->up && wants(c, LIBNBD_AIO_DIRECTION_READ))
			check(c, nbd_aio_notify_read(c->link.h));
		else if (c->up)
			check(c, 0);
		ubd_cond_wake_one(q, &c->work);
	}
	conn_unuse(c);
}

int tls_start(struct conn *c)
{
	int ret = ubd_spawn(c->q, writer, c);

	if (!ret)
		c->busy++;
	if (!ret)
		ret = ubd_spawn(c->q, reader, c);
	if (!ret)
		c->busy++;
	return ret;
}
