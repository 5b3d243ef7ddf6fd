/* SPDX-License-Identifier: MIT */
/* What to do while a control command is under way. */
#ifndef UBD_CTRL_WAIT_H
#define UBD_CTRL_WAIT_H

struct ubd_ctrl;

/*
 * Wait until fd is readable, or ms passed, or there was something else to do. Returns 0, or -errno
 * when the command can no longer succeed and is to be given up.
 */
typedef int ctrl_idle_fn(void *arg, int fd, int ms);

void ctrl_set_idle(struct ubd_ctrl *ctrl, ctrl_idle_fn *idle, void *arg);

#endif
