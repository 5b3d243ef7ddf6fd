// SPDX-License-Identifier: MIT
/*
 * What the driver refuses, and that a refusal leaves the request as it was.
 */
#include "client.h"
#include "ctrl.h"
#include "harness.h"
#include "zc.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LEN 16384U

static struct ubd_member with_flags(struct ubd_member m, uint8_t flags)
{
	m.flags = flags;
	return m;
}

static void refuse(struct hand *h, unsigned tag, const char *what, struct ubd_member m, int error)
{
	RESULT(what, zc_members(&h->q, tag, &m, 1), error);
}

CASE(query)
{
	struct ubd_query answer = {0};

	RESULT("QUERY", ctrl(UBD_U_CMD_QUERY, 0, .buf = &answer, .len = sizeof(answer)), 0);
	CHECK(answer.abi_version == UBD_ABI_VERSION, "the ABI's version is %u", answer.abi_version);
	CHECK(answer.features == UBD_F_ALL, "the features are 0x%llx",
	      (unsigned long long)answer.features);
	CHECK(memchr(answer.version, 0, sizeof(answer.version)) && answer.version[0],
	      "the version is no text");
	CHECK(!(conform_features() & UBD_F_ALL), "GET_FEATURES tells of features not mainline's");
}

CASE(refuse_ranges_and_ways)
{
	const struct ublksrv_io_desc *iod;
	int fd = scratch_open(1 << 20);
	int ro = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct hand h;
	struct job *io;
	unsigned tag;

	zc_up(&h, UBD_F_ALL, 2);
	io = io_begin(h.dev, IO_READ, 0, LEN);
	tag = ioq_next(&h.q, &iod);
	refuse(&h, tag, "a write of a read request", zc_write(fd, 0, LEN, 0), -EINVAL);
	refuse(&h, tag, "one byte too many", zc_read(fd, 0, LEN + 1, 0), -EINVAL);
	refuse(&h, tag, "over the end", zc_read(fd, 4096, LEN, 0), -EINVAL);
	refuse(&h, tag, "behind the end", zc_read(fd, LEN, 1, 0), -EINVAL);
	refuse(&h, tag, "an offset that wraps", zc_read(fd, 0xfffff000, 0x2000, 0), -EINVAL);
	refuse(&h, tag, "no bytes", zc_read(fd, 0, 0, 0), -EINVAL);
	refuse(&h, tag, "a negative position", zc_read(fd, 0, LEN, 1ULL << 63), -EINVAL);
	refuse(&h, tag, "an unknown flag", with_flags(zc_read(fd, 0, LEN, 0), 0x80), -EINVAL);
	refuse(&h, tag, "a durable read", with_flags(zc_read(fd, 0, LEN, 0), UBD_MEMBER_F_FUA),
	       -EINVAL);
	refuse(&h, tag, "an unknown operation", (struct ubd_member){.op = 6, .fd = fd, .len = LEN},
	       -EINVAL);
	refuse(&h, tag, "a reserved field",
	       (struct ubd_member){.op = UBD_MEMBER_READ, .fd = fd, .len = LEN, .reserved = 1},
	       -EINVAL);
	refuse(&h, tag, "zeroes from a file",
	       (struct ubd_member){.op = UBD_MEMBER_ZERO, .fd = fd, .len = LEN}, -EINVAL);
	ioq_commit(&h.q, tag, LEN);
	CHECK(io_end(io) == LEN, "the read fails after refusals");

	io = io_begin(h.dev, IO_WRITE, 0, LEN);
	tag = ioq_next(&h.q, &iod);
	refuse(&h, tag, "a read of a write request", zc_read(fd, 0, LEN, 0), -EINVAL);
	refuse(&h, tag, "a receive of a write request", zc_recv(fd, 0, LEN), -EINVAL);
	refuse(&h, tag, "a write to a read-only file", zc_write(ro, 0, LEN, 0), -EBADF);
	ioq_commit(&h.q, tag, LEN);
	io_end(io);

	/* A request without data. */
	io = io_begin(h.dev, IO_DISCARD, 0, LEN);
	CHECK(io_end(io) == -EOPNOTSUPP, "the device discards");
	io = io_begin(h.dev, IO_WRITE, 0, LEN);
	ioq_commit(&h.q, ioq_next(&h.q, NULL), LEN);
	io_end(io);
	io = io_begin(h.dev, IO_FLUSH, 0, 0);
	tag = ioq_next(&h.q, &iod);
	refuse(&h, tag, "a write of a flush", zc_write(fd, 0, 512, 0), -EINVAL);
	refuse(&h, tag, "a sync with a length",
	       (struct ubd_member){.op = UBD_MEMBER_FSYNC, .fd = fd, .len = 1}, -EINVAL);
	ioq_commit(&h.q, tag, 0);
	CHECK(io_end(io) == 0, "the flush fails");
	hand_down(&h);
}

