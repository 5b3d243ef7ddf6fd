// SPDX-License-Identifier: MIT
/*
 * UBLK_F_BATCH_IO: a server that prepares, fetches and commits in batches, with two fetching
 * threads on one queue; data is verified, bad arguments are refused, a kill is survived.
 */
#define _GNU_SOURCE
#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEPTH 32
#define BYTES (16 << 20)
#define BUF (64 << 10)
#define GROUP 7
#define NBUFS 4

static char *store;
static char *bufs; /* DEPTH of BUF bytes */
static int dev = -1, chr;
static const struct ublksrv_io_desc *desc;
static bool broken; /* this server keeps every request */

/* Header, buffer address. */
struct elem {
	struct ublk_elem_header h;
	uint64_t addr;
};

static char *buf_of(unsigned tag)
{
	return bufs + (size_t)tag * BUF;
}

static int batch_cmd(struct raw_ring *r, uint32_t op, struct elem *e, unsigned n, uint64_t tag)
{
	struct ublk_batch_io b = {
		.flags = UBLK_BATCH_F_HAS_BUF_ADDR,
		.nr_elem = (uint16_t)n,
		.elem_bytes = sizeof(*e),
	};
	struct io_uring_sqe *sqe = raw_cmd(r, chr, op, &b, sizeof(b), tag);
	struct io_uring_cqe cqe;

	sqe->addr = (uint64_t)(uintptr_t)e;
	sqe->len = n * (unsigned)sizeof(*e);
	do {
		if (raw_wait(r, &cqe, 10000))
			return -ETIME;
	} while (cqe.user_data != tag);
	return cqe.res;
}

static int32_t serve(unsigned tag)
{
	const struct ublksrv_io_desc *d = &desc[tag];
	uint64_t at = d->start_sector * 512;
	uint32_t bytes = d->nr_sectors * 512;

	switch (ublksrv_get_op(d)) {
	case UBLK_IO_OP_READ:
		memcpy(buf_of(tag), store + at, bytes);
		return (int32_t)bytes;
	case UBLK_IO_OP_WRITE:
		memcpy(store + at, buf_of(tag), bytes);
		return (int32_t)bytes;
	default:
		return 0;
	}
}

/* Buffers for tags: a ring that the kernel takes from. */
static struct io_uring_buf_ring *buffers(struct raw_ring *r, uint16_t *mem)
{
	struct io_uring_buf_ring *br = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
					    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct io_uring_buf_reg reg = {
		.ring_addr = (uint64_t)(uintptr_t)br,
		.ring_entries = NBUFS,
		.bgid = GROUP,
	};

	if (syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_PBUF_RING, &reg, 1))
		return NULL;
	for (unsigned i = 0; i < NBUFS; i++)
		br->bufs[i] = (struct io_uring_buf){
			.addr = (uint64_t)(uintptr_t)(mem + i * DEPTH),
			.len = DEPTH * sizeof(uint16_t),
			.bid = (uint16_t)i,
		};
	__atomic_store_n(&br->tail, NBUFS, __ATOMIC_RELEASE);
	return br;
}

static void give_back(struct io_uring_buf_ring *br, uint16_t *mem, unsigned bid)
{
	uint16_t tail = br->tail;
	struct io_uring_buf *b = &br->bufs[tail & (NBUFS - 1)];

	b->addr = (uint64_t)(uintptr_t)(mem + bid * DEPTH);
	b->len = DEPTH * sizeof(uint16_t);
	b->bid = (uint16_t)bid;
	__atomic_store_n(&br->tail, (uint16_t)(tail + 1), __ATOMIC_RELEASE);
}

static void fetch(struct raw_ring *r)
{
	struct ublk_batch_io b = { .elem_bytes = sizeof(uint16_t) };
	struct io_uring_sqe *sqe = raw_cmd(r, chr, UBLK_U_IO_FETCH_IO_CMDS, &b, sizeof(b), 1);

	sqe->flags = IOSQE_BUFFER_SELECT;
	sqe->buf_group = GROUP;
	sqe->uring_cmd_flags = 1U << 1; /* IORING_URING_CMD_MULTISHOT */
}

static void commit(struct raw_ring *r, const uint16_t *tags, unsigned n)
{
	static __thread struct elem e[DEPTH];
	struct ublk_batch_io b = {
		.flags = UBLK_BATCH_F_HAS_BUF_ADDR,
		.nr_elem = (uint16_t)n,
		.elem_bytes = sizeof(*e),
	};
	struct io_uring_sqe *sqe;

	for (unsigned i = 0; i < n; i++)
		e[i] = (struct elem){
			.h = { .tag = tags[i], .result = serve(tags[i]) },
			.addr = (uint64_t)(uintptr_t)buf_of(tags[i]),
		};
	sqe = raw_cmd(r, chr, UBLK_U_IO_COMMIT_IO_CMDS, &b, sizeof(b), 2);
	sqe->addr = (uint64_t)(uintptr_t)e;
	sqe->len = n * (unsigned)sizeof(*e);
	/* The elements are read at once. */
	raw_submit(r);
}

