// SPDX-License-Identifier: MIT
/*
 * Leases: a leader and its members, and on kernels that have it the ring's own buffer table.
 */
#include "client.h"
#include "harness.h"
#include "zc.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define LEN 65536U

static struct ubd_member leased(struct ubd_member m)
{
	m.flags |= UBD_MEMBER_F_LEASED;
	return m;
}

static void lease_return(struct ioq *q, unsigned tag)
{
	zc_submit_raw(q, UBD_U_IO_RETURN, tag, ubd_generation_nr(zc_generation(q, tag), 0), 0);
}

CASE(lease_counts_members)
{
	int fd = backing_open(TMPFS);
	struct ubd_lease lease = {.nr_members = 2};
	struct ubd_member m[2];
	struct ioq_cqe cqe;
	unsigned tag, seen = 0;
	struct hand h;
	struct job *io;
	long res = 0;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_LEASE, 2);
	io = io_begin(h.dev, IO_READ, 0, LEN);
	tag = ioq_next(&h.q, NULL);
	m[0] = leased(zc_read(fd, 0, LEN / 2, 0));
	m[1] = leased(zc_read(fd, LEN / 2, LEN / 2, LEN / 2));
	zc_lease(&h.q, tag, &lease);
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, &m[0], 1);
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, &m[1], 1);
	for (unsigned i = 0; i < 3; i++) {
		REQUIRE(ioq_wait(&h.q, &cqe, 5000) == 0, "a command of the group does not end");
		if (cqe.op == UBD_U_IO_LEASE) {
			CHECK(cqe.res == 0, "the leader: %s", conform_errname(cqe.res));
			seen |= 4;
		} else {
			CHECK(cqe.res == LEN / 2, "a member: %s", conform_errname(cqe.res));
			seen++;
		}
	}
	CHECK(seen == 6, "not one leader and two members have ended");
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, &m[0], 1);
	RESULT("a member after the lease", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -ECANCELED);
	ioq_commit(&h.q, tag, LEN);
	REQUIRE(job_wait(io, 5000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	CHECK(zc_data_differs(io, 0, LEN, 7) < 0, "the members' data is not there");
	job_put(io);
	hand_down(&h);
}

/* A command that is refused does not count, and its server will not bring another. */
CASE(lease_returned_early)
{
	struct ubd_lease lease = {.nr_members = 2};
	int fd = backing_open(TMPFS);
	struct ubd_member good = leased(zc_read(fd, 0, LEN, 0)),
			  bad = leased(zc_read(-1, 0, LEN, 0));
	struct ioq_cqe cqe;
	unsigned tag, seen = 0;
	struct hand h;
	struct job *io;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_LEASE, 2);
	io = io_begin(h.dev, IO_READ, 0, LEN);
	tag = ioq_next(&h.q, NULL);
	zc_lease(&h.q, tag, &lease);
	RESULT("a member", zc_members(&h.q, tag, &good, 1), LEN);
	RESULT("a member without a file", zc_members(&h.q, tag, &bad, 1), -EBADF);
	CHECK(ioq_quiet(&h.q, 100), "the leader does not wait for its second member");
	lease_return(&h.q, tag);
	for (unsigned i = 0; i < 2; i++) {
		REQUIRE(ioq_wait(&h.q, &cqe, 5000) == 0, "the return or the leader does not end");
		CHECK(cqe.res == 0, "%s: %s",
		      cqe.op == UBD_U_IO_LEASE ? "the leader" : "the return",
		      conform_errname(cqe.res));
		seen |= cqe.op == UBD_U_IO_LEASE ? 2 : 1;
	}
	CHECK(seen == 3, "not one leader and one return have ended");
	ioq_commit(&h.q, tag, LEN);
	CHECK(io_end(io) == LEN, "the read fails");
	hand_down(&h);
}

CASE(lease_refused_leader)
{
	int fd = backing_open(TMPFS);
	struct ubd_member m = leased(zc_read(fd, 0, LEN, 0));
	struct hand h;
	struct job *io;
	unsigned tag;

	zc_up(&h, UBD_F_ALL, 2);
	io = io_begin(h.dev, IO_READ, 0, LEN);
	tag = ioq_next(&h.q, NULL);
	zc_lease(&h.q, tag, &(struct ubd_lease){.nr_members = 0});
	RESULT("a lease for nobody", zc_result(&h.q, UBD_U_IO_LEASE, tag), -EINVAL);
	zc_lease(&h.q, tag, &(struct ubd_lease){.nr_members = 1, .flags = UBD_LEASE_OPEN});
	RESULT("counted and open", zc_result(&h.q, UBD_U_IO_LEASE, tag), -EINVAL);
	zc_lease(&h.q, tag, &(struct ubd_lease){.nr_members = 1, .flags = 8});
	RESULT("an unknown flag", zc_result(&h.q, UBD_U_IO_LEASE, tag), -EINVAL);
	zc_lease(&h.q, tag, &(struct ubd_lease){.nr_members = 1, .reserved[1] = 1});
	RESULT("a reserved field", zc_result(&h.q, UBD_U_IO_LEASE, tag), -EINVAL);
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, &m, 1);
	RESULT("a member whose leader was refused", zc_result(&h.q, UBD_U_IO_MEMBERS, tag),
	       -ECANCELED);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	RESULT("a leased fused commit", zc_result(&h.q, UBD_U_IO_FUSED, tag), -EINVAL);
	lease_return(&h.q, tag);
	RESULT("a return of nothing", zc_result(&h.q, UBD_U_IO_RETURN, tag), -EINVAL);
	ioq_commit(&h.q, tag, LEN);
	CHECK(io_end(io) == LEN, "the read fails");
	hand_down(&h);
}

