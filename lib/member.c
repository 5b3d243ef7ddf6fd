/* SPDX-License-Identifier: MIT */
/* Transfers as members: I/O that ubd's driver does on the request's own pages. */
#include "internal.h"

#include <errno.h>
#include <string.h>

#define MAX_MEMBERS 32 /* per command: an array of them lies on a coroutine's stack */

/* Translate one transfer. Members that move nothing are left out: returns whether it is one. */
static bool translate(const struct tag *t, const struct ubd_transfer *x, struct ubd_member *m)
{
	bool write = t->io.op == UBD_WRITE || t->io.op == UBD_ZONE_APPEND;

	if (!x->len || (x->where == UBD_ZEROES && write))
		return false;
	*m = (struct ubd_member){.fd = x->fd, .at = x->at, .len = x->len};
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
	return true;
}

static int run_command(struct tag *t, const struct ubd_member *members, unsigned nr)
{
	struct ubd_queue *q = t->io.queue;
	struct io_uring_sqe *sqe = queue_sqe(q);
	struct ubd_io_cmd cmd = {
		.q_id = (uint16_t)q->index,
		.tag = t->io.tag,
		.generation_nr = ubd_generation_nr(t->generation, (uint8_t)nr),
		.addr = (uintptr_t)members,
	};
	int ret;

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->fd = 0;
	sqe->cmd_op = UBD_U_IO_MEMBERS;
	memcpy(sqe->cmd, &cmd, sizeof(cmd));
	ret = await_sqe(q, sqe);
	if (ret > 0)
		q->stats.bytes_moved += (unsigned)ret;
	return ret < 0 ? ret : 0;
}

int member_run(struct tag *t, const struct ubd_transfer *x, unsigned n)
{
	while (n) {
		struct ubd_member members[MAX_MEMBERS];
		unsigned nr = 0;
		int ret;

		while (n && nr < MAX_MEMBERS) {
			nr += translate(t, x++, &members[nr]);
			n--;
		}
		ret = nr ? run_command(t, members, nr) : 0;
		if (ret)
			return ret;
	}
	return 0;
}

bool member_fuse(struct tag *t, const struct ubd_transfer *x, unsigned n)
{
	unsigned nr = 0;

	if (n > FUSED_MAX)
		return false;
	for (unsigned i = 0; i < n; i++)
		nr += translate(t, &x[i], &t->members[nr]);
	t->fused = (uint8_t)nr;
	return nr;
}
