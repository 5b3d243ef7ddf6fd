// SPDX-License-Identifier: MIT
/*
 * BATCH_IO: many requests per command, by hand on one queue of depth 8.
 */
#include "client.h"
#include "hand.h"
#include "harness.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PREP UBLK_U_IO_PREP_IO_CMDS
#define COMMIT UBLK_U_IO_COMMIT_IO_CMDS
#define FETCH UBLK_U_IO_FETCH_IO_CMDS
#define CMD_MULTISHOT (1U << 1) /* IORING_URING_CMD_MULTISHOT, newer than liburing 2.3 */
#define DEPTH 8
#define GROUP 1
#define BUFS 8
#define BUF_BYTES 64
#define AT (1ULL << 20)

struct elem {
	struct ublk_elem_header h;
	uint64_t addr;
};

struct batch {
	struct hand h;
	struct io_uring_buf_ring *ring;
	uint8_t bufs[BUFS][BUF_BYTES];
	uint16_t tags[DEPTH * BUFS]; /* arrived, not answered yet */
	unsigned nr_tags;
	bool over; /* the fetching command has ended */
	int over_res;
};

static struct io_uring_sqe *batch_sqe(struct batch *b, uint32_t op, const void *elems, unsigned nr,
				      unsigned elem_bytes, unsigned flags)
{
	struct io_uring_sqe *sqe = ioq_sqe(&b->h.q, op, 0, 0, 0, 0);
	struct ublk_batch_io *cmd = (struct ublk_batch_io *)sqe->cmd;

	memset(cmd, 0, sizeof(*cmd));
	sqe->addr = (uint64_t)(uintptr_t)elems;
	sqe->len = nr * elem_bytes;
	cmd->flags = (uint16_t)flags;
	cmd->nr_elem = (uint16_t)nr;
	cmd->elem_bytes = (uint8_t)elem_bytes;
	return sqe;
}

/* Takes completions of the fetching command until one of another command comes, or time is up. */
static int batch_wait(struct batch *b, struct ioq_cqe *cqe, unsigned ms)
{
	uint64_t until = now_ms() + ms;

	while (now_ms() <= until) {
		unsigned id;

		if (ioq_wait(&b->h.q, cqe, 10))
			continue;
		if (cqe->op != FETCH)
			return 0;
		if (cqe->res > 0 && cqe->flags & IORING_CQE_F_BUFFER) {
			id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
			memcpy(&b->tags[b->nr_tags], b->bufs[id], (size_t)cqe->res);
			b->nr_tags += (unsigned)cqe->res / 2;
			io_uring_buf_ring_add(b->ring, b->bufs[id], BUF_BYTES, (unsigned short)id,
					      BUFS - 1, 0);
			io_uring_buf_ring_advance(b->ring, 1);
		}
		if (!(cqe->flags & IORING_CQE_F_MORE)) {
			b->over = true;
			b->over_res = cqe->res;
		}
		if (b->nr_tags)
			return -EAGAIN;
	}
	return -ETIME;
}

static int batch_run(struct batch *b)
{
	struct ioq_cqe cqe;
	int ret;

	ioq_submit(&b->h.q);
	while ((ret = batch_wait(b, &cqe, 1000)) == -EAGAIN)
		;
	return ret ? IOQ_KEPT : cqe.res;
}

static int batch_elems(struct batch *b, uint32_t op, const struct elem *elems, unsigned nr)
{
	batch_sqe(b, op, elems, nr, sizeof(*elems), UBLK_BATCH_F_HAS_BUF_ADDR);
	return batch_run(b);
}

static void fill_elem(struct batch *b, struct elem *e, unsigned tag, int result)
{
	*e = (struct elem){.h = {.tag = (uint16_t)tag, .result = result},
			   .addr = (uint64_t)(uintptr_t)ioq_buf(&b->h.q, tag)};
}

static int prep_all(struct batch *b)
{
	struct elem elems[DEPTH];

	for (unsigned tag = 0; tag < DEPTH; tag++)
		fill_elem(b, &elems[tag], tag, 0);
	return batch_elems(b, PREP, elems, DEPTH);
}

