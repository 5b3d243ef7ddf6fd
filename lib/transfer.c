/* SPDX-License-Identifier: MIT */
/*
 * Moving a request's data between the driver and where the target wants it, by whatever way the
 * device has:
 *
 *   buffers     the driver copies to and from the tag's buffer: one I/O on the buffer
 *   user copy   pread and pwrite on the char device around the I/O, or instead of it where the
 *               other side is mapped memory
 *   fixed       the request's pages are a registered buffer of the ring: one I/O on them
 *   members     the driver does the I/O on the request's pages (member.c)
 *   splice      a WRITE's pages go to a file through a pipe (splice.c)
 *
 * A READ must never show its reader memory that nobody filled. The first partial fill therefore
 * zeroes the whole request first; a fill of the whole needs no zeroing.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <unistd.h>

#define MAX_WAVE 32

/* Transfers of one request under way together. */
struct batch {
	struct ubd_queue *q;
	struct tag *tag;
	struct coro *co;
	unsigned pending;
	int err;
};

/* The I/O that a piece is in. User copy through the buffer takes two, one after the other. */
enum step { STEP_ONLY, STEP_PULL, STEP_OUT, STEP_IN, STEP_PUSH };

struct piece {
	struct sink sink;
	struct batch *batch;
	const struct ubd_transfer *t;
	enum step step;
	uint32_t done; /* bytes of this step */
};

static bool reads(const struct tag *t)
{
	return carries_read_data(&t->io);
}

static uint32_t data_size(const struct tag *t)
{
	return (uint32_t)data_bytes(&t->io);
}

/* The data is at t->buf, by the driver's doing or by ubd_io_data()'s. */
static bool in_buffer(const struct tag *t)
{
	return t->io.queue->way->buffers || t->push_data || t->have_data;
}

uint64_t transfer_char_offset(const struct tag *t, uint32_t at)
{
	return UBLKSRV_IO_BUF_OFFSET + ((uint64_t)t->io.queue->index << UBLK_QID_OFF) +
	       ((uint64_t)t->io.tag << UBLK_TAG_OFF) + at;
}

/* ---- Registered buffers by command --------------------------------------------------------- */

static void reg_failed(struct ubd_queue *q, struct sink *sink, int res)
{
	(void)sink;
	(void)res; /* the I/O on the buffer says it */
	q->not_registered++;
}

/*
 * A buffer that was never there cannot be taken out. One that stays holds its request, and whoever
 * waits for that, until the ring ends: so let it.
 */
static void unreg_failed(struct ubd_queue *q, struct sink *sink, int res)
{
	(void)sink;
	if (q->not_registered) {
		q->not_registered--;
		return;
	}
	device_fail(q->dev, res, "queue %u: cannot unregister a request's pages: %s", q->index,
		    strerror(-res));
	queue_break(q, res);
}

/* They run only on failure: CQE_SKIP_SUCCESS. */
static struct sink reg_sink = {.fn = reg_failed};
static struct sink unreg_sink = {.fn = unreg_failed};

static void reg_command(struct tag *t, uint32_t op)
{
	struct ubd_queue *q = t->io.queue;
	struct ublksrv_io_cmd cmd = {
		.q_id = (uint16_t)q->index,
		.tag = t->io.tag,
		.addr = t->io.tag,
	};
	struct io_uring_sqe *sqe = queue_command(q, op, &cmd, sizeof(cmd));

	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	queue_sqe_sink(q, sqe, op == UBLK_U_IO_REGISTER_IO_BUF ? &reg_sink : &unreg_sink);
}

void transfer_unregister(struct tag *t)
{
	t->registered = false;
	reg_command(t, UBLK_U_IO_UNREGISTER_IO_BUF);
}

/* The ring takes SQEs in order, and this command ends inline: what follows finds the buffer. */
static void need_registered(struct tag *t)
{
	if (!t->io.queue->way->reg_cmd || t->registered)
		return;
	t->registered = true;
	reg_command(t, UBLK_U_IO_REGISTER_IO_BUF);
}

/* ---- Single steps -------------------------------------------------------------------------- */

/* pread or pwrite on the char device; the fd is non-blocking, so io_uring does it inline. */
static void prep_user_copy(struct io_uring_sqe *sqe, const struct tag *t, bool to_driver,
			   uintptr_t mem, uint32_t at, uint32_t len)
{
	sqe->opcode = to_driver ? IORING_OP_WRITE : IORING_OP_READ;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->fd = 0;
	sqe->addr = mem;
	sqe->len = len;
	sqe->off = transfer_char_offset(t, at);
}

