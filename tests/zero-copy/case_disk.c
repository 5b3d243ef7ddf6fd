// SPDX-License-Identifier: MIT
/*
 * Disks and file systems under members that fail, are slow, or stand still: /run/zc/bad has an
 * unreadable block and /run/zc/slow takes its time, both made by ./guest.
 */
#include "client.h"
#include "harness.h"
#include "server.h"
#include "zc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LEN 65536U
#define PART (LEN / 4)
#define SEED 5

static int disk_open(const char *path)
{
	int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);

	if (fd < 0)
		conform_skip("there is no %s in this guest: %s", path, strerror(errno));
	return fd;
}

/* Four parts of a read, of which the third comes from a disk's bad block. */
static void parts(struct ubd_member *m, int good, int bad)
{
	for (unsigned i = 0; i < 4; i++)
		m[i] = zc_read(good, i * PART, PART, (uint64_t)i * PART);
	m[2] = zc_read(bad, 2 * PART, PART, 32768);
}

static void check_parts(struct hand *h, struct job *io, unsigned tag)
{
	long res = 0;

	ioq_commit(&h->q, tag, LEN);
	REQUIRE(job_wait(io, 10000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	CHECK(zc_data_differs(io, 0, 2 * PART, 7) < 0 &&
		      pattern_check(io->data + 3 * PART, 3 * PART, PART, 7) < 0,
	      "the members beside the failed one have not all ended");
	for (unsigned i = 2 * PART; i < 3 * PART; i++)
		if (io->data[i] == 0xaa) {
			CHECK(false, "byte %u is what the page held before", i);
			break;
		}
	job_put(io);
}

static struct job *dirty_read(struct hand *h, unsigned *tag)
{
	struct job *io = io_begin(h->dev, IO_READ, 0, LEN);

	*tag = ioq_next(&h->q, NULL);
	memset(io->data, 0xaa, LEN);
	return io;
}

CASE(disk_one_of_several_fails)
{
	int bad = disk_open("/run/zc/bad"), good = backing_open(TMPFS);
	struct ubd_member m[4];
	struct hand h;
	struct job *io;
	unsigned tag;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	parts(m, good, bad);
	io = dirty_read(&h, &tag);
	RESULT("members, of which one fails", zc_members(&h.q, tag, m, 4), -EIO);
	check_parts(&h, io, tag);
	io = dirty_read(&h, &tag);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, m, 4);
	RESULT("a fused commit, of which one member fails", zc_result(&h.q, UBD_U_IO_FUSED, tag),
	       -EIO);
	check_parts(&h, io, tag);
	/* And elsewhere it works. */
	m[2].fd = good;
	m[2].pos = 2 * PART;
	io = dirty_read(&h, &tag);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, m, 4);
	CHECK(io_end(io) == LEN, "the read fails");
	hand_down(&h);
}

CASE(disk_write_fails)
{
	int bad = disk_open("/run/zc/bad");
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	io = io_begin(h.dev, IO_WRITE, 0, LEN);
	tag = ioq_next(&h.q, NULL);
	m = zc_write(bad, 0, LEN, 0);
	RESULT("a write to a bad block", zc_members(&h.q, tag, &m, 1), -EIO);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	RESULT("a fused write to a bad block", zc_result(&h.q, UBD_U_IO_FUSED, tag), -EIO);
	CHECK(!job_ended(io), "the request has ended though its member failed");
	ioq_commit(&h.q, tag, -EIO);
	CHECK(io_end(io) == -EIO, "the write does not fail with EIO");
	hand_down(&h);
}

/* Leaves something in the page cache that its disk refuses. */
static void dirty_bad_block(int fd)
{
	static uint8_t block[4096];

	REQUIRE(pwrite(fd, block, sizeof(block), 32768) == (ssize_t)sizeof(block),
		"cannot write to the page cache: %s", strerror(errno));
}

/* What the sync says is what the client's flush says. */
CASE(disk_sync_fails)
{
	int bad = open("/run/zc/bad", O_RDWR | O_CLOEXEC);
	struct ubd_member m = {.op = UBD_MEMBER_FSYNC, .fd = bad};
	struct hand h;
	struct job *io;
	unsigned tag;

	if (bad < 0)
		conform_skip("there is no disk with a bad block: %s", strerror(errno));
	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	io = io_begin(h.dev, IO_FLUSH, 0, 0);
	tag = ioq_next(&h.q, NULL);
	dirty_bad_block(bad);
	RESULT("a sync that fails", zc_members(&h.q, tag, &m, 1), -EIO);
	RESULT("the next, with nothing to do", zc_members(&h.q, tag, &m, 1), 0);
	dirty_bad_block(bad);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	RESULT("a fused sync that fails", zc_result(&h.q, UBD_U_IO_FUSED, tag), -EIO);
	CHECK(!job_ended(io), "the flush has ended though its sync failed");
	ioq_commit(&h.q, tag, -EIO);
	CHECK(io_end(io) == -EIO, "the flush does not fail with EIO");
	/* And without an error it succeeds. */
	io = io_begin(h.dev, IO_FLUSH, 0, 0);
	tag = ioq_next(&h.q, NULL);
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	CHECK(io_end(io) == 0, "the flush fails");
	hand_down(&h);
}

