/* SPDX-License-Identifier: MIT */
/* Opening an image with all that it stands on, and closing it in good order. */
#define _GNU_SOURCE
#include "qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
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

static void image_free(struct qc_image *img)
{
	if (!img)
		return;
	image_free(img->backing);
	qc_journal_close(img, false);
	qc_cache_free(img);
	qc_file_close(&img->data_file);
	qc_file_close(&img->file);
	free(img->freed.items);
	free(img->limbo.items);
	free(img->leaving.items);
	free(img->packed_data);
	free(img->header);
	free(img->backing_name);
	free(img->backing_format);
	free(img->data_name);
	pthread_mutex_destroy(&img->lock);
	free(img);
}

static int open_file(struct qc_file *f, struct ubd_device *dev, const char *path, bool writable,
		     bool raw, const struct qc_options *o)
{
	struct backing_request want = {
		.path = path, .direct = (enum backing_direct)o->direct, .read_only = !writable};
	struct stat st;

	/* A raw image's last sector may be cut short: only the page cache can read that. */
	if (raw && !stat(path, &st) && S_ISREG(st.st_mode) && st.st_size % 512)
		want.direct = BACKING_DIRECT_OFF;
	return qc_file_open(f, dev, &want);
}

static int open_data_file(struct qc_image *img, const struct qc_options *o)
{
	const char *name = o->data_file ? o->data_file : img->data_name;
	char *path;
	int ret;

	img->data = &img->file;
	if (!img->external)
		return 0;
	if (!name)
		return qc_fail(img, -EINVAL,
			       " needs a data file and does not name it: give it with --data-file");
	path = o->data_file ? strdup(name) : resolve(img->file.path, name);
	if (!path)
		return -ENOMEM;
	ret = open_file(&img->data_file, img->dev, path, img->writable, false, o);
	free(path);
	img->data = &img->data_file;
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
	} else if (!s->size || s->size > MAX_DISK ||
		   !qc_l1_fits(img, s->l1_offset, s->l1_entries, s->size)) {
		ret = qc_fail(img, -EINVAL, ": its snapshot '%s' is damaged", name);
	} else {
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
	img->end_at_open = atomic_load(&img->file.end);
	if (img->incompatible & INCOMPAT_CORRUPT && !o->repair)
		return qc_fail(img, -EIO,
			       " is marked as corrupt: open it with --read-only, or repair it with "
			       "qemu-img check -r all");
	if (img->version < 3 && o->journal)
		img->commit_first = true; /* nothing in the header could vouch for a journal */
	else if (o->journal)
		ret = qc_journal_open(img, o->journal);
	untidy = !ret &&
		 (img->nr_patches || img->incompatible & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT));
	if (untidy)
		ubd_device_notice(
			img->dev, "%s was not closed in order: rebuilding its refcounts%s",
			img->file.path,
			img->nr_patches ? ", doing again what its server had not written" : "");
	if (!ret && (untidy || qc_table_is_small(img))) {
		ret = qc_remake(img, NULL, img->size, NULL, NULL);
		if (ret)
			ubd_device_fail(img->dev, ret, "cannot repair %s: %s", img->file.path,
					strerror(-ret));
	}
	return ret;
}

static int open_qcow2(struct qc_image *img, const struct qc_options *o)
{
	return qc_header_read(img)
		       ?: qc_cache_init(img, o->cache_bytes)
		       ?: open_data_file(img, o)
		       ?: o->snapshot ? select_snapshot(img, o->snapshot) : 0;
}

/* ---- The chain ----------------------------------------------------------------------------- */

/* The image at path is to come under those from `top` on: not itself once more, nor too many. */
static int check_loop(const struct qc_image *top, struct ubd_device *dev, const char *path)
{
	struct stat st, seen;
	unsigned depth = 0;

	if (stat(path, &st) < 0)
		return ubd_device_fail(dev, -errno, "cannot open %s: %s", path, strerror(errno));
	for (; top; top = top->backing, depth++)
		if (!fstat(top->file.b.fd, &seen) && seen.st_dev == st.st_dev &&
		    seen.st_ino == st.st_ino)
			return ubd_device_fail(
				dev, -ELOOP,
				"%s is its own backing file, directly or through others", path);
	if (depth == MAX_CHAIN)
		return ubd_device_fail(dev, -ELOOP, "%s: more than %u images stand on one another",
				       path, MAX_CHAIN);
	return 0;
}

