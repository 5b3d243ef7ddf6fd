/* SPDX-License-Identifier: MIT */
/* Open a mirror, wait until its legs are in sync, and close it: rebuild mirror option=value... */
#include "disk.h"

#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char error[512], text[1024];
	struct ubd_device *dev;

	if (argc < 3)
		die("usage: rebuild mirror option=value...");
	dev = disk_open(argv[1], 1, argv + 2, false, error, sizeof(error));
	if (!dev)
		return 1;
	disk_status(dev, text, sizeof(text));
	printf("%s", text);
	for (unsigned n = 0; !disk_in_sync(dev); n++) {
		if (n > 60000)
			die("the legs are not in sync");
		usleep(1000);
	}
	return disk_close(dev) ? 1 : 0;
}