/* At once, by a system call of its own: that is cheaper than suspending for it. */
static int user_copy(struct tag *t, bool to_driver, uintptr_t mem, uint32_t at, uint32_t len)
{
	struct ubd_queue *q = t->io.queue;

	for (uint32_t done = 0; done < len;) {
		int err = queue_fault(q);
		off_t pos = (off_t)transfer_char_offset(t, at + done);
		void *p = (void *)(mem + done);
		ssize_t ret;

		if (err)
			return err;
		ret = to_driver ? pwrite(q->dev->char_fd, p, len - done, pos)
				: pread(q->dev->char_fd, p, len - done, pos);
		if (ret < 0 && errno == EINTR)
			continue;
		if (ret <= 0)
			return ret ? -errno : -EIO;
		done += (uint32_t)ret;
		stat_add(&q->stats.bytes_copied, (uint64_t)ret);
	}
	return 0;
}

/* Only what may not be zero already. Memory never written to is the kernel's zero page, which it
 * copies from by its slowest path: write to it once. */
static void zero_own_buffer(struct tag *t, uint32_t size)
{
	memset(t->buf, 0, MIN(t->dirty, size));
	if (t->dirty <= size)
		t->dirty = 0;
	if (t->touched < size) {
		memset((char *)t->buf + t->touched, 0, size - t->touched);
		t->touched = size;
	}
}

/* Zero the whole of a read's data, where it is. For a READ ubd's driver does so by itself, and only
 * to what nobody has filled. */
static int zero_request(struct tag *t, uint32_t size)
{
	struct ubd_queue *q = t->io.queue;

	if (q->way->members && t->io.op == UBD_READ && !in_buffer(t))
		return 0;
	if (in_buffer(t)) {
		if (t->buf == t->own_buf)
			zero_own_buffer(t, size);
		else
			memset(t->buf, 0, size);
		return 0;
	}
	return user_copy(t, true, (uintptr_t)q->zeros, 0, size);
}

static void filled(struct tag *t, uint32_t end)
{
	if (in_buffer(t) && t->buf == t->own_buf)
		t->dirty = MAX(t->dirty, end);
}

/* Before bytes [at, at + len) of a READ are filled. */
static int begin_fill(struct tag *t, bool whole, uint32_t end)
{
	int ret = 0;

	if (t->fill == FILL_NONE) {
		if (!whole)
			ret = zero_request(t, data_size(t));
		t->fill = whole ? FILL_FULL : FILL_PART;
	}
	filled(t, end);
	return ret;
}

int transfer_end_read(struct tag *t, uint32_t res)
{
	if (t->push_data)
		return user_copy(t, true, (uintptr_t)t->buf, 0, res);
	if (t->fill == FILL_NONE)
		return zero_request(t, data_size(t));
	return 0;
}

/* ---- Pieces -------------------------------------------------------------------------------- */

static void prep_piece(struct io_uring_sqe *sqe, struct piece *p)
{
	const struct ubd_transfer *x = p->t;
	struct tag *t = p->batch->tag;
	struct ubd_queue *q = p->batch->q;
	bool read = reads(t), fixed = q->way->fixed && !in_buffer(t);
	uint32_t at = x->at + p->done, len = x->len - p->done;
	uintptr_t mem = fixed ? at : (uintptr_t)t->buf + at;

	if (x->where == UBD_SOCKET && !fixed) {
		sqe->opcode = read ? IORING_OP_RECV : IORING_OP_SEND;
		sqe->msg_flags = read ? MSG_WAITALL : MSG_NOSIGNAL;
		if (!read && x->flags & UBD_XFER_MORE)
			sqe->msg_flags |= MSG_MORE;
	} else {
		static const uint8_t ops[2][2] = {
			{IORING_OP_WRITE, IORING_OP_READ},
			{IORING_OP_WRITE_FIXED, IORING_OP_READ_FIXED},
		};

		sqe->opcode = ops[fixed][read];
		sqe->off = x->where == UBD_FILE ? x->pos + p->done : 0;
		if (fixed)
			sqe->buf_index = t->io.tag;
		if (!read && x->flags & UBD_XFER_FUA)
			sqe->rw_flags = RWF_DSYNC;
	}
	queue_sqe_fd(q, sqe, x->where == UBD_ZEROES ? q->zero_fd : x->fd);
	sqe->addr = mem;
	sqe->len = len;
}

