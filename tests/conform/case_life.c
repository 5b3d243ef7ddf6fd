// SPDX-License-Identifier: MIT
/*
 * The state machine: START_DEV, STOP_DEV, QUIESCE_DEV and their like in and out of turn.
 */
#include "client.h"
#include "ctrl.h"
#include "dev.h"
#include "hand.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

static long start_as(struct dev *dev, uint64_t pid)
{
	return dev_cmd(dev, UBLK_U_CMD_START_DEV, pid, NULL, 0);
}

CASE(life_whole)
{
	struct dev *dev = dev_new(0, 2, 16);
	struct ublksrv_ctrl_dev_info info;
	struct server *s = server_up(dev);

	RESULT("info", dev_get_info(dev, &info), 0);
	CHECK(info.state == UBLK_S_DEV_LIVE, "state %u", info.state);
	CHECK(info.ublksrv_pid == server_pid(s), "pid %d, not the server's %d", info.ublksrv_pid,
	      server_pid(s));
	CHECK(dev_sysfs(dev, "size") == (long long)(DEV_BYTES / SECTOR), "size %lld",
	      dev_sysfs(dev, "size"));
	CHECK(io_write(dev, 0, 65536, 7) == 65536, "write failed");
	CHECK(io_verify(dev, 0, 65536, 7) == 65536, "read failed or differs");
	dev_stop(dev);
	server_join(s);
	RESULT("info", dev_get_info(dev, &info), 0);
	CHECK(info.state == UBLK_S_DEV_DEAD, "state %u after STOP_DEV", info.state);
	CHECK(info.ublksrv_pid == -1, "pid %d after STOP_DEV", info.ublksrv_pid);
	dev_del(dev);
}

CASE(life_start_without_params)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct server *s;

	RESULT_REQUIRED("add", dev_try_add(dev), 0);
	s = server_new(dev);
	server_start(s);
	RESULT("start-without-params", start_as(dev, (uint64_t)server_pid(s)), -EINVAL);
	dev_stop(dev);
	server_join(s);
	dev_del(dev);
}

CASE(life_start_with_a_bad_pid)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct server *s = server_new(dev);

	dev_add(dev);
	server_start(s);
	RESULT("start-pid-0", start_as(dev, 0), -EINVAL);
	RESULT("start-pid-negative", start_as(dev, (uint64_t)-1), -EINVAL);
	RESULT("start-foreign-pid", start_as(dev, 1), -EINVAL);
	dev_stop(dev);
	server_join(s);
	dev_del(dev);
}

/* START_DEV waits for the fetches, for as long as nobody interrupts it. */
CASE(life_start_before_fetch)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct server *s = server_new(dev);
	struct job *start;
	long res;

	dev_add(dev);
	start = dev_cmd_begin(dev, UBLK_U_CMD_START_DEV, (uint64_t)getpid());
	CHECK(job_wait(start, 400, &res) == JOB_RUNNING, "START_DEV did not wait: %s",
	      conform_errname(res));
	job_signal(start, SIGKILL);
	REQUIRE(job_wait(start, 10000, NULL) != JOB_RUNNING, "START_DEV cannot be interrupted");
	job_put(start);
	CHECK(!dev_has_disk(dev), "a disk, though START_DEV was interrupted");
	server_start(s);
	RESULT_REQUIRED("start-after-interrupted-start", start_as(dev, (uint64_t)server_pid(s)), 0);
	server_down(s);
}

/* What START_DEV found when it came may be gone when the last tag is fetched. */
CASE(bug_parameters_refused_while_start_waits)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct ublk_params bad;
	struct hand h;
	struct job *start;
	long res = 0;

	hand_open(&h, dev);
	start = dev_cmd_begin(dev, UBLK_U_CMD_START_DEV, (uint64_t)getpid());
	CHECK(job_wait(start, 400, &res) == JOB_RUNNING, "START_DEV did not wait: %s",
	      conform_errname(res));
	bad = dev->params;
	bad.basic.logical_bs_shift = 0;
	RESULT("set-bad-params-while-start-waits",
	       ctrl(UBLK_U_CMD_SET_PARAMS, dev->id, .buf = &bad, .len = sizeof(bad)), -EINVAL);
	ioq_fetch_all(&h.q);
	REQUIRE(job_wait(start, 10000, &res) == 0, "START_DEV does not end");
	job_put(start);
	CHECK(res == -EINVAL, "started without parameters: %s", conform_errname(res));
	CHECK(!dev_has_disk(dev), "a disk without parameters");
	hand_close(&h);
}

