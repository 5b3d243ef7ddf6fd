// SPDX-License-Identifier: GPL-2.0-only
/*
 * UBLK_F_BATCH_IO: many tags with one command.
 *
 * PREP_IO_CMDS readies the tags, COMMIT_IO_CMDS ends requests, both with an array of elements.
 * FETCH_IO_CMDS is multishot: whenever requests have come it puts their tags into a buffer of
 * its group. A queue has any number of fetching commands, of any tasks; one at a time is active
 * and drains the queue's ring of waiting tags in its own task.
 *
 * No task owns a tag: what takes a slot out of SERVED is a compare and exchange.
 */
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include "driver.h"
#include "trace.h"

#ifdef UBLK_HAVE_MSHOT_CMD

/* Tags handed over with one completion. */
#define MAX_TAGS 128
/* Requests ended together. */
#define COMMIT_CHUNK 16
/* Buffers filled before others get the processor. */
#define MAX_ROUNDS 32

#define ALL_FLAGS \
	(UBLK_BATCH_F_HAS_ZONE_LBA | UBLK_BATCH_F_HAS_BUF_ADDR | UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK)

/**
 * struct fetcher - one FETCH_IO_CMDS
 * @node: in ublk_batch.fetchers; empty once somebody has taken the command to end it
 * @cmd: the command
 * @group: of its buffers
 */
struct fetcher {
	struct list_head node;
	struct io_uring_cmd *cmd;
	u16 group;
};

/**
 * struct ublk_batch - a queue's waiting tags and who fetches them
 * @lock: of all of it
 * @fetchers: struct fetcher
 * @active: the one whose task work is on the way or at work, or NULL
 * @head: of the ring, counts up
 * @tail: of the ring, counts up
 * @mask: of the ring
 * @ring: tags that wait; each tag is in it once at most
 */
struct ublk_batch {
	spinlock_t lock;
	struct list_head fetchers;
	struct fetcher *active;
	u32 head;
	u32 tail;
	u32 mask;
	u16 ring[];
};

struct batch_pdu {
	struct ublk_queue *q;
	struct fetcher *fetcher;
};

static void deliver_tags(struct io_uring_cmd *cmd, unsigned int issue_flags);

/* ---- waiting tags ------------------------------------------------------------------------ */

static bool is_empty(const struct ublk_batch *b)
{
	return b->head == b->tail;
}

/* Makes the next fetcher active when there is work and none is; the caller orders its work. */
static struct fetcher *next_active(struct ublk_batch *b)
{
	lockdep_assert_held(&b->lock);
	if (b->active || is_empty(b))
		return NULL;
	b->active = list_first_entry_or_null(&b->fetchers, struct fetcher, node);
	return b->active;
}

UBLK_TASK_WORK(deliver_in_task)
{
	deliver_tags(cmd, issue_flags);
}

static void wake(struct fetcher *f)
{
	if (f)
		io_uring_cmd_complete_in_task(f->cmd, deliver_in_task_tw);
}

/**
 * ublk_batch_queue() - claimed requests wait for a fetching command
 * @q: their queue
 * @list: linked by rq_next
 */
void ublk_batch_queue(struct ublk_queue *q, struct request *list)
{
	struct ublk_batch *b = q->batch;
	struct fetcher *f;

	spin_lock(&b->lock);
	for (; list; list = list->rq_next)
		b->ring[b->tail++ & b->mask] = list->tag;
	f = next_active(b);
	spin_unlock(&b->lock);
	wake(f);
}

static u32 take_tags(struct ublk_batch *b, u16 *tags, u32 most)
{
	u32 n = 0;

	spin_lock(&b->lock);
	while (n < most && !is_empty(b))
		tags[n++] = b->ring[b->head++ & b->mask];
	spin_unlock(&b->lock);
	return n;
}

