/* SPDX-License-Identifier: MIT */
/*
 * A queue: one io_uring for ublk commands and the target's I/O, one event loop.
 *
 * A round submits everything prepared so far and collects everything completed with a single
 * io_uring_enter; completions start or resume coroutines, whose new SQEs wait for the next round.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define STACK_SIZE ((size_t)64 * 1024)

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

/* ---- SQEs ---------------------------------------------------------------------------------- */

static int queue_submit(struct ubd_queue *q)
{
	int ret = io_uring_submit(&q->ring);

	stat_add(&q->stats.enters, 1);
	return ret;
}

struct io_uring_sqe *queue_sqe(struct ubd_queue *q)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);

	/* Full: hand over what there is. The kernel takes all of it unless it is out of memory. */
	while (unlikely(!sqe)) {
		int ret = queue_submit(q);

		if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY)
			queue_break(q, ret);
		sqe = io_uring_get_sqe(&q->ring);
	}
	stat_add(&q->stats.sqes, 1);
	memset(sqe, 0, sizeof(*sqe));
	return sqe;
}

/* An SQE that must fail becomes a NOP whose completion carries the error on the way in. */
static uint64_t maybe_fail(struct ubd_queue *q, struct io_uring_sqe *sqe, enum fault_kind kind)
{
	int err = fault_hit(&q->fault, kind);

	if (likely(!err))
		return 0;
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_NOP;
	return UD_FAULT;
}

void queue_sqe_sink(struct ubd_queue *q, struct io_uring_sqe *sqe, struct sink *sink)
{
	uint64_t fail = unlikely(q->fault.armed) ? maybe_fail(q, sqe, FAULT_SQE) : 0;

	sqe->user_data = (uintptr_t)sink | UD_SINK | fail;
}

void queue_sqe_tag(struct ubd_queue *q, struct io_uring_sqe *sqe, uint16_t tag, enum fault_kind k)
{
	uint64_t fail = unlikely(q->fault.armed) ? maybe_fail(q, sqe, k) : 0;

	/* Which plan failed it travels in the bits above the tag. */
	sqe->user_data = (uint64_t)k << 32 | (uint64_t)tag << UD_SHIFT | UD_TAG | fail;
}

void queue_sqe_fd(struct ubd_queue *q, struct io_uring_sqe *sqe, int fd)
{
	const struct ubd_device *dev = q->dev;

	for (unsigned i = 1; i < dev->nr_fds; i++)
		if (dev->fds[i] == fd) {
			sqe->fd = (int)i;
			sqe->flags |= IOSQE_FIXED_FILE;
			return;
		}
	sqe->fd = fd;
}

/* ---- Waking -------------------------------------------------------------------------------- */

void queue_ready(struct ubd_queue *q, struct coro *co)
{
	co->next = NULL;
	if (q->ready_tail)
		q->ready_tail->next = co;
	else
		q->ready_head = co;
	q->ready_tail = co;
}

void queue_kick(struct ubd_queue *q)
{
	uint64_t one = 1;
	ssize_t ret;

	/* A full counter wakes as well as a new one. */
	ret = write(q->wake_fd, &one, sizeof(one));
	(void)ret;
}

void queue_wake(struct ubd_queue *from, struct ubd_waiter *w)
{
	struct ubd_queue *q = w->q;

	if (q == from) {
		queue_ready(q, w->co);
		return;
	}
	/* Under the lock: the moment it is released, q may end and w be gone. */
	pthread_mutex_lock(&q->remote_lock);
	w->next = q->remote;
	q->remote = w;
	if (!w->next) /* else whoever was first has kicked */
		queue_kick(q);
	pthread_mutex_unlock(&q->remote_lock);
}

void queue_stop(struct ubd_queue *q)
{
	pthread_mutex_lock(&q->remote_lock);
	q->stop_wanted = true;
	queue_kick(q);
	pthread_mutex_unlock(&q->remote_lock);
}

static void arm_wake(struct ubd_queue *q)
{
	struct io_uring_sqe *sqe = queue_sqe(q);

	sqe->opcode = IORING_OP_READ;
	sqe->fd = q->wake_fd;
	sqe->addr = (uintptr_t)&q->wake_count;
	sqe->len = sizeof(q->wake_count);
	sqe->user_data = (uintptr_t)&q->wake_sink | UD_SINK;
}

static void woken(struct ubd_queue *q, struct sink *sink, int res)
{
	struct ubd_waiter *w, *next;
	bool stop;

	(void)sink;
	pthread_mutex_lock(&q->remote_lock);
	w = q->remote;
	q->remote = NULL;
	stop = q->stop_wanted;
	pthread_mutex_unlock(&q->remote_lock);
	for (; w; w = next) {
		next = w->next;
		queue_ready(q, w->co);
	}
	if (stop)
		q->stopping = q->forced = true;
	local_drain(q);
	command_drain(q);
	if (res < 0 && res != -EINTR && res != -EAGAIN)
		queue_break(q, res);
	else
		arm_wake(q);
}

/* ---- Set-up and tear-down ------------------------------------------------------------------ */