CASE(life_start_twice)
{
	struct server *s = server_up(dev_new(0, 1, 4));

	RESULT("start-twice", start_as(s->dev, (uint64_t)server_pid(s)), -EEXIST);
	server_down(s);
}

CASE(life_stop_before_start)
{
	struct dev *dev = dev_new(0, 1, 4);

	dev_add(dev);
	RESULT("stop-before-start", dev_cmd(dev, UBLK_U_CMD_STOP_DEV, 0, NULL, 0), 0);
	RESULT("stop-before-start", dev_cmd(dev, UBLK_U_CMD_STOP_DEV, 0, NULL, 0), 0);
	dev_del(dev);
}

/* A server that has fetched but was never started gets its commands back. */
CASE(life_stop_aborts_fetched_commands)
{
	struct dev *dev = dev_new(0, 2, 8);
	struct server *s = server_new(dev);

	dev_add(dev);
	server_start(s);
	dev_stop(dev);
	server_join(s);
	CHECK(atomic_load(&s->queues_over) == dev->info.nr_hw_queues, "not all commands aborted");
	dev_del(dev);
}

CASE(life_stop_twice)
{
	struct server *s = server_up(dev_new(0, 1, 4));

	dev_stop(s->dev);
	RESULT("stop-twice", dev_cmd(s->dev, UBLK_U_CMD_STOP_DEV, 0, NULL, 0), 0);
	server_join(s);
	RESULT("stop-thrice", dev_cmd(s->dev, UBLK_U_CMD_STOP_DEV, 0, NULL, 0), 0);
	dev_del(s->dev);
}

CASE(life_stop_with_the_disk_open)
{
	struct server *s = server_up(dev_new(0, 1, 4));
	struct job *opener = io_begin(s->dev, IO_OPEN, 0, 1500);

	sleep_ms(300);
	dev_stop(s->dev);
	server_join(s);
	CHECK(io_end(opener) == 0, "cannot open the disk");
	dev_del(s->dev);
}

CASE(life_set_params_while_live)
{
	struct server *s = server_up(dev_new(0, 1, 4));

	RESULT("set-params-live", dev_try_set_params(s->dev), -EACCES);
	server_down(s);
}

CASE(life_char_device_opens_once)
{
	struct dev *dev = dev_new(0, 1, 4);
	int fd, second;

	dev_add(dev);
	fd = dev_open_char(dev);
	REQUIRE(fd >= 0, "cannot open %s: %s", dev_char_path(dev), conform_errname(fd));
	second = dev_open_char(dev);
	RESULT("open-twice", second, -EBUSY);
	close(fd);
	sleep_ms(200);
	fd = dev_open_char(dev);
	CHECK(fd >= 0, "cannot open it again: %s", conform_errname(fd));
	close(fd);
	dev_del(dev);
}

CASE(life_update_size)
{
	struct dev *dev = dev_new(UBLK_F_UPDATE_SIZE, 1, 4);
	struct ublk_params p = {.len = sizeof(p)};
	struct server *s;

	conform_need_features(UBLK_F_UPDATE_SIZE);
	dev_add(dev);
	RESULT("update-size-before-start", dev_cmd(dev, UBLK_U_CMD_UPDATE_SIZE, 4096, NULL, 0),
	       -ENODEV);
	s = server_up(dev);
	RESULT("update-size-smaller", dev_cmd(dev, UBLK_U_CMD_UPDATE_SIZE, 4096, NULL, 0), 0);
	CHECK(dev_sysfs(dev, "size") == 4096, "size %lld, not 4096", dev_sysfs(dev, "size"));
	ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &p, .len = sizeof(p));
	CHECK(p.basic.dev_sectors == 4096, "the parameters say %llu sectors",
	      (unsigned long long)p.basic.dev_sectors);
	CHECK(io_run(dev, IO_READ, 4096ULL * SECTOR, 4096) == 0, "a read beyond the end");
	RESULT("update-size-larger",
	       dev_cmd(dev, UBLK_U_CMD_UPDATE_SIZE, DEV_BYTES / SECTOR, NULL, 0), 0);
	CHECK(io_run(dev, IO_READ, DEV_BYTES - 4096, 4096) == 4096, "no read at the new end");
	server_down(s);
}