CASE(refuse_files)
{
	const struct ublksrv_io_desc *iod;
	int fds[2], pipes[2], own, append;
	struct hand h;
	struct job *io;
	unsigned tag;

	zc_up(&h, UBD_F_ALL, 4);
	own = open(dev_block_path(h.dev), O_RDWR | O_CLOEXEC);
	REQUIRE(own >= 0, "cannot open the disk: %s", strerror(errno));
	append = open("/run/zc/tmpfs/append", O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	REQUIRE(pipe(pipes) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, fds) == 0, "no pipe");
	io = io_begin(h.dev, IO_WRITE, 0, LEN);
	tag = ioq_next(&h.q, &iod);
	refuse(&h, tag, "a closed fd", zc_write(12345, 0, LEN, 0), -EBADF);
	refuse(&h, tag, "fd -1", zc_write(-1, 0, LEN, 0), -EBADF);
	refuse(&h, tag, "the device itself", zc_write(own, 0, LEN, 0), -EINVAL);
	refuse(&h, tag, "the char device", zc_write(h.fd, 0, LEN, 0), -EINVAL);
	refuse(&h, tag, "a pipe", zc_write(pipes[1], 0, LEN, 0), -EINVAL);
	refuse(&h, tag, "a socket as a file", zc_write(fds[0], 0, LEN, 0), -EINVAL);
	refuse(&h, tag, "a file as a socket", zc_send(append, 0, LEN), -ENOTSOCK);
	refuse(&h, tag, "datagrams", zc_send(fds[0], 0, LEN), -EINVAL);
	refuse(&h, tag, "an appending file", zc_write(append, 0, LEN, 0), -EINVAL);
	ioq_commit(&h.q, tag, LEN);
	CHECK(io_end(io) == LEN, "the write fails after refusals");
	close(own);
	hand_down(&h);
}

