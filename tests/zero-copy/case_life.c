// SPDX-License-Identifier: MIT
/*
 * Who outlives whom: members, their request, their files, their server.
 */
#include "client.h"
#include "harness.h"
#include "server.h"
#include "zc.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LEN 65536U

static uint8_t buf[LEN];

/* A device and a read that it has, as *tag; *m fills it from what comes to fds[1]. */
static struct job *read_from_peer(struct hand *h, bool tcp, int fds[2], unsigned *tag,
				  struct ubd_member *m)
{
	struct job *io;

	stream_pair(tcp, fds);
	zc_up(h, UBD_F_MEMBERS | UBD_F_FUSED, 1);
	io = io_begin(h->dev, IO_READ, 0, LEN);
	*tag = ioq_next(&h->q, NULL);
	*m = zc_recv(fds[0], 0, LEN);
	return io;
}

CASE(commit_before_members_end)
{
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;
	long res = 0;
	int fds[2];

	stream_pair(false, fds);
	zc_up(&h, UBD_F_MEMBERS, 1);
	io = io_begin(h.dev, IO_READ, 0, LEN);
	tag = ioq_next(&h.q, NULL);
	m = zc_recv(fds[0], 0, LEN);
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, &m, 1);
	ioq_commit(&h.q, tag, LEN);
	CHECK(ioq_quiet(&h.q, 300) && !job_ended(io), "the request ends before its member");
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, &m, 1);
	RESULT("a member after the commit", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -ESTALE);
	pattern_fill(buf, 0, LEN, 2);
	REQUIRE(stream_put(fds[1], buf, LEN), "cannot send");
	RESULT("the member", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), LEN);
	REQUIRE(job_wait(io, 10000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	CHECK(zc_data_differs(io, 0, LEN, 2) < 0, "the member's data is not there");
	job_put(io);
	hand_down(&h);
}

CASE(double_commit)
{
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2];

	io = read_from_peer(&h, false, fds, &tag, &m);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	RESULT("a second fused commit", zc_result(&h.q, UBD_U_IO_FUSED, tag), -EBUSY);
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, &m, 1);
	RESULT("members beside a fused commit", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -EBUSY);
	RESULT("a commit beside a fused one",
	       ioq_refused(&h.q, UBLK_U_IO_COMMIT_AND_FETCH_REQ, 0, (uint16_t)tag, LEN, 0), -EBUSY);
	CHECK(!job_ended(io), "the request has ended");
	REQUIRE(stream_put(fds[1], buf, LEN), "cannot send");
	CHECK(io_end(io) == LEN, "the read fails");
	RESULT("a fused commit after it",
	       (zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1), zc_result(&h.q, UBD_U_IO_FUSED, tag)),
	       -ESTALE);
	hand_down(&h);
}

/* The command ends with the tag's next request; a server that asks sees its own end before. */
CASE(fused_end_shows_in_the_descriptor)
{
	struct ubd_member m;
	uint32_t generation;
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2];

	io = read_from_peer(&h, false, fds, &tag, &m);
	generation = zc_generation(&h.q, tag);
	m.fd = -1;
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	RESULT("a fused commit of no file", zc_result(&h.q, UBD_U_IO_FUSED, tag), -EBADF);
	CHECK(zc_generation(&h.q, tag) == generation, "what was refused has ended");
	m.fd = fds[0];
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	sleep_ms(100);
	CHECK(zc_generation(&h.q, tag) == generation, "it shows while the member waits");
	REQUIRE(stream_put(fds[1], buf, LEN), "cannot send");
	CHECK(io_end(io) == LEN, "the read fails");
	CHECK(zc_generation(&h.q, tag) == 0, "it does not show");
	io = io_begin(h.dev, IO_READ, 0, LEN);
	RESULT("the command ends", zc_result(&h.q, UBD_U_IO_FUSED, tag), UBLK_IO_RES_OK);
	CHECK(zc_generation(&h.q, tag) == generation + 1, "generation %u after %u",
	      zc_generation(&h.q, tag), generation);
	ioq_commit(&h.q, tag, LEN);
	CHECK(io_end(io) == LEN, "the next read fails");
	hand_down(&h);
}

CASE(fd_closed_under_member)
{
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2];

	io = read_from_peer(&h, true, fds, &tag, &m);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	close(fds[0]);
	sleep_ms(50);
	pattern_fill(buf, 0, LEN, 2);
	CHECK(stream_put(fds[1], buf, LEN), "the member's connection is closed");
	CHECK(io_end(io) == LEN, "the read fails");
	hand_down(&h);
}

