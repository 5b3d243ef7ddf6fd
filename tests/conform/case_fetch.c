// SPDX-License-Identifier: MIT
/*
 * FETCH_REQ and the rules that all I/O commands share: which queue, tag, task, state and opcode.
 */
#include "client.h"
#include "hand.h"
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FETCH UBLK_U_IO_FETCH_REQ
#define COMMIT UBLK_U_IO_COMMIT_AND_FETCH_REQ

CASE(fetch_wrong_queue_and_tag)
{
	struct hand h;
	uint64_t addr;

	hand_open(&h, dev_new(0, 1, 4));
	addr = ioq_addr(&h.q, 0);
	RESULT("fetch-queue-1-of-1", ioq_refused(&h.q, FETCH, 1, 0, 0, addr), -EINVAL);
	RESULT("fetch-queue-65535", ioq_refused(&h.q, FETCH, 65535, 0, 0, addr), -EINVAL);
	RESULT("fetch-tag-4-of-4", ioq_refused(&h.q, FETCH, 0, 4, 0, addr), -EINVAL);
	RESULT("fetch-tag-65535", ioq_refused(&h.q, FETCH, 0, 65535, 0, addr), -EINVAL);
	hand_close(&h);
}

CASE(fetch_without_a_buffer)
{
	struct hand h;

	hand_open(&h, dev_new(0, 1, 4));
	RESULT("fetch-no-buffer", ioq_refused(&h.q, FETCH, 0, 0, 0, 0), -EINVAL);
	hand_close(&h);
}

CASE(fetch_with_a_buffer_in_user_copy)
{
	struct hand h;

	conform_need_features(UBLK_F_USER_COPY);
	hand_open(&h, dev_new(UBLK_F_USER_COPY, 1, 4));
	RESULT("fetch-user-copy-buffer", ioq_refused(&h.q, FETCH, 0, 0, 0, 4096), -EINVAL);
	hand_close(&h);
}

CASE(fetch_twice)
{
	struct hand h;
	struct ioq_cqe cqe;

	hand_open(&h, dev_new(0, 1, 4));
	ioq_fetch(&h.q, 2);
	RESULT("fetch-twice", ioq_refused(&h.q, FETCH, 0, 2, 0, ioq_addr(&h.q, 2)), -EINVAL);
	/* The first one must still be good for an abort. */
	dev_stop(h.dev);
	CHECK(ioq_wait(&h.q, &cqe, 5000) == 0 && cqe.res == UBLK_IO_RES_ABORT && cqe.tag == 2,
	      "the first fetch was not aborted");
	hand_close(&h);
}

CASE(fetch_after_start)
{
	struct hand h;

	hand_up(&h, dev_new(0, 1, 4));
	RESULT("fetch-after-start", ioq_refused(&h.q, FETCH, 0, 1, 0, ioq_addr(&h.q, 1)), -EBUSY);
	hand_down(&h);
}

CASE(fetch_of_a_request_in_hand)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_READ, 0, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("fetch-in-hand", ioq_refused(&h.q, FETCH, 0, (uint16_t)tag, 0, ioq_addr(&h.q, tag)),
	       -EBUSY);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the read failed");
	hand_down(&h);
}

CASE(fetch_unknown_io_opcodes)
{
	struct hand h;
	uint64_t addr;

	hand_open(&h, dev_new(0, 1, 4));
	addr = ioq_addr(&h.q, 0);
	RESULT("io-opcode-unknown",
	       ioq_refused(&h.q, _IOWR('u', 0x5f, struct ublksrv_io_cmd), 0, 0, 0, addr), -EINVAL);
	RESULT("io-opcode-foreign-type",
	       ioq_refused(&h.q, _IOWR('x', 0x20, struct ublksrv_io_cmd), 0, 0, 0, addr),
	       -EOPNOTSUPP);
	RESULT("io-opcode-control", ioq_refused(&h.q, UBLK_U_CMD_STOP_DEV, 0, 0, 0, addr), -EINVAL);
	RESULT("io-opcode-batch", ioq_refused(&h.q, UBLK_U_IO_PREP_IO_CMDS, 0, 0, 0, addr),
	       -EINVAL);
	hand_close(&h);
}

