// SPDX-License-Identifier: MIT
/*
 * UNPRIVILEGED_DEV: devices that an ordinary user adds, serves and owns, by a real other user id.
 */
#include "client.h"
#include "ctrl.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define USER 4711
#define STRANGER 4712
#define AT (2ULL << 20)

/* What udev rules do on a machine that allows it. */
static void open_the_control_device(void)
{
	REQUIRE(chmod("/dev/ublk-control", 0666) == 0, "cannot chmod /dev/ublk-control");
}

static void give_away(const struct dev *dev)
{
	REQUIRE(chown(dev_char_path(dev), USER, USER) == 0 && chmod(dev_char_path(dev), 0600) == 0,
		"cannot give %s away", dev_char_path(dev));
	if (dev_has_disk(dev))
		REQUIRE(chown(dev_block_path(dev), USER, USER) == 0 &&
				chmod(dev_block_path(dev), 0666) == 0,
			"cannot give %s away", dev_block_path(dev));
}

static struct dev *users_dev(uint64_t flags)
{
	struct dev *dev = dev_new(UBLK_F_UNPRIVILEGED_DEV | flags, 1, 8);

	conform_need_features(UBLK_F_UNPRIVILEGED_DEV);
	open_the_control_device();
	dev->uid = USER;
	return dev;
}

static struct server *users_server(struct dev *dev)
{
	struct server *s;

	RESULT_REQUIRED("user-add", dev_try_add(dev), 0);
	give_away(dev);
	RESULT_REQUIRED("user-set-params", dev_try_set_params(dev), 0);
	s = server_up(dev);
	give_away(dev);
	return s;
}

static long io_as(const struct dev *dev, uint32_t uid, enum io_kind kind)
{
	struct io io = {.kind = kind, .offset = AT, .bytes = 4096, .seed = 1, .uid = uid};

	memcpy(io.path, dev_block_path(dev), sizeof(io.path));
	return io_end(io_begin_as(&io));
}

CASE(unprivileged_life)
{
	struct dev *dev = users_dev(0);
	struct server *s = users_server(dev);
	struct ublksrv_ctrl_dev_info info;

	RESULT("user-info", dev_get_info(dev, &info), 0);
	CHECK(info.flags & UBLK_F_UNPRIVILEGED_DEV, "the device is not unprivileged");
	CHECK(info.owner_uid == USER && info.owner_gid == USER, "it is %u:%u's", info.owner_uid,
	      info.owner_gid);
	RESULT("user-write", io_as(dev, USER, IO_WRITE), 4096);
	RESULT("user-read", io_as(dev, USER, IO_READ), 4096);
	server_down(s);
}

CASE(unprivileged_disk_is_the_owners)
{
	struct server *s = users_server(users_dev(0));

	/* Whatever the node's mode is: a trap for other users otherwise. */
	RESULT("stranger-opens-the-disk", io_as(s->dev, STRANGER, IO_READ), -EPERM);
	RESULT("root-opens-the-disk", io_run(s->dev, IO_READ, AT, 4096), 4096);
	server_down(s);
}

CASE(unprivileged_commands_are_the_owners)
{
	struct server *s = users_server(users_dev(0));
	char path[64];
	uint16_t len = (uint16_t)(strlen(dev_char_path(s->dev)) + 1);
	static const uint32_t ops[] = {UBLK_U_CMD_STOP_DEV,   UBLK_U_CMD_DEL_DEV,
				       UBLK_U_CMD_START_DEV,  UBLK_U_CMD_GET_DEV_INFO,
				       UBLK_U_CMD_SET_PARAMS, UBLK_U_CMD_GET_PARAMS};

	strcpy(path, dev_char_path(s->dev));
	for (unsigned i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		long res = ctrl(ops[i], s->dev->id, .buf = path, .len = len, .path_len = len,
				.uid = STRANGER);

		CHECK(res == -EACCES, "a stranger's command 0x%02x: %s", _IOC_NR(ops[i]),
		      conform_errname(res));
		res = ctrl(ops[i], s->dev->id, .uid = USER);
		CHECK(res == -EINVAL, "the owner's command 0x%02x without the path: %s",
		      _IOC_NR(ops[i]), conform_errname(res));
		strcpy(path, "/dev/null");
		res = ctrl(ops[i], s->dev->id, .buf = path, .len = 10, .path_len = 10, .uid = USER);
		CHECK(res == -EPERM, "the owner's command 0x%02x with another path: %s",
		      _IOC_NR(ops[i]), conform_errname(res));
		strcpy(path, dev_char_path(s->dev));
	}
	CHECK(dev_state(s->dev) == UBLK_S_DEV_LIVE, "state %d", dev_state(s->dev));
	server_down(s);
}