static struct io_uring_sqe *fetch_sqe(struct batch *b)
{
	struct io_uring_sqe *sqe = batch_sqe(b, FETCH, NULL, 0, sizeof(uint16_t), 0);

	sqe->len = 0;
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = GROUP;
	sqe->uring_cmd_flags = CMD_MULTISHOT;
	return sqe;
}

static void batch_open(struct batch *b, struct dev *dev)
{
	struct io_uring_buf_reg reg = {.ring_entries = BUFS, .bgid = GROUP};

	conform_need_features(dev->info.flags);
	memset(b, 0, sizeof(*b));
	hand_open(&b->h, dev);
	REQUIRE(posix_memalign((void **)&b->ring, 4096, 4096) == 0, "no memory");
	memset(b->ring, 0, 4096);
	reg.ring_addr = (uint64_t)(uintptr_t)b->ring;
	REQUIRE(io_uring_register_buf_ring(&b->h.q.ring, &reg, 0) == 0, "no buffer ring");
	for (unsigned i = 0; i < BUFS; i++)
		io_uring_buf_ring_add(b->ring, b->bufs[i], BUF_BYTES, (unsigned short)i, BUFS - 1,
				      (int)i);
	io_uring_buf_ring_advance(b->ring, BUFS);
}

static void answer_all(struct batch *b, uint8_t *store)
{
	struct elem elems[DEPTH];
	unsigned nr = b->nr_tags;

	for (unsigned i = 0; i < nr; i++) {
		unsigned tag = b->tags[i];
		const struct ublksrv_io_desc *d = &b->h.q.desc[tag];
		size_t bytes = (size_t)d->nr_sectors * SECTOR;

		if (ublksrv_get_op(d) == UBLK_IO_OP_READ)
			memcpy(ioq_buf(&b->h.q, tag), store + d->start_sector * SECTOR, bytes);
		else if (ublksrv_get_op(d) == UBLK_IO_OP_WRITE)
			memcpy(store + d->start_sector * SECTOR, ioq_buf(&b->h.q, tag), bytes);
		else
			bytes = 0;
		fill_elem(b, &elems[i], tag, (int)bytes);
	}
	b->nr_tags = 0;
	RESULT("batch-commit", batch_elems(b, COMMIT, elems, nr), (long)(nr * sizeof(*elems)));
}

static long batch_serve_job(struct batch *b, struct job *job, uint8_t *store)
{
	uint64_t until = now_ms() + 20000;
	struct ioq_cqe cqe;
	long res = 0;
	int ret;

	while (!job_ended(job)) {
		REQUIRE(now_ms() < until, "a command does not end though its I/O is served");
		if (b->nr_tags)
			answer_all(b, store);
		else
			batch_wait(b, &cqe, 5);
	}
	ret = job_wait(job, 0, &res);
	return ret ? ret : res;
}

static void batch_up(struct batch *b, struct dev *dev, uint8_t *store)
{
	batch_open(b, dev);
	RESULT_REQUIRED("batch-prep", prep_all(b), 0);
	fetch_sqe(b);
	ioq_submit(&b->h.q);
	RESULT_REQUIRED(
		"start-batch",
		batch_serve_job(b, dev_cmd_begin(dev, UBLK_U_CMD_START_DEV, (uint64_t)getpid()),
				store),
		0);
}

static void batch_down(struct batch *b, uint8_t *store)
{
	struct ioq_cqe cqe;
	uint64_t until = now_ms() + 5000;

	RESULT_REQUIRED("stop-batch",
			batch_serve_job(b, dev_cmd_begin(b->h.dev, UBLK_U_CMD_STOP_DEV, 0), store),
			0);
	while (!b->over && now_ms() < until)
		batch_wait(b, &cqe, 100);
	CHECK(b->over, "the fetching command did not end with the device");
	RESULT("batch-fetch-aborted", b->over_res, UBLK_IO_RES_ABORT);
	hand_close(&b->h);
}

static uint8_t *batch_store(void)
{
	return shared_alloc(DEV_BYTES);
}

