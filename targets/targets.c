/* SPDX-License-Identifier: MIT */
/* The targets that are built in, by name. A new one goes here and into meson.build. */
#include "targets.h"

static const struct ubd_target *const targets[] = {
	&target_linear,
	&target_loop,
	&target_mem,
	&target_mirror,
	&target_nbd,
	&target_null,
	&target_qcow2,
	&target_stripe,
	&target_zoned,
	NULL,
};

const struct ubd_target *const *ubd_targets(void)
{
	return targets;
}
