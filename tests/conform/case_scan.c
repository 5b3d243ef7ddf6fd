// SPDX-License-Identifier: MIT
/*
 * The partition scan: done by START_DEV unless told otherwise.
 */
#include "client.h"
#include "harness.h"
#include "server.h"

#include <string.h>
#include <unistd.h>

/* One Linux partition from sector 2048 on, in an MBR. */
static void write_mbr(struct server *s)
{
	static const uint8_t entry[16] = {0, 0, 2, 0, 0x83, 0, 2, 0, 0, 8, 0, 0, 0, 16, 0, 0};

	memcpy(s->store + 446, entry, sizeof(entry));
	s->store[510] = 0x55;
	s->store[511] = 0xaa;
}

static bool partition_comes(const struct dev *dev, unsigned ms)
{
	uint64_t until = now_ms() + ms;
	char path[128];

	snprintf(path, sizeof(path), "/sys/block/ublkb%u/ublkb%up1", dev->id, dev->id);
	while (access(path, F_OK)) {
		if (now_ms() > until)
			return false;
		sleep_ms(10);
	}
	return true;
}

static struct server *with_mbr(struct dev *dev)
{
	struct server *s;
	long res;

	dev_add(dev);
	s = server_new(dev);
	write_mbr(s);
	server_start(s);
	res = dev_cmd(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s), NULL, 0);
	RESULT_REQUIRED("start", res, 0);
	return s;
}

CASE(scan_finds_partitions)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct server *s;

	dev->part_scan = true;
	s = with_mbr(dev);
	CHECK(partition_comes(dev, 5000), "no partition");
	CHECK(dev_sysfs(dev, "ublkb0p1/start") == 2048 || dev->id, "it does not start at 2048");
	server_down(s);
}

CASE(scan_not_wanted)
{
	struct dev *dev = dev_new(UBLK_F_NO_AUTO_PART_SCAN, 1, 8);
	struct server *s;

	conform_need_features(UBLK_F_NO_AUTO_PART_SCAN);
	s = with_mbr(dev);
	CHECK(!partition_comes(dev, 500), "a partition nobody asked for");
	CHECK(server_count(s, UBLK_IO_OP_READ, 0) == 0, "the partition table was read");
	server_down(s);
}

CASE(scan_again_and_again)
{
	for (unsigned i = 0; i < 6; i++) {
		struct dev *dev = dev_new(0, 1, 4);
		struct server *s;

		dev->part_scan = true;
		s = with_mbr(dev);
		/* At once, while the scan may be going on. */
		if (i & 1)
			dev_stop(dev);
		dev_del(dev);
		server_join(s);
	}
}
