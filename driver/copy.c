// SPDX-License-Identifier: GPL-2.0-only
/*
 * Moving bytes between a request's pages and user memory, in the server's task.
 */
#include <linux/bio.h>
#include <linux/highmem.h>
#include <linux/uio.h>
#include "driver.h"

/* Pages that lie next to each other in one go, but those of high memory are mapped one by one. */
#ifdef CONFIG_HIGHMEM
#define rq_for_each_run rq_for_each_segment
#else
#define rq_for_each_run rq_for_each_bvec
#endif

/**
 * ublk_copy_data() - copy between a request's data and an iterator
 * @rq: the request
 * @off: where in the request's data to begin
 * @iter: a source fills the request, a destination is filled from it
 *
 * Return: bytes copied; fewer than there are when user memory could not be reached.
 */
size_t ublk_copy_data(struct request *rq, size_t off, struct iov_iter *iter)
{
	bool to_user = iov_iter_rw(iter) == READ;
	struct req_iterator it;
	struct bio_vec bv;
	size_t done = 0;

	rq_for_each_run(bv, rq, it) {
		size_t len = bv.bv_len, n;
		void *piece;

		if (off >= len) {
			off -= len;
			continue;
		}
		len = min(len - off, iov_iter_count(iter));
		piece = bvec_kmap_local(&bv);
		/* The checked ones want a piece to lie within one object; only its range counts. */
		if (to_user)
			n = _copy_to_iter(piece + off, len, iter);
		else
			n = _copy_from_iter(piece + off, len, iter);
		kunmap_local(piece);
		done += n;
		if (n < len || !iov_iter_count(iter))
			break;
		off = 0;
	}
	return done;
}

/**
 * ublk_copy_to_server() - a write's data into the server's buffer
 * @rq: the request
 * @addr: the buffer
 *
 * Return: true when all of it is there.
 */
bool ublk_copy_to_server(struct request *rq, u64 addr)
{
	u32 len = blk_rq_bytes(rq);
	struct iov_iter iter;

	iov_iter_ubuf(&iter, ITER_DEST, u64_to_user_ptr(addr), len);
	return ublk_copy_data(rq, 0, &iter) == len;
}

/**
 * ublk_copy_from_server() - the server's buffer into a read's pages
 * @rq: the request
 * @addr: the buffer
 * @len: bytes that the server filled, at most the request's
 *
 * Return: true when all of it is there.
 */
bool ublk_copy_from_server(struct request *rq, u64 addr, u32 len)
{
	struct iov_iter iter;

	iov_iter_ubuf(&iter, ITER_SOURCE, u64_to_user_ptr(addr), len);
	return ublk_copy_data(rq, 0, &iter) == len;
}

/**
 * ublk_zero_data() - zero part of a request's data
 * @rq: the request
 * @from: first byte
 * @to: byte after the last
 */
void ublk_zero_data(struct request *rq, u32 from, u32 to)
{
	struct req_iterator it;
	struct bio_vec bv;
	u32 pos = 0;

	rq_for_each_run(bv, rq, it) {
		u32 start = max(from, pos), end = min(to, pos + bv.bv_len);

		if (start < end) {
			void *piece = bvec_kmap_local(&bv);

			memset(piece + start - pos, 0, end - start);
			kunmap_local(piece);
		}
		pos += bv.bv_len;
		if (pos >= to)
			break;
	}
}
