// SPDX-License-Identifier: MIT
/*
 * The server process. See server.h.
 */
#include "server.h"

#include "ctrl.h"
#include "harness.h"

#include <errno.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define START_LIMIT_MS 20000
#define POLL_MS 20

struct server_thread {
	struct server *server;
	int fd;
	unsigned q_id;
	bool *held; /* by tag */
	unsigned aborted;
	struct ioq q;
};

static void log_request(struct server *s, const struct ioq *q, unsigned tag)
{
	unsigned n = atomic_fetch_add(&s->nr_log, 1);

	if (n < SERVER_LOG) {
		s->log[n].q_id = (uint16_t)q->q_id;
		s->log[n].tag = (uint16_t)tag;
		s->log[n].desc = q->desc[tag];
	}
}

static int move_data(const struct server_io *io, void *store, size_t bytes, bool to_request)
{
	off_t off = ioq_data_offset(io->q->q_id, io->tag, 0);
	ssize_t n;

	if (!io->q->user_copy) {
		if (to_request)
			memcpy(io->buf, store, bytes);
		else
			memcpy(store, io->buf, bytes);
		return (int)bytes;
	}
	n = to_request ? pwrite(io->q->fd, store, bytes, off) : pread(io->q->fd, store, bytes, off);
	return n < 0 ? -errno : (int)n;
}

int server_store(struct server *s, struct server_io *io)
{
	uint64_t offset = io->iod->start_sector * SECTOR;
	size_t bytes = (size_t)io->iod->nr_sectors * SECTOR;

	if (ublksrv_get_op(io->iod) == UBLK_IO_OP_FLUSH)
		return 0;
	if (offset + bytes > DEV_BYTES)
		return -EIO;
	switch (ublksrv_get_op(io->iod)) {
	case UBLK_IO_OP_READ:
		return move_data(io, s->store + offset, bytes, true);
	case UBLK_IO_OP_WRITE:
		return move_data(io, s->store + offset, bytes, false);
	case UBLK_IO_OP_DISCARD:
	case UBLK_IO_OP_WRITE_ZEROES:
		memset(s->store + offset, 0, bytes);
		return 0;
	}
	return -EOPNOTSUPP;
}

static void answer(struct server_thread *t, unsigned tag, bool may_hold)
{
	struct server *s = t->server;
	struct server_io io = {
		.q = &t->q,
		.tag = tag,
		.iod = &t->q.desc[tag],
		.buf = ioq_buf(&t->q, tag),
	};
	enum server_answer how = ANSWER_STORE;

	if (s->hook && may_hold)
		how = s->hook(s, &io);
	if (how == ANSWER_NEVER)
		return;
	if (how == ANSWER_HOLD) {
		t->held[tag] = true;
		atomic_fetch_add(&s->held, 1);
		return;
	}
	if (how == ANSWER_STORE)
		io.res = server_store(s, &io);
	ioq_commit(&t->q, tag, io.res);
}

static void release_held(struct server_thread *t)
{
	for (unsigned tag = 0; tag < t->q.depth; tag++) {
		if (t->held[tag]) {
			t->held[tag] = false;
			atomic_fetch_sub(&t->server->held, 1);
			answer(t, tag, false);
		}
	}
}

static void take_completion(struct server_thread *t, const struct ioq_cqe *cqe)
{
	if (cqe->res == UBLK_IO_RES_OK) {
		log_request(t->server, &t->q, cqe->tag);
		answer(t, cqe->tag, true);
	} else if (cqe->res == UBLK_IO_RES_NEED_GET_DATA) {
		ioq_sqe(&t->q, UBLK_U_IO_NEED_GET_DATA, (uint16_t)t->q_id, cqe->tag, 0,
			ioq_addr(&t->q, cqe->tag));
		ioq_submit(&t->q);
	} else {
		if (cqe->res != UBLK_IO_RES_ABORT)
			atomic_store(&t->server->error, cqe->res);
		t->aborted++;
	}
}

/* Returns whether the thread goes on. */
static bool die(struct server_thread *t)
{
	struct server *s = t->server;
	pid_t pid;

	switch (s->dying_how) {
	case DIE_THREAD:
		return false;
	case DIE_RING:
		io_uring_queue_exit(&t->q.ring);
		for (;;)
			pause();
	case DIE_EXEC:
		execlp("sleep", "sleep", "60", NULL);
		return false;
	case DIE_FORK:
		break;
	}
	pid = fork();
	/* With everything: the file, the rings, the mapping. */
	while (pid == 0)
		pause();
	atomic_store(&s->die, false);
	atomic_store(&s->child, (unsigned)pid);
	return true;
}

static void *run_queue(void *arg)
{
	struct server_thread *t = arg;
	struct server *s = t->server;
	struct ioq_cqe cqe;
	int ret;

	prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
	ret = ioq_open(&t->q, s->dev, t->fd, t->q_id);
	if (ret) {
		atomic_store(&s->error, ret);
		return NULL;
	}
	t->q.legacy = s->legacy;
	t->held = calloc(t->q.depth, sizeof(*t->held));
	ioq_fetch_all(&t->q);
	atomic_fetch_add(&s->queues_ready, 1);
	while (t->aborted < t->q.depth) {
		if (ioq_wait(&t->q, &cqe, POLL_MS) == 0)
			take_completion(t, &cqe);
		if (atomic_load(&s->release))
			release_held(t);
		if (atomic_load(&s->die) && s->dying_queue == t->q_id + 1 && !die(t))
			return NULL;
	}
	atomic_fetch_add(&s->queues_over, 1);
	ioq_close(&t->q);
	return NULL;
}