int queue_init(struct ubd_queue *q, struct ubd_device *dev, unsigned index)
{
	memset(q, 0, sizeof(*q));
	q->dev = dev;
	q->target = dev->target;
	/* A target of an earlier interface ends before that member. */
	q->finished = dev->target->api >= 4 ? dev->target->finished : NULL;
	q->self = dev->self;
	q->way = &ways[dev->zero_copy];
	q->index = index;
	q->depth = dev->info.queue_depth;
	q->zero_fd = -1;
	q->wake_sink.fn = woken;
	pthread_mutex_init(&q->remote_lock, NULL);
	if (dev->fault)
		fault_parse(&q->fault, dev->fault);
	q->wake_fd = eventfd(0, EFD_CLOEXEC);
	return q->wake_fd < 0 ? -errno : 0;
}

void queue_destroy(struct ubd_queue *q)
{
	if (q->wake_fd >= 0)
		close(q->wake_fd);
	q->wake_fd = -1;
	pthread_mutex_destroy(&q->remote_lock);
}

static int map_descriptors(struct ubd_queue *q)
{
	/* The stride is that of the deepest queue, whatever ours is. */
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t each = sizeof(struct ublksrv_io_desc);
	size_t stride = (UBLK_MAX_QUEUE_DEPTH * each + page - 1) & ~(page - 1);
	void *map;

	q->desc_size = (q->depth * each + page - 1) & ~(page - 1);
	map = mmap(NULL, q->desc_size, PROT_READ, MAP_SHARED | MAP_POPULATE, q->dev->char_fd,
		   (off_t)(UBLKSRV_CMD_BUF_OFFSET + q->index * stride));
	if (map == MAP_FAILED)
		return -errno;
	q->desc = map;
	return 0;
}

/*
 * One buffer per tag. Touched memory is locked; what no request needs is not allocated, unless the
 * user fears that it could not be when it is needed.
 */
