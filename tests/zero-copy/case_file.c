// SPDX-License-Identifier: MIT
/*
 * Members and fused commits on files and disks: the data arrives where it belongs.
 */
#include "client.h"
#include "harness.h"
#include "zc.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define AT (1ULL << 20)
#define LEN (128U << 10)

static uint8_t buf[LEN] __attribute__((aligned(4096)));

/* What the file holds at pos is the pattern of the device's offset. */
static void check_file(int fd, uint64_t pos, uint64_t offset, uint32_t bytes, uint32_t seed)
{
	int64_t bad;

	REQUIRE(pread(fd, buf, bytes, (off_t)pos) == (ssize_t)bytes, "cannot read the file back");
	bad = pattern_check(buf, offset, bytes, seed);
	CHECK(bad < 0, "byte %lld of the file is not what was written", (long long)bad);
}

/* A read of LEN bytes at AT, answered by these members of the same file. */
static void one_read(struct hand *h, const struct ubd_member *m, unsigned nr)
{
	const struct ublksrv_io_desc *iod;
	struct job *io = io_begin(h->dev, IO_READ, AT, LEN);
	unsigned tag = ioq_next(&h->q, &iod);
	uint32_t sum = 0;
	long res = 0;
	int64_t bad;

	for (unsigned i = 0; i < nr; i++)
		sum += m[i].len;
	RESULT("members that read", zc_members(&h->q, tag, m, nr), sum);
	ioq_commit(&h->q, tag, LEN);
	REQUIRE(job_wait(io, 10000, &res) == 0 && res == LEN, "the read gives %s",
		conform_errname(res));
	bad = zc_data_differs(io, AT, LEN, 7);
	CHECK(bad < 0, "byte %lld of the request is not the file's", (long long)bad);
	job_put(io);
}

static void reads(enum backing b)
{
	int fd = backing_open(b);
	struct hand h;

	zc_up(&h, UBD_F_MEMBERS, 8);
	one_read(&h, (struct ubd_member[]){zc_read(fd, 0, LEN, AT)}, 1);
	one_read(&h,
		 (struct ubd_member[]){zc_read(fd, 0, LEN / 2, AT),
				       zc_read(fd, LEN / 2, LEN / 2, AT + LEN / 2)},
		 2);
	/* In the other order, and overlapping. */
	one_read(&h,
		 (struct ubd_member[]){zc_read(fd, 65536, 65536, AT + 65536),
				       zc_read(fd, 0, 4096, AT),
				       zc_read(fd, 512, LEN - 1024, AT + 512)},
		 3);
	close(fd);
	hand_down(&h);
}

static void writes(enum backing b)
{
	const struct ublksrv_io_desc *iod;
	int fd = backing_open(b);
	struct hand h;
	struct job *io;
	unsigned tag;

	zc_up(&h, UBD_F_MEMBERS, 8);
	io = io_begin_seeded(h.dev, IO_WRITE, AT, LEN, 3);
	tag = ioq_next(&h.q, &iod);
	RESULT("members that write",
	       zc_members(&h.q, tag,
			  (struct ubd_member[]){zc_write(fd, 0, 4096, 2 * AT),
						zc_write(fd, 4096, LEN - 4096, 2 * AT + 4096)},
			  2),
	       LEN);
	ioq_commit(&h.q, tag, LEN);
	CHECK(io_end(io) == LEN, "the write fails");
	check_file(fd, 2 * AT, AT, LEN, 3);

	io = io_begin_seeded(h.dev, IO_WRITE_FUA, AT, 8192, 4);
	tag = ioq_next(&h.q, &iod);
	struct ubd_member m = zc_write(fd, 0, 8192, 0);

	m.flags = UBD_MEMBER_F_FUA;
	RESULT("a durable write", zc_members(&h.q, tag, &m, 1), 8192);
	m = (struct ubd_member){.op = UBD_MEMBER_FSYNC, .fd = fd};
	RESULT("a sync", zc_members(&h.q, tag, &m, 1), 0);
	ioq_commit(&h.q, tag, 8192);
	/* The kernel asks for a flush after it as well. */
	for (struct ioq_cqe cqe; !job_ended(io);)
		if (ioq_wait(&h.q, &cqe, 10) == 0)
			ioq_commit(&h.q, cqe.tag, 0);
	CHECK(io_end(io) == 8192, "the durable write fails");
	check_file(fd, 0, AT, 8192, 4);
	close(fd);
	hand_down(&h);
}

