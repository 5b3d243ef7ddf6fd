/* SPDX-License-Identifier: MIT */
/* An image's header: reading it with suspicion, and the few changes made to it. */
#define _GNU_SOURCE
#include "qcow2.h"

int qc_damaged(struct qc_image *img, const char *what, uint64_t where)
{
	if (!atomic_exchange(&img->broken, true))
		ubd_device_notice(img->dev,
				  "%s is damaged: %s at %llu cannot be right; see qemu-img check",
				  img->file.path, what, (unsigned long long)where);
	return -EIO;
}

/* What the header says of this cannot be. */
static int bad(struct qc_image *img, const char *what, unsigned long long value)
{
	return qc_fail(img, -EINVAL, ": the header is damaged: %s of %llu", what, value);
}

static int unknown(struct qc_image *img, const char *what, unsigned long long value)
{
	return qc_fail(img, -EINVAL, ": %s %#llx is not known to this version", what, value);
}

/* ---- Fields -------------------------------------------------------------------------------- */

void qc_header_take(struct qc_image *img, const uint8_t *h)
{
	img->size = get64(h + HDR_SIZE);
	img->l1_entries = get32(h + HDR_L1_ENTRIES);
	img->l1_offset = get64(h + HDR_L1_OFFSET);
	img->rt_offset = get64(h + HDR_RT_OFFSET);
	img->rt_clusters = get32(h + HDR_RT_CLUSTERS);
	img->nr_snapshots = get32(h + HDR_SNAPSHOTS);
	img->snapshots_offset = get64(h + HDR_SNAPSHOTS_OFFSET);
	img->incompatible = img->version == 2 ? 0 : get64(h + HDR_INCOMPATIBLE);
	img->autoclear = img->version == 2 ? 0 : get64(h + HDR_AUTOCLEAR);
}

static int read_v3_fields(struct qc_image *img, const uint8_t *h)
{
	uint32_t order = get32(h + HDR_REFCOUNT_ORDER), length = get32(h + HDR_LENGTH);

	if (order > 6)
		return bad(img, "a refcount order", order);
	img->refcount_bits = 1u << order;
	if (length < QCOW2_V3_HEADER || length > cluster_size(img) || length % 8)
		return bad(img, "a length", length);
	if (img->incompatible & ~INCOMPAT_KNOWN)
		return unknown(img, "its feature", img->incompatible & ~INCOMPAT_KNOWN);
	if (length > HDR_COMPRESSION)
		img->compression = h[HDR_COMPRESSION];
	if (img->compression > 1)
		return unknown(img, "its compression type", img->compression);
	if (!(img->incompatible & INCOMPAT_COMPRESSION) != !img->compression)
		return bad(img, "a compression type", img->compression);
	if (img->incompatible & INCOMPAT_EXTENDED_L2 && img->cluster_bits < 14)
		return bad(img, "subclusters in a cluster", cluster_size(img));
	img->external = img->incompatible & INCOMPAT_DATA_FILE;
	img->data_raw = img->external && img->autoclear & AUTOCLEAR_RAW_DATA;
	return 0;
}

static int read_fields(struct qc_image *img, const uint8_t *h)
{
	bool extended;
	int ret;

	if (get32(h + HDR_MAGIC) != QCOW2_MAGIC)
		return qc_fail(img, -EINVAL, " is not a qcow2 image");
	img->version = get32(h + HDR_VERSION);
	if (img->version != 2 && img->version != 3)
		return unknown(img, "its version", img->version);
	img->cluster_bits = get32(h + HDR_CLUSTER_BITS);
	if (img->cluster_bits < 9 || img->cluster_bits > 21)
		return bad(img, "a binary logarithm of cluster sizes", img->cluster_bits);
	if (get32(h + HDR_CRYPT))
		return qc_fail(img, -EINVAL,
			       " is encrypted: encrypted images are not supported; decrypt it with "
			       "qemu-img convert");
	qc_header_take(img, h);
	img->refcount_bits = 16;
	ret = img->version == 2 ? 0 : read_v3_fields(img, h);
	extended = img->incompatible & INCOMPAT_EXTENDED_L2;
	img->units = extended ? 32 : 1;
	img->all_units = extended ? UINT32_MAX : 1;
	img->unit_bits = img->cluster_bits - (extended ? 5 : 0);
	img->entry_size = extended ? 16 : 8;
	img->l2_bits = img->cluster_bits - (extended ? 4 : 3);
	img->block_bits = img->cluster_bits + 3 - (unsigned)__builtin_ctz(img->refcount_bits);
	return ret;
}

/* A table of `len` bytes at pos: whole clusters, in the file, not the header. */
static bool table_fits(const struct qc_image *img, uint64_t pos, uint64_t len)
{
	uint64_t end = atomic_load(&img->file.end);

	/* The last cluster of a file may be cut short. */
	return !in_cluster(img, pos) && pos >= cluster_size(img) && pos < end &&
	       len <= end - pos + cluster_size(img);
}

