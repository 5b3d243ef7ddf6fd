// SPDX-License-Identifier: MIT
/*
 * See raw.h.
 */
#define _GNU_SOURCE
#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static unsigned tap_count, tap_failed;

void tap(bool ok, const char *name)
{
	tap_count++;
	tap_failed += !ok;
	printf("%sok %u - %s\n", ok ? "" : "not ", tap_count, name);
	fflush(stdout);
}

int tap_end(void)
{
	printf("1..%u\n", tap_count);
	return tap_failed ? 1 : 0;
}

int raw_ring_open(struct raw_ring *r, unsigned entries)
{
	struct io_uring_params p = { .flags = IORING_SETUP_SQE128 };
	char *rings;

	memset(r, 0, sizeof(*r));
	r->fd = (int)syscall(SYS_io_uring_setup, entries, &p);
	if (r->fd < 0)
		return -errno;
	rings = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe),
		     PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, p.sq_entries * 128, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		       r->fd, IORING_OFF_SQES);
	if (rings == MAP_FAILED || r->sqes == MAP_FAILED)
		return -ENOMEM;
	r->sq_tail = (unsigned *)(rings + p.sq_off.tail);
	r->sq_mask = (unsigned *)(rings + p.sq_off.ring_mask);
	r->sq_array = (unsigned *)(rings + p.sq_off.array);
	r->cq_head = (unsigned *)(rings + p.cq_off.head);
	r->cq_tail = (unsigned *)(rings + p.cq_off.tail);
	r->cq_mask = (unsigned *)(rings + p.cq_off.ring_mask);
	r->cqes = (struct io_uring_cqe *)(rings + p.cq_off.cqes);
	return 0;
}

struct io_uring_sqe *raw_cmd(struct raw_ring *r, int fd, uint32_t op, const void *payload,
			     size_t bytes, uint64_t user_data)
{
	unsigned tail = *r->sq_tail, at = tail & *r->sq_mask;
	struct io_uring_sqe *sqe = &r->sqes[at * 2];

	memset(sqe, 0, 128);
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = fd;
	sqe->cmd_op = op;
	sqe->user_data = user_data;
	memcpy(sqe->cmd, payload, bytes);
	r->sq_array[at] = at;
	__atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
	r->queued++;
	return sqe;
}

static int enter(struct raw_ring *r, unsigned min, int ms)
{
	struct __kernel_timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000LL };
	struct io_uring_getevents_arg arg = { .ts = (uint64_t)(uintptr_t)&ts };
	int ret;

	ret = (int)syscall(SYS_io_uring_enter, r->fd, r->queued, min,
			   IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof(arg));
	if (ret < 0)
		return -errno;
	r->queued -= (unsigned)ret;
	return 0;
}

int raw_submit(struct raw_ring *r)
{
	return enter(r, 0, 0);
}

int raw_wait(struct raw_ring *r, struct io_uring_cqe *cqe, int ms)
{
	unsigned head = *r->cq_head;
	int ret = 0;

	while (head == __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE)) {
		if (ret == -ETIME || (ret && ret != -EINTR))
			return ret;
		ret = enter(r, 1, ms);
	}
	if (r->queued)
		raw_submit(r);
	*cqe = r->cqes[head & *r->cq_mask];
	__atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
	return 0;
}

int raw_control(uint32_t op, int dev, uint64_t data, void *buf, unsigned len)
{
	struct ublksrv_ctrl_cmd c = {
		.dev_id = (uint32_t)dev,
		.queue_id = (uint16_t)-1,
		.len = (uint16_t)len,
		.addr = (uint64_t)(uintptr_t)buf,
		.data = { data },
	};
	struct io_uring_cqe cqe;
	struct raw_ring r;
	int fd, ret;

	fd = open("/dev/ublk-control", O_RDWR);
	if (fd < 0)
		return -errno;
	ret = raw_ring_open(&r, 4);
	if (!ret) {
		raw_cmd(&r, fd, op, &c, sizeof(c), 1);
		ret = raw_wait(&r, &cqe, 20000);
		if (!ret)
			ret = cqe.res;
		close(r.fd);
	}
	close(fd);
	return ret;
}
