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

static bool lost(struct nbd_handle *h)
{
	return nbd_aio_is_dead(h) || nbd_aio_is_closed(h);
}

static void say_lost(struct conn *c)
{
	const char *text = nbd_get_error();

	conn_break(c, "%s", text ? text : "the server closed it");
}

int tls_send(struct conn *c, struct req *r)
{
	struct nbd_handle *h = c->link.h;
	int ret = conn_expect(c, r);

	if (ret)
		return ret;
	if (issue(h, r) < 0) {
		/* A connection that is gone gives the request back when it is buried. */
		if (lost(h))
			say_lost(c);
		else
			conn_settle(c, r, REQ_DONE, nbd_get_errno() ? -nbd_get_errno() : -EIO);
	}
	ubd_cond_wake_one(c->q, &c->work);
	return 0;
}

/* Sends what did not go out at once. */
static void writer(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;
	struct nbd_handle *h = c->link.h;

	while (c->up) {
		if (!(nbd_aio_get_direction(h) & LIBNBD_AIO_DIRECTION_WRITE)) {
			ubd_cond_wait(q, &c->work, NULL);
			continue;
		}
		ubd_poll(q, nbd_aio_get_fd(h), POLLOUT);
		if (c->up && nbd_aio_get_direction(h) & LIBNBD_AIO_DIRECTION_WRITE &&
		    (nbd_aio_notify_write(h) < 0 || lost(h)))
			say_lost(c);
	}
	conn_unuse(c);
}

static void reader(struct ubd_queue *q, void *arg)
{
	struct conn *c = arg;
	struct nbd_handle *h = c->link.h;

	while (c->up) {
		bool read = nbd_aio_get_direction(h) & LIBNBD_AIO_DIRECTION_READ;

		ubd_poll(q, nbd_aio_get_fd(h), read ? POLLIN : POLLOUT);
		if (c->up && nbd_aio_get_direction(h) & LIBNBD_AIO_DIRECTION_READ &&
		    (nbd_aio_notify_read(h) < 0 || lost(h)))
			say_lost(c);
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
