// SPDX-License-Identifier: MIT
/*
 * splice(2) from the char device: a write's pages in a pipe, which hold the request.
 */
#include "client.h"
#include "harness.h"
#include "zc.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define AT (1ULL << 20)
#define LEN (128U << 10)

static uint8_t buf[LEN];

static long from_device(const struct hand *h, unsigned tag, uint64_t off, int pipe, size_t bytes)
{
	off_t at = ioq_data_offset(0, tag, off);
	ssize_t n = splice(h->fd, &at, pipe, NULL, bytes, SPLICE_F_NONBLOCK);

	return n < 0 ? -errno : n;
}

CASE(splice_to_file)
{
	const int fd = scratch_open(1 << 20);
	struct hand h;
	struct job *io;
	unsigned tag;
	int pipes[2];

	REQUIRE(pipe2(pipes, O_CLOEXEC) == 0, "no pipe");
	fcntl(pipes[1], F_SETPIPE_SZ, 1 << 20);
	zc_up(&h, UBD_F_SPLICE, 2);
	for (unsigned i = 1; i <= 3; i++) {
		unsigned done = 0;

		io = io_begin_seeded(h.dev, IO_WRITE, AT, LEN, i);
		tag = ioq_next(&h.q, NULL);
		while (done < LEN) {
			long n = from_device(&h, tag, done, pipes[1], LEN - done);
			long left = n;

			REQUIRE(n > 0, "splice gives %s after %u bytes", conform_errname(n), done);
			for (off_t to = done; left > 0;) {
				ssize_t moved = splice(pipes[0], NULL, fd, &to, (size_t)left, 0);

				REQUIRE(moved > 0, "the pipe gives %s", strerror(errno));
				left -= moved;
			}
			done += (unsigned)n;
		}
		ioq_commit(&h.q, tag, LEN);
		CHECK(io_end(io) == LEN, "the write fails");
		REQUIRE(pread(fd, buf, LEN, 0) == LEN, "cannot read the file back");
		CHECK(pattern_check(buf, AT, LEN, i) < 0, "the file holds something else");
	}
	hand_down(&h);
}

CASE(splice_pipe_holds_request)
{
	int pipes[2], copy[2];
	struct hand h;
	struct job *io;
	unsigned tag;

	REQUIRE(pipe2(pipes, O_CLOEXEC) == 0 && pipe2(copy, O_CLOEXEC) == 0, "no pipe");
	zc_up(&h, UBD_F_SPLICE, 2);
	io = io_begin_seeded(h.dev, IO_WRITE, AT, 16384, 5);
	tag = ioq_next(&h.q, NULL);
	RESULT("splice", from_device(&h, tag, 4096, pipes[1], 8192), 8192);
	/* tee(2) makes more holders. */
	CHECK(tee(pipes[0], copy[1], 8192, 0) == 8192, "tee fails: %s", strerror(errno));
	ioq_commit(&h.q, tag, 16384);
	CHECK(ioq_quiet(&h.q, 200) && !job_ended(io), "the request ends while the pipe has it");
	REQUIRE(read(pipes[0], buf, 8192) == 8192, "cannot read the pipe");
	CHECK(pattern_check(buf, AT + 4096, 8192, 5) < 0, "the pipe holds something else");
	CHECK(ioq_quiet(&h.q, 200) && !job_ended(io), "the request ends while a copy has it");
	close(copy[0]);
	close(copy[1]);
	CHECK(io_end(io) == 16384, "the write fails");
	hand_down(&h);
}

CASE(splice_refusals)
{
	struct hand h;
	struct job *io;
	unsigned tag;
	int pipes[2];

	REQUIRE(pipe2(pipes, O_CLOEXEC) == 0, "no pipe");
	zc_up(&h, UBD_F_SPLICE, 2);
	RESULT("splice of nothing", from_device(&h, 0, 0, pipes[1], 4096), -EINVAL);
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("splice of a read", from_device(&h, tag, 0, pipes[1], 4096), -EINVAL);
	ioq_commit(&h.q, tag, 4096);
	io_end(io);
	io = io_begin(h.dev, IO_WRITE, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("splice over the end", from_device(&h, tag, 4096, pipes[1], 4096), -EINVAL);
	RESULT("splice of another queue",
	       (errno = 0,
		splice(h.fd, &(off_t){ioq_data_offset(3, tag, 0)}, pipes[1], NULL, 4096, 0) < 0
			? -errno
			: 0),
	       -EINVAL);
	RESULT("splice of more than there is", from_device(&h, tag, 0, pipes[1], 1 << 20), 4096);
	close(pipes[0]);
	close(pipes[1]);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the write fails");
	hand_down(&h);
}
