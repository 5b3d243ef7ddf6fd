/* SPDX-License-Identifier: MIT */
/*
 * More memory in use than the machine has, every page of it checked:
 *
 *     guest-pressure MIB SECONDS [FILE]      of anonymous memory, or of a file's pages
 *
 * Prints how many pages were rewritten. Fails at the first that is not as it was left.
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "random.h"

#define PAGE ((size_t)4096)
#define WORDS (PAGE / sizeof(uint32_t))

static uint32_t word(size_t page, uint32_t version, size_t i)
{
	return (uint32_t)page * 2654435761u ^ version << 16 ^ (uint32_t)i;
}

static void fill(uint32_t *at, size_t page, uint32_t version)
{
	for (size_t i = 0; i < WORDS; i++)
		at[i] = word(page, version, i);
}

static void check(const uint32_t *at, size_t page, uint32_t version)
{
	for (size_t i = 0; i < WORDS; i++)
		if (at[i] != word(page, version, i))
			errx(1, "page %zu, byte %zu: %#x in place of %#x", page,
			     i * sizeof(uint32_t), at[i], word(page, version, i));
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Nothing, or a file of that many bytes. */
static uint32_t *memory(size_t bytes, const char *path)
{
	int fd = path ? open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
	void *map;

	if (path && (fd < 0 || ftruncate(fd, (off_t)bytes)))
		err(1, "%s", path);
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		   path ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, fd, 0);
	if (map == MAP_FAILED)
		err(1, "mmap");
	return map;
}

int main(int argc, char **argv)
{
	size_t pages, n = 0;
	uint32_t *mem;
	uint16_t *versions;
	uint64_t end, seed = 1;

	if (argc < 3)
		errx(2, "usage: guest-pressure MIB SECONDS [FILE]");
	pages = strtoul(argv[1], NULL, 10) * (1 << 20) / PAGE;
	end = now_ns() + strtoul(argv[2], NULL, 10) * 1000000000u;
	mem = memory(pages * PAGE, argv[3]);
	versions = calloc(pages, sizeof(*versions));
	if (!versions)
		err(1, "calloc");
	for (size_t i = 0; i < pages; i++)
		fill(mem + i * WORDS, i, 0);
	while (now_ns() < end) {
		size_t page = random_below(&seed, (uint32_t)pages);

		check(mem + page * WORDS, page, versions[page]);
		fill(mem + page * WORDS, page, ++versions[page]);
		n++;
	}
	for (size_t i = 0; i < pages; i++)
		check(mem + i * WORDS, i, versions[i]);
	printf("%zu pages rewritten\n", n);
	return 0;
}
