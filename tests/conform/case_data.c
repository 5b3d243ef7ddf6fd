// SPDX-License-Identifier: MIT
/*
 * How requests reach the server, and that the data they carry is right in every size and mode.
 */
#include "client.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <string.h>

#define AT (4ULL << 20)

static struct dev *with_discard(struct dev *dev)
{
	dev->params.types |= UBLK_PARAM_TYPE_DISCARD;
	dev->params.discard = (struct ublk_param_discard){
		.discard_granularity = 4096,
		.max_discard_sectors = 4096,
		.max_write_zeroes_sectors = 4096,
		.max_discard_segments = 1,
	};
	return dev;
}

static void check_request(struct server *s, unsigned op, uint32_t flags, uint64_t sector,
			  unsigned sectors)
{
	const struct server_log *log = server_find(s, op, (int64_t)sector);

	CHECK(log != NULL, "no request of operation %u at sector %llu", op,
	      (unsigned long long)sector);
	if (!log)
		return;
	CHECK(log->desc.nr_sectors == sectors, "operation %u: %u sectors, not %u", op,
	      log->desc.nr_sectors, sectors);
	CHECK((log->desc.op_flags & (UBLK_IO_F_FUA | UBLK_IO_F_NOUNMAP)) == flags,
	      "operation %u: flags 0x%x", op, log->desc.op_flags & ~0xffU);
	CHECK(!(log->desc.op_flags & (UBLK_IO_F_SWAP | UBLK_IO_F_INTEGRITY | UBLK_IO_F_SHMEM_ZC |
				      UBLK_IO_F_NEED_REG_BUF)),
	      "operation %u: flags 0x%x from nowhere", op, log->desc.op_flags & ~0xffU);
}

CASE(data_operations)
{
	struct server *s = server_up(with_discard(dev_new(0, 1, 8)));

	CHECK(io_run(s->dev, IO_READ, AT, 8192) == 8192, "read");
	check_request(s, UBLK_IO_OP_READ, 0, AT / SECTOR, 16);
	CHECK(io_write(s->dev, AT, 8192, 1) == 8192, "write");
	check_request(s, UBLK_IO_OP_WRITE, 0, AT / SECTOR, 16);
	CHECK(server_count(s, UBLK_IO_OP_FLUSH, -1) == 0, "a flush nobody asked for");
	CHECK(io_run(s->dev, IO_FLUSH, 0, 0) == 0, "flush");
	CHECK(server_count(s, UBLK_IO_OP_FLUSH, -1) == 1, "fsync sent %u flushes",
	      server_count(s, UBLK_IO_OP_FLUSH, -1));
	CHECK(io_run(s->dev, IO_DISCARD, AT + 65536, 65536) == 0, "discard");
	check_request(s, UBLK_IO_OP_DISCARD, 0, (AT + 65536) / SECTOR, 128);
	CHECK(io_run(s->dev, IO_ZERO, AT + 131072, 65536) == 0, "punch hole");
	check_request(s, UBLK_IO_OP_WRITE_ZEROES, 0, (AT + 131072) / SECTOR, 128);
	CHECK(io_run(s->dev, IO_ZERO_KEEP, AT + 262144, 65536) == 0, "zero range");
	check_request(s, UBLK_IO_OP_WRITE_ZEROES, UBLK_IO_F_NOUNMAP, (AT + 262144) / SECTOR, 128);
	CHECK(io_run(s->dev, IO_SECURE, AT, 65536) == -EOPNOTSUPP, "secure erase from nowhere");
	server_down(s);
}

CASE(data_fua)
{
	struct server *s = server_up(dev_new(0, 1, 8));

	CHECK(io_run(s->dev, IO_WRITE_FUA, AT, 4096) == 4096, "write");
	check_request(s, UBLK_IO_OP_WRITE, UBLK_IO_F_FUA, AT / SECTOR, 8);
	server_down(s);
}

CASE(data_fua_by_flush)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct server *s;

	dev->params.basic.attrs = UBLK_ATTR_VOLATILE_CACHE;
	s = server_up(dev);
	CHECK(io_run(dev, IO_WRITE_FUA, AT, 4096) == 4096, "write");
	check_request(s, UBLK_IO_OP_WRITE, 0, AT / SECTOR, 8);
	CHECK(server_count(s, UBLK_IO_OP_FLUSH, -1) >= 1, "no flush after the write");
	server_down(s);
}