static int map_buffers(struct ubd_queue *q)
{
	size_t each = q->dev->info.max_io_buf_bytes;
	char *map = mmap(NULL, each * q->depth, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		return -errno;
	mlock2(map, each * q->depth, MLOCK_ONFAULT);
	q->own_bufs = map;
	if (q->dev->cfg.populate && madvise(map, each * q->depth, MADV_POPULATE_WRITE))
		return -errno;
	for (unsigned i = 0; i < q->depth; i++) {
		q->tags[i].own_buf = map + i * each;
		q->tags[i].buf = q->tags[i].own_buf;
	}
	/* Reads of an anonymous mapping never written to all hit the kernel's one zero page. */
	map = mmap(NULL, each, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED)
		return -errno;
	q->zeros = map;
	return 0;
}

struct opening {
	struct ubd_queue *q;
	int ret;
	bool done;
};

static void run_queue_open(void *arg)
{
	struct opening *o = arg;

	o->ret = o->q->target->queue_open(o->q, o->q->self);
	o->done = true;
}

/* Run the target's queue_open() to its end, before there are requests. */
static int open_target_queue(struct ubd_queue *q)
{
	struct opening o = {.q = q};
	struct coro *co;

	if (!q->target->queue_open)
		return 0;
	co = coro_new(&q->coros, run_queue_open, &o);
	if (!co)
		return -ENOMEM;
	coro_enter(co);
	while (!o.done && !q->error)
		queue_round(q, true);
	return o.done ? o.ret : q->error;
}

void queue_io_flusher(void)
{
	prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
}

int queue_open(struct ubd_queue *q)
{
	int ret;

	queue_io_flusher(); /* before the ring: its workers inherit it */
	q->open = true;
	q->tags = calloc(q->depth, sizeof(*q->tags));
	if (!q->tags)
		return -ENOMEM;
	for (unsigned i = 0; i < q->depth; i++)
		q->tags[i].io = (struct ubd_io){.queue = q, .tag = (uint16_t)i};
	coro_pool_init(&q->coros, STACK_SIZE, true);
	ret = coro_pool_reserve(&q->coros, q->depth);
	if (ret)
		return ret;
	ret = ring_open(q);
	if (ret)
		return device_fail(q->dev, ret, "queue %u: cannot set up io_uring: %s", q->index,
				   strerror(-ret));
	if (!q->dev->local) {
		ret = map_descriptors(q);
		if (ret)
			return device_fail(q->dev, ret, "queue %u: cannot map descriptors: %s",
					   q->index, strerror(-ret));
	}
	ret = map_buffers(q);
	if (ret)
		return ret;
	ret = q->way->splice ? splice_open(q) : 0;
	if (ret)
		return device_fail(q->dev, ret, "queue %u: cannot make pipes: %s", q->index,
				   strerror(-ret));
	if (q->way->fixed)
		q->zero_fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	arm_wake(q);
	ret = open_target_queue(q);
	if (ret)
		return device_fail(q->dev, ret, "queue %u: target %s: %s", q->index,
				   q->target->name, strerror(-ret));
	ret = q->dev->local ? 0 : request_fetch_all(q);
	q->up = !ret;
	return ret;
}

void queue_close(struct ubd_queue *q)
{
	size_t each = q->dev->info.max_io_buf_bytes;

	if (!q->open)
		return;
	q->open = false;
	if (q->has_ring) {
		/* The char device must not stay referenced until the ring's late end. But up to
		 * 6.12 this waits for the commands on it, and after a start that failed nobody
		 * ends the fetches but the ring's end. */
		if (q->dev->nr_fds && !q->armed)
			io_uring_unregister_files(&q->ring);
		/* A buffer left in the table holds its request; the kernel's own driver then does
		 * not cancel the tag's fetch, for which the ring, and so the table, would wait. */
		if (q->way->fixed)
			io_uring_unregister_buffers(&q->ring);
		io_uring_queue_exit(&q->ring);
	}
	if (q->desc)
		munmap((void *)(uintptr_t)q->desc, q->desc_size);
	if (q->own_bufs)
		munmap(q->own_bufs, each * q->depth);
	if (q->zeros)
		munmap((void *)(uintptr_t)q->zeros, each);
	if (q->zero_fd >= 0)
		close(q->zero_fd);
	splice_close(q);
	coro_pool_destroy(&q->coros);
	free(q->tags);
	q->tags = NULL;
}

/* ---- The loop ------------------------------------------------------------------------------ */

void queue_break(struct ubd_queue *q, int err)
{
	if (!q->error)
		q->error = err;
	q->stopping = true;
}

static int fault_result(struct ubd_queue *q, uint64_t ud)
{
	enum fault_kind k = (ud & UD_KIND) == UD_TAG ? (enum fault_kind)(ud >> 32) : FAULT_SQE;

	return -q->fault.plan[k].err;
}

static void dispatch(struct ubd_queue *q, uint64_t ud, int res)
{
	if (unlikely(ud & UD_FAULT))
		res = fault_result(q, ud);
	switch (ud & UD_KIND) {
	case UD_TAG:
		request_complete(q, (uint16_t)((uint32_t)ud >> UD_SHIFT), res);
		break;
	case UD_SINK: {
		struct sink *sink =
			(struct sink *)(uintptr_t)(ud & ~(uint64_t)(UD_KIND | UD_FAULT));

		sink->fn(q, sink, res);
		break;
	}
	}
}

/* Those that are ready now; whoever becomes ready meanwhile waits for the next round. */
static void run_ready(struct ubd_queue *q)
{
	struct coro *co = q->ready_head;

	q->ready_head = q->ready_tail = NULL;
	while (co) {
		struct coro *next = co->next;

		coro_enter(co);
		co = next;
	}
}

static void run_queue_close(void *arg)
{
	struct ubd_queue *q = arg;

	q->target->queue_close(q, q->self);
}

/* The last steps of a queue, one per round, as each becomes possible. */
static void advance_end(struct ubd_queue *q)
{
	if (!q->stopping || q->serving || (q->armed && !q->error && !q->forced))
		return;
	if (!q->closing) {
		q->closing = true;
		if (q->target->queue_close) {
			struct coro *co = coro_new(&q->coros, run_queue_close, q);

			if (co)
				coro_enter(co);
		}
	}
	if (!q->coros.live)
		q->ended = true;
}

int queue_round(struct ubd_queue *q, bool wait)
{
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;
	int ret;

	if (q->ready_head)
		wait = false;
	if (wait)
		ret = io_uring_submit_and_wait(&q->ring, 1);
	else
		ret = io_uring_submit_and_get_events(&q->ring);
	stat_add(&q->stats.enters, 1);
	if (unlikely(ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY))
		queue_break(q, ret);
	io_uring_for_each_cqe(&q->ring, head, cqe)
	{
		n++;
		dispatch(q, cqe->user_data, cqe->res);
	}
	io_uring_cq_advance(&q->ring, n);
	stat_add(&q->stats.cqes, n);
	run_ready(q);
	if (unlikely(q->stopping))
		advance_end(q);
	return q->ended ? q->error : 1;
}

void queue_flush(struct ubd_queue *q)
{
	/* Nobody waits for coroutines that are ready: only an event brings the caller back. */
	if (q->ready_head)
		queue_kick(q);
	if (io_uring_sq_ready(&q->ring)) {
		int ret = queue_submit(q);

		if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY)
			queue_break(q, ret);
	}
}

void queue_refuse(struct ubd_queue *q)
{
	q->stopping = true;
	pthread_mutex_lock(&q->remote_lock);
	q->stop_wanted = true;
	pthread_mutex_unlock(&q->remote_lock);
	local_drain(q);
	command_drain(q);
}

void *queue_thread(void *arg)
{
	struct ubd_queue *q = arg;
	struct ubd_device *dev = q->dev;
	sigset_t blocked;
	int ret;

	/* Writes to a socket that is gone are errors; those of registered pages cannot ask for
	 * that. */
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	ret = queue_open(q);
	if (ret)
		queue_break(q, ret);
	pthread_mutex_lock(&dev->lock);
	dev->queues_up += !ret;
	pthread_cond_broadcast(&dev->cond);
	pthread_mutex_unlock(&dev->lock);

	while (!ret && !q->ended)
		queue_round(q, true);
	queue_refuse(q);
	queue_close(q);
	life_queue_ended(q);
	return NULL;
}
