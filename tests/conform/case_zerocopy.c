// SPDX-License-Identifier: MIT
/*
 * SUPPORT_ZERO_COPY and AUTO_BUF_REG: request buffers in the server's io_uring buffer table, by
 * hand; the data moves between them and a memory file.
 */
#include "client.h"
#include "hand.h"
#include "harness.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define COMMIT UBLK_U_IO_COMMIT_AND_FETCH_REQ
#define REGISTER UBLK_U_IO_REGISTER_IO_BUF
#define UNREGISTER UBLK_U_IO_UNREGISTER_IO_BUF
#define AT (1ULL << 20)
#define SLOTS 16

struct zero_copy {
	struct hand h;
	int memfd;
};

static void zc_open(struct zero_copy *z, uint64_t flags)
{
	conform_need_features(flags);
	z->memfd = memfd_create("store", 0);
	REQUIRE(z->memfd >= 0 && ftruncate(z->memfd, DEV_BYTES) == 0, "no memory file");
	hand_open(&z->h, dev_new(flags, 1, 4));
	REQUIRE(io_uring_register_buffers_sparse(&z->h.q.ring, SLOTS) == 0, "no buffer table");
}

static void zc_up(struct zero_copy *z, uint64_t flags)
{
	zc_open(z, flags);
	ioq_fetch_all(&z->h.q);
	ioq_start_dev(&z->h.q);
}

/* Between the memory file and the buffer in this slot of the table. */
static int move(struct zero_copy *z, bool read_request, unsigned slot, uint64_t in_buf,
		unsigned bytes, uint64_t file_offset)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&z->h.q.ring);
	struct ioq_cqe cqe;

	if (read_request)
		io_uring_prep_read_fixed(sqe, z->memfd, (void *)(uintptr_t)in_buf, bytes,
					 file_offset, (int)slot);
	else
		io_uring_prep_write_fixed(sqe, z->memfd, (void *)(uintptr_t)in_buf, bytes,
					  file_offset, (int)slot);
	sqe->user_data = 0xfeed;
	ioq_submit(&z->h.q);
	REQUIRE(ioq_wait(&z->h.q, &cqe, 5000) == 0, "an I/O of the server does not end");
	return cqe.res;
}

static int buffer_command(struct zero_copy *z, uint32_t op, unsigned q_id, unsigned tag,
			  unsigned slot)
{
	return ioq_refused(&z->h.q, op, (uint16_t)q_id, (uint16_t)tag, 0, slot);
}

CASE(zero_copy_write_and_read)
{
	struct zero_copy z;
	struct job *io;
	static uint8_t got[65536];
	unsigned tag;

	zc_up(&z, UBLK_F_SUPPORT_ZERO_COPY);
	io = io_begin_seeded(z.h.dev, IO_WRITE, AT, 65536, 3);
	tag = ioq_next(&z.h.q, NULL);
	RESULT("register", buffer_command(&z, REGISTER, 0, tag, 5), 0);
	RESULT("write-from-the-request", move(&z, false, 5, 0, 65536, AT), 65536);
	RESULT("unregister", buffer_command(&z, UNREGISTER, 0, tag, 5), 0);
	ioq_commit(&z.h.q, tag, 65536);
	CHECK(io_end(io) == 65536, "the write failed");
	CHECK(pread(z.memfd, got, 65536, AT) == 65536 && pattern_check(got, AT, 65536, 3) < 0,
	      "the file has something else");
	io = io_begin(z.h.dev, IO_READ, AT, 65536);
	tag = ioq_next(&z.h.q, NULL);
	RESULT("register", buffer_command(&z, REGISTER, 0, tag, 6), 0);
	/* In two pieces, the second one first. */
	RESULT("read-into-the-request", move(&z, true, 6, 32768, 32768, AT + 32768), 32768);
	RESULT("read-into-the-request", move(&z, true, 6, 0, 32768, AT), 32768);
	RESULT("unregister", buffer_command(&z, UNREGISTER, 0, tag, 6), 0);
	ioq_commit(&z.h.q, tag, 65536);
	REQUIRE(job_wait(io, 5000, NULL) == 0 && io->result == 65536, "the read failed");
	CHECK(pattern_check(io->data, AT, 65536, 3) < 0, "the read brings something else");
	hand_down(&z.h);
}

