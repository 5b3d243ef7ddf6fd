/* SPDX-License-Identifier: MIT */
/*
 * Looks for memory that nobody filled: writes a pattern everywhere, then reads everything; only
 * zeroes and the 0x55 of lazy.c may come back.
 *
 *     guest-lazycheck DEVICE
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB (1u << 20)

int main(int argc, char **argv)
{
	static const uint32_t sizes[] = {512, 4096, 20480, 131072, 524288};
	unsigned char *mem;
	int fd;

	if (argc != 2)
		errx(2, "usage: guest-lazycheck DEVICE");
	fd = open(argv[1], O_RDWR | O_DIRECT);
	if (fd < 0 || posix_memalign((void **)&mem, 4096, MIB))
		err(1, "%s", argv[1]);
	for (unsigned round = 0; round < 5; round++) {
		uint32_t n = sizes[round];

		memset(mem, 0xaa, MIB);
		for (unsigned i = 0; i < 8; i++)
			if (pwrite(fd, mem, MIB, i * MIB) != MIB)
				err(1, "write");
		for (unsigned i = 0; i < 8; i++)
			for (unsigned k = 0; k < 8; k++) {
				memset(mem, 0xcc, n);
				if (pread(fd, mem, n, i * MIB + k * (MIB / 16)) != (ssize_t)n)
					err(1, "read of %u in MiB %u", n, i);
				for (uint32_t b = 0; b < n; b++)
					if (mem[b] && mem[b] != 0x55)
						errx(1, "byte %u of a read of %u in MiB %u is %#x",
						     b, n, i, mem[b]);
			}
	}
	return 0;
}
