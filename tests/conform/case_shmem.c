// SPDX-License-Identifier: MIT
/*
 * SHMEM_ZC: buffers that server and clients share, registered by REG_BUF. The suite's jobs share
 * their memory with the case, which makes them both.
 */
#include "client.h"
#include "ctrl.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define AT (4ULL << 20)
#define BAD_ADDR 0x10000

static long reg_buf(struct dev *dev, void *addr, uint64_t len, uint32_t flags, uint32_t reserved)
{
	struct ublk_shmem_buf_reg reg = {.addr = (uint64_t)(uintptr_t)addr,
					 .len = len,
					 .flags = flags,
					 .reserved = reserved};

	return ctrl(UBLK_U_CMD_REG_BUF, dev->id, .buf = &reg, .len = sizeof(reg));
}

static long unreg_buf(struct dev *dev, uint64_t index)
{
	return ctrl(UBLK_U_CMD_UNREG_BUF, dev->id, .data = index);
}

CASE(shmem_bad_arguments)
{
	struct dev *dev = dev_new(UBLK_F_SHMEM_ZC, 1, 4);
	uint8_t *mem;

	conform_need_features(UBLK_F_SHMEM_ZC);
	mem = shared_alloc(1 << 20);
	dev_add(dev);
	RESULT("reg-buf-length-0", reg_buf(dev, mem, 0, 0, 0), -EINVAL);
	RESULT("reg-buf-odd-length", reg_buf(dev, mem, 4097, 0, 0), -EINVAL);
	RESULT("reg-buf-odd-address", reg_buf(dev, mem + 512, 4096, 0, 0), -EINVAL);
	RESULT("reg-buf-too-long", reg_buf(dev, mem, (1ULL << 32) + 4096, 0, 0), -EINVAL);
	RESULT("reg-buf-flags", reg_buf(dev, mem, 4096, 2, 0), -EINVAL);
	RESULT("reg-buf-reserved", reg_buf(dev, mem, 4096, 0, 1), -EINVAL);
	RESULT("reg-buf-nowhere", reg_buf(dev, (void *)BAD_ADDR, 4096, 0, 0), -EFAULT);
	RESULT("reg-buf-null", ctrl(UBLK_U_CMD_REG_BUF, dev->id, .len = 24), -EFAULT);
	RESULT("unreg-buf-none", unreg_buf(dev, 0), -ENOENT);
	RESULT("unreg-buf-65536", unreg_buf(dev, 65536), -EINVAL);
	RESULT("unreg-buf-negative", unreg_buf(dev, (uint64_t)-1), -EINVAL);
	dev_del(dev);
}

CASE(shmem_not_granted)
{
	struct dev *dev = dev_new(0, 1, 4);

	conform_need_features(UBLK_F_SHMEM_ZC);
	dev_add(dev);
	RESULT("reg-buf-not-granted", reg_buf(dev, shared_alloc(4096), 4096, 0, 0), -EOPNOTSUPP);
	RESULT("unreg-buf-not-granted", unreg_buf(dev, 0), -EOPNOTSUPP);
	dev_del(dev);
}

CASE(shmem_register_and_unregister)
{
	struct dev *dev = dev_new(UBLK_F_SHMEM_ZC, 1, 4);
	uint8_t *mem;

	conform_need_features(UBLK_F_SHMEM_ZC);
	mem = shared_alloc(4 << 20);
	dev_add(dev);
	RESULT("reg-buf", reg_buf(dev, mem, 1 << 20, 0, 0), 0);
	CHECK(reg_buf(dev, mem, 1 << 20, 0, 0) < 0, "the same memory twice");
	RESULT("reg-buf-second", reg_buf(dev, mem + (1 << 20), 1 << 20, 0, 0), 1);
	RESULT("unreg-buf", unreg_buf(dev, 0), 0);
	RESULT("unreg-buf-twice", unreg_buf(dev, 0), -ENOENT);
	RESULT("reg-buf-again", reg_buf(dev, mem, 1 << 20, 0, 0), 0);
	/* The rest goes with the device. */
	dev_del(dev);
}

/* The memory that is registered: the next job's. */
static uint8_t *client_memory(void)
{
	struct io io = {.kind = IO_OPEN};
	struct job *job = job_new(NULL, &io, sizeof(io));
	uint8_t *mem = job->data;

	memset(mem, 1, 1 << 20);
	job_put(job);
	return mem;
}

