/* SPDX-License-Identifier: MIT */
/* An image's header: reading it with suspicion, and the few changes made to it. */
#define _GNU_SOURCE
#include "qcow2.h"

#include <errno.h>
#include <stdlib.h>

#define BAD(img, ...) ubd_device_fail((img)->dev, -EINVAL, __VA_ARGS__)

int qc_damaged(struct qc_image *img, const char *what, uint64_t where)
{
	if (!atomic_exchange(&img->broken, true))
		ubd_device_notice(img->dev,
				  "%s is damaged: %s at %llu cannot be right; check the image with "
				  "qemu-img check",
				  img->file.path, what, (unsigned long long)where);
	return -EIO;
}

/* ---- Fields -------------------------------------------------------------------------------- */

static int read_v3_fields(struct qc_image *img, const uint8_t *h, uint32_t *length)
{
	uint32_t order;

	img->incompatible = get64(h + HDR_INCOMPATIBLE);
	img->compatible = get64(h + HDR_COMPATIBLE);
	img->autoclear = get64(h + HDR_AUTOCLEAR);
	order = get32(h + HDR_REFCOUNT_ORDER);
	*length = get32(h + HDR_LENGTH);
	if (order > 6)
		return BAD(img,
			   "%s: refcounts of 2^%u bits are not possible: the header is damaged",
			   img->file.path, order);
	img->refcount_bits = 1u << order;
	if (*length < QCOW2_V3_HEADER || *length > cluster_size(img) || *length % 8)
		return BAD(img, "%s: a header of %u bytes is not possible: it is damaged",
			   img->file.path, *length);
	if (img->incompatible & ~INCOMPAT_KNOWN)
		return BAD(img,
			   "%s needs features this version does not know (incompatible bits %#llx)",
			   img->file.path,
			   (unsigned long long)(img->incompatible & ~INCOMPAT_KNOWN));
	if (*length > HDR_COMPRESSION)
		img->compression = h[HDR_COMPRESSION];
	if (img->compression > 1 ||
	    !(img->incompatible & INCOMPAT_COMPRESSION) != !img->compression)
		return BAD(img,
			   "%s: its compression type %u is not known, or the header is damaged",
			   img->file.path, img->compression);
	if (img->incompatible & INCOMPAT_EXTENDED_L2) {
		if (img->cluster_bits < 14)
			return BAD(img,
				   "%s: clusters of %llu bytes cannot have subclusters: the "
				   "header is damaged",
				   img->file.path, (unsigned long long)cluster_size(img));
		img->units = 32;
		img->unit_bits = img->cluster_bits - 5;
	}
	img->external = img->incompatible & INCOMPAT_DATA_FILE;
	img->data_raw = img->external && img->autoclear & AUTOCLEAR_RAW_DATA;
	return 0;
}

static int read_fields(struct qc_image *img, const uint8_t *h, uint32_t *length)
{
	if (get32(h + HDR_MAGIC) != QCOW2_MAGIC)
		return BAD(img, "%s is not a qcow2 image", img->file.path);
	img->version = get32(h + HDR_VERSION);
	if (img->version != 2 && img->version != 3)
		return BAD(img, "%s: qcow2 version %u is not known (2 and 3 are)", img->file.path,
			   img->version);
	img->cluster_bits = get32(h + HDR_CLUSTER_BITS);
	if (img->cluster_bits < 9 || img->cluster_bits > 21)
		return BAD(img, "%s: clusters of 2^%u bytes are not supported (2^9 to 2^21 are)",
			   img->file.path, img->cluster_bits);
	if (get32(h + HDR_CRYPT))
		return BAD(img,
			   "%s is encrypted: encrypted images are not supported; decrypt it "
			   "with qemu-img convert",
			   img->file.path);
	img->size = get64(h + HDR_SIZE);
	img->l1_entries = get32(h + HDR_L1_ENTRIES);
	img->l1_offset = get64(h + HDR_L1_OFFSET);
	img->rt_offset = get64(h + HDR_RT_OFFSET);
	img->rt_clusters = get32(h + HDR_RT_CLUSTERS);
	img->nr_snapshots = get32(h + HDR_SNAPSHOTS);
	img->snapshots_offset = get64(h + HDR_SNAPSHOTS_OFFSET);
	img->units = 1;
	img->unit_bits = img->cluster_bits;
	img->refcount_bits = 16;
	*length = QCOW2_V2_HEADER;
	return img->version == 2 ? 0 : read_v3_fields(img, h, length);
}

