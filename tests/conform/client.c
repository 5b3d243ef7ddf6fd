// SPDX-License-Identifier: MIT
/*
 * Block I/O from processes of their own. See client.h.
 */
#include "client.h"

#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <liburing.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define IO_LIMIT_MS 20000
#define PIECE 4096U
#define EIO_MISMATCH (-EBADMSG)

void pattern_fill(uint8_t *buf, uint64_t offset, uint64_t bytes, uint32_t seed)
{
	for (uint64_t i = 0; i < bytes; i += 8) {
		uint64_t at = offset + i;
		uint64_t word = seed ? (at + 1) * 0x9e3779b97f4a7c15ULL ^ (uint64_t)seed << 17 : 0;

		memcpy(buf + i, &word, bytes - i < 8 ? bytes - i : 8);
	}
}

int64_t pattern_check(const uint8_t *buf, uint64_t offset, uint64_t bytes, uint32_t seed)
{
	uint8_t want[8];

	for (uint64_t i = 0; i < bytes; i += 8) {
		uint64_t len = bytes - i < 8 ? bytes - i : 8;

		pattern_fill(want, offset + i, len, seed);
		if (memcmp(buf + i, want, len)) {
			while (buf[i] == want[i % 8])
				i++;
			return (int64_t)i;
		}
	}
	return -1;
}

/* In an order in which no piece can be merged with the one before. */
static void queue_pieces(struct io_uring *ring, int fd, const struct io *io, uint8_t *data)
{
	unsigned nr = (unsigned)(io->bytes / PIECE);

	for (unsigned i = 0; i < nr; i++) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
		uint64_t at = (uint64_t)(i * 7 % nr) * PIECE;

		if (io->kind == IO_WRITES)
			io_uring_prep_write(sqe, fd, data + at, PIECE, io->offset + at);
		else
			io_uring_prep_read(sqe, fd, data + at, PIECE, io->offset + at);
	}
}

/* Submitted together, requests reach the driver as a list. */
static long do_pieces(int fd, const struct io *io, uint8_t *data)
{
	unsigned nr = (unsigned)(io->bytes / PIECE);
	struct io_uring ring;
	long res, bytes = 0;

	res = io_uring_queue_init(nr, &ring, 0);
	if (res) {
		errno = (int)-res;
		return -1;
	}
	queue_pieces(&ring, fd, io, data);
	res = io_uring_submit_and_wait(&ring, nr);
	for (unsigned i = 0; res >= 0 && i < nr; i++) {
		struct io_uring_cqe *cqe;

		res = io_uring_wait_cqe(&ring, &cqe);
		if (res)
			break;
		res = cqe->res;
		bytes += res;
		io_uring_cqe_seen(&ring, cqe);
	}
	io_uring_queue_exit(&ring);
	errno = res < 0 ? (int)-res : 0;
	return res < 0 ? -1 : bytes;
}

static long do_io(int fd, const struct io *io, uint8_t *data)
{
	struct iovec iov = {data, io->bytes};
	uint64_t range[2] = {io->offset, io->bytes};

	switch (io->kind) {
	case IO_READ:
		/* What the read does not touch must not look like anything else. */
		memset(data, 0xee, io->bytes);
		return pread(fd, data, io->bytes, (off_t)io->offset);
	case IO_WRITE:
	case IO_WRITE_FUA:
		pattern_fill(data, io->offset, io->bytes, io->seed);
		return pwritev2(fd, &iov, 1, (off_t)io->offset,
				io->kind == IO_WRITE_FUA ? RWF_DSYNC : 0);
	case IO_FLUSH:
		return fsync(fd);
	case IO_DISCARD:
		return ioctl(fd, BLKDISCARD, range);
	case IO_ZERO:
		return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->offset,
				 (off_t)io->bytes);
	case IO_ZERO_KEEP:
		return fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)io->offset,
				 (off_t)io->bytes);
	case IO_SECURE:
		return ioctl(fd, BLKSECDISCARD, range);
	case IO_OPEN:
		sleep_ms((unsigned)io->bytes);
		return 0;
	case IO_WRITES:
		pattern_fill(data, io->offset, io->bytes, io->seed);
		return do_pieces(fd, io, data);
	case IO_READS:
		memset(data, 0xee, io->bytes);
		return do_pieces(fd, io, data);
	}
	return -1;
}

static long run_io_job(struct job *job)
{
	const struct io *io = (const struct io *)job->arg;
	long res;
	int fd;

	if (io->uid) {
		gid_t gid = io->uid;

		if (setgroups(1, &gid) || setresgid(gid, gid, gid) ||
		    setresuid(io->uid, io->uid, io->uid))
			return -errno;
	}
	fd = open(io->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0 && (errno == EACCES || errno == EROFS) && io->kind == IO_READ)
		fd = open(io->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	res = do_io(fd, io, job->data + io->shift);
	if (res < 0)
		res = -errno;
	close(fd);
	return res;
}

struct job *io_begin_as(const struct io *io)
{
	struct job *job = job_new(run_io_job, io, sizeof(*io));

	job_start(job);
	return job;
}

struct job *io_begin_seeded(const struct dev *dev, enum io_kind kind, uint64_t offset,
			    uint64_t bytes, uint32_t seed)
{
	struct io io = {.kind = kind, .offset = offset, .bytes = bytes, .seed = seed};

	REQUIRE(bytes <= JOB_DATA_BYTES || kind > IO_WRITE_FUA, "too much I/O for one job");
	memcpy(io.path, dev_block_path(dev), sizeof(io.path));
	return io_begin_as(&io);
}

struct job *io_begin(const struct dev *dev, enum io_kind kind, uint64_t offset, uint64_t bytes)
{
	return io_begin_seeded(dev, kind, offset, bytes, 1);
}

long io_end_within(struct job *job, unsigned ms)
{
	long res = 0;
	int ret = job_wait(job, ms, &res);

	if (ret == JOB_RUNNING)
		return ret;
	job_put(job);
	return ret ? ret : res;
}

long io_end(struct job *job)
{
	long res = io_end_within(job, IO_LIMIT_MS * conform_slow());

	REQUIRE(res != JOB_RUNNING, "an I/O does not end");
	return res;
}

long io_run(const struct dev *dev, enum io_kind kind, uint64_t offset, uint64_t bytes)
{
	return io_end(io_begin(dev, kind, offset, bytes));
}

long io_write(const struct dev *dev, uint64_t offset, uint64_t bytes, uint32_t seed)
{
	return io_end(io_begin_seeded(dev, IO_WRITE, offset, bytes, seed));
}

static long run_verify_job(struct job *job)
{
	const struct io *io = (const struct io *)job->arg;
	long res;

	res = run_io_job(job);
	if (res == (long)io->bytes &&
	    pattern_check(job->data, io->offset, io->bytes, io->seed) >= 0)
		res = EIO_MISMATCH;
	return res;
}

long io_verify(const struct dev *dev, uint64_t offset, uint64_t bytes, uint32_t seed)
{
	struct io io = {.kind = IO_READ, .offset = offset, .bytes = bytes, .seed = seed};
	struct job *job;

	memcpy(io.path, dev_block_path(dev), sizeof(io.path));
	job = job_new(run_verify_job, &io, sizeof(io));
	job_start(job);
	return io_end(job);
}