CASE(data_no_flush_without_a_cache)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct server *s;

	dev->params.basic.attrs = 0;
	s = server_up(dev);
	CHECK(io_run(dev, IO_WRITE_FUA, AT, 4096) == 4096, "write");
	CHECK(io_run(dev, IO_FLUSH, 0, 0) == 0, "flush");
	CHECK(server_count(s, UBLK_IO_OP_FLUSH, -1) == 0, "a flush though there is no cache");
	server_down(s);
}

CASE(data_discard_not_offered)
{
	struct server *s = server_up(dev_new(0, 1, 8));

	CHECK(io_run(s->dev, IO_DISCARD, AT, 65536) == -EOPNOTSUPP, "a discard");
	CHECK(io_write(s->dev, AT, 65536, 1) == 65536, "write");
	CHECK(io_run(s->dev, IO_ZERO_KEEP, AT, 65536) == 0, "zeroes by writing them");
	CHECK(server_count(s, UBLK_IO_OP_WRITE_ZEROES, -1) == 0, "WRITE_ZEROES not offered");
	CHECK(io_verify(s->dev, AT, 65536, 0) == 65536, "not zero");
	server_down(s);
}

CASE(data_large_io_is_split)
{
	struct server *s = server_up(with_discard(dev_new(0, 1, 8)));
	unsigned total = 0;

	CHECK(io_write(s->dev, 0, 4 << 20, 2) == 4 << 20, "write");
	CHECK(io_run(s->dev, IO_DISCARD, 0, 8 << 20) == 0, "discard");
	for (unsigned i = 0; i < atomic_load(&s->nr_log); i++) {
		const struct ublksrv_io_desc *d = &s->log[i].desc;

		if (ublksrv_get_op(d) == UBLK_IO_OP_WRITE)
			CHECK(d->nr_sectors <= 256, "a write of %u sectors", d->nr_sectors);
		if (ublksrv_get_op(d) == UBLK_IO_OP_DISCARD) {
			CHECK(d->nr_sectors <= 4096, "a discard of %u sectors", d->nr_sectors);
			total += d->nr_sectors;
		}
	}
	CHECK(total == (8 << 20) / SECTOR, "%u sectors discarded", total);
	CHECK(io_verify(s->dev, 0, 4 << 20, 0) == 4 << 20, "not zero after the discard");
	server_down(s);
}

/* Trap: sectors are 512 bytes, whatever the block size. */
CASE(trap_sectors_are_512_bytes)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct server *s;

	dev->params.basic.logical_bs_shift = 12;
	s = server_up(dev);
	CHECK(dev_sysfs(dev, "size") == (long long)(DEV_BYTES / 512), "size %lld",
	      dev_sysfs(dev, "size"));
	CHECK(io_write(dev, AT, 8192, 1) == 8192, "write");
	check_request(s, UBLK_IO_OP_WRITE, 0, AT / 512, 16);
	server_down(s);
}

static enum server_answer count_discards(struct server *s, struct server_io *io)
{
	if (ublksrv_get_op(io->iod) != UBLK_IO_OP_DISCARD)
		return ANSWER_STORE;
	/* In units of 4 KiB, so that it fits. */
	atomic_fetch_add(&s->custom[0], io->iod->nr_sectors / 8);
	atomic_fetch_or(&s->custom[1], io->iod->nr_sectors % 8);
	io->res = 0;
	return ANSWER_RESULT;
}

/* Trap: a discard limit above UINT32_MAX >> 9 sectors truncates, before 6.11 without a word. */
CASE(trap_discard_limit_does_not_truncate)
{
	struct dev *dev = with_discard(dev_new(0, 1, 8));
	struct server *s;
	unsigned pieces;

	dev->params.basic.dev_sectors = 8ULL << 40 >> 9;
	dev->params.discard.max_discard_sectors = (UINT32_MAX >> 9) & ~0x1ffffU;
	s = server_new(dev);
	s->hook = count_discards;
	dev_add(dev);
	server_start(s);
	RESULT_REQUIRED("start",
			dev_cmd(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s), NULL, 0), 0);
	CHECK(io_run(dev, IO_DISCARD, 1ULL << 40, 1ULL << 36) == 0, "discard of 64 GiB");
	pieces = atomic_load(&s->custom[0]);
	CHECK(atomic_load(&s->custom[1]) == 0, "a piece below the granularity");
	CHECK(pieces == 1 << 24, "%u of %u blocks discarded", pieces, 1 << 24);
	server_down(s);
}

/* ---- All sizes in all modes --------------------------------------------------------------- */

