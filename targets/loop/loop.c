/* SPDX-License-Identifier: MIT */
/* loop: a file or block device as a disk. */
#include "../backing/backing.h"
#include "../targets.h"

struct loop {
	const char *file;
	uint64_t offset, size;
	int direct;
	struct backing backing;
};

static int loop_open(struct ubd_device *dev, void *self)
{
	struct loop *l = self;
	int ret = backing_open(&l->backing, dev,
			       &(struct backing_request){
				       .path = l->file,
				       .direct = (enum backing_direct)l->direct,
				       .read_only = ubd_device_read_only(dev),
				       .start = l->offset,
				       .size = l->size,
			       });

	if (!ret)
		backing_limits(&l->backing, ubd_device_limits(dev));
	return ret;
}

static void loop_close(struct ubd_device *dev, void *self)
{
	struct loop *l = self;

	(void)dev;
	backing_close(&l->backing);
}

static int loop_handle(struct ubd_io *io, void *self)
{
	struct backing *b = &((struct loop *)self)->backing;
	struct ubd_transfer whole;

	if (io->op != UBD_READ && io->op != UBD_WRITE)
		return backing_apply(b, io, io->offset, io->length);
	whole = backing_transfer(b, io, 0, io->length, io->offset);
	return ubd_io_finish(io, &whole, 1);
}

static const struct ubd_option loop_options[] = {
	{"file", UBD_PATH, offsetof(struct loop, file), "file or block device", .required = true,
	 .positional = true, .letter = 'f'},
	{"offset", UBD_SIZE, offsetof(struct loop, offset), "bytes to leave out at its beginning",
	 .fallback = "0"},
	{"size", UBD_SIZE, offsetof(struct loop, size), "bytes to use; 0: all the rest",
	 .fallback = "0"},
	{"direct", UBD_CHOICE, offsetof(struct loop, direct),
	 "go past the page cache (O_DIRECT); auto: where that works", .fallback = "auto",
	 .choices = "auto|on|off"},
	{0},
};

const struct ubd_target target_loop = {
	.api = UBD_TARGET_API,
	.name = "loop",
	.summary = "a file or block device",
	.options = loop_options,
	.size = sizeof(struct loop),
	.open = loop_open,
	.close = loop_close,
	.handle = loop_handle,
};