/* Answers shared-memory requests from the memory, others from the store. */
static enum server_answer shared_memory(struct server *s, struct server_io *io)
{
	uint8_t *mem = s->priv;
	size_t bytes = (size_t)io->iod->nr_sectors * SECTOR;
	uint64_t offset = io->iod->start_sector * SECTOR;

	if (!(io->iod->op_flags & UBLK_IO_F_SHMEM_ZC))
		return ANSWER_STORE;
	atomic_fetch_add(&s->custom[0], 1);
	if (ublk_shmem_zc_index(io->iod->addr) != 0)
		atomic_fetch_add(&s->custom[1], 1);
	mem += ublk_shmem_zc_offset(io->iod->addr);
	if (ublksrv_get_op(io->iod) == UBLK_IO_OP_READ)
		memcpy(mem, s->store + offset, bytes);
	else
		memcpy(s->store + offset, mem, bytes);
	io->res = (int)bytes;
	return ANSWER_RESULT;
}

static long verify(struct server *s, uint64_t offset, unsigned bytes, uint32_t seed)
{
	struct job *io = io_begin(s->dev, IO_READ, offset, bytes);
	long bad;

	REQUIRE(job_wait(io, 10000, NULL) == 0, "the read does not end");
	CHECK(io->result == (long)bytes, "the read: %s", conform_errname(io->result));
	bad = (long)pattern_check(io->data, offset, bytes, seed);
	job_put(io);
	return bad;
}

CASE(shmem_data)
{
	struct dev *dev = dev_new(UBLK_F_SHMEM_ZC, 1, 8);
	struct server *s;

	conform_need_features(UBLK_F_SHMEM_ZC);
	s = server_up(dev);
	/* Control commands are jobs as well: the slot that I/O will use is found last. */
	s->priv = client_memory();
	s->hook = shared_memory;
	RESULT_REQUIRED("reg-buf", reg_buf(dev, s->priv, 1 << 20, 0, 0), 0);
	CHECK(io_write(dev, AT, 65536, 4) == 65536, "write failed");
	CHECK(pattern_check(s->store + AT, AT, 65536, 4) < 0, "the server got something else");
	CHECK(verify(s, AT, 65536, 4) < 0, "the read brings something else");
	CHECK(atomic_load(&s->custom[0]) >= 2, "%u requests came by shared memory",
	      atomic_load(&s->custom[0]));
	CHECK(atomic_load(&s->custom[1]) == 0, "a wrong index");
	/* Not registered any more: by copy, and just as right. */
	RESULT("unreg-buf", unreg_buf(dev, 0), 0);
	atomic_store(&s->custom[0], 0);
	CHECK(io_write(dev, AT, 65536, 5) == 65536, "write failed");
	CHECK(verify(s, AT, 65536, 5) < 0, "the read brings something else");
	CHECK(atomic_load(&s->custom[0]) == 0, "shared memory after UNREG_BUF");
	server_down(s);
}

CASE(shmem_read_only_buffer)
{
	struct dev *dev = dev_new(UBLK_F_SHMEM_ZC, 1, 8);
	struct server *s;

	conform_need_features(UBLK_F_SHMEM_ZC);
	s = server_up(dev);
	s->priv = client_memory();
	s->hook = shared_memory;
	RESULT_REQUIRED("reg-buf-read-only",
			reg_buf(dev, s->priv, 1 << 20, UBLK_SHMEM_BUF_READ_ONLY, 0), 0);
	CHECK(io_write(dev, AT, 4096, 4) == 4096, "write failed");
	CHECK(atomic_load(&s->custom[0]) == 1, "the write did not come by shared memory");
	CHECK(verify(s, AT, 4096, 4) < 0, "the read brings something else");
	CHECK(atomic_load(&s->custom[0]) == 1, "a read came by read-only shared memory");
	server_down(s);
}

/* ---- a buffer that goes while a request lies in it --------------------------------------- */

enum { HOLDING, GO_ON };

/* As a server that knows its buffers by their index. */
static enum server_answer by_index(struct server *s, struct server_io *io)
{
	uint8_t **buffers = s->priv;
	uint64_t at = io->iod->addr;