static void send_piece(struct piece *p)
{
	struct ubd_queue *q = p->batch->q;
	struct io_uring_sqe *sqe = queue_sqe(q);
	const struct ubd_transfer *x = p->t;
	struct tag *t = p->batch->tag;
	uintptr_t mem = (uintptr_t)t->buf + x->at;

	if (x->mapped)
		mem = (uintptr_t)x->mapped;
	else if (x->where == UBD_ZEROES)
		mem = (uintptr_t)q->zeros;
	switch (p->step) {
	case STEP_ONLY:
	case STEP_OUT:
	case STEP_IN:
		prep_piece(sqe, p);
		break;
	case STEP_PULL:
	case STEP_PUSH:
		prep_user_copy(sqe, t, p->step == STEP_PUSH, mem + p->done, x->at + p->done,
			       x->len - p->done);
		break;
	}
	queue_sqe_sink(q, sqe, &p->sink);
}

static void piece_ended(struct piece *p, int err)
{
	struct batch *b = p->batch;

	if (err && !b->err)
		b->err = err;
	if (!--b->pending && b->co)
		coro_enter(b->co);
}

static void piece_done(struct ubd_queue *q, struct sink *sink, int res)
{
	struct piece *p = container_of(sink, struct piece, sink);
	bool copies = p->step == STEP_PULL || p->step == STEP_PUSH;

	if (res == -EINTR || res == -EAGAIN) {
		send_piece(p);
		return;
	}
	if (res <= 0) {
		piece_ended(p, res ? res : -EIO);
		return;
	}
	p->done += (unsigned)res;
	if (copies)
		stat_add(&q->stats.bytes_copied, (unsigned)res);
	else if (p->step == STEP_ONLY && q->way->fixed)
		stat_add(&q->stats.bytes_moved, (unsigned)res);
	if (p->done < p->t->len) {
		send_piece(p);
		return;
	}
	if ((p->step == STEP_PULL && !p->t->mapped) || p->step == STEP_IN) {
		p->step = p->step == STEP_PULL ? STEP_OUT : STEP_PUSH;
		p->done = 0;
		send_piece(p);
		return;
	}
	piece_ended(p, 0);
}

/* Start one piece; what needs no I/O is done at once. */
static void start_piece(struct piece *p)
{
	struct tag *t = p->batch->tag;
	const struct ubd_transfer *x = p->t;
	bool read = reads(t);

	p->sink.fn = piece_done;
	p->batch->pending++;
	p->step = STEP_ONLY;
	if (!x->len || (x->where == UBD_ZEROES && !read)) {
		piece_ended(p, 0);
	} else if (in_buffer(t)) {
		char *mem = (char *)t->buf + x->at;

		if (x->where == UBD_ZEROES) {
			memset(mem, 0, x->len);
			piece_ended(p, 0);
		} else if (x->mapped && !(x->flags & UBD_XFER_FUA)) {
			memcpy(read ? mem : x->mapped, read ? x->mapped : mem, x->len);
			piece_ended(p, 0);
		} else {
			send_piece(p);
		}
	} else if (t->io.queue->way->fixed) {
		need_registered(t);
		send_piece(p);
	} else {
		/* User copy, straight to and from memory or by way of the buffer. */
		if (x->mapped || x->where == UBD_ZEROES)
			p->step = read ? STEP_PUSH : STEP_PULL;
		else
			p->step = read ? STEP_IN : STEP_PULL;
		send_piece(p);
	}
}

static int run_wave(struct tag *tag, const struct ubd_transfer *t, unsigned n)
{
	struct ubd_queue *q = tag->io.queue;
	struct piece pieces[MAX_WAVE];
	/* One too many until all are started: completions wait for that. */
	struct batch b = {.q = q, .tag = tag, .pending = 1};

	for (unsigned i = 0; i < n; i++) {
		pieces[i] = (struct piece){.batch = &b, .t = &t[i]};
		start_piece(&pieces[i]);
	}
	b.co = queue_current(q);
	if (--b.pending)
		queue_suspend(q);
	return b.err;
}

/*
 * Check the ranges; find out whether they cover the request: together, in order and exactly, or
 * each of them the whole.
 */
