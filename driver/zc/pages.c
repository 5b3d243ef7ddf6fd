// SPDX-License-Identifier: GPL-2.0-only
/*
 * An iterator over a member's range of its request.
 */
#include <linux/bio.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include "../driver.h"

static unsigned int direction(const struct ublk_member *m)
{
	return ublk_member_fills(m) ? ITER_DEST : ITER_SOURCE;
}

/*
 * @len bytes, beginning @skip bytes into @bio, by the bio's own vectors: they live as long as
 * the request, so direct I/O may keep them until it ends.
 */
static void iter_in_bio(struct ublk_member *m, const struct bio *bio, u32 skip, u32 len)
{
	const struct bio_vec *first = __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter), *bv;
	u32 from = ublk_bvec_done(&bio->bi_iter) + skip, covered = 0;

	while (from >= first->bv_len)
		from -= first++->bv_len;
	for (bv = first; covered < from + len; bv++)
		covered += bv->bv_len;
	iov_iter_bvec(&m->iter, direction(m), first, bv - first, len);
	m->iter.iov_offset = from;
}

static unsigned int count_bvecs(struct request *rq, u32 at, u32 len)
{
	struct req_iterator it;
	struct bio_vec bv;
	unsigned int n = 0;
	u32 pos = 0;

	rq_for_each_bvec(bv, rq, it) {
		if (pos >= at + len)
			break;
		if (pos + bv.bv_len > at)
			n++;
		pos += bv.bv_len;
	}
	return n;
}

static void copy_bvecs(struct bio_vec *to, struct request *rq, u32 at, u32 len)
{
	struct req_iterator it;
	struct bio_vec bv;
	u32 pos = 0;

	rq_for_each_bvec(bv, rq, it) {
		u32 start = max(at, pos), end = min(at + len, pos + bv.bv_len);

		if (pos >= at + len)
			break;
		if (start < end)
			*to++ = (struct bio_vec){
				.bv_page = bv.bv_page,
				.bv_offset = bv.bv_offset + start - pos,
				.bv_len = end - start,
			};
		pos += bv.bv_len;
	}
}

/* A range over several bios: one array for all of it. False when there is no memory for it. */
static bool iter_over_bios(struct ublk_member *m, struct request *rq, u32 at, u32 len)
{
	unsigned int n = count_bvecs(rq, at, len);

	m->bvecs = kmalloc_array(n, sizeof(*m->bvecs), GFP_NOIO | __GFP_NOWARN);
	if (!m->bvecs)
		return false;
	copy_bvecs(m->bvecs, rq, at, len);
	iov_iter_bvec(&m->iter, direction(m), m->bvecs, n, len);
	return true;
}

/**
 * ublk_member_iter() - make the member's iterator cover what is left of it
 * @m: the member
 *
 * Covers less when memory is short, down to one bio's part: short I/O is continued.
 */
void ublk_member_iter(struct ublk_member *m)
{
	struct request *rq = m->group->slot->req;
	u32 at = m->at + m->done, len = m->len - m->done, skip = at;
	const struct bio *bio = rq->bio;

	kfree(m->bvecs);
	m->bvecs = NULL;
	while (skip >= bio->bi_iter.bi_size) {
		skip -= bio->bi_iter.bi_size;
		bio = bio->bi_next;
	}
	if (len <= bio->bi_iter.bi_size - skip || !iter_over_bios(m, rq, at, len))
		iter_in_bio(m, bio, skip, min(len, bio->bi_iter.bi_size - skip));
}
