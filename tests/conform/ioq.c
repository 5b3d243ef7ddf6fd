// SPDX-License-Identifier: MIT
/*
 * I/O commands by hand. See ioq.h.
 */
#include "ioq.h"

#include "harness.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NEXT_LIMIT_MS 10000

off_t ioq_desc_offset(unsigned q_id)
{
	return UBLKSRV_CMD_BUF_OFFSET + (off_t)q_id * (off_t)ioq_desc_bytes(UBLK_MAX_QUEUE_DEPTH);
}

size_t ioq_desc_bytes(unsigned depth)
{
	return (depth * sizeof(struct ublksrv_io_desc) + 4095) & ~(size_t)4095;
}

off_t ioq_data_offset(unsigned q_id, unsigned tag, uint64_t offset)
{
	return (off_t)(UBLKSRV_IO_BUF_OFFSET + ((uint64_t)q_id << UBLK_QID_OFF) +
		       ((uint64_t)tag << UBLK_TAG_OFF) + offset);
}

int ioq_open(struct ioq *q, struct dev *dev, int fd, unsigned q_id)
{
	struct io_uring_params p = {.flags = IORING_SETUP_CQSIZE};
	int ret;

	memset(q, 0, sizeof(*q));
	q->dev = dev;
	q->fd = fd;
	q->q_id = q_id;
	q->depth = dev->info.queue_depth;
	q->user_copy = dev->info.flags &
		       (UBLK_F_USER_COPY | UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_AUTO_BUF_REG);
	q->buf_bytes = dev->info.max_io_buf_bytes;
	q->desc_bytes = ioq_desc_bytes(q->depth);
	q->desc = mmap(NULL, q->desc_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd,
		       ioq_desc_offset(q_id));
	if (q->desc == MAP_FAILED)
		return -errno;
	q->bufs = mmap(NULL, q->buf_bytes * q->depth, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (q->bufs == MAP_FAILED) {
		ret = -errno;
		munmap((void *)q->desc, q->desc_bytes);
		return ret;
	}
	p.cq_entries = q->depth * 2 + 16;
	ret = io_uring_queue_init_params(q->depth + 8, &q->ring, &p);
	if (ret) {
		munmap(q->bufs, q->buf_bytes * q->depth);
		munmap((void *)q->desc, q->desc_bytes);
	}
	return ret;
}

void ioq_close(struct ioq *q)
{
	io_uring_queue_exit(&q->ring);
	munmap(q->bufs, q->buf_bytes * q->depth);
	munmap((void *)q->desc, q->desc_bytes);
}

uint8_t *ioq_buf(const struct ioq *q, unsigned tag)
{
	return q->bufs + q->buf_bytes * tag;
}

uint64_t ioq_addr(const struct ioq *q, unsigned tag)
{
	return q->user_copy ? 0 : (uint64_t)(uintptr_t)ioq_buf(q, tag);
}

struct io_uring_sqe *ioq_sqe(struct ioq *q, uint32_t op, uint16_t q_id, uint16_t tag, int result,
			     uint64_t addr)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);
	struct ublksrv_io_cmd *cmd;

	REQUIRE(sqe, "the case has more commands under way than its ring holds");
	cmd = (struct ublksrv_io_cmd *)sqe->cmd;
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = q->fd;
	sqe->cmd_op = q->legacy ? _IOC_NR(op) : op;
	sqe->user_data = (uint64_t)op << 16 | tag;
	cmd->q_id = q_id;
	cmd->tag = tag;
	cmd->result = result;
	cmd->addr = addr;
	return sqe;
}

int ioq_submit(struct ioq *q)
{
	return io_uring_submit(&q->ring);
}

int ioq_wait(struct ioq *q, struct ioq_cqe *out, unsigned ms)
{
	struct __kernel_timespec ts = {ms / 1000, ms % 1000 * 1000000LL};
	struct io_uring_cqe *cqe;
	int ret;

	do {
		ret = io_uring_wait_cqe_timeout(&q->ring, &cqe, &ts);
	} while (ret == -EINTR);
	if (ret)
		return ret;
	out->tag = (uint16_t)cqe->user_data;
	out->op = (uint32_t)(cqe->user_data >> 16);
	out->res = cqe->res;
	out->flags = cqe->flags;
	io_uring_cqe_seen(&q->ring, cqe);
	return 0;
}

