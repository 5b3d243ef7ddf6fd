// SPDX-License-Identifier: MIT
/*
 * QUIESCE_DEV: the server gets nothing new, and what it has goes on as if nothing had happened.
 */
#include "client.h"
#include "harness.h"
#include "server.h"
#include "zc.h"

#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#define LEN 65536U
/* Apart, or they might come merged. */
#define PLACE(i) ((uint64_t)(i)*16 * LEN)
#define FLAGS (UBD_F_ALL | UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE | UBLK_F_QUIESCE)

static uint8_t buf[LEN];

static void quiesce(struct dev *dev)
{
	RESULT_REQUIRED("quiesce", dev_cmd(dev, UBLK_U_CMD_QUIESCE_DEV, 5000, NULL, 0), 0);
	/* What looks after servers has looked. */
	sleep_ms(2500);
}

/* The next server serves, too. */
static void recover(struct dev *dev)
{
	struct server *s = server_new(dev);

	REQUIRE(dev_wait_state(dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(dev));
	REQUIRE(dev_cmd(dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0) == 0,
		"START_USER_RECOVERY fails");
	server_start(s);
	REQUIRE(dev_cmd(dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(s), NULL, 0) == 0,
		"END_USER_RECOVERY fails");
	CHECK(io_run(dev, IO_READ, 0, LEN) == LEN, "the next server does not serve");
	server_down(s);
}

static void leave(struct hand *h)
{
	ioq_close(&h->q);
	close(h->fd);
	recover(h->dev);
}

static void check_read(struct job *io, uint32_t seed)
{
	long res = 0;

	REQUIRE(job_wait(io, 10000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	CHECK(zc_data_differs(io, 0, LEN, seed) < 0, "the member's data is not there");
	job_put(io);
}

static void put(int fd, uint32_t seed)
{
	pattern_fill(buf, 0, LEN, seed);
	REQUIRE(stream_put(fd, buf, LEN), "cannot send");
}

static void commit_last(struct hand *h, unsigned tag)
{
	ioq_commit(&h->q, tag, LEN);
	RESULT("the commit's command", zc_result(&h->q, UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag),
	       UBLK_IO_RES_ABORT);
}

/* Members that wait for a peer, and one that is begun afterwards. */
CASE(quiesce_receiving)
{
	struct ubd_member m[3];
	struct job *io[3];
	struct ioq_cqe cqe;
	unsigned tag[3];
	struct hand h;
	int fds[3][2];

	conform_need_features(UBLK_F_QUIESCE);
	zc_up(&h, FLAGS, 4);
	for (unsigned i = 0; i < 3; i++) {
		stream_pair(i == 1, fds[i]);
		io[i] = io_begin(h.dev, IO_READ, PLACE(i), LEN);
		tag[i] = ioq_next(&h.q, NULL);
		m[i] = zc_recv(fds[i][0], 0, LEN);
	}
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag[0], &m[0], 1);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag[1], &m[1], 1);
	quiesce(h.dev);
	REQUIRE(ioq_wait(&h.q, &cqe, 5000) == 0 && cqe.res == UBLK_IO_RES_ABORT,
		"the idle tag is not sent away");
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag[2], &m[2], 1);
	CHECK(ioq_quiet(&h.q, 200), "a member does not wait for its peer");
	for (unsigned i = 0; i < 3; i++)
		put(fds[i][1], i + 2);
	for (unsigned i = 0; i < 3; i++) {
		REQUIRE(ioq_wait(&h.q, &cqe, 5000) == 0, "a command does not end");
		if (cqe.tag == tag[1])
			RESULT("the fused command", cqe.res, UBLK_IO_RES_ABORT);
		else
			RESULT("the member", cqe.res, LEN);
	}
	commit_last(&h, tag[0]);
	commit_last(&h, tag[2]);
	for (unsigned i = 0; i < 3; i++)
		check_read(io[i], i + 2);
	leave(&h);
}

