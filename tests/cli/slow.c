/* SPDX-License-Identifier: MIT */
/* A target that takes its time where it is told to, for the tests of the command. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <ubd/target.h>

struct slow {
	uint64_t open_ms, close_ms, io_ms;
	bool fail;
};

static int slow_open(struct ubd_device *dev, void *self)
{
	struct slow *s = self;

	usleep((useconds_t)(s->open_ms * 1000));
	if (s->fail)
		return ubd_device_fail(dev, -EIO, "the slow target was told to fail");
	ubd_device_notice(dev, "the slow target is open");
	ubd_device_limits(dev)->size = 64 << 20;
	return 0;
}

static void slow_close(struct ubd_device *dev, void *self)
{
	struct slow *s = self;

	(void)dev;
	usleep((useconds_t)(s->close_ms * 1000));
}

static int slow_handle(struct ubd_io *io, void *self)
{
	struct slow *s = self;
	void *data = io->op == UBD_READ ? ubd_io_data(io) : NULL;

	/* What the kernel reads by itself at the start is answered at once. */
	if (s->io_ms && io->offset == 32 << 20)
		ubd_sleep(io->queue, s->io_ms * 1000000);
	if (data)
		memset(data, 0x5a, io->length);
	return (int)io->length;
}

static const struct ubd_option options[] = {
	{"open-ms", UBD_UINT, offsetof(struct slow, open_ms), "time that opening takes",
	 .letter = 'o'},
	{"close-ms", UBD_UINT, offsetof(struct slow, close_ms), "time that closing takes"},
	{"io-ms", UBD_UINT, offsetof(struct slow, io_ms), "time that I/O at 32M takes"},
	{"fail", UBD_BOOL, offsetof(struct slow, fail), "fail to open", .letter = 'F'},
	{0},
};

static const struct ubd_target slow = {
	.api = UBD_TARGET_API,
	.flags = UBD_TARGET_SEES_DATA,
	.name = "slow",
	.summary = "waits where it is told to",
	.options = options,
	.size = sizeof(struct slow),
	.open = slow_open,
	.close = slow_close,
	.handle = slow_handle,
};

UBD_PLUGIN(slow);
