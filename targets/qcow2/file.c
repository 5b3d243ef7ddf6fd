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
		.direct = (enum backing_direct)direct,
		.read_only = !writable,
		.any_size = true,
		/* Images hold 512-byte sectors whatever the file system under them is made of. */
		.max_block = 512,
	};
	struct stat st;
	int ret;

	want.path = f->path = strdup(path);
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
	atomic_store(&f->end, f->b.size);
	/* Whoever wrote to it before may not have synced. */
	atomic_store(&f->needs_sync, writable);
	return ret;
}

void qc_file_close(struct qc_file *f)
{
	backing_close(&f->b);
	free(f->path);
}

/* ---- Operations ---------------------------------------------------------------------------- */

/* Without a queue, or on a thread that may block. */
static int block_op(void *arg)
{
	const struct qc_file_op *op = arg;
	int fd = op->file->b.fd;
	off_t pos = (off_t)op->pos, end = pos + (off_t)op->len, at = pos;
	ssize_t n = 0;

	if (op->kind == QC_SYNC)
		n = fdatasync(fd);
	else if (op->kind == QC_TRUNCATE)
		n = ftruncate(fd, pos);
	else if (op->kind == QC_PUNCH)
		n = fallocate(fd, PUNCH, pos, end - pos);
	else
		do {
			void *from = (char *)op->data + (at - pos);

			n = op->kind == QC_READ ? pread(fd, from, (size_t)(end - at), at)
						: pwrite(fd, from, (size_t)(end - at), at);
			at += n > 0 ? n : 0;
		} while (at < end && (n > 0 || (n < 0 && errno == EINTR)));
	return n < 0 ? -errno : (int)(at - pos);
}

/* Bytes of a READ or WRITE, 0 or -errno. */
static ssize_t perform(struct ubd_queue *q, struct qc_file_op *op)
{
	int fd = op->file->b.fd;
	const struct ubd_transfer t = {.where = UBD_FILE,
				       .fd = fd,
				       .at = op->at,
				       .len = (uint32_t)op->len,
				       .pos = op->pos};

	if (op->kind == QC_READ && op->pos >= atomic_load(&op->file->end))
		return 0;
	if (!q)
		return block_op(op);
	switch (op->kind) {
	case QC_READ:
		return ubd_pread(q, fd, op->data, op->len, op->pos);
	case QC_WRITE:
		/* The driver could not tell us when it has made the file longer. */
		if (op->last && op->pos + op->len <= atomic_load(&op->file->end))
			return ubd_io_finish(op->io, &t, 1);
		return op->io ? ubd_io_transfer(op->io, &t, 1)
			      : ubd_pwrite(q, fd, op->data, op->len, op->pos, 0);
	case QC_SYNC:
		return ubd_fsync(q, fd, true);
	case QC_PUNCH:
		return ubd_fallocate(q, fd, PUNCH, op->pos, op->len);
	default:
		return ubd_offload(q, block_op, op);
	}
}

/* All of it, watched. 0 or -errno. */
static int run(struct ubd_queue *q, struct qc_file_op *op)
{
	uint64_t end = op->pos + op->len, old = atomic_load(&op->file->end);
	ssize_t ret = qc_file_hooks ? qc_file_hooks->before(op) : 0;

	if (!ret)
		ret = op->kind == QC_SYNC ? backing_synced(&op->file->b, (int)perform(q, op))
					  : perform(q, op);
	if (op->kind == QC_READ && ret >= 0)
		memset((char *)op->data + ret, 0, op->len - (size_t)ret);
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
	return run(q, &(struct qc_file_op){QC_READ, f, pos, len, .data = buf});
}

int qc_file_write(struct qc_file *f, struct ubd_queue *q, const void *buf, uint64_t len,
		  uint64_t pos)
{
	return run(q, &(struct qc_file_op){QC_WRITE, f, pos, len, .data = (void *)(uintptr_t)buf});
}

int qc_file_transfer_write(struct qc_file *f, struct ubd_io *io, uint32_t at, uint32_t len,
			   uint64_t pos, bool last)
{
	return run(io->queue, &(struct qc_file_op){QC_WRITE, f, pos, len, NULL, io, at, last});
}

int qc_file_sync(struct qc_file *f, struct ubd_queue *q)
{
	if (!atomic_exchange(&f->needs_sync, false))
		return 0;
	return run(q, &(struct qc_file_op){QC_SYNC, f});
}

int qc_file_truncate(struct qc_file *f, struct ubd_queue *q, uint64_t size)
{
	if (f->b.is_block)
		return 0;
	return run(q, &(struct qc_file_op){QC_TRUNCATE, f, size});
}

int qc_file_reserve(struct qc_file *f, struct ubd_queue *q, uint64_t size)
{
	uint64_t more = (size + GROW_STEP - 1) / GROW_STEP * GROW_STEP;
	int ret = 0;

	if (size <= atomic_load(&f->end))
		return 0;
	if (f->b.is_block)
		return -ENOSPC;
	ubd_mutex_lock(q, &f->growing);
	/* A limit on file sizes may leave room for what is needed and no more. */
	if (size > atomic_load(&f->end) && qc_file_truncate(f, q, more))
		ret = qc_file_truncate(f, q, size);
	ubd_mutex_unlock(q, &f->growing);
	return ret;
}

int qc_file_punch(struct qc_file *f, struct ubd_queue *q, uint64_t pos, uint64_t len)
{
	if (!f->b.can_punch || f->b.is_block)
		return -EOPNOTSUPP;
	return run(q, &(struct qc_file_op){QC_PUNCH, f, pos, len});
}
