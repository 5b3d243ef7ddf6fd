/* SPDX-License-Identifier: MIT */
/* The target's own I/O: one SQE, suspend, result; and loops around that for whole transfers. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/uio.h>

struct await {
	struct sink sink;
	struct coro *co;
	int res;
};

static void await_done(struct ubd_queue *q, struct sink *sink, int res)
{
	struct await *a = container_of(sink, struct await, sink);

	(void)q;
	a->res = res;
	coro_enter(a->co);
}

int await_sqe(struct ubd_queue *q, struct io_uring_sqe *sqe)
{
	struct await a = {.sink.fn = await_done, .co = queue_current(q)};

	queue_sqe_sink(q, sqe, &a.sink);
	queue_suspend(q);
	return a.res;
}

static int rw_once(struct ubd_queue *q, uint8_t opcode, int fd, uintptr_t buf, size_t len,
		   uint64_t pos, unsigned flags)
{
	struct io_uring_sqe *sqe = queue_sqe(q);

	sqe->opcode = opcode;
	queue_sqe_fd(q, sqe, fd);
	sqe->addr = buf;
	sqe->len = (uint32_t)MIN(len, (size_t)1 << 30);
	sqe->off = pos;
	sqe->rw_flags = flags & UBD_RW_FUA ? RWF_DSYNC : 0;
	return await_sqe(q, sqe);
}

/* Short counts are ordinary: go on until all is done, the end, or an error. */
static ssize_t rw_whole(struct ubd_queue *q, uint8_t opcode, int fd, uintptr_t buf, size_t len,
			uint64_t pos, unsigned flags)
{
	size_t done = 0;

	while (done < len) {
		int ret = rw_once(q, opcode, fd, buf + done, len - done, pos + done, flags);

		if (ret == -EINTR || ret == -EAGAIN)
			continue;
		if (ret < 0)
			return ret;
		if (ret == 0)
			break;
		done += (unsigned)ret;
	}
	return (ssize_t)done;
}

ssize_t ubd_pread(struct ubd_queue *q, int fd, void *buf, size_t len, uint64_t pos)
{
	return rw_whole(q, IORING_OP_READ, fd, (uintptr_t)buf, len, pos, 0);
}

ssize_t ubd_pwrite(struct ubd_queue *q, int fd, const void *buf, size_t len, uint64_t pos,
		   unsigned flags)
{
	return rw_whole(q, IORING_OP_WRITE, fd, (uintptr_t)buf, len, pos, flags);
}

int ubd_fsync(struct ubd_queue *q, int fd, bool data_only)
{
	int ret;

	do {
		struct io_uring_sqe *sqe = queue_sqe(q);

		sqe->opcode = IORING_OP_FSYNC;
		queue_sqe_fd(q, sqe, fd);
		sqe->fsync_flags = data_only ? IORING_FSYNC_DATASYNC : 0;
		ret = await_sqe(q, sqe);
	} while (ret == -EINTR || ret == -EAGAIN);
	return ret;
}

int ubd_fallocate(struct ubd_queue *q, int fd, int mode, uint64_t pos, uint64_t len)
{
	int ret;

	do {
		struct io_uring_sqe *sqe = queue_sqe(q);

		sqe->opcode = IORING_OP_FALLOCATE;
		queue_sqe_fd(q, sqe, fd);
		sqe->off = pos;
		sqe->len = (uint32_t)mode;
		sqe->addr = len;
		ret = await_sqe(q, sqe);
	} while (ret == -EINTR || ret == -EAGAIN);
	return ret;
}

static int socket_once(struct ubd_queue *q, uint8_t opcode, int fd, uintptr_t buf, size_t len,
		       int msg_flags)
{
	struct io_uring_sqe *sqe = queue_sqe(q);

	sqe->opcode = opcode;
	queue_sqe_fd(q, sqe, fd);
	sqe->addr = buf;
	sqe->len = (uint32_t)MIN(len, (size_t)1 << 30);
	sqe->msg_flags = (uint32_t)msg_flags;
	return await_sqe(q, sqe);
}