static void sizes_and_places(struct server *s)
{
	static const unsigned sizes[] = {512,	1024,  3584,   4096,   4608,   8192,
					 65024, 65536, 130560, 131072, 131584, 1 << 20};
	uint64_t at = 512;

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		long res = io_write(s->dev, at, sizes[i], i + 1);

		CHECK(res == (long)sizes[i], "write of %u: %s", sizes[i], conform_errname(res));
		CHECK(pattern_check(s->store + at, at, sizes[i], i + 1) < 0,
		      "the server got something else for a write of %u", sizes[i]);
		at += sizes[i] + 512;
	}
	at = 512;
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		long res = io_verify(s->dev, at, sizes[i], i + 1);

		CHECK(res == (long)sizes[i], "read of %u: %s", sizes[i], conform_errname(res));
		at += sizes[i] + 512;
	}
}

static void all_sizes(uint64_t flags, unsigned queues, unsigned depth)
{
	struct server *s;

	conform_need_features(flags);
	s = server_up(dev_new(flags, queues, depth));
	sizes_and_places(s);
	server_down(s);
}

CASE(data_sizes_copy)
{
	all_sizes(0, 2, 16);
}

CASE(data_sizes_depth_1)
{
	all_sizes(0, 1, 1);
}

CASE(data_sizes_user_copy)
{
	all_sizes(UBLK_F_USER_COPY, 2, 16);
}

CASE(data_sizes_get_data)
{
	all_sizes(UBLK_F_NEED_GET_DATA, 2, 16);
}

CASE(data_sizes_in_pieces)
{
	struct dev *dev = dev_new(0, 2, 8);
	struct server *s;

	dev->params.basic.max_sectors = 8;
	s = server_up(dev);
	sizes_and_places(s);
	server_down(s);
}

CASE(data_sizes_virt_boundary)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct server *s;

	dev->params.basic.virt_boundary_mask = 4095;
	s = server_up(dev);
	sizes_and_places(s);
	server_down(s);
}

/* Memory that begins in the middle of a page, and not on a sector. */
static void odd_memory(uint64_t flags)
{
	struct server *s;

	conform_need_features(flags);
	s = server_up(dev_new(flags, 1, 8));
	for (unsigned shift = 4; shift < 4096; shift = shift * 5 / 4 * 4) {
		struct io io = {.kind = IO_WRITE,
				.offset = AT,
				.bytes = 65536,
				.seed = shift,
				.shift = shift};
		struct job *job;

		memcpy(io.path, dev_block_path(s->dev), sizeof(io.path));
		CHECK(io_end(io_begin_as(&io)) == 65536, "write from memory at %u", shift);
		CHECK(pattern_check(s->store + AT, AT, 65536, shift) < 0,
		      "the server got something else from memory at %u", shift);
		io.kind = IO_READ;
		job = io_begin_as(&io);
		REQUIRE(job_wait(job, 10000, NULL) == 0, "the read does not end");
		CHECK(job->result == 65536 &&
			      pattern_check(job->data + shift, AT, 65536, shift) < 0,
		      "memory at %u reads something else", shift);
		job_put(job);
	}
	server_down(s);
}

CASE(data_odd_memory_copy)
{
	odd_memory(0);
}

CASE(data_odd_memory_user_copy)
{
	odd_memory(UBLK_F_USER_COPY);
}

static void parallel(uint64_t flags, unsigned queues, unsigned depth)
{
	enum { WORKERS = 12 };
	struct server *s;
	struct job *jobs[WORKERS];

	conform_need_features(flags);
	s = server_up(dev_new(flags, queues, depth));
	for (unsigned round = 0; round < 4; round++) {
		for (unsigned i = 0; i < WORKERS; i++)
			jobs[i] = io_begin_seeded(s->dev, IO_WRITE, (uint64_t)i << 20, 1 << 20,
						  round * 100 + i + 1);
		for (unsigned i = 0; i < WORKERS; i++)
			CHECK(io_end(jobs[i]) == 1 << 20, "write failed");
		for (unsigned i = 0; i < WORKERS; i++)
			CHECK(pattern_check(s->store + ((uint64_t)i << 20), (uint64_t)i << 20,
					    1 << 20, round * 100 + i + 1) < 0,
			      "the server got something else");
	}
	for (unsigned i = 0; i < WORKERS; i++)
		CHECK(io_verify(s->dev, (uint64_t)i << 20, 1 << 20, 300 + i + 1) == 1 << 20,
		      "differs");
	server_down(s);
}

CASE_LIMIT(data_parallel_copy, 90)
{
	parallel(0, 2, 32);
}

CASE_LIMIT(data_parallel_shallow, 90)
{
	parallel(0, 2, 2);
}

