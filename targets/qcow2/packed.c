/* SPDX-License-Identifier: MIT */
/* Compressed clusters: reading them from the file and unpacking, off the queue's thread. */
#include "qcow2.h"

#include <zlib.h>
#include <zstd.h>

/* What follows a stream in its last sector may belong to another. */
struct unpack {
	const uint8_t *from;
	uint8_t *to;
	uint64_t from_len, to_len;
};

static int unpack_zlib(void *arg)
{
	const struct unpack *u = arg;
	z_stream z = {
		.next_in = (uint8_t *)(uintptr_t)u->from,
		.avail_in = (uInt)u->from_len,
		.next_out = u->to,
		.avail_out = (uInt)u->to_len,
	};
	int ret;

	if (inflateInit2(&z, -12) != Z_OK)
		return -ENOMEM;
	ret = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && !z.avail_out ? 0 : -EIO;
}

static int unpack_zstd(void *arg)
{
	const struct unpack *u = arg;
	size_t frame = ZSTD_findFrameCompressedSize(u->from, u->from_len);

	if (ZSTD_isError(frame))
		return -EIO;
	return ZSTD_decompress(u->to, u->to_len, u->from, frame) == u->to_len ? 0 : -EIO;
}

static int read_and_unpack(struct qc_image *img, struct ubd_queue *q, uint64_t word, uint8_t *to)
{
	int (*unpack)(void *) = img->compression ? unpack_zstd : unpack_zlib;
	struct unpack u = {.to = to, .to_len = cluster_size(img)};
	uint64_t pos, in_sector;
	uint8_t *raw;
	int ret;

	qc_packed_range(img, word, &pos, &u.from_len);
	in_sector = pos % 512; /* it ends with a whole one */
	if (pos >= atomic_load(&img->file.end) || qc_is_metadata(img, pos, 1))
		return qc_damaged(img, "a compressed cluster's place", pos);
	raw = qc_buffer(in_sector + u.from_len);
	if (!raw)
		return -ENOMEM;
	u.from = raw + in_sector;
	ret = qc_file_read(&img->file, q, raw, in_sector + u.from_len, pos - in_sector);
	ret = ret ?: q ? ubd_offload(q, unpack, &u) : unpack(&u);
	free(raw);
	return ret;
}

int qc_packed_read(struct qc_image *img, struct ubd_queue *q, uint64_t word, uint64_t at, void *buf,
		   uint64_t len)
{
	uint8_t *data, *old;
	uint64_t seen;
	bool hit;
	int ret;

	/* The neighbour of what was read last is likely to be read next: one cluster is kept. */
	pthread_mutex_lock(&img->lock);
	seen = img->packed_seen;
	hit = img->packed_data && img->packed_word == word && img->packed_at == seen;
	if (hit)
		memcpy(buf, img->packed_data + at, len);
	pthread_mutex_unlock(&img->lock);
	if (hit)
		return 0;
	data = malloc(cluster_size(img));
	ret = data ? read_and_unpack(img, q, word, data) : -ENOMEM;
	if (!ret) {
		memcpy(buf, data + at, len);
		pthread_mutex_lock(&img->lock);
		old = img->packed_data;
		img->packed_data = data;
		img->packed_word = word;
		img->packed_at = seen;
		pthread_mutex_unlock(&img->lock);
		data = old;
	}
	free(data);
	return ret;
}
