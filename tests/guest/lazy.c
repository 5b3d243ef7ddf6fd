/* SPDX-License-Identifier: MIT */
/*
 * A target that fills little or nothing of what is read, in every way it can leave a gap, by the
 * megabyte of the disk (see lazycheck.c). Writes go nowhere but through the library's buffers.
 */
#include <errno.h>
#include <string.h>

#include <ubd/target.h>

static int lazy_open(struct ubd_device *dev, void *self)
{
	(void)self;
	ubd_device_limits(dev)->size = 8 << 20;
	return 0;
}

static int lazy_read(struct ubd_io *io)
{
	uint32_t half = io->length / 2;
	struct ubd_transfer zeroes = {.where = UBD_ZEROES, .at = half, .len = io->length - half};
	char *data;

	switch (io->offset >> 20) {
	case 0: /* nothing */
		return (int)io->length;
	case 1: /* the middle byte */
		return ubd_io_put(io, half, "\x55", 1) < 0 ? -EIO : (int)io->length;
	case 2: /* the second half, by a transfer */
		return ubd_io_transfer(io, &zeroes, 1) < 0 ? -EIO : (int)io->length;
	case 3: /* the first byte, in memory */
		data = ubd_io_data(io);
		if (!data)
			return -ENOMEM;
		data[0] = 0x55;
		return (int)io->length;
	case 4: /* short, and nothing of it */
		return (int)(half < 512 ? io->length : half / 512 * 512);
	case 5: /* memory asked for and not touched, then a transfer */
		if (!ubd_io_data(io))
			return -ENOMEM;
		return ubd_io_transfer(io, &zeroes, 1) < 0 ? -EIO : (int)io->length;
	case 6: /* twice the same piece */
		if (ubd_io_put(io, 0, "\x55", 1) < 0 || ubd_io_put(io, 0, "\x55", 1) < 0)
			return -EIO;
		return (int)io->length;
	default: /* an empty transfer */
		zeroes.len = 0;
		return ubd_io_transfer(io, &zeroes, 1) < 0 ? -EIO : (int)io->length;
	}
}

static int lazy_handle(struct ubd_io *io, void *self)
{
	(void)self;
	switch (io->op) {
	case UBD_READ:
		return lazy_read(io);
	case UBD_WRITE:
		/* The data passes through the server's memory: it is there to leak. */
		return ubd_io_data(io) ? (int)io->length : -ENOMEM;
	default:
		return 0;
	}
}

static const struct ubd_target lazy = {
	.api = UBD_TARGET_API,
	.name = "lazy",
	.summary = "leaves gaps in what is read",
	.open = lazy_open,
	.handle = lazy_handle,
};
UBD_PLUGIN(lazy);
