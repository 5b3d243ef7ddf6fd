// SPDX-License-Identifier: MIT
/*
 * The life of a device by raw control commands. See dev.h.
 */
#include "dev.h"

#include "ctrl.h"
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct dev *dev_new(uint64_t flags, unsigned queues, unsigned depth)
{
	struct dev *dev = shared_alloc(sizeof(*dev));

	dev->id = DEV_ID_ANY;
	dev->info.flags = flags;
	dev->info.nr_hw_queues = (uint16_t)queues;
	dev->info.queue_depth = (uint16_t)depth;
	dev->info.max_io_buf_bytes = 128 << 10;
	dev->params.len = sizeof(dev->params);
	dev->params.types = UBLK_PARAM_TYPE_BASIC;
	dev->params.basic = (struct ublk_param_basic){
		.attrs = UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA,
		.logical_bs_shift = 9,
		.physical_bs_shift = 12,
		.io_min_shift = 12,
		.io_opt_shift = 16,
		.max_sectors = 256,
		.dev_sectors = DEV_BYTES / SECTOR,
	};
	return dev;
}

long dev_try_add(struct dev *dev)
{
	long res;

	if (!dev->part_scan)
		dev->info.flags |= conform_features() & UBLK_F_NO_AUTO_PART_SCAN;
	dev->info.dev_id = dev->id;
	res = ctrl(UBLK_U_CMD_ADD_DEV, dev->id, .buf = &dev->info, .len = sizeof(dev->info),
		   .uid = dev->uid);
	if (res == 0) {
		dev->id = dev->info.dev_id;
		conform_track_device(dev->id);
	}
	return res;
}

long dev_try_set_params(struct dev *dev)
{
	return dev_cmd(dev, UBLK_U_CMD_SET_PARAMS, 0, &dev->params, sizeof(dev->params));
}

void dev_add(struct dev *dev)
{
	long res = dev_try_add(dev);

	REQUIRE(res == 0, "ADD_DEV: %s", conform_errname(res));
	res = dev_try_set_params(dev);
	REQUIRE(res == 0, "SET_PARAMS: %s", conform_errname(res));
}

long dev_cmd(struct dev *dev, uint32_t op, uint64_t data, void *buf, uint16_t len)
{
	uint8_t with_path[2048];
	size_t path_len;
	long res;

	if (!dev->uid)
		return ctrl(op, dev->id, .data = data, .buf = buf, .len = len);
	path_len = strlen(dev_char_path(dev)) + 1;
	memcpy(with_path, dev_char_path(dev), path_len);
	if (buf)
		memcpy(with_path + path_len, buf, len);
	res = ctrl(op, dev->id, .data = data, .buf = with_path, .len = (uint16_t)(path_len + len),
		   .path_len = (uint16_t)path_len, .uid = dev->uid);
	if (buf)
		memcpy(buf, with_path + path_len, len);
	return res;
}

struct job *dev_cmd_begin(struct dev *dev, uint32_t op, uint64_t data)
{
	struct ctrl c = {.op = op, .id = dev->id, .data = data, .uid = dev->uid};
	char path[64];

	if (dev->uid) {
		c.len = c.path_len = (uint16_t)(strlen(dev_char_path(dev)) + 1);
		memcpy(path, dev_char_path(dev), c.len);
		c.buf = path;
	}
	return ctrl_begin(&c);
}

long dev_get_info(struct dev *dev, struct ublksrv_ctrl_dev_info *info)
{
	return dev_cmd(dev, UBLK_U_CMD_GET_DEV_INFO, 0, info, sizeof(*info));
}

int dev_state(struct dev *dev)
{
	struct ublksrv_ctrl_dev_info info;
	long res = dev_get_info(dev, &info);

	return res ? (int)res : info.state;
}

bool dev_wait_state(struct dev *dev, int state, unsigned ms)
{
	uint64_t until = now_ms() + ms;

	while (dev_state(dev) != state) {
		if (now_ms() > until)
			return false;
		sleep_ms(10);
	}
	return true;
}

int dev_open_released(const struct dev *dev, unsigned ms)
{
	uint64_t until = now_ms() + ms;
	int fd;

	while ((fd = dev_open_char(dev)) == -EBUSY && now_ms() <= until)
		sleep_ms(10);
	return fd;
}

bool dev_wait_released(struct dev *dev, unsigned ms)
{
	/* Kept open it would take the place of the server that the test is about to start. */
	int fd = dev_open_released(dev, ms);

	if (fd == -EBUSY)
		return false;
	if (fd >= 0)
		close(fd);
	/* Our own close is noticed by a work item. */
	sleep_ms(50);
	return fd >= 0;
}

void dev_stop(struct dev *dev)
{
	long res = dev_cmd(dev, UBLK_U_CMD_STOP_DEV, 0, NULL, 0);

	REQUIRE(res == 0, "STOP_DEV: %s", conform_errname(res));
	CHECK(!dev_has_disk(dev), "the disk is still there after STOP_DEV");
}

void dev_del(struct dev *dev)
{
	long res = dev_cmd(dev, UBLK_U_CMD_DEL_DEV, 0, NULL, 0);

	REQUIRE(res == 0, "DEL_DEV: %s", conform_errname(res));
	CHECK(access(dev_char_path(dev), F_OK), "%s is still there after DEL_DEV",
	      dev_char_path(dev));
}

const char *dev_char_path(const struct dev *dev)
{
	static _Thread_local char path[64];

	snprintf(path, sizeof(path), "/dev/ublkc%u", dev->id);
	return path;
}

const char *dev_block_path(const struct dev *dev)
{
	static _Thread_local char path[64];

	snprintf(path, sizeof(path), "/dev/ublkb%u", dev->id);
	return path;
}

int dev_open_char(const struct dev *dev)
{
	int fd = open(dev_char_path(dev), O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

bool dev_has_disk(const struct dev *dev)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/ublkb%u", dev->id);
	return !access(path, F_OK);
}

long long dev_sysfs(const struct dev *dev, const char *name)
{
	char path[128];
	long long value;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/block/ublkb%u/%s", dev->id, name);
	f = fopen(path, "r");
	if (!f)
		return -1;
	if (fscanf(f, "%lli", &value) != 1)
		value = -1;
	fclose(f);
	return value;
}

void dev_sysfs_set(const struct dev *dev, const char *name, const char *value)
{
	char path[128];
	bool written;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/block/ublkb%u/%s", dev->id, name);
	f = fopen(path, "w");
	REQUIRE(f, "cannot open %s", path);
	written = fputs(value, f) >= 0;
	REQUIRE(fclose(f) == 0 && written, "cannot write %s to %s", value, path);
}
