// SPDX-License-Identifier: MIT
/*
 * The ways a server can go, other than by kill -9 of the whole of it: a thread, a ring, exec, a
 * fork that keeps the device open, a stop; and control commands that race with it.
 */
#include "client.h"
#include "ctrl.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define RECOVER UBLK_F_USER_RECOVERY
#define REISSUE (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE)
#define AT (2ULL << 20)

static void recover(struct server *s)
{
	long res = dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0);

	RESULT_REQUIRED("start-recovery", res, 0);
	server_start(s);
	res = dev_cmd(s->dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(s), NULL, 0);
	RESULT_REQUIRED("end-recovery", res, 0);
}

/* ---- One thread of two --------------------------------------------------------------------- */

CASE(death_of_a_thread)
{
	struct server *s = server_up(dev_new(REISSUE, 2, 8));
	struct job *io[4];

	s->dying_queue = 1;
	atomic_store(&s->die, true);
	sleep_ms(200);
	for (unsigned i = 0; i < 4; i++)
		io[i] = io_begin(s->dev, IO_READ, AT + i * 65536, 4096);
	sleep_ms(200);
	/* A server worth its name would notice; this one is put out of its misery. */
	server_kill(s);
	REQUIRE(dev_wait_state(s->dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(s->dev));
	atomic_store(&s->die, false);
	recover(s);
	for (unsigned i = 0; i < 4; i++)
		CHECK(io_end(io[i]) == 4096, "a read that waited failed");
	server_down(s);
}

CASE(death_of_a_thread_without_recovery)
{
	struct server *s = server_up(dev_new(0, 2, 8));
	struct job *io[4];

	s->dying_queue = 1;
	atomic_store(&s->die, true);
	sleep_ms(200);
	for (unsigned i = 0; i < 4; i++)
		io[i] = io_begin(s->dev, IO_READ, AT + i * 65536, 4096);
	sleep_ms(200);
	server_kill(s);
	REQUIRE(dev_wait_state(s->dev, UBLK_S_DEV_DEAD, 10000), "state %d", dev_state(s->dev));
	for (unsigned i = 0; i < 4; i++) {
		long res = io_end(io[i]);

		/* Zero: the disk was gone before it began, and has no bytes any more. */
		CHECK(res == 4096 || res <= 0, "a read: %s", conform_errname(res));
	}
	dev_del(s->dev);
}

/* ---- Other ends, told as server bodies that serve one queue --------------------------------- */

static bool serve_for(struct ioq *q, unsigned ms)
{
	uint64_t until = now_ms() + ms;
	struct ioq_cqe cqe;

	while (now_ms() < until) {
		if (ioq_wait(q, &cqe, 10))
			continue;
		if (cqe.res == UBLK_IO_RES_ABORT)
			return false;
		if (cqe.res == UBLK_IO_RES_OK)
			ioq_commit(q, cqe.tag, (int)(q->desc[cqe.tag].nr_sectors * SECTOR));
	}
	return true;
}

/* Serve until the case says so by custom[0]. */
static bool serve_until_told(struct server *s, struct ioq *q, int fd)
{
	if (ioq_open(q, s->dev, fd, 0))
		return false;
	ioq_fetch_all(q);
	atomic_store(&s->queues_ready, 1);
	while (!atomic_load(&s->custom[0])) {
		if (!serve_for(q, 20))
			return false;
	}
	return true;
}

static long close_the_ring(struct server *s, int fd)
{
	struct ioq q;

	if (!serve_until_told(s, &q, fd))
		return -EIO;
	io_uring_queue_exit(&q.ring);
	atomic_store(&s->custom[1], 1);
	sleep(60);
	return 0;
}

static long close_everything(struct server *s, int fd)
{
	struct ioq q;

	if (!serve_until_told(s, &q, fd))
		return -EIO;
	ioq_close(&q);
	close(fd);
	atomic_store(&s->custom[1], 1);
	sleep(60);
	return 0;
}

static long exec_another_program(struct server *s, int fd)
{
	struct ioq q;

	if (!serve_until_told(s, &q, fd))
		return -EIO;
	atomic_store(&s->custom[1], 1);
	execlp("sleep", "sleep", "60", NULL);
	return -errno;
}

static long exit_normally(struct server *s, int fd)
{
	struct ioq q;

	if (!serve_until_told(s, &q, fd))
		return -EIO;
	atomic_store(&s->custom[1], 1);
	exit(0);
}

static void tell(struct server *s)
{
	uint64_t until = now_ms() + 10000;

	atomic_store(&s->custom[0], 1);
	while (!atomic_load(&s->custom[1])) {
		REQUIRE(now_ms() < until, "the server does not do its part");
		sleep_ms(5);
	}
	sleep_ms(100);
}

/* The device lets go of a server whose process lives on. */
static void ends_and_recovers(long (*body)(struct server *s, int fd), bool lives_on)
{
	struct server *s = server_up_with_body(REISSUE, body);
	struct server *next = server_new(s->dev);
	struct job *io;

	CHECK(io_run(s->dev, IO_READ, AT, 4096) == 4096, "no read at first");
	tell(s);
	io = io_begin(s->dev, IO_READ, AT, 4096);
	REQUIRE(dev_wait_state(s->dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(s->dev));
	if (lives_on)
		CHECK(!job_ended(s->job), "the server ended");
	recover(next);
	CHECK(io_end(io) == 4096, "the read that waited failed");
	server_down(next);
	if (lives_on)
		server_kill(s);
}

CASE(death_by_closing_everything)
{
	ends_and_recovers(close_everything, true);
}

CASE(death_by_exec)
{
	ends_and_recovers(exec_another_program, true);
}

CASE(death_by_exit)
{
	ends_and_recovers(exit_normally, false);
}

/* The ring is gone but the device is still open: I/O waits or fails, and nothing is stuck. */
CASE(death_of_the_ring)
{
	struct server *s = server_up_with_body(REISSUE, close_the_ring);
	struct server *next = server_new(s->dev);
	struct job *io;

	tell(s);
	io = io_begin(s->dev, IO_READ, AT, 4096);
	CHECK(io_end_within(io, 500) == JOB_RUNNING, "I/O ended without a server");
	server_kill(s);
	REQUIRE(dev_wait_state(s->dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(s->dev));
	recover(next);
	CHECK(io_end(io) == 4096, "the read that waited failed");
	server_down(next);
}

CASE(death_of_the_ring_then_delete)
{
	struct server *s = server_up_with_body(0, close_the_ring);
	struct job *io, *del;

	tell(s);
	io = io_begin(s->dev, IO_READ, AT, 4096);
	sleep_ms(100);
	del = dev_cmd_begin(s->dev, UBLK_U_CMD_DEL_DEV, 0);
	sleep_ms(300);
	server_kill(s);
	CHECK(job_wait(del, 15000, NULL) == 0, "DEL_DEV does not end");
	CHECK(io_end(io) < 0, "a read that nobody served succeeded");
}

/* ---- fork ----------------------------------------------------------------------------------- */

static long fork_a_holder(struct server *s, int fd)
{
	struct ioq q;
	pid_t pid;

	if (ioq_open(&q, s->dev, fd, 0))
		return -EIO;
	/* Before the ring has anything: the child has the device open, and no command. */
	pid = fork();
	if (pid == 0) {
		munmap((void *)q.desc, q.desc_bytes);
		io_uring_queue_exit(&q.ring);
		sleep(60);
		_exit(0);
	}
	atomic_store(&s->custom[2], (unsigned)pid);
	ioq_fetch_all(&q);
	atomic_store(&s->queues_ready, 1);
	for (;;)
		serve_for(&q, 1000);
}

CASE(death_with_the_device_inherited)
{
	struct server *s = server_up_with_body(REISSUE, fork_a_holder);
	struct server *next = server_new(s->dev);
	struct job *io;
	pid_t holder = (pid_t)atomic_load(&s->custom[2]);

	CHECK(io_run(s->dev, IO_READ, AT, 4096) == 4096, "no read at first");
	server_kill(s);
	io = io_begin(s->dev, IO_READ, AT, 4096);
	CHECK(io_end_within(io, 500) == JOB_RUNNING, "I/O ended without a server");
	RESULT("start-recovery-inherited",
	       dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0), -EBUSY);
	kill(holder, SIGKILL);
	REQUIRE(dev_wait_state(s->dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(s->dev));
	sleep_ms(100);
	recover(next);
	CHECK(io_end(io) == 4096, "the read that waited failed");
	server_down(next);
}

CASE(death_with_the_device_inherited_then_delete)
{
	struct server *s = server_up_with_body(0, fork_a_holder);
	pid_t holder = (pid_t)atomic_load(&s->custom[2]);
	struct job *io, *del;

	server_kill(s);
	io = io_begin(s->dev, IO_READ, AT, 4096);
	sleep_ms(100);
	del = dev_cmd_begin(s->dev, UBLK_U_CMD_DEL_DEV, 0);
	CHECK(job_wait(del, 500, NULL) == JOB_RUNNING, "DEL_DEV did not wait for the holder");
	kill(holder, SIGKILL);
	CHECK(job_wait(del, 15000, NULL) == 0, "DEL_DEV does not end");
	CHECK(io_end(io) < 0, "a read that nobody served succeeded");
}

/* ---- SIGSTOP, STOP_DEV ----------------------------------------------------------------------- */

CASE(death_not_yet_sigstop)
{
	struct server *s = server_up(dev_new(0, 2, 8));
	struct job *io;

	server_signal(s, SIGSTOP);
	sleep_ms(100);
	io = io_begin(s->dev, IO_READ, AT, 4096);
	CHECK(io_end_within(io, 1000) == JOB_RUNNING, "I/O ended while the server was stopped");
	server_signal(s, SIGCONT);
	CHECK(io_end(io) == 4096, "the read failed");
	server_down(s);
}

CASE(death_while_stopped)
{
	struct server *s = server_up(dev_new(0, 2, 8));
	struct job *io;

	server_signal(s, SIGSTOP);
	sleep_ms(100);
	io = io_begin(s->dev, IO_READ, AT, 4096);
	sleep_ms(100);
	server_kill(s);
	CHECK(io_end(io) < 0, "a read that nobody served succeeded");
	REQUIRE(dev_wait_state(s->dev, UBLK_S_DEV_DEAD, 10000), "state %d", dev_state(s->dev));
	dev_del(s->dev);
}

static enum server_answer hold_reads(struct server *s, struct server_io *io)
{
	(void)s;
	return ublksrv_get_op(io->iod) == UBLK_IO_OP_READ ? ANSWER_HOLD : ANSWER_STORE;
}

/* A read that the server has and does not answer. */
static struct job *held_read(struct server *s)
{
	struct job *io;

	s->hook = hold_reads;
	io = io_begin(s->dev, IO_READ, AT, 4096);
	while (!atomic_load(&s->held))
		sleep_ms(5);
	return io;
}

/* Trap: STOP_DEV needs a live server. It waits for what that one holds, and for no more. */
CASE(trap_stop_waits_for_io_in_flight)
{
	struct server *s = server_up(dev_new(0, 1, 8));
	struct job *io = held_read(s), *stop;

	stop = dev_cmd_begin(s->dev, UBLK_U_CMD_STOP_DEV, 0);
	CHECK(job_wait(stop, 700, NULL) == JOB_RUNNING, "STOP_DEV did not wait");
	atomic_store(&s->release, true);
	CHECK(job_wait(stop, 10000, NULL) == 0, "STOP_DEV does not end");
	CHECK(io_end(io) == 4096, "the held read failed");
	server_join(s);
	dev_del(s->dev);
}

/* Trap: the same, and the server dies instead of answering: STOP_DEV must not be stuck. */
static void stop_and_kill(uint64_t flags)
{
	struct server *s;
	struct job *io, *stop;

	conform_need_features(flags);
	s = server_up(dev_new(flags, 1, 8));
	io = held_read(s);
	stop = dev_cmd_begin(s->dev, UBLK_U_CMD_STOP_DEV, 0);
	sleep_ms(300);
	server_kill(s);
	CHECK(job_wait(stop, 15000, NULL) == 0, "STOP_DEV does not end");
	CHECK(io_end(io) < 0, "a read that nobody served succeeded");
	dev_del(s->dev);
}

/* Another STOP_DEV waits for the first: a server that does so in its own name cannot die else. */
CASE(bug_stop_that_waits_for_another_cannot_be_killed)
{
	struct server *s = server_up(dev_new(0, 1, 8));
	struct job *io = held_read(s), *first, *second;

	first = dev_cmd_begin(s->dev, UBLK_U_CMD_STOP_DEV, 0);
	CHECK(job_wait(first, 400, NULL) == JOB_RUNNING, "STOP_DEV did not wait for the read");
	second = dev_cmd_begin(s->dev, UBLK_U_CMD_STOP_DEV, 0);
	CHECK(job_wait(second, 400, NULL) == JOB_RUNNING, "the second STOP_DEV did not wait");
	job_signal(second, SIGKILL);
	CHECK(job_wait(second, 5000, NULL) != JOB_RUNNING, "it cannot be killed");
	server_kill(s);
	CHECK(job_wait(first, 15000, NULL) == 0, "STOP_DEV does not end");
	CHECK(io_end_within(io, 5000) != JOB_RUNNING, "the read does not end");
	dev_del(s->dev);
}

CASE(trap_stop_while_the_server_dies)
{
	stop_and_kill(0);
}

CASE(trap_stop_while_the_server_dies_recovery)
{
	stop_and_kill(RECOVER);
}

CASE(trap_stop_while_the_server_dies_reissue)
{
	stop_and_kill(REISSUE);
}

/*
 * CVE-2025-68823: the partition scan. A server that dies while the disk is being scanned leaves
 * nobody stuck, neither START_DEV nor what comes after.
 */
static enum server_answer never_read(struct server *s, struct server_io *io)
{
	if (ublksrv_get_op(io->iod) != UBLK_IO_OP_READ)
		return ANSWER_STORE;
	atomic_fetch_add(&s->custom[3], 1);
	return ANSWER_NEVER;
}

static void die_in_the_scan(uint64_t flags)
{
	struct dev *dev = dev_new(flags, 1, 8);
	struct server *s;
	struct job *start;
	uint64_t until = now_ms() + 5000;

	conform_need_features(flags);
	dev->part_scan = true;
	dev_add(dev);
	s = server_new(dev);
	s->hook = never_read;
	server_start(s);
	start = dev_cmd_begin(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s));
	while (!atomic_load(&s->custom[3]) && now_ms() < until)
		sleep_ms(5);
	CHECK(atomic_load(&s->custom[3]), "no partition scan");
	server_kill(s);
	CHECK(job_wait(start, 15000, NULL) == 0, "START_DEV does not end");
	dev_stop(dev);
	dev_del(dev);
}

CASE_LIMIT(bug_partition_scan_of_a_dead_server, 80)
{
	die_in_the_scan(0);
}

CASE_LIMIT(bug_partition_scan_of_a_dead_server_reissue, 80)
{
	die_in_the_scan(REISSUE);
}

/* ---- Races ----------------------------------------------------------------------------------- */

/*
 * Commands completed twice, or used after they were freed, when cancelling meets signals and
 * completions (845db023a8ae, f7700a4415af): kill at all moments, with I/O on its way.
 */
static void kill_at_all_moments(uint64_t flags, int sig)
{
	conform_need_features(flags);
	for (unsigned i = 0; i < 12; i++) {
		struct server *s = server_up(dev_new(flags, 2, 4));
		struct job *io[6];

		for (unsigned n = 0; n < 6; n++)
			io[n] = io_begin(s->dev, n & 1 ? IO_WRITE : IO_READ, (uint64_t)n << 18,
					 256 << 10);
		sleep_ms(i * 2);
		server_signal(s, sig);
		dev_del(s->dev);
		for (unsigned n = 0; n < 6; n++) {
			long res = io_end(io[n]);

			CHECK(res <= 256 << 10, "more done than asked for: %ld", res);
		}
		REQUIRE(job_wait(s->job, 10000, NULL) != JOB_RUNNING, "the server does not end");
		job_put(s->job);
	}
}

CASE_LIMIT(bug_double_completion_at_cancel, 120)
{
	kill_at_all_moments(0, SIGKILL);
}

CASE_LIMIT(bug_use_after_free_in_cancel, 120)
{
	kill_at_all_moments(UBLK_F_USER_COPY, SIGTERM);
}

/* Two who stop, one who deletes, one who kills, and users, all at once. */
CASE_LIMIT(death_everything_at_once, 120)
{
	for (unsigned i = 0; i < 8; i++) {
		struct server *s = server_up(dev_new(i & 1 ? REISSUE : 0, 2, 16));
		struct job *io[4], *cmd[3];

		for (unsigned n = 0; n < 4; n++)
			io[n] = io_begin(s->dev, IO_WRITE, (uint64_t)n << 20, 256 << 10);
		cmd[0] = dev_cmd_begin(s->dev, UBLK_U_CMD_STOP_DEV, 0);
		cmd[1] = dev_cmd_begin(s->dev, UBLK_U_CMD_STOP_DEV, 0);
		cmd[2] = dev_cmd_begin(s->dev, UBLK_U_CMD_DEL_DEV, 0);
		server_signal(s, SIGKILL);
		for (unsigned n = 0; n < 3; n++)
			CHECK(job_wait(cmd[n], 20000, NULL) == 0, "command %u does not end", n);
		for (unsigned n = 0; n < 4; n++)
			io_end(io[n]);
		REQUIRE(job_wait(s->job, 10000, NULL) != JOB_RUNNING, "the server does not end");
		for (unsigned n = 0; n < 3; n++)
			job_put(cmd[n]);
		job_put(s->job);
	}
}

/* A server left over from a deleted device can do nothing any more, and harms nobody. */
static long outlive_the_device(struct server *s, int fd)
{
	struct ioq q;

	if (ioq_open(&q, s->dev, fd, 0))
		return -EIO;
	ioq_fetch_all(&q);
	atomic_store(&s->queues_ready, 1);
	while (!atomic_load(&s->custom[0]))
		serve_for(&q, 20);
	/* Take what was aborted, and go on all the same. */
	while (!serve_for(&q, 100))
		;
	atomic_store(&s->custom[2],
		     (unsigned)-ioq_refused(&q, UBLK_U_IO_FETCH_REQ, 0, 0, 0, ioq_addr(&q, 0)));
	atomic_store(&s->custom[3], (unsigned)-ioq_refused(&q, UBLK_U_IO_COMMIT_AND_FETCH_REQ, 0, 0,
							   0, ioq_addr(&q, 0)));
	atomic_store(&s->custom[1], 1);
	return 0;
}

CASE(death_stale_server)
{
	struct server *s = server_up_with_body(0, outlive_the_device);
	struct dev *next = dev_new(0, 1, 4);

	server_signal(s, SIGSTOP);
	RESULT("delete-async", dev_cmd(s->dev, UBLK_U_CMD_DEL_DEV_ASYNC, 0, NULL, 0), 0);
	next->id = s->dev->id;
	RESULT("stale-id-in-use", dev_try_add(next), -EEXIST);
	atomic_store(&s->custom[0], 1);
	server_signal(s, SIGCONT);
	REQUIRE(job_wait(s->job, 10000, NULL) == 0, "the stale server does not end");
	CHECK(atomic_load(&s->custom[2]) != 0, "a fetch on a deleted device succeeded");
	CHECK(atomic_load(&s->custom[3]) != 0, "a commit on a deleted device succeeded");
	sleep_ms(200);
	RESULT("stale-id-free", dev_try_add(next), 0);
	dev_del(next);
}
