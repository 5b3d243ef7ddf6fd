/* SPDX-License-Identifier: MIT */
/* Files and block devices as backings. */
#define _GNU_SOURCE
#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define SECTOR 512u
#define PAGE 4096u
#define LOCK_TRIES 100 /* 20 ms apart */

/* ---- Opening ------------------------------------------------------------------------------- */

/* A number from the block layer's queue attributes; partitions have their disk's. */
static uint64_t queue_attribute(dev_t rdev, const char *name)
{
	static const char *const forms[] = {"/sys/dev/block/%u:%u/queue/%s",
					    "/sys/dev/block/%u:%u/../queue/%s"};
	unsigned long long value = 0;

	for (int i = 0; i < 2; i++) {
		char path[128];
		FILE *f;

		snprintf(path, sizeof(path), forms[i], major(rdev), minor(rdev), name);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fscanf(f, "%llu", &value) != 1)
			value = 0;
		fclose(f);
		break;
	}
	return value;
}

/* The smallest block that a direct read accepts; 0: none. No interface tells it for all file
 * systems and kernels, so try. */
static uint32_t probe_direct_block(int fd, uint64_t start)
{
	uint32_t block = 0;
	void *buf;

	if (posix_memalign(&buf, PAGE, PAGE))
		return 0;
	for (uint32_t n = SECTOR; n <= PAGE && !block; n *= 2)
		if (start % n == 0 && pread(fd, buf, n, (off_t)start) >= 0)
			block = n;
	free(buf);
	return block;
}

/* Some drivers let a read-only disk be opened for writing, and fail each write. */
static bool is_read_only(int fd)
{
	int set = 0;

	return !ioctl(fd, BLKROGET, &set) && set;
}

/*
 * A server that was killed keeps its devices and its locks until the kernel has ended the I/O it
 * had under way: so ask again for a while, and have them only when all of that is over.
 */
static const struct timespec pause_between = {.tv_nsec = 20000000};

static int open_patiently(const char *path, int flags)
{
	int fd = open(path, flags);

	for (int tries = 1; fd < 0 && errno == EBUSY && tries < LOCK_TRIES; tries++) {
		nanosleep(&pause_between, NULL);
		fd = open(path, flags);
	}
	return fd;
}