/* STOP_DEV or DEL_DEV with a member that waits: nothing of it may hang. */
static void ended_with_member_waiting(uint32_t end)
{
	struct ubd_member m;
	struct ioq_cqe cqe;
	struct hand h;
	struct job *io, *ending;
	unsigned tag;
	int fds[2];
	long res = 0;

	io = read_from_peer(&h, false, fds, &tag, &m);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	ending = dev_cmd_begin(h.dev, end, 0);
	sleep_ms(300);
	/* The peer answers at last, or never: the server ends what it has begun. */
	close(fds[1]);
	for (unsigned i = 0; i < 100 && !job_ended(io); i++) {
		if (ioq_wait(&h.q, &cqe, 100) == 0 && cqe.res < 0 && cqe.res != UBLK_IO_RES_ABORT)
			ioq_commit(&h.q, tag, -EIO);
	}
	CHECK(io_end(io) < 0, "the read succeeds without data");
	if (end == UBLK_U_CMD_STOP_DEV) {
		REQUIRE(job_wait(ending, 5000, &res) == 0, "STOP_DEV hangs");
		hand_close(&h);
		return;
	}
	/* It waits for the server to let go of the char device. */
	ioq_close(&h.q);
	close(h.fd);
	REQUIRE(job_wait(ending, 10000, &res) == 0, "DEL_DEV hangs");
	CHECK(res == 0, "DEL_DEV: %s", conform_errname(res));
}

CASE(stop_with_member_waiting)
{
	ended_with_member_waiting(UBLK_U_CMD_STOP_DEV);
}

CASE(delete_with_member_waiting)
{
	ended_with_member_waiting(UBLK_U_CMD_DEL_DEV);
}

/* ---- the server is killed ---------------------------------------------------------------- */

enum { READY, KIND };
enum kind {
	RECEIVING,
	RECEIVING_IN_VAIN,
	FUSED_RECEIVING,
	SENDING,
	FUSED_SENDING,
	LEASED,
	LEASED_IN_TABLE,
	SPLICED,
	WORKING,
	LINGERING,
};

/* Takes two requests, begins what cannot end, and waits for the end. */
static long doomed(struct server *s, int fd)
{
	enum kind kind = atomic_load(&s->custom[KIND]);
	int a[2], b[2], pipes[2], file = scratch_open(1 << 20);
	struct ubd_member m;
	struct ioq q;

	stream_pair(kind == SENDING || kind == FUSED_SENDING, a);
	stream_pair(kind == RECEIVING_IN_VAIN, b);
	if (kind == RECEIVING_IN_VAIN)
		stream_leave_error(b);
	if (pipe(pipes) || fcntl(pipes[1], F_SETPIPE_SZ, 1 << 20) < 0 ||
	    ioq_open(&q, s->dev, fd, 0))
		return -1;
	io_uring_register_buffers_sparse(&q.ring, 4);
	ioq_fetch_all(&q);
	atomic_store(&s->queues_ready, 1);
	for (unsigned served = 0;; served++) {
		const struct ublksrv_io_desc *iod;
		unsigned tag = ioq_next(&q, &iod);
		uint32_t bytes = iod->nr_sectors * SECTOR;
		struct ubd_lease lease = {.flags = UBD_LEASE_OPEN};

		switch (kind) {
		case RECEIVING:
		case RECEIVING_IN_VAIN:
			m = zc_recv(b[0], 0, bytes);
			zc_submit(&q, UBD_U_IO_MEMBERS, tag, &m, 1);
			break;
		case FUSED_RECEIVING:
			m = zc_recv(b[0], 0, bytes);
			zc_submit(&q, UBD_U_IO_FUSED, tag, &m, 1);
			break;
		case SENDING:
			/* The peer's window fills, and it never reads. */
			m = zc_send(a[0], 0, bytes);
			zc_submit(&q, UBD_U_IO_MEMBERS, tag, &m, 1);
			break;
		case FUSED_SENDING:
			/* All of it is the socket's, and none the peer's. */
			stream_loopback(false);
			m = zc_send(a[0], 0, bytes);
			zc_submit(&q, UBD_U_IO_FUSED, tag, &m, 1);
			break;
		case LEASED:
			zc_lease(&q, tag, &lease);
			m = zc_recv(b[0], 0, bytes);
			m.flags = UBD_MEMBER_F_LEASED;
			zc_submit(&q, UBD_U_IO_MEMBERS, tag, &m, 1);
			break;
		case LEASED_IN_TABLE:
			lease.flags |= UBD_LEASE_INDEX;
			lease.buf_index = (uint16_t)tag;
			zc_lease(&q, tag, &lease);
			break;
		case SPLICED:
			if (splice(q.fd, &(off_t){ioq_data_offset(0, tag, 0)}, pipes[1], NULL,
				   bytes, 0) <= 0)
				return -1;
			ioq_commit(&q, tag, (int)bytes);
			break;
		case WORKING:
		case LINGERING:
			m = (struct ubd_member){.op = UBD_MEMBER_FSYNC, .fd = file};
			zc_submit(&q, UBD_U_IO_FUSED, tag, &m, 1);
			break;
		}
		atomic_store(&s->custom[READY], served + 1);
	}
}

/*
 * Killed with that in flight, the process goes at once, requests end, and the device is as good
 * as new for the next server.
 */