CASE(zero_copy_bad_arguments)
{
	struct zero_copy z;
	struct job *io;
	unsigned tag;

	zc_up(&z, UBLK_F_SUPPORT_ZERO_COPY);
	RESULT("register-idle-tag", buffer_command(&z, REGISTER, 0, 0, 0), -EBUSY);
	io = io_begin(z.h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&z.h.q, NULL);
	RESULT("register-bad-queue", buffer_command(&z, REGISTER, 1, tag, 0), -EINVAL);
	RESULT("register-bad-tag", buffer_command(&z, REGISTER, 0, 4, 0), -EINVAL);
	RESULT("register-bad-slot", buffer_command(&z, REGISTER, 0, tag, SLOTS), -EINVAL);
	RESULT("unregister-empty-slot", buffer_command(&z, UNREGISTER, 0, tag, 3), -EINVAL);
	RESULT("unregister-bad-slot", buffer_command(&z, UNREGISTER, 0, tag, SLOTS), -EINVAL);
	RESULT("register", buffer_command(&z, REGISTER, 0, tag, 2), 0);
	RESULT("register-slot-taken", buffer_command(&z, REGISTER, 0, tag, 2), -EBUSY);
	CHECK(move(&z, false, 2, 0, 4096, 0) < 0, "data of a READ request was read");
	CHECK(move(&z, true, 2, 0, 8192, 0) < 0, "more was read than the request has");
	RESULT("unregister", buffer_command(&z, UNREGISTER, 0, tag, 2), 0);
	CHECK(move(&z, true, 2, 0, 4096, 0) < 0, "an unregistered buffer was used");
	ioq_commit(&z.h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the read failed");
	io = io_begin(z.h.dev, IO_FLUSH, 0, 0);
	tag = ioq_next(&z.h.q, NULL);
	RESULT("register-no-data", buffer_command(&z, REGISTER, 0, tag, 2), -EINVAL);
	ioq_commit(&z.h.q, tag, 0);
	CHECK(io_end(io) == 0, "the flush failed");
	hand_down(&z.h);
}

CASE(zero_copy_not_granted)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	conform_need_features(UBLK_F_SUPPORT_ZERO_COPY);
	hand_up(&h, dev_new(0, 1, 4));
	io_uring_register_buffers_sparse(&h.q.ring, SLOTS);
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("register-not-granted", ioq_refused(&h.q, REGISTER, 0, (uint16_t)tag, 0, 0),
	       -EINVAL);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the read failed");
	hand_down(&h);
}

/* The request lives as long as its buffer is in a table, whatever the server commits. */
CASE(zero_copy_commit_waits_for_the_buffer)
{
	struct zero_copy z;
	struct job *io;
	unsigned tag;

	zc_up(&z, UBLK_F_SUPPORT_ZERO_COPY);
	io = io_begin_seeded(z.h.dev, IO_WRITE, AT, 4096, 3);
	tag = ioq_next(&z.h.q, NULL);
	RESULT("register", buffer_command(&z, REGISTER, 0, tag, 0), 0);
	ioq_commit(&z.h.q, tag, 4096);
	CHECK(io_end_within(io, 300) == JOB_RUNNING, "the request ended under its buffer");
	RESULT("unregister", buffer_command(&z, UNREGISTER, 0, tag, 0), 0);
	CHECK(io_end(io) == 4096, "the write failed");
	hand_down(&z.h);
}

/* A read is with the server, its buffer in the table of the server's ring. */
static struct job *read_with_buffer(struct zero_copy *z, unsigned *tag)
{
	struct job *io;

	zc_up(z, UBLK_F_SUPPORT_ZERO_COPY);
	io = io_begin(z->h.dev, IO_READ, AT, 4096);
	*tag = ioq_next(&z->h.q, NULL);
	RESULT("register", buffer_command(z, REGISTER, 0, *tag, 0), 0);
	return io;
}

CASE(zero_copy_server_ends_with_a_buffer)
{
	struct zero_copy z;
	unsigned tag;
	struct job *io = read_with_buffer(&z, &tag);

	ioq_close(&z.h.q);
	close(z.h.fd);
	CHECK(io_end(io) == -EIO, "the read did not fail");
	dev_stop(z.h.dev);
	dev_del(z.h.dev);
}

/*
 * The request waits for its buffer, the buffer for the ring whose table it is in; the ring must
 * not wait for the command that was armed by the request's commit.
 */
CASE(bug_ring_ends_with_the_buffer_of_a_committed_request)
{
	struct zero_copy z;
	unsigned tag;
	struct job *io = read_with_buffer(&z, &tag);

	ioq_commit(&z.h.q, tag, 4096);
	CHECK(io_end_within(io, 300) == JOB_RUNNING, "the request ended under its buffer");
	ioq_close(&z.h.q);
	close(z.h.fd);
	CHECK(io_end(io) == 4096, "the read that was committed failed");
	CHECK(dev_wait_released(z.h.dev, 5000), "the char device is not let go of");
	dev_stop(z.h.dev);
	dev_del(z.h.dev);
}

/* ---- AUTO_BUF_REG ------------------------------------------------------------------------- */

static void auto_sqe(struct zero_copy *z, uint32_t op, unsigned tag, int result, uint64_t reg)
{
	struct io_uring_sqe *sqe = ioq_sqe(&z->h.q, op, 0, (uint16_t)tag, result, 0);

	sqe->addr = reg;
}

