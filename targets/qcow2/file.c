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
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

const struct qc_file_hooks *qc_file_hooks;

/*
 * QEMU's locks on images: byte 100 + i is held by who uses permission i, 200 + i by who lets nobody
 * else have it; both shared, so that each looks for the other's. 0: reading, 1: writing, 3:
 * resizing.
 */
#define LOCK_USES 100
#define LOCK_FORBIDS 200

void *qc_buffer(uint64_t size)
{
	void *p;

	return posix_memalign(&p, 4096, size) ? NULL : p;
}

/* Take those bytes or ask for them, all of what this one does; whether somebody is in the way. */
static bool lock_bytes(const struct qc_file *f, int command, int uses, int forbids)
{
	const off_t bytes[] = {uses, uses + 1, uses + 3, forbids + 1, forbids + 3};
	bool taken = false;

	for (unsigned i = 0; i < 5; i++) {
		struct flock l = {.l_type = command == F_OFD_SETLK ? F_RDLCK : F_WRLCK,
				  .l_whence = SEEK_SET,
				  .l_start = bytes[i],
				  .l_len = 1};

		if (f->b.read_only && (i == 1 || i == 2))
			continue;
		if (fcntl(f->b.fd, command, &l) < 0)
			taken |= command == F_OFD_SETLK && (errno == EAGAIN || errno == EACCES);
		else
			taken |= command == F_OFD_GETLK && l.l_type != F_UNLCK;
	}
	return taken;
}

