/* SPDX-License-Identifier: MIT */
/* Transfers as members: I/O that ubd's driver does on the request's own pages. */
#include "internal.h"

#include <errno.h>
#include <string.h>

#define MAX_MEMBERS 32 /* per command: an array of them lies on a coroutine's stack */

/* ---- Transfers to members ------------------------------------------------------------------ */

/* Transfers that move nothing are left out. */
static bool moves(const struct tag *t, const struct ubd_transfer *x)
{
	return x->len && (x->where != UBD_ZEROES || !carries_write_data(&t->io));
}

static void translate(const struct tag *t, const struct ubd_transfer *x, uint8_t flags,
		      struct ubd_member *m)
{
	bool write = carries_write_data(&t->io);

	*m = (struct ubd_member){.flags = flags, .fd = x->fd, .at = x->at, .len = x->len};
	switch (x->where) {
	case UBD_FILE:
		m->op = write ? UBD_MEMBER_WRITE : UBD_MEMBER_READ;
		m->pos = x->pos;
		if (write && x->flags & UBD_XFER_FUA)
			m->flags |= UBD_MEMBER_F_FUA;
		break;
	case UBD_SOCKET:
		m->op = write ? UBD_MEMBER_SEND : UBD_MEMBER_RECV;
		if (write && x->flags & UBD_XFER_MORE)
			m->flags |= UBD_MEMBER_F_MORE;
		break;
	case UBD_ZEROES:
		m->op = UBD_MEMBER_ZERO;
		m->fd = -1;
		break;
	}
}

struct io_uring_sqe *member_command(struct tag *t, uint32_t op, const void *addr, unsigned nr)
{
	struct ubd_queue *q = t->io.queue;
	struct ubd_io_cmd cmd = {
		.q_id = (uint16_t)q->index,
		.tag = t->io.tag,
		.generation_nr = ubd_generation_nr(t->generation, (uint8_t)nr),
		.addr = (uintptr_t)addr,
	};

	return queue_command(q, op, &cmd, sizeof(cmd));
}

/* ---- The lease ----------------------------------------------------------------------------- */

/* The command that the members of a request are grouped under. */
struct leader {
	struct sink sink;
	struct ubd_lease lease;
	struct coro *waits;
	bool ended;
	int res;
};

static void leader_ended(struct ubd_queue *q, struct sink *sink, int res)
{
	struct leader *l = container_of(sink, struct leader, sink);

	(void)q;
	l->ended = true;
	l->res = res;
	if (l->waits)
		coro_enter(l->waits);
}

/* Its members' commands follow in the same submission: the kernel takes them in order. */
static void lead(struct tag *t, struct leader *l, unsigned commands)
{
	struct io_uring_sqe *sqe;

	*l = (struct leader){.sink.fn = leader_ended, .lease.nr_members = commands};
	sqe = member_command(t, UBD_U_IO_LEASE, &l->lease, 0);
	queue_sqe_sink(t->io.queue, sqe, &l->sink);
}

/* Wait for the leader. After an error not all of the members have come that it waits for. */
static int follow_to_end(struct tag *t, struct leader *l, int err)
{
	if (err && !l->ended)
		member_command(t, UBD_U_IO_RETURN, NULL, 0)->user_data = UD_IGNORE;
	if (!l->ended) {
		l->waits = queue_current(t->io.queue);
		queue_suspend(t->io.queue);
	}
	/* Without a leader members say ECANCELED: its own error says why. */
	return l->res < 0 ? l->res : err;
}

/* ---- Commands ------------------------------------------------------------------------------ */

static int run_command(struct tag *t, const struct ubd_member *members, unsigned nr)
{
	struct ubd_queue *q = t->io.queue;
	int ret = await_sqe(q, member_command(t, UBD_U_IO_MEMBERS, members, nr));

	if (ret > 0)
		stat_add(&q->stats.bytes_moved, (unsigned)ret);
	return ret < 0 ? ret : 0;
}

static int run_commands(struct tag *t, const struct ubd_transfer *x, unsigned n, uint8_t flags)
{
	while (n) {
		struct ubd_member members[MAX_MEMBERS];
		unsigned nr = 0;
		int ret;

		for (; n && nr < MAX_MEMBERS; n--, x++)
			if (moves(t, x))
				translate(t, x, flags, &members[nr++]);
		ret = nr ? run_command(t, members, nr) : 0;
		if (ret)
			return ret;
	}
	return 0;
}

int member_run(struct tag *t, const struct ubd_transfer *x, unsigned n)
{
	struct leader leader;
	unsigned nr = 0;

	if (!t->io.queue->way->lease)
		return run_commands(t, x, n, 0);
	for (unsigned i = 0; i < n; i++)
		nr += moves(t, &x[i]);
	if (!nr)
		return 0;
	lead(t, &leader, (nr + MAX_MEMBERS - 1) / MAX_MEMBERS);
	return follow_to_end(t, &leader, run_commands(t, x, n, UBD_MEMBER_F_LEASED));
}

bool member_fuse(struct tag *t, const struct ubd_transfer *x, unsigned n)
{
	unsigned nr = 0;

	if (n > FUSED_MAX)
		return false;
	for (unsigned i = 0; i < n; i++)
		if (moves(t, &x[i]))
			translate(t, &x[i], 0, &t->members[nr++]);
	t->fused = (uint8_t)nr;
	return nr;
}
