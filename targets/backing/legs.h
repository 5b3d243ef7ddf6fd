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
	struct backing leg[LEGS_MAX];
	unsigned count;
};

struct legs_request {
	const struct ubd_list *paths;
	const struct ubd_list *offsets, *sizes; /* none, one for all or one for each; or NULL */
	int direct;				/* enum backing_direct */
};

/* [pos, pos + len) of a leg, bytes. */
struct leg_range {
	uint64_t pos, len;
};

/* Refuse too many, and the same file or device twice. 0 or -errno, with sentence. */
int legs_check(struct ubd_device *dev, const struct ubd_list *paths);
/* Open all or none, and set limits that suit all: the smallest's size. 0 or -errno, with sentence.
 */
int legs_open(struct legs *l, struct ubd_device *dev, const struct legs_request *want);
void legs_close(struct legs *l);
/* Use only so many bytes of leg i, and say so when that leaves some out. */
void legs_trim(struct legs *l, struct ubd_device *dev, unsigned i, uint64_t size);

/*
 * Call fn for the legs in mask, all at the same time; without a queue one after the other. The
 * first error or 0; *failed, where it is not NULL, gets the legs that had one. [awaits]
 */
typedef int legs_call(struct ubd_queue *q, unsigned i, void *arg);
int legs_each(struct ubd_queue *q, uint64_t mask, legs_call *fn, void *arg, uint64_t *failed);
/* A request that moves no data: FLUSH of all, or range[i] of leg i where not empty. [awaits] */
int legs_apply(const struct legs *l, const struct ubd_io *io, const struct leg_range *range);

#endif