CASE(refuse_commands)
{
	const struct ublksrv_io_desc *iod;
	int fd = scratch_open(1 << 20);
	struct ubd_member m = zc_write(fd, 0, LEN, 0);
	static uint8_t page[4096];
	struct io_uring_sqe *sqe;
	struct hand h;
	struct job *io;
	uint32_t gen;
	unsigned tag;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	zc_submit_raw(&h.q, UBD_U_IO_MEMBERS, 0, ubd_generation_nr(1, 1), (uintptr_t)&m);
	RESULT("a member of a tag that was never served", zc_result(&h.q, UBD_U_IO_MEMBERS, 0),
	       -ESTALE);
	io = io_begin(h.dev, IO_WRITE, 0, LEN);
	tag = ioq_next(&h.q, &iod);
	gen = zc_generation(&h.q, tag);
	CHECK(gen && gen <= UBD_GENERATION_MASK, "the generation is 0x%x", gen);
	RESULT("no members", zc_members(&h.q, tag, &m, 0), -EINVAL);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 0);
	RESULT("a fused commit of nothing", zc_result(&h.q, UBD_U_IO_FUSED, tag), -EINVAL);
	zc_submit_raw(&h.q, UBD_U_IO_MEMBERS, tag, ubd_generation_nr(gen + 1, 1), (uintptr_t)&m);
	RESULT("another generation", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -ESTALE);
	zc_submit_raw(&h.q, UBD_U_IO_MEMBERS, tag, ubd_generation_nr(gen, 1), 8);
	RESULT("members nowhere", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -EFAULT);
	zc_lease(&h.q, tag, &(struct ubd_lease){.nr_members = 1});
	RESULT("a lease that was not asked for", zc_result(&h.q, UBD_U_IO_LEASE, tag), -EOPNOTSUPP);
	/* IORING_URING_CMD_FIXED, in the SQE's command flags, with a buffer that there is. */
	REQUIRE(io_uring_register_buffers(&h.q.ring, &(struct iovec){page, sizeof(page)}, 1) == 0,
		"cannot register a buffer");
	sqe = ioq_sqe(&h.q, UBD_U_IO_MEMBERS, 0, (uint16_t)tag, (int)ubd_generation_nr(gen, 1),
		      (uintptr_t)&m);
	sqe->rw_flags = 1;
	ioq_submit(&h.q);
	RESULT("a registered buffer", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -EINVAL);
	/* The second of two is wrong: the first must not be begun. */
	struct ubd_member two[] = {m, zc_write(fd, LEN, 1, 0)};

	RESULT("a wrong second member", zc_members(&h.q, tag, two, 2), -EINVAL);
	CHECK(lseek(fd, 0, SEEK_DATA) < 0, "the first member was begun");
	/* With io_uring's own selection of buffers, the kernel or the driver says no. */
	sqe = ioq_sqe(&h.q, UBD_U_IO_MEMBERS, 0, (uint16_t)tag, (int)ubd_generation_nr(gen, 1),
		      (uintptr_t)&m);
	sqe->flags = IOSQE_BUFFER_SELECT;
	ioq_submit(&h.q);
	int res = zc_result(&h.q, UBD_U_IO_MEMBERS, tag);

	CHECK(res == -EINVAL || res == -EOPNOTSUPP, "a selected buffer: %s", conform_errname(res));
	ioq_commit(&h.q, tag, LEN);
	CHECK(io_end(io) == LEN, "the write fails after refusals");
	hand_down(&h);
}

CASE(refuse_without_features)
{
	struct dev *dev = dev_new(UBLK_F_USER_COPY, 1, 2);
	int fd = scratch_open(1 << 20);
	struct ubd_member m = zc_read(fd, 0, LEN, 0);
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev);
	io = io_begin(h.dev, IO_READ, 0, LEN);
	tag = ioq_next(&h.q, NULL);
	RESULT("members without the feature", zc_members(&h.q, tag, &m, 1), -EOPNOTSUPP);
	ioq_commit(&h.q, tag, LEN);
	io_end(io);
	hand_down(&h);
}

CASE(refuse_stale)
{
	const struct ublksrv_io_desc *iod;
	int fd = scratch_open(1 << 20);
	struct ubd_member m = zc_write(fd, 0, LEN, 0);
	struct hand h;
	struct job *io;
	uint32_t old;
	unsigned tag;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 1);
	io = io_begin(h.dev, IO_WRITE, 0, LEN);
	tag = ioq_next(&h.q, &iod);
	old = zc_generation(&h.q, tag);
	ioq_commit(&h.q, tag, LEN);
	io_end(io);
	zc_submit_raw(&h.q, UBD_U_IO_MEMBERS, tag, ubd_generation_nr(old, 1), (uintptr_t)&m);
	RESULT("a member after its commit", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -ESTALE);
	zc_submit_raw(&h.q, UBD_U_IO_FUSED, tag, ubd_generation_nr(old, 1), (uintptr_t)&m);
	RESULT("a fused commit after a commit", zc_result(&h.q, UBD_U_IO_FUSED, tag), -ESTALE);
	io = io_begin(h.dev, IO_WRITE, 0, LEN);
	tag = ioq_next(&h.q, &iod);
	CHECK(zc_generation(&h.q, tag) != old, "the next request has the same generation");
	zc_submit_raw(&h.q, UBD_U_IO_MEMBERS, tag, ubd_generation_nr(old, 1), (uintptr_t)&m);
	RESULT("a member of the last request", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -ESTALE);
	ioq_commit(&h.q, tag, LEN);
	io_end(io);
	hand_down(&h);
}
