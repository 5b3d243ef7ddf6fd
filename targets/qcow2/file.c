/* SPDX-License-Identifier: MIT */
/* The files of an image: reading, writing, syncing, growing, and the tests' way in. */
#define _GNU_SOURCE
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Files grow by this much at a time: an append that changes a file's size is a slow write. */
#define GROW_STEP (16u << 20)

const struct qc_file_hooks *qc_file_hooks;

static int before(const struct qc_file_op *op)
{
	return qc_file_hooks ? qc_file_hooks->before(op) : 0;
}

static int after(const struct qc_file_op *op, int ret)
{
	if (qc_file_hooks)
		qc_file_hooks->after(op, ret);
	return ret;
}

/*
 * QEMU's locks on images: byte 100 + i is held by who uses permission i, 200 + i by who lets nobody
 * else have it; both shared, so that each looks for the other's. 0: reading, 1: writing, 3:
 * resizing.
 */
#define LOCK_USES 100
#define LOCK_FORBIDS 200

static int lock_byte(int fd, int command, short type, int at)
{
	struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};

	if (fcntl(fd, command, &l) < 0)
		return command == F_OFD_SETLK && (errno == EAGAIN || errno == EACCES);
	return command == F_OFD_GETLK && l.l_type != F_UNLCK;
}

/* Whether QEMU, or a program with its manners, is at work on the file. */
static bool used_by_others(const struct qc_file *f)
{
	static const int forbidden[] = {1, 3}, used[] = {0, 1, 3};
	unsigned uses = f->b.read_only ? 1 : 3;
	bool taken = false;

	/* File systems without such locks have no opinion. */
	for (unsigned i = 0; i < uses; i++)
		taken |= lock_byte(f->b.fd, F_OFD_SETLK, F_RDLCK, LOCK_USES + used[i]);
	for (unsigned i = 0; i < 2; i++)
		taken |= lock_byte(f->b.fd, F_OFD_SETLK, F_RDLCK, LOCK_FORBIDS + forbidden[i]);
	for (unsigned i = 0; i < uses && !taken; i++)
		taken = lock_byte(f->b.fd, F_OFD_GETLK, F_WRLCK, LOCK_FORBIDS + used[i]);
	for (unsigned i = 0; i < 2 && !taken; i++)
		taken = lock_byte(f->b.fd, F_OFD_GETLK, F_WRLCK, LOCK_USES + forbidden[i]);
	return taken;
}

int qc_file_open(struct qc_file *f, struct ubd_device *dev, const struct backing_request *want)
{
	struct backing_request direct = *want;
	char *path = strdup(want->path);
	int ret;

	if (!path)
		return ubd_device_fail(dev, -ENOMEM, "out of memory");
	*f = (struct qc_file){.path = path, .b.fd = -1};
	direct.path = path;
	direct.any_size = true;
	/* Images hold 512-byte sectors whatever the file system under them is made of. */
	direct.max_block = 512;
	ret = backing_open(&f->b, dev, &direct);
	if (!ret && used_by_others(f)) {
		ret = ubd_device_fail(dev, -EBUSY,
				      "%s is in use: QEMU or another program has it open", path);
		backing_close(&f->b);
	}
	if (ret) {
		free(f->path);
		f->path = NULL;
		return ret;
	}
	atomic_store(&f->end, f->b.size);
	/* Whoever wrote to it before may not have synced. */
	atomic_store(&f->needs_sync, !want->read_only);
	return 0;
}

void qc_file_close(struct qc_file *f)
{
	if (!f->path)
		return;
	backing_close(&f->b);
	free(f->path);
	f->path = NULL;
}

/* Without a queue: all of it, or what there is up to the file's end. */
static ssize_t block_io(int fd, void *buf, size_t len, uint64_t pos, bool is_write)
{
	size_t done = 0;
	ssize_t n = 1;

	while (done < len && n) {
		char *at = (char *)buf + done;
		off_t from = (off_t)(pos + done);

		n = is_write ? pwrite(fd, at, len - done, from) : pread(fd, at, len - done, from);
		if (n < 0 && errno != EINTR)
			return -errno;
		done += (size_t)(n < 0 ? 0 : n);
	}
	return (ssize_t)done;
}

int qc_file_read(struct qc_file *f, struct ubd_queue *q, void *buf, uint64_t len, uint64_t pos)
{
	struct qc_file_op op = {.kind = QC_READ, .file = f, .pos = pos, .len = len};
	ssize_t n = before(&op);

	if (!n && pos < atomic_load(&f->end))
		n = q ? ubd_pread(q, f->b.fd, buf, len, pos)
		      : block_io(f->b.fd, buf, len, pos, false);
	if (n < 0)
		return after(&op, (int)n);
	memset((char *)buf + n, 0, len - (size_t)n);
	return after(&op, 0);
}