CASE(batch_data)
{
	struct batch b;
	uint8_t *store = batch_store();
	struct dev *dev = dev_new(UBLK_F_BATCH_IO, 1, DEPTH);
	struct job *io[6];

	batch_up(&b, dev, store);
	for (unsigned i = 0; i < 6; i++)
		io[i] = io_begin_seeded(dev, IO_WRITE, (uint64_t)i << 20, 1 << 20, i + 1);
	for (unsigned i = 0; i < 6; i++) {
		CHECK(batch_serve_job(&b, io[i], store) == 1 << 20, "write failed");
		job_put(io[i]);
	}
	for (unsigned i = 0; i < 6; i++)
		CHECK(pattern_check(store + ((uint64_t)i << 20), (uint64_t)i << 20, 1 << 20,
				    i + 1) < 0,
		      "the server got something else");
	for (unsigned i = 0; i < 6; i++)
		io[i] = io_begin(dev, IO_READ, (uint64_t)i << 20, 1 << 20);
	for (unsigned i = 0; i < 6; i++) {
		CHECK(batch_serve_job(&b, io[i], store) == 1 << 20, "read failed");
		CHECK(pattern_check(io[i]->data, (uint64_t)i << 20, 1 << 20, i + 1) < 0,
		      "the read brings something else");
		job_put(io[i]);
	}
	batch_down(&b, store);
}

CASE(batch_prep_bad_arguments)
{
	struct batch b;
	struct elem e[DEPTH + 1];
	unsigned addr = UBLK_BATCH_F_HAS_BUF_ADDR;

	batch_open(&b, dev_new(UBLK_F_BATCH_IO, 1, DEPTH));
	for (unsigned i = 0; i <= DEPTH; i++)
		fill_elem(&b, &e[i], i, 0);
	batch_sqe(&b, PREP, e, DEPTH + 1, 16, addr);
	RESULT("batch-prep-too-many", batch_run(&b), -E2BIG);
	batch_sqe(&b, PREP, e, 1, 8, addr);
	RESULT("batch-prep-element-size", batch_run(&b), -EINVAL);
	batch_sqe(&b, PREP, e, 1, 16, addr | 1U << 7);
	RESULT("batch-prep-flags", batch_run(&b), -EINVAL);
	batch_sqe(&b, PREP, e, 1, 24, addr | UBLK_BATCH_F_HAS_ZONE_LBA);
	RESULT("batch-prep-zone", batch_run(&b), -EINVAL);
	batch_sqe(&b, PREP, e, 1, 8, UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK);
	RESULT("batch-prep-fallback", batch_run(&b), -EINVAL);
	batch_sqe(&b, PREP, e, 1, 8, 0);
	RESULT("batch-prep-no-buffer", batch_run(&b), -EINVAL);
	batch_sqe(&b, PREP, (void *)0x10000, 1, 16, addr);
	RESULT("batch-prep-bad-address", batch_run(&b), -EFAULT);
	((struct ublk_batch_io *)batch_sqe(&b, PREP, e, 1, 16, addr)->cmd)->q_id = 1;
	RESULT("batch-prep-queue", batch_run(&b), -EINVAL);
	/* The ninth element has no such tag; none may stay prepared. */
	e[3].h.tag = DEPTH;
	RESULT("batch-prep-tag", batch_elems(&b, PREP, e, DEPTH), -EINVAL);
	RESULT("batch-prep-after-failure", prep_all(&b), 0);
	RESULT("batch-prep-twice", batch_elems(&b, PREP, e, 1), -EBUSY);
	hand_close(&b.h);
}

CASE(batch_one_request_commands_refused)
{
	struct batch b;

	batch_open(&b, dev_new(UBLK_F_BATCH_IO, 1, DEPTH));
	RESULT("batch-plain-fetch",
	       ioq_refused(&b.h.q, UBLK_U_IO_FETCH_REQ, 0, 0, 0, ioq_addr(&b.h.q, 0)), -EOPNOTSUPP);
	RESULT("batch-plain-commit",
	       ioq_refused(&b.h.q, UBLK_U_IO_COMMIT_AND_FETCH_REQ, 0, 0, 0, ioq_addr(&b.h.q, 0)),
	       -EOPNOTSUPP);
	hand_close(&b.h);
}

