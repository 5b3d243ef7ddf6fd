/* SPDX-License-Identifier: MIT */
/*
 * An image's contents, to standard output; it must not be writable meanwhile.
 *
 *   dump IMAGE [SNAPSHOT]
 */
#include <stdio.h>

#include "disk.h"

#define PIECE (64u << 10)

int main(int argc, char **argv)
{
	struct disk_options o = {.image = argv[1], .snapshot = argv[2], .read_only = !argv[2]};
	static uint8_t buf[PIECE] __attribute__((aligned(4096)));
	char error[512];
	struct ubd_device *dev;
	uint64_t size;

	if (argc < 2)
		die("usage: dump IMAGE [SNAPSHOT]");
	dev = disk_open(&o, error, sizeof(error));
	if (!dev)
		return 1;
	size = ubd_device_size(dev);
	if (ubd_local_io(dev, 0, UBD_WRITE, 0, 0, buf, 512) >= 0)
		die("a write to a read-only disk succeeds");
	for (uint64_t at = 0; at < size; at += PIECE) {
		uint32_t n = (uint32_t)(size - at < PIECE ? size - at : PIECE);

		if (ubd_local_io(dev, 0, UBD_READ, 0, at, buf, n) != (int)n)
			die("cannot read at %llu", (unsigned long long)at);
		fwrite(buf, 1, n, stdout);
	}
	return disk_close(dev);
}