	if (!(io->iod->op_flags & UBLK_IO_F_SHMEM_ZC))
		return ANSWER_STORE;
	atomic_store(&s->custom[HOLDING], 1);
	while (!atomic_load(&s->custom[GO_ON]))
		sleep_ms(5);
	io->res = (int)(io->iod->nr_sectors * SECTOR);
	pattern_fill(buffers[ublk_shmem_zc_index(at)] + ublk_shmem_zc_offset(at),
		     io->iod->start_sector * SECTOR, (uint64_t)io->res, 6);
	return ANSWER_RESULT;
}

/* Its index names other memory only when nobody carries it any more. */
CASE(shmem_unregister_in_flight)
{
	struct dev *dev = dev_new(UBLK_F_SHMEM_ZC, 1, 8);
	uint8_t **buffers, *other;
	long index, res = 0;
	struct job *io, *unreg;
	struct server *s;
	bool at_once;

	conform_need_features(UBLK_F_SHMEM_ZC);
	s = server_up(dev);
	buffers = shared_alloc(2 * sizeof(*buffers));
	other = shared_alloc(1 << 20);
	buffers[0] = client_memory();
	s->priv = buffers;
	s->hook = by_index;
	RESULT_REQUIRED("reg-buf", reg_buf(dev, buffers[0], 1 << 20, 0, 0), 0);
	io = io_begin(dev, IO_READ, AT, 65536);
	while (!atomic_load(&s->custom[HOLDING]))
		sleep_ms(5);
	unreg = ctrl_async(UBLK_U_CMD_UNREG_BUF, dev->id, .data = 0);
	at_once = job_wait(unreg, 2000, &res) != JOB_RUNNING;
	if (at_once) {
		RESULT("unreg-buf-in-flight", res, 0);
		RESULT("unreg-buf-in-flight-twice", unreg_buf(dev, 0), -ENOENT);
		index = reg_buf(dev, other, 1 << 20, 0, 0);
		RESULT_REQUIRED("reg-buf-while-the-index-is-in-use", index, 1);
		buffers[index] = other;
	} else {
		conform_note("UNREG_BUF waits for the request");
	}
	atomic_store(&s->custom[GO_ON], 1);
	REQUIRE(job_wait(io, 10000, &res) == 0 && res == 65536, "the read: %s",
		conform_errname(res));
	CHECK(pattern_check(io->data, AT, 65536, 6) < 0, "the data went elsewhere");
	job_put(io);
	if (!at_once)
		CHECK(job_wait(unreg, 10000, &res) == 0 && res == 0, "UNREG_BUF: %s",
		      conform_errname(res));
	job_put(unreg);
	/* With the request's end the index is free, or a moment later. */
	sleep_ms(300);
	RESULT("reg-buf-after-the-request", reg_buf(dev, shared_alloc(4096), 4096, 0, 0), 0);
	server_down(s);
}

/* What is refused half-way leaves nothing behind; I/O goes on meanwhile. */
CASE(shmem_refused_half_way)
{
	struct dev *dev = dev_new(UBLK_F_SHMEM_ZC, 1, 8);
	struct server *s;
	struct job *io;
	uint8_t *mem;

	conform_need_features(UBLK_F_SHMEM_ZC);
	s = server_up(dev);
	mem = client_memory();
	s->priv = mem;
	s->hook = shared_memory;
	/* The last page of what the rest comes before. */
	RESULT_REQUIRED("reg-buf", reg_buf(dev, mem + (1 << 20) - 4096, 4096, 0, 0), 0);
	for (unsigned i = 0; i < 50; i++) {
		io = io_begin(dev, IO_READ, AT, 1 << 19);
		RESULT("reg-buf-overlapping", reg_buf(dev, mem, 1 << 20, 0, 0), -EEXIST);
		CHECK(io_end(io) == 1 << 19, "a read fails beside it");
	}
	CHECK(atomic_load(&s->custom[0]) == 0, "a request lay in a buffer that was refused");
	RESULT("reg-buf-next-index", reg_buf(dev, mem, 4096, 0, 0), 1);
	server_down(s);
}

CASE(shmem_server_dies)
{
	struct server *s;

	conform_need_features(UBLK_F_SHMEM_ZC);
	s = server_up(dev_new(UBLK_F_SHMEM_ZC, 1, 8));
	s->priv = client_memory();
	RESULT_REQUIRED("reg-buf", reg_buf(s->dev, s->priv, 1 << 20, 0, 0), 0);
	server_kill(s);
	CHECK(dev_wait_state(s->dev, UBLK_S_DEV_DEAD, 10000), "state %d", dev_state(s->dev));
	dev_del(s->dev);
}
