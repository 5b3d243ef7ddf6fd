// SPDX-License-Identifier: MIT
/*
 * Setting up and taking down a server by hand. See hand.h.
 */
#include "hand.h"

#include "harness.h"

#include <unistd.h>

void hand_open(struct hand *h, struct dev *dev)
{
	int ret;

	h->dev = dev;
	if (dev->id == DEV_ID_ANY)
		dev_add(dev);
	h->fd = dev_open_char(dev);
	REQUIRE(h->fd >= 0, "cannot open %s: %s", dev_char_path(dev), conform_errname(h->fd));
	ret = ioq_open(&h->q, dev, h->fd, 0);
	REQUIRE(ret == 0, "cannot set up a queue: %s", conform_errname(ret));
}

void hand_up(struct hand *h, struct dev *dev)
{
	hand_open(h, dev);
	ioq_fetch_all(&h->q);
	ioq_start_dev(&h->q);
}

void hand_down(struct hand *h)
{
	ioq_stop_dev(&h->q);
	hand_close(h);
}

void hand_close(struct hand *h)
{
	ioq_close(&h->q);
	close(h->fd);
	dev_del(h->dev);
}