static long run_server(struct job *job)
{
	struct server_thread *threads;
	struct server *s;
	pthread_t *ids;
	unsigned queues;
	int fd;

	memcpy(&s, job->arg, sizeof(s));
	queues = s->dev->info.nr_hw_queues;
	threads = calloc(queues, sizeof(*threads));
	ids = calloc(queues, sizeof(*ids));

	if (s->dev->uid) {
		gid_t gid = s->dev->uid;

		if (setgroups(1, &gid) || setresgid(gid, gid, gid) ||
		    setresuid(s->dev->uid, s->dev->uid, s->dev->uid))
			return -errno;
	}
	/* Whoever had it before may have let go a moment ago: the driver's work item notices. */
	fd = dev_open_released(s->dev, START_LIMIT_MS);
	if (fd < 0) {
		atomic_store(&s->error, fd);
		return fd;
	}
	if (s->body)
		return s->body(s, fd);
	for (unsigned i = 0; i < queues; i++) {
		threads[i] = (struct server_thread){.server = s, .fd = fd, .q_id = i};
		if (pthread_create(&ids[i], NULL, run_queue, &threads[i]))
			return -EAGAIN;
	}
	for (unsigned i = 0; i < queues; i++)
		pthread_join(ids[i], NULL);
	close(fd);
	free(threads);
	free(ids);
	return atomic_load(&s->error);
}

struct server *server_new(struct dev *dev)
{
	struct server *s = shared_alloc(sizeof(*s));

	s->dev = dev;
	s->store = shared_alloc(DEV_BYTES);
	return s;
}

void server_start(struct server *s)
{
	uint64_t until = now_ms() + START_LIMIT_MS;

	atomic_store(&s->queues_ready, 0);
	atomic_store(&s->queues_over, 0);
	atomic_store(&s->error, 0);
	s->job = job_new(run_server, &s, sizeof(s));
	job_start(s->job);
	while (atomic_load(&s->queues_ready) < s->dev->info.nr_hw_queues) {
		REQUIRE(!atomic_load(&s->error), "the server cannot start: %s",
			conform_errname(atomic_load(&s->error)));
		REQUIRE(now_ms() < until, "the server does not get ready");
		sleep_ms(2);
	}
}

int server_pid(const struct server *s)
{
	return s->job->pid;
}

void server_signal(const struct server *s, int sig)
{
	job_signal(s->job, sig);
}

void server_kill(struct server *s)
{
	server_signal(s, SIGKILL);
	REQUIRE(job_wait(s->job, 20000, NULL) != JOB_RUNNING, "the killed server does not end");
	job_put(s->job);
}

void server_join(struct server *s)
{
	long res = 0;
	int ret = job_wait(s->job, 20000, &res);

	REQUIRE(ret == 0, "the server does not end though its device was stopped: %s",
		conform_errname(ret));
	CHECK(res == 0, "the server saw an unexpected completion: %s", conform_errname(res));
	job_put(s->job);
}

struct server *server_up(struct dev *dev)
{
	struct server *s;
	long res;

	if (dev->id == DEV_ID_ANY)
		dev_add(dev);
	s = server_new(dev);
	server_start(s);
	res = dev_cmd(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s), NULL, 0);
	REQUIRE(res == 0, "START_DEV: %s", conform_errname(res));
	server_forget(s);
	return s;
}

struct server *server_up_with_body(uint64_t flags, long (*body)(struct server *s, int fd))
{
	struct dev *dev = dev_new(flags, 1, 8);
	struct server *s = server_new(dev);

	dev_add(dev);
	s->body = body;
	server_start(s);
	RESULT_REQUIRED("start",
			dev_cmd(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s), NULL, 0), 0);
	return s;
}

void server_down(struct server *s)
{
	atomic_store(&s->release, true);
	dev_stop(s->dev);
	server_join(s);
	dev_del(s->dev);
}

void server_need_queues(struct server *s, unsigned nr)
{
	unsigned has = s->dev->info.nr_hw_queues;

	if (has >= nr)
		return;
	server_down(s);
	conform_skip("it takes %u queues, and this machine's processors make it %u", nr, has);
}

const struct server_log *server_find(const struct server *s, unsigned op, int64_t sector)
{
	unsigned nr = atomic_load(&s->nr_log);

	for (unsigned i = 0; i < nr && i < SERVER_LOG; i++) {
		const struct ublksrv_io_desc *d = &s->log[i].desc;

		if (ublksrv_get_op(d) == op && (sector < 0 || d->start_sector == (uint64_t)sector))
			return &s->log[i];
	}
	return NULL;
}

unsigned server_count(const struct server *s, unsigned op, int64_t sector)
{
	unsigned nr = atomic_load(&s->nr_log), count = 0;

	for (unsigned i = 0; i < nr && i < SERVER_LOG; i++) {
		const struct ublksrv_io_desc *d = &s->log[i].desc;

		count += ublksrv_get_op(d) == op &&
			 (sector < 0 || d->start_sector == (uint64_t)sector);
	}
	return count;
}

void server_forget(struct server *s)
{
	atomic_store(&s->nr_log, 0);
}
