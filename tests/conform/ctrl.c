// SPDX-License-Identifier: MIT
/*
 * Control commands on a ring of their own. See ctrl.h.
 */
#include "ctrl.h"

#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <liburing.h>
#include <string.h>
#include <unistd.h>

#define CTRL_LIMIT_MS 20000

static void fill_sqe(struct io_uring_sqe *sqe, int fd, const struct ctrl *c)
{
	struct ublksrv_ctrl_cmd *cmd = (struct ublksrv_ctrl_cmd *)sqe->cmd;

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = fd;
	sqe->cmd_op = c->op;
	/* A plain SQE ends after the first 16 bytes of the command. */
	memset(cmd, 0, c->sqe64 ? 16 : 80);
	cmd->dev_id = c->id;
	cmd->queue_id = c->queue_set ? c->queue : (uint16_t)-1;
	cmd->len = c->len;
	cmd->addr = c->buf ? (uint64_t)(uintptr_t)c->buf : c->addr;
	if (c->sqe64)
		return;
	cmd->data[0] = c->data;
	cmd->dev_path_len = c->path_len;
}

long ctrl_direct(const struct ctrl *c)
{
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	struct io_uring ring;
	long res;
	int fd;

	fd = open("/dev/ublk-control", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	res = io_uring_queue_init(4, &ring, c->sqe64 ? 0 : IORING_SETUP_SQE128);
	if (res)
		goto close_fd;
	sqe = io_uring_get_sqe(&ring);
	if (!sqe) {
		res = -EBUSY;
		goto exit_ring;
	}
	fill_sqe(sqe, fd, c);
	res = io_uring_submit(&ring);
	if (res == 1 && c->leave)
		return 0;
	if (res != 1)
		goto exit_ring;
	do {
		res = io_uring_wait_cqe(&ring, &cqe);
	} while (res == -EINTR);
	if (!res)
		res = cqe->res;
exit_ring:
	io_uring_queue_exit(&ring);
close_fd:
	close(fd);
	return res;
}

static long run_ctrl_job(struct job *job)
{
	struct ctrl c;

	memcpy(&c, job->arg, sizeof(c));
	if (c.buf)
		c.buf = job->data;
	if (c.uid) {
		gid_t gid = c.uid;

		if (setgroups(1, &gid) || setresgid(gid, gid, gid) ||
		    setresuid(c.uid, c.uid, c.uid))
			return -errno;
	}
	return ctrl_direct(&c);
}

struct job *ctrl_begin(const struct ctrl *c)
{
	struct job *job = job_new(run_ctrl_job, c, sizeof(*c));

	if (c->buf)
		memcpy(job->data, c->buf, c->len);
	job_start(job);
	return job;
}

long ctrl_run(struct ctrl *c)
{
	struct job *job = ctrl_begin(c);
	long res = -EINVAL;
	int ret;

	ret = job_wait(job, c->limit_ms ? c->limit_ms : CTRL_LIMIT_MS, &res);
	if (ret)
		return ret;
	if (c->buf)
		memcpy(c->buf, job->data, c->len);
	job_put(job);
	return res;
}
