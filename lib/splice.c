/* SPDX-License-Identifier: MIT */
/*
 * Transfers of a WRITE by splice(2): ubd's driver puts the request's pages into a pipe, and the
 * pipe is emptied into the file. io_uring's workers do both, since splicing may wait.
 *
 * Where splicing cannot do it (sockets keep pages for longer than the pipe does), and when there
 * are no pipes to be had, members do.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* For one transfer at a time. */
struct splice_pipe {
	int out, in; /* to read from, to write to */
	struct splice_pipe *next;
};

static void pipe_free(struct splice_pipe *p)
{
	close(p->out);
	close(p->in);
	free(p);
}

/* Room for the largest request if we may have it; a smaller pipe only takes more turns. */
static struct splice_pipe *pipe_get(struct ubd_queue *q)
{
	struct splice_pipe *p = q->pipes;
	int fds[2];

	if (p) {
		q->pipes = p->next;
		return p;
	}
	p = malloc(sizeof(*p));
	if (p && pipe2(fds, O_CLOEXEC)) {
		free(p);
		p = NULL;
	}
	if (!p)
		return NULL;
	fcntl(fds[1], F_SETPIPE_SZ, (int)q->dev->info.max_io_buf_bytes);
	*p = (struct splice_pipe){.out = fds[0], .in = fds[1]};
	return p;
}

/* What is left in a pipe holds its request: such a pipe is not kept. */
static void pipe_put(struct ubd_queue *q, struct splice_pipe *p, bool empty)
{
	if (!empty) {
		pipe_free(p);
		return;
	}
	p->next = q->pipes;
	q->pipes = p;
}

void splice_close(struct ubd_queue *q)
{
	while (q->pipes) {
		struct splice_pipe *p = q->pipes;

		q->pipes = p->next;
		pipe_free(p);
	}
}

/* Request to pipe. */
static int fill(struct tag *t, const struct splice_pipe *p, uint32_t at, uint32_t len)
{
	struct ubd_queue *q = t->io.queue;
	struct io_uring_sqe *sqe = queue_sqe(q);

	sqe->opcode = IORING_OP_SPLICE;
	sqe->fd = p->in;
	sqe->off = UINT64_MAX;
	sqe->splice_fd_in = 0;
	sqe->splice_off_in = transfer_char_offset(t, at);
	sqe->splice_flags = SPLICE_F_FD_IN_FIXED;
	sqe->len = len;
	return await_sqe(q, sqe);
}

/* Pipe to file. */
static int drain(struct ubd_queue *q, const struct splice_pipe *p, int fd, uint64_t pos,
		 uint32_t len)
{
	struct io_uring_sqe *sqe = queue_sqe(q);

	sqe->opcode = IORING_OP_SPLICE;
	queue_sqe_fd(q, sqe, fd);
	sqe->off = pos;
	sqe->splice_fd_in = p->out;
	sqe->splice_off_in = UINT64_MAX;
	sqe->len = len;
	return await_sqe(q, sqe);
}

/* A step may be short, and is done again when it was interrupted. Bytes of the first, or -errno. */
static int one_turn(struct tag *t, const struct splice_pipe *p, const struct ubd_transfer *x,
		    uint32_t done)
{
	struct ubd_queue *q = t->io.queue;
	int in, out;

	do
		in = fill(t, p, x->at + done, x->len - done);
	while (in == -EINTR || in == -EAGAIN);
	if (in <= 0)
		return in ? in : -EIO;
	for (int gone = 0; gone < in; gone += out) {
		do
			out = drain(q, p, x->fd, x->pos + done + (unsigned)gone,
				    (unsigned)(in - gone));
		while (out == -EINTR || out == -EAGAIN);
		if (out <= 0)
			return out ? out : -EIO;
		stat_add(&q->stats.bytes_moved, (unsigned)out);
	}
	return in;
}

static int splice_one(struct tag *t, struct splice_pipe *p, const struct ubd_transfer *x)
{
	int ret = 0;

	for (uint32_t done = 0; done < x->len; done += (unsigned)ret) {
		ret = one_turn(t, p, x, done);
		if (ret < 0)
			return ret;
	}
	/* A pipe knows no durable writes. */
	return x->flags & UBD_XFER_FUA ? ubd_fsync(t->io.queue, x->fd, true) : 0;
}

int splice_run(struct tag *t, const struct ubd_transfer *x, unsigned n)
{
	struct ubd_queue *q = t->io.queue;
	struct splice_pipe *p;
	int ret = 0;

	for (; n && !ret; n--, x++) {
		p = x->where == UBD_FILE && x->len ? pipe_get(q) : NULL;
		if (!p) {
			ret = member_run(t, x, 1);
			continue;
		}
		ret = splice_one(t, p, x);
		pipe_put(q, p, !ret);
	}
	return ret;
}
