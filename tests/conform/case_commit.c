// SPDX-License-Identifier: MIT
/*
 * COMMIT_AND_FETCH_REQ: who may commit what, and what each result does to the request.
 */
#include "client.h"
#include "hand.h"
#include "harness.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define FETCH UBLK_U_IO_FETCH_REQ
#define COMMIT UBLK_U_IO_COMMIT_AND_FETCH_REQ
#define AT (1ULL << 20)

CASE(commit_not_owned)
{
	struct hand h;

	hand_open(&h, dev_new(0, 1, 4));
	RESULT("commit-before-fetch", ioq_refused(&h.q, COMMIT, 0, 0, 0, ioq_addr(&h.q, 0)),
	       -EINVAL);
	ioq_fetch_all(&h.q);
	RESULT("commit-before-start", ioq_refused(&h.q, COMMIT, 0, 0, 0, ioq_addr(&h.q, 0)),
	       -EBUSY);
	ioq_start_dev(&h.q);
	RESULT("commit-idle", ioq_refused(&h.q, COMMIT, 0, 0, 0, ioq_addr(&h.q, 0)), -EBUSY);
	hand_down(&h);
}

CASE(commit_wrong_queue_and_tag)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("commit-wrong-queue", ioq_refused(&h.q, COMMIT, 1, (uint16_t)tag, 4096, 4096),
	       -EINVAL);
	RESULT("commit-wrong-tag", ioq_refused(&h.q, COMMIT, 0, 4, 4096, 4096), -EINVAL);
	RESULT("commit-other-tag",
	       ioq_refused(&h.q, COMMIT, 0, (uint16_t)((tag + 1) % 4), 4096, 4096), -EBUSY);
	CHECK(io_end_within(io, 100) == JOB_RUNNING, "a wrong commit completed the request");
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the read failed");
	hand_down(&h);
}

CASE(commit_twice)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	ioq_commit(&h.q, tag, 4096);
	RESULT("commit-twice",
	       ioq_refused(&h.q, COMMIT, 0, (uint16_t)tag, 4096, ioq_addr(&h.q, tag)), -EBUSY);
	CHECK(io_end(io) == 4096, "the read failed");
	hand_down(&h);
}

CASE(commit_twice_in_one_submission)
{
	struct hand h;
	struct job *io;
	struct ioq_cqe cqe;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	for (unsigned i = 0; i < 3; i++)
		ioq_sqe(&h.q, COMMIT, 0, (uint16_t)tag, 4096, ioq_addr(&h.q, tag));
	ioq_submit(&h.q);
	for (unsigned i = 0; i < 2; i++) {
		REQUIRE(ioq_wait(&h.q, &cqe, 2000) == 0, "a second commit was taken");
		RESULT("commit-twice-at-once", cqe.res, -EBUSY);
	}
	CHECK(io_end(io) == 4096, "the read failed");
	hand_down(&h);
}

/* A refused commit leaves the request with the server. */
CASE(commit_without_a_buffer)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("commit-no-buffer", ioq_refused(&h.q, COMMIT, 0, (uint16_t)tag, 4096, 0), -EINVAL);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the read failed");
	hand_down(&h);
}

CASE(commit_with_a_buffer_in_user_copy)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	conform_need_features(UBLK_F_USER_COPY);
	hand_up(&h, dev_new(UBLK_F_USER_COPY, 1, 4));
	io = io_begin(h.dev, IO_WRITE, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("commit-user-copy-buffer", ioq_refused(&h.q, COMMIT, 0, (uint16_t)tag, 4096, 4096),
	       -EINVAL);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the write failed");
	hand_down(&h);
}

/* A new buffer with each commit: it is the next request's. */
CASE(commit_changes_the_buffer)
{
	struct hand h;
	const struct ublksrv_io_desc *iod;
	static uint8_t other[4096] __attribute__((aligned(4096)));
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 1));
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	ioq_sqe(&h.q, COMMIT, 0, (uint16_t)tag, 4096, (uint64_t)(uintptr_t)other);
	ioq_submit(&h.q);
	CHECK(io_end(io) == 4096, "the read failed");
	io = io_begin_seeded(h.dev, IO_WRITE, AT, 4096, 9);
	tag = ioq_next(&h.q, &iod);
	CHECK(iod->addr == (uint64_t)(uintptr_t)other, "the descriptor has another address");
	CHECK(pattern_check(other, AT, 4096, 9) < 0, "the data is not in the new buffer");
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the write failed");
	hand_down(&h);
}

