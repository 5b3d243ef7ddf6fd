/* SPDX-License-Identifier: MIT */
/* The targets that are built in. */
#ifndef UBD_TARGETS_H
#define UBD_TARGETS_H

#include <ubd/device.h>

extern const struct ubd_target target_linear;
extern const struct ubd_target target_loop;
extern const struct ubd_target target_mem;
extern const struct ubd_target target_mirror;
extern const struct ubd_target target_nbd;
extern const struct ubd_target target_null;
extern const struct ubd_target target_qcow2;
extern const struct ubd_target target_stripe;
extern const struct ubd_target target_zoned;

#endif
