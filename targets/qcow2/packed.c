/* SPDX-License-Identifier: MIT */
/* Compressed clusters: reading them from the file and unpacking, off the queue's thread. */
#include "qcow2.h"

#include <errno.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

/* A stream may ask for a window of its own choice; a cluster needs no more than its size. */
#define ZSTD_WINDOW_LOG 23

struct unpack {
	const uint8_t *from;
	uint8_t *to;
	size_t from_len, to_len;
	bool zstd;
};

static int unpack_zlib(const struct unpack *u)
{
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

static int unpack_zstd(const struct unpack *u)
{
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

static int unpack(void *arg)
{
	const struct unpack *u = arg;

	return u->zstd ? unpack_zstd(u) : unpack_zlib(u);
}

/* The neighbour of what was read last is likely to be read next: keep one cluster. */
static bool from_memory(struct qc_image *img, uint64_t word, uint64_t at, void *buf, uint64_t len,
			uint64_t *seen)
{
	bool hit;

	pthread_mutex_lock(&img->lock);
	*seen = img->packed_seen;
	hit = img->packed_data && img->packed_word == word && img->packed_at == *seen;
	if (hit)
		memcpy(buf, img->packed_data + at, len);
	pthread_mutex_unlock(&img->lock);
	return hit;
}

/* Takes over `data`. */
static void keep(struct qc_image *img, uint64_t word, uint64_t seen, uint8_t *data)
{
	uint8_t *old;

	pthread_mutex_lock(&img->lock);
	old = img->packed_data;
	img->packed_data = data;
	img->packed_word = word;
	img->packed_at = seen;
	pthread_mutex_unlock(&img->lock);
	free(old);
}

static int read_and_unpack(struct qc_image *img, struct ubd_queue *q, uint64_t pos, uint64_t len,
			   uint8_t *to)
{
	/* Whole sectors, as direct I/O wants them. */
	uint64_t start = pos & ~511ull, end = (pos + len + 511) & ~511ull;
	struct unpack u = {.to = to, .to_len = cluster_size(img), .zstd = img->compression == 1};
	void *raw;
	int ret;

	if (pos >= atomic_load(&img->file.end) || qc_is_metadata(img, pos, 1))
		return qc_damaged(img, "a compressed cluster's place", pos);
	if (posix_memalign(&raw, 4096, end - start))
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
	uint64_t pos, packed, seen;
	uint8_t *data;
	int ret;

	if (from_memory(img, word, at, buf, len, &seen))
		return 0;
	qc_packed_range(img, word, &pos, &packed);
	data = malloc(cluster_size(img));
	if (!data)
		return -ENOMEM;
	ret = read_and_unpack(img, q, pos, packed, data);
	if (ret) {
		free(data);
		return ret;
	}
	memcpy(buf, data + at, len);
	keep(img, word, seen, data);
	return 0;
}