/* A connection that has not acknowledged all of it is not aborted. */
CASE(quiesce_sending)
{
	struct ubd_member m;
	struct hand h;
	struct job *io;
	size_t before = 0;
	unsigned tag;
	int fds[2];

	conform_need_features(UBLK_F_QUIESCE);
	stream_pair(true, fds);
	zc_up(&h, FLAGS, 1);
	/* The peer's window is full. */
	for (ssize_t n; (n = send(fds[0], buf, LEN, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0;)
		before += (size_t)n;
	io = io_begin_seeded(h.dev, IO_WRITE, 0, LEN, 3);
	tag = ioq_next(&h.q, NULL);
	m = zc_send(fds[0], 0, LEN);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	quiesce(h.dev);
	CHECK(!job_ended(io), "the write has ended though nobody reads");
	for (size_t n; before; before -= n) {
		n = before < LEN ? before : LEN;
		REQUIRE(stream_get(fds[1], buf, n), "the connection is aborted");
	}
	REQUIRE(stream_get(fds[1], buf, LEN), "the connection is aborted");
	CHECK(pattern_check(buf, 0, LEN, 3) < 0, "other data was sent");
	CHECK(io_end(io) == LEN, "the write fails");
	RESULT("the fused command", zc_result(&h.q, UBD_U_IO_FUSED, tag), UBLK_IO_RES_ABORT);
	leave(&h);
}

static void end_lease(struct hand *h, unsigned tag)
{
	struct ioq_cqe cqe;

	zc_submit_raw(&h->q, UBD_U_IO_RETURN, tag, ubd_generation_nr(zc_generation(&h->q, tag), 0),
		      0);
	for (unsigned i = 0; i < 2; i++) {
		REQUIRE(ioq_wait(&h->q, &cqe, 5000) == 0, "the return or the leader does not end");
		RESULT(cqe.op == UBD_U_IO_LEASE ? "the leader" : "the return", cqe.res, 0);
	}
}

/* A lease that is open, and one that is taken afterwards. */
CASE(quiesce_leased)
{
	struct ubd_lease lease = {.flags = UBD_LEASE_OPEN};
	int fd = backing_open(TMPFS);
	struct ubd_member m = zc_read(fd, 0, LEN, 0);
	struct job *io[2];
	unsigned tag[2];
	struct hand h;

	conform_need_features(UBLK_F_QUIESCE);
	m.flags = UBD_MEMBER_F_LEASED;
	zc_up(&h, FLAGS, 2);
	for (unsigned i = 0; i < 2; i++) {
		io[i] = io_begin(h.dev, IO_READ, PLACE(i), LEN);
		tag[i] = ioq_next(&h.q, NULL);
	}
	zc_lease(&h.q, tag[0], &lease);
	quiesce(h.dev);
	CHECK(ioq_quiet(&h.q, 100), "the open lease has ended");
	RESULT("a member of the lease", zc_members(&h.q, tag[0], &m, 1), LEN);
	end_lease(&h, tag[0]);
	zc_lease(&h.q, tag[1], &lease);
	RESULT("a member of the new lease", zc_members(&h.q, tag[1], &m, 1), LEN);
	end_lease(&h, tag[1]);
	for (unsigned i = 0; i < 2; i++) {
		commit_last(&h, tag[i]);
		check_read(io[i], 7);
	}
	leave(&h);
}

/* ---- one of two threads has done its work ------------------------------------------------ */

static int peer = -1;

static void *send_at_last(void *arg)
{
	struct server *s = arg;

	while (!atomic_load(&s->release))
		sleep_ms(10);
	put(peer, 5);
	return NULL;
}

static enum server_answer receive(struct server *s, struct server_io *io)
{
	/* Until the command has been submitted, and the peer until the end. */
	struct ubd_member m;
	pthread_t thread;
	int fds[2];

	stream_pair(false, fds);
	peer = fds[1];
	m = zc_recv(fds[0], 0, LEN);
	zc_submit(io->q, UBD_U_IO_FUSED, io->tag, &m, 1);
	if (pthread_create(&thread, NULL, send_at_last, s))
		return ANSWER_STORE;
	atomic_store(&s->custom[0], 1);
	return ANSWER_NEVER;
}

CASE(quiesce_one_thread_done)
{
	struct dev *dev = dev_new(FLAGS | UBLK_F_USER_COPY, 2, 2);
	struct server *s;
	struct job *io;

	conform_need_features(UBLK_F_QUIESCE);
	s = server_up(dev);
	server_need_queues(s, 2);
	s->hook = receive;
	io = io_begin(dev, IO_READ, 0, LEN);
	while (!atomic_load(&s->custom[0]))
		sleep_ms(5);
	quiesce(dev);
	CHECK(atomic_load(&s->queues_over) == 1, "%u threads have left",
	      atomic_load(&s->queues_over));
	CHECK(!job_ended(io), "the read has ended though nothing was sent");
	atomic_store(&s->release, true);
	check_read(io, 5);
	server_join(s);
	recover(dev);
}
