/* SPDX-License-Identifier: MIT */
/* mem: a RAM disk. Sparse; discarded ranges give their memory back. */
#define _GNU_SOURCE
#include "../targets.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

struct mem {
	uint64_t size;
	int fd;
	char *map;
};

static int mem_open(struct ubd_device *dev, void *self)
{
	struct mem *m = self;

	if (ubd_device_takes_over(dev))
		return ubd_device_fail(dev, -ENODATA, "what mem held died with its server");
	m->fd = memfd_create("ubd-mem", MFD_CLOEXEC);
	m->map = MAP_FAILED;
	if (m->fd >= 0 && !ftruncate(m->fd, (off_t)m->size))
		m->map = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			      m->fd, 0);
	if (m->map == MAP_FAILED) {
		if (m->fd >= 0) /* closing keeps errno */
			close(m->fd);
		return ubd_device_fail(dev, -errno, "cannot make %llu bytes of shared memory: %m",
				       (unsigned long long)m->size);
	}
	/* Whatever the process locks: this may be swapped out, and more than there is memory. */
	munlock(m->map, m->size);
	*ubd_device_limits(dev) = (struct ubd_limits){.size = m->size,
						      .physical_block = 4096,
						      .discard_granularity = 4096,
						      .max_discard = UBD_NO_LIMIT,
						      .max_write_zeroes = UBD_NO_LIMIT};
	return ubd_device_add_fd(dev, m->fd);
}

static void mem_close(struct ubd_device *dev, void *self)
{
	struct mem *m = self;

	(void)dev;
	munmap(m->map, m->size);
	close(m->fd);
}

static int mem_handle(struct ubd_io *io, void *self)
{
	struct mem *m = self;
	struct ubd_transfer all = {
		.fd = m->fd, .len = io->length, .pos = io->offset, .mapped = m->map + io->offset};

	if (io->op == UBD_READ || io->op == UBD_WRITE)
		return ubd_io_finish(io, &all, 1);
	if (io->op == UBD_DISCARD || io->op == UBD_WRITE_ZEROES)
		return ubd_fallocate(io->queue, m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				     io->offset, io->length);
	return io->op == UBD_FLUSH ? 0 : -EOPNOTSUPP;
}

static const struct ubd_option mem_options[] = {
	{"size", UBD_SIZE, offsetof(struct mem, size), "size of the device", .min = 512,
	 .required = true, .positional = true},
	{0},
};

/* clang-format off */
const struct ubd_target target_mem = {
	.api = UBD_TARGET_API, .name = "mem", .summary = "a RAM disk, gone with its server",
	.options = mem_options, .size = sizeof(struct mem),
	.open = mem_open, .close = mem_close, .handle = mem_handle,
};
