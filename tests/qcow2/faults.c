/* SPDX-License-Identifier: MIT */
/*
 * Failures: the nth read, write, sync or growth of the image's files fails, once or from then on,
 * or there is no space. Writers are told; after the cause has gone everything works again and
 * nothing acknowledged by a flush is lost.
 *
 *   faults IMAGE KIND NTH once|on ERRNO SEED
 *
 * KIND is read, write, sync, truncate or memory. Prints how many requests failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../targets/qcow2/file.h"
#include "disk.h"

#define SECTOR 512u
#define MAX_LENGTH (64u << 10)

static int kind;
static _Atomic int left; /* operations until the one that fails; 0: none fails */
static bool sticky;
static int err;
static _Atomic bool memory_fails;

static bool hit(void)
{
	int n = atomic_load(&left);

	if (n <= 0)
		return false;
	if (atomic_fetch_sub(&left, 1) > 1)
		return false;
	if (sticky)
		atomic_store(&left, 1);
	return true;
}

static int before(const struct qc_file_op *op)
{
	return (int)op->kind == kind && hit() ? -err : 0;
}

static void after(const struct qc_file_op *op, int ret)
{
	(void)op;
	(void)ret;
}

/* The target's own allocations; the C library's below must not fail. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
int __real_posix_memalign(void **p, size_t align, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
int __wrap_posix_memalign(void **p, size_t align, size_t size);

void *__wrap_malloc(size_t size)
{
	return atomic_load(&memory_fails) && hit() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return atomic_load(&memory_fails) && hit() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	return atomic_load(&memory_fails) && hit() ? NULL : __real_realloc(p, size);
}

int __wrap_posix_memalign(void **p, size_t align, size_t size)
{
	return atomic_load(&memory_fails) && hit() ? ENOMEM : __real_posix_memalign(p, align, size);
}

static const struct qc_file_hooks hooks = {before, after};

/* Of each sector: what it may hold, the newest known for sure first. */
static uint8_t *sure, *unsure;
static uint64_t size;
static struct ubd_device *dev;
static unsigned failed;

static void verify(const char *when)
{
	static uint8_t buf[SECTOR] __attribute__((aligned(4096)));

	for (uint64_t i = 0; i < size / SECTOR; i++) {
		int ret = ubd_local_io(dev, 0, UBD_READ, 0, i * SECTOR, buf, SECTOR);

		if (ret != (int)SECTOR)
			die("%s: sector %llu: %s", when, (unsigned long long)i, strerror(-ret));
		for (unsigned k = 1; k < SECTOR; k++)
			if (buf[k] != buf[0])
				die("%s: sector %llu is mixed", when, (unsigned long long)i);
		if (buf[0] != sure[i] && !(unsure[i] && buf[0] <= unsure[i] && unsure[i] != 255))
			die("%s: sector %llu holds %u, not %u", when, (unsigned long long)i, buf[0],
			    sure[i]);
	}
}

/* After a failed write a sector holds its old contents or the new: read which. */
static void settle(uint64_t offset, uint32_t len)
{
	uint8_t *buf = aligned_alloc(4096, MAX_LENGTH);
	int ret = ubd_local_io(dev, 0, UBD_READ, 0, offset, buf, len);

	for (uint32_t i = 0; i < len; i += SECTOR) {
		uint64_t s = (offset + i) / SECTOR;

		if (ret != (int)len)
			unsure[s] = 254; /* not to be read either: anything written so far */
		else
			sure[s] = buf[i];
	}
	free(buf);
}

static void operate(uint64_t *seed, unsigned n)
{
	static uint8_t buf[MAX_LENGTH] __attribute__((aligned(4096)));
	unsigned what = random_next(seed) % 20;
	uint32_t len = (uint32_t)(1 + random_next(seed) % (MAX_LENGTH / SECTOR)) * SECTOR;
	uint64_t offset = random_next(seed) % ((size - len) / SECTOR) * SECTOR;
	uint8_t value = what < 12 ? (uint8_t)(1 + n % 250) : 0;
	enum ubd_op op = what < 12 ? UBD_WRITE : what < 15 ? UBD_WRITE_ZEROES : UBD_FLUSH;
	int ret;

	memset(buf, value, len);
	if (op == UBD_FLUSH)
		offset = len = 0;
	ret = ubd_local_io(dev, n % 2, op, 0, offset, buf, len);
	failed += ret < 0;
	for (uint32_t i = 0; i < len && ret >= 0; i += SECTOR) {
		sure[(offset + i) / SECTOR] = value;
		unsure[(offset + i) / SECTOR] = 0;
	}
	if (ret < 0 && len)
		settle(offset, len);
}

int main(int argc, char **argv)
{
	static const char *const kinds[] = {"read", "write", "sync", "truncate", "punch", "memory"};
	struct disk_options o = {.queues = 2, .journal = "off", .quiet = true};
	char error[512];
	uint64_t seed;

	if (argc != 7)
		die("usage: faults IMAGE KIND NTH once|on ERRNO SEED");
	for (kind = 0; kind < 6 && strcmp(kinds[kind], argv[2]) != 0; kind++)
		;
	o.image = argv[1];
	sticky = !strcmp(argv[4], "on");
	err = atoi(argv[5]);
	seed = strtoull(argv[6], NULL, 0);
	dev = disk_open(&o, error, sizeof(error));
	if (!dev)
		die("%s", error);
	size = ubd_device_size(dev);
	sure = calloc(1, size / SECTOR);
	unsure = calloc(1, size / SECTOR);
	for (uint64_t i = 0; i < size / SECTOR; i++) {
		uint8_t buf[SECTOR];

		ubd_local_io(dev, 0, UBD_READ, 0, i * SECTOR, buf, SECTOR);
		sure[i] = buf[0];
	}
	qc_file_hooks = &hooks;
	memory_fails = kind == 5;
	left = atoi(argv[3]);
	for (unsigned n = 0; n < 150; n++)
		operate(&seed, n);
	/* The cause has gone. */
	left = 0;
	memory_fails = false;
	if (ubd_local_io(dev, 0, UBD_FLUSH, 0, 0, NULL, 0))
		die("a flush still fails");
	for (unsigned n = 0, before_now = failed; n < 60; n++) {
		operate(&seed, n);
		if (failed != before_now)
			die("a request still fails");
	}
	verify("before closing");
	if (disk_close(dev))
		die("the device did not end well");
	qc_file_hooks = NULL;
	o.quiet = false;
	dev = disk_open(&o, error, sizeof(error));
	if (!dev)
		return 1;
	verify("opened again");
	if (disk_close(dev))
		die("the device did not end well");
	printf("%u\n", failed);
	return 0;
}
