/* SPDX-License-Identifier: MIT */
/*
 * A request's life: fetched from the driver, served on a coroutine, committed. The commit fetches
 * the tag's next request.
 *
 * A fused commit ends with the next request as well. A target that wants to know when its requests
 * are over hears of it then, or from look(), which sees it in the driver's descriptors.
 */
#include "internal.h"

#include <errno.h>
#include <string.h>

#define LOOK_NS 10000000 /* between looks for fused requests that have ended */

/* Give the tag to the driver with one of the commands that end when it has work. */
static void send_command(struct ubd_queue *q, struct tag *t, uint32_t op, uint64_t addr)
{
	enum fault_kind kind = op == UBLK_U_IO_FETCH_REQ ? FAULT_FETCH : FAULT_COMMIT;
	struct ublksrv_io_cmd cmd = {
		.q_id = (uint16_t)q->index,
		.tag = t->io.tag,
		.result = t->result,
		.addr = addr,
	};
	struct io_uring_sqe *sqe = queue_command(q, op, &cmd, sizeof(cmd));

	if (q->way->fixed && !q->way->reg_cmd) {
		struct ublk_auto_buf_reg reg = {.index = t->io.tag};

		sqe->addr = ublk_auto_buf_reg_to_sqe_addr(&reg);
	}
	queue_sqe_tag(q, sqe, t->io.tag, kind);
	t->state = op == UBLK_U_IO_NEED_GET_DATA ? TAG_DATA : TAG_FETCH;
	q->armed++;
}

static uint64_t buffer_address(const struct ubd_queue *q, const struct tag *t)
{
	return q->way->buffers ? (uintptr_t)t->own_buf : 0;
}

int request_fetch_all(struct ubd_queue *q)
{
	int ret;

	for (unsigned i = 0; i < q->depth; i++)
		send_command(q, &q->tags[i], UBLK_U_IO_FETCH_REQ, buffer_address(q, &q->tags[i]));
	/* The driver starts the disk only when every tag has been fetched: hand them over now. */
	ret = io_uring_submit(&q->ring);
	stat_add(&q->stats.enters, 1);
	return ret < 0 ? ret : 0;
}

static void commit(struct ubd_queue *q, struct tag *t)
{
	uint64_t addr = buffer_address(q, t);

	if (t->io.op == UBD_ZONE_APPEND)
		addr = t->io.append_at >> 9;
	send_command(q, t, UBLK_U_IO_COMMIT_AND_FETCH_REQ, addr);
}

/* One command for the members, the commit and the next fetch. */
static void commit_fused(struct ubd_queue *q, struct tag *t)
{
	struct io_uring_sqe *sqe = member_command(t, UBD_U_IO_FUSED, t->members, t->fused);

	queue_sqe_tag(q, sqe, t->io.tag, FAULT_COMMIT);
	t->state = TAG_FETCH;
	q->armed++;
	t->owed = q->finished;
	q->owed += t->owed;
}

static void account(struct ubd_queue *q, const struct tag *t)
{
	struct ubd_stats *s = &q->stats;
	bool write;

	if (t->result < 0) {
		stat_add(&s->errors, 1);
		return;
	}
	switch (t->io.op) {
	case UBD_READ:
	case UBD_WRITE:
	case UBD_ZONE_APPEND:
		write = t->io.op != UBD_READ;
		stat_add(&s->requests[write], 1);
		stat_add(&s->bytes[write], (unsigned)t->result);
		if (q->way->buffers)
			stat_add(&s->bytes_copied, (unsigned)t->result);
		for (unsigned i = 0; i < t->fused; i++)
			stat_add(&s->bytes_moved, t->members[i].len);
		break;
	case UBD_FLUSH:
		stat_add(&s->requests[2], 1);
		break;
	default:
		stat_add(&s->requests[3], 1);
	}
}

/* handle()'s answer as the driver wants it. */
static int final_result(struct tag *t, int res)
{
	struct ubd_io *io = &t->io;

	if (res < 0)
		return res;
	if (carries_read_data(io)) {
		uint32_t bytes = MIN((uint32_t)res, (uint32_t)data_bytes(io));
		int ret = bytes ? transfer_end_read(t, bytes) : 0;

		return ret < 0 ? ret : (int)bytes;
	}
	if (carries_write_data(io))
		return (int)MIN((uint32_t)res, io->length);
	return 0;
}

static bool retries(const struct ubd_queue *q)
{
	return q->target->flags & UBD_TARGET_RETRIES;
}

static void serve(void *arg)
{
	struct tag *t = arg;
	struct ubd_queue *q = t->io.queue;
	bool again = t->io.error;
	int res = q->target->handle(&t->io, q->self);

	if (unlikely(t->io.error && !again && retries(q)))
		res = q->target->handle(&t->io, q->self);
	if (res == FUSED_RESULT && t->fused) {
		q->serving--;
		commit_fused(q, t);
		return;
	}
	t->fused = 0;
	t->result = final_result(t, res);
	if (t->registered)
		transfer_unregister(t);
	if (q->finished)
		q->finished(&t->io, q->self);
	account(q, t);
	q->serving--;
	if (t->local) {
		t->state = TAG_IDLE;
		local_done(q, t);
	} else {
		commit(q, t);
	}
}

static void begin(struct ubd_queue *q, struct tag *t)
{
	t->fill = FILL_NONE;
	t->push_data = false;
	t->registered = false;
	t->fused = 0;
	t->have_data = q->way->buffers;
	t->state = TAG_SERVED;
	q->serving++;
	if (q->way->buffers && carries_write_data(&t->io) && t->buf == t->own_buf)
		t->dirty = MAX(t->dirty, t->io.length);
}

