// SPDX-License-Identifier: MIT
/*
 * Servers for the fuzzer: they bring devices up, answer most requests as they should, do odd
 * things in between, and go in all sorts of ways.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MAX_QUEUES 4
#define TABLE_SLOTS 8

struct fuzz_queue {
	struct fuzz *f;
	uint64_t rng;
	int fd;
	unsigned q_id;
	struct ublksrv_ctrl_dev_info info;
	uint64_t until;
	atomic_uint *ready;
	struct io_uring ring;
	const struct ublksrv_io_desc *desc;
	uint8_t *bufs;
	uint8_t *scratch;
};

static bool moves_itself(const struct fuzz_queue *q)
{
	return q->info.flags & (UBLK_F_USER_COPY | UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_AUTO_BUF_REG);
}

static struct io_uring_sqe *command(struct fuzz_queue *q, uint32_t op, unsigned tag, int result)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);
	struct ublksrv_io_cmd *cmd;

	if (!sqe) {
		io_uring_submit(&q->ring);
		sqe = io_uring_get_sqe(&q->ring);
		if (!sqe)
			return NULL;
	}
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = q->fd;
	sqe->cmd_op = op;
	sqe->user_data = tag;
	cmd = (struct ublksrv_io_cmd *)sqe->cmd;
	cmd->q_id = (uint16_t)q->q_id;
	cmd->tag = (uint16_t)tag;
	cmd->result = result;
	cmd->addr =
		moves_itself(q)
			? 0
			: (uint64_t)(uintptr_t)(q->bufs + (size_t)tag * q->info.max_io_buf_bytes);
	if (q->info.flags & UBLK_F_AUTO_BUF_REG)
		sqe->addr = random_below(&q->rng, TABLE_SLOTS + 1) |
			    (fuzz_once_in(&q->rng, 2) ? 1U << 16 : 0);
	atomic_fetch_add(&q->f->commands, 1);
	return sqe;
}

static int odd_result(struct fuzz_queue *q, int bytes)
{
	switch (random_below(&q->rng, 5)) {
	case 0:
		return -(int)random_below(&q->rng, 200);
	case 1:
		return bytes / 1024 * 512;
	case 2:
		return 0;
	case 3:
		return q->f->tame ? bytes : (int)random_next(&q->rng);
	}
	return q->f->tame ? bytes : bytes + 1;
}

static void answer(struct fuzz_queue *q, unsigned tag)
{
	struct ublksrv_io_desc d = q->desc[tag];
	int bytes = (int)(d.nr_sectors * 512U);

	atomic_fetch_add(&q->f->requests, 1);
	if (ublksrv_get_op(&d) != UBLK_IO_OP_READ && ublksrv_get_op(&d) != UBLK_IO_OP_WRITE)
		bytes = 0;
	if (fuzz_once_in(&q->rng, 60))
		return;
	if (fuzz_once_in(&q->rng, 20))
		bytes = odd_result(q, bytes);
	command(q, UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, bytes);
	if (fuzz_once_in(&q->rng, 50))
		command(q, UBLK_U_IO_COMMIT_AND_FETCH_REQ, tag, bytes);
}

static void move_data(struct fuzz_queue *q)
{
	unsigned tag = random_below(&q->rng, q->info.queue_depth);
	uint64_t at = UBLKSRV_IO_BUF_OFFSET + ((uint64_t)q->q_id << UBLK_QID_OFF) +
		      ((uint64_t)tag << UBLK_TAG_OFF) + random_below(&q->rng, 8192);
	ssize_t n;

	if (fuzz_once_in(&q->rng, 10))
		at ^= 1ULL << random_below(&q->rng, 63);
	if (fuzz_once_in(&q->rng, 2))
		n = pread(q->fd, q->scratch, 1 + random_below(&q->rng, 8192), (off_t)at);
	else
		n = pwrite(q->fd, q->scratch, 1 + random_below(&q->rng, 8192), (off_t)at);
	if (n > 0)
		atomic_fetch_add(&q->f->transfers, 1);
}

static void odd_command(struct fuzz_queue *q)
{
	static const uint32_t ops[] = {
		UBLK_U_IO_FETCH_REQ,	   UBLK_U_IO_COMMIT_AND_FETCH_REQ, UBLK_U_IO_NEED_GET_DATA,
		UBLK_U_IO_REGISTER_IO_BUF, UBLK_U_IO_UNREGISTER_IO_BUF,	   UBLK_U_IO_PREP_IO_CMDS,
		UBLK_U_IO_COMMIT_IO_CMDS,  UBLK_U_IO_FETCH_IO_CMDS,
	};
	uint32_t op = ops[random_below(&q->rng, sizeof(ops) / sizeof(ops[0]))];
	struct io_uring_sqe *sqe;

	if (fuzz_once_in(&q->rng, 10))
		op ^= 1U << random_below(&q->rng, 32);
	sqe = command(q, op, random_below(&q->rng, q->info.queue_depth), 0);
	if (!sqe)
		return;
	sqe->user_data = 1ULL << 32;
	if (op == UBLK_U_IO_REGISTER_IO_BUF || op == UBLK_U_IO_UNREGISTER_IO_BUF)
		((struct ublksrv_io_cmd *)sqe->cmd)->addr = random_below(&q->rng, TABLE_SLOTS + 1);
	if (_IOC_NR(op) >= 0x25) {
		for (unsigned i = 0; i < 64; i++)
			q->scratch[i] = (uint8_t)random_below(&q->rng, 4);
		sqe->addr = (uint64_t)(uintptr_t)q->scratch;
		sqe->len = 64;
	}
	/* A commit by chance keeps to results that the driver is known to bear. */
	if (fuzz_once_in(&q->rng, 2) && !(q->f->tame && _IOC_NR(op) == 0x21))
		fuzz_mutate(&q->rng, sqe->cmd, 16);
	if (fuzz_once_in(&q->rng, 20))
		sqe->flags |= IOSQE_ASYNC;
}

