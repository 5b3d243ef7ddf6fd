/* SPDX-License-Identifier: MIT */
/*
 * Transfers of a WRITE by splice(2): ubd's driver puts the request's pages into a pipe at once, and
 * one of the device's helper threads empties it into the file, which may take its time. (io_uring
 * would give both to workers of its own, and make those when memory may have run out: a device that
 * memory is reclaimed through then stops.) Pipes and threads are there from the beginning.
 *
 * Where splicing cannot do it (sockets keep pages for longer than the pipe does, and of the slab
 * allocator's there are none in pipes), and when all pipes are in use, members do.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_PIPES 64u /* of a device; each has two files */

/* For one transfer at a time. */
struct splice_pipe {
	int out, in; /* to read from, to write to */
	struct splice_pipe *next;
};

static void keep(struct ubd_queue *q, struct splice_pipe *p)
{
	p->next = q->pipes;
	q->pipes = p;
}

static void discard(struct splice_pipe *p)
{
	close(p->out);
	close(p->in);
	free(p);
}

/* Room for the largest request if we may have it; a smaller pipe only takes more turns. */
static int add_pipe(struct ubd_queue *q)
{
	struct splice_pipe *p = malloc(sizeof(*p));
	int fds[2], ret = 0;

	if (!p || pipe2(fds, O_CLOEXEC)) {
		ret = p ? -errno : -ENOMEM;
		free(p);
		return ret;
	}
	fcntl(fds[1], F_SETPIPE_SZ, (int)q->dev->info.max_io_buf_bytes);
	p->out = fds[0];
	p->in = fds[1];
	keep(q, p);
	return 0;
}

int splice_open(struct ubd_queue *q)
{
	unsigned share = MAX(MAX_PIPES / q->dev->info.nr_hw_queues, 1u);
	int ret = 0;

	for (unsigned i = 0; i < MIN(q->depth, share) && !ret; i++)
		ret = add_pipe(q);
	return ret;
}

void splice_close(struct ubd_queue *q)
{
	while (q->pipes) {
		struct splice_pipe *p = q->pipes;

		q->pipes = p->next;
		discard(p);
	}
}

/* Request to pipe. Bytes, maybe fewer, or -errno. */
static int fill(const struct tag *t, const struct splice_pipe *p, uint32_t at, uint32_t len)
{
	struct ubd_queue *q = t->io.queue;
	off64_t pos = (off64_t)transfer_char_offset(t, at);
	int err = queue_fault(q);
	ssize_t n;

	if (err)
		return err;
	do
		n = splice(q->dev->char_fd, &pos, p->in, NULL, len, 0);
	while (n < 0 && errno == EINTR);
	return n > 0 ? (int)n : n < 0 ? -errno : -EIO;
}

struct drain {
	int out, fd;
	off64_t pos;
	size_t left;
	bool sync;
};

/* Pipe to file, all of it; then durably. On a helper thread: 0 or -errno. */
static int drain(void *arg)
{
	struct drain *d = arg;

	while (d->left) {
		ssize_t n = splice(d->out, NULL, d->fd, &d->pos, d->left, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		d->left -= (size_t)n;
	}
	return d->sync && fdatasync(d->fd) ? -errno : 0;
}

/* 0 or -errno; after an error there may be something left in the pipe. */
static int splice_one(struct tag *t, const struct splice_pipe *p, const struct ubd_transfer *x)
{
	struct ubd_queue *q = t->io.queue;
	uint32_t done = 0;
	int ret, n;

	while (done < x->len) {
		n = fill(t, p, x->at + done, x->len - done);
		/* A pipe cannot hold them. */
		if (n == -EOPNOTSUPP) {
			struct ubd_transfer rest = *x;

			rest.at += done;
			rest.pos += done;
			rest.len -= done;
			return member_run(t, &rest, 1);
		}
		if (n < 0)
			return n;
		/* A pipe knows no durable writes. */
		ret = ubd_offload(q, drain,
				  &(struct drain){.out = p->out,
						  .fd = x->fd,
						  .pos = (off64_t)x->pos + done,
						  .left = (size_t)n,
						  .sync = x->flags & UBD_XFER_FUA});
		if (ret)
			return ret;
		stat_add(&q->stats.bytes_moved, (unsigned)n);
		done += (unsigned)n;
	}
	return 0;
}

int splice_run(struct tag *t, const struct ubd_transfer *x, unsigned n)
{
	struct ubd_queue *q = t->io.queue;
	struct splice_pipe *p;
	int ret = 0;

	for (; n && !ret; n--, x++) {
		p = x->where == UBD_FILE && x->len ? q->pipes : NULL;
		if (!p) {
			ret = member_run(t, x, 1);
			continue;
		}
		q->pipes = p->next;
		ret = splice_one(t, p, x);
		if (!ret) {
			keep(q, p);
			continue;
		}
		/* What may be left in it holds the request. */
		discard(p);
		add_pipe(q);
	}
	return ret;
}