static uint64_t auto_reg(unsigned slot, unsigned flags)
{
	struct ublk_auto_buf_reg reg = {.index = (uint16_t)slot, .flags = (uint8_t)flags};

	return ublk_auto_buf_reg_to_sqe_addr(&reg);
}

static void auto_up(struct zero_copy *z, unsigned slot, unsigned flags)
{
	zc_open(z, UBLK_F_AUTO_BUF_REG | UBLK_F_SUPPORT_ZERO_COPY);
	for (unsigned tag = 0; tag < 4; tag++)
		auto_sqe(z, UBLK_U_IO_FETCH_REQ, tag, 0, auto_reg(slot + tag, flags));
	ioq_submit(&z->h.q);
	ioq_start_dev(&z->h.q);
}

/* The slot is the server's choice, not the tag. */
CASE(auto_buf_write_and_read)
{
	struct zero_copy z;
	struct job *io;
	static uint8_t got[65536];
	unsigned tag;

	auto_up(&z, 7, 0);
	io = io_begin_seeded(z.h.dev, IO_WRITE, AT, 65536, 3);
	tag = ioq_next(&z.h.q, NULL);
	RESULT("auto-write-from-the-request", move(&z, false, 7 + tag, 0, 65536, AT), 65536);
	/* With a new slot for the next time. */
	auto_sqe(&z, COMMIT, tag, 65536, auto_reg(1 + tag, 0));
	ioq_submit(&z.h.q);
	CHECK(io_end(io) == 65536, "the write failed");
	CHECK(pread(z.memfd, got, 65536, AT) == 65536 && pattern_check(got, AT, 65536, 3) < 0,
	      "the file has something else");
	CHECK(move(&z, false, 7 + tag, 0, 4096, 0) < 0, "the buffer is still in its slot");
	for (unsigned i = 0; i < 6; i++) {
		unsigned next, slot;

		io = io_begin(z.h.dev, IO_READ, AT, 65536);
		next = ioq_next(&z.h.q, NULL);
		slot = next == tag ? 1 + tag : 7 + next;
		RESULT("auto-read-into-the-request", move(&z, true, slot, 0, 65536, AT), 65536);
		auto_sqe(&z, COMMIT, next, 65536, auto_reg(slot, 0));
		ioq_submit(&z.h.q);
		REQUIRE(job_wait(io, 5000, NULL) == 0 && io->result == 65536, "the read failed");
		CHECK(pattern_check(io->data, AT, 65536, 3) < 0, "the read brings something else");
		job_put(io);
	}
	hand_down(&z.h);
}

CASE(auto_buf_bad_arguments)
{
	struct zero_copy z;
	struct ioq_cqe cqe;
	static const uint64_t bad[] = {1ULL << 24, 1ULL << 32, 1ULL << 63, 2ULL << 16};

	zc_open(&z, UBLK_F_AUTO_BUF_REG | UBLK_F_SUPPORT_ZERO_COPY);
	for (unsigned i = 0; i < 4; i++) {
		auto_sqe(&z, UBLK_U_IO_FETCH_REQ, 0, 0, bad[i]);
		ioq_submit(&z.h.q);
		REQUIRE(ioq_wait(&z.h.q, &cqe, 1000) == 0, "reserved bits were taken: 0x%llx",
			(unsigned long long)bad[i]);
		RESULT("auto-fetch-reserved-bits", cqe.res, -EINVAL);
	}
	hand_close(&z.h);
}

/* No such slot: with FALLBACK the request comes and says so. */
CASE(auto_buf_fallback)
{
	struct zero_copy z;
	const struct ublksrv_io_desc *iod;
	struct job *io;
	unsigned tag;

	auto_up(&z, SLOTS, UBLK_AUTO_BUF_REG_FALLBACK);
	io = io_begin_seeded(z.h.dev, IO_WRITE, AT, 4096, 3);
	tag = ioq_next(&z.h.q, &iod);
	CHECK(iod->op_flags & UBLK_IO_F_NEED_REG_BUF, "flags 0x%x", iod->op_flags);
	RESULT("register-after-fallback", buffer_command(&z, REGISTER, 0, tag, 3), 0);
	RESULT("write-from-the-request", move(&z, false, 3, 0, 4096, AT), 4096);
	RESULT("unregister", buffer_command(&z, UNREGISTER, 0, tag, 3), 0);
	auto_sqe(&z, COMMIT, tag, 4096, auto_reg(2, 0));
	ioq_submit(&z.h.q);
	CHECK(io_end(io) == 4096, "the write failed");
	hand_down(&z.h);
}

/* No such slot, no fallback: the I/O fails and the server goes on. */
CASE(auto_buf_registration_fails)
{
	struct zero_copy z;

	auto_up(&z, SLOTS, 0);
	CHECK(io_run(z.h.dev, IO_WRITE, AT, 4096) == -EIO, "the write did not fail");
	hand_down(&z.h);
}
