/* SPDX-License-Identifier: MIT */
/* What to do while a control command is under way, for devices whose queues have no threads. */
#ifndef UBD_CTRL_WAIT_H
#define UBD_CTRL_WAIT_H

struct ubd_ctrl;

/* Wait until fd is readable, or ms passed, or there was something else to do. */
typedef void ctrl_idle_fn(void *arg, int fd, int ms);

void ctrl_set_idle(struct ubd_ctrl *ctrl, ctrl_idle_fn *idle, void *arg);

#endif