/* A table of `len` bytes at pos: whole clusters, in the file, not the header. */
static bool table_fits(const struct qc_image *img, uint64_t pos, uint64_t len)
{
	uint64_t end = atomic_load(&img->file.end);

	/* The last cluster of a file may be cut short. */
	return !(pos & (cluster_size(img) - 1)) && pos >= cluster_size(img) && pos < end &&
	       len <= end - pos + cluster_size(img);
}

static int check_tables(struct qc_image *img)
{
	const char *path = img->file.path;
	unsigned shift = img->cluster_bits + l2_bits(img);
	uint64_t needed = (img->size >> shift) + !!(img->size & ((1ull << shift) - 1));
	uint64_t rt = (uint64_t)img->rt_clusters << img->cluster_bits;

	if (!img->size || img->size > INT64_MAX - (4ull << 20))
		return BAD(img, "%s: a disk of %llu bytes is not possible", path,
			   (unsigned long long)img->size);
	if (img->l1_entries > MAX_L1_BYTES / 8 || needed > img->l1_entries ||
	    !table_fits(img, img->l1_offset, (uint64_t)img->l1_entries * 8))
		return BAD(img,
			   "%s: its L1 table (%u entries at %llu) does not fit a disk of %llu "
			   "bytes: the header is damaged",
			   path, img->l1_entries, (unsigned long long)img->l1_offset,
			   (unsigned long long)img->size);
	if (!img->rt_clusters || rt > MAX(MAX_RT_BYTES, cluster_size(img)) ||
	    !table_fits(img, img->rt_offset, rt))
		return BAD(img,
			   "%s: its refcount table (%u clusters at %llu) is not possible: the "
			   "header is damaged",
			   path, img->rt_clusters, (unsigned long long)img->rt_offset);
	if (img->nr_snapshots > MAX_SNAPSHOTS ||
	    (img->nr_snapshots &&
	     !table_fits(img, img->snapshots_offset, (uint64_t)img->nr_snapshots * SNAP_FIXED)))
		return BAD(img,
			   "%s: its snapshot table (%u at %llu) is not possible: the header is "
			   "damaged",
			   path, img->nr_snapshots, (unsigned long long)img->snapshots_offset);
	if (img->external && img->nr_snapshots)
		return BAD(img,
			   "%s: an image with a data file cannot have snapshots: the header is "
			   "damaged",
			   path);
	if (qc_is_metadata(&(struct qc_image){.cluster_bits = img->cluster_bits,
					      .l1_offset = img->l1_offset,
					      .l1_entries = img->l1_entries},
			   img->rt_offset, rt))
		return BAD(img, "%s: its tables lie on one another: the header is damaged", path);
	return 0;
}

/* ---- Names --------------------------------------------------------------------------------- */

static int keep_name(struct qc_image *img, char **where, const uint8_t *from, uint64_t len)
{
	if (*where || len > MAX_NAME || memchr(from, 0, len))
		return BAD(img, "%s: a file name in its header is not possible: it is damaged",
			   img->file.path);
	*where = strndup((const char *)from, len);
	return *where ? 0 : ubd_device_fail(img->dev, -ENOMEM, "out of memory");
}

static int read_extensions(struct qc_image *img, const uint8_t *h, uint64_t at, uint64_t end)
{
	while (at + 8 <= end) {
		uint32_t type = get32(h + at), len = get32(h + at + 4);
		int ret = 0;

		if (type == EXT_END)
			return 0;
		at += 8;
		if (len > end - at)
			return BAD(img,
				   "%s: a header extension of %u bytes does not fit: the "
				   "header is damaged",
				   img->file.path, len);
		if (type == EXT_BACKING_FORMAT)
			ret = keep_name(img, &img->backing_format, h + at, len);
		else if (type == EXT_DATA_FILE)
			ret = keep_name(img, &img->data_name, h + at, len);
		if (ret)
			return ret;
		at += (len + 7ull) & ~7ull;
	}
	return 0;
}