static int open_one(struct qc_image **out, struct ubd_device *dev, const char *path,
		    const char *format, bool writable, const struct qc_options *o)
{
	uint8_t first[4096] __attribute__((aligned(4096)));
	struct qc_image *img = calloc(1, sizeof(*img));
	bool qcow2 = format && !strcmp(format, "qcow2");
	int ret;

	if (!img)
		return -ENOMEM;
	pthread_mutex_init(&img->lock, NULL);
	img->dev = dev;
	img->writable = writable;
	img->data = &img->file;
	img->file.b.fd = img->data_file.b.fd = -1;
	*out = img;
	ret = open_file(&img->file, dev, path, writable, !qcow2, o);
	if (!ret && !format) {
		ret = qc_file_read(&img->file, NULL, first, sizeof(first), 0);
		qcow2 = get32(first) == QCOW2_MAGIC;
	}
	if (ret)
		return ret;
	if (qcow2)
		return open_qcow2(img, o);
	img->raw = true;
	img->size = atomic_load(&img->file.end);
	return 0;
}

static int open_below(struct qc_image *top, struct qc_image *img, const struct qc_options *o)
{
	static const char *const formats[] = {"qcow2", "raw", "host_device", "file"};
	const char *format = img->backing_format;
	bool known = !format;
	char *path;
	int ret;

	if (is_protocol(img->backing_name))
		return qc_fail(img, -EOPNOTSUPP,
			       " stands on '%s', which is not a file or block device",
			       img->backing_name);
	for (unsigned i = 0; i < sizeof(formats) / sizeof(*formats) && !known; i++)
		known = !strcmp(format, formats[i]);
	if (!known)
		return qc_fail(img, -EOPNOTSUPP,
			       " stands on %s, of format '%s': only qcow2 and raw are supported",
			       img->backing_name, format);
	path = resolve(img->file.path, img->backing_name);
	if (!path)
		return -ENOMEM;
	ret = check_loop(top, img->dev, path);
	if (!ret)
		ret = open_one(&img->backing, img->dev, path, format, false,
			       &(struct qc_options){.direct = o->direct});
	free(path);
	return ret;
}

int qc_image_open(struct qc_image **out, struct ubd_device *dev, const char *path, bool writable,
		  const struct qc_options *options)
{
	struct qc_image *top = NULL;
	int ret = open_one(&top, dev, path, "qcow2", writable, options);

	for (struct qc_image *img = top; !ret && img->backing_name; img = img->backing)
		ret = open_below(top, img, options);
	if (!ret && writable)
		ret = make_writable(top, options);
	if (ret) {
		ubd_device_fail(dev, ret, "cannot open %s: %s", path, strerror(-ret));
		image_free(top);
		return ret;
	}
	*out = top;
	return 0;
}

/* ---- Closing ------------------------------------------------------------------------------- */

/* The file's end may have been moved out in advance: back to the last cluster in use. */
static int trim(struct qc_image *img)
{
	uint64_t end = clusters_for(img, atomic_load(&img->file.end)), count = 0;
	int ret = 0;

	if (img->file.b.is_block)
		return 0;
	while (!ret && end << img->cluster_bits > img->end_at_open) {

		QC_TRANSACTION(img, NULL, ret, qc_ref_get(img, tx, end - 1, &count));
		if (count)
			break;
		end--;
	}
	if (ret || end << img->cluster_bits >= atomic_load(&img->file.end))
		return ret;
	return qc_file_truncate(&img->file, MAX(end << img->cluster_bits, img->end_at_open));
}

static int close_in_order(struct qc_image *img)
{
	int ret = 0;

	/* The first writes the mappings, the others the refcounts of what that made free. */
	for (int i = 0; i < 3 && !ret; i++)
		ret = qc_commit(img, NULL);
	if (!ret && img->marked && !img->broken)
		ret = trim(img);
	if (!ret && img->marked) {
		if (img->broken && img->version > 2)
			img->incompatible |= INCOMPAT_CORRUPT;
		else
			img->incompatible &= ~INCOMPAT_DIRTY;
		qc_header_fill(img, img->header);
		ret = qc_file_write(&img->file, NULL, img->header, page_size(img), 0);
	}
	return ret ? ret : qc_file_sync(&img->file, NULL);
}

void qc_image_close(struct qc_image *img)
{
	int ret = img->writable ? close_in_order(img) : 0;

	if (ret)
		ubd_device_notice(img->dev,
				  "cannot finish writing %s: %s; it is repaired when it is "
				  "opened again",
				  img->file.path, strerror(-ret));
	qc_journal_close(img, !ret);
	image_free(img);
}