static void killed_when(enum kind kind, uint64_t recovery, bool writes, bool quiesced)
{
	/* All tags are in use when it is sent away: nothing tells it. */
	struct dev *dev = dev_new(UBD_F_ALL | UBLK_F_USER_COPY | recovery, 1, quiesced ? 2 : 4);
	struct server *s;
	struct job *io[2];
	uint64_t begun;

	dev_add(dev);
	s = server_new(dev);
	s->body = doomed;
	atomic_store(&s->custom[KIND], kind);
	server_start(s);
	REQUIRE(dev_cmd(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s), NULL, 0) == 0,
		"START_DEV fails");
	for (unsigned i = 0; i < 2; i++)
		/* Apart, or they might come merged. */
		io[i] = io_begin(dev, writes ? IO_WRITE : IO_READ, i * 16 * LEN, LEN);
	for (unsigned i = 0; i < 500 && atomic_load(&s->custom[READY]) < 2; i++)
		sleep_ms(10);
	REQUIRE(atomic_load(&s->custom[READY]) >= 2, "the server has got no requests");
	sleep_ms(100);
	if (quiesced)
		RESULT_REQUIRED("quiesce", dev_cmd(dev, UBLK_U_CMD_QUIESCE_DEV, 5000, NULL, 0), 0);
	begun = now_ms();
	server_kill(s);
	CHECK(now_ms() - begun < 8000, "the killed server takes %llu ms to go",
	      (unsigned long long)(now_ms() - begun));
	if (kind == FUSED_SENDING)
		stream_loopback(true);
	if (recovery) {
		struct server *next = server_new(dev);

		REQUIRE(dev_wait_state(dev, UBLK_S_DEV_QUIESCED, 10000), "state %d",
			dev_state(dev));
		REQUIRE(dev_cmd(dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0) == 0,
			"START_USER_RECOVERY fails");
		server_start(next);
		REQUIRE(dev_cmd(dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(next), NULL,
				0) == 0,
			"END_USER_RECOVERY fails");
		for (unsigned i = 0; i < 2; i++)
			CHECK(io_end(io[i]) == LEN, "a request of the dead server is not served");
		for (unsigned i = 0; i < 2 && kind == FUSED_SENDING; i++)
			CHECK(server_count(next, UBLK_IO_OP_WRITE, i * 16 * LEN / SECTOR) == 1,
			      "the next server is not given what nobody has");
		CHECK(io_run(dev, IO_READ, 0, LEN) == LEN, "the next server does not serve");
		server_down(next);
		return;
	}
	REQUIRE(dev_wait_released(dev, 10000), "the char device is not released");
	for (unsigned i = 0; i < 2; i++)
		CHECK(io_end(io[i]) < 0 || kind != FUSED_SENDING,
		      "what nobody has is acknowledged");
	dev_del(dev);
}

static void killed(enum kind kind, uint64_t recovery, bool writes)
{
	killed_when(kind, recovery, writes, false);
}

#define RECOVER (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE)

CASE(killed_receiving)
{
	killed(RECEIVING, 0, false);
}

CASE(killed_receiving_reissued)
{
	killed(RECEIVING, RECOVER, false);
}

CASE(killed_receiving_in_vain)
{
	killed(RECEIVING_IN_VAIN, RECOVER, false);
}

CASE(killed_fused_receiving)
{
	killed(FUSED_RECEIVING, 0, false);
}

CASE(killed_fused_receiving_reissued)
{
	killed(FUSED_RECEIVING, RECOVER, false);
}

CASE(killed_sending)
{
	killed(SENDING, 0, true);
}

CASE(killed_fused_sending)
{
	killed(FUSED_SENDING, 0, true);
}

CASE(killed_fused_sending_reissued)
{
	killed(FUSED_SENDING, RECOVER, true);
}

CASE(killed_leased)
{
	killed(LEASED, 0, false);
}

CASE(killed_leased_reissued)
{
	killed(LEASED, RECOVER, false);
}

/* The ring holds the buffer until it has ended, and with that the request. */
CASE(killed_leased_in_table)
{
	conform_need_features(UBLK_F_SUPPORT_ZERO_COPY);
	killed(LEASED_IN_TABLE, 0, false);
}

CASE(killed_leased_in_table_reissued)
{
	conform_need_features(UBLK_F_SUPPORT_ZERO_COPY);
	killed(LEASED_IN_TABLE, RECOVER, false);
}

CASE(killed_spliced)
{
	killed(SPLICED, 0, true);
}

/* Sent away before, and it did not go by itself. */
static void killed_quiesced(enum kind kind, bool writes)
{
	conform_need_features(UBLK_F_QUIESCE);
	killed_when(kind, RECOVER | UBLK_F_QUIESCE, writes, true);
}

CASE(killed_quiesced_receiving)
{
	killed_quiesced(RECEIVING, false);
}

CASE(killed_quiesced_fused_receiving)
{
	killed_quiesced(FUSED_RECEIVING, false);
}

CASE(killed_quiesced_sending)
{
	killed_quiesced(SENDING, true);
}

CASE(killed_quiesced_leased)
{
	killed_quiesced(LEASED, false);
}

/* Many times in the middle of quick work, with members on a disk that the worker does. */
CASE_LIMIT(killed_working, 120)
{
	for (unsigned i = 0; i < 5; i++)
		killed(WORKING, 0, true);
}