CASE(lease_failing_member)
{
	int fd = backing_open(TMPFS), empty = scratch_open(0);
	struct ubd_lease lease = {.flags = UBD_LEASE_OPEN};
	struct ubd_member bad = leased(zc_read(empty, 0, LEN, 0));
	struct ubd_member good = leased(zc_read(fd, 0, LEN, 0));
	struct hand h;
	struct job *io;
	unsigned tag;
	long res = 0;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_LEASE, 2);
	io = io_begin(h.dev, IO_READ, 0, LEN);
	tag = ioq_next(&h.q, NULL);
	zc_lease(&h.q, tag, &lease);
	CHECK(ioq_quiet(&h.q, 100), "an open lease ends by itself");
	zc_lease(&h.q, tag, &lease);
	RESULT("a second lease", zc_result(&h.q, UBD_U_IO_LEASE, tag), -EBUSY);
	RESULT("a failing member", zc_members(&h.q, tag, &bad, 1), -EIO);
	RESULT("a member after it", zc_members(&h.q, tag, &good, 1), LEN);
	/* The lease keeps the request, whatever is committed. */
	ioq_commit(&h.q, tag, LEN);
	CHECK(ioq_quiet(&h.q, 200) && !job_ended(io), "the request ends under its lease");
	lease_return(&h.q, tag);
	RESULT("the return", zc_result(&h.q, UBD_U_IO_RETURN, tag), 0);
	RESULT("the leader", zc_result(&h.q, UBD_U_IO_LEASE, tag), 0);
	REQUIRE(job_wait(io, 5000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	CHECK(zc_data_differs(io, 0, LEN, 7) < 0, "the member's data is not there");
	job_put(io);
	hand_down(&h);
}

/* Ordinary requests of io_uring on the leased buffer. */
CASE(lease_buffer)
{
	struct ubd_lease lease = {.flags = UBD_LEASE_OPEN | UBD_LEASE_INDEX, .buf_index = 1};
	int fd = backing_open(TMPFS);
	struct io_uring_sqe *sqe;
	struct ioq_cqe cqe;
	struct hand h;
	struct job *io;
	unsigned tag;
	long res = 0;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_LEASE, 2);
	io = io_begin(h.dev, IO_READ, 0, LEN);
	tag = ioq_next(&h.q, NULL);
	io_uring_register_buffers_sparse(&h.q.ring, 4);
	zc_lease(&h.q, tag, &lease);
	if (ioq_wait(&h.q, &cqe, 100) == 0) {
		CHECK(cqe.res == -EOPNOTSUPP, "a lease with an index: %s",
		      conform_errname(cqe.res));
		ioq_commit(&h.q, tag, LEN);
		io_end(io);
		hand_down(&h);
		conform_skip("this kernel has no registered buffers of drivers");
	}
	sqe = io_uring_get_sqe(&h.q.ring);
	io_uring_prep_read_fixed(sqe, fd, NULL, LEN, 0, 1);
	sqe->user_data = 77;
	ioq_submit(&h.q);
	REQUIRE(ioq_wait(&h.q, &cqe, 5000) == 0 && cqe.tag == 77, "the ordinary read does not end");
	CHECK(cqe.res == LEN, "the ordinary read gives %s", conform_errname(cqe.res));
	lease_return(&h.q, tag);
	/* Either may come first. */
	for (unsigned i = 0; i < 2; i++) {
		REQUIRE(ioq_wait(&h.q, &cqe, 5000) == 0, "the lease does not end");
		CHECK(cqe.res == 0, "the lease's end: %s", conform_errname(cqe.res));
	}
	ioq_commit(&h.q, tag, LEN);
	REQUIRE(job_wait(io, 5000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	CHECK(zc_data_differs(io, 0, LEN, 7) < 0, "the data is not there");
	job_put(io);
	hand_down(&h);
}
