/* SPDX-License-Identifier: MIT */
/* Opening an image with all that it stands on, and closing it in good order. */
#define _GNU_SOURCE
#include "qcow2.h"

#include <stdio.h>
#include <sys/stat.h>

/* ---- Names --------------------------------------------------------------------------------- */

/* A name in an image, as seen from the image's directory. NULL: out of memory. */
static char *resolve(const char *image, const char *name)
{
	const char *slash = strrchr(image, '/');
	int dir = slash ? (int)(slash + 1 - image) : 0;
	char *path;

	if (!strncmp(name, "file:", 5))
		name += 5;
	return asprintf(&path, "%.*s%s", *name == '/' ? 0 : dir, image, name) < 0 ? NULL : path;
}

/* "nbd://…", "json:…": QEMU's words for what is not a file. */
static bool is_protocol(const char *name)
{
	size_t word = strcspn(name, ":/");

	return name[word] == ':' && strncmp(name, "file:", 5) != 0;
}

/* ---- One image ----------------------------------------------------------------------------- */

/* clean: all is in the image. */
static void image_free(struct qc_image *img, bool clean)
{
	if (!img)
		return;
	image_free(img->backing, true);
	qc_journal_close(img, clean);
	qc_cache_drop(img);
	free(img->cache.hash);
	qc_file_close(&img->data_file);
	qc_file_close(&img->file);
	free(img->freed);
	free(img->packed_data);
	free(img->header);
	free(img->backing_name);
	free(img->backing_format);
	free(img->data_name);
	pthread_mutex_destroy(&img->lock);
	free(img);
}

static int open_data_file(struct qc_image *img, const struct qc_options *o)
{
	const char *name = o->data_file ? o->data_file : img->data_name;
	char *path;
	int ret;

	if (!img->external)
		return 0;
	img->data = &img->data_file;
	if (!name)
		return qc_fail(img, -EINVAL,
			       " needs a data file and does not name it: give it with --data-file");
	path = o->data_file ? strdup(name) : resolve(img->file.path, name);
	if (!path)
		return -ENOMEM;
	ret = qc_file_open(img->data, img->dev, path, o->direct, img->writable, !img->data_raw);
	free(path);
	return ret;
}

static int select_snapshot(struct qc_image *img, const char *name)
{
	struct qc_snapshots all;
	const struct qc_snapshot *s;
	int ret = qc_snapshots_read(img, NULL, &all);

	if (ret)
		return ret;
	s = qc_snapshot_find(&all, name);
	if (!s) {
		ret = qc_fail(img, -ENOENT, " has no snapshot '%s'", name);
	} else if (!(ret = qc_snapshot_check(img, s))) {
		img->l1_offset = s->l1_offset;
		img->l1_entries = s->l1_entries;
		img->size = s->size;
	}
	qc_snapshots_free(&all);
	return ret;
}

/* Ready to be written: what a dead server left is worked in, refcounts are right. */
static int make_writable(struct qc_image *img, const struct qc_options *o)
{
	bool untidy;
	int ret = 0;

	img->zero_from =
		img->file.b.is_block ? UINT64_MAX : clusters_for(img, atomic_load(&img->file.end));
	if (img->incompatible & INCOMPAT_CORRUPT && !o->repair)
		return qc_fail(img, -EIO,
			       " is marked as corrupt: open it with --read-only, or repair it with "
			       "qemu-img check -r all");
	/* In the header of version 2 nothing could vouch for a journal. */
	img->commit_first = o->journal && img->version < 3;
	if (o->journal && !img->commit_first)
		ret = qc_journal_open(img, o->journal);
	untidy = img->nr_patches || img->incompatible & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
	if (ret || (!untidy && !qc_table_is_small(img)))
		return ret;
	if (untidy)
		ubd_device_notice(img->dev, "%s was not closed in order: rebuilding refcounts%s",
				  img->file.path,
				  img->nr_patches ? ", mapping again what was not written" : "");
	ret = qc_remake(img, NULL, img->size, NULL, NULL);
	return ret ? qc_fail(img, ret, " cannot be repaired: %s", strerror(-ret)) : 0;
}

/* ---- The chain ----------------------------------------------------------------------------- */

