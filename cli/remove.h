/* SPDX-License-Identifier: MIT */
/* Taking one device away, with its server, within a bound. */
#ifndef CLI_REMOVE_H
#define CLI_REMOVE_H

#include <stdbool.h>

#include <ubd/ubd.h>

struct removal {
	bool force;    /* also when in use; kills a server that does not end */
	unsigned wait; /* seconds, of each step that can be stuck */
};

/* Remove device id. 0, or the exit code after saying what is in the way. */
int remove_device(struct ubd_ctrl *ctrl, unsigned id, const struct removal *how);

#endif