static ssize_t socket_whole(struct ubd_queue *q, uint8_t opcode, int fd, uintptr_t buf, size_t len,
			    int msg_flags)
{
	size_t done = 0;

	while (done < len) {
		int ret = socket_once(q, opcode, fd, buf + done, len - done, msg_flags);

		if (ret == -EINTR || ret == -EAGAIN)
			continue;
		if (ret < 0)
			return ret;
		if (ret == 0)
			break;
		done += (unsigned)ret;
	}
	return (ssize_t)done;
}

ssize_t ubd_send(struct ubd_queue *q, int fd, const void *buf, size_t len, int msg_flags)
{
	return socket_whole(q, IORING_OP_SEND, fd, (uintptr_t)buf, len, msg_flags | MSG_NOSIGNAL);
}

ssize_t ubd_recv(struct ubd_queue *q, int fd, void *buf, size_t len)
{
	return socket_whole(q, IORING_OP_RECV, fd, (uintptr_t)buf, len, MSG_WAITALL);
}

ssize_t ubd_recv_some(struct ubd_queue *q, int fd, void *buf, size_t len)
{
	int ret;

	do
		ret = socket_once(q, IORING_OP_RECV, fd, (uintptr_t)buf, len, 0);
	while (ret == -EINTR || ret == -EAGAIN);
	return ret;
}

int ubd_connect(struct ubd_queue *q, int fd, const struct sockaddr *addr, socklen_t len)
{
	struct io_uring_sqe *sqe = queue_sqe(q);

	sqe->opcode = IORING_OP_CONNECT;
	queue_sqe_fd(q, sqe, fd);
	sqe->addr = (uintptr_t)addr;
	sqe->off = len;
	return await_sqe(q, sqe);
}

int ubd_poll(struct ubd_queue *q, int fd, short events)
{
	struct io_uring_sqe *sqe = queue_sqe(q);

	sqe->opcode = IORING_OP_POLL_ADD;
	queue_sqe_fd(q, sqe, fd);
	sqe->poll32_events = (uint16_t)events;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	sqe->poll32_events <<= 16;
#endif
	return await_sqe(q, sqe);
}

int ubd_sleep(struct ubd_queue *q, uint64_t ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = (long long)(ns / 1000000000),
		.tv_nsec = (long long)(ns % 1000000000),
	};
	struct io_uring_sqe *sqe = queue_sqe(q);
	int ret;

	sqe->opcode = IORING_OP_TIMEOUT;
	sqe->fd = -1;
	sqe->addr = (uintptr_t)&ts;
	sqe->len = 1;
	ret = await_sqe(q, sqe);
	return ret == -ETIME ? 0 : ret;
}

uint64_t ubd_now(void)
{
	return now_ns();
}

void ubd_yield(struct ubd_queue *q)
{
	struct ubd_waiter w = {.q = q, .co = queue_current(q)};

	queue_wake(q, &w);
	queue_suspend(q);
}

struct spawned {
	struct ubd_queue *q;
	void (*fn)(struct ubd_queue *q, void *arg);
	void *arg;
};

static void run_spawned(void *arg)
{
	struct spawned *s = arg;
	struct spawned mine = *s;

	free(s);
	mine.fn(mine.q, mine.arg);
}

int ubd_spawn(struct ubd_queue *q, void (*fn)(struct ubd_queue *q, void *arg), void *arg)
{
	struct spawned *s = malloc(sizeof(*s));
	struct coro *co;

	if (!s)
		return -ENOMEM;
	*s = (struct spawned){.q = q, .fn = fn, .arg = arg};
	co = coro_new(&q->coros, run_spawned, s);
	if (!co) {
		free(s);
		return -ENOMEM;
	}
	queue_ready(q, co);
	return 0;
}

unsigned ubd_queue_index(const struct ubd_queue *q)
{
	return q->index;
}

bool ubd_queue_stopping(const struct ubd_queue *q)
{
	return q->stopping;
}

void *ubd_queue_data(const struct ubd_queue *q)
{
	return q->data;
}

void ubd_queue_set_data(struct ubd_queue *q, void *data)
{
	q->data = data;
}
