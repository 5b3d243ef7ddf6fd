// SPDX-License-Identifier: MIT
/*
 * The server's death in every recovery mode, and the way back.
 */
#include "client.h"
#include "ctrl.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define RECOVER UBLK_F_USER_RECOVERY
#define REISSUE (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE)
#define FAIL_IO (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_FAIL_IO)
#define AT (2ULL << 20)

static enum server_answer hold_data(struct server *s, struct server_io *io)
{
	unsigned op = ublksrv_get_op(io->iod);

	if (op == UBLK_IO_OP_READ || op == UBLK_IO_OP_WRITE)
		return atomic_load(&s->release) ? ANSWER_STORE : ANSWER_HOLD;
	return ANSWER_STORE;
}

static void wait_held(struct server *s, unsigned nr)
{
	uint64_t until = now_ms() + 10000;

	while (atomic_load(&s->held) < nr) {
		REQUIRE(now_ms() < until, "%u of %u requests reached the server",
			atomic_load(&s->held), nr);
		sleep_ms(5);
	}
}

/* A new server on the device; what it holds is answered at once. */
static void recover(struct server *s)
{
	long res = dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0);

	RESULT_REQUIRED("start-recovery", res, 0);
	atomic_store(&s->held, 0);
	server_start(s);
	res = dev_cmd(s->dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(s), NULL, 0);
	RESULT_REQUIRED("end-recovery", res, 0);
	CHECK(dev_state(s->dev) == UBLK_S_DEV_LIVE, "state %d after recovery", dev_state(s->dev));
}

/* Wait for what a device becomes when its server is gone. */
static void expect_state(struct server *s, int state)
{
	REQUIRE(dev_wait_state(s->dev, state, 10000), "state %d, not %d, after the server's death",
		dev_state(s->dev), state);
}

/* ---- kill -9 with I/O in the server's hands ----------------------------------------------- */

static void kill_without_recovery(uint64_t flags)
{
	struct server *s;
	struct job *io[3];

	conform_need_features(flags);
	s = server_up(dev_new(flags, 2, 8));
	s->hook = hold_data;
	io[0] = io_begin(s->dev, IO_READ, AT, 4096);
	io[1] = io_begin(s->dev, IO_WRITE, AT + 65536, 65536);
	wait_held(s, 2);
	server_kill(s);
	CHECK(io_end(io[0]) == -EIO, "the read did not fail");
	CHECK(io_end(io[1]) == -EIO, "the write did not fail");
	expect_state(s, UBLK_S_DEV_DEAD);
	CHECK(!dev_has_disk(s->dev), "the disk is still there");
	RESULT("start-recovery-without-the-flag",
	       dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0), -EINVAL);
	dev_del(s->dev);
}

CASE(recovery_none_kill)
{
	kill_without_recovery(0);
}

CASE(recovery_none_kill_get_data)
{
	kill_without_recovery(UBLK_F_NEED_GET_DATA);
}

/* CVE-2025-71070: references of user copies in flight were leaked at exit. */
CASE(bug_user_copy_references_leaked_at_exit)
{
	kill_without_recovery(UBLK_F_USER_COPY);
}

static void kill_and_recover(uint64_t flags, long in_flight)
{
	struct server *s;
	struct job *io[2], *later;

	conform_need_features(flags);
	s = server_up(dev_new(flags, 2, 8));
	CHECK(io_write(s->dev, AT, 65536, 3) == 65536, "write failed");
	s->hook = hold_data;
	io[0] = io_begin(s->dev, IO_READ, AT, 4096);
	io[1] = io_begin_seeded(s->dev, IO_WRITE, AT + 65536, 4096, 4);
	wait_held(s, 2);
	server_kill(s);
	expect_state(s, UBLK_S_DEV_QUIESCED);
	CHECK(dev_has_disk(s->dev), "the disk is gone");
	later = io_begin(s->dev, IO_READ, AT + 8192, 4096);
	CHECK(io_end_within(later, 300) == JOB_RUNNING, "I/O went on without a server");
	if (in_flight != 4096)
		RESULT("in-flight-read", io_end(io[0]), in_flight);
	s->hook = NULL;
	recover(s);
	if (in_flight == 4096)
		RESULT("in-flight-read", io_end(io[0]), in_flight);
	RESULT("in-flight-write", io_end(io[1]), in_flight);
	CHECK(io_end(later) == 4096, "what waited failed");
	CHECK(io_verify(s->dev, AT, 65536, 3) == 65536, "read failed or differs");
	if (in_flight == 4096)
		CHECK(io_verify(s->dev, AT + 65536, 4096, 4) == 4096, "the reissued write is lost");
	server_down(s);
}

CASE(recovery_kill)
{
	kill_and_recover(RECOVER, -EIO);
}

CASE(recovery_reissue_kill)
{
	kill_and_recover(REISSUE, 4096);
}