CASE(fetch_legacy_opcodes)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_open(&h, dev_new(0, 1, 4));
	h.q.legacy = true;
	RESULT("legacy-unknown", ioq_refused(&h.q, 0x5f, 0, 0, 0, ioq_addr(&h.q, 0)), -EINVAL);
	ioq_fetch_all(&h.q);
	ioq_start_dev(&h.q);
	io = io_begin(h.dev, IO_READ, 0, 4096);
	tag = ioq_next(&h.q, NULL);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the read failed");
	hand_down(&h);
}

/* io_uring may run a command from a worker; the driver brings it back to the server's task. */
CASE(fetch_forced_async)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_open(&h, dev_new(0, 1, 4));
	for (unsigned t = 0; t < 4; t++)
		ioq_sqe(&h.q, FETCH, 0, (uint16_t)t, 0, ioq_addr(&h.q, t))->flags |= IOSQE_ASYNC;
	ioq_submit(&h.q);
	ioq_start_dev(&h.q);
	io = io_begin(h.dev, IO_READ, 0, 4096);
	tag = ioq_next(&h.q, NULL);
	ioq_sqe(&h.q, COMMIT, 0, (uint16_t)tag, 4096, ioq_addr(&h.q, tag))->flags |= IOSQE_ASYNC;
	ioq_submit(&h.q);
	CHECK(io_end(io) == 4096, "the read failed");
	hand_down(&h);
}

static void with_ring_flags(unsigned flags)
{
	struct io_uring_params p = {.flags = flags};
	struct io_uring ring;
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_open(&h, dev_new(0, 1, 4));
	if (io_uring_queue_init_params(16, &ring, &p)) {
		hand_close(&h);
		conform_note("this kernel has no rings with flags 0x%x", flags);
		return;
	}
	io_uring_queue_exit(&h.q.ring);
	h.q.ring = ring;
	ioq_fetch_all(&h.q);
	ioq_start_dev(&h.q);
	io = io_begin(h.dev, IO_READ, 1 << 20, 8192);
	tag = ioq_next(&h.q, NULL);
	ioq_commit(&h.q, tag, 8192);
	/* With deferred task work the commit is handled at once, the rest in the next wait. */
	CHECK(io_end(io) == 8192, "ring flags 0x%x: the read failed", flags);
	hand_down(&h);
}

CASE(fetch_on_rings_of_all_kinds)
{
	with_ring_flags(IORING_SETUP_SQE128);
	with_ring_flags(IORING_SETUP_CQE32);
	with_ring_flags(IORING_SETUP_COOP_TASKRUN);
	with_ring_flags(IORING_SETUP_SINGLE_ISSUER);
	with_ring_flags(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
}

CASE(fetch_get_data_not_granted)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_WRITE, 0, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("get-data-not-granted",
	       ioq_refused(&h.q, UBLK_U_IO_NEED_GET_DATA, 0, (uint16_t)tag, 0, ioq_addr(&h.q, tag)),
	       -EINVAL);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the write failed");
	hand_down(&h);
}

/* ---- From another task -------------------------------------------------------------------- */

struct foreign {
	struct ioq q;
	struct ioq *of;
	uint32_t op;
	unsigned tag;
	int res;
	bool keep; /* a ring that stays, for what is fetched on it */
	pthread_barrier_t done, leave;
};

static void *foreign_command(void *arg)
{
	struct foreign *f = arg;
	struct io_uring ring;

	io_uring_queue_init(8, &ring, 0);
	f->q = *f->of;
	f->q.ring = ring;
	f->res = ioq_refused(&f->q, f->op, (uint16_t)f->q.q_id, (uint16_t)f->tag, 4096,
			     ioq_addr(&f->q, f->tag));
	if (f->keep) {
		pthread_barrier_wait(&f->done);
		pthread_barrier_wait(&f->leave);
	}
	io_uring_queue_exit(&f->q.ring);
	return NULL;
}

static int from_another_task(struct ioq *q, uint32_t op, unsigned tag)
{
	struct foreign f = {.of = q, .op = op, .tag = tag};
	pthread_t id;

	pthread_create(&id, NULL, foreign_command, &f);
	pthread_join(id, NULL);
	return f.res;
}

