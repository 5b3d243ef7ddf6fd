// SPDX-License-Identifier: GPL-2.0-only
/*
 * Integrity metadata: its parameters, and moving it between requests and the server.
 */
#include <linux/blk-integrity.h>
#include <linux/highmem.h>
#include <linux/uio.h>
#include "driver.h"

#ifdef UBLK_HAVE_INTEGRITY

/* <linux/fs.h> has these from 6.17 on. */
#ifndef LBMD_PI_CSUM_NONE
#define LBMD_PI_CAP_INTEGRITY (1 << 0)
#define LBMD_PI_CAP_REFTAG (1 << 1)
#define LBMD_PI_CSUM_NONE 0
#define LBMD_PI_CSUM_IP 1
#define LBMD_PI_CSUM_CRC16_T10DIF 2
#define LBMD_PI_CSUM_CRC64_NVME 4
#endif

static int tuple_size(u8 csum)
{
	switch (csum) {
	case LBMD_PI_CSUM_NONE:
		return 0;
	case LBMD_PI_CSUM_IP:
	case LBMD_PI_CSUM_CRC16_T10DIF:
		return 8;
	case LBMD_PI_CSUM_CRC64_NVME:
		return 16;
	default:
		return -EINVAL;
	}
}

static enum blk_integrity_checksum checksum(u8 csum)
{
	switch (csum) {
	case LBMD_PI_CSUM_IP:
		return BLK_INTEGRITY_CSUM_IP;
	case LBMD_PI_CSUM_CRC16_T10DIF:
		return BLK_INTEGRITY_CSUM_CRC;
	case LBMD_PI_CSUM_CRC64_NVME:
		return BLK_INTEGRITY_CSUM_CRC64;
	default:
		return BLK_INTEGRITY_CSUM_NONE;
	}
}

/**
 * ublk_integrity_check() - check integrity parameters
 * @ub: the device
 * @all: its parameters; the basic ones are good
 *
 * Return: 0 or -EINVAL.
 */
int ublk_integrity_check(const struct ublk_device *ub, const struct ublk_params *all)
{
	const struct ublk_param_integrity *p = &all->integrity;
	int tuple = tuple_size(p->csum_type);

	if (!ublk_has(ub, UBLK_F_INTEGRITY) || tuple < 0)
		return -EINVAL;
	if (p->flags & ~(LBMD_PI_CAP_INTEGRITY | LBMD_PI_CAP_REFTAG))
		return -EINVAL;
	if (p->csum_type == LBMD_PI_CSUM_NONE && (p->flags & LBMD_PI_CAP_REFTAG))
		return -EINVAL;
	if (!p->metadata_size || p->pi_offset + tuple > p->metadata_size)
		return -EINVAL;
	if (p->interval_exp < SECTOR_SHIFT || p->interval_exp > all->basic.logical_bs_shift)
		return -EINVAL;
	return 0;
}

/**
 * ublk_integrity_limits() - what integrity parameters mean for the disk
 * @p: the parameters
 * @lim: filled in
 */
void ublk_integrity_limits(const struct ublk_param_integrity *p, struct ublk_limits *lim)
{
	struct blk_integrity *bi = &lim->integrity;

	lim->max_integrity_segments = p->max_integrity_segments ?: USHRT_MAX;
	if (p->flags & LBMD_PI_CAP_INTEGRITY)
		bi->flags |= BLK_INTEGRITY_DEVICE_CAPABLE;
	if (p->flags & LBMD_PI_CAP_REFTAG)
		bi->flags |= BLK_INTEGRITY_REF_TAG;
	bi->csum_type = checksum(p->csum_type);
	bi->pi_offset = p->pi_offset;
	bi->interval_exp = p->interval_exp;
	bi->tag_size = p->tag_size;
#ifdef UBLK_HAVE_PI_TUPLE_SIZE
	bi->flags |= BLK_SPLIT_INTERVAL_CAPABLE;
	bi->metadata_size = p->metadata_size;
	bi->pi_tuple_size = tuple_size(p->csum_type);
#else
	bi->tuple_size = p->metadata_size;
#endif
}

/**
 * ublk_integrity_bytes() - size of a request's metadata
 * @rq: the request
 *
 * Return: bytes.
 */
u32 ublk_integrity_bytes(struct request *rq)
{
	if (!blk_integrity_rq(rq))
		return 0;
	return bio_integrity_bytes(&rq->q->limits.integrity, blk_rq_sectors(rq));
}

/* Calls @copy for every piece from @off on, until it does less than the piece. */
static size_t for_each_piece(struct request *rq, size_t off, size_t most,
			     size_t (*copy)(const struct bio_vec *bv, void *arg), void *arg)
{
	size_t done = 0;
	struct bio *bio;

	__rq_for_each_bio(bio, rq) {
		struct bio_integrity_payload *bip = bio_integrity(bio);
		struct bvec_iter it;
		struct bio_vec bv;

		if (!bip)
			continue;
		bip_for_each_vec(bv, bip, it) {
			/* The loop goes on by what it finds in its own. */
			struct bio_vec piece = bv;
			size_t n;

			if (off >= bv.bv_len) {
				off -= bv.bv_len;
				continue;
			}
			piece.bv_offset += off;
			piece.bv_len = min_t(size_t, bv.bv_len - off, most - done);
			off = 0;
			n = copy(&piece, arg);
			done += n;
			if (n < piece.bv_len || done == most)
				return done;
		}
	}
	return done;
}

static size_t copy_piece(const struct bio_vec *bv, void *arg)
{
	struct iov_iter *iter = arg;

	if (iov_iter_rw(iter) == READ)
		return copy_page_to_iter(bv->bv_page, bv->bv_offset, bv->bv_len, iter);
	return copy_page_from_iter(bv->bv_page, bv->bv_offset, bv->bv_len, iter);
}

static size_t zero_piece(const struct bio_vec *bv, void *arg)
{
	memzero_page(bv->bv_page, bv->bv_offset, bv->bv_len);
	return bv->bv_len;
}

/**
 * ublk_integrity_copy() - copy between a request's metadata and an iterator
 * @rq: the request
 * @off: where in the metadata to begin
 * @iter: a source fills the metadata, a destination is filled from it
 *
 * Return: bytes copied.
 */
size_t ublk_integrity_copy(struct request *rq, size_t off, struct iov_iter *iter)
{
	return for_each_piece(rq, off, iov_iter_count(iter), copy_piece, iter);
}

/**
 * ublk_integrity_prepare() - before the server gets a request with metadata
 * @rq: the request
 *
 * What the server does not fill in of a read's must not show what the memory held before.
 */
void ublk_integrity_prepare(struct request *rq)
{
	if (req_op(rq) == REQ_OP_READ)
		for_each_piece(rq, 0, SIZE_MAX, zero_piece, NULL);
}

#endif
