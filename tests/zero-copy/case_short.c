// SPDX-License-Identifier: MIT
/*
 * Reads that come short or fail: what a reader sees then is zeroes, never what the pages held.
 */
#include "client.h"
#include "harness.h"
#include "zc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define LEN 65536U

static uint8_t buf[LEN];

/* A read into pages that hold something else, up to its being answered. */
static struct job *dirty_read(struct hand *h, unsigned *tag)
{
	struct job *io = io_begin(h->dev, IO_READ, 0, LEN);

	*tag = ioq_next(&h->q, NULL);
	/* The client's memory, which the request's pages are. */
	memset(io->data, 0xaa, LEN);
	return io;
}

/* Commits all of it, whatever happened, and looks at what the reader has. */
static void check_read(struct hand *h, struct job *io, unsigned tag, uint32_t good)
{
	long res = 0;

	ioq_commit(&h->q, tag, LEN);
	REQUIRE(job_wait(io, 10000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	CHECK(zc_data_differs(io, 0, good, 9) < 0, "the part that was read is not the file's");
	CHECK(zc_data_is_zero(io, good, LEN), "there is something else than zeroes after byte %u",
	      good);
	job_put(io);
}

static int short_file(uint32_t bytes)
{
	int fd = scratch_open(0);

	pattern_fill(buf, 0, bytes, 9);
	REQUIRE(pwrite(fd, buf, bytes, 0) == (ssize_t)bytes, "cannot write the file");
	return fd;
}

CASE(short_end_of_file)
{
	int fd = short_file(10000);
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	io = dirty_read(&h, &tag);
	m = zc_read(fd, 0, LEN, 0);
	RESULT("a read over the end", zc_members(&h.q, tag, &m, 1), -EIO);
	check_read(&h, io, tag, 10000);

	io = dirty_read(&h, &tag);
	m.flags = UBD_MEMBER_F_ZERO_EOF;
	RESULT("a read over the end that may be", zc_members(&h.q, tag, &m, 1), LEN);
	check_read(&h, io, tag, 10000);

	/* All of it is behind the end. */
	io = dirty_read(&h, &tag);
	m.pos = 1 << 20;
	m.flags = 0;
	RESULT("a read behind the end", zc_members(&h.q, tag, &m, 1), -EIO);
	check_read(&h, io, tag, 0);
	hand_down(&h);
}

CASE(short_fused_failure)
{
	int fd = short_file(10000);
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	io = dirty_read(&h, &tag);
	m = zc_read(fd, 0, LEN, 0);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	/* The request was not ended: the server still has it. */
	RESULT("a fused commit whose member fails", zc_result(&h.q, UBD_U_IO_FUSED, tag), -EIO);
	CHECK(!job_ended(io), "the request has ended though its member failed");
	check_read(&h, io, tag, 10000);
	hand_down(&h);
}

/* A hole between members, and what was never filled. */
CASE(short_gaps)
{
	int fd = short_file(LEN);
	struct hand h;
	struct job *io;
	unsigned tag;
	long res = 0;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	io = dirty_read(&h, &tag);
	zc_members(&h.q, tag,
		   (struct ubd_member[]){zc_read(fd, 0, 4096, 0), zc_read(fd, 16384, 4096, 16384)},
		   2);
	ioq_commit(&h.q, tag, LEN);
	REQUIRE(job_wait(io, 10000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	CHECK(zc_data_differs(io, 0, 4096, 9) < 0 &&
		      pattern_check(io->data + 16384, 16384, 4096, 9) < 0,
	      "the members' parts are not the file's");
	CHECK(zc_data_is_zero(io, 4096, 16384) && zc_data_is_zero(io, 20480, LEN),
	      "something shows between and after the members");
	job_put(io);

	/* Nothing filled at all. */
	io = dirty_read(&h, &tag);
	check_read(&h, io, tag, 0);

	/* Only zeroes asked for. */
	io = dirty_read(&h, &tag);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag,
		  &(struct ubd_member){.op = UBD_MEMBER_ZERO, .fd = -1, .len = LEN}, 1);
	REQUIRE(job_wait(io, 10000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	CHECK(zc_data_is_zero(io, 0, LEN), "a zero member does not zero");
	job_put(io);
	hand_down(&h);
}

/* The disk below fails in the middle: /run/zc/bad has an unreadable block, made by ./guest. */
CASE(short_disk_error)
{
	int fd = open("/run/zc/bad", O_RDWR | O_DIRECT | O_CLOEXEC);
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;
	long res = 0;

	if (fd < 0)
		conform_skip("there is no disk with a bad block: %s", strerror(errno));
	zc_up(&h, UBD_F_MEMBERS, 2);
	io = dirty_read(&h, &tag);
	m = zc_read(fd, 0, LEN, 0);
	RESULT("a read of a bad block", zc_members(&h.q, tag, &m, 1), -EIO);
	ioq_commit(&h.q, tag, LEN);
	job_wait(io, 10000, &res);
	for (unsigned i = 0; i < LEN; i++)
		if (io->data[i] == 0xaa) {
			CHECK(false, "byte %u is what the page held before", i);
			break;
		}
	job_put(io);
	hand_down(&h);
}

CASE(short_truncated_meanwhile)
{
	int fd = short_file(LEN);
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;

	zc_up(&h, UBD_F_MEMBERS, 2);
	io = dirty_read(&h, &tag);
	REQUIRE(ftruncate(fd, 4096) == 0, "cannot truncate");
	m = zc_read(fd, 0, LEN, 0);
	RESULT("a read of a truncated file", zc_members(&h.q, tag, &m, 1), -EIO);
	check_read(&h, io, tag, 4096);
	hand_down(&h);
}

static void short_stream(bool tcp)
{
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2];

	stream_pair(tcp, fds);
	zc_up(&h, UBD_F_MEMBERS, 2);
	io = dirty_read(&h, &tag);
	m = zc_recv(fds[0], 0, LEN);
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, &m, 1);
	pattern_fill(buf, 0, 5000, 9);
	REQUIRE(stream_put(fds[1], buf, 5000), "cannot send");
	CHECK(ioq_quiet(&h.q, 200), "the member ends before its data has come");
	close(fds[1]);
	RESULT("a stream that ends early", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -EIO);
	check_read(&h, io, tag, 5000);
	close(fds[0]);
	hand_down(&h);
}

CASE(short_unix_stream)
{
	short_stream(false);
}

CASE(short_tcp_stream)
{
	short_stream(true);
}
