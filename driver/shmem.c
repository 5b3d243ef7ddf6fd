// SPDX-License-Identifier: GPL-2.0-only
/*
 * UBLK_F_SHMEM_ZC: requests whose pages the server has mapped as well are not copied.
 *
 * REG_BUF pins a range of the server's memory and notes its page frames in a tree; a request
 * all of whose pages follow each other in one buffer is described by the buffer's index and the
 * offset in it. The tree is read under RCU by ublk_claim() and changed without stopping I/O: to
 * freeze the queue would wait for requests that a dead server will never answer. So a buffer may
 * go while requests lie in it, whose descriptors name it: it counts them, and until they have ended
 * its pages stay and its index is given to no other.
 */
#include <linux/idr.h>
#include <linux/maple_tree.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include "driver.h"

#define BUF_MAX_BYTES (1ULL << 32)

/**
 * struct ublk_shmem - a device's buffers
 * @lock: one change at a time
 * @frames: struct run by page frame number
 * @buffers: struct buffer by index
 * @free_work: frees those that nobody uses any more
 */
struct ublk_shmem {
	struct mutex lock;
	struct maple_tree frames;
	struct idr buffers;
	struct work_struct free_work;
};

/**
 * struct buffer - a registered range
 * @pages: its pages, @nr_pages of them
 * @nr_pages: see @pages
 * @users: requests that lie in it, and one more until UNREG_BUF
 * @flags: UBLK_SHMEM_BUF_*
 * @index: its index
 * @live: all of it is in the tree, and it is registered
 */
struct buffer {
	struct page **pages;
	unsigned long nr_pages;
	refcount_t users;
	u32 flags;
	u16 index;
	bool live;
};

/* Page frames that follow each other in memory and in the buffer. */
struct run {
	struct rcu_head rcu;
	unsigned long first_page; /* in the buffer */
	struct buffer *buf;
};

/* ---- the tree ---------------------------------------------------------------------------- */

static unsigned long run_length(const struct buffer *buf, unsigned long from)
{
	unsigned long pfn = page_to_pfn(buf->pages[from]), n = 1;

	while (from + n < buf->nr_pages && page_to_pfn(buf->pages[from + n]) == pfn + n)
		n++;
	return n;
}

/* Takes back the first @pages of a buffer. */
static void runs_erase(struct ublk_shmem *sh, const struct buffer *buf, unsigned long pages)
{
	unsigned long from, n;

	for (from = 0; from < pages; from += n) {
		struct run *run = mtree_erase(&sh->frames, page_to_pfn(buf->pages[from]));

		n = run_length(buf, from);
		kfree_rcu(run, rcu);
		cond_resched();
	}
}

static int runs_insert(struct ublk_shmem *sh, struct buffer *buf)
{
	unsigned long from, n;
	struct run *run;
	int ret;

	for (from = 0; from < buf->nr_pages; from += n) {
		unsigned long pfn = page_to_pfn(buf->pages[from]);

		n = run_length(buf, from);
		ret = -ENOMEM;
		run = kmalloc(sizeof(*run), GFP_KERNEL);
		if (!run)
			goto undo;
		run->first_page = from;
		run->buf = buf;
		ret = mtree_insert_range(&sh->frames, pfn, pfn + n - 1, run, GFP_KERNEL);
		if (ret) {
			kfree(run);
			goto undo;
		}
		cond_resched();
	}
	return 0;

undo:
	runs_erase(sh, buf, from);
	return ret;
}

/* ---- buffers ----------------------------------------------------------------------------- */

static void buffer_free(struct buffer *buf)
{
	unpin_user_pages(buf->pages, buf->nr_pages);
	kvfree(buf->pages);
	kfree(buf);
}

/* Those that neither the server nor a request uses. */
static void free_unused(struct ublk_shmem *sh)
{
	struct buffer *buf;
	int index;

	mutex_lock(&sh->lock);
	idr_for_each_entry(&sh->buffers, buf, index) {
		if (refcount_read(&buf->users))
			continue;
		idr_remove(&sh->buffers, index);
		buffer_free(buf);
	}
	mutex_unlock(&sh->lock);
}

static void free_work(struct work_struct *work)
{
	free_unused(container_of(work, struct ublk_shmem, free_work));
}

