/* SPDX-License-Identifier: MIT */
/*
 * An emulated host-managed zoned device: what its parts share.
 *
 *   zoned.c   options, requests, data       image.c   zone states in a file
 *   zones.c   conditions and resources
 *
 * A zone's whole state is one 64-bit word: its condition in the low byte, above it how many blocks
 * hold data. So it changes at once, for readers without a lock and for whoever finds it after a
 * kill.
 *
 * Locks: zone_lock[i], held across I/O, lets one request at a time change zone i. Within it .lock,
 * for words and counts, never across I/O.
 */
#ifndef ZONED_H
#define ZONED_H

#include <linux/blkzoned.h>
#include <pthread.h>

#include "../backing/backing.h"
#include "../backing/copies.h"

#define ZONE_BLOCK 4096u	   /* the logical block */
#define ZONE_DATA_START (2u << 20) /* in the file; before it the two copies of the states */

#define ZONE_COND(word) ((word)&0xff)
#define ZONE_WRITTEN(word) (((word) >> 8) * ZONE_BLOCK) /* bytes from the zone's start */

/* Bytes and zones. As options, 0 is "not given"; later, of the limits, "none". */
struct zone_geometry {
	uint64_t size, zone_size, zone_capacity, conventional, max_open, max_active;
};

/* In the file, twice, and in the live file: docs/zoned.md. */
struct zone_state {
	struct copy copy;
	uint64_t session; /* whose live file counts */
	struct zone_geometry geo;
	char boot[40];	  /* live file: the boot that it is of */
	uint64_t words[]; /* of conventional zones 0 */
};

struct zoned {
	struct zone_geometry geo;
	const char *file; /* NULL: in memory */
	bool format;
	struct ubd_device *dev;
	struct backing b;
	char *map; /* the data, in memory */
	uint32_t nr_zones;
	struct ubd_mutex *zone_lock;

	/* zones.c */
	pthread_mutex_t lock;
	struct zone_state *state;    /* the live file, if there is one; otherwise only .words */
	uint32_t count[256], cursor; /* zones of each condition; where one to close is looked for */

	/* image.c */
	struct ubd_mutex flushing;
	struct zone_state *copies, *durable; /* room for both; the one of them that counts */
	char *live_path;		     /* NULL: nothing to make durable */
	bool live_is_new;		     /* no killed server has left it */
	int failed;			     /* -errno: nobody knows what is durable */
};

static inline uint64_t zone_word(const struct zoned *z, uint32_t i)
{
	return __atomic_load_n(&z->state->words[i], __ATOMIC_ACQUIRE);
}

/*
 * zones.c. Take words over. killed: as they were; otherwise as after a power cycle, nothing open.
 * -EINVAL, with sentence: there are some that cannot be.
 */
int zones_load(struct zoned *z, const uint64_t *words, bool killed);
/*
 * A UBD_ZONE_* operation on sequential zone i, with its lock held. Around a UBD_WRITE or
 * UBD_ZONE_APPEND of len bytes: first op, with *at its place in the zone, told by a write and
 * answered for an append; then ZONE_WRITTEN_TO with the bytes written, len or 0.
 *
 * Errors are those that the block layer knows: -EIO for what the zone's condition or write pointer
 * does not allow, -ETOOMANYREFS for too many open and -EOVERFLOW for too many active zones.
 */
#define ZONE_WRITTEN_TO 0xff
int zones_apply(struct zoned *z, uint32_t i, unsigned op, uint64_t *at, uint32_t len);
void zones_report(const struct zoned *z, uint32_t i, struct blk_zone *out);

/* image.c. Open or make the file, or memory that looks like one. 0 or -errno, with sentence. */
int image_open(struct ubd_device *dev, struct zoned *z);
void image_close(struct ubd_device *dev, void *self);
/* Data and zone states are durable when it returns. q NULL: blocks. [awaits] */
int image_flush(struct zoned *z, struct ubd_queue *q);

#endif