int qc_file_open(struct qc_file *f, struct ubd_device *dev, const char *path, int direct,
		 bool writable, bool format)
{
	struct backing_request want = {
		.path = strdup(path),
		.direct = (enum backing_direct)direct,
		.read_only = !writable,
		.any_size = true,
		/* Images hold 512-byte sectors whatever the file system under them is made of. */
		.max_block = 512,
	};
	struct stat st;
	int ret;

	*f = (struct qc_file){.path = (char *)(uintptr_t)want.path, .b.fd = -1};
	if (!f->path)
		return ubd_device_fail(dev, -ENOMEM, "out of memory");
	/* A raw image's last sector may be cut short: only the page cache can read that. */
	if (!format && !stat(path, &st) && S_ISREG(st.st_mode) && st.st_size % 512)
		want.direct = BACKING_DIRECT_OFF;
	ret = backing_open(&f->b, dev, &want);
	/* QEMU, or a program with its manners; file systems without such locks have no opinion. */
	if (!ret && (lock_bytes(f, F_OFD_SETLK, LOCK_USES, LOCK_FORBIDS) ||
		     lock_bytes(f, F_OFD_GETLK, LOCK_FORBIDS, LOCK_USES)))
		ret = ubd_device_fail(dev, -EBUSY,
				      "%s is in use: QEMU or another program has it open", path);
	if (ret) {
		qc_file_close(f);
		return ret;
	}
	atomic_store(&f->end, f->b.size);
	/* Whoever wrote to it before may not have synced. */
	atomic_store(&f->needs_sync, writable);
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

/* ---- Operations ---------------------------------------------------------------------------- */

/* Without a queue: all of it, or what there is up to the file's end. */
static ssize_t block_io(int fd, char *buf, size_t len, uint64_t pos, bool is_write)
{
	size_t done = 0;
	ssize_t n = 1;

	while (done < len && n) {
		char *at = buf + done;
		off_t from = (off_t)(pos + done);

		n = is_write ? pwrite(fd, at, len - done, from) : pread(fd, at, len - done, from);
		if (n < 0 && errno != EINTR)
			return -errno;
		done += (size_t)(n < 0 ? 0 : n);
	}
	return (ssize_t)done;
}

/* The short ones, on a thread that may block. */
static int block_op(void *arg)
{
	const struct qc_file_op *op = arg;
	off_t pos = (off_t)op->pos;
	int fd = op->file->b.fd, ret;

	if (op->kind == QC_SYNC)
		ret = fdatasync(fd);
	else if (op->kind == QC_TRUNCATE)
		ret = ftruncate(fd, pos);
	else
		ret = fallocate(fd, PUNCH, pos, (off_t)op->len);
	return ret < 0 ? -errno : 0;
}

/* Bytes of a READ or WRITE, 0 or -errno. */
static ssize_t perform(struct ubd_queue *q, struct qc_file_op *op, void *buf)
{
	int fd = op->file->b.fd;
	const struct ubd_transfer t = {.where = UBD_FILE,
				       .fd = fd,
				       .at = op->at,
				       .len = (uint32_t)op->len,
				       .pos = op->pos};

	switch (op->kind) {
	case QC_READ:
		if (op->pos >= atomic_load(&op->file->end))
			return 0;
		return q ? ubd_pread(q, fd, buf, op->len, op->pos)
			 : block_io(fd, buf, op->len, op->pos, false);
	case QC_WRITE:
		if (op->io)
			return ubd_io_transfer(op->io, &t, 1);
		return q ? ubd_pwrite(q, fd, buf, op->len, op->pos, 0)
			 : block_io(fd, buf, op->len, op->pos, true);
	case QC_SYNC:
		return q ? ubd_fsync(q, fd, true) : block_op(op);
	case QC_PUNCH:
		return q ? ubd_fallocate(q, fd, PUNCH, op->pos, op->len) : block_op(op);
	default:
		return q ? ubd_offload(q, block_op, op) : block_op(op);
	}
}

/* All of it, watched. 0 or -errno. */
static int run(struct ubd_queue *q, struct qc_file_op *op, void *buf)
{
	uint64_t end = op->pos + op->len, old = atomic_load(&op->file->end);
	ssize_t ret = qc_file_hooks ? qc_file_hooks->before(op) : 0;

	if (!ret)
		ret = perform(q, op, buf);
	if (op->kind == QC_READ && ret >= 0)
		memset((char *)buf + ret, 0, op->len - (size_t)ret);
	else if (op->kind == QC_WRITE && ret >= 0 && (uint64_t)ret < op->len)
		ret = -EIO;
	while (op->kind == QC_WRITE && ret >= 0 && old < end &&
	       !atomic_compare_exchange_weak(&op->file->end, &old, end))
		;
	if (op->kind == QC_TRUNCATE && !ret)
		atomic_store(&op->file->end, op->pos);
	/* What failed may have been done in part. */
	if (op->kind != QC_READ && (op->kind != QC_SYNC || ret))
		atomic_store(&op->file->needs_sync, true);
	ret = ret < 0 ? ret : 0;
	if (qc_file_hooks)
		qc_file_hooks->after(op, (int)ret);
	return (int)ret;
}

int qc_file_read(struct qc_file *f, struct ubd_queue *q, void *buf, uint64_t len, uint64_t pos)
{
	return run(q, &(struct qc_file_op){QC_READ, f, pos, len}, buf);
}

int qc_file_write(struct qc_file *f, struct ubd_queue *q, const void *buf, uint64_t len,
		  uint64_t pos)
{
	return run(q, &(struct qc_file_op){QC_WRITE, f, pos, len, .data = buf},
		   (void *)(uintptr_t)buf);
}

int qc_file_transfer_write(struct qc_file *f, struct ubd_io *io, uint32_t at, uint32_t len,
			   uint64_t pos)
{
	return run(io->queue, &(struct qc_file_op){QC_WRITE, f, pos, len, .io = io, .at = at},
		   NULL);
}

int qc_file_sync(struct qc_file *f, struct ubd_queue *q)
{
	if (!atomic_exchange(&f->needs_sync, false))
		return 0;
	return run(q, &(struct qc_file_op){QC_SYNC, f}, NULL);
}

int qc_file_truncate(struct qc_file *f, struct ubd_queue *q, uint64_t size)
{
	if (f->b.is_block)
		return 0;
	return run(q, &(struct qc_file_op){QC_TRUNCATE, f, size}, NULL);
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
		ret = qc_file_truncate(f, q, (size + GROW_STEP - 1) / GROW_STEP * GROW_STEP);
		/* A limit on file sizes may leave room for what is needed and no more. */
		if (ret)
			ret = qc_file_truncate(f, q, size);
	}
	if (q)
		ubd_mutex_unlock(q, &f->growing);
	return ret;
}

int qc_file_punch(struct qc_file *f, struct ubd_queue *q, uint64_t pos, uint64_t len)
{
	if (!f->b.can_punch || f->b.is_block)
		return -EOPNOTSUPP;
	return run(q, &(struct qc_file_op){QC_PUNCH, f, pos, len}, NULL);
}
