/* SPDX-License-Identifier: MIT */
/*
 * The kernel's own NBD client, for comparison: negotiate as the target does, give the sockets to
 * /dev/nbdN and stay until it ends.
 *
 *   kclient DEVICE CONNECTIONS unix=PATH | URI
 */
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/nbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static unsigned long flags_of(const struct link_export *e)
{
	return NBD_FLAG_HAS_FLAGS | (e->can & LINK_READ_ONLY ? NBD_FLAG_READ_ONLY : 0) |
	       (e->can & LINK_FLUSH ? NBD_FLAG_SEND_FLUSH : 0) |
	       (e->can & LINK_FUA ? NBD_FLAG_SEND_FUA : 0) |
	       (e->can & LINK_TRIM ? NBD_FLAG_SEND_TRIM : 0) |
	       (e->can & LINK_MULTI_CONN ? NBD_FLAG_CAN_MULTI_CONN : 0);
}

int main(int argc, char **argv)
{
	struct link_address a = {0};
	const bool stop = false;
	int dev, n;

	if (argc != 4)
		return 2;
	n = atoi(argv[2]);
	if (!strncmp(argv[3], "unix=", 5))
		a.unix_path = argv[3] + 5;
	else
		a.uri = argv[3];
	dev = open(argv[1], O_RDWR);
	if (dev < 0) {
		perror(argv[1]);
		return 1;
	}
	for (int i = 0; i < n; i++) {
		struct link l;

		if (link_open(&l, &a, &stop)) {
			fprintf(stderr, "%s\n", l.why);
			return 1;
		}
		if (i == 0 && (ioctl(dev, NBD_SET_BLKSIZE, 512ul) ||
			       ioctl(dev, NBD_SET_SIZE_BLOCKS, l.export.size / 512) ||
			       ioctl(dev, NBD_SET_FLAGS, flags_of(&l.export)))) {
			perror("nbd parameters");
			return 1;
		}
		if (ioctl(dev, NBD_SET_SOCK, l.fd)) {
			perror("NBD_SET_SOCK");
			return 1;
		}
	}
	printf("ready\n");
	fflush(stdout);
	ioctl(dev, NBD_DO_IT);
	ioctl(dev, NBD_CLEAR_SOCK);
	return 0;
}
