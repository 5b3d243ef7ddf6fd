// SPDX-License-Identifier: MIT
/*
 * Control commands for the fuzzer: most of them make sense, some are mutated, any may come at any
 * time.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

uint64_t fuzz_seed(uint64_t seed, uint64_t a, uint64_t b)
{
	return random_mix(random_mix(random_mix(seed + 1) + a + 1) + b + 1);
}

bool fuzz_once_in(uint64_t *rng, unsigned n)
{
	return random_below(rng, n) == 0;
}

void fuzz_mutate(uint64_t *rng, void *buf, size_t bytes)
{
	static const uint8_t favourites[] = {0, 1, 0x7f, 0x80, 0xff};
	uint8_t *p = buf;

	for (unsigned i = 1 + random_below(rng, 4); i; i--) {
		size_t at = random_below(rng, (unsigned)bytes);

		if (fuzz_once_in(rng, 2))
			p[at] = favourites[random_below(rng, sizeof(favourites))];
		else
			p[at] ^= (uint8_t)(1U << random_below(rng, 8));
	}
}

uint64_t fuzz_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

int fuzz_ctrl_open(struct fuzz_ctrl *c)
{
	int ret;

	c->in_flight = 0;
	c->fd = open("/dev/ublk-control", O_RDWR | O_CLOEXEC);
	if (c->fd < 0)
		return -errno;
	ret = io_uring_queue_init(32, &c->ring, IORING_SETUP_SQE128);
	if (ret)
		close(c->fd);
	return ret;
}

void fuzz_ctrl_close(struct fuzz_ctrl *c)
{
	io_uring_queue_exit(&c->ring);
	close(c->fd);
}

void fuzz_ctrl_send(struct fuzz *f, struct fuzz_ctrl *c, uint32_t op,
		    const struct ublksrv_ctrl_cmd *cmd, uint64_t tag)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&c->ring);

	if (!sqe)
		return;
	memset(sqe, 0, 128);
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = c->fd;
	sqe->cmd_op = op;
	sqe->user_data = tag;
	memcpy(sqe->cmd, cmd, sizeof(*cmd));
	io_uring_submit(&c->ring);
	c->in_flight++;
	atomic_fetch_add(&f->commands, 1);
}

bool fuzz_ctrl_reap(struct fuzz *f, struct fuzz_ctrl *c, unsigned ms, uint64_t *tag, int *res)
{
	struct __kernel_timespec ts = {ms / 1000, ms % 1000 * 1000000LL};
	struct io_uring_cqe *cqe;

	if (io_uring_wait_cqe_timeout(&c->ring, &cqe, &ts))
		return false;
	*tag = cqe->user_data;
	*res = cqe->res;
	io_uring_cqe_seen(&c->ring, cqe);
	c->in_flight--;
	if (*res < 0)
		atomic_fetch_add(&f->refused, 1);
	return true;
}

int fuzz_ctrl_run(struct fuzz *f, struct fuzz_ctrl *c, uint32_t op,
		  const struct ublksrv_ctrl_cmd *cmd)
{
	static atomic_ulong next = 1;
	uint64_t mine = atomic_fetch_add(&next, 1) << 8, tag, until = fuzz_now_ms() + 1000;
	int res;

	fuzz_ctrl_send(f, c, op, cmd, mine);
	while (fuzz_now_ms() < until) {
		if (fuzz_ctrl_reap(f, c, 50, &tag, &res) && tag == mine)
			return res;
	}
	return -ETIME;
}

void fuzz_dev_info(struct fuzz *f, uint64_t *rng, struct ublksrv_ctrl_dev_info *info)
{
	memset(info, 0, sizeof(*info));
	info->nr_hw_queues = (uint16_t)(1 + random_below(rng, 3));
	info->queue_depth = (uint16_t)(1U << random_below(rng, 7));
	info->max_io_buf_bytes = 4096U << random_below(rng, 7);
	info->dev_id = FUZZ_FIRST_ID + random_below(rng, f->devices);
	for (unsigned bit = 0; bit < 20; bit++) {
		if (fuzz_once_in(rng, 4))
			info->flags |= f->features & 1ULL << bit;
	}
	/* The sparing of what no server here speaks, and of what makes ADD_DEV fail. */
	if (!fuzz_once_in(rng, 8))
		info->flags &= ~(UBLK_F_ZONED | UBLK_F_BATCH_IO);
	if (info->flags & (UBLK_F_QUIESCE | UBLK_F_USER_RECOVERY_REISSUE))
		info->flags |= UBLK_F_USER_RECOVERY;
	if (info->flags & UBLK_F_USER_RECOVERY_REISSUE)
		info->flags &= ~UBLK_F_USER_RECOVERY_FAIL_IO;
	if (info->flags & UBLK_F_INTEGRITY)
		info->flags |= UBLK_F_USER_COPY;
	if (f->tame)
		info->flags &= ~(UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE |
				 UBLK_F_USER_RECOVERY_FAIL_IO | UBLK_F_QUIESCE);
	if (fuzz_once_in(rng, 20))
		fuzz_mutate(rng, info, sizeof(*info));
	info->dev_id = FUZZ_FIRST_ID + info->dev_id % f->devices;
	/* Large ones are for the conformance suite; here they would only use memory up. */
	info->queue_depth %= 257;
}

