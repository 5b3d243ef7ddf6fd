// SPDX-License-Identifier: MIT
/*
 * The read-only mapping of the descriptors.
 */
#include "client.h"
#include "hand.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* 0 when it works (and is undone), else -errno. */
static int try_map(int fd, off_t offset, size_t bytes, int prot, int flags)
{
	void *p = mmap(NULL, bytes, prot, flags, fd, offset);

	if (p == MAP_FAILED)
		return -errno;
	munmap(p, bytes);
	return 0;
}

CASE(mmap_lengths_and_offsets)
{
	struct dev *dev = dev_new(0, 2, 64);
	off_t end;
	int fd;

	dev_add(dev);
	fd = dev_open_char(dev);
	REQUIRE(fd >= 0, "cannot open %s", dev_char_path(dev));
	end = ioq_desc_offset(dev->info.nr_hw_queues);
	RESULT("mmap", try_map(fd, 0, 4096, PROT_READ, MAP_SHARED), 0);
	RESULT("mmap-private", try_map(fd, 0, 4096, PROT_READ, MAP_PRIVATE), 0);
	RESULT("mmap-too-long", try_map(fd, 0, 8192, PROT_READ, MAP_SHARED), -EINVAL);
	RESULT("mmap-much-too-long", try_map(fd, 0, 1 << 20, PROT_READ, MAP_SHARED), -EINVAL);
	RESULT("mmap-beyond-the-queues", try_map(fd, end, 4096, PROT_READ, MAP_SHARED), -EINVAL);
	RESULT("mmap-far-away", try_map(fd, 1LL << 40, 4096, PROT_READ, MAP_SHARED), -EINVAL);
	RESULT("mmap-data-area", try_map(fd, UBLKSRV_IO_BUF_OFFSET, 4096, PROT_READ, MAP_SHARED),
	       -EINVAL);
	for (unsigned q = 0; q < dev->info.nr_hw_queues; q++)
		RESULT("mmap-queue", try_map(fd, ioq_desc_offset(q), 4096, PROT_READ, MAP_SHARED),
		       0);
	close(fd);
	dev_del(dev);
}

CASE(mmap_too_short)
{
	struct dev *dev = dev_new(0, 1, 4096);
	int fd;

	dev_add(dev);
	fd = dev_open_char(dev);
	REQUIRE(fd >= 0, "cannot open %s", dev_char_path(dev));
	RESULT("mmap-too-short", try_map(fd, 0, 4096, PROT_READ, MAP_SHARED), -EINVAL);
	RESULT("mmap", try_map(fd, 0, ioq_desc_bytes(4096), PROT_READ, MAP_SHARED), 0);
	close(fd);
	dev_del(dev);
}

CASE(mmap_write_refused)
{
	struct dev *dev = dev_new(0, 1, 4);
	int fd;

	dev_add(dev);
	fd = dev_open_char(dev);
	REQUIRE(fd >= 0, "cannot open %s", dev_char_path(dev));
	RESULT("mmap-write", try_map(fd, 0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED), -EPERM);
	RESULT("mmap-write-only", try_map(fd, 0, 4096, PROT_WRITE, MAP_SHARED), -EPERM);
	RESULT("mmap-write-private", try_map(fd, 0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE),
	       -EPERM);
	close(fd);
	dev_del(dev);
}

/* CVE-2026-89793: VM_MAYWRITE left set. */
CASE(bug_descriptors_made_writable_with_mprotect)
{
	struct hand h;
	int ret;

	hand_open(&h, dev_new(0, 1, 4));
	ret = mprotect((void *)h.q.desc, h.q.desc_bytes, PROT_READ | PROT_WRITE);
	RESULT("mprotect-write", ret ? -errno : 0, -EACCES);
	hand_close(&h);
}

CASE(mmap_is_zero_at_first)
{
	struct hand h;
	const uint8_t *p;
	size_t dirty = 0;

	hand_open(&h, dev_new(0, 1, 1000));
	p = (const uint8_t *)h.q.desc;
	for (size_t i = 0; i < h.q.desc_bytes; i++)
		dirty += p[i] != 0;
	CHECK(dirty == 0, "%zu bytes of kernel memory show", dirty);
	hand_close(&h);
}

/* The first process to map is the only one. */
CASE(mmap_from_another_process)
{
	struct hand h;
	int status = 0;
	pid_t pid;

	hand_open(&h, dev_new(0, 1, 4));
	pid = fork();
	if (pid == 0)
		_exit(-try_map(h.fd, 0, 4096, PROT_READ, MAP_SHARED));
	waitpid(pid, &status, 0);
	RESULT("mmap-other-process", -WEXITSTATUS(status), -EINVAL);
	hand_close(&h);
}

/* Trap: queue q is at q * round_up(4096 * sizeof(desc), PAGE_SIZE), whatever the depth. */
CASE(trap_descriptor_stride_does_not_depend_on_depth)
{
	static const unsigned depths[] = {1, 170, 171, 4096};

	for (unsigned i = 0; i < sizeof(depths) / sizeof(depths[0]); i++) {
		struct dev *dev = dev_new(0, 2, depths[i]);
		struct server *s = server_up(dev);
		bool other_queue = false;

		server_need_queues(s, 2);
		/* From either processor, so that each queue sees some. */
		for (unsigned n = 0; n < 40; n++)
			CHECK(io_write(dev, n * 4096, 4096, n + 1) == 4096, "write failed");
		for (unsigned n = 0; n < 40; n++)
			CHECK(io_verify(dev, n * 4096, 4096, n + 1) == 4096, "differs");
		for (unsigned n = 0; n < atomic_load(&s->nr_log); n++)
			other_queue |= s->log[n].q_id == 1;
		CHECK(other_queue, "no request came to the second queue");
		server_down(s);
	}
}