/* Serves requests with fused commits until the job ends. */
static long fused_serve(struct hand *h, int fd, struct job *io)
{
	uint64_t until = now_ms() + 60000;
	struct ioq_cqe cqe;
	long res = 0;

	while (!job_ended(io)) {
		const struct ublksrv_io_desc *iod;
		struct ubd_member m;
		uint64_t pos;

		REQUIRE(now_ms() < until, "the client does not end");
		if (ioq_wait(&h->q, &cqe, 10))
			continue;
		REQUIRE(cqe.res == UBLK_IO_RES_OK, "a fused commit ends with %s",
			conform_errname(cqe.res));
		iod = &h->q.desc[cqe.tag];
		pos = iod->start_sector * SECTOR;
		if (ublksrv_get_op(iod) == UBLK_IO_OP_READ)
			m = zc_read(fd, 0, iod->nr_sectors * SECTOR, pos);
		else if (ublksrv_get_op(iod) == UBLK_IO_OP_WRITE)
			m = zc_write(fd, 0, iod->nr_sectors * SECTOR, pos);
		else
			m = (struct ubd_member){.op = UBD_MEMBER_FSYNC, .fd = fd};
		zc_submit(&h->q, UBD_U_IO_FUSED, cqe.tag, &m, 1);
	}
	job_wait(io, 0, &res);
	job_put(io);
	return res;
}

static void fused(enum backing b)
{
	int fd = backing_open(b);
	struct hand h;

	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 4);
	for (unsigned i = 0; i < 12; i++) {
		uint64_t at = AT + i * 300 * 1024, bytes = i % 3 ? 4096 + i * 8192 : 1 << 20;
		struct job *io =
			io_begin_seeded(h.dev, i % 2 ? IO_WRITE_FUA : IO_WRITE, at, bytes, i + 1);
		const struct io *back;
		long res;

		res = fused_serve(&h, fd, io);
		REQUIRE(res == (long)bytes, "a write gives %s", conform_errname(res));
		io = io_begin(h.dev, IO_READ, at, bytes);
		back = (const struct io *)io->arg;
		res = fused_serve(&h, fd, io);
		REQUIRE(res == (long)bytes, "a read gives %s", conform_errname(res));
		CHECK(zc_data_differs(io, back->offset, bytes, i + 1) < 0,
		      "a read does not give what was written");
		CHECK(fused_serve(&h, fd, io_begin(h.dev, IO_FLUSH, 0, 0)) == 0, "a flush fails");
	}
	close(fd);
	hand_down(&h);
}

#define ON(name, b)                   \
	CASE(read_##name)             \
	{                             \
		reads(b);             \
	}                             \
	CASE(write_##name)            \
	{                             \
		writes(b);            \
	}                             \
	CASE_LIMIT(fused_##name, 120) \
	{                             \
		fused(b);             \
	}

ON(tmpfs, TMPFS)
ON(ext4_buffered, EXT4_BUFFERED)
ON(ext4_direct, EXT4_DIRECT)
ON(xfs_buffered, XFS_BUFFERED)
ON(xfs_direct, XFS_DIRECT)
ON(btrfs_buffered, BTRFS_BUFFERED)
ON(block_buffered, BLOCK_BUFFERED)
ON(block_direct, BLOCK_DIRECT)

static bool all_ended(struct job *const *jobs, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		if (!job_ended(jobs[i]))
			return false;
	return true;
}

/* A request made of several bios, merged: its members are taken over their borders. */
CASE(merged_bios)
{
	int fd = backing_open(BLOCK_DIRECT);
	const struct ublksrv_io_desc *iod;
	struct job *io[8];
	bool merged = false;
	struct hand h;
	unsigned tag;

	/* The tag is taken, one more may wait for it: the others stay in the scheduler, merged. */
	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 1);
	dev_sysfs_set(h.dev, "queue/scheduler", "mq-deadline");
	dev_sysfs_set(h.dev, "queue/nr_requests", "16");
	io[0] = io_begin(h.dev, IO_READ, 0, 4096);
	tag = ioq_next(&h.q, &iod);
	for (unsigned i = 1; i < 8; i++)
		io[i] = io_begin(h.dev, IO_READ, AT + i * 4096, 4096);
	sleep_ms(500);
	while (!all_ended(io, 8)) {
		uint32_t bytes = iod->nr_sectors * SECTOR, half = bytes / 2;
		uint64_t pos = iod->start_sector * SECTOR;
		struct ubd_member m[] = {zc_read(fd, 0, half, pos),
					 zc_read(fd, half, bytes - half, pos + half)};
		struct ioq_cqe cqe;

		merged |= bytes > 4096;
		zc_submit(&h.q, UBD_U_IO_FUSED, tag, m, 2);
		while (ioq_wait(&h.q, &cqe, 50) && !all_ended(io, 8))
			;
	}
	CHECK(merged, "no reads of 4096 were merged into one request");
	for (unsigned i = 0; i < 8; i++) {
		long res = 0;

		CHECK(job_wait(io[i], 5000, &res) == 0 && res == 4096, "read %u gives %s", i,
		      conform_errname(res));
		CHECK(zc_data_differs(io[i], i ? AT + i * 4096 : 0, 4096, 7) < 0,
		      "read %u does not give the disk's data", i);
	}
	close(fd);
	hand_down(&h);
}