static void one_result(struct hand *h, enum io_kind kind, int commit, const char *aspect,
		       long expected)
{
	struct job *io = io_begin(h->dev, kind, AT, 4096);
	unsigned tag = ioq_next(&h->q, NULL);

	ioq_commit(&h->q, tag, commit);
	RESULT(aspect, io_end(io), expected);
}

CASE(commit_errors)
{
	struct hand h;

	hand_up(&h, dev_new(0, 1, 4));
	one_result(&h, IO_READ, -EIO, "read-eio", -EIO);
	one_result(&h, IO_WRITE, -EIO, "write-eio", -EIO);
	one_result(&h, IO_WRITE, -ENOSPC, "write-enospc", -ENOSPC);
	one_result(&h, IO_READ, -ETIMEDOUT, "read-etimedout", -ETIMEDOUT);
	one_result(&h, IO_WRITE, -EPERM, "write-eperm", -EIO);
	one_result(&h, IO_READ, -4095, "read-unknown-errno", -EIO);
	one_result(&h, IO_READ, -100000, "read-no-errno", -EIO);
	one_result(&h, IO_READ, INT_MIN, "read-int-min", -EIO);
	one_result(&h, IO_FLUSH, -EIO, "flush-eio", -EIO);
	hand_down(&h);
}

CASE(commit_zero_for_a_read)
{
	struct hand h;

	hand_up(&h, dev_new(0, 1, 4));
	one_result(&h, IO_READ, 0, "read-zero", -EIO);
	hand_down(&h);
}

/* Nothing written is nothing done: the write is asked for again. */
CASE(commit_zero_for_a_write)
{
	struct hand h;
	const struct ublksrv_io_desc *iod;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_WRITE, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	ioq_commit(&h.q, tag, 0);
	tag = ioq_next(&h.q, &iod);
	CHECK(iod->start_sector == AT / SECTOR && iod->nr_sectors == 8,
	      "asked for %u sectors at %llu", iod->nr_sectors,
	      (unsigned long long)iod->start_sector);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the write failed");
	hand_down(&h);
}

static void short_result(uint64_t flags, enum io_kind kind)
{
	struct hand h;
	const struct ublksrv_io_desc *iod;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(flags, 1, 4));
	io = io_begin_seeded(h.dev, kind, AT, 8192, 4);
	for (unsigned done = 0; done < 16; done += 5) {
		unsigned want = 16 - done < 5 ? 16 - done : 5;

		tag = ioq_next(&h.q, &iod);
		CHECK(iod->start_sector == AT / SECTOR + done && iod->nr_sectors == 16 - done,
		      "after %u sectors: asked for %u at %llu", done, iod->nr_sectors,
		      (unsigned long long)iod->start_sector);
		if (kind == IO_READ)
			pattern_fill(ioq_buf(&h.q, tag), iod->start_sector * SECTOR, want * SECTOR,
				     4);
		else
			CHECK(pattern_check(ioq_buf(&h.q, tag), iod->start_sector * SECTOR,
					    iod->nr_sectors * SECTOR, 4) < 0,
			      "after %u sectors: other data", done);
		ioq_commit(&h.q, tag, (int)(want * SECTOR));
	}
	REQUIRE(job_wait(io, 5000, NULL) == 0, "the I/O does not end");
	CHECK(io->result == 8192, "the I/O: %s", conform_errname(io->result));
	CHECK(kind != IO_READ || pattern_check(io->data, AT, 8192, 4) < 0, "the data differs");
	hand_down(&h);
}

CASE(commit_short_read)
{
	short_result(0, IO_READ);
}

CASE(commit_short_write)
{
	short_result(0, IO_WRITE);
}

/*
 * A result that ends within a sector. Whatever the driver makes of it, a read that succeeds must
 * bring the right data.
 */
