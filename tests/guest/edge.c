/* SPDX-License-Identifier: MIT */
/*
 * Direct I/O of every size and at every kind of offset, against a model: from one block to larger
 * than the largest request, from memory that is aligned to a block only.
 *
 *     guest-edge DEVICE        exit status 0, or a sentence
 */
#include "../lib/random.h"

#include <err.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MAX (3u << 20)

static int fd, block;
static unsigned step = 512; /* alignment of memory that the device takes */
static uint64_t size;
static unsigned char *model, *mem;
static uint64_t seed = 12345;

static void fill(unsigned char *p, uint32_t n)
{
	uint32_t word = (uint32_t)random_next(&seed);

	for (uint32_t i = 0; i + 4 <= n; i += 4) {
		word = word * 1664525 + 1013904223;
		memcpy(p + i, &word, 4);
	}
}

static void do_write(uint64_t at, uint32_t len)
{
	/* Somewhere in a page, as memory from an application may be. */
	unsigned char *p = mem + random_next(&seed) % 8 * step % 4096;

	fill(p, len);
	memcpy(model + at, p, len);
	if (pwrite(fd, p, len, (off_t)at) != (ssize_t)len)
		err(1, "write of %u at %llu", len, (unsigned long long)at);
}

static void do_read(uint64_t at, uint32_t len)
{
	unsigned char *p = mem + random_next(&seed) % 8 * step % 4096;

	memset(p, 0xee, len);
	if (pread(fd, p, len, (off_t)at) != (ssize_t)len)
		err(1, "read of %u at %llu", len, (unsigned long long)at);
	if (!memcmp(p, model + at, len))
		return;
	for (uint32_t i = 0; i < len; i++)
		if (p[i] != model[at + i])
			errx(1, "byte %u of a read of %u at %llu is %#x, not %#x", i, len,
			     (unsigned long long)at, p[i], model[at + i]);
}

/* With zero copy the backing's needs are the device's. */
static void learn_alignment(const char *path)
{
	char name[256];
	unsigned mask;
	FILE *f;

	snprintf(name, sizeof(name), "/sys/block/%s/queue/dma_alignment", strrchr(path, '/') + 1);
	f = fopen(name, "r");
	if (f && fscanf(f, "%u", &mask) == 1 && mask >= 512)
		step = mask + 1;
	if (f)
		fclose(f);
}

static uint64_t place(uint32_t len)
{
	uint64_t blocks = (size - len) / (unsigned)block;

	switch (random_next(&seed) % 4) {
	case 0:
		return 0;
	case 1:
		return size - len;
	default:
		return random_next(&seed) % (blocks + 1) * (unsigned)block;
	}
}

int main(int argc, char **argv)
{
	if (argc != 2)
		errx(2, "usage: guest-edge DEVICE");
	fd = open(argv[1], O_RDWR | O_DIRECT);
	if (fd < 0 || ioctl(fd, BLKSSZGET, &block) || ioctl(fd, BLKGETSIZE64, &size))
		err(1, "%s", argv[1]);
	learn_alignment(argv[1]);
	model = malloc(size);
	if (!model || posix_memalign((void **)&mem, 4096, MAX + 8192))
		err(1, "memory");
	if (pread(fd, mem, (size_t)block, 0) != block)
		err(1, "%s", argv[1]);
	/* Start from what is known. */
	for (uint64_t at = 0; at < size; at += MAX) {
		uint32_t n = size - at < MAX ? (uint32_t)(size - at) : MAX;

		memset(mem, 0, n);
		if (pwrite(fd, mem, n, (off_t)at) != (ssize_t)n)
			err(1, "clearing at %llu", (unsigned long long)at);
	}
	memset(model, 0, size);
	/* Every power of two, one block less and one more; then anything. */
	for (uint32_t len = (uint32_t)block; len <= MAX / 2; len *= 2)
		for (int d = -1; d <= 1; d++) {
			uint32_t n = len + (uint32_t)(d * block);

			if (!n)
				continue;
			do_write(place(n), n);
			do_read(place(n), n);
		}
	for (int i = 0; i < 80; i++) {
		uint32_t n = (1 + random_next(&seed) %
					  (random_next(&seed) % 8 ? 64 : MAX / (unsigned)block)) *
			     (unsigned)block;

		if (random_next(&seed) % 2)
			do_write(place(n), n);
		else
			do_read(place(n), n);
	}
	/* All of it once more. */
	for (uint64_t at = 0; at < size; at += MAX)
		do_read(at, size - at < MAX ? (uint32_t)(size - at) : MAX);
	if (close(fd))
		err(1, "%s", argv[1]);
	return 0;
}
