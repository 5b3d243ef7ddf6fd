/* SPDX-License-Identifier: MIT */
/* Requests from this process instead of the kernel: a list per queue, and a wake-up. */
#include "internal.h"

#include <ubd/local.h>

#include <errno.h>
#include <semaphore.h>
#include <string.h>

#define DIRECT_ALIGN 4096 /* of memory for direct I/O, whatever the target needs */

struct local_request {
	struct ubd_io io;
	void *buf;
	int result;
	sem_t done;
	struct local_request *next;
};

static void finish(struct local_request *r, int result)
{
	r->result = result;
	sem_post(&r->done); /* r is the caller's again */
}

static struct tag *idle_tag(struct ubd_queue *q)
{
	for (unsigned i = 0; i < q->depth; i++)
		if (q->tags[i].state == TAG_IDLE)
			return &q->tags[i];
	return NULL;
}

static void start(struct ubd_queue *q, struct tag *t, struct local_request *r)
{
	bool aligned = !((uintptr_t)r->buf % DIRECT_ALIGN);

	t->io.op = r->io.op;
	t->io.flags = r->io.flags;
	t->io.offset = r->io.offset;
	t->io.length = r->io.length;
	t->io.append_at = 0;
	t->io.error = 0;
	t->io.note = 0;
	t->local = r;
	t->buf = aligned && r->buf ? r->buf : t->own_buf;
	if (!aligned && carries_write_data(&r->io))
		memcpy(t->buf, r->buf, r->io.length);
	request_start(q, t);
}

void local_drain(struct ubd_queue *q)
{
	for (;;) {
		struct tag *t = q->stopping ? NULL : idle_tag(q);
		struct local_request *r;

		if (!t && !q->stopping)
			return;
		pthread_mutex_lock(&q->remote_lock);
		r = q->local_head;
		if (r) {
			q->local_head = r->next;
			if (!q->local_head)
				q->local_tail = NULL;
		}
		pthread_mutex_unlock(&q->remote_lock);
		if (!r)
			return;
		if (t)
			start(q, t, r);
		else
			finish(r, -ENODEV);
	}
}

void local_done(struct ubd_queue *q, struct tag *t)
{
	struct local_request *r = t->local;
	bool more;

	if (t->buf == t->own_buf && carries_read_data(&t->io) && t->result > 0)
		memcpy(r->buf, t->buf, (unsigned)t->result);
	r->io.append_at = t->io.append_at;
	t->local = NULL;
	finish(r, t->result);
	/* Somebody may be waiting for a tag. From the loop, not from this coroutine's stack. */
	pthread_mutex_lock(&q->remote_lock);
	more = q->local_head;
	pthread_mutex_unlock(&q->remote_lock);
	if (more)
		queue_kick(q);
}

static struct local_request request(enum ubd_op op, unsigned flags, uint64_t offset, void *buf,
				    uint32_t length)
{
	return (struct local_request){
		.io = {.op = (uint8_t)op,
		       .flags = (uint8_t)flags,
		       .offset = offset,
		       .length = length},
		.buf = buf,
	};
}

static int run(struct ubd_device *dev, unsigned index, struct local_request *r)
{
	const struct ubd_io *io = &r->io;
	uint64_t size = ubd_device_size(dev), data = data_bytes(io);
	struct ubd_queue *q;

	if (!dev->local || !dev->started || index >= dev->nr_queues)
		return -EINVAL;
	if ((data && !r->buf) || data > dev->info.max_io_buf_bytes)
		return -EINVAL;
	if (io->offset > size || io->length > size - io->offset)
		return -EINVAL;
	q = &dev->queues[index];
	sem_init(&r->done, 0, 0);
	pthread_mutex_lock(&q->remote_lock);
	if (q->stop_wanted) {
		pthread_mutex_unlock(&q->remote_lock);
		sem_destroy(&r->done);
		return -ENODEV;
	}
	if (q->local_tail)
		q->local_tail->next = r;
	else
		q->local_head = r;
	q->local_tail = r;
	queue_kick(q);
	pthread_mutex_unlock(&q->remote_lock);
	while (sem_wait(&r->done))
		;
	sem_destroy(&r->done);
	return r->result;
}

int ubd_local_io(struct ubd_device *dev, unsigned index, enum ubd_op op, unsigned flags,
		 uint64_t offset, void *buf, uint32_t length)
{
	struct local_request r = request(op, flags, offset, buf, length);

	return run(dev, index, &r);
}

int ubd_local_append(struct ubd_device *dev, unsigned index, unsigned flags, uint64_t offset,
		     void *buf, uint32_t length, uint64_t *at)
{
	struct local_request r = request(UBD_ZONE_APPEND, flags, offset, buf, length);
	int ret = run(dev, index, &r);

	*at = r.io.append_at;
	return ret;
}