CASE(life_try_stop)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct server *s;
	struct job *opener;

	conform_need_features(UBLK_F_SAFE_STOP_DEV);
	dev_add(dev);
	RESULT("try-stop-before-start", dev_cmd(dev, UBLK_U_CMD_TRY_STOP_DEV, 0, NULL, 0), -ENODEV);
	s = server_up(dev);
	opener = io_begin(dev, IO_OPEN, 0, 2000);
	sleep_ms(500);
	RESULT("try-stop-open", dev_cmd(dev, UBLK_U_CMD_TRY_STOP_DEV, 0, NULL, 0), -EBUSY);
	CHECK(dev_state(dev) == UBLK_S_DEV_LIVE, "not live any more");
	CHECK(io_end(opener) == 0, "cannot open the disk");
	CHECK(io_run(dev, IO_READ, 0, 4096) == 4096, "no read after a refused TRY_STOP_DEV");
	RESULT("try-stop", dev_cmd(dev, UBLK_U_CMD_TRY_STOP_DEV, 0, NULL, 0), 0);
	CHECK(!dev_has_disk(dev), "the disk is still there");
	server_join(s);
	dev_del(dev);
}

CASE(life_quiesce_arguments)
{
	struct dev *dev = dev_new(UBLK_F_USER_RECOVERY, 1, 4);
	struct dev *can = dev_new(UBLK_F_USER_RECOVERY | UBLK_F_QUIESCE, 1, 4);
	struct server *s;

	conform_need_features(UBLK_F_QUIESCE);
	dev_add(can);
	RESULT("quiesce-before-start", dev_cmd(can, UBLK_U_CMD_QUIESCE_DEV, 100, NULL, 0), -ENODEV);
	dev_del(can);
	s = server_up(dev);
	RESULT("quiesce-not-granted", dev_cmd(dev, UBLK_U_CMD_QUIESCE_DEV, 100, NULL, 0),
	       -EOPNOTSUPP);
	server_down(s);
}

CASE(life_quiesce_and_recover)
{
	struct dev *dev = dev_new(UBLK_F_USER_RECOVERY | UBLK_F_QUIESCE, 2, 8);
	struct server *s;
	struct job *io;
	long res;

	conform_need_features(UBLK_F_QUIESCE);
	s = server_up(dev);
	CHECK(io_write(dev, 1 << 20, 65536, 3) == 65536, "write failed");
	RESULT_REQUIRED("quiesce", dev_cmd(dev, UBLK_U_CMD_QUIESCE_DEV, 5000, NULL, 0), 0);
	server_join(s);
	CHECK(dev_wait_state(dev, UBLK_S_DEV_QUIESCED, 5000), "state %d", dev_state(dev));
	RESULT("quiesce-again", dev_cmd(dev, UBLK_U_CMD_QUIESCE_DEV, 5000, NULL, 0), 0);
	io = io_begin(dev, IO_READ, 1 << 20, 4096);
	CHECK(io_end_within(io, 300) == JOB_RUNNING, "I/O went on without a server");
	RESULT("start-recovery", dev_cmd(dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0), 0);
	server_start(s);
	res = dev_cmd(dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(s), NULL, 0);
	RESULT_REQUIRED("end-recovery", res, 0);
	CHECK(io_end(io) == 4096, "the waiting read failed");
	CHECK(io_verify(dev, 1 << 20, 65536, 3) == 65536, "read failed or differs");
	server_down(s);
}

static enum server_answer hold_reads(struct server *s, struct server_io *io)
{
	(void)s;
	return ublksrv_get_op(io->iod) == UBLK_IO_OP_READ ? ANSWER_HOLD : ANSWER_STORE;
}