static struct buffer *buffer_pin(const struct ublk_shmem_buf_reg *reg)
{
	unsigned int gup = FOLL_LONGTERM;
	struct buffer *buf;
	long pinned;

	buf = kzalloc(sizeof(*buf), GFP_KERNEL);
	if (!buf)
		return ERR_PTR(-ENOMEM);
	refcount_set(&buf->users, 1);
	buf->flags = reg->flags;
	buf->nr_pages = reg->len >> PAGE_SHIFT;
	buf->pages = kvmalloc_array(buf->nr_pages, sizeof(*buf->pages), GFP_KERNEL);
	if (!buf->pages) {
		kfree(buf);
		return ERR_PTR(-ENOMEM);
	}
	if (!(reg->flags & UBLK_SHMEM_BUF_READ_ONLY))
		gup |= FOLL_WRITE;
	pinned = pin_user_pages_fast(reg->addr, buf->nr_pages, gup, buf->pages);
	if (pinned == buf->nr_pages)
		return buf;
	buf->nr_pages = max(pinned, 0L);
	buffer_free(buf);
	return ERR_PTR(pinned < 0 ? pinned : -EFAULT);
}

static int check_reg(const struct ublk_shmem_buf_reg *reg)
{
	if ((reg->flags & ~UBLK_SHMEM_BUF_READ_ONLY) || reg->reserved)
		return -EINVAL;
	if (!reg->len || reg->len > BUF_MAX_BYTES)
		return -EINVAL;
	if (!PAGE_ALIGNED(reg->len) || !PAGE_ALIGNED(reg->addr))
		return -EINVAL;
	return 0;
}

static int buffer_add(struct ublk_shmem *sh, struct buffer *buf)
{
	int index, ret;

	mutex_lock(&sh->lock);
	index = idr_alloc(&sh->buffers, buf, 0, U16_MAX + 1, GFP_KERNEL);
	ret = index;
	if (index >= 0) {
		buf->index = index;
		ret = runs_insert(sh, buf);
		if (ret)
			idr_remove(&sh->buffers, index);
		else
			WRITE_ONCE(buf->live, true);
	}
	mutex_unlock(&sh->lock);
	return ret ?: index;
}

/**
 * ublk_shmem_register() - REG_BUF
 * @ub: the device
 * @h: the command; its buffer holds struct ublk_shmem_buf_reg
 *
 * Return: the buffer's index or -errno; -EEXIST when some of the memory is registered already.
 */
int ublk_shmem_register(struct ublk_device *ub, const struct ublksrv_ctrl_cmd *h)
{
	struct ublk_shmem_buf_reg reg = {};
	struct buffer *buf;
	int ret;

	if (!ub->shmem)
		return -EOPNOTSUPP;
	if (copy_from_user(&reg, u64_to_user_ptr(h->addr), min_t(size_t, h->len, sizeof(reg))))
		return -EFAULT;
	ret = check_reg(&reg);
	if (ret)
		return ret;
	buf = buffer_pin(&reg);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	ret = buffer_add(ub->shmem, buf);
	if (ret < 0) {
		/* Requests may be looking at the part of it that was in the tree. */
		synchronize_rcu();
		buffer_free(buf);
	}
	return ret;
}

/**
 * ublk_shmem_unregister() - UNREG_BUF
 * @ub: the device
 * @index: the buffer
 *
 * From its return on no new request lies in the buffer. The index is free when the last one has
 * ended.
 *
 * Return: 0, -ENOENT, or -EINVAL for what can be no index.
 */
int ublk_shmem_unregister(struct ublk_device *ub, u64 index)
{
	struct ublk_shmem *sh = ub->shmem;
	struct buffer *buf;

	if (!sh)
		return -EOPNOTSUPP;
	if (index > U16_MAX)
		return -EINVAL;
	mutex_lock(&sh->lock);
	buf = idr_find(&sh->buffers, index);
	if (!buf || !buf->live) {
		mutex_unlock(&sh->lock);
		return -ENOENT;
	}
	WRITE_ONCE(buf->live, false);
	runs_erase(sh, buf, buf->nr_pages);
	mutex_unlock(&sh->lock);
	/* Whoever found the pages has counted its request. */
	synchronize_rcu();
	if (refcount_dec_and_test(&buf->users))
		free_unused(sh);
	return 0;
}

