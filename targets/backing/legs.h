/* SPDX-License-Identifier: MIT */
/*
 * Several backings that make one disk, its legs: opened together, limits that suit all of them, and
 * calls to several at the same time.
 */
#ifndef UBD_LEGS_H
#define UBD_LEGS_H

#include "backing.h"

#define LEGS_MAX 64

struct legs {
	struct ubd_list paths; /* options */
	int direct;	       /* enum backing_direct */
	bool some;	       /* those that cannot be opened are left out */
	struct backing leg[LEGS_MAX];
	unsigned count; /* that are open */
};

/* The rows of a target's options that go to `member`, its struct legs. */
/* clang-format off */
#define LEGS_OPTIONS(type, member) \
	{"leg", UBD_PATHS, offsetof(type, member.paths), "files or block devices, in order", \
	 .required = true, .positional = true}, \
	{"direct", UBD_CHOICE, offsetof(type, member.direct), \
	 "go past the page cache (O_DIRECT); auto: where that works", \
	 .fallback = "auto", .choices = "auto|on|off"}
/* clang-format on */

/* [pos, pos + len) of a leg, bytes. */
struct leg_range {
	uint64_t pos, len;
};

/*
 * Open all or none, or with .some those that can be; no file or device twice; and set limits that
 * suit all: the smallest's size. Offsets and sizes: none, one for all or one for each; or NULL. 0
 * or -errno, with sentence.
 */
int legs_open(struct legs *l, struct ubd_device *dev, const struct ubd_list *offsets,
	      const struct ubd_list *sizes);
void legs_close(struct legs *l);
/* Use only so many bytes of leg i, and say so when that leaves some out. */
void legs_trim(struct legs *l, struct ubd_device *dev, unsigned i, uint64_t size);

/* Each leg i in mask, evaluated once. */
#define for_each_leg(i, mask)                                             \
	for (uint64_t i##_left = (mask), i;                               \
	     i##_left && (i = (uint64_t)__builtin_ctzll(i##_left), true); \
	     i##_left &= i##_left - 1)

/*
 * Call fn for the legs in mask, all at the same time; without a queue one after the other. The
 * first error or 0; *failed, where it is not NULL, gets the legs that had one. [awaits]
 */
typedef int legs_call(struct ubd_queue *q, unsigned i, void *arg);
int legs_each(struct ubd_queue *q, uint64_t mask, legs_call *fn, void *arg, uint64_t *failed);
/* A request that moves no data: FLUSH of all, or range[i] of leg i where not empty. [awaits] */
int legs_apply(struct legs *l, const struct ubd_io *io, const struct leg_range *range);

#endif
