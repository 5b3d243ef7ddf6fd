/* SPDX-License-Identifier: MIT */
/*
 * Failures on purpose: the nth command of a kind fails instead of reaching the kernel. One object
 * per thread that counts, so no locks.
 */
#ifndef UBD_FAULT_H
#define UBD_FAULT_H

#include <stdbool.h>

enum fault_kind { FAULT_SQE, FAULT_FETCH, FAULT_COMMIT, FAULT_CTRL, FAULT_KINDS };

struct fault_plan {
	unsigned nth; /* 1: the next one; 0: never */
	bool sticky;  /* and all after it */
	int err;      /* positive errno */
};

struct fault {
	struct fault_plan plan[FAULT_KINDS];
	bool armed; /* any plan left */
};

/* "sqe:5:EIO,ctrl:2+:110": see ubd_device_config.fault. NULL clears. -EINVAL. */
int fault_parse(struct fault *f, const char *text);
/* Count one command; 0, or the -errno it has to fail with. */
int fault_hit(struct fault *f, enum fault_kind kind);

#endif