/* The server never saw it: first again, unless it has committed it all the same. */
static void put_back(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd,
		     unsigned int issue_flags)
{
	struct ublk_slot *slot = &q->slots[tag];
	struct ublk_batch *b = q->batch;
	u8 served = UBLK_SLOT_SERVED;

	if (!try_cmpxchg(&slot->state, &served, UBLK_SLOT_CLAIMED))
		return;
	if (q->features & UBLK_F_AUTO_BUF_REG)
		ublk_auto_unregister(slot, cmd, issue_flags);
	/* The next delivery begins anew, unless others have taken hold of it meanwhile. */
	if ((q->features & UBLK_F_HELD) && refcount_dec_if_one(&slot->ref))
		slot->filled = 0;
	spin_lock(&b->lock);
	b->ring[--b->head & b->mask] = tag;
	spin_unlock(&b->lock);
}

/* ---- delivery, in the active fetcher's task ---------------------------------------------- */

/* Drops those whose data could not be copied, and returns how many are left. */
static u32 prepare_tags(struct ublk_queue *q, u16 *tags, u32 n, struct io_uring_cmd *cmd,
			unsigned int issue_flags)
{
	u32 i, kept = 0;

	for (i = 0; i < n; i++)
		if (ublk_deliver_batched(q, tags[i], cmd, issue_flags))
			tags[kept++] = tags[i];
	return kept;
}

/* Fills one buffer. Returns the number of tags taken off the ring, or -errno. */
static int fill_buffer(struct ublk_queue *q, struct fetcher *f, unsigned int issue_flags)
{
	u16 tags[MAX_TAGS];
	struct io_br_sel sel;
	void __user *addr;
	size_t bytes = 0;
	u32 taken, n;
	int ret = 0;

	sel = io_uring_cmd_buffer_select(f->cmd, f->group, &bytes, issue_flags);
	if (sel.val < 0)
		return sel.val;
	addr = sel.addr; /* shares its place with the value to post */
	if (!addr || bytes < sizeof(*tags))
		return -ENOBUFS;
	taken = take_tags(q->batch, tags, min(bytes, sizeof(tags)) / sizeof(*tags));
	n = prepare_tags(q, tags, taken, f->cmd, issue_flags);
	if (copy_to_user(addr, tags, n * sizeof(*tags)))
		ret = -EFAULT;
	/* With nothing to tell this gives the buffer back and posts nothing. */
	sel.val = ret ? 0 : n * sizeof(*tags);
	if (io_uring_mshot_cmd_post_cqe(f->cmd, &sel, issue_flags) && !ret && n)
		ret = -ENOBUFS;
	if (!ret)
		return taken;
	while (n--)
		put_back(q, tags[n], f->cmd, issue_flags);
	return ret;
}

/* Ends the active fetcher's command; the next one carries on. */
static void end_active(struct ublk_queue *q, struct fetcher *f, int res, unsigned int issue_flags)
{
	struct ublk_batch *b = q->batch;
	struct fetcher *next;

	spin_lock(&b->lock);
	list_del_init(&f->node);
	b->active = NULL;
	next = next_active(b);
	spin_unlock(&b->lock);
	wake(next);
	ublk_cmd_done(f->cmd, res, issue_flags);
	kfree(f);
}

/* Returns true when the ring is empty and @f at rest. */
static bool rest(struct ublk_batch *b)
{
	bool empty;

	spin_lock(&b->lock);
	empty = is_empty(b);
	if (empty)
		b->active = NULL;
	spin_unlock(&b->lock);
	return empty;
}

/* A killed task as well: what cannot be copied to it is put back, and would come to it again. */
static bool goes_away(const struct ublk_queue *q)
{
	return READ_ONCE(q->closing) || (current->flags & (PF_EXITING | PF_KTHREAD)) ||
	       fatal_signal_pending(current);
}

static void deliver_tags(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	const struct batch_pdu *pdu = ublk_cmd_pdu(cmd, struct batch_pdu);
	struct fetcher *f = pdu->fetcher;
	struct ublk_queue *q = pdu->q;
	unsigned int rounds = 0;
	int ret;

	do {
		if (goes_away(q)) {
			end_active(q, f, UBLK_IO_RES_ABORT, issue_flags);
			return;
		}
		if (rounds++ == MAX_ROUNDS) {
			wake(f);
			return;
		}
		ret = fill_buffer(q, f, issue_flags);
		if (ret < 0) {
			end_active(q, f, ret, issue_flags);
			return;
		}
	} while (!rest(q->batch));
	/* Closed meanwhile: the cancellation left the active command alone. */
	if (READ_ONCE(q->closing))
		ublk_batch_cancel(q, cmd, issue_flags);
}

