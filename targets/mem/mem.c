/* SPDX-License-Identifier: MIT */
/* mem: a RAM disk. Sparse; discarded ranges give their memory back. */
#define _GNU_SOURCE
#include "../targets.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
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
	struct ubd_limits *l = ubd_device_limits(dev);
	int ret;

	m->fd = memfd_create("ubd-mem", MFD_CLOEXEC);
	if (m->fd < 0 || ftruncate(m->fd, (off_t)m->size) < 0) {
		ret = ubd_device_fail(dev, -errno, "cannot make %llu bytes of shared memory: %s",
				      (unsigned long long)m->size, strerror(errno));
		goto fail;
	}
	m->map = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->fd, 0);
	if (m->map == MAP_FAILED) {
		ret = ubd_device_fail(dev, -errno, "cannot map %llu bytes of shared memory: %s",
				      (unsigned long long)m->size, strerror(errno));
		goto fail;
	}
	l->size = m->size;
	l->max_discard = l->max_write_zeroes = UBD_NO_LIMIT;
	l->discard_granularity = l->physical_block = 4096;
	return ubd_device_add_fd(dev, m->fd);
fail:
	if (m->fd >= 0)
		close(m->fd);
	return ret;
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

	switch (io->op) {
	case UBD_READ:
	case UBD_WRITE:
		return ubd_io_finish(io,
				     &(struct ubd_transfer){.fd = m->fd,
							    .len = io->length,
							    .pos = io->offset,
							    .mapped = m->map + io->offset},
				     1);
	case UBD_DISCARD:
	case UBD_WRITE_ZEROES:
		return ubd_fallocate(io->queue, m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				     io->offset, io->length);
	case UBD_FLUSH:
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static const struct ubd_option mem_options[] = {
	{"size", UBD_SIZE, offsetof(struct mem, size), "size of the device", .min = 512,
	 .required = true, .positional = true},
	{0},
};

const struct ubd_target target_mem = {
	.api = UBD_TARGET_API,
	.name = "mem",
	.summary = "a RAM disk, gone with its server",
	.options = mem_options,
	.size = sizeof(struct mem),
	.open = mem_open,
	.close = mem_close,
	.handle = mem_handle,
};