void fuzz_params(uint64_t *rng, uint64_t flags, struct ublk_params *p)
{
	memset(p, 0, sizeof(*p));
	p->len = sizeof(*p);
	p->types = UBLK_PARAM_TYPE_BASIC;
	p->basic.attrs = random_below(rng, 16) & ~1U;
	p->basic.logical_bs_shift = (uint8_t)(9 + random_below(rng, 4));
	p->basic.physical_bs_shift = 12;
	p->basic.io_min_shift = 12;
	p->basic.io_opt_shift = (uint8_t)(12 + random_below(rng, 5));
	p->basic.max_sectors = 8;
	p->basic.dev_sectors = 2048ULL << random_below(rng, 6);
	if (fuzz_once_in(rng, 2)) {
		p->types |= UBLK_PARAM_TYPE_DISCARD;
		p->discard.discard_granularity = 4096;
		p->discard.max_discard_sectors = 1U << random_below(rng, 20);
		p->discard.max_write_zeroes_sectors = 1U << random_below(rng, 20);
		p->discard.max_discard_segments = 1;
	}
	if (flags & UBLK_F_ZONED) {
		p->types |= UBLK_PARAM_TYPE_ZONED;
		p->basic.chunk_sectors = 1024;
		p->zoned.max_zone_append_sectors = 8;
	}
	if (fuzz_once_in(rng, 10))
		fuzz_mutate(rng, p, sizeof(*p));
	/* A mutated size may not make the kernel read for hours. */
	p->basic.dev_sectors &= (1ULL << 30) - 1;
}

static const uint32_t ctrl_ops[] = {
	UBLK_U_CMD_GET_QUEUE_AFFINITY,
	UBLK_U_CMD_GET_DEV_INFO,
	UBLK_U_CMD_ADD_DEV,
	UBLK_U_CMD_DEL_DEV,
	UBLK_U_CMD_START_DEV,
	UBLK_U_CMD_STOP_DEV,
	UBLK_U_CMD_SET_PARAMS,
	UBLK_U_CMD_GET_PARAMS,
	UBLK_U_CMD_START_USER_RECOVERY,
	UBLK_U_CMD_END_USER_RECOVERY,
	UBLK_U_CMD_GET_DEV_INFO2,
	UBLK_U_CMD_GET_FEATURES,
	UBLK_U_CMD_DEL_DEV_ASYNC,
	UBLK_U_CMD_UPDATE_SIZE,
	UBLK_U_CMD_QUIESCE_DEV,
	UBLK_U_CMD_TRY_STOP_DEV,
	UBLK_U_CMD_REG_BUF,
	UBLK_U_CMD_UNREG_BUF,
	UBLK_CMD_GET_DEV_INFO,
	UBLK_CMD_STOP_DEV,
};