/* ---- cancelling and the release ---------------------------------------------------------- */

static struct fetcher *take_fetcher(struct ublk_batch *b, const struct io_uring_cmd *cmd)
{
	struct fetcher *f, *found = NULL;

	spin_lock(&b->lock);
	list_for_each_entry(f, &b->fetchers, node) {
		if (f != b->active && (!cmd || f->cmd == cmd)) {
			list_del_init(&f->node);
			found = f;
			break;
		}
	}
	spin_unlock(&b->lock);
	return found;
}

/**
 * ublk_batch_cancel() - end a queue's fetching commands
 * @q: the queue, closing
 * @cmd: only this command, or NULL for all
 * @issue_flags: io_uring's, or IO_URING_F_UNLOCKED outside of its calls
 *
 * The active one is left alone: its task work ends it.
 */
void ublk_batch_cancel(struct ublk_queue *q, struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	struct fetcher *f;

	while ((f = take_fetcher(q->batch, cmd))) {
		ublk_cmd_done(f->cmd, UBLK_IO_RES_ABORT, issue_flags);
		kfree(f);
	}
}

/**
 * ublk_batch_abandon() - what a server that has gone left behind
 * @q: the queue, without a command
 *
 * Requests that waited for it; and tags that it had made ready, which no command's end tells of.
 */
void ublk_batch_abandon(struct ublk_queue *q)
{
	u16 tag;

	for (tag = 0; tag < q->depth; tag++)
		ublk_cancel_slot(q, tag, NULL, IO_URING_F_UNLOCKED);

	while (take_tags(q->batch, &tag, 1)) {
		struct ublk_slot *slot = &q->slots[tag];

		/* Handed over, put back, and held by others. */
		if (refcount_read(&slot->ref)) {
			ublk_abandon(q, slot);
			continue;
		}
		WRITE_ONCE(slot->state, UBLK_SLOT_EMPTY);
		ublk_reject(q, slot->req);
	}
}

/**
 * ublk_batch_init() - make a queue one of batches
 * @q: the queue
 *
 * Return: 0 or -ENOMEM.
 */
int ublk_batch_init(struct ublk_queue *q)
{
	u32 size = roundup_pow_of_two(q->depth);
	struct ublk_batch *b = kvzalloc(struct_size(b, ring, size), GFP_KERNEL);

	if (!b)
		return -ENOMEM;
	spin_lock_init(&b->lock);
	INIT_LIST_HEAD(&b->fetchers);
	b->mask = size - 1;
	q->batch = b;
	return 0;
}

/* ---- arrays of elements ------------------------------------------------------------------ */

/* One command, read from the SQE once. */
struct batch_args {
	struct io_uring_cmd *cmd;
	const void __user *elems;
	u16 q_id;
	u16 flags;
	u16 nr_elem;
	u8 elem_bytes;
	bool auto_buf; /* UBLK_F_AUTO_BUF_REG */
};

/* An element with its optional fields. */
struct elem {
	struct ublk_elem_header h;
	u64 addr;
	u64 zone_lba;
};

/* As sqe->addr has it for commands of one tag. */
static u64 auto_place(const struct batch_args *a, u16 index)
{
	const struct ublk_auto_buf_reg reg = {
		.index = index,
		.flags = a->flags & UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK ? UBLK_AUTO_BUF_REG_FALLBACK
								       : 0,
	};

	return ublk_auto_buf_reg_to_sqe_addr(&reg);
}

static int read_elem(const struct batch_args *a, u32 i, struct elem *e)
{
	u64 raw[3] = {};
	u32 n = 1;

	if (copy_from_user(raw, a->elems + i * a->elem_bytes, a->elem_bytes))
		return -EFAULT;
	memcpy(&e->h, raw, sizeof(e->h));
	e->addr = a->flags & UBLK_BATCH_F_HAS_BUF_ADDR ? raw[n++] : 0;
	if (a->auto_buf)
		e->addr = auto_place(a, e->h.buf_index);
	e->zone_lba = a->flags & UBLK_BATCH_F_HAS_ZONE_LBA ? raw[n] : U64_MAX;
	return 0;
}

