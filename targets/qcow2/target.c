/* SPDX-License-Identifier: MIT */
/* qcow2: an image as a disk. Options, limits, requests. */
#include "qcow2.h"

#include "../targets.h"

struct qcow2 {
	const char *file;
	struct qc_options options;
	struct qc_image *img;
};

/* The directory that the option means; NULL: no journal. */
static const char *journal_dir(const char *option)
{
	const char *chosen = getenv("UBD_RUN_DIR");

	if (option && !strcmp(option, "off"))
		return NULL;
	return option ? option : chosen && *chosen ? chosen : "/run/ubd";
}

/* Sizes of odd bytes come from other tools: their last sector is filled up with zeroes. */
static uint64_t disk_size(const struct qc_image *img, const struct ubd_limits *l)
{
	return (img->size + l->logical_block - 1) / l->logical_block * l->logical_block;
}

static void set_limits(const struct qc_image *img, struct ubd_limits *l)
{
	const struct backing *b = &img->data->b;

	l->logical_block = MAX(512u, b->direct ? b->block : 512u);
	l->size = disk_size(img, l);
	l->physical_block = MAX(l->logical_block, MIN(1u << img->unit_bits, 4096u));
	l->rotational = b->rotational;
	l->read_only = !img->writable;
	l->volatile_cache = l->fua = img->writable;
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
	int ret;

	t->options.journal = journal_dir(t->options.journal);
	t->options.writable = !ubd_device_read_only(dev) && !t->options.snapshot;
	ret = qc_image_open(&t->img, dev, t->file, &t->options);
	if (!ret)
		set_limits(t->img, ubd_device_limits(dev));
	return ret;
}

static void qcow2_close(struct ubd_device *dev, void *self)
{
	(void)dev;
	qc_image_close(((struct qcow2 *)self)->img);
}

/* ---- Commands ------------------------------------------------------------------------------ */

static int list(struct qc_image *img, struct ubd_queue *q, struct ubd_status *out)
{
	struct qc_snapshots all;
	int ret = qc_snapshots_read(img, q, &all);

	for (unsigned i = 0; !ret && i < all.count; i++) {
		ubd_status_text(out, "id", "%s", all.items[i].id);
		ubd_status_text(out, "name", "%s", all.items[i].name);
		ubd_status_number(out, "size", all.items[i].size);
		ubd_status_number(out, "time", get32(all.items[i].raw + SNAP_SECONDS));
	}
	qc_snapshots_free(&all);
	return ret;
}

/* Nobody is inside, or the command only looks. */
static int run(struct qc_image *img, struct ubd_queue *q, const struct ubd_command *c)
{
	const char *verb = c->words[0], *job = c->count > 1 ? c->words[1] : "";
	bool snapshot = !strcmp(verb, "snapshot");
	/* What growing has failed midway is as it was told. */
	uint64_t size = MIN(img->size, ubd_device_limits(img->dev)->size);

	if (snapshot && c->count == 2 && !strcmp(job, "list"))
		return list(img, q, c->answer);
	if (!img->writable)
		return qc_fail(img, -EROFS, " is open read-only");
	if (snapshot && c->count == 3 &&
	    (!strcmp(job, "create") || !strcmp(job, "delete") || !strcmp(job, "apply")))
		return qc_remake(img, q, size, job, c->words[2]);
	if (!strcmp(verb, "resize") && c->count == 2 && !ubd_size_parse(job, &size))
		return qc_resize(img, q, size);
	if (!strcmp(verb, "repair") && c->count == 1)
		return qc_remake(img, q, size, NULL, NULL);
	return ubd_device_fail(img->dev, -EOPNOTSUPP, "qcow2 has no command '%s %s'", verb, job);
}

