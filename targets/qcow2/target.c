/* SPDX-License-Identifier: MIT */
/* qcow2: an image as a disk. Options, limits, requests. */
#include "target.h"

#include <errno.h>
#include <stdlib.h>

#include <ubd/local.h>

#include "../targets.h"

/* Not the kernel's: a job for a local device, see qcow2_run_live(). */
#define OP_JOB 0xe0

struct qcow2 {
	const char *file, *snapshot, *data_file, *journal;
	uint64_t cache;
	int direct;
	bool repair;
	struct qc_image *img;
	struct qcow2 *next; /* of all open ones in this process */
	struct ubd_device *dev;
	const struct ubd_qcow2_job *job;
};

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct qcow2 *all_open;

const char *qc_journal_dir(const char *option)
{
	const char *chosen = getenv("UBD_RUN_DIR");

	if (option && !strcmp(option, "off"))
		return NULL;
	return option ? option : chosen && *chosen ? chosen : "/run/ubd";
}

static void set_limits(const struct qc_image *img, struct ubd_limits *l)
{
	const struct backing *b = &img->data->b;

	l->logical_block = MAX(512u, b->direct ? b->block : 512u);
	l->size = img->size - img->size % l->logical_block;
	/* Sizes of odd bytes come from other tools: their last sector is filled up with zeroes. */
	if (l->size < img->size)
		l->size += l->logical_block;
	l->physical_block = MAX(l->logical_block, MIN(1u << img->unit_bits, 4096u));
	l->io_min = l->physical_block;
	l->rotational = b->rotational;
	l->read_only = !img->writable;
	l->volatile_cache = l->fua = img->writable;
	l->dma_alignment = b->direct ? b->block : 512;
	for (const struct qc_image *i = img; i; i = i->backing)
		if (i->data->b.direct)
			l->dma_alignment = MAX(l->dma_alignment, i->data->b.block);
	if (!img->writable)
		return;
	l->max_discard = l->max_write_zeroes = UBD_NO_LIMIT;
	l->discard_granularity = 1u << img->cluster_bits;
}

static int qcow2_open(struct ubd_device *dev, void *self)
{
	struct qcow2 *t = self;
	const struct qc_options options = {
		.cache_bytes = t->cache,
		.direct = t->direct,
		.repair = t->repair,
		.snapshot = t->snapshot,
		.data_file = t->data_file,
		.journal = qc_journal_dir(t->journal),
	};
	int ret = qc_image_open(&t->img, dev, t->file, !ubd_device_read_only(dev) && !t->snapshot,
				&options);

	if (ret)
		return ret;
	set_limits(t->img, ubd_device_limits(dev));
	t->dev = dev;
	pthread_mutex_lock(&open_lock);
	t->next = all_open;
	all_open = t;
	pthread_mutex_unlock(&open_lock);
	return 0;
}

static void qcow2_close(struct ubd_device *dev, void *self)
{
	struct qcow2 *t = self, **at = &all_open;

	(void)dev;
	pthread_mutex_lock(&open_lock);
	while (*at != t)
		at = &(*at)->next;
	*at = t->next;
	pthread_mutex_unlock(&open_lock);
	qc_image_close(t->img);
}

static int run_job(struct qcow2 *t, struct ubd_queue *q)
{
	int ret;

	if (!t->img->writable && t->job->verb != UBD_QCOW2_LIST)
		return -EROFS;
	qc_pause(t->img, q);
	ret = qc_job_run(t->img, q, t->job);
	if (!ret && ubd_device_limits(t->dev)->size != t->img->size)
		ret = ubd_device_resize(q, t->img->size);
	qc_resume(t->img, q);
	return ret;
}

static int change(struct qc_image *img, struct ubd_io *io)
{
	int ret = qc_header_mark(img, io->queue);

	if (ret)
		return ret;
	switch (io->op) {
	case UBD_WRITE:
		return qc_write(img, io);
	case UBD_DISCARD:
		return qc_zero(img, io->queue, io->offset, io->length, true, false);
	default:
		return qc_zero(img, io->queue, io->offset, io->length, false,
			       io->flags & UBD_IO_NO_UNMAP);
	}
}

static int qcow2_handle(struct ubd_io *io, void *self)
{
	struct qcow2 *t = self;
	struct qc_image *img = t->img;
	unsigned epoch;
	int ret;

	switch (io->op) {
	case UBD_READ:
		epoch = qc_enter(img, io->queue);
		ret = qc_read(img, io);
		qc_leave(img, io->queue, epoch);
		return ret;
	case UBD_WRITE:
	case UBD_DISCARD:
	case UBD_WRITE_ZEROES:
		if (!img->writable)
			return -EROFS;
		epoch = qc_enter(img, io->queue);
		ret = change(img, io);
		qc_leave(img, io->queue, epoch);
		if (ret >= 0 && io->flags & UBD_IO_FUA) {
			int err = qc_commit(img, io->queue);

			ret = err ? err : ret;
		}
		return ret;
	case UBD_FLUSH:
		return img->writable ? qc_commit(img, io->queue) : 0;
	case OP_JOB:
		return t->job ? run_job(t, io->queue) : -EOPNOTSUPP;
	default:
		return -EOPNOTSUPP;
	}
}

int qcow2_run_live(struct ubd_device *dev, const struct ubd_qcow2_job *job)
{
	struct qcow2 *t;
	int ret;

	pthread_mutex_lock(&open_lock);
	for (t = all_open; t && t->dev != dev; t = t->next)
		;
	pthread_mutex_unlock(&open_lock);
	if (!t)
		return -EOPNOTSUPP;
	t->job = job;
	ret = ubd_local_io(dev, 0, (enum ubd_op)OP_JOB, 0, 0, NULL, 0);
	t->job = NULL;
	return ret;
}

static const struct ubd_option qcow2_options[] = {
	{"file", UBD_PATH, offsetof(struct qcow2, file), "image", .required = true,
	 .positional = true, .letter = 'f'},
	{"snapshot", UBD_STRING, offsetof(struct qcow2, snapshot),
	 "serve this internal snapshot, read-only", "NAME"},
	{"cache", UBD_SIZE, offsetof(struct qcow2, cache), "memory for the image's metadata",
	 .fallback = "32M", .min = 1 << 20},
	{"direct", UBD_CHOICE, offsetof(struct qcow2, direct),
	 "go past the page cache (O_DIRECT); auto: where that works", .fallback = "auto",
	 .choices = "auto|on|off"},
	{"data-file", UBD_PATH, offsetof(struct qcow2, data_file),
	 "the image's data file, instead of the one it names"},
	{"journal", UBD_STRING, offsetof(struct qcow2, journal),
	 "directory in memory for what must survive a killed server, or off", "DIR"},
	{"repair", UBD_BOOL, offsetof(struct qcow2, repair),
	 "open an image marked as corrupt, after rebuilding its refcounts"},
	{0},
};

const struct ubd_target target_qcow2 = {
	.api = UBD_TARGET_API,
	.name = "qcow2",
	.summary = "a qcow2 image, with all it stands on",
	.options = qcow2_options,
	.size = sizeof(struct qcow2),
	.open = qcow2_open,
	.close = qcow2_close,
	.handle = qcow2_handle,
};
