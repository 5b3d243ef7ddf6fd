/* SPDX-License-Identifier: MIT */
/* A plugin built for a later version of the interface than there is. */
#include <ubd/target.h>

static int newer_handle(struct ubd_io *io, void *self)
{
	(void)self;
	return (int)io->length;
}

static const struct ubd_target newer = {.api = 99, .name = "newer", .handle = newer_handle};
UBD_PLUGIN(newer);