static int qcow2_command(struct ubd_queue *q, void *self, const struct ubd_command *c)
{
	struct qc_image *img = ((struct qcow2 *)self)->img;
	uint64_t size, told = ubd_device_limits(img->dev)->size;
	int ret;

	qc_pause(img, q);
	ret = run(img, q, c);
	size = disk_size(img, ubd_device_limits(img->dev));
	/* Also what an earlier attempt did not get to tell, and what is cut off whatever failed. */
	if (size < told || (size > told && !ret))
		ret = ubd_device_resize(q, size) ?: ret;
	qc_resume(img, q);
	return ret;
}

/* ---- Requests ------------------------------------------------------------------------------ */

static int change(struct qc_image *img, struct ubd_io *io)
{
	int ret = qc_header_mark(img, io->queue);

	if (ret)
		return ret;
	switch (io->op) {
	case UBD_WRITE:
		return qc_write_range(img, io->queue, io, io->offset, io->length)
			       ?: (int)io->length;
	case UBD_DISCARD:
		return qc_zero(img, io->queue, io->offset, io->length, ZERO_DISCARD);
	case UBD_WRITE_ZEROES:
		return qc_zero(img, io->queue, io->offset, io->length,
			       io->flags & UBD_IO_NO_UNMAP ? ZERO_KEEP : ZERO_UNMAP);
	default:
		return -EOPNOTSUPP;
	}
}

static int qcow2_handle(struct ubd_io *io, void *self)
{
	struct qc_image *img = ((struct qcow2 *)self)->img;
	int ret;

	if (io->op == UBD_FLUSH)
		return img->writable ? qc_commit(img, io->queue) : 0;
	/* What has been unmapped comes free when older requests have ended: on a full disk, this.
	 */
	for (int tries = 4;; qc_leave(img, io->queue, io->note)) {
		io->note = qc_enter(img, io->queue);
		/* Sent before the disk became smaller. */
		if (io->offset + io->length > disk_size(img, ubd_device_limits(img->dev)))
			return -EIO;
		if (io->op == UBD_READ)
			return qc_read(img, io);
		ret = img->writable ? change(img, io) : -EROFS;
		if (ret != -ENOSPC || !img->file.b.is_block || !--tries)
			break;
	}
	return ret < 0 || !(io->flags & UBD_IO_FUA) ? ret : qc_commit(img, io->queue) ?: ret;
}

static void qcow2_finished(struct ubd_io *io, void *self)
{
	struct qc_image *img = ((struct qcow2 *)self)->img;

	/* A write that the driver finished may have ended after the last sync began. */
	if (io->op == UBD_WRITE)
		atomic_store(&img->data->needs_sync, true);
	if (io->op != UBD_FLUSH)
		qc_leave(img, io->queue, io->note);
}

/* clang-format off */
#define AT(member) offsetof(struct qcow2, member)
static const struct ubd_option qcow2_options[] = {
	{"file", UBD_PATH, AT(file), "image", .required = true, .positional = true, .letter = 'f'},
	{"snapshot", UBD_STRING, AT(options.snapshot),
	 "serve this internal snapshot, read-only", "NAME"},
	{"cache", UBD_SIZE, AT(options.cache_bytes), "memory for the image's metadata",
	 .fallback = "32M", .min = 1 << 20},
	{"direct", UBD_CHOICE, AT(options.direct),
	 "go past the page cache (O_DIRECT); auto: where that works",
	 .fallback = "auto", .choices = "auto|on|off"},
	{"data-file", UBD_PATH, AT(options.data_file),
	 "the image's data file, instead of the one it names"},
	{"journal", UBD_STRING, AT(options.journal),
	 "directory in memory for what must survive a killed server, or off", "DIR"},
	{"repair", UBD_BOOL, AT(options.repair),
	 "open an image marked as corrupt, after rebuilding its refcounts"},
	{0},
};

const struct ubd_target target_qcow2 = {
	.api = UBD_TARGET_API, .name = "qcow2", .summary = "a qcow2 image, with all it stands on",
	.options = qcow2_options, .size = sizeof(struct qcow2), .open = qcow2_open,
	.close = qcow2_close, .handle = qcow2_handle, .finished = qcow2_finished, .command = qcow2_command,
};