static int check_ranges(const struct tag *tag, const struct ubd_transfer *t, unsigned n,
			uint32_t *total, uint32_t *end, bool *whole)
{
	uint32_t size = data_size(tag), next = 0;
	bool in_order = true, each = n;

	*total = *end = 0;
	for (unsigned i = 0; i < n; i++) {
		if (t[i].len > size || t[i].at > size - t[i].len)
			return -EINVAL;
		in_order = in_order && t[i].at == next;
		each = each && t[i].len == size;
		next = t[i].at + t[i].len;
		*total += t[i].len;
		*end = MAX(*end, next);
	}
	*whole = each || (in_order && next == size);
	return 0;
}

int ubd_io_transfer(struct ubd_io *io, const struct ubd_transfer *t, unsigned n)
{
	struct tag *tag = tag_of(io);
	uint32_t total, end;
	bool whole;
	int ret = check_ranges(tag, t, n, &total, &end, &whole);

	if (!ret && reads(tag) && total)
		ret = begin_fill(tag, whole, end);
	if (!ret && tag->io.queue->way->members && !in_buffer(tag)) {
		ret = tag->io.queue->way->splice && !reads(tag) ? splice_run(tag, t, n)
								: member_run(tag, t, n);
		n = 0;
	}
	while (n && !ret) {
		unsigned wave = MIN(n, (unsigned)MAX_WAVE);

		ret = run_wave(tag, t, wave);
		t += wave;
		n -= wave;
	}
	return ret ? ret : (int)total;
}

int ubd_io_finish(struct ubd_io *io, const struct ubd_transfer *t, unsigned n)
{
	struct tag *tag = tag_of(io);
	uint32_t total, end;
	bool whole;
	int ret;

	/* Fused, nothing of ours runs after the transfers: they must be all there is to it. An
	 * append's place is told by an ordinary commit. */
	if (tag->io.queue->way->fused && io->op != UBD_ZONE_APPEND && tag->fill == FILL_NONE &&
	    !in_buffer(tag) && !check_ranges(tag, t, n, &total, &end, &whole) && whole &&
	    request_may_fuse(io->queue) && member_fuse(tag, t, n))
		return FUSED_RESULT;
	ret = ubd_io_transfer(io, t, n);
	if (ret < 0)
		io->error = ret;
	return ret;
}

int ubd_io_untouched(struct ubd_io *io)
{
	tag_of(io)->fill = FILL_FULL;
	return (int)io->length;
}

/* ---- The bytes themselves ------------------------------------------------------------------ */

void *ubd_io_data(struct ubd_io *io)
{
	struct tag *t = tag_of(io);
	uint32_t size = data_size(t);

	if (carries_write_data(&t->io)) {
		if (!t->have_data) {
			if (user_copy(t, false, (uintptr_t)t->buf, 0, size))
				return NULL;
			t->dirty = MAX(t->dirty, size);
			t->have_data = true;
		}
		return t->buf;
	}
	if (!reads(t))
		return NULL;
	if (!in_buffer(t)) {
		/* What transfers have filled already lies with the driver, out of reach. */
		if (t->fill != FILL_NONE)
			return NULL;
		t->push_data = true;
	}
	return begin_fill(t, false, size) ? NULL : t->buf;
}

int ubd_io_get(struct ubd_io *io, uint32_t at, void *dst, uint32_t len)
{
	struct tag *t = tag_of(io);
	int ret;

	if (reads(t) || len > data_size(t) || at > data_size(t) - len)
		return -EINVAL;
	if (in_buffer(t)) {
		memcpy(dst, (char *)t->buf + at, len);
		return (int)len;
	}
	ret = user_copy(t, false, (uintptr_t)dst, at, len);
	return ret ? ret : (int)len;
}

int ubd_io_put(struct ubd_io *io, uint32_t at, const void *src, uint32_t len)
{
	struct tag *t = tag_of(io);
	int ret;

	if (!reads(t) || len > data_size(t) || at > data_size(t) - len)
		return -EINVAL;
	ret = begin_fill(t, len == data_size(t), at + len);
	if (ret)
		return ret;
	if (in_buffer(t)) {
		memcpy((char *)t->buf + at, src, len);
		return (int)len;
	}
	ret = user_copy(t, true, (uintptr_t)src, at, len);
	return ret ? ret : (int)len;
}