static bool queue_open(struct fuzz_queue *q)
{
	size_t bytes = (q->info.queue_depth * sizeof(*q->desc) + 4095) & ~4095UL;
	off_t at = (off_t)q->q_id * (off_t)(UBLK_MAX_QUEUE_DEPTH * sizeof(*q->desc));
	void *desc = mmap(NULL, bytes, PROT_READ, MAP_SHARED, q->fd, at);

	if (desc == MAP_FAILED)
		return false;
	q->desc = desc;
	q->bufs = mmap(NULL, (size_t)q->info.queue_depth * q->info.max_io_buf_bytes + 4096,
		       PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	q->scratch = malloc(16384);
	if (q->bufs == MAP_FAILED || !q->scratch)
		return false;
	memset(q->scratch, 0, 16384);
	if (io_uring_queue_init(256, &q->ring, 0))
		return false;
	io_uring_register_buffers_sparse(&q->ring, TABLE_SLOTS);
	return true;
}

static void take(struct fuzz_queue *q, const struct io_uring_cqe *cqe)
{
	unsigned tag = (unsigned)cqe->user_data;

	if (cqe->user_data >> 32 || tag >= q->info.queue_depth)
		return;
	if (cqe->res == UBLK_IO_RES_OK)
		answer(q, tag);
	else if (cqe->res == UBLK_IO_RES_NEED_GET_DATA)
		command(q, UBLK_U_IO_NEED_GET_DATA, tag, 0);
}

static void *serve_queue(void *arg)
{
	struct fuzz_queue *q = arg;
	struct __kernel_timespec ts = {0, 5000000};
	struct io_uring_cqe *cqe;

	prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
	if (!queue_open(q))
		return NULL;
	for (unsigned tag = 0; tag < q->info.queue_depth; tag++) {
		if (!fuzz_once_in(&q->rng, 400))
			command(q, UBLK_U_IO_FETCH_REQ, tag, 0);
	}
	io_uring_submit(&q->ring);
	atomic_fetch_add(q->ready, 1);
	while (fuzz_now_ms() < q->until) {
		if (io_uring_wait_cqe_timeout(&q->ring, &cqe, &ts) == 0) {
			take(q, cqe);
			io_uring_cqe_seen(&q->ring, cqe);
		}
		if (fuzz_once_in(&q->rng, 20))
			odd_command(q);
		if (fuzz_once_in(&q->rng, moves_itself(q) ? 2 : 100))
			move_data(q);
		if (fuzz_once_in(&q->rng, 2000))
			mprotect((void *)q->desc, 4096, PROT_READ | PROT_WRITE);
		io_uring_submit(&q->ring);
	}
	if (fuzz_once_in(&q->rng, 2))
		io_uring_queue_exit(&q->ring);
	return NULL;
}

/* Go live with what the device needs for it; in the background, since it may wait for ever. */
static void go_live(struct fuzz *f, struct fuzz_ctrl *c, struct ublksrv_ctrl_cmd *cmd,
		    bool recovering, uint64_t until)
{
	uint64_t tag;
	int res;

	cmd->data[0] = (uint64_t)getpid();
	fuzz_ctrl_send(f, c, recovering ? UBLK_U_CMD_END_USER_RECOVERY : UBLK_U_CMD_START_DEV, cmd,
		       1);
	while (fuzz_now_ms() < until) {
		if (fuzz_ctrl_reap(f, c, 50, &tag, &res) && tag == 1 && res == 0)
			atomic_fetch_add(&f->started, 1);
	}
}

static bool prepare(struct fuzz *f, uint64_t *rng, struct fuzz_ctrl *c,
		    struct ublksrv_ctrl_cmd *cmd, struct ublksrv_ctrl_dev_info *info,
		    bool *recovering)
{
	struct ublk_params params;

	fuzz_dev_info(f, rng, info);
	*cmd = (struct ublksrv_ctrl_cmd){
		.dev_id = info->dev_id,
		.queue_id = (uint16_t)-1,
		.len = sizeof(*info),
		.addr = (uint64_t)(uintptr_t)info,
	};
	fuzz_ctrl_run(f, c, UBLK_U_CMD_ADD_DEV, cmd);
	if (fuzz_ctrl_run(f, c, UBLK_U_CMD_GET_DEV_INFO, cmd))
		return false;
	fuzz_params(rng, info->flags, &params);
	cmd->len = sizeof(params);
	cmd->addr = (uint64_t)(uintptr_t)&params;
	fuzz_ctrl_run(f, c, UBLK_U_CMD_SET_PARAMS, cmd);
	*recovering = info->state == UBLK_S_DEV_QUIESCED || info->state == UBLK_S_DEV_FAIL_IO;
	if (*recovering)
		fuzz_ctrl_run(f, c, UBLK_U_CMD_START_USER_RECOVERY, cmd);
	cmd->len = 0;
	cmd->addr = 0;
	return info->nr_hw_queues && info->nr_hw_queues <= MAX_QUEUES && info->queue_depth &&
	       info->queue_depth <= 256;
}

void fuzz_server(struct fuzz *f, uint64_t *rng)
{
	struct fuzz_queue *queues = calloc(MAX_QUEUES, sizeof(*queues));
	uint64_t until = fuzz_now_ms() + 500 + random_below(rng, 5000);
	struct ublksrv_ctrl_dev_info info;
	struct ublksrv_ctrl_cmd cmd;
	atomic_uint ready = 0;
	struct fuzz_ctrl c;
	pthread_t ids[MAX_QUEUES];
	bool recovering;
	char path[64];
	int fd;

	if (!queues || fuzz_ctrl_open(&c))
		return;
	if (!prepare(f, rng, &c, &cmd, &info, &recovering))
		return;
	snprintf(path, sizeof(path), "/dev/ublkc%u", cmd.dev_id);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	for (unsigned i = 0; i < info.nr_hw_queues; i++) {
		queues[i] = (struct fuzz_queue){
			.f = f, .fd = fd, .q_id = i, .info = info, .until = until, .ready = &ready};
		queues[i].rng = fuzz_seed(random_next(rng), i, 0);
		pthread_create(&ids[i], NULL, serve_queue, &queues[i]);
	}
	go_live(f, &c, &cmd, recovering, until);
	switch (random_below(rng, 3)) {
	case 0:
		raise(SIGKILL);
		break;
	case 1:
		for (unsigned i = 0; i < info.nr_hw_queues; i++)
			pthread_join(ids[i], NULL);
		close(fd);
		break;
	}
	_exit(0);
}