static int check_args(const struct ublk_device *ub, const struct batch_args *a)
{
	u32 bytes = sizeof(struct ublk_elem_header);

	if (a->q_id >= ub->info.nr_hw_queues || (a->flags & ~ALL_FLAGS))
		return -EINVAL;
	if (a->nr_elem > ub->info.queue_depth)
		return -E2BIG;
	if ((a->flags & UBLK_BATCH_F_HAS_ZONE_LBA) && !ublk_has(ub, UBLK_F_ZONED))
		return -EINVAL;
	if ((a->flags & UBLK_BATCH_F_HAS_BUF_ADDR) && ublk_has(ub, UBLK_F_NO_PLAIN_COPY))
		return -EINVAL;
	if ((a->flags & UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK) && !ublk_has(ub, UBLK_F_AUTO_BUF_REG))
		return -EINVAL;
	if (a->flags & UBLK_BATCH_F_HAS_BUF_ADDR)
		bytes += sizeof(u64);
	if (a->flags & UBLK_BATCH_F_HAS_ZONE_LBA)
		bytes += sizeof(u64);
	return a->elem_bytes == bytes ? 0 : -EINVAL;
}

static bool is_good(const struct ublk_queue *q, const struct elem *e)
{
	return e->h.tag < q->depth && (!ublk_queue_copies(q) || e->addr);
}

/* All or none. */
static int prep_all(struct ublk_queue *q, const struct elem *elems, u32 n)
{
	int ret = 0;
	u32 i;

	mutex_lock(&q->ub->gate_mutex);
	for (i = 0; i < n; i++) {
		ret = -EINVAL;
		if (is_good(q, &elems[i]))
			ret = ublk_slot_prepare(q, elems[i].h.tag, elems[i].addr);
		if (ret)
			break;
		ublk_slot_ready(q, elems[i].h.tag);
	}
	while (ret && i--)
		ublk_slot_unready(q, elems[i].h.tag);
	mutex_unlock(&q->ub->gate_mutex);
	return ret;
}

static int prep(struct ublk_queue *q, const struct batch_args *a)
{
	struct ublk_device *ub = q->ub;
	struct elem *elems;
	int ret = 0;
	u32 i;

	elems = kvcalloc(max_t(u32, a->nr_elem, 1), sizeof(*elems), GFP_NOIO);
	if (!elems)
		return -ENOMEM;
	/* Before the lock: user memory may take its time. */
	for (i = 0; i < a->nr_elem && !ret; i++)
		ret = read_elem(a, i, &elems[i]);
	if (!ret)
		ret = prep_all(q, elems, a->nr_elem);
	kvfree(elems);
	wake_up_all(&ub->wait);
	return ret;
}

static int commit_one(struct ublk_queue *q, const struct elem *e, struct io_uring_cmd *cmd,
		      unsigned int issue_flags, struct io_comp_batch *iob)
{
	u8 served = UBLK_SLOT_SERVED;
	struct ublk_slot *slot;
	struct request *rq;

	if (!is_good(q, e))
		return -EINVAL;
	slot = &q->slots[e->h.tag];
	/* From here on the slot is ours. */
	if (!try_cmpxchg(&slot->state, &served, UBLK_SLOT_CLAIMED))
		return -EBUSY;
	rq = slot->req;
	if (q->features & UBLK_F_AUTO_BUF_REG)
		ublk_auto_unregister(slot, cmd, issue_flags);
	slot->addr = e->addr;
	slot->res = max(e->h.result, -MAX_ERRNO);
	if (req_op(rq) == REQ_OP_ZONE_APPEND && slot->res >= 0 &&
	    !ublk_zoned_appended(rq, e->zone_lba))
		slot->res = -EIO;
	ublk_slot_arm(q, slot, NULL);
	if (!(q->features & UBLK_F_HELD) || refcount_dec_and_test(&slot->ref))
		ublk_complete(q, slot, rq, e->addr, iob);
	return 0;
}