static int open_file(struct backing *b, struct ubd_device *dev, const struct stat *st, int extra)
{
	int flags = (b->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | extra;

	/* The kernel's own exclusion for block devices: mounted ones are refused. */
	if (S_ISBLK(st->st_mode) && !b->read_only)
		flags |= O_EXCL;
	b->fd = open_patiently(b->path, flags);
	if (b->fd >= 0 && S_ISBLK(st->st_mode) && !b->read_only && is_read_only(b->fd)) {
		close(b->fd);
		b->fd = -1;
		errno = EROFS;
	}
	if (b->fd >= 0) {
		/* Reading the disk is not reading the image; who does not own it does without. */
		(void)fcntl(b->fd, F_SETFL, (extra & O_DIRECT) | O_NOATIME);
		return 0;
	}
	if (extra && errno == EINVAL)
		return -EINVAL; /* no direct I/O here */
	if (errno == EBUSY)
		return ubd_device_fail(dev, -EBUSY, "%s is in use (mounted, or part of something)",
				       b->path);
	if (!b->read_only && (errno == EROFS || errno == EACCES || errno == EPERM))
		return ubd_device_fail(
			dev, -errno,
			"cannot open %s for writing: %s (use --read-only to only read)", b->path,
			strerror(errno));
	return ubd_device_fail(dev, -errno, "cannot open %s: %s", b->path, strerror(errno));
}

static int check_kind(struct backing *b, struct ubd_device *dev, struct stat *st)
{
	if (stat(b->path, st) < 0)
		return ubd_device_fail(dev, -errno, "cannot open %s: %s", b->path, strerror(errno));
	if (S_ISDIR(st->st_mode))
		return ubd_device_fail(dev, -EISDIR,
				       "%s is a directory, not a file or block device", b->path);
	b->is_block = S_ISBLK(st->st_mode);
	if (!b->is_block && !S_ISREG(st->st_mode))
		return ubd_device_fail(dev, -EINVAL, "%s is neither a file nor a block device",
				       b->path);
	return 0;
}

static int check_size(struct backing *b, struct ubd_device *dev, const struct backing_request *want)
{
	uint64_t all;

	if (b->is_block) {
		if (ioctl(b->fd, BLKGETSIZE64, &all) < 0)
			return ubd_device_fail(dev, -errno, "cannot get the size of %s: %s",
					       b->path, strerror(errno));
	} else {
		struct stat st;

		if (fstat(b->fd, &st) < 0)
			return ubd_device_fail(dev, -errno, "cannot get the size of %s: %s",
					       b->path, strerror(errno));
		all = (uint64_t)st.st_size;
	}
	if (want->start >= all)
		return ubd_device_fail(dev, -EINVAL,
				       all ? "%s: the offset %llu is at or past its end, "
					     "%llu"
					   : "%s is empty: give it a size first",
				       b->path, (unsigned long long)want->start,
				       (unsigned long long)all);
	b->start = want->start;
	b->size = all - want->start;
	if (want->size > b->size)
		return ubd_device_fail(dev, -EINVAL,
				       "%s has only %llu bytes from offset %llu, not %llu", b->path,
				       (unsigned long long)b->size, (unsigned long long)want->start,
				       (unsigned long long)want->size);
	if (want->size)
		b->size = want->size;
	return 0;
}

static void describe_block_device(struct backing *b)
{
	struct stat st;
	int logical = 0;
	unsigned physical = 0, io_min = 0, io_opt = 0;

	fstat(b->fd, &st);
	ioctl(b->fd, BLKSSZGET, &logical);
	ioctl(b->fd, BLKPBSZGET, &physical);
	ioctl(b->fd, BLKIOMIN, &io_min);
	ioctl(b->fd, BLKIOOPT, &io_opt);
	b->block = logical > 0 ? (uint32_t)logical : SECTOR;
	b->physical_block = physical;
	b->io_min = io_min;
	b->io_opt = io_opt;
	b->rotational = queue_attribute(st.st_rdev, "rotational");
	b->can_punch = queue_attribute(st.st_rdev, "discard_max_bytes") > 0;
	b->discard_granularity = (uint32_t)queue_attribute(st.st_rdev, "discard_granularity");
	b->can_zero = true;
}

static void describe_file(struct backing *b)
{
	struct stat st;
	int hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	fstat(b->fd, &st);
	b->physical_block = PAGE;
	b->discard_granularity = (uint32_t)st.st_blksize;
	/* Past the end: changes nothing, and tells whether it would work. */
	b->can_punch = !b->read_only &&
		       !fallocate(b->fd, hole, (st.st_size + PAGE) & ~(off_t)(PAGE - 1), PAGE);
	b->can_zero = b->can_punch;
}

/* Whether auto takes direct I/O in blocks of this size. */
static bool suits(const struct backing *b, const struct backing_request *want)
{
	return (want->any_size || b->size % b->block == 0) &&
	       (!want->max_block || b->block <= want->max_block);
}

/* Direct I/O if wanted and possible, in blocks that fit the range. */
static int choose_access(struct backing *b, struct ubd_device *dev,
			 const struct backing_request *want, const struct stat *st)
{
	int ret = -EINVAL;

	b->block = SECTOR;
	if (want->direct != BACKING_DIRECT_OFF)
		ret = open_file(b, dev, st, O_DIRECT);
	if (!ret) {
		b->block = probe_direct_block(b->fd, want->start);
		ret = b->block ? check_size(b, dev, want) : 0;
		if (ret)
			return ret;
		b->direct = b->block && (want->direct == BACKING_DIRECT_ON || suits(b, want));
		if (b->direct)
			return 0;
		close(b->fd);
		b->fd = -1;
		ret = -EINVAL;
	}
	if (ret != -EINVAL)
		return ret;
	if (want->direct == BACKING_DIRECT_ON)
		return ubd_device_fail(
			dev, -EINVAL,
			"%s cannot be read past the page cache (O_DIRECT): leave out "
			"--direct on",
			b->path);
	b->block = SECTOR;
	ret = open_file(b, dev, st, 0);
	return ret ? ret : check_size(b, dev, want);
}

static int lock(const struct backing *b)
{
	int ret = -1;

	for (int tries = 0; ret < 0 && tries < LOCK_TRIES; tries++) {
		if (tries)
			nanosleep(&pause_between, NULL);
		ret = flock(b->fd, (b->read_only ? LOCK_SH : LOCK_EX) | LOCK_NB);
		if (ret < 0 && errno != EWOULDBLOCK)
			break;
	}
	return ret;
}

int backing_open(struct backing *b, struct ubd_device *dev, const struct backing_request *want)
{
	struct stat st;
	int ret;

	*b = (struct backing){.path = want->path, .fd = -1, .read_only = want->read_only};
	ret = check_kind(b, dev, &st);
	if (!ret)
		ret = choose_access(b, dev, want, &st);
	if (ret)
		goto fail;
	if (lock(b) < 0 && errno == EWOULDBLOCK) {
		ret = ubd_device_fail(dev, -EBUSY, "%s is locked: another program is using it",
				      b->path);
		goto fail;
	}
	if (b->is_block)
		describe_block_device(b);
	else
		describe_file(b);
	if (!want->any_size && (b->size % b->block || b->start % b->block)) {
		ret = ubd_device_fail(dev, -EINVAL,
				      "%s: size %llu and offset %llu are not both multiples of the "
				      "block size %u",
				      b->path, (unsigned long long)b->size,
				      (unsigned long long)b->start, b->block);
		goto fail;
	}
	/* More than the rings have room for are looked up at each I/O. */
	ret = ubd_device_add_fd(dev, b->fd);
	if (!ret || ret == -ENOSPC)
		return 0;
fail:
	backing_close(b);
	return ret;
}

void backing_close(struct backing *b)
{
	if (b->fd >= 0) {
		/* A ring may hold the file a little longer than the fd; nobody should wait for
		 * that. */
		flock(b->fd, LOCK_UN);
		close(b->fd);
	}
	b->fd = -1;
}

void backing_limits(const struct backing *b, struct ubd_limits *l)
{
	l->size = b->size;
	l->logical_block = b->block;
	l->physical_block = b->physical_block;
	l->io_min = b->io_min;
	l->io_opt = b->io_opt;
	l->rotational = b->rotational;
	l->read_only = b->read_only;
	l->volatile_cache = !b->read_only;
	/* Through the page cache, a write of its own sync that fails would take what others have
	 * lost for told: so all is told by flushes, see .lost. */
	l->fua = l->volatile_cache && b->direct;
	/* Each segment of a request must be whole blocks: so its memory must begin at one. */
	l->dma_alignment = b->direct ? b->block : SECTOR;
	if (b->can_punch) {
		l->max_discard = UBD_NO_LIMIT;
		l->discard_granularity = b->discard_granularity;
	}
	if (b->can_zero && !b->read_only)
		l->max_write_zeroes = UBD_NO_LIMIT;
}

/* ---- Using --------------------------------------------------------------------------------- */

struct ubd_transfer backing_transfer(const struct backing *b, const struct ubd_io *io, uint32_t at,
				     uint32_t len, uint64_t pos)
{
	return (struct ubd_transfer){
		.where = UBD_FILE,
		.fd = b->fd,
		.at = at,
		.len = len,
		.pos = b->start + pos,
		.flags = io->flags & UBD_IO_FUA ? UBD_XFER_FUA : 0,
	};
}

int backing_synced(struct backing *b, int ret)
{
	if (ret < 0 && !b->direct)
		b->lost = true;
	return b->lost ? -EIO : ret;
}

int backing_flush(struct backing *b, struct ubd_queue *q)
{
	int ret;

	if (b->read_only || b->direct)
		return b->read_only ? 0 : ubd_fsync(q, b->fd, true);
	/* Of two syncs at the same time one is told of what was lost, and the other ends first. */
	ubd_mutex_lock(q, &b->syncing);
	ret = backing_synced(b, ubd_fsync(q, b->fd, true));
	ubd_mutex_unlock(q, &b->syncing);
	return ret;
}

struct discard {
	int fd;
	uint64_t range[2];
};

static int block_discard(void *arg)
{
	struct discard *d = arg;

	return ioctl(d->fd, BLKDISCARD, d->range) < 0 ? -errno : 0;
}

int backing_discard(const struct backing *b, struct ubd_queue *q, uint64_t pos, uint64_t len)
{
	struct discard d = {.fd = b->fd, .range = {b->start + pos, len}};

	if (!b->can_punch)
		return -EOPNOTSUPP;
	if (b->is_block)
		return ubd_offload(q, block_discard, &d);
	return ubd_fallocate(q, b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, b->start + pos,
			     len);
}

int backing_zero(const struct backing *b, struct ubd_queue *q, uint64_t pos, uint64_t len,
		 bool unmap)
{
	int hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int zero = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
	int ret = ubd_fallocate(q, b->fd, unmap ? hole : zero, b->start + pos, len);

	/* Not all can do both; either reads as zeroes. */
	if (ret == -EOPNOTSUPP)
		ret = ubd_fallocate(q, b->fd, unmap ? zero : hole, b->start + pos, len);
	return ret;
}

int backing_apply(struct backing *b, const struct ubd_io *io, uint64_t pos, uint64_t len)
{
	int ret;

	switch (io->op) {
	case UBD_FLUSH:
		return backing_flush(b, io->queue);
	case UBD_DISCARD:
		return backing_discard(b, io->queue, pos, len);
	case UBD_WRITE_ZEROES:
		ret = backing_zero(b, io->queue, pos, len, !(io->flags & UBD_IO_NO_UNMAP));
		return ret || !(io->flags & UBD_IO_FUA) ? ret : backing_flush(b, io->queue);
	default:
		return -EOPNOTSUPP;
	}
}
