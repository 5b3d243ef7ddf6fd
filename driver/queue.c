// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hardware queues: their memory, and what the block layer calls.
 */
#include <linux/slab.h>
#include "driver.h"

/**
 * ublk_desc_bytes() - size of a queue's mapping
 * @depth: number of tags
 *
 * Return: bytes, whole pages.
 */
size_t ublk_desc_bytes(unsigned int depth)
{
	return PAGE_ALIGN(depth * sizeof(struct ublksrv_io_desc));
}

/* The node of the first CPU that the queue serves. */
static int queue_node(const struct ublk_device *ub, u16 q_id)
{
	const unsigned int *map = ub->tag_set.map[HCTX_TYPE_DEFAULT].mq_map;
	unsigned int cpu;

	for_each_possible_cpu(cpu)
		if (map[cpu] == q_id)
			return cpu_to_node(cpu);
	return NUMA_NO_NODE;
}

static struct ublk_queue *queue_alloc(struct ublk_device *ub, u16 q_id)
{
	int node = queue_node(ub, q_id);
	struct ublk_queue *q;
	struct page *pages;

	q = kvzalloc_node(struct_size(q, slots, ub->info.queue_depth), GFP_KERNEL, node);
	if (!q)
		return NULL;
	pages = alloc_pages_node(node, GFP_KERNEL | __GFP_ZERO,
				 get_order(ublk_desc_bytes(ub->info.queue_depth)));
	if (!pages) {
		kvfree(q);
		return NULL;
	}
	q->desc = page_address(pages);
	q->ub = ub;
	q->features = ub->info.flags;
	q->q_id = q_id;
	q->depth = ub->info.queue_depth;
	q->gate = UBLK_GATE_FAIL;
	spin_lock_init(&q->lock);
	return q;
}

/**
 * ublk_queues_init() - allocate a device's queues
 * @ub: the device, with its tag set
 *
 * Return: 0 or -ENOMEM; the device's end frees what there is.
 */
int ublk_queues_init(struct ublk_device *ub)
{
	u16 i;

	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		ub->queues[i] = queue_alloc(ub, i);
		if (!ub->queues[i])
			return -ENOMEM;
		if (ublk_has(ub, UBLK_F_BATCH_IO) && ublk_batch_init(ub->queues[i]))
			return -ENOMEM;
	}
	return 0;
}

/**
 * ublk_queues_exit() - free a device's queues
 * @ub: the device
 */
void ublk_queues_exit(struct ublk_device *ub)
{
	u16 i;

	for (i = 0; i < ub->info.nr_hw_queues; i++) {
		struct ublk_queue *q = ub->queues[i];

		if (!q)
			continue;
		free_pages((unsigned long)q->desc, get_order(ublk_desc_bytes(q->depth)));
		kvfree(q->batch);
		kvfree(q);
	}
}

/* ---- what the block layer calls ---------------------------------------------------------- */

static int init_hctx(struct blk_mq_hw_ctx *hctx, void *data, unsigned int i)
{
	struct ublk_device *ub = data;

	hctx->driver_data = ub->queues[i];
	return 0;
}

static blk_status_t queue_rq(struct blk_mq_hw_ctx *hctx, const struct blk_mq_queue_data *bd)
{
	struct ublk_slot *slot = ublk_claim(hctx->driver_data, bd->rq);

	if (slot)
		ublk_deliver_later(bd->rq);
	return BLK_STS_OK;
}

/* May these two go to the server together? */
static bool same_way(const struct request *x, const struct request *y)
{
	const struct ublk_queue *p = x->mq_hctx->driver_data, *q = y->mq_hctx->driver_data;
	const struct ublk_slot *a = &p->slots[x->tag], *b = &q->slots[y->tag];

	if (p->batch)
		return p == q;
	return a->task == b->task && ublk_cmd_ring(a->cmd) == ublk_cmd_ring(b->cmd);
}

/* A plugged batch: one piece of task work for each run of requests to the same task. */
static void queue_rqs(ublk_rq_list_t *list)
{
	struct request *head = NULL, **tail = &head, *rq;

	while ((rq = rq_list_pop(list))) {
		if (!ublk_claim(rq->mq_hctx->driver_data, rq))
			continue;
		if (head && !same_way(head, rq)) {
			ublk_deliver_later(head);
			tail = &head;
		}
		*tail = rq;
		tail = &rq->rq_next;
	}
	if (head)
		ublk_deliver_later(head);
}

/* A server has all the time it wants, unless nobody vouches for it. */
static enum blk_eh_timer_return timeout(struct request *rq)
{
	struct ublk_queue *q = rq->mq_hctx->driver_data;

	if (q->features & UBLK_F_UNPRIVILEGED_DEV)
		ublk_server_kill(q->ub);
	return BLK_EH_RESET_TIMER;
}

const struct blk_mq_ops ublk_mq_ops = {
	.queue_rq = queue_rq,
	.queue_rqs = queue_rqs,
	.init_hctx = init_hctx,
	.timeout = timeout,
};