/**
 * ublk_shmem_init() - make room for buffers
 * @ub: a device with UBLK_F_SHMEM_ZC
 *
 * Return: 0 or -ENOMEM.
 */
int ublk_shmem_init(struct ublk_device *ub)
{
	struct ublk_shmem *sh = kzalloc(sizeof(*sh), GFP_KERNEL);

	if (!sh)
		return -ENOMEM;
	mutex_init(&sh->lock);
	mt_init_flags(&sh->frames, MT_FLAGS_USE_RCU);
	idr_init(&sh->buffers);
	INIT_WORK(&sh->free_work, free_work);
	ub->shmem = sh;
	return 0;
}

/**
 * ublk_shmem_exit() - let go of every buffer
 * @ub: a device without a disk
 */
void ublk_shmem_exit(struct ublk_device *ub)
{
	struct ublk_shmem *sh = ub->shmem;
	struct buffer *buf;
	int index;

	if (!sh)
		return;
	cancel_work_sync(&sh->free_work);
	idr_for_each_entry(&sh->buffers, buf, index) {
		if (buf->live)
			runs_erase(sh, buf, buf->nr_pages);
		buffer_free(buf);
	}
	idr_destroy(&sh->buffers);
	mtree_destroy(&sh->frames);
	kfree(sh);
}

/* ---- requests ---------------------------------------------------------------------------- */

/* The buffer that a piece of a request lies in, and where: as the descriptor has it. */
static struct buffer *find_piece(struct ublk_shmem *sh, const struct bio_vec *bv, bool write,
				 u64 *at)
{
	unsigned long pfn = page_to_pfn(bv->bv_page) + (bv->bv_offset >> PAGE_SHIFT);
	unsigned long last =
		page_to_pfn(bv->bv_page) + ((bv->bv_offset + bv->bv_len - 1) >> PAGE_SHIFT);
	MA_STATE(mas, &sh->frames, pfn, pfn);
	const struct run *run = mas_walk(&mas);

	if (!run || last > mas.last || !READ_ONCE(run->buf->live))
		return NULL;
	if (!write && (run->buf->flags & UBLK_SHMEM_BUF_READ_ONLY))
		return NULL;
	*at = ublk_shmem_zc_addr(run->buf->index, 0) +
	      ((u64)(run->first_page + pfn - mas.index) << PAGE_SHIFT) +
	      offset_in_page(bv->bv_offset);
	return run->buf;
}

/**
 * ublk_shmem_find() - does a request lie in a registered buffer?
 * @ub: the device; the caller reads under RCU
 * @rq: the request
 * @addr: set to where, as ublk_shmem_zc_addr() has it
 *
 * Return: true when it does, all of it in one piece; ublk_shmem_put() is owed.
 */
bool ublk_shmem_find(struct ublk_device *ub, struct request *rq, u64 *addr)
{
	struct ublk_queue *q = rq->mq_hctx->driver_data;
	bool write = req_op(rq) == REQ_OP_WRITE;
	struct buffer *buf = NULL, *piece;
	struct req_iterator it;
	struct bio_vec bv;
	u64 at, begin = 0, next = 0;

	rq_for_each_bvec(bv, rq, it) {
		piece = find_piece(ub->shmem, &bv, write, &at);
		if (!piece || (buf && (piece != buf || at != next)))
			return false;
		if (!buf)
			begin = at;
		buf = piece;
		next = at + bv.bv_len;
	}
	if (!buf)
		return false;
	refcount_inc(&buf->users);
	q->slots[rq->tag].shmem_held = true;
	/* Only then: the server may look at it without being told. */
	*addr = begin;
	return true;
}

/**
 * ublk_shmem_put() - the server is done with a request that lies in a buffer, or will not get it
 * @q: the queue
 * @rq: the request, its descriptor as it was
 *
 * In any context.
 */
void ublk_shmem_put(struct ublk_queue *q, struct request *rq)
{
	struct ublk_shmem *sh = q->ub->shmem;
	struct buffer *buf;
	bool last;

	q->slots[rq->tag].shmem_held = false;
	rcu_read_lock();
	buf = idr_find(&sh->buffers, ublk_shmem_zc_index(q->desc[rq->tag].addr));
	last = !WARN_ON_ONCE(!buf) && refcount_dec_and_test(&buf->users);
	rcu_read_unlock();
	if (last)
		queue_work(ublk_wq, &sh->free_work);
}
