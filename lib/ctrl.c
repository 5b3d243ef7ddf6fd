/* SPDX-License-Identifier: MIT */
/* Control commands: one 128-byte SQE each, waited for until the deadline and no longer. */
#define _GNU_SOURCE
#include <ubd/ctrl.h>

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../include/uapi/ubd.h"
#include "ctrl_wait.h"
#include "fault.h"
#include "util.h"

#define DEFAULT_DEADLINE_MS 30000
#define BUFFER_SIZE 4096

struct ubd_ctrl {
	struct io_uring ring;
	int fd;
	unsigned deadline_ms;
	uint64_t seq; /* of the command waited for; a late completion has an older one */
	void *buf;    /* what commands point to: outlives a command that timed out */
	struct fault fault;
	ctrl_idle_fn *idle;
	void *idle_arg;
};

/* One command: what goes into the SQE, and the buffer that it reads or fills. */
struct command {
	uint32_t op;
	uint32_t id;
	uint16_t queue;
	uint64_t data;
	void *buf;
	uint16_t len;
	bool out; /* the driver fills buf */
};

int ubd_ctrl_open(struct ubd_ctrl **out)
{
	struct ubd_ctrl *c = calloc(1, sizeof(*c));
	int ret;

	if (!c)
		return -ENOMEM;
	c->deadline_ms = DEFAULT_DEADLINE_MS;
	c->buf = calloc(1, BUFFER_SIZE);
	if (!c->buf) {
		ret = -ENOMEM;
		goto free_ctrl;
	}
	c->fd = open("/dev/ublk-control", O_RDWR | O_CLOEXEC);
	if (c->fd < 0) {
		ret = -errno;
		goto free_buf;
	}
	ret = io_uring_queue_init(8, &c->ring, IORING_SETUP_SQE128);
	if (ret < 0)
		goto close_fd;
	*out = c;
	return 0;
close_fd:
	close(c->fd);
free_buf:
	free(c->buf);
free_ctrl:
	free(c);
	return ret;
}

void ubd_ctrl_close(struct ubd_ctrl *c)
{
	if (!c)
		return;
	io_uring_queue_exit(&c->ring);
	close(c->fd);
	free(c->buf);
	free(c);
}

void ubd_ctrl_set_deadline(struct ubd_ctrl *c, unsigned ms)
{
	c->deadline_ms = ms ? ms : DEFAULT_DEADLINE_MS;
}

int ubd_ctrl_set_fault(struct ubd_ctrl *c, const char *fault)
{
	return fault_parse(&c->fault, fault);
}

void ctrl_set_idle(struct ubd_ctrl *c, ctrl_idle_fn *idle, void *arg)
{
	c->idle = idle;
	c->idle_arg = arg;
}

static int submit(struct ubd_ctrl *c, const struct command *cmd)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&c->ring);
	struct ublksrv_ctrl_cmd *payload;

	if (!sqe)
		return -EBUSY;
	/* SQE128: the payload begins 48 bytes in and runs into the second half. */
	payload = (struct ublksrv_ctrl_cmd *)sqe->cmd;
	memset(sqe, 0, 2 * sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = c->fd;
	sqe->cmd_op = cmd->op;
	sqe->user_data = ++c->seq;
	*payload = (struct ublksrv_ctrl_cmd){
		.dev_id = cmd->id,
		.queue_id = cmd->queue,
		.addr = cmd->buf ? (uintptr_t)c->buf : 0,
		.len = cmd->len,
		.data = {cmd->data},
	};
	return io_uring_submit(&c->ring);
}

/* Wait for the completion of the command submitted last. *left: it is still under way. */
static int wait_result(struct ubd_ctrl *c, bool *left)
{
	uint64_t end = now_ns() + c->deadline_ms * 1000000ULL;

	for (;;) {
		struct io_uring_cqe *cqe;
		uint64_t now;

		if (io_uring_peek_cqe(&c->ring, &cqe) == 0) {
			uint64_t seq = cqe->user_data;
			int res = cqe->res;

			io_uring_cqe_seen(&c->ring, cqe);
			if (seq != c->seq)
				continue;
			*left = false;
			return res;
		}
		now = now_ns();
		*left = true;
		if (now >= end)
			return -ETIMEDOUT;
		if (c->idle) {
			int ret = c->idle(c->idle_arg, c->ring.ring_fd,
					  (int)((end - now) / 1000000) + 1);

			if (ret)
				return ret;
		} else {
			struct __kernel_timespec ts = {
				.tv_sec = (long long)((end - now) / 1000000000),
				.tv_nsec = (long long)((end - now) % 1000000000),
			};

			io_uring_wait_cqe_timeout(&c->ring, &cqe, &ts);
		}
	}
}

static int execute(struct ubd_ctrl *c, const struct command *cmd)
{
	int ret = fault_hit(&c->fault, FAULT_CTRL);
	bool left;

	if (ret)
		return ret;
	if (cmd->buf)
		memcpy(c->buf, cmd->buf, cmd->len);
	ret = submit(c, cmd);
	if (ret < 0)
		return ret;
	ret = wait_result(c, &left);
	if (left) {
		/* The kernel may still write to the buffer: leave it to the command for good. */
		void *fresh = calloc(1, BUFFER_SIZE);

		if (fresh)
			c->buf = fresh;
		return ret;
	}
	if (ret >= 0 && cmd->out)
		memcpy(cmd->buf, c->buf, cmd->len);
	return ret < 0 ? ret : 0;
}

static int simple(struct ubd_ctrl *c, uint32_t op, uint32_t id, uint64_t data)
{
	return execute(c, &(struct command){.op = op, .id = id, .queue = UINT16_MAX, .data = data});
}

