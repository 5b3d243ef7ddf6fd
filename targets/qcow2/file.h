/* SPDX-License-Identifier: MIT */
/*
 * The files an image is made of. Every access to them goes through here, so that a test can watch,
 * record and fail each one.
 *
 * Calls take the queue they run on, or NULL: then they block, for open(), close() and tools.
 */
#ifndef UBD_QCOW2_FILE_H
#define UBD_QCOW2_FILE_H

#include "../backing/backing.h"

#include <stdatomic.h>

struct qc_file {
	struct backing b;
	char *path;		 /* owned */
	_Atomic uint64_t end;	 /* size in bytes */
	_Atomic bool needs_sync; /* written to since the last sync began */
	struct ubd_mutex growing;
};

enum qc_file_op_kind { QC_READ, QC_WRITE, QC_SYNC, QC_TRUNCATE, QC_PUNCH };

struct qc_file_op {
	enum qc_file_op_kind kind;
	struct qc_file *file;
	uint64_t pos, len;
	void *data;	   /* of a read or write in memory */
	struct ubd_io *io; /* of a write from a request: its bytes at .at */
	uint32_t at;
	bool last; /* with which the request ends */
};

/* A test's way in; NULL: none. */
struct qc_file_hooks {
	/* -errno: fail the operation without doing it. */
	int (*before)(const struct qc_file_op *op);
	void (*after)(const struct qc_file_op *op, int ret);
};
extern const struct qc_file_hooks *qc_file_hooks;

/* Memory aligned as direct I/O wants it; NULL: there is none. */
void *qc_buffer(uint64_t size);
/* format: it holds a format's clusters; else a disk's bytes, the last sector maybe cut short. */
int qc_file_open(struct qc_file *f, struct ubd_device *dev, const char *path, int direct,
		 bool writable, bool format);
void qc_file_close(struct qc_file *f);
/* All of it: what lies past the end of the file reads as zeroes. 0 or -errno. [awaits] */
int qc_file_read(struct qc_file *f, struct ubd_queue *q, void *buf, uint64_t len, uint64_t pos);
int qc_file_write(struct qc_file *f, struct ubd_queue *q, const void *buf, uint64_t len,
		  uint64_t pos);
/* Durable: what was written before the call. Costs nothing when nothing was. [awaits] */
int qc_file_sync(struct qc_file *f, struct ubd_queue *q);
/* At least `size` bytes long, more to save later calls. [awaits] */
int qc_file_reserve(struct qc_file *f, struct ubd_queue *q, uint64_t size);
/* Exactly that long, unless it is a block device. [awaits] */
int qc_file_truncate(struct qc_file *f, struct ubd_queue *q, uint64_t size);
/* Give space back; the range reads as zeroes afterwards or the call fails. [awaits] */
int qc_file_punch(struct qc_file *f, struct ubd_queue *q, uint64_t pos, uint64_t len);
/*
 * A piece of a request's data, see ubd_io_transfer(). last: the result is to be handle()'s, and the
 * write may go on until the request is finished. [awaits]
 */
int qc_file_transfer_write(struct qc_file *f, struct ubd_io *io, uint32_t at, uint32_t len,
			   uint64_t pos, bool last);

#endif