/* What ends a device is rarer than what a device lives through. */
static uint32_t pick_op(struct fuzz *f, uint64_t *rng)
{
	uint32_t op = ctrl_ops[random_below(rng, sizeof(ctrl_ops) / sizeof(ctrl_ops[0]))];

	if ((op == UBLK_U_CMD_DEL_DEV || op == UBLK_U_CMD_DEL_DEV_ASYNC ||
	     op == UBLK_U_CMD_STOP_DEV || op == UBLK_CMD_STOP_DEV) &&
	    !fuzz_once_in(rng, 12))
		op = UBLK_U_CMD_GET_DEV_INFO;
	if (f->tame && (op == UBLK_U_CMD_START_USER_RECOVERY || op == UBLK_U_CMD_START_DEV))
		op = UBLK_U_CMD_GET_PARAMS;
	if (fuzz_once_in(rng, 40))
		op = (uint32_t)random_next(rng);
	else if (fuzz_once_in(rng, 40))
		op ^= 1U << random_below(rng, 32);
	return op;
}

static void one_command(struct fuzz *f, uint64_t *rng, struct fuzz_ctrl *c, uint8_t *mem)
{
	uint32_t op = pick_op(f, rng);
	struct ublksrv_ctrl_cmd cmd = {
		.dev_id = FUZZ_FIRST_ID + random_below(rng, f->devices),
		.queue_id = (uint16_t)-1,
		.len = 1024,
		.addr = (uint64_t)(uintptr_t)mem,
		.data[0] = random_below(rng, 4),
	};

	switch (op) {
	case UBLK_U_CMD_ADD_DEV:
		fuzz_dev_info(f, rng, (struct ublksrv_ctrl_dev_info *)mem);
		cmd.dev_id = ((struct ublksrv_ctrl_dev_info *)mem)->dev_id;
		break;
	case UBLK_U_CMD_SET_PARAMS:
	case UBLK_U_CMD_GET_PARAMS:
		fuzz_params(rng, random_next(rng), (struct ublk_params *)mem);
		break;
	case UBLK_U_CMD_UPDATE_SIZE:
		cmd.data[0] = 1024ULL << random_below(rng, 8);
		break;
	case UBLK_U_CMD_QUIESCE_DEV:
		cmd.data[0] = 20;
		break;
	case UBLK_U_CMD_GET_FEATURES:
		cmd.len = UBLK_FEATURES_LEN;
		break;
	case UBLK_U_CMD_REG_BUF:
		*(struct ublk_shmem_buf_reg *)mem = (struct ublk_shmem_buf_reg){
			.addr = (uint64_t)(uintptr_t)mem + 4096 * random_below(rng, 4),
			.len = 4096 * (1 + random_below(rng, 4)),
			.flags = random_below(rng, 2),
		};
		cmd.len = sizeof(struct ublk_shmem_buf_reg);
		break;
	}
	if (fuzz_once_in(rng, 15)) {
		fuzz_mutate(rng, &cmd, sizeof(cmd));
		/* Devices of another id would be nobody's to remove. */
		cmd.dev_id = FUZZ_FIRST_ID + cmd.dev_id % f->devices;
	}
	fuzz_ctrl_send(f, c, op, &cmd, op);
}

void fuzz_controller(struct fuzz *f, uint64_t *rng)
{
	unsigned rounds = 50 + random_below(rng, 500);
	struct fuzz_ctrl c;
	uint8_t *mem = mmap(NULL, 32768, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t tag;
	int res;

	if (mem == MAP_FAILED || fuzz_ctrl_open(&c))
		return;
	while (rounds--) {
		one_command(f, rng, &c, mem);
		fuzz_ctrl_reap(f, &c, 5 + random_below(rng, 20), &tag, &res);
		/* When all hang, this one has done what it could. */
		if (c.in_flight > 24)
			break;
	}
	_exit(0);
}