/* A request in the server's hands is still its to answer; it just gets no other one. */
CASE(life_quiesce_with_io_in_flight)
{
	struct dev *dev = dev_new(UBLK_F_USER_RECOVERY | UBLK_F_QUIESCE, 1, 2);
	struct server *s;
	struct job *io, *later;

	conform_need_features(UBLK_F_QUIESCE);
	s = server_up(dev);
	s->hook = hold_reads;
	io = io_begin(dev, IO_READ, 1 << 20, 4096);
	while (!atomic_load(&s->held))
		sleep_ms(5);
	RESULT("quiesce-in-flight", dev_cmd(dev, UBLK_U_CMD_QUIESCE_DEV, 5000, NULL, 0), 0);
	later = io_begin(dev, IO_READ, 2 << 20, 4096);
	sleep_ms(200);
	CHECK(atomic_load(&s->held) == 1, "a request came after QUIESCE_DEV");
	atomic_store(&s->release, true);
	CHECK(io_end(io) == 4096, "the held read failed");
	server_kill(s);
	CHECK(dev_wait_state(dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(dev));
	CHECK(io_end_within(later, 0) == JOB_RUNNING, "I/O went on without a server");
	dev_stop(dev);
	CHECK(io_end(later) < 0, "a read that nobody served succeeded");
	dev_del(dev);
}

CASE_LIMIT(life_add_and_delete_under_io, 90)
{
	for (unsigned round = 0; round < 8; round++) {
		struct dev *dev = dev_new(0, 2, 8);
		struct server *s = server_up(dev);
		struct job *io[6];

		for (unsigned i = 0; i < 6; i++)
			io[i] = io_begin(dev, i & 1 ? IO_WRITE : IO_READ, (uint64_t)i << 17,
					 128 << 10);
		if (round & 1)
			sleep_ms(5);
		dev_del(dev);
		server_join(s);
		for (unsigned i = 0; i < 6; i++) {
			long res = io_end(io[i]);

			CHECK(res == 128 << 10 || res == -EIO || res == -ENXIO || res == -ENOENT ||
				      res == 0 || res == -ENODEV || res == -ENOSPC,
			      "I/O across a deletion: %s", conform_errname(res));
		}
	}
}

CASE_LIMIT(life_many_devices, 180)
{
	enum { MANY = 256 };
	struct dev *devs[MANY];
	struct server *servers[4];
	static const unsigned served[4] = {0, 1, MANY / 2, MANY - 1};

	for (unsigned i = 0; i < MANY; i++) {
		devs[i] = dev_new(0, 2, 16);
		dev_add(devs[i]);
	}
	for (unsigned i = 0; i < 4; i++)
		servers[i] = server_up(devs[served[i]]);
	for (unsigned i = 0; i < 4; i++)
		CHECK(io_write(servers[i]->dev, 4096, 65536, i + 1) == 65536, "write failed");
	for (unsigned i = 0; i < 4; i++)
		CHECK(io_verify(servers[i]->dev, 4096, 65536, i + 1) == 65536,
		      "device %u reads something else", i);
	for (unsigned i = 0; i < 4; i++) {
		dev_stop(servers[i]->dev);
		server_join(servers[i]);
	}
	for (unsigned i = 0; i < MANY; i++)
		dev_del(devs[i]);
}

CASE_LIMIT(life_depths, 120)
{
	static const unsigned depths[] = {1, 2, 3, 7, 64, 1000, 4096};

	for (unsigned i = 0; i < sizeof(depths) / sizeof(depths[0]); i++) {
		struct dev *dev = dev_new(0, 1, depths[i]);
		struct server *s = server_up(dev);

		CHECK(io_write(dev, 0, 1 << 20, depths[i]) == 1 << 20, "depth %u: write",
		      depths[i]);
		CHECK(io_verify(dev, 0, 1 << 20, depths[i]) == 1 << 20, "depth %u: read",
		      depths[i]);
		server_down(s);
	}
}

/* As large as they come: as many queues as there are processors, run it with 16 of them. */
CASE_LIMIT(life_large, 180)
{
	struct dev *dev = dev_new(0, 16, 1024);
	struct server *s = server_up(dev);
	struct job *io[32];

	conform_note("%u queues of depth %u", dev->info.nr_hw_queues, dev->info.queue_depth);
	for (unsigned i = 0; i < 32; i++)
		io[i] = io_begin_seeded(dev, IO_WRITE, (uint64_t)i << 18, 1 << 18, i + 1);
	for (unsigned i = 0; i < 32; i++)
		CHECK(io_end(io[i]) == 1 << 18, "write %u failed", i);
	for (unsigned i = 0; i < 32; i++)
		CHECK(io_verify(dev, (uint64_t)i << 18, 1 << 18, i + 1) == 1 << 18,
		      "read %u failed or differs", i);
	server_down(s);
}

/* Trap: START_DEV after STOP_DEV. It may work or be refused, but not in between. */
CASE(trap_start_after_stop)
{
	struct server *s = server_up(dev_new(0, 1, 4));
	long res;

	dev_stop(s->dev);
	server_join(s);
	REQUIRE(dev_wait_released(s->dev, 10000), "the char device is not let go of");
	server_start(s);
	res = start_as(s->dev, (uint64_t)server_pid(s));
	CHECK(res <= 0, "START_DEV: %s", conform_errname(res));
	CHECK(dev_has_disk(s->dev) == (res == 0), "START_DEV: %s, and the disk is %s",
	      conform_errname(res), dev_has_disk(s->dev) ? "there" : "not there");
	if (res == 0) {
		CHECK(io_write(s->dev, 0, 65536, 2) == 65536, "write failed");
		CHECK(io_verify(s->dev, 0, 65536, 2) == 65536, "read failed or differs");
	}
	server_down(s);
}