/* The image at path is to come under those from `top` on: not itself once more, nor too many. */
static int check_loop(const struct qc_image *top, const char *path)
{
	struct ubd_device *dev = top->dev;
	struct stat st, seen;
	unsigned depth = 0;

	if (stat(path, &st) < 0)
		return ubd_device_fail(dev, -errno, "cannot open %s: %s", path, strerror(errno));
	for (; top; top = top->backing, depth++)
		if (!fstat(top->file.b.fd, &seen) && seen.st_dev == st.st_dev &&
		    seen.st_ino == st.st_ino)
			return qc_fail(top, -ELOOP,
				       " is its own backing file, directly or through others");
	if (depth == MAX_CHAIN)
		return ubd_device_fail(dev, -ELOOP, "%s: more than %u images stand on one another",
				       path, MAX_CHAIN);
	return 0;
}

static int open_one(struct qc_image **out, struct ubd_device *dev, const char *path,
		    const char *format, const struct qc_options *o)
{
	struct qc_image *img = calloc(1, sizeof(*img));
	bool qcow2 = format && !strcmp(format, "qcow2");
	int ret;

	if (!img)
		return -ENOMEM;
	pthread_mutex_init(&img->lock, NULL);
	img->dev = dev;
	img->writable = o->writable;
	img->data = &img->file;
	img->file.b.fd = img->data_file.b.fd = -1;
	*out = img;
	ret = qc_file_open(&img->file, dev, path, o->direct, o->writable, qcow2)
		      ?: qc_header_load(img, 4096);
	if (ret)
		return ret;
	if (qcow2 || (!format && get32(img->header) == QCOW2_MAGIC))
		return qc_header_read(img)
			       ?: qc_cache_init(img, o->cache_bytes)
			       ?: open_data_file(img, o)
			       ?: o->snapshot ? select_snapshot(img, o->snapshot) : 0;
	img->raw = true;
	img->size = atomic_load(&img->file.end);
	return 0;
}

static int open_below(struct qc_image *top, struct qc_image *img, const struct qc_options *o)
{
	const char *format = img->backing_format;
	char *path;
	int ret;

	if (is_protocol(img->backing_name))
		return qc_fail(img, -EOPNOTSUPP, " stands on '%s', not a file or block device",
			       img->backing_name);
	if (format && strcmp(format, "qcow2") && strcmp(format, "raw") &&
	    strcmp(format, "host_device") && strcmp(format, "file"))
		return qc_fail(img, -EOPNOTSUPP,
			       " stands on %s, of format '%s': only qcow2 and raw are supported",
			       img->backing_name, format);
	path = resolve(img->file.path, img->backing_name);
	if (!path)
		return -ENOMEM;
	ret = check_loop(top, path)
		      ?: open_one(&img->backing, img->dev, path, format,
				  &(struct qc_options){.direct = o->direct});
	free(path);
	return ret;
}

int qc_image_open(struct qc_image **out, struct ubd_device *dev, const char *path,
		  const struct qc_options *options)
{
	struct qc_image *top = NULL;
	int ret = open_one(&top, dev, path, "qcow2", options);

	for (struct qc_image *img = top; !ret && img->backing_name; img = img->backing)
		ret = open_below(top, img, options);
	ret = ret ?: options->writable ? make_writable(top, options) : 0;
	if (ret) {
		ubd_device_fail(dev, ret, "cannot open %s: %s", path, strerror(-ret));
		image_free(top, false);
		return ret;
	}
	*out = top;
	return 0;
}

/* ---- Closing ------------------------------------------------------------------------------- */

static int close_in_order(struct qc_image *img)
{
	uint64_t end = img->zero_from << img->cluster_bits;
	int ret = qc_commit_locked(img, NULL);

	/* That was the mappings; now the refcounts of what it made free, a part at a time. */
	while (!ret && img->cache.dirty)
		ret = qc_commit_locked(img, NULL);
	/* The file's end may have been moved out in advance: back to what has been allocated. */
	if (!ret && img->marked && !img->broken && end < atomic_load(&img->file.end))
		ret = qc_file_truncate(&img->file, NULL, end);
	if (!ret && img->marked && img->version > 2) {
		put64(img->header + HDR_INCOMPATIBLE,
		      img->broken ? img->incompatible | INCOMPAT_CORRUPT
				  : img->incompatible & ~INCOMPAT_DIRTY);
		ret = qc_file_write(&img->file, NULL, img->header, page_size(img), 0);
	}
	return ret ?: qc_file_sync(&img->file, NULL);
}

void qc_image_close(struct qc_image *img)
{
	int ret = img->writable ? close_in_order(img) : 0;

	if (ret)
		ubd_device_notice(img->dev,
				  "cannot finish writing %s: %s; opening it again repairs it",
				  img->file.path, strerror(-ret));
	image_free(img, !ret);
}
