/* SPDX-License-Identifier: MIT */
/* Reaching the driver, and saying what to do when it cannot be reached. */
#ifndef CLI_CONTROL_H
#define CLI_CONTROL_H

#include <ubd/ubd.h>

/*
 * Open the driver's control device; as root, load the module when it is missing. NULL after saying
 * in one sentence, which begins with verb, what is missing and what to do.
 */
struct ubd_ctrl *control_open(const char *verb);

#endif