CASE(recovery_reissue_kill_user_copy)
{
	kill_and_recover(REISSUE | UBLK_F_USER_COPY, 4096);
}

CASE(recovery_reissue_kill_get_data)
{
	kill_and_recover(REISSUE | UBLK_F_NEED_GET_DATA, 4096);
}

CASE(recovery_fail_io_kill)
{
	struct server *s;
	struct job *io;

	conform_need_features(FAIL_IO);
	s = server_up(dev_new(FAIL_IO, 2, 8));
	CHECK(io_write(s->dev, AT, 65536, 3) == 65536, "write failed");
	s->hook = hold_data;
	io = io_begin(s->dev, IO_READ, AT, 4096);
	wait_held(s, 1);
	server_kill(s);
	RESULT("fail-io-in-flight", io_end(io), -EIO);
	expect_state(s, UBLK_S_DEV_FAIL_IO);
	CHECK(dev_has_disk(s->dev), "the disk is gone");
	CHECK(io_run(s->dev, IO_READ, AT, 4096) < 0, "a read without a server succeeded");
	CHECK(io_write(s->dev, AT, 4096, 9) < 0, "a write without a server succeeded");
	s->hook = NULL;
	recover(s);
	CHECK(io_verify(s->dev, AT, 65536, 3) == 65536, "read failed or differs");
	server_down(s);
}

/* Nobody comes back: STOP_DEV and DEL_DEV must end what waits. */
static void kill_and_give_up(uint64_t flags, bool stop)
{
	struct server *s;
	struct job *io[2];

	conform_need_features(flags);
	s = server_up(dev_new(flags, 1, 8));
	s->hook = hold_data;
	io[0] = io_begin(s->dev, IO_READ, AT, 4096);
	wait_held(s, 1);
	server_kill(s);
	expect_state(s, flags & UBLK_F_USER_RECOVERY_FAIL_IO ? UBLK_S_DEV_FAIL_IO
							     : UBLK_S_DEV_QUIESCED);
	io[1] = io_begin(s->dev, IO_WRITE, AT, 4096);
	sleep_ms(100);
	if (stop)
		dev_stop(s->dev);
	dev_del(s->dev);
	for (unsigned i = 0; i < 2; i++) {
		long res = io_end(io[i]);

		CHECK(res < 0, "I/O that nobody served: %s", conform_errname(res));
	}
}

CASE(recovery_given_up_by_stop)
{
	kill_and_give_up(RECOVER, true);
}

CASE(recovery_given_up_by_delete)
{
	kill_and_give_up(RECOVER, false);
}

CASE(recovery_reissue_given_up)
{
	kill_and_give_up(REISSUE, true);
}

CASE(recovery_fail_io_given_up)
{
	kill_and_give_up(FAIL_IO, false);
}

/* ---- The commands out of turn ------------------------------------------------------------- */

CASE(recovery_commands_on_a_live_device)
{
	struct server *s = server_up(dev_new(RECOVER, 1, 4));

	RESULT("start-recovery-live", dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0),
	       -EBUSY);
	RESULT("end-recovery-live",
	       dev_cmd(s->dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(s), NULL, 0),
	       -EBUSY);
	CHECK(io_run(s->dev, IO_READ, 0, 4096) == 4096, "no read after refused commands");
	server_down(s);
}

CASE(recovery_commands_on_an_unrecoverable_device)
{
	struct server *s = server_up(dev_new(0, 1, 4));

	RESULT("start-recovery-not-granted",
	       dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0), -EINVAL);
	RESULT("end-recovery-not-granted",
	       dev_cmd(s->dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(s), NULL, 0),
	       -EINVAL);
	server_down(s);
}

CASE(recovery_start_before_start)
{
	struct dev *dev = dev_new(RECOVER, 1, 4);

	dev_add(dev);
	RESULT("start-recovery-never-started",
	       dev_cmd(dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0), -EBUSY);
	dev_del(dev);
}

CASE(recovery_end_with_a_foreign_pid)
{
	struct server *s = server_up(dev_new(RECOVER, 1, 4));

	server_kill(s);
	expect_state(s, UBLK_S_DEV_QUIESCED);
	RESULT_REQUIRED("start-recovery",
			dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0), 0);
	server_start(s);
	RESULT("end-recovery-foreign-pid",
	       dev_cmd(s->dev, UBLK_U_CMD_END_USER_RECOVERY, 1, NULL, 0), -EINVAL);
	dev_cmd(s->dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(s), NULL, 0);
	CHECK(dev_state(s->dev) == UBLK_S_DEV_LIVE, "state %d", dev_state(s->dev));
	server_down(s);
}