bool qc_l1_fits(const struct qc_image *img, uint64_t pos, uint32_t entries, uint64_t size)
{
	unsigned shift = img->cluster_bits + img->l2_bits;

	return entries <= MAX_L1_BYTES / 8 && (size - 1) >> shift < entries &&
	       table_fits(img, pos, entries * 8ull);
}

static int check_tables(struct qc_image *img)
{
	uint64_t rt = (uint64_t)img->rt_clusters << img->cluster_bits;

	if (!img->size || img->size > MAX_DISK)
		return bad(img, "a disk's size", img->size);
	if (!qc_l1_fits(img, img->l1_offset, img->l1_entries, img->size))
		return bad(img, "an L1 table's place or its entries", img->l1_entries);
	if (!rt || rt > MAX(MAX_RT_BYTES, cluster_size(img)) ||
	    !table_fits(img, img->rt_offset, rt))
		return bad(img, "a refcount table's place or its clusters", img->rt_clusters);
	if (img->nr_snapshots &&
	    (img->nr_snapshots > MAX_SNAPSHOTS || img->external ||
	     !table_fits(img, img->snapshots_offset, (uint64_t)img->nr_snapshots * SNAP_FIXED)))
		return bad(img, "a snapshot table's place or its entries", img->nr_snapshots);
	/* No write to one table may change another. */
	if (img->rt_offset < img->l1_offset + img->l1_entries * 8ull &&
	    img->l1_offset < img->rt_offset + rt)
		return bad(img, "a refcount table in others, at", img->rt_offset);
	return 0;
}

/* ---- Names --------------------------------------------------------------------------------- */

static int keep_name(struct qc_image *img, char **where, const uint8_t *from, uint64_t len)
{
	if (*where || len > MAX_NAME || memchr(from, 0, len))
		return bad(img, "a file name's length", len);
	*where = strndup((const char *)from, len);
	return *where ? 0 : -ENOMEM;
}

/* Header extensions in [at, end) of the first cluster. */
static int read_extensions(struct qc_image *img, const uint8_t *h, uint64_t at, uint64_t end)
{
	uint32_t len;
	int ret = 0;

	for (; !ret && at + 8 <= end && get32(h + at) != EXT_END;
	     at += 8 + ((len + 7ull) & ~7ull)) {
		len = get32(h + at + 4);
		if (len > end - at - 8)
			return bad(img, "an extension's length", len);
		if (get32(h + at) == EXT_BACKING_FORMAT)
			ret = keep_name(img, &img->backing_format, h + at + 8, len);
		else if (get32(h + at) == EXT_DATA_FILE)
			ret = keep_name(img, &img->data_name, h + at + 8, len);
	}
	return ret;
}

static int read_names(struct qc_image *img, const uint8_t *h)
{
	uint64_t pos = get64(h + HDR_BACKING_OFFSET), len = get32(h + HDR_BACKING_LENGTH);
	uint64_t end = pos ? MIN(pos, cluster_size(img)) : cluster_size(img);
	uint32_t length = img->version == 2 ? QCOW2_V2_HEADER : get32(h + HDR_LENGTH);
	int ret = read_extensions(img, h, length, end);

	if (ret || !pos || !len)
		return ret;
	if (len > MAX_NAME || pos > cluster_size(img) || len > cluster_size(img) - pos)
		return bad(img, "a backing file's name, length", len);
	if (img->data_raw)
		return bad(img, "a backing file beside a raw data file, its name's length", len);
	return keep_name(img, &img->backing_name, h + pos, len);
}

/* ---- The whole ----------------------------------------------------------------------------- */

int qc_header_load(struct qc_image *img, uint64_t len)
{
	free(img->header);
	img->header = qc_buffer(len);
	return img->header ? qc_file_read(&img->file, NULL, img->header, len, 0) : -ENOMEM;
}

int qc_header_read(struct qc_image *img)
{
	return read_fields(img, img->header)
		       ?: check_tables(img)
		       ?: qc_header_load(img, cluster_size(img))
		       ?: read_names(img, img->header);
}

int qc_header_claim(struct qc_image *img, struct ubd_queue *q, uint64_t more)
{
	if (img->version > 2) {
		img->incompatible |= more;
		/* What we do not know, we do not keep up to date. */
		img->autoclear &= img->data_raw ? AUTOCLEAR_RAW_DATA : 0;
		put64(img->header + HDR_INCOMPATIBLE, img->incompatible);
		put64(img->header + HDR_AUTOCLEAR, img->autoclear);
	}
	return qc_file_write(&img->file, q, img->header, page_size(img), 0)
		       ?: qc_file_sync(&img->file, q);
}

int qc_header_mark(struct qc_image *img, struct ubd_queue *q)
{
	int ret = 0;

	if (atomic_load_explicit(&img->marked, memory_order_acquire))
		return 0;
	ubd_mutex_lock(q, &img->commit_lock);
	if (!atomic_load(&img->marked)) {
		ret = qc_header_claim(img, q, INCOMPAT_DIRTY);
		atomic_store(&img->marked, !ret);
	}
	ubd_mutex_unlock(q, &img->commit_lock);
	return ret;
}