static void *worker(void *arg)
{
	uint16_t *mem = calloc(NBUFS * DEPTH, sizeof(*mem));
	struct io_uring_buf_ring *br;
	struct io_uring_cqe cqe;
	struct raw_ring r;

	(void)arg;
	if (raw_ring_open(&r, 64) || !(br = buffers(&r, mem)))
		_exit(3);
	fetch(&r);
	for (;;) {
		int ret = raw_wait(&r, &cqe, 60000);

		if (ret)
			_exit(4);
		if (cqe.user_data == 2) {
			if (cqe.res <= 0)
				_exit(5);
			continue;
		}
		if (cqe.res == UBLK_IO_RES_ABORT)
			return NULL;
		if (cqe.flags & IORING_CQE_F_BUFFER) {
			unsigned bid = cqe.flags >> IORING_CQE_BUFFER_SHIFT;

			if (cqe.res > 0 && !broken)
				commit(&r, mem + bid * DEPTH, (unsigned)cqe.res / 2);
			give_back(br, mem, bid);
		}
		/* Out of buffers, or the completion queue was full. */
		if (!(cqe.flags & IORING_CQE_F_MORE))
			fetch(&r);
	}
}

static int prep(struct raw_ring *r, unsigned from, unsigned n, uint64_t addr_mask)
{
	struct elem e[DEPTH + 1];

	for (unsigned i = 0; i < n; i++)
		e[i] = (struct elem){
			.h = { .tag = (uint16_t)(from + i) },
			.addr = (uint64_t)(uintptr_t)buf_of(from + i) & addr_mask,
		};
	return batch_cmd(r, UBLK_U_IO_PREP_IO_CMDS, e, n, 9);
}

/* The server process. Tells its checks by its exit status when one fails. */
static void server(int ready, bool check)
{
	char path[32];
	struct raw_ring r;
	pthread_t t[2];

	snprintf(path, sizeof(path), "/dev/ublkc%d", dev);
	chr = open(path, O_RDWR);
	desc = mmap(NULL, 4096, PROT_READ, MAP_SHARED, chr, 0);
	bufs = mmap(NULL, DEPTH * BUF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (chr < 0 || desc == MAP_FAILED || raw_ring_open(&r, 64))
		_exit(2);
	if (check) {
		/* Refused: tags that are none, no buffer; all or nothing. */
		if (prep(&r, DEPTH - 1, 2, ~0ULL) != -EINVAL || prep(&r, 0, 4, 0) != -EINVAL)
			_exit(20);
		if (prep(&r, 0, DEPTH + 1, ~0ULL) != -E2BIG)
			_exit(21);
	}
	if (prep(&r, 0, DEPTH / 2, ~0ULL) || (check && prep(&r, 1, 1, ~0ULL) != -EINVAL) ||
	    prep(&r, DEPTH / 2, DEPTH / 2, ~0ULL))
		_exit(22);
	if (check) {
		struct elem e = { .addr = 1 };

		if (prep(&r, 0, 1, ~0ULL) != -EBUSY)
			_exit(23);
		if (batch_cmd(&r, UBLK_U_IO_COMMIT_IO_CMDS, &e, 1, 9) != -EBUSY)
			_exit(24);
	}
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, worker, NULL);
	if (write(ready, "1", 1) != 1)
		_exit(6);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	_exit(0);
}

static pid_t server_start(bool check)
{
	int p[2];
	char c = 0;
	pid_t pid;

	if (pipe(p))
		exit(1);
	pid = fork();
	if (!pid) {
		close(p[0]);
		server(p[1], check);
	}
	close(p[1]);
	if (read(p[0], &c, 1) != 1)
		c = 0;
	close(p[0]);
	if (!c) {
		int st;

		waitpid(pid, &st, 0);
		printf("# the server ended with %d\n", WEXITSTATUS(st));
		return -1;
	}
	return pid;
}