/* A frozen file system keeps the member waiting, and nobody else. */
CASE(disk_frozen)
{
	int fd = backing_open(EXT4_BUFFERED), dir = open("/run/zc/ext4", O_RDONLY | O_CLOEXEC);
	struct ubd_member m;
	struct hand h;
	struct job *io, *other;
	unsigned tag, tag2;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	io = io_begin(h.dev, IO_WRITE, 0, LEN);
	tag = ioq_next(&h.q, NULL);
	m = zc_write(fd, 0, LEN, 0);
	REQUIRE(ioctl(dir, FIFREEZE, 0) == 0, "cannot freeze ext4: %s", strerror(errno));
	zc_submit(&h.q, UBD_U_IO_FUSED, tag, &m, 1);
	other = io_begin(h.dev, IO_READ, 0, LEN);
	tag2 = ioq_next(&h.q, NULL);
	ioq_commit(&h.q, tag2, LEN);
	CHECK(io_end(other) == LEN, "a request beside the one that waits fails");
	CHECK(ioq_quiet(&h.q, 200) && !job_ended(io), "a write ends on a frozen file system");
	ioctl(dir, FITHAW, 0);
	CHECK(io_end(io) == LEN, "the write fails");
	hand_down(&h);
}

/* ---- the server goes away while the disk works ------------------------------------------- */

enum { READY, FUSED };

static long reader(struct server *s, int fd)
{
	int slow = open("/run/zc/slow", O_RDWR | O_DIRECT | O_CLOEXEC);
	struct ubd_member m;
	struct ioq q;

	if (slow < 0 || ioq_open(&q, s->dev, fd, 0))
		return -1;
	ioq_fetch_all(&q);
	atomic_store(&s->queues_ready, 1);
	for (unsigned served = 0;; served++) {
		unsigned tag = ioq_next(&q, NULL);

		m = zc_read(slow, 0, LEN, 0);
		zc_submit(&q, atomic_load(&s->custom[FUSED]) ? UBD_U_IO_FUSED : UBD_U_IO_MEMBERS,
			  tag, &m, 1);
		atomic_store(&s->custom[READY], served + 1);
	}
}

static void fill_slow(void)
{
	static _Alignas(4096) uint8_t buf[LEN];
	int fd = disk_open("/run/zc/slow");

	pattern_fill(buf, 0, LEN, SEED);
	REQUIRE(pwrite(fd, buf, LEN, 0) == LEN, "cannot write to /run/zc/slow");
	close(fd);
}

/*
 * The disk is still writing into the request's pages when the server is gone: the request must
 * not end before that has.
 */
static void killed_reading(bool fused, uint64_t recovery)
{
	struct dev *dev = dev_new(UBD_F_ALL | UBLK_F_USER_COPY | recovery, 1, 2);
	struct server *s;
	struct job *io;
	long res = 0;

	fill_slow();
	dev_add(dev);
	s = server_new(dev);
	s->body = reader;
	atomic_store(&s->custom[FUSED], fused);
	server_start(s);
	REQUIRE(dev_cmd(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s), NULL, 0) == 0,
		"START_DEV fails");
	io = io_begin(dev, IO_READ, 0, LEN);
	for (unsigned i = 0; i < 500 && !atomic_load(&s->custom[READY]); i++)
		sleep_ms(10);
	REQUIRE(atomic_load(&s->custom[READY]), "the server has got no request");
	server_kill(s);
	CHECK(!job_ended(io), "the request ends while the disk still fills it");
	if (!recovery) {
		REQUIRE(job_wait(io, 10000, &res) == 0, "the request does not end");
		/* Fused, its data and its end are one; else nobody commits it. */
		CHECK(fused ? res == LEN : res < 0, "the read gives %s", conform_errname(res));
		if (res == LEN)
			CHECK(zc_data_differs(io, 0, LEN, SEED) < 0,
			      "the disk's data is not there");
		job_put(io);
		REQUIRE(dev_wait_released(dev, 10000), "the char device is not released");
		dev_del(dev);
		return;
	}
	REQUIRE(dev_wait_state(dev, UBLK_S_DEV_QUIESCED, 10000), "state %d", dev_state(dev));
	s = server_new(dev);
	REQUIRE(dev_cmd(dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0) == 0,
		"START_USER_RECOVERY fails");
	server_start(s);
	REQUIRE(dev_cmd(dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(s), NULL, 0) == 0,
		"END_USER_RECOVERY fails");
	CHECK(io_end(io) == LEN, "the request of the dead server is not served");
	server_down(s);
}

CASE(disk_killed_reading)
{
	killed_reading(false, 0);
}

CASE(disk_killed_reading_fused)
{
	killed_reading(true, 0);
}

CASE(disk_killed_reading_reissued)
{
	killed_reading(false, UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE);
}

CASE(disk_killed_reading_fused_recovered)
{
	killed_reading(true, UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE);
}
