/* SPDX-License-Identifier: MIT */
/* Compressed clusters: reading them from the file and unpacking, off the queue's thread. */
#include "qcow2.h"

#include <zlib.h>
#include <zstd.h>

/* A stream may ask for a window of its own choice; a cluster needs no more than its size. */
#define ZSTD_WINDOW_LOG 23

struct unpack {
	const uint8_t *from;
	uint8_t *to;
	size_t from_len, to_len;
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
	/* What follows the stream in its last sector may belong to another. */
	return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && !z.avail_out ? 0 : -EIO;
}

static int unpack_zstd(void *arg)
{
	const struct unpack *u = arg;
	ZSTD_DStream *z = ZSTD_createDStream();
	ZSTD_inBuffer in = {u->from, u->from_len, 0};
	ZSTD_outBuffer out = {u->to, u->to_len, 0};
	int ret = 0;

	if (!z)
		return -ENOMEM;
	ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG);
	while (out.pos < out.size && !ret) {
		size_t in_before = in.pos, out_before = out.pos;
		size_t left = ZSTD_decompressStream(z, &out, &in);

		/* An error, or no progress: the data ends too early. */
		if (ZSTD_isError(left) || (in.pos == in_before && out.pos == out_before))
			ret = -EIO;
	}
	ZSTD_freeDStream(z);
	return ret;
}

static int read_and_unpack(struct qc_image *img, struct ubd_queue *q, uint64_t word, uint8_t *to)
{
	uint64_t pos, len, start, end;
	struct unpack u = {.to = to, .to_len = cluster_size(img)};
	int (*unpack)(void *) = img->compression ? unpack_zstd : unpack_zlib;
	void *raw;
	int ret;

	qc_packed_range(img, word, &pos, &len);
	/* Whole sectors, as direct I/O wants them. */
	start = pos & ~511ull;
	end = (pos + len + 511) & ~511ull;
	if (pos >= atomic_load(&img->file.end) || qc_is_metadata(img, pos, 1))
		return qc_damaged(img, "a compressed cluster's place", pos);
	raw = qc_buffer(end - start);
	if (!raw)
		return -ENOMEM;
	ret = qc_file_read(&img->file, q, raw, end - start, start);
	if (!ret) {
		u.from = (uint8_t *)raw + (pos - start);
		u.from_len = len;
		ret = q ? ubd_offload(q, unpack, &u) : unpack(&u);
	}
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
	if (!data)
		return -ENOMEM;
	ret = read_and_unpack(img, q, word, data);
	if (ret) {
		free(data);
		return ret;
	}
	memcpy(buf, data + at, len);
	pthread_mutex_lock(&img->lock);
	old = img->packed_data;
	img->packed_data = data;
	img->packed_word = word;
	img->packed_at = seen;
	pthread_mutex_unlock(&img->lock);
	free(old);
	return 0;
}