CASE(batch_commit_bad_arguments)
{
	struct batch b;
	uint8_t *store = batch_store();
	struct elem e[2];

	batch_up(&b, dev_new(UBLK_F_BATCH_IO, 1, DEPTH), store);
	fill_elem(&b, &e[0], 0, 0);
	RESULT("batch-commit-idle", batch_elems(&b, COMMIT, e, 1), -EBUSY);
	e[0].h.tag = DEPTH;
	RESULT("batch-commit-tag", batch_elems(&b, COMMIT, e, 1), -EINVAL);
	batch_sqe(&b, COMMIT, (void *)0x10000, 1, 16, UBLK_BATCH_F_HAS_BUF_ADDR);
	RESULT("batch-commit-bad-address", batch_run(&b), -EFAULT);
	batch_down(&b, store);
}

/* What was taken before a bad element counts, and says how much it was. */
CASE(batch_commit_in_part)
{
	struct batch b;
	uint8_t *store = batch_store();
	struct dev *dev = dev_new(UBLK_F_BATCH_IO, 1, DEPTH);
	struct ioq_cqe cqe;
	struct elem e[2];
	struct job *io;
	unsigned tag;

	batch_up(&b, dev, store);
	io = io_begin(dev, IO_READ, AT, 4096);
	while (!b.nr_tags)
		batch_wait(&b, &cqe, 100);
	tag = b.tags[0];
	b.nr_tags = 0;
	fill_elem(&b, &e[0], tag, 4096);
	fill_elem(&b, &e[1], (tag + 1) % DEPTH, 4096);
	RESULT("batch-commit-part", batch_elems(&b, COMMIT, e, 2), (long)sizeof(e[0]));
	CHECK(io_end(io) == 4096, "the read failed");
	batch_down(&b, store);
}

CASE(batch_fetch_bad_arguments)
{
	struct batch b;
	struct io_uring_sqe *sqe;

	batch_open(&b, dev_new(UBLK_F_BATCH_IO, 1, DEPTH));
	RESULT_REQUIRED("batch-prep", prep_all(&b), 0);
	sqe = batch_sqe(&b, FETCH, NULL, 0, sizeof(uint16_t), 0);
	sqe->user_data = 0;
	RESULT("batch-fetch-one-shot", batch_run(&b), -EINVAL);
	sqe = fetch_sqe(&b);
	sqe->user_data = 0;
	((struct ublk_batch_io *)sqe->cmd)->elem_bytes = 4;
	RESULT("batch-fetch-element-size", batch_run(&b), -EINVAL);
	sqe = fetch_sqe(&b);
	sqe->user_data = 0;
	((struct ublk_batch_io *)sqe->cmd)->q_id = 1;
	RESULT("batch-fetch-queue", batch_run(&b), -EINVAL);
	sqe = fetch_sqe(&b);
	sqe->user_data = 0;
	((struct ublk_batch_io *)sqe->cmd)->flags = 1;
	RESULT("batch-fetch-flags", batch_run(&b), -EINVAL);
	hand_close(&b.h);
}

/* Not its buffers, as ioq_close() would: what is on the way still goes there. */
static void close_server(struct batch *b)
{
	io_uring_queue_exit(&b->h.q.ring);
	munmap((void *)b->h.q.desc, b->h.q.desc_bytes);
	close(b->h.fd);
}

static void batch_recover(struct batch *b, struct dev *dev, uint8_t *store)
{
	struct job *end;

	RESULT_REQUIRED("start-recovery", dev_cmd(dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0),
			0);
	batch_open(b, dev);
	RESULT_REQUIRED("batch-prep", prep_all(b), 0);
	fetch_sqe(b);
	ioq_submit(&b->h.q);
	end = dev_cmd_begin(dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)getpid());
	RESULT_REQUIRED("end-recovery", batch_serve_job(b, end, store), 0);
}