/* Only queue 0 fetches; told so by custom[0], it then serves. */
static long fetch_one_queue(struct server *s, int fd)
{
	struct ioq q[2];

	for (unsigned i = 0; i < 2; i++) {
		if (ioq_open(&q[i], s->dev, fd, i))
			return -EIO;
	}
	ioq_fetch_all(&q[0]);
	atomic_store(&s->queues_ready, 2);
	sleep(60);
	return 0;
}

/* CVE-2026-68173: live before every queue had fetched, so that requests met no command. */
CASE(bug_end_recovery_live_before_every_queue_fetched)
{
	struct dev *dev = dev_new(RECOVER, 2, 8);
	struct server *s = server_up(dev);
	struct job *end, *io[4];

	server_need_queues(s, 2);
	server_kill(s);
	expect_state(s, UBLK_S_DEV_QUIESCED);
	RESULT_REQUIRED("start-recovery", dev_cmd(dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0),
			0);
	s->body = fetch_one_queue;
	server_start(s);
	end = dev_cmd_begin(dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(s));
	for (unsigned i = 0; i < 4; i++)
		io[i] = io_begin(dev, IO_READ, AT + i * 4096, 4096);
	CHECK(job_wait(end, 500, NULL) == JOB_RUNNING, "END_USER_RECOVERY did not wait");
	CHECK(dev_state(dev) != UBLK_S_DEV_LIVE, "live with one queue of two");
	kill(end->pid, SIGKILL);
	REQUIRE(job_wait(end, 10000, NULL) != JOB_RUNNING, "END_USER_RECOVERY is stuck");
	server_kill(s);
	dev_del(dev);
	for (unsigned i = 0; i < 4; i++)
		CHECK(io_end(io[i]) < 0, "a read that nobody served succeeded");
}

/* A second server dies before it has fetched all; the third one must find the device as usual. */
CASE(recovery_after_half_a_recovery)
{
	struct server *s = server_up(dev_new(REISSUE, 2, 8));
	struct job *io;

	server_need_queues(s, 2);
	server_kill(s);
	expect_state(s, UBLK_S_DEV_QUIESCED);
	RESULT_REQUIRED("start-recovery",
			dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0), 0);
	s->body = fetch_one_queue;
	server_start(s);
	io = io_begin(s->dev, IO_READ, AT, 4096);
	sleep_ms(200);
	server_kill(s);
	REQUIRE(dev_wait_released(s->dev, 10000), "the char device stays busy");
	expect_state(s, UBLK_S_DEV_QUIESCED);
	s->body = NULL;
	recover(s);
	CHECK(io_end(io) == 4096, "a read that waited failed");
	server_down(s);
}

/* CVE-2026-53124 once more: what was cancelled in one life must be cancelled in the next. */
CASE_LIMIT(recovery_many_times, 90)
{
	struct server *s = server_up(dev_new(REISSUE, 2, 8));

	for (unsigned i = 0; i < 6; i++) {
		struct job *io = io_begin_seeded(s->dev, IO_WRITE, AT, 384 << 10, i + 1);

		if (i & 1)
			sleep_ms(3 * i);
		server_kill(s);
		expect_state(s, UBLK_S_DEV_QUIESCED);
		recover(s);
		CHECK(io_end(io) == 384 << 10, "round %u: the write failed", i);
		CHECK(io_verify(s->dev, AT, 384 << 10, i + 1) == 384 << 10, "round %u: differs", i);
	}
	server_down(s);
}

/* With every tag in the server's hands there is no command left whose cancelling would tell. */
CASE_LIMIT(recovery_every_tag_in_flight, 120)
{
	struct server *s = server_up(dev_new(REISSUE, 1, 2));
	struct job *io[2];

	s->hook = hold_data;
	for (unsigned i = 0; i < 2; i++)
		io[i] = io_begin(s->dev, IO_READ, AT + i * 65536, 4096);
	wait_held(s, 2);
	server_kill(s);
	RESULT("every-tag-in-flight-noticed-in-10-s",
	       dev_wait_state(s->dev, UBLK_S_DEV_QUIESCED, 10000), true);
	REQUIRE(dev_wait_state(s->dev, UBLK_S_DEV_QUIESCED, 90000), "state %d", dev_state(s->dev));
	s->hook = NULL;
	recover(s);
	for (unsigned i = 0; i < 2; i++)
		CHECK(io_end(io[i]) == 4096, "a reissued read failed");
	server_down(s);
}

CASE(recovery_refused_while_the_device_is_open)
{
	struct server *s = server_up(dev_new(RECOVER, 1, 4));
	int fd;

	server_kill(s);
	expect_state(s, UBLK_S_DEV_QUIESCED);
	REQUIRE(dev_wait_released(s->dev, 10000), "the char device stays busy");
	fd = dev_open_char(s->dev);
	REQUIRE(fd >= 0, "cannot open it: %s", conform_errname(fd));
	RESULT("start-recovery-opened", dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0),
	       -EBUSY);
	close(fd);
	sleep_ms(200);
	recover(s);
	server_down(s);
}
