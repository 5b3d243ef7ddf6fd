/* SPDX-License-Identifier: MIT */
/* The queue's io_uring: the best this kernel makes, with all it will need for a full queue. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* The best ring this kernel makes: newer kernels refuse unknown flags with -EINVAL, so step down.
 */
static int make_ring(struct ubd_queue *q)
{
	static const unsigned flags[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CLAMP,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_CLAMP,
		IORING_SETUP_CLAMP,
	};
	unsigned entries = MAX(64u, 2 * q->depth);
	int ret = -EINVAL;

	/* What is deferred wakes nobody who polls the ring, as an embedder does. */
	for (size_t i = q->dev->cfg.embedded; i < ARRAY_SIZE(flags) && ret == -EINVAL; i++) {
		struct io_uring_params p = {
			.flags = flags[i] | IORING_SETUP_CQSIZE,
			.cq_entries = 4 * entries,
		};

		ret = io_uring_queue_init_params(entries, &q->ring, &p);
	}
	if (ret < 0)
		return ret;
	q->has_ring = true;
	/* Saves a file look-up per system call; not worth failing for. */
	io_uring_register_ring_fd(&q->ring);
	if (q->dev->nr_fds) {
		ret = io_uring_register_files(&q->ring, q->dev->fds, q->dev->nr_fds);
		if (ret < 0)
			return ret;
	}
	if (q->way->fixed)
		return io_uring_register_buffers_sparse(&q->ring, q->depth);
	return 0;
}

/* Have N reads of FD at once, which end when there is something to read. */
static int read_at_once(struct io_uring *ring, int fd, unsigned n)
{
	uint64_t all = n, count;
	struct io_uring_cqe *cqe;
	int ret;

	for (unsigned i = 0; i < n; i++)
		io_uring_prep_read(io_uring_get_sqe(ring), fd, &count, sizeof(count), 0);
	ret = io_uring_submit(ring);
	if (ret != (int)n)
		return ret < 0 ? ret : -ENOMEM;
	if (write(fd, &all, sizeof(all)) < 0)
		return -errno;
	do {
		ret = io_uring_wait_cqe_nr(ring, &cqe, n);
	} while (ret == -EINTR);
	if (ret == 0)
		io_uring_cq_advance(ring, n);
	return ret;
}

/*
 * What a read or write needs in the kernel is kept for the next one (of up to 128), but allocated
 * when more are under way than ever before. Where memory becomes free only by writing to this
 * device, that allocation waits for the device and the device for the allocation. So have a full
 * queue, and the read that waits to be woken, once while there is memory.
 */
static int fill_caches(struct ubd_queue *q)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
	int ret;

	if (fd < 0)
		return -errno;
	ret = read_at_once(&q->ring, fd, q->depth + 1);
	close(fd);
	return ret;
}

int ring_open(struct ubd_queue *q)
{
	int ret = make_ring(q);

	return ret ? ret : fill_caches(q);
}
