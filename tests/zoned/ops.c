/* SPDX-License-Identifier: MIT */
/* Each zone operation as the standards have it, and each that they do not allow; images that are
 * kept, made anew and refused. Runs in an empty directory. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <tap.h>

#include "disk.h"

#define KB 1024u
#define ZONE (256 * KB)
#define CAPACITY (192 * KB)
#define CONV 2u
#define GEOMETRY "size=4M zone-size=256K zone-capacity=192K conventional=2 "

static struct ubd_device *dev;
static uint8_t buf[512 * KB] __attribute__((aligned(4096)));
static struct blk_zone zones[MAX_ZONES];
static const char *where = ""; /* "" or options that name an image */

static void start(const char *options)
{
	char all[512];

	snprintf(all, sizeof(all), "%s%s%s", where, GEOMETRY, options);
	unlink("image");
	dev = disk_open(all);
	if (!dev) {
		printf("Bail out! %s: %s\n", all, disk_error);
		exit(3);
	}
}

static void end(void)
{
	CHECK(disk_close(dev) == 0, "close");
}

static int op(enum ubd_op what, unsigned zone)
{
	return ubd_local_io(dev, 0, what, 0, (uint64_t)zone * ZONE, NULL, 0);
}

static int write_at(unsigned zone, uint32_t at, uint32_t len)
{
	for (uint32_t i = 0; i < len; i += BLOCK)
		block_fill(buf + i, (uint64_t)zone << 32 | (at + i) | 1);
	return ubd_local_io(dev, 0, UBD_WRITE, 0, (uint64_t)zone * ZONE + at, buf, len);
}

static int append(unsigned zone, uint32_t len, uint64_t *at)
{
	int ret = ubd_local_append(dev, 0, 0, (uint64_t)zone * ZONE, buf, len, at);

	*at -= (uint64_t)zone * ZONE;
	return ret;
}

/* The zone's data is what write_at() wrote up to here, and zeroes to its end. */
static bool holds(unsigned zone, uint32_t written)
{
	memset(buf, 0xee, ZONE);
	if (ubd_local_io(dev, 0, UBD_READ, 0, (uint64_t)zone * ZONE, buf, ZONE) != (int)ZONE)
		return false;
	for (uint32_t i = 0; i < ZONE; i += BLOCK)
		if (!block_is(buf + i, i < written ? (uint64_t)zone << 32 | i | 1 : 0))
			return false;
	return true;
}

static bool is(unsigned zone, unsigned cond, uint32_t wp)
{
	disk_report(dev, zones);
	if (zones[zone].cond == cond && zones[zone].wp == ((uint64_t)zone * ZONE + wp) >> 9)
		return true;
	tap_note("zone %u: condition %u, write pointer %lld", zone, zones[zone].cond,
		 (long long)zones[zone].wp * 512 - (long long)zone * ZONE);
	return false;
}

#define EMPTY BLK_ZONE_COND_EMPTY
#define IMPLICIT BLK_ZONE_COND_IMP_OPEN
#define EXPLICIT BLK_ZONE_COND_EXP_OPEN
#define CLOSED BLK_ZONE_COND_CLOSED
#define FULL BLK_ZONE_COND_FULL