CASE(unprivileged_user_on_a_privileged_device)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct ublksrv_ctrl_dev_info info = dev->info;
	char path[64];

	conform_need_features(UBLK_F_UNPRIVILEGED_DEV);
	open_the_control_device();
	info.dev_id = DEV_ID_ANY;
	RESULT("user-adds-privileged",
	       ctrl(UBLK_U_CMD_ADD_DEV, DEV_ID_ANY, .buf = &info, .len = sizeof(info), .uid = USER),
	       -EPERM);
	dev_add(dev);
	strcpy(path, dev_char_path(dev));
	RESULT("user-stops-roots",
	       ctrl(UBLK_U_CMD_STOP_DEV, dev->id, .buf = path, .len = 64, .path_len = 64,
		    .uid = USER),
	       -EPERM);
	RESULT("user-deletes-roots", ctrl(UBLK_U_CMD_DEL_DEV, dev->id, .uid = USER), -EPERM);
	dev_del(dev);
}

CASE(unprivileged_gets_no_data_paths)
{
	static const struct {
		uint64_t flag;
		const char *aspect;
	} paths[] = {
		{UBLK_F_USER_COPY, "user-adds-user-copy"},
		{UBLK_F_SUPPORT_ZERO_COPY, "user-adds-zero-copy"},
		{UBLK_F_AUTO_BUF_REG, "user-adds-auto-buf-reg"},
	};

	for (unsigned i = 0; i < 3; i++) {
		struct dev *dev = users_dev(paths[i].flag);

		if (conform_features() & paths[i].flag)
			RESULT(paths[i].aspect, dev_try_add(dev), -EINVAL);
	}
}

CASE(unprivileged_gets_no_recovery)
{
	uint64_t flags = UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE;
	struct dev *dev = users_dev(flags);

	RESULT_REQUIRED("user-add", dev_try_add(dev), 0);
	CHECK(!(dev->info.flags & flags), "granted: %s",
	      conform_feature_names(dev->info.flags & flags));
	give_away(dev);
	dev_del(dev);
}

CASE(unprivileged_disk_is_not_scanned)
{
	struct dev *dev = users_dev(0);
	struct server *s;

	dev->part_scan = true;
	s = users_server(dev);
	sleep_ms(300);
	CHECK(server_count(s, UBLK_IO_OP_READ, 0) == 0, "the partition table was read");
	server_down(s);
}

CASE(unprivileged_devices_are_limited)
{
	static const char limit[] = "/sys/module/ublk_drv/parameters/ublks_max";
	struct dev *a = users_dev(0), *b = users_dev(0), *c = users_dev(0);
	char old[32] = "64";
	FILE *f = fopen(limit, "r+");

	REQUIRE(f, "no %s", limit);
	CHECK(fgets(old, sizeof(old), f) != NULL, "cannot read %s", limit);
	rewind(f);
	fputs("2", f);
	fflush(f);
	RESULT("user-add", dev_try_add(a), 0);
	RESULT("user-add", dev_try_add(b), 0);
	RESULT("user-add-over-the-limit", dev_try_add(c), -EACCES);
	give_away(a);
	dev_del(a);
	RESULT("user-add-below-the-limit", dev_try_add(c), 0);
	rewind(f);
	fputs(old, f);
	fclose(f);
	give_away(b);
	give_away(c);
	dev_del(b);
	dev_del(c);
}

CASE(unprivileged_server_dies)
{
	struct server *s = users_server(users_dev(0));

	server_kill(s);
	CHECK(dev_wait_state(s->dev, UBLK_S_DEV_DEAD, 10000), "state %d", dev_state(s->dev));
	dev_del(s->dev);
}

static enum server_answer never(struct server *s, struct server_io *io)
{
	(void)s;
	(void)io;
	return ANSWER_NEVER;
}

/* An ordinary user's server must not hold up others: one that lets a request time out is killed. */
CASE_LIMIT(unprivileged_server_hangs, 60)
{
	struct server *s = users_server(users_dev(0));
	struct io io = {.kind = IO_READ, .offset = AT, .bytes = 4096, .uid = USER};
	struct job *read;

	dev_sysfs_set(s->dev, "queue/io_timeout", "1000");
	s->hook = never;
	memcpy(io.path, dev_block_path(s->dev), sizeof(io.path));
	read = io_begin_as(&io);
	REQUIRE(job_wait(s->job, 20000, NULL) == -ECHILD, "the server lives on");
	job_put(s->job);
	CHECK(io_end(read) == -EIO, "a read that nobody served");
	CHECK(dev_wait_state(s->dev, UBLK_S_DEV_DEAD, 10000), "state %d", dev_state(s->dev));
	dev_del(s->dev);
}