void ioq_fetch(struct ioq *q, unsigned tag)
{
	ioq_sqe(q, UBLK_U_IO_FETCH_REQ, (uint16_t)q->q_id, (uint16_t)tag, -1, ioq_addr(q, tag));
	ioq_submit(q);
}

void ioq_fetch_all(struct ioq *q)
{
	for (unsigned tag = 0; tag < q->depth; tag++)
		ioq_sqe(q, UBLK_U_IO_FETCH_REQ, (uint16_t)q->q_id, (uint16_t)tag, -1,
			ioq_addr(q, tag));
	ioq_submit(q);
}

void ioq_commit(struct ioq *q, unsigned tag, int result)
{
	ioq_sqe(q, UBLK_U_IO_COMMIT_AND_FETCH_REQ, (uint16_t)q->q_id, (uint16_t)tag, result,
		ioq_addr(q, tag));
	ioq_submit(q);
}

int ioq_refused(struct ioq *q, uint32_t op, uint16_t q_id, uint16_t tag, int result, uint64_t addr)
{
	struct ioq_cqe cqe;

	ioq_sqe(q, op, q_id, tag, result, addr);
	ioq_submit(q);
	if (ioq_wait(q, &cqe, 300))
		return IOQ_KEPT;
	return cqe.res;
}

unsigned ioq_next(struct ioq *q, const struct ublksrv_io_desc **iod)
{
	struct ioq_cqe cqe;
	int ret = ioq_wait(q, &cqe, NEXT_LIMIT_MS);

	REQUIRE(ret == 0, "no request comes: %s", conform_errname(ret));
	REQUIRE(cqe.res >= 0, "a fetching command ended with %s", conform_errname(cqe.res));
	if (iod)
		*iod = &q->desc[cqe.tag];
	return cqe.tag;
}

bool ioq_quiet(struct ioq *q, unsigned ms)
{
	struct ioq_cqe cqe;

	return ioq_wait(q, &cqe, ms) != 0;
}

static void serve_plainly(struct ioq *q, const struct ioq_cqe *cqe)
{
	const struct ublksrv_io_desc *iod = &q->desc[cqe->tag];
	size_t bytes = (size_t)iod->nr_sectors * SECTOR;

	switch (ublksrv_get_op(iod)) {
	case UBLK_IO_OP_READ:
		memset(ioq_buf(q, cqe->tag), 0, bytes);
		if (q->user_copy && pwrite(q->fd, ioq_buf(q, cqe->tag), bytes,
					   ioq_data_offset(q->q_id, cqe->tag, 0)) < 0)
			bytes = 0;
		ioq_commit(q, cqe->tag, (int)bytes);
		break;
	case UBLK_IO_OP_WRITE:
		ioq_commit(q, cqe->tag, (int)bytes);
		break;
	default:
		ioq_commit(q, cqe->tag, 0);
	}
}

long ioq_serve_job(struct ioq *q, struct job *job)
{
	uint64_t until = now_ms() + 20000;
	struct ioq_cqe cqe;
	long res = 0;
	int ret;

	while (!job_ended(job)) {
		REQUIRE(now_ms() < until, "a command does not end though its I/O is served");
		if (ioq_wait(q, &cqe, 10) == 0 && cqe.res == UBLK_IO_RES_OK)
			serve_plainly(q, &cqe);
	}
	ret = job_wait(job, 0, &res);
	job_put(job);
	return ret ? ret : res;
}

void ioq_start_dev(struct ioq *q)
{
	struct dev *dev = q->dev;
	long res = ioq_serve_job(q, dev_cmd_begin(dev, UBLK_U_CMD_START_DEV, (uint64_t)getpid()));

	REQUIRE(res == 0, "START_DEV: %s", conform_errname(res));
}

void ioq_stop_dev(struct ioq *q)
{
	struct dev *dev = q->dev;
	long res = ioq_serve_job(q, dev_cmd_begin(dev, UBLK_U_CMD_STOP_DEV, 0));

	REQUIRE(res == 0, "STOP_DEV: %s", conform_errname(res));
	CHECK(!dev_has_disk(dev), "the disk is still there after STOP_DEV");
}