int ubd_ctrl_features(struct ubd_ctrl *c, uint64_t *features)
{
	int ret = execute(c, &(struct command){
				     .op = UBLK_U_CMD_GET_FEATURES,
				     .id = UINT32_MAX,
				     .queue = UINT16_MAX,
				     .buf = features,
				     .len = UBLK_FEATURES_LEN,
				     .out = true,
			     });

	if (ret == -EOPNOTSUPP || ret == -EINVAL) {
		*features = 0;
		return 0;
	}
	return ret;
}

int ubd_ctrl_extensions(struct ubd_ctrl *c, uint64_t *features, char *version, size_t size)
{
	struct ubd_query query = {0};
	int ret = execute(c, &(struct command){
				     .op = UBD_U_CMD_QUERY,
				     .id = UINT32_MAX,
				     .queue = UINT16_MAX,
				     .buf = &query,
				     .len = sizeof(query),
				     .out = true,
			     });

	/* Other drivers do not know the command, or look for the device first. */
	if (ret == -EOPNOTSUPP || ret == -EINVAL || ret == -ENODEV) {
		query = (struct ubd_query){0};
		ret = 0;
	}
	*features = query.features;
	/* Before version 2 nobody learns that a fused request has ended. */
	if (query.abi_version < 2)
		*features &= ~UBD_F_FUSED;
	if (version && size)
		snprintf(version, size, "%.*s", (int)sizeof(query.version), query.version);
	return ret;
}

int ubd_ctrl_add(struct ubd_ctrl *c, struct ublksrv_ctrl_dev_info *info)
{
	return execute(c, &(struct command){
				  .op = UBLK_U_CMD_ADD_DEV,
				  .id = info->dev_id,
				  .queue = UINT16_MAX,
				  .buf = info,
				  .len = sizeof(*info),
				  .out = true,
			  });
}

int ubd_ctrl_info(struct ubd_ctrl *c, uint32_t id, struct ublksrv_ctrl_dev_info *info)
{
	memset(info, 0, sizeof(*info));
	return execute(c, &(struct command){
				  .op = UBLK_U_CMD_GET_DEV_INFO,
				  .id = id,
				  .queue = UINT16_MAX,
				  .buf = info,
				  .len = sizeof(*info),
				  .out = true,
			  });
}

int ubd_ctrl_set_params(struct ubd_ctrl *c, uint32_t id, const struct ublk_params *params)
{
	struct ublk_params copy = *params;

	copy.len = sizeof(copy);
	return execute(c, &(struct command){
				  .op = UBLK_U_CMD_SET_PARAMS,
				  .id = id,
				  .queue = UINT16_MAX,
				  .buf = &copy,
				  .len = sizeof(copy),
			  });
}

int ubd_ctrl_params(struct ubd_ctrl *c, uint32_t id, struct ublk_params *params)
{
	memset(params, 0, sizeof(*params));
	params->len = sizeof(*params);
	return execute(c, &(struct command){
				  .op = UBLK_U_CMD_GET_PARAMS,
				  .id = id,
				  .queue = UINT16_MAX,
				  .buf = params,
				  .len = sizeof(*params),
				  .out = true,
			  });
}

int ubd_ctrl_affinity(struct ubd_ctrl *c, uint32_t id, uint16_t queue, cpu_set_t *cpus, size_t size)
{
	if (size > BUFFER_SIZE)
		size = BUFFER_SIZE;
	memset(cpus, 0, size);
	return execute(c, &(struct command){
				  .op = UBLK_U_CMD_GET_QUEUE_AFFINITY,
				  .id = id,
				  .queue = UINT16_MAX,
				  .data = queue,
				  .buf = cpus,
				  .len = (uint16_t)size,
				  .out = true,
			  });
}

int ubd_ctrl_start(struct ubd_ctrl *c, uint32_t id, int pid)
{
	return simple(c, UBLK_U_CMD_START_DEV, id, (uint64_t)pid);
}

int ubd_ctrl_stop(struct ubd_ctrl *c, uint32_t id)
{
	return simple(c, UBLK_U_CMD_STOP_DEV, id, 0);
}

int ubd_ctrl_try_stop(struct ubd_ctrl *c, uint32_t id)
{
	return simple(c, UBLK_U_CMD_TRY_STOP_DEV, id, 0);
}

int ubd_ctrl_del(struct ubd_ctrl *c, uint32_t id)
{
	return simple(c, UBLK_U_CMD_DEL_DEV, id, 0);
}

int ubd_ctrl_del_async(struct ubd_ctrl *c, uint32_t id)
{
	int ret = simple(c, UBLK_U_CMD_DEL_DEV_ASYNC, id, 0);

	return ret == -EOPNOTSUPP ? ubd_ctrl_del(c, id) : ret;
}

int ubd_ctrl_start_recovery(struct ubd_ctrl *c, uint32_t id)
{
	return simple(c, UBLK_U_CMD_START_USER_RECOVERY, id, 0);
}

int ubd_ctrl_end_recovery(struct ubd_ctrl *c, uint32_t id, int pid)
{
	return simple(c, UBLK_U_CMD_END_USER_RECOVERY, id, (uint64_t)pid);
}

int ubd_ctrl_resize(struct ubd_ctrl *c, uint32_t id, uint64_t size)
{
	return simple(c, UBLK_U_CMD_UPDATE_SIZE, id, size >> 9);
}

int ubd_ctrl_quiesce(struct ubd_ctrl *c, uint32_t id, unsigned ms)
{
	return simple(c, UBLK_U_CMD_QUIESCE_DEV, id, ms);
}