static int add(void)
{
	struct ublksrv_ctrl_dev_info info = {
		.nr_hw_queues = 1,
		.queue_depth = DEPTH,
		.max_io_buf_bytes = BUF,
		.dev_id = (uint32_t)-1,
		.flags = UBLK_F_BATCH_IO | UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE |
			 UBLK_F_NO_AUTO_PART_SCAN,
	};
	struct ublk_params params = {
		.len = sizeof(params),
		.types = UBLK_PARAM_TYPE_BASIC,
		.basic = {
			.logical_bs_shift = 9,
			.physical_bs_shift = 12,
			.io_opt_shift = 12,
			.io_min_shift = 12,
			.max_sectors = BUF / 512,
			.dev_sectors = BYTES / 512,
		},
	};
	int ret = raw_control(UBLK_U_CMD_ADD_DEV, -1, 0, &info, sizeof(info));

	if (ret)
		return ret;
	dev = (int)info.dev_id;
	if (!(info.flags & UBLK_F_BATCH_IO))
		return -EOPNOTSUPP;
	return raw_control(UBLK_U_CMD_SET_PARAMS, dev, 0, &params, sizeof(params));
}

/* Writes a pattern from many places at once, reads it back. */
static bool verify(unsigned seed)
{
	char cmd[512];

	snprintf(cmd, sizeof(cmd),
		 "fio --name=b --filename=/dev/ublkb%d --direct=1 --ioengine=io_uring --iodepth=64 "
		 "--rw=randwrite --bsrange=512-96k --size=%d --verify=crc32c --do_verify=1 "
		 "--randseed=%u >/mnt/fio.log 2>&1",
		 dev, BYTES, seed);
	return system(cmd) == 0;
}

static bool wait_state(unsigned state)
{
	struct ublksrv_ctrl_dev_info info;

	for (int i = 0; i < 200; i++) {
		if (!raw_control(UBLK_U_CMD_GET_DEV_INFO, dev, 0, &info, sizeof(info)) &&
		    info.state == state)
			return true;
		usleep(50000);
	}
	return false;
}

static pid_t read_begin(void)
{
	pid_t pid = fork();

	if (!pid) {
		char path[32], *buf = aligned_alloc(4096, 65536);
		int fd;

		snprintf(path, sizeof(path), "/dev/ublkb%d", dev);
		fd = open(path, O_RDONLY | O_DIRECT);
		_exit(pread(fd, buf, 65536, 1 << 20) == 65536 && !memcmp(buf, store + (1 << 20), 65536) ?
			      0 :
			      1);
	}
	return pid;
}

static void recovery(pid_t srv)
{
	pid_t io[8];
	int st, ok = 0;

	kill(srv, SIGKILL);
	waitpid(srv, &st, 0);
	tap(wait_state(UBLK_S_DEV_QUIESCED), "a killed batch server leaves the device quiesced");
	broken = true;
	srv = server_start(false);
	tap(raw_control(UBLK_U_CMD_END_USER_RECOVERY, dev, (uint64_t)srv, NULL, 0) == 0,
	    "a second batch server takes over");
	for (int i = 0; i < 8; i++)
		io[i] = read_begin();
	usleep(500000);
	kill(srv, SIGKILL);
	waitpid(srv, &st, 0);
	broken = false;
	tap(wait_state(UBLK_S_DEV_QUIESCED), "killed with requests in its hands: quiesced again");
	srv = server_start(false);
	tap(raw_control(UBLK_U_CMD_END_USER_RECOVERY, dev, (uint64_t)srv, NULL, 0) == 0,
	    "a third batch server takes over");
	for (int i = 0; i < 8; i++) {
		waitpid(io[i], &st, 0);
		ok += st == 0;
	}
	tap(ok == 8, "every request is served again, once, with the right data");
	tap(verify(2), "data verifies after two recoveries");
	tap(raw_control(UBLK_U_CMD_STOP_DEV, dev, 0, NULL, 0) == 0, "STOP_DEV");
	waitpid(srv, &st, 0);
	tap(st == 0, "the server's threads are told to end");
}

int main(void)
{
	pid_t srv;
	int ret;

	store = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ret = add();
	if (ret == -EOPNOTSUPP) {
		raw_control(UBLK_U_CMD_DEL_DEV, dev, 0, NULL, 0);
		printf("1..0 # SKIP this driver and kernel offer no BATCH_IO\n");
		return 0;
	}
	tap(ret == 0, "ADD_DEV and SET_PARAMS");
	srv = server_start(true);
	tap(srv > 0, "PREP_IO_CMDS takes what is right and refuses what is not");
	if (srv > 0) {
		tap(raw_control(UBLK_U_CMD_START_DEV, dev, (uint64_t)srv, NULL, 0) == 0, "START_DEV");
		tap(verify(1), "data written by 64 requests in flight verifies");
		recovery(srv);
	}
	tap(raw_control(UBLK_U_CMD_DEL_DEV, dev, 0, NULL, 0) == 0, "DEL_DEV");
	return tap_end();
}
