/* SPDX-License-Identifier: MIT */
/* READ: each stretch of the disk from where it lies. */
#include "qcow2.h"

#include <errno.h>
#include <stdlib.h>

#define MAX_PIECES 32

static int read_packed(struct ubd_io *io, uint32_t at, const struct qc_extent *x)
{
	void *buf = malloc(x->len);
	int ret;

	if (!buf)
		return -ENOMEM;
	ret = qc_packed_read(x->img, io->queue, x->word, x->at, buf, x->len);
	if (!ret)
		ret = ubd_io_put(io, at, buf, (uint32_t)x->len);
	free(buf);
	return MIN(ret, 0);
}

/* Pieces of the request gathered so far: to be read at once. */
struct pieces {
	struct ubd_transfer items[MAX_PIECES];
	unsigned count;
};

static int transfer(struct ubd_io *io, struct pieces *p, bool all)
{
	struct qc_file_op op = {.kind = QC_READ, .io = io};
	int ret = qc_file_hooks ? qc_file_hooks->before(&op) : 0;

	if (!ret)
		ret = all ? ubd_io_finish(io, p->items, p->count)
			  : ubd_io_transfer(io, p->items, p->count);
	p->count = 0;
	return MIN(ret, 0);
}

int qc_read(struct qc_image *img, struct ubd_io *io)
{
	struct pieces p = {.count = 0};
	bool first = true;
	uint32_t at = 0;
	int ret = 0;

	while (at < io->length && !ret) {
		struct qc_extent x;
		struct ubd_transfer *t = &p.items[p.count];

		ret = qc_find(img, io->queue, io->offset + at, io->length - at, &x);
		if (ret)
			break;
		if (x.kind == KIND_PACKED) {
			ret = read_packed(io, at, &x);
			first = false;
		} else {
			*t = (struct ubd_transfer){
				.where = UBD_ZEROES, .at = at, .len = (uint32_t)x.len};
			if (x.kind == KIND_DATA) {
				t->where = UBD_FILE;
				t->fd = x.img->data->b.fd;
				t->pos = x.host;
			}
			p.count++;
		}
		at += (uint32_t)x.len;
		if (!ret && (p.count == MAX_PIECES || (at == io->length && p.count))) {
			/* Not to be finished by the driver: it counts as long as it reads. */
			ret = transfer(io, &p, !img->writable && first && at == io->length);
			first = false;
		}
	}
	return ret ? ret : (int)io->length;
}

int qc_read_memory(struct qc_image *img, struct ubd_queue *q, uint64_t offset, void *buf,
		   uint64_t len)
{
	uint8_t *to = buf;

	while (len) {
		struct qc_extent x;
		int ret = qc_find(img, q, offset, len, &x);

		if (!ret && x.kind == KIND_ZERO)
			memset(to, 0, x.len);
		else if (!ret && x.kind == KIND_DATA)
			ret = qc_file_read(x.img->data, q, to, x.len, x.host);
		else if (!ret)
			ret = qc_packed_read(x.img, q, x.word, x.at, to, x.len);
		if (ret)
			return ret;
		to += x.len;
		offset += x.len;
		len -= x.len;
	}
	return 0;
}
