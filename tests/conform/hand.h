/* SPDX-License-Identifier: MIT */
/* A server that is the case itself: one queue, each command given by hand. */
#ifndef CONFORM_HAND_H
#define CONFORM_HAND_H

#include "dev.h"
#include "ioq.h"

struct hand {
	struct dev *dev;
	int fd;
	struct ioq q;
};

/* Added, with parameters, the char device open, nothing fetched. */
void hand_open(struct hand *h, struct dev *dev);
/* All fetched and started as well. */
void hand_up(struct hand *h, struct dev *dev);
/* Stopped (I/O is served until then), closed and deleted. */
void hand_down(struct hand *h);
/* Closed and deleted, for a device that was not started. */
void hand_close(struct hand *h);

#endif