CASE(fetch_commit_from_another_task)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 4));
	RESULT("foreign-commit-idle", from_another_task(&h.q, COMMIT, 3), -EINVAL);
	io = io_begin(h.dev, IO_READ, 0, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("foreign-commit", from_another_task(&h.q, COMMIT, tag), -EINVAL);
	CHECK(io_end_within(io, 200) == JOB_RUNNING, "another task's commit completed the request");
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the read failed");
	hand_down(&h);
}

CASE(fetch_from_another_task_after_start)
{
	struct hand h;

	hand_up(&h, dev_new(0, 1, 4));
	RESULT("foreign-fetch-after-start", from_another_task(&h.q, FETCH, 0), -EBUSY);
	hand_down(&h);
}

/* PER_IO_DAEMON: tag 0 is this task's, tag 1 another's; each gets its own requests. */
CASE(fetch_per_io_daemon)
{
	struct foreign f = {.op = FETCH, .tag = 1, .keep = true};
	struct hand h;
	struct job *io[2];
	struct ioq_cqe cqe;
	pthread_t id;

	conform_need_features(UBLK_F_PER_IO_DAEMON);
	hand_open(&h, dev_new(0, 1, 2));
	f.of = &h.q;
	pthread_barrier_init(&f.done, NULL, 2);
	pthread_barrier_init(&f.leave, NULL, 2);
	pthread_create(&id, NULL, foreign_command, &f);
	pthread_barrier_wait(&f.done);
	CHECK(f.res == IOQ_KEPT, "the other task cannot fetch: %s", conform_errname(f.res));
	ioq_fetch(&h.q, 0);
	ioq_start_dev(&h.q);
	io[0] = io_begin(h.dev, IO_READ, 1 << 20, 512);
	io[1] = io_begin(h.dev, IO_READ, 2 << 20, 512);
	REQUIRE(ioq_wait(&h.q, &cqe, 5000) == 0 && cqe.tag == 0, "nothing for this task's tag");
	CHECK(ioq_quiet(&h.q, 100), "this task got the other's request");
	ioq_commit(&h.q, 0, 512);
	/* The other task goes away with its request unanswered. */
	pthread_barrier_wait(&f.leave);
	pthread_join(id, NULL);
	ioq_close(&h.q);
	close(h.fd);
	for (unsigned i = 0; i < 2; i++) {
		long res = io_end(io[i]);

		CHECK(res == 512 || res == -EIO, "a read: %s", conform_errname(res));
	}
	dev_stop(h.dev);
	dev_del(h.dev);
}

CASE(fetch_result_field_is_ignored)
{
	struct hand h;

	hand_open(&h, dev_new(0, 1, 1));
	ioq_sqe(&h.q, FETCH, 0, 0, INT32_MIN, ioq_addr(&h.q, 0));
	ioq_submit(&h.q);
	ioq_start_dev(&h.q);
	hand_down(&h);
}

/* A buffer that is not there: the write cannot be delivered, and must not take the driver along. */
CASE(fetch_unmapped_buffer)
{
	struct hand h;
	struct job *io;
	struct ioq_cqe cqe;
	long res;

	hand_open(&h, dev_new(0, 1, 1));
	ioq_sqe(&h.q, FETCH, 0, 0, 0, 0x10000);
	ioq_submit(&h.q);
	ioq_start_dev(&h.q);
	io = io_begin(h.dev, IO_WRITE, 0, 4096);
	if (ioq_wait(&h.q, &cqe, 500) == 0 && cqe.res == UBLK_IO_RES_OK)
		ioq_commit(&h.q, 0, -EFAULT);
	/* In-tree retries for ever; the server's end is its end. */
	io_uring_queue_exit(&h.q.ring);
	close(h.fd);
	munmap((void *)h.q.desc, h.q.desc_bytes);
	res = io_end(io);
	CHECK(res < 0, "a write whose data never came succeeded: %s", conform_errname(res));
	dev_stop(h.dev);
	dev_del(h.dev);
}