/* Bytes up to `end` are in the file now. */
static void wrote(struct qc_file *f, uint64_t end)
{
	uint64_t old = atomic_load(&f->end);

	while (old < end && !atomic_compare_exchange_weak(&f->end, &old, end))
		;
	atomic_store(&f->needs_sync, true);
}

int qc_file_write(struct qc_file *f, struct ubd_queue *q, const void *buf, uint64_t len,
		  uint64_t pos)
{
	struct qc_file_op op = {.kind = QC_WRITE, .file = f, .pos = pos, .len = len, .data = buf};
	ssize_t n = before(&op);

	if (!n)
		n = q ? ubd_pwrite(q, f->b.fd, buf, len, pos, 0)
		      : block_io(f->b.fd, (void *)(uintptr_t)buf, len, pos, true);
	if (n >= 0 && (uint64_t)n < len)
		n = -EIO;
	wrote(f, n < 0 ? 0 : pos + len);
	return after(&op, n < 0 ? (int)n : 0);
}

int qc_file_transfer_write(struct qc_file *f, struct ubd_io *io, uint32_t at, uint32_t len,
			   uint64_t pos)
{
	struct ubd_transfer t = {
		.where = UBD_FILE, .fd = f->b.fd, .at = at, .len = len, .pos = pos};
	struct qc_file_op op = {
		.kind = QC_WRITE, .file = f, .pos = pos, .len = len, .io = io, .at = at};
	int ret = before(&op);

	if (!ret)
		ret = ubd_io_transfer(io, &t, 1);
	wrote(f, ret < 0 ? 0 : pos + len);
	return after(&op, ret < 0 ? ret : 0);
}

int qc_file_sync(struct qc_file *f, struct ubd_queue *q)
{
	struct qc_file_op op = {.kind = QC_SYNC, .file = f};
	int ret;

	if (!atomic_exchange(&f->needs_sync, false))
		return 0;
	ret = before(&op);
	if (!ret && q)
		ret = ubd_fsync(q, f->b.fd, true);
	else if (!ret)
		ret = fdatasync(f->b.fd) < 0 ? -errno : 0;
	if (ret)
		atomic_store(&f->needs_sync, true);
	return after(&op, ret);
}

struct truncation {
	int fd;
	uint64_t size;
};

static int do_truncate(void *arg)
{
	struct truncation *t = arg;

	return ftruncate(t->fd, (off_t)t->size) < 0 ? -errno : 0;
}

static int set_size(struct qc_file *f, struct ubd_queue *q, uint64_t size)
{
	struct truncation t = {f->b.fd, size};
	struct qc_file_op op = {.kind = QC_TRUNCATE, .file = f, .pos = size};
	int ret = before(&op);

	if (!ret)
		ret = q ? ubd_offload(q, do_truncate, &t) : do_truncate(&t);
	if (!ret) {
		atomic_store(&f->end, size);
		atomic_store(&f->needs_sync, true);
	}
	return after(&op, ret);
}

int qc_file_reserve(struct qc_file *f, struct ubd_queue *q, uint64_t size)
{
	int ret = 0;

	if (size <= atomic_load(&f->end))
		return 0;
	if (f->b.is_block)
		return -ENOSPC;
	if (q)
		ubd_mutex_lock(q, &f->growing);
	if (size > atomic_load(&f->end)) {
		ret = set_size(f, q, (size + GROW_STEP - 1) / GROW_STEP * GROW_STEP);
		/* A limit on file sizes may leave room for what is needed and no more. */
		if (ret)
			ret = set_size(f, q, size);
	}
	if (q)
		ubd_mutex_unlock(q, &f->growing);
	return ret;
}

int qc_file_truncate(struct qc_file *f, uint64_t size)
{
	return f->b.is_block ? 0 : set_size(f, NULL, size);
}

int qc_file_punch(struct qc_file *f, struct ubd_queue *q, uint64_t pos, uint64_t len)
{
	struct qc_file_op op = {.kind = QC_PUNCH, .file = f, .pos = pos, .len = len};
	int hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int ret;

	if (!f->b.can_punch || f->b.is_block)
		return -EOPNOTSUPP;
	ret = before(&op);
	if (!ret && q)
		ret = ubd_fallocate(q, f->b.fd, hole, pos, len);
	else if (!ret)
		ret = fallocate(f->b.fd, hole, (off_t)pos, (off_t)len) < 0 ? -errno : 0;
	atomic_store(&f->needs_sync, true);
	return after(&op, ret);
}