/* Commits up to @n elements from @from on. Returns how many; the first error is in @ret. */
static u32 commit_some(struct ublk_queue *q, const struct batch_args *a, u32 from, u32 n,
		       unsigned int issue_flags, int *ret)
{
	DEFINE_IO_COMP_BATCH(iob);
	struct elem e[COMMIT_CHUNK];
	u32 i, have;

	/* All before the first: a request that waits for its end is none to fault over. */
	for (have = 0; have < n && !*ret; have += !*ret)
		*ret = read_elem(a, from + have, &e[have]);
	for (i = 0; i < have; i++) {
		int err = commit_one(q, &e[i], a->cmd, issue_flags, &iob);

		if (err) {
			*ret = err;
			break;
		}
	}
	ublk_complete_batch(&iob);
	return i;
}

static int commit(struct ublk_queue *q, const struct batch_args *a, unsigned int issue_flags)
{
	u32 done = 0;
	int ret = 0;

	while (done < a->nr_elem && !ret)
		done += commit_some(q, a, done, min_t(u32, a->nr_elem - done, COMMIT_CHUNK),
				    issue_flags, &ret);
	return done ? done * a->elem_bytes : ret;
}

/* Returns 0 when the driver keeps the command. */
static int fetch(struct ublk_queue *q, const struct batch_args *a, unsigned int issue_flags)
{
	struct batch_pdu *pdu = ublk_cmd_pdu(a->cmd, struct batch_pdu);
	struct ublk_batch *b = q->batch;
	struct fetcher *f, *next;

	if (!(a->cmd->flags & IORING_URING_CMD_MULTISHOT) || a->elem_bytes != sizeof(u16) ||
	    a->flags)
		return -EINVAL;
	/* Memory may be freed by writes to this very disk. */
	f = kzalloc(sizeof(*f), GFP_NOIO);
	if (!f)
		return -ENOMEM;
	f->cmd = a->cmd;
	f->group = READ_ONCE(a->cmd->sqe->buf_index);
	pdu->q = q;
	pdu->fetcher = f;
	ublk_cmd_mark_cancelable(a->cmd, issue_flags);
	/* ublk_close() waits for this section: it finds the command, or we find it closing. */
	rcu_read_lock();
	if (READ_ONCE(q->closing)) {
		rcu_read_unlock();
		kfree(f);
		return UBLK_IO_RES_ABORT;
	}
	spin_lock(&b->lock);
	list_add_tail(&f->node, &b->fetchers);
	next = next_active(b);
	spin_unlock(&b->lock);
	rcu_read_unlock();
	wake(next);
	return 0;
}

/**
 * ublk_batch_command() - a command on the char device of a batch device
 * @ub: the device
 * @cmd: the command
 * @issue_flags: io_uring's
 */
void ublk_batch_command(struct ublk_device *ub, struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	const struct ublk_batch_io *sqe = ublk_cmd_payload(cmd);
	struct batch_args a = {
		.cmd = cmd,
		.elems = u64_to_user_ptr(READ_ONCE(cmd->sqe->addr)),
		.q_id = READ_ONCE(sqe->q_id),
		.flags = READ_ONCE(sqe->flags),
		.nr_elem = READ_ONCE(sqe->nr_elem),
		.elem_bytes = READ_ONCE(sqe->elem_bytes),
		.auto_buf = ublk_has(ub, UBLK_F_AUTO_BUF_REG),
	};
	int ret;

	switch (cmd->cmd_op) {
	case UBLK_U_IO_PREP_IO_CMDS:
		ret = check_args(ub, &a) ?: prep(ub->queues[a.q_id], &a);
		break;
	case UBLK_U_IO_COMMIT_IO_CMDS:
		ret = check_args(ub, &a) ?: commit(ub->queues[a.q_id], &a, issue_flags);
		break;
	case UBLK_U_IO_FETCH_IO_CMDS:
		ret = -EINVAL;
		if (a.q_id < ub->info.nr_hw_queues)
			ret = fetch(ub->queues[a.q_id], &a, issue_flags);
		if (!ret)
			return;
		break;
	default:
		ret = -EOPNOTSUPP;
		break;
	}
	ublk_cmd_done(cmd, ret, issue_flags);
}

#endif
