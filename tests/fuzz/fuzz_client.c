// SPDX-License-Identifier: MIT
/*
 * Users of the fuzzed devices: I/O of all kinds through io_uring, so that one request that waits
 * holds up no other.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEM_BYTES (1U << 20)

static void prepare_io(uint64_t *rng, struct io_uring_sqe *sqe, int fd, uint8_t *mem)
{
	unsigned bytes = 512U << random_below(rng, 9);
	uint64_t offset = (uint64_t)random_below(rng, 4096) * 512;

	mem += random_below(rng, 64) * 512;
	switch (random_below(rng, 8)) {
	case 0:
		io_uring_prep_fsync(sqe, fd, 0);
		break;
	case 1:
		io_uring_prep_fallocate(sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					(off_t)offset, bytes);
		break;
	case 2:
	case 3:
	case 4:
		io_uring_prep_write(sqe, fd, mem, bytes, offset);
		break;
	default:
		io_uring_prep_read(sqe, fd, mem, bytes, offset);
	}
}

void fuzz_client(struct fuzz *f, uint64_t *rng)
{
	uint64_t until = fuzz_now_ms() + 1000 + random_below(rng, 4000);
	struct __kernel_timespec ts = {0, 5000000};
	uint8_t *mem =
		mmap(NULL, MEM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct io_uring_cqe *cqe;
	struct io_uring ring;
	char path[64];
	int fd = -1;

	snprintf(path, sizeof(path), "/dev/ublkb%u", FUZZ_FIRST_ID + random_below(rng, f->devices));
	while (fd < 0 && fuzz_now_ms() < until) {
		fd = open(path, O_RDWR | O_CLOEXEC | (fuzz_once_in(rng, 4) ? 0 : O_DIRECT));
		usleep(2000);
	}
	if (fd < 0 || mem == MAP_FAILED || io_uring_queue_init(32, &ring, 0))
		return;
	while (fuzz_now_ms() < until) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

		if (sqe) {
			prepare_io(rng, sqe, fd, mem);
			io_uring_submit(&ring);
		}
		if (io_uring_wait_cqe_timeout(&ring, &cqe, &ts) == 0) {
			atomic_fetch_add(cqe->res < 0 ? &f->client_failed : &f->client_ok, 1);
			io_uring_cqe_seen(&ring, cqe);
		}
	}
	_exit(0);
}