void request_start(struct ubd_queue *q, struct tag *t)
{
	struct coro *co;

	begin(q, t);
	co = coro_new(&q->coros, serve, t);
	if (unlikely(!co)) {
		/* As many stacks as tags are reserved: only the target's own coroutines can use
		 * them up. */
		t->result = -ENOMEM;
		q->serving--;
		if (t->local) {
			t->state = TAG_IDLE;
			local_done(q, t);
		} else {
			commit(q, t);
		}
		return;
	}
	coro_enter(co);
}

/* Translate the driver's descriptor. */
static void decode(struct ubd_queue *q, struct tag *t)
{
	const struct ublksrv_io_desc *d = &q->desc[t->io.tag];
	struct ubd_io *io = &t->io;
	uint32_t word = d->op_flags;

	io->op = (uint8_t)word;
	io->flags = (uint8_t)((word & UBLK_IO_F_FUA ? UBD_IO_FUA : 0) |
			      (word & UBLK_IO_F_NOUNMAP ? UBD_IO_NO_UNMAP : 0));
	io->offset = d->start_sector << 9;
	io->length = io->op == UBD_REPORT_ZONES ? d->nr_zones : d->nr_sectors << 9;
	io->append_at = 0;
	io->error = 0;
	io->note = 0;
	t->generation = (uint32_t)d->addr & UBD_GENERATION_MASK;
}

/* A fetch has ended with res. */
static void fetched(struct ubd_queue *q, struct tag *t, int res)
{
	switch (res) {
	case UBLK_IO_RES_OK:
		decode(q, t);
		request_start(q, t);
		break;
	case UBLK_IO_RES_NEED_GET_DATA:
		send_command(q, t, UBLK_U_IO_NEED_GET_DATA, (uintptr_t)t->own_buf);
		break;
	case UBLK_IO_RES_ABORT:
		t->state = TAG_IDLE;
		q->stopping = true;
		break;
	default:
		t->state = TAG_IDLE;
		device_fail(q->dev, res, "queue %u: the driver refused a command for tag %u: %s",
			    q->index, t->io.tag, strerror(-res));
		queue_break(q, res);
	}
}

/* ---- Fused commits ------------------------------------------------------------------------- */

static bool is_fetch(int res)
{
	return res == UBLK_IO_RES_OK || res == UBLK_IO_RES_ABORT;
}

/* On a coroutine: the request is over, and what its tag's command ended with waits in t->cqe. */
static void tell(struct ubd_queue *q, struct tag *t)
{
	t->telling = true;
	q->serving++;
	q->finished(&t->io, q->self);
	q->serving--;
	t->telling = false;
	t->owed = false;
	q->owed--;
}

static void go_on(void *arg)
{
	struct tag *t = arg;
	struct ubd_queue *q = t->io.queue;

	if (t->owed && !t->again)
		tell(q, t);
	t->came = false;
	q->came--;
	if (t->again) {
		/* It goes on: its end is to be told another time. */
		q->owed -= t->owed;
		t->owed = t->again = false;
		begin(q, t);
		serve(t);
	} else if (t->cqe == UBLK_IO_RES_OK) {
		decode(q, t);
		begin(q, t);
		serve(t);
	} else if (is_fetch(t->cqe)) {
		fetched(q, t, t->cqe);
	} else {
		commit(q, t);
	}
}

/* Without memory for a coroutine look() tries again. */
static void resume(struct ubd_queue *q, struct tag *t)
{
	struct coro *co = coro_new(&q->coros, go_on, t);

	if (!co)
		return;
	if (queue_current(q))
		queue_ready(q, co);
	else
		coro_enter(co);
}

static bool has_ended(const struct ubd_queue *q, const struct tag *t)
{
	uint64_t addr = __atomic_load_n(&q->desc[t->io.tag].addr, __ATOMIC_ACQUIRE);

	return (addr & UBD_GENERATION_MASK) != t->generation;
}

/* As long as there are requests whose end the target has not heard of. */
static void look(struct ubd_queue *q, void *arg)
{
	(void)arg;
	while (q->owed || q->came) {
		ubd_sleep(q, LOOK_NS);
		for (unsigned i = 0; i < q->depth; i++) {
			struct tag *t = &q->tags[i];

			if (t->telling)
				continue;
			if (t->owed && !t->came && has_ended(q, t))
				tell(q, t);
			if (t->came)
				resume(q, t);
		}
	}
	q->looking = false;
}

bool request_may_fuse(struct ubd_queue *q)
{
	if (q->finished && !q->looking)
		q->looking = !ubd_spawn(q, look, NULL);
	return !q->finished || q->looking;
}

/*
 * The command that carried the members and the commit has ended with res. A failed member leaves
 * the request with us: commit the error, or let the target go on.
 */
static void fused_ended(struct ubd_queue *q, struct tag *t, int res)
{
	bool again = !is_fetch(res) && !t->io.error && retries(q);

	t->result = is_fetch(res) ? (int)t->io.length : res;
	if (res != UBLK_IO_RES_ABORT && !again)
		account(q, t);
	t->fused = 0;
	if (again)
		t->io.error = res;
	t->again = again && q->finished;
	if (again && !q->finished) {
		request_start(q, t);
	} else if (q->finished) {
		t->cqe = res;
		t->came = true;
		q->came++;
		if (!t->telling)
			resume(q, t);
	} else if (is_fetch(res)) {
		fetched(q, t, res);
	} else {
		commit(q, t);
	}
}

void request_complete(struct ubd_queue *q, uint16_t tag, int res)
{
	struct tag *t = &q->tags[tag];

	q->armed--;
	if (t->fused)
		fused_ended(q, t, res);
	else
		fetched(q, t, res);
}
