/* SPDX-License-Identifier: MIT */
/*
 * The drivers the suite knows, and where one of them is meant to answer otherwise than mainline
 * 7.2 does, which is what the cases themselves say.
 */
#ifndef CONFORM_DIFFERENCES_H
#define CONFORM_DIFFERENCES_H

#include <stdbool.h>

#define DRV_INTREE_6_12 (1U << 0)
#define DRV_INTREE_7_2 (1U << 1)
#define DRV_OURS_6_1 (1U << 2)
#define DRV_OURS_6_12 (1U << 3)
#define DRV_OURS_7_2 (1U << 4)
#define DRV_INTREE (DRV_INTREE_6_12 | DRV_INTREE_7_2)
#define DRV_OURS (DRV_OURS_6_1 | DRV_OURS_6_12 | DRV_OURS_7_2)

enum difference_kind {
	DIFF_RESULT,  /* the aspect's result is another one */
	DIFF_ANY,     /* the aspect's result does not matter */
	DIFF_NOT_RUN, /* the case would bring the kernel down or hang it: a known bug */
};

struct difference {
	const char *aspect; /* of a result; for DIFF_NOT_RUN a case or a group of them */
	unsigned drivers;
	enum difference_kind kind;
	long result;
	const char *reason;
};

/* The driver under test: one DRV_ bit, from its kind and the running kernel's version. */
int driver_select(const char *kind);
unsigned driver_current(void);
const char *driver_name(void);
bool driver_is(unsigned drivers);

/* The entry for this aspect and the driver under test, or NULL. */
const struct difference *difference_find(const char *aspect);

#endif