#define RETURNS(call, want)                                   \
	do {                                                  \
		int ret_ = (call);                            \
		CHECK(ret_ == (want), "%s: %d", #call, ret_); \
	} while (0)

static void test_report(void)
{
	start("");
	CHECK(disk_report(dev, zones) == 16, "number of zones");
	for (unsigned i = 0; i < 16; i++) {
		bool conv = i < CONV;

		CHECK(zones[i].start == i * ZONE >> 9 && zones[i].len == ZONE >> 9, "zone %u", i);
		CHECK(zones[i].capacity == (conv ? ZONE : CAPACITY) >> 9, "capacity of %u", i);
		CHECK(zones[i].type ==
			      (conv ? BLK_ZONE_TYPE_CONVENTIONAL : BLK_ZONE_TYPE_SEQWRITE_REQ),
		      "type of %u", i);
		CHECK(zones[i].cond == (conv ? BLK_ZONE_COND_NOT_WP : EMPTY), "condition of %u", i);
	}
	memset(zones, 0xff, sizeof(zones));
	RETURNS(ubd_local_io(dev, 0, UBD_REPORT_ZONES, 0, 14 * ZONE, zones, 5), 5 * 64);
	CHECK(zones[0].start == 14 * ZONE >> 9 && zones[1].len && !zones[2].len,
	      "part of a report");
	RETURNS(ubd_local_io(dev, 0, UBD_REPORT_ZONES, 0, 512, zones, 5), -EINVAL);
	end();
}

static void test_write(void)
{
	start("");
	RETURNS(write_at(3, 4096, 4096), -EIO);
	CHECK(is(3, EMPTY, 0), "a refused write changes nothing");
	RETURNS(write_at(3, 0, 8192), 8192);
	CHECK(is(3, IMPLICIT, 8192), "a write opens");
	RETURNS(write_at(3, 0, 4096), -EIO);
	RETURNS(write_at(3, 4096, 4096), -EIO);
	RETURNS(write_at(3, 12288, 4096), -EIO);
	RETURNS(write_at(3, 8192, CAPACITY), -EIO);
	CHECK(is(3, IMPLICIT, 8192) && holds(3, 8192), "refused writes change nothing");
	RETURNS(write_at(3, 8192, CAPACITY - 8192), (int)(CAPACITY - 8192));
	CHECK(is(3, FULL, ZONE) && holds(3, CAPACITY), "a zone fills up");
	RETURNS(write_at(3, CAPACITY, 4096), -EIO);
	RETURNS(write_at(3, 0, 4096), -EIO);
	RETURNS(write_at(4, 0, ZONE), -EIO);
	RETURNS(ubd_local_io(dev, 0, UBD_WRITE, 0, 5 * ZONE, buf, 512), -EINVAL);
	RETURNS(ubd_local_io(dev, 0, UBD_READ, 0, 5 * ZONE + 512, buf, 4096), -EINVAL);
	RETURNS(ubd_local_io(dev, 0, UBD_READ, 0, 5 * ZONE - 4096, buf, 8192), -EINVAL);
	RETURNS(ubd_local_io(dev, 0, UBD_DISCARD, 0, 5 * ZONE, NULL, ZONE), -EOPNOTSUPP);
	RETURNS(ubd_local_io(dev, 0, UBD_WRITE_ZEROES, 0, 5 * ZONE, NULL, ZONE), -EOPNOTSUPP);
	end();
}

static void test_append(void)
{
	uint64_t at = 1;

	start("");
	RETURNS(append(2, 8192, &at), 8192);
	CHECK(at == 0, "at %llu", (unsigned long long)at);
	RETURNS(append(2, 4096, &at), 4096);
	CHECK(at == 8192 && is(2, IMPLICIT, 12288), "at %llu", (unsigned long long)at);
	RETURNS(append(2, CAPACITY - 8192, &at), -EIO);
	CHECK(is(2, IMPLICIT, 12288), "a refused append changes nothing");
	RETURNS(ubd_local_append(dev, 0, 0, 2 * ZONE + 4096, buf, 4096, &at), -EIO);
	RETURNS(append(0, 4096, &at), -EIO);
	RETURNS(append(2, CAPACITY - 12288, &at), (int)(CAPACITY - 12288));
	CHECK(is(2, FULL, ZONE), "appends fill a zone");
	RETURNS(append(2, 4096, &at), -EIO);
	end();
}

static void test_conditions(void)
{
	start("");
	RETURNS(op(UBD_ZONE_OPEN, 3), 0);
	CHECK(is(3, EXPLICIT, 0), "open");
	RETURNS(op(UBD_ZONE_OPEN, 3), 0);
	RETURNS(op(UBD_ZONE_CLOSE, 3), 0);
	CHECK(is(3, EMPTY, 0), "closed with nothing written: empty");
	RETURNS(op(UBD_ZONE_CLOSE, 3), -EIO);
	RETURNS(write_at(3, 0, 4096), 4096);
	RETURNS(op(UBD_ZONE_OPEN, 3), 0);
	CHECK(is(3, EXPLICIT, 4096), "implicitly open becomes explicitly open");
	RETURNS(write_at(3, 4096, 4096), 4096);
	CHECK(is(3, EXPLICIT, 8192), "a write leaves it explicitly open");
	RETURNS(op(UBD_ZONE_CLOSE, 3), 0);
	CHECK(is(3, CLOSED, 8192), "close");
	RETURNS(op(UBD_ZONE_CLOSE, 3), 0);
	RETURNS(write_at(3, 8192, 4096), 4096);
	CHECK(is(3, IMPLICIT, 12288), "a write opens a closed zone");
	RETURNS(op(UBD_ZONE_CLOSE, 3), 0);
	RETURNS(op(UBD_ZONE_FINISH, 3), 0);
	CHECK(is(3, FULL, ZONE) && holds(3, 12288), "finish");
	RETURNS(op(UBD_ZONE_FINISH, 3), 0);
	RETURNS(op(UBD_ZONE_OPEN, 3), -EIO);
	RETURNS(op(UBD_ZONE_CLOSE, 3), -EIO);
	RETURNS(write_at(3, 12288, 4096), -EIO);
	RETURNS(op(UBD_ZONE_FINISH, 4), 0);
	CHECK(is(4, FULL, ZONE) && holds(4, 0), "an empty zone can be finished");
	RETURNS(op(UBD_ZONE_RESET, 3), 0);
	CHECK(is(3, EMPTY, 0) && holds(3, 0), "reset");
	RETURNS(op(UBD_ZONE_RESET, 3), 0);
	RETURNS(write_at(3, 0, 8192), 8192);
	CHECK(holds(3, 8192), "written again, nothing old shows");
	RETURNS(write_at(5, 0, 8192), 8192);
	RETURNS(write_at(0, 0, 8192), 8192);
	RETURNS(op(UBD_ZONE_RESET_ALL, 0), 0);
	for (unsigned i = CONV; i < 16; i++)
		CHECK(is(i, EMPTY, 0) && holds(i, 0), "reset all: zone %u", i);
	CHECK(holds(0, 8192), "reset all leaves conventional zones alone");
	RETURNS(ubd_local_io(dev, 0, UBD_ZONE_RESET, 0, 3 * ZONE + 4096, NULL, 0), -EINVAL);
	end();
}

static void test_conventional(void)
{
	static const enum ubd_op ops[] = {UBD_ZONE_OPEN, UBD_ZONE_CLOSE, UBD_ZONE_FINISH,
					  UBD_ZONE_RESET};

	start("");
	RETURNS(write_at(1, 65536, 8192), 8192);
	RETURNS(write_at(1, 0, 8192), 8192);
	RETURNS(write_at(1, 0, ZONE), (int)ZONE);
	CHECK(holds(1, ZONE), "written anywhere");
	for (unsigned i = 0; i < 4; i++)
		RETURNS(op(ops[i], 1), -EIO);
	disk_report(dev, zones);
	CHECK(zones[1].cond == BLK_ZONE_COND_NOT_WP, "condition %u", zones[1].cond);
	end();
}

static void test_max_open(void)
{
	start("max-open=3");
	for (unsigned i = 2; i < 5; i++)
		RETURNS(write_at(i, 0, 4096), 4096);
	RETURNS(write_at(5, 0, 4096), 4096);
	disk_report(dev, zones);
	CHECK((zones[2].cond == CLOSED) + (zones[3].cond == CLOSED) + (zones[4].cond == CLOSED) ==
		      1,
	      "one is closed for the fourth");
	CHECK(zones[5].cond == IMPLICIT, "which is open");
	for (unsigned i = 6; i < 9; i++)
		RETURNS(op(UBD_ZONE_OPEN, i), 0);
	disk_report(dev, zones);
	for (unsigned i = 2; i < 6; i++)
		CHECK(zones[i].cond == CLOSED, "zone %u makes room", i);
	RETURNS(op(UBD_ZONE_OPEN, 9), -ETOOMANYREFS);
	RETURNS(write_at(9, 0, 4096), -ETOOMANYREFS);
	RETURNS(write_at(2, 4096, 4096), -ETOOMANYREFS);
	CHECK(is(9, EMPTY, 0) && is(2, CLOSED, 4096), "the refused ones are as before");
	RETURNS(write_at(6, 0, 4096), 4096);
	RETURNS(op(UBD_ZONE_CLOSE, 7), 0);
	RETURNS(write_at(9, 0, 4096), 4096);
	CHECK(is(9, IMPLICIT, 4096), "after a close there is room");
	RETURNS(op(UBD_ZONE_FINISH, 6), 0);
	RETURNS(op(UBD_ZONE_OPEN, 10), 0);
	RETURNS(op(UBD_ZONE_RESET, 8), 0);
	RETURNS(op(UBD_ZONE_OPEN, 11), 0);
	CHECK(is(9, IMPLICIT, 4096), "finish and reset make room as well");
	end();
}

static void test_max_active(void)
{
	start("max-open=2 max-active=4");
	for (unsigned i = 2; i < 6; i++)
		RETURNS(write_at(i, 0, 4096), 4096);
	RETURNS(write_at(6, 0, 4096), -EOVERFLOW);
	RETURNS(op(UBD_ZONE_OPEN, 6), -EOVERFLOW);
	CHECK(is(6, EMPTY, 0), "the refused one is as before");
	RETURNS(write_at(2, 4096, 4096), 4096);
	RETURNS(op(UBD_ZONE_OPEN, 3), 0);
	RETURNS(op(UBD_ZONE_FINISH, 6), 0);
	RETURNS(op(UBD_ZONE_FINISH, 2), 0);
	RETURNS(write_at(7, 0, 4096), 4096);
	RETURNS(write_at(8, 0, 4096), -EOVERFLOW);
	RETURNS(write_at(4, 4096, CAPACITY - 4096), (int)(CAPACITY - 4096));
	RETURNS(write_at(8, 0, 4096), 4096);
	RETURNS(write_at(9, 0, 4096), -EOVERFLOW);
	RETURNS(op(UBD_ZONE_RESET, 5), 0);
	RETURNS(op(UBD_ZONE_OPEN, 9), 0);
	end();
	start("max-active=1");
	RETURNS(write_at(2, 0, 4096), 4096);
	RETURNS(op(UBD_ZONE_OPEN, 3), -EOVERFLOW);
	RETURNS(op(UBD_ZONE_RESET_ALL, 0), 0);
	RETURNS(op(UBD_ZONE_OPEN, 3), 0);
	end();
}

static void in_a_file(void)
{
	void (*const tests[])(void) = {test_report,	test_write,	   test_append,
				       test_conditions, test_conventional, test_max_open,
				       test_max_active};

	where = "file=image format ";
	for (unsigned i = 0; i < sizeof(tests) / sizeof(*tests); i++)
		tests[i]();
}

/* A stop is a power cycle: nothing is open afterwards, nothing else changes. */
static void test_kept(void)
{
	where = "file=image format ";
	start("max-open=5 max-active=6");
	write_at(2, 0, 8192);
	op(UBD_ZONE_OPEN, 3);
	write_at(4, 0, 4096);
	op(UBD_ZONE_OPEN, 4);
	write_at(5, 0, CAPACITY);
	write_at(6, 0, 4096);
	op(UBD_ZONE_FINISH, 6);
	write_at(7, 0, 4096);
	op(UBD_ZONE_RESET, 7);
	write_at(0, 4096, 4096);
	end();
	CHECK(access("run", F_OK) == 0 && !system("rmdir run"), "a live file is left");
	dev = disk_open("file=image size=4M max-active=6");
	REQUIRE(dev, "%s", disk_error);
	CHECK(is(2, CLOSED, 8192) && holds(2, 8192), "implicitly open");
	CHECK(is(3, EMPTY, 0), "explicitly open, with nothing in it");
	CHECK(is(4, CLOSED, 4096) && holds(4, 4096), "explicitly open");
	CHECK(is(5, FULL, ZONE) && holds(5, CAPACITY), "full");
	CHECK(is(6, FULL, ZONE) && holds(6, 4096), "finished");
	CHECK(is(7, EMPTY, 0) && holds(7, 0), "reset");
	CHECK(zones[2].capacity == CAPACITY >> 9, "capacity");
	RETURNS(write_at(2, 8192, 4096), 4096);
	end();
	dev = disk_open("file=image read-only");
	REQUIRE(dev, "%s", disk_error);
	CHECK(is(2, CLOSED, 12288) && holds(2, 12288), "read-only");
	RETURNS(write_at(2, 12288, 4096), -EROFS);
	RETURNS(op(UBD_ZONE_RESET, 2), -EROFS);
	end();
}

/* Space that a reset zone had is given back. */
static void test_discard(void)
{
	struct stat before, after;

	where = "file=image format ";
	start("");
	write_at(2, 0, CAPACITY);
	write_at(3, 0, CAPACITY);
	RETURNS(ubd_local_io(dev, 0, UBD_FLUSH, 0, 0, NULL, 0), 0);
	stat("image", &before);
	RETURNS(op(UBD_ZONE_RESET, 2), 0);
	stat("image", &after);
	CHECK(before.st_blocks - after.st_blocks >= (int)(CAPACITY / 512), "%lld blocks, then %lld",
	      (long long)before.st_blocks, (long long)after.st_blocks);
	CHECK(holds(3, CAPACITY), "the next one is untouched");
	end();
}

static void refused(const char *options, const char *says)
{
	struct ubd_device *d = disk_open(options);

	CHECK(!d, "%s is not refused", options);
	CHECK(strstr(disk_error, says) && !strchr(disk_error, '\n'), "%s: \"%s\"", options,
	      disk_error);
	if (d)
		disk_close(d);
}

static void test_refusals(void)
{
	unlink("image");
	refused("size=0", "whole zones");
	refused("zone-size=64K", "whole zones");
	refused("size=1M zone-size=96K", "power of two");
	refused("size=1M zone-size=32K", "power of two");
	refused("size=4T zone-size=2T", "power of two");
	refused("size=1M zone-size=256K zone-capacity=512K", "capacity");
	refused("size=1M zone-size=256K zone-capacity=1000", "capacity");
	refused("size=1000K zone-size=256K", "whole zones");
	refused("size=16T zone-size=64K", "whole zones");
	refused("size=1M zone-size=256K conventional=4", "conventional < 4");
	refused("size=1M zone-size=256K conventional=2 max-open=3", "<= 2");
	refused("size=1M zone-size=256K max-active=5", "<= 4");
	refused("size=1M zone-size=256K max-active=2 max-open=3", "max-active");
	refused("file=image", "No such file");
	refused("file=image format size=1M zone-size=3M", "power of two");
	refused("file=nowhere/image format size=64M", "nowhere/image");
	CHECK(access("image", F_OK) < 0, "a refused image is left behind");
	CHECK(!system("truncate -s 8M image"), "make a file");
	refused("file=image", "--format");
	dev = disk_open("file=image format " GEOMETRY);
	REQUIRE(dev, "%s", disk_error);
	refused("file=image", "locked");
	end();
	refused("file=image zone-size=64K", "leave");
	refused("file=image conventional=1", "leave");
	CHECK(!system("truncate -s 5M image"), "cut it short");
	refused("file=image", "short");
}

/* Either copy of the states will do, none will not. */
static void test_damage(void)
{
	where = "file=image format ";
	for (unsigned broken = 0; broken < 4; broken++) {
		int fd;

		start("");
		write_at(2, 0, 8192);
		end();
		fd = open("image", O_RDWR | O_CLOEXEC);
		for (unsigned copy = 0; copy < 2; copy++)
			if (broken & 1u << copy)
				CHECK(pwrite(fd, "x", 1, copy << 20 | 200) == 1, "pwrite");
		close(fd);
		if (broken == 3) {
			refused("file=image", "no good image");
			continue;
		}
		dev = disk_open("file=image");
		REQUIRE(dev, "%s", disk_error);
		disk_report(dev, zones);
		/* The older copy may be from before the write. */
		CHECK(is(2, CLOSED, 8192) ? holds(2, 8192) : is(2, EMPTY, 0), "broken %u", broken);
		CHECK(broken || zones[2].cond == CLOSED, "nothing is lost");
		end();
	}
}

static const struct tap_case cases[] = {
	{"reports", test_report},
	{"writes", test_write},
	{"appends", test_append},
	{"open, close, finish, reset", test_conditions},
	{"conventional zones", test_conventional},
	{"the limit of open zones", test_max_open},
	{"the limit of active zones", test_max_active},
	{"the same in a file", in_a_file},
	{"a file keeps its zones", test_kept},
	{"a reset gives space back", test_discard},
	{"refusals", test_refusals},
	{"damaged states", test_damage},
};

int main(void)
{
	setenv("UBD_RUN_DIR", "run", 1);
	return tap_run(cases, sizeof(cases) / sizeof(*cases));
}