/* QUIESCE_DEV on a batch device left force_abort set, so that nothing worked afterwards. */
CASE(bug_quiesce_of_a_batch_device_leaves_it_aborting)
{
	uint64_t flags = UBLK_F_BATCH_IO | UBLK_F_USER_RECOVERY | UBLK_F_QUIESCE;
	struct dev *dev = dev_new(flags, 1, DEPTH);
	uint8_t *store = batch_store();
	struct batch b;
	struct job *io;

	batch_up(&b, dev, store);
	RESULT_REQUIRED(
		"quiesce-batch",
		batch_serve_job(&b, dev_cmd_begin(dev, UBLK_U_CMD_QUIESCE_DEV, 3000), store), 0);
	close_server(&b);
	REQUIRE(dev_wait_state(dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(dev));
	io = io_begin(dev, IO_READ, AT, 4096);
	batch_recover(&b, dev, store);
	RESULT("read-after-quiesce-of-a-batch-device", batch_serve_job(&b, io, store), 4096);
	job_put(io);
	io = io_begin(dev, IO_READ, AT, 4096);
	CHECK(batch_serve_job(&b, io, store) == 4096, "a read after the recovery failed");
	job_put(io);
	batch_down(&b, store);
}

/* A server with a queue full of writes goes, some in its hands and others on the way to it. */
CASE(batch_server_ends)
{
	uint64_t flags = UBLK_F_BATCH_IO | UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE;
	struct dev *dev = dev_new(flags, 1, DEPTH);
	uint8_t *store = batch_store();
	struct job *io[DEPTH];
	struct ioq_cqe cqe;
	struct batch b;

	batch_up(&b, dev, store);
	for (unsigned i = 0; i < DEPTH; i++)
		io[i] = io_begin_seeded(dev, IO_WRITE, AT + i * 65536, 65536, 2 + i);
	while (b.nr_tags < DEPTH / 2)
		batch_wait(&b, &cqe, 100);
	close_server(&b);
	REQUIRE(dev_wait_state(dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(dev));
	batch_recover(&b, dev, store);
	for (unsigned i = 0; i < DEPTH; i++) {
		CHECK(batch_serve_job(&b, io[i], store) == 65536, "reissued write %u failed", i);
		job_put(io[i]);
		CHECK(pattern_check(store + AT + i * 65536, AT + i * 65536, 65536, 2 + i) < 0,
		      "the server got something else of write %u", i);
	}
	batch_down(&b, store);
}

/* ---- With AUTO_BUF_REG: elements bring the place in the buffer table ------------------------ */

#define FIRST_SLOT 2U

static int auto_elem(struct batch *b, uint32_t op, unsigned tag, int result)
{
	struct ublk_elem_header h = {
		.tag = (uint16_t)tag,
		.buf_index = (uint16_t)(FIRST_SLOT + tag),
		.result = result,
	};

	batch_sqe(b, op, &h, 1, sizeof(h), 0);
	return batch_run(b);
}

static void auto_fetch(struct batch *b, struct dev *dev)
{
	batch_open(b, dev);
	REQUIRE(io_uring_register_buffers_sparse(&b->h.q.ring, FIRST_SLOT + DEPTH) == 0,
		"no buffer table");
	for (unsigned tag = 0; tag < DEPTH; tag++)
		RESULT_REQUIRED("batch-auto-prep", auto_elem(b, PREP, tag, 0), 0);
	fetch_sqe(b);
	ioq_submit(&b->h.q);
}

static void auto_up(struct batch *b, uint64_t flags)
{
	struct dev *dev = dev_new(
		UBLK_F_BATCH_IO | UBLK_F_AUTO_BUF_REG | UBLK_F_SUPPORT_ZERO_COPY | flags, 1, DEPTH);
	struct job *start;

	auto_fetch(b, dev);
	start = dev_cmd_begin(dev, UBLK_U_CMD_START_DEV, (uint64_t)getpid());
	REQUIRE(job_wait(start, 5000, NULL) == 0, "START_DEV does not end");
}

static void auto_down(struct batch *b)
{
	struct job *stop = dev_cmd_begin(b->h.dev, UBLK_U_CMD_STOP_DEV, 0);

	REQUIRE(job_wait(stop, 5000, NULL) == 0, "STOP_DEV does not end");
	hand_close(&b->h);
}

/* Moves one request's data between its buffer and the file, and commits it. */
static void auto_serve_one(struct batch *b, int memfd, unsigned bytes)
{
	uint64_t until = now_ms() + 10000;
	const struct ublksrv_io_desc *d;
	struct io_uring_sqe *sqe;
	struct ioq_cqe cqe;
	unsigned tag, slot;
	int ret;

	while (!b->nr_tags) {
		REQUIRE(now_ms() < until, "no request comes");
		batch_wait(b, &cqe, 20);
	}
	tag = b->tags[--b->nr_tags];
	slot = FIRST_SLOT + tag;
	d = &b->h.q.desc[tag];
	sqe = io_uring_get_sqe(&b->h.q.ring);
	if (ublksrv_get_op(d) == UBLK_IO_OP_READ)
		io_uring_prep_read_fixed(sqe, memfd, NULL, bytes, d->start_sector * SECTOR,
					 (int)slot);
	else
		io_uring_prep_write_fixed(sqe, memfd, NULL, bytes, d->start_sector * SECTOR,
					  (int)slot);
	sqe->user_data = 0xfeed;
	ioq_submit(&b->h.q);
	while ((ret = batch_wait(b, &cqe, 5000)) == -EAGAIN)
		;
	REQUIRE(ret == 0, "an I/O of the server does not end");
	RESULT("batch-auto-move", cqe.res, bytes);
	RESULT("batch-auto-commit", auto_elem(b, COMMIT, tag, (int)bytes),
	       (long)sizeof(struct ublk_elem_header));
}

CASE(batch_auto_buf)
{
	int memfd = memfd_create("store", 0);
	struct job *io;
	struct batch b;

	conform_need_features(UBLK_F_BATCH_IO | UBLK_F_AUTO_BUF_REG | UBLK_F_SUPPORT_ZERO_COPY);
	REQUIRE(memfd >= 0 && ftruncate(memfd, DEV_BYTES) == 0, "no memory file");
	auto_up(&b, 0);
	for (unsigned i = 0; i < 3 * DEPTH; i++) {
		io = io_begin_seeded(b.h.dev, IO_WRITE, AT + (uint64_t)i * 65536, 65536, i + 1);
		auto_serve_one(&b, memfd, 65536);
		CHECK(io_end(io) == 65536, "write %u failed", i);
		io = io_begin(b.h.dev, IO_READ, AT + (uint64_t)i * 65536, 65536);
		auto_serve_one(&b, memfd, 65536);
		REQUIRE(job_wait(io, 5000, NULL) == 0 && io->result == 65536, "read %u failed", i);
		CHECK(pattern_check(io->data, AT + (uint64_t)i * 65536, 65536, i + 1) < 0,
		      "read %u brings something else", i);
		job_put(io);
	}
	auto_down(&b);
}

/* Where a dead server's ring had a request's buffer is no command of the next server's. */
CASE(batch_auto_buf_recovered)
{
	struct job *end, *io;
	struct ioq_cqe cqe;
	struct dev *dev;
	struct batch b;

	auto_up(&b, UBLK_F_USER_RECOVERY);
	dev = b.h.dev;
	io = io_begin(dev, IO_READ, AT, 4096);
	for (uint64_t until = now_ms() + 10000; !b.nr_tags;) {
		REQUIRE(now_ms() < until, "no request comes");
		batch_wait(&b, &cqe, 20);
	}
	close_server(&b);
	RESULT("read-of-a-dead-batch-server", io_end(io), -EIO);
	REQUIRE(dev_wait_state(dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(dev));
	RESULT_REQUIRED("start-recovery", dev_cmd(dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0),
			0);
	auto_fetch(&b, dev);
	end = dev_cmd_begin(dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)getpid());
	REQUIRE(job_wait(end, 5000, NULL) == 0, "END_USER_RECOVERY does not end");
	auto_down(&b);
}