CASE_LIMIT(data_parallel_user_copy, 90)
{
	parallel(UBLK_F_USER_COPY, 2, 32);
}

CASE_LIMIT(data_parallel_get_data, 90)
{
	parallel(UBLK_F_NEED_GET_DATA, 2, 8);
}

/* ---- Requests that are submitted together ------------------------------------------------- */

static void lists(uint64_t flags, unsigned queues)
{
	enum { BYTES = 128 << 10 };
	struct server *s;

	conform_need_features(flags);
	s = server_up(dev_new(flags, queues, 32));
	/* It would merge what is submitted together. */
	dev_sysfs_set(s->dev, "queue/scheduler", "none");
	for (unsigned round = 1; round <= 16; round++) {
		uint64_t at = AT + round % 4 * BYTES;
		struct job *io = io_begin_seeded(s->dev, IO_WRITES, at, BYTES, round);

		CHECK(io_end(io) == BYTES, "round %u: a write failed", round);
		CHECK(pattern_check(s->store + at, at, BYTES, round) < 0,
		      "round %u: the server got something else", round);
		io = io_begin(s->dev, IO_READS, at, BYTES);
		REQUIRE(job_wait(io, 20000 * conform_slow(), NULL) == 0, "the reads do not end");
		CHECK(io->result == BYTES && pattern_check(io->data, at, BYTES, round) < 0,
		      "round %u: reads something else", round);
		job_put(io);
	}
	CHECK(server_count(s, UBLK_IO_OP_WRITE, -1) == 16 * BYTES / 4096, "%u writes, not %u",
	      server_count(s, UBLK_IO_OP_WRITE, -1), 16 * BYTES / 4096);
	server_down(s);
}

CASE(data_lists_copy)
{
	lists(0, 2);
}

CASE(data_lists_one_queue)
{
	lists(0, 1);
}

CASE(data_lists_user_copy)
{
	lists(UBLK_F_USER_COPY, 2);
}

CASE(data_lists_get_data)
{
	lists(UBLK_F_NEED_GET_DATA, 2);
}

/* ---- A server that does not fill what it says it read ------------------------------------- */

static enum server_answer lazy_reads(struct server *s, struct server_io *io)
{
	size_t bytes = (size_t)io->iod->nr_sectors * SECTOR;

	if (ublksrv_get_op(io->iod) != UBLK_IO_OP_READ)
		return ANSWER_STORE;
	/* custom[0]: where the only piece it fills begins, custom[1]: its length. */
	if (atomic_load(&s->custom[1])) {
		uint64_t from = atomic_load(&s->custom[0]);
		ssize_t n;

		memset(io->buf, 0x77, bytes);
		n = pwrite(io->q->fd, io->buf, atomic_load(&s->custom[1]),
			   ioq_data_offset(io->q->q_id, io->tag, from));
		if (n < 0)
			atomic_store(&s->error, (int)-errno);
	}
	io->res = (int)bytes;
	return ANSWER_RESULT;
}

/* Bytes of a read that the server did not fill and that are not zero either. */
static unsigned stale_bytes(struct server *s, unsigned from, unsigned len)
{
	struct job *io;
	unsigned stale = 0;

	atomic_store(&s->custom[0], from);
	atomic_store(&s->custom[1], len);
	io = io_begin(s->dev, IO_READ, AT, 16384);
	REQUIRE(job_wait(io, 10000, NULL) == 0, "the read does not end");
	CHECK(io->result == 16384, "the read: %s", conform_errname(io->result));
	for (unsigned i = 0; i < 16384; i++) {
		bool filled = i >= from && i < from + len;

		if (filled)
			CHECK(io->data[i] == 0x77, "byte %u was not delivered", i);
		else
			stale += io->data[i] != 0;
	}
	job_put(io);
	return stale;
}

CASE(data_uninitialised_memory_of_a_lazy_server)
{
	struct server *s;

	conform_need_features(UBLK_F_USER_COPY);
	s = server_up(dev_new(UBLK_F_USER_COPY, 1, 4));
	s->hook = lazy_reads;
	RESULT("lazy-server-nothing-filled", stale_bytes(s, 0, 0), 0);
	RESULT("lazy-server-first-part-filled", stale_bytes(s, 0, 4096), 0);
	RESULT("lazy-server-last-part-filled", stale_bytes(s, 12288, 4096), 0);
	RESULT("lazy-server-middle-filled", stale_bytes(s, 5000, 100), 0);
	RESULT("lazy-server-all-filled", stale_bytes(s, 0, 16384), 0);
	s->hook = NULL;
	server_down(s);
}
