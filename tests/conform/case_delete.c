// SPDX-License-Identifier: MIT
/*
 * DEL_DEV: of a live device, twice, interrupted, while somebody has the device open.
 */
#include "ctrl.h"
#include "dev.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

CASE(life_delete_live)
{
	struct server *s = server_up(dev_new(0, 2, 8));

	/* The server ends when its commands are aborted, which is what DEL_DEV then waits for. */
	dev_del(s->dev);
	server_join(s);
}

CASE(life_delete_twice)
{
	struct dev *dev = dev_new(0, 1, 4);

	dev_add(dev);
	dev_del(dev);
	RESULT("delete-twice", dev_cmd(dev, UBLK_U_CMD_DEL_DEV, 0, NULL, 0), -ENODEV);
}

struct adders {
	struct dev *dev;
	atomic_bool added;
};

static long add_when_free(struct job *job)
{
	struct ublksrv_ctrl_dev_info info;
	struct adders *a;

	memcpy(&a, job->arg, sizeof(a));
	while (!atomic_load(&a->added)) {
		struct ctrl get = {.op = UBLK_U_CMD_GET_DEV_INFO,
				   .id = a->dev->id,
				   .buf = &info,
				   .len = sizeof(info)};
		struct ctrl add = get;
		long res;

		ctrl_direct(&get);
		add.op = UBLK_U_CMD_ADD_DEV;
		info = a->dev->info;
		res = ctrl_direct(&add);
		if (res == 0)
			atomic_store(&a->added, true);
		else if (res != -EEXIST)
			return res;
	}
	return 0;
}

/* A device's last moments, with others that look it up, and want its number as soon as it is free.
 */
CASE_LIMIT(life_number_taken_again, 120)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct adders *a = shared_alloc(sizeof(*a));
	struct job *del, *jobs[4];
	long res;
	int fd;

	a->dev = dev;
	dev_add(dev);
	for (unsigned round = 0; round < 40; round++) {
		fd = dev_open_char(dev);
		REQUIRE(fd >= 0, "cannot open %s", dev_char_path(dev));
		atomic_store(&a->added, false);
		for (unsigned i = 0; i < 4; i++) {
			jobs[i] = job_new(add_when_free, &a, sizeof(a));
			job_start(jobs[i]);
		}
		del = dev_cmd_begin(dev, UBLK_U_CMD_DEL_DEV, 0);
		CHECK(job_wait(del, 30, NULL) == JOB_RUNNING, "DEL_DEV did not wait");
		close(fd);
		for (unsigned i = 0; i < 4; i++) {
			REQUIRE(job_wait(jobs[i], 30000, &res) == 0, "nobody gets the number");
			CHECK(res == 0, "ADD_DEV: %s", conform_errname(res));
			job_put(jobs[i]);
		}
		REQUIRE(job_wait(del, 5000, NULL) == 0, "DEL_DEV waits for the next device");
		job_put(del);
	}
	dev_del(dev);
}

/* Who came in while a device is being deleted would stay: nobody sends it away any more. */
CASE_LIMIT(life_open_while_deleting, 60)
{
	/* Who comes too late has the kernel look for a module: that takes its time. */
	for (unsigned round = 0; round < 10; round++) {
		struct dev *dev = dev_new(0, 1, 4);
		struct job *del;
		char path[64];
		int node, fd;

		dev_add(dev);
		node = open(dev_char_path(dev), O_PATH | O_CLOEXEC);
		REQUIRE(node >= 0, "cannot find %s", dev_char_path(dev));
		snprintf(path, sizeof(path), "/proc/self/fd/%d", node);
		del = dev_cmd_begin(dev, UBLK_U_CMD_DEL_DEV_ASYNC, 0);
		/* Its name goes first, a moment before the device itself. */
		while (!access(dev_char_path(dev), F_OK))
			;
		fd = open(path, O_RDWR | O_CLOEXEC);
		RESULT_REQUIRED("open-while-deleting", fd < 0 ? -errno : 0, -ENXIO);
		if (fd >= 0)
			close(fd);
		REQUIRE(job_wait(del, 10000, NULL) == 0, "DEL_DEV_ASYNC does not end");
		job_put(del);
		close(node);
	}
}