static int read_names(struct qc_image *img, const uint8_t *h, uint32_t length)
{
	uint64_t pos = get64(h + HDR_BACKING_OFFSET), len = get32(h + HDR_BACKING_LENGTH);
	uint64_t end = pos ? MIN(pos, cluster_size(img)) : cluster_size(img);
	int ret = read_extensions(img, h, length, end);

	if (ret || !pos || !len)
		return ret;
	if (len > MAX_NAME || pos > cluster_size(img) || len > cluster_size(img) - pos)
		return BAD(img, "%s: its backing file's name does not fit: the header is damaged",
			   img->file.path);
	return keep_name(img, &img->backing_name, h + pos, len);
}

/* ---- The whole ----------------------------------------------------------------------------- */

int qc_header_read(struct qc_image *img)
{
	uint8_t *first;
	uint32_t length = 0, page;
	int ret;

	if (posix_memalign((void **)&first, 4096, 1u << 21))
		return ubd_device_fail(img->dev, -ENOMEM, "out of memory");
	ret = qc_file_read(&img->file, NULL, first, 4096, 0);
	if (ret)
		ubd_device_fail(img->dev, ret, "cannot read %s: %s", img->file.path,
				strerror(-ret));
	if (!ret)
		ret = read_fields(img, first, &length);
	if (!ret && qc_file_read(&img->file, NULL, first, cluster_size(img), 0))
		ret = ubd_device_fail(img->dev, -EIO, "cannot read %s", img->file.path);
	if (!ret)
		ret = check_tables(img);
	if (!ret)
		ret = read_names(img, first, length);
	if (!ret && img->data_raw && img->backing_name)
		ret = BAD(img,
			  "%s: a raw data file and a backing file exclude one another: the "
			  "header is damaged",
			  img->file.path);
	page = ret ? 0 : 1u << MIN(img->cluster_bits, 12);
	if (!ret && posix_memalign((void **)&img->header, 4096, page))
		ret = ubd_device_fail(img->dev, -ENOMEM, "out of memory");
	if (!ret)
		memcpy(img->header, first, page);
	free(first);
	return ret;
}

void qc_header_fill(struct qc_image *img, uint8_t *h)
{
	put64(h + HDR_SIZE, img->size);
	put32(h + HDR_L1_ENTRIES, img->l1_entries);
	put64(h + HDR_L1_OFFSET, img->l1_offset);
	put64(h + HDR_RT_OFFSET, img->rt_offset);
	put32(h + HDR_RT_CLUSTERS, img->rt_clusters);
	put32(h + HDR_SNAPSHOTS, img->nr_snapshots);
	put64(h + HDR_SNAPSHOTS_OFFSET, img->snapshots_offset);
	if (img->version == 2)
		return;
	put64(h + HDR_INCOMPATIBLE, img->incompatible);
	put64(h + HDR_AUTOCLEAR, img->autoclear);
}

/* One page; what changes in it lies in its first sector, so it changes as one. */
int qc_header_write(struct qc_image *img, struct ubd_queue *q, const uint8_t *header)
{
	return qc_file_write(&img->file, q, header, page_size(img), 0);
}

int qc_header_mark(struct qc_image *img, struct ubd_queue *q)
{
	int ret = 0;

	if (atomic_load_explicit(&img->marked, memory_order_acquire))
		return 0;
	if (q)
		ubd_mutex_lock(q, &img->mark_lock);
	if (!atomic_load(&img->marked)) {
		pthread_mutex_lock(&img->lock);
		img->incompatible |= img->version > 2 ? INCOMPAT_DIRTY : 0;
		/* What we do not know, we do not keep up to date. */
		img->autoclear &= img->data_raw ? AUTOCLEAR_RAW_DATA : 0;
		qc_header_fill(img, img->header);
		pthread_mutex_unlock(&img->lock);
		ret = qc_header_write(img, q, img->header);
		atomic_store(&img->marked, !ret);
	}
	if (q)
		ubd_mutex_unlock(q, &img->mark_lock);
	return ret;
}