CASE(commit_short_within_a_sector)
{
	struct hand h;
	const struct ublksrv_io_desc *iod;
	struct ioq_cqe cqe;
	struct job *io;
	bool wrong;

	hand_up(&h, dev_new(0, 1, 1));
	io = io_begin_seeded(h.dev, IO_READ, AT, 4096, 4);
	for (unsigned round = 0; round < 40 && !job_ended(io); round++) {
		if (ioq_wait(&h.q, &cqe, 50) || cqe.res)
			continue;
		iod = &h.q.desc[cqe.tag];
		pattern_fill(ioq_buf(&h.q, cqe.tag), iod->start_sector * SECTOR,
			     iod->nr_sectors * SECTOR, 4);
		ioq_commit(&h.q, cqe.tag, round ? (int)(iod->nr_sectors * SECTOR) : 1000);
	}
	REQUIRE(job_wait(io, 3000, NULL) == 0, "the read does not end");
	wrong = io->result == 4096 && pattern_check(io->data, AT, 4096, 4) >= 0;
	RESULT("short-within-a-sector-wrong-data", wrong, 0);
	hand_down(&h);
}

CASE(commit_too_much_for_a_write)
{
	struct hand h;
	struct job *io;
	unsigned tag;
	long res;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_WRITE, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	ioq_commit(&h.q, tag, 4096 + 512);
	res = io_end(io);
	CHECK(res == 4096 || res == -EIO, "the write: %s", conform_errname(res));
	io = io_begin(h.dev, IO_WRITE, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	ioq_commit(&h.q, tag, INT_MAX);
	res = io_end(io);
	CHECK(res == 4096 || res == -EIO, "the write: %s", conform_errname(res));
	hand_down(&h);
}

/* In-tree warns in the kernel log. */
CASE(commit_too_much_for_a_read)
{
	struct hand h;
	struct job *io;
	unsigned tag;
	long res;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	memset(ioq_buf(&h.q, tag), 0x5a, 8192);
	ioq_commit(&h.q, tag, 4096 + 512);
	REQUIRE(job_wait(io, 5000, NULL) == 0, "the read does not end");
	res = io->result;
	CHECK(res == 4096 || res == -EIO, "the read: %s", conform_errname(res));
	CHECK(io->data[4096] != 0x5a, "the read went beyond its buffer");
	hand_down(&h);
}

CASE(commit_too_much_in_user_copy)
{
	struct hand h;
	struct job *io;
	unsigned tag;
	long res;

	conform_need_features(UBLK_F_USER_COPY);
	hand_up(&h, dev_new(UBLK_F_USER_COPY, 1, 4));
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	ioq_commit(&h.q, tag, INT_MAX);
	res = io_end(io);
	CHECK(res == 4096 || res == -EIO, "the read: %s", conform_errname(res));
	hand_down(&h);
}

/* Trap: FLUSH, DISCARD and WRITE_ZEROES complete with 0, never with a byte count. */
CASE(trap_no_byte_count_for_flush_and_discard)
{
	static const enum io_kind kinds[] = {IO_FLUSH, IO_DISCARD, IO_ZERO};
	struct dev *dev = dev_new(0, 1, 4);
	struct hand h;

	dev->params.types |= UBLK_PARAM_TYPE_DISCARD;
	dev->params.discard = (struct ublk_param_discard){
		.discard_granularity = 512,
		.max_discard_sectors = 2048,
		.max_write_zeroes_sectors = 2048,
		.max_discard_segments = 1,
	};
	hand_up(&h, dev);
	for (unsigned i = 0; i < 3; i++)
		one_result(&h, kinds[i], 0, "no-bytes-success", 0);
	/* A byte count, as careless servers give, must not bring the request back. */
	for (unsigned i = 0; i < 3; i++)
		one_result(&h, kinds[i], 512, "no-bytes-count", 0);
	one_result(&h, IO_DISCARD, -EIO, "discard-eio", -EIO);
	hand_down(&h);
}

/* CVE-2026-53124: a command fetched again must be cancellable again. */
CASE(bug_cancelled_flag_not_reset_on_refetch)
{
	struct hand h;
	struct ioq_cqe cqe;
	unsigned aborted = 0;

	hand_up(&h, dev_new(0, 1, 4));
	for (unsigned i = 0; i < 16; i++) {
		struct job *io = io_begin(h.dev, IO_READ, AT, 4096);
		unsigned tag = ioq_next(&h.q, NULL);

		ioq_commit(&h.q, tag, 4096);
		CHECK(io_end(io) == 4096, "the read failed");
	}
	dev_stop(h.dev);
	while (aborted < 4 && ioq_wait(&h.q, &cqe, 3000) == 0)
		aborted += cqe.res == UBLK_IO_RES_ABORT;
	CHECK(aborted == 4, "%u of 4 commands were aborted", aborted);
	hand_close(&h);
}