/* Trap: DEL_DEV waits for the last reference to /dev/ublkcN. */
CASE(trap_delete_waits_for_the_char_device)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct job *del;
	int fd;

	dev_add(dev);
	fd = dev_open_char(dev);
	REQUIRE(fd >= 0, "cannot open %s", dev_char_path(dev));
	del = dev_cmd_begin(dev, UBLK_U_CMD_DEL_DEV, 0);
	CHECK(job_wait(del, 500, NULL) == JOB_RUNNING, "DEL_DEV did not wait");
	close(fd);
	CHECK(job_wait(del, 10000, NULL) == 0, "DEL_DEV does not end after the close");
}

CASE(trap_delete_waits_for_the_mapping)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct job *del;
	struct ioq q;
	int fd;

	dev_add(dev);
	fd = dev_open_char(dev);
	REQUIRE(fd >= 0 && ioq_open(&q, dev, fd, 0) == 0, "cannot map the descriptors");
	close(fd);
	del = dev_cmd_begin(dev, UBLK_U_CMD_DEL_DEV, 0);
	CHECK(job_wait(del, 500, NULL) == JOB_RUNNING, "DEL_DEV did not wait");
	ioq_close(&q);
	CHECK(job_wait(del, 10000, NULL) == 0, "DEL_DEV does not end after the unmapping");
}

CASE(life_interrupted_delete_goes_on)
{
	struct dev *dev = dev_new(0, 1, 4), *again = dev_new(0, 1, 4);
	struct job *del;
	int fd;

	dev_add(dev);
	fd = dev_open_char(dev);
	REQUIRE(fd >= 0, "cannot open %s", dev_char_path(dev));
	del = dev_cmd_begin(dev, UBLK_U_CMD_DEL_DEV, 0);
	CHECK(job_wait(del, 300, NULL) == JOB_RUNNING, "DEL_DEV did not wait");
	job_signal(del, SIGKILL);
	REQUIRE(job_wait(del, 10000, NULL) != JOB_RUNNING, "DEL_DEV cannot be interrupted");
	again->id = dev->id;
	RESULT("add-while-deleting", dev_try_add(again), -EEXIST);
	close(fd);
	sleep_ms(200);
	RESULT("add-after-deleting", dev_try_add(again), 0);
	dev_del(again);
}

CASE(life_delete_async)
{
	struct dev *dev = dev_new(0, 1, 4), *again = dev_new(0, 1, 4);
	int fd;

	dev_add(dev);
	fd = dev_open_char(dev);
	REQUIRE(fd >= 0, "cannot open %s", dev_char_path(dev));
	RESULT("delete-async", dev_cmd(dev, UBLK_U_CMD_DEL_DEV_ASYNC, 0, NULL, 0), 0);
	CHECK(access(dev_char_path(dev), F_OK), "%s is still there", dev_char_path(dev));
	again->id = dev->id;
	RESULT("add-while-deleting", dev_try_add(again), -EEXIST);
	close(fd);
	sleep_ms(200);
	RESULT("add-after-deleting", dev_try_add(again), 0);
	RESULT("delete-async", dev_cmd(again, UBLK_U_CMD_DEL_DEV_ASYNC, 0, NULL, 0), 0);
}

CASE(life_delete_async_live)
{
	struct server *s = server_up(dev_new(0, 1, 8));

	RESULT("delete-async-live", dev_cmd(s->dev, UBLK_U_CMD_DEL_DEV_ASYNC, 0, NULL, 0), 0);
	server_join(s);
	CHECK(!dev_has_disk(s->dev), "the disk is still there");
}
