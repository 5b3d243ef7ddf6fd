/* SPDX-License-Identifier: MIT */
/* READ: each stretch of the disk from where it lies. */
#include "qcow2.h"

#define MAX_PIECES 32

static int read_packed(struct ubd_io *io, uint32_t at, const struct qc_extent *x)
{
	void *buf = malloc(x->len);
	int ret = buf ? qc_packed_read(x->img, io->queue, x->word, x->host, buf, x->len) : -ENOMEM;

	ret = ret ?: ubd_io_put(io, at, buf, (uint32_t)x->len);
	free(buf);
	return MIN(ret, 0);
}

int qc_read(struct qc_image *img, struct ubd_io *io)
{
	struct ubd_transfer pieces[MAX_PIECES]; /* gathered so far: to be read at once */
	const struct qc_file_op op = {.kind = QC_READ, .io = io};
	unsigned count = 0;
	struct qc_extent x;

	for (uint32_t at = 0; at < io->length; at += (uint32_t)x.len) {
		int ret = qc_find(img, io->queue, io->offset + at, io->length - at, &x);
		bool last;

		if (ret)
			return ret;
		last = at + x.len == io->length;
		if (x.kind == KIND_PACKED) {
			ret = read_packed(io, at, &x);
		} else {
			pieces[count++] = (struct ubd_transfer){
				.where = x.kind == KIND_DATA ? UBD_FILE : UBD_ZEROES,
				.fd = x.img->data->b.fd,
				.at = at,
				.len = (uint32_t)x.len,
				.pos = x.host};
		}
		if (!ret && count && (count == MAX_PIECES || last)) {
			ret = qc_file_hooks ? qc_file_hooks->before(&op) : 0;
			ret = ret ?: (last ? ubd_io_finish : ubd_io_transfer)(io, pieces, count);
			count = 0;
		}
		if (ret < 0)
			return ret;
	}
	return (int)io->length;
}

int qc_read_memory(struct qc_image *img, struct ubd_queue *q, uint64_t offset, void *buf,
		   uint64_t len)
{
	struct qc_extent x;

	for (uint8_t *to = buf; len; to += x.len, offset += x.len, len -= x.len) {
		int ret = qc_find(img, q, offset, len, &x);

		if (!ret && x.kind == KIND_ZERO)
			memset(to, 0, x.len);
		else if (!ret && x.kind == KIND_DATA)
			ret = qc_file_read(x.img->data, q, to, x.len, x.host);
		else if (!ret)
			ret = qc_packed_read(x.img, q, x.word, x.host, to, x.len);
		if (ret)
			return ret;
	}
	return 0;
}
