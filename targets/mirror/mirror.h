/* SPDX-License-Identifier: MIT */
/*
 * mirror: the inside. docs/mirror.md has the format on disk and the order of writes.
 *
 *   mirror.c   requests and options
 *   record.c   what is kept on the legs, and putting a mirror together from it
 *   resync.c   copying, cleaning, legs that come back
 *
 * Legs are known by their slot in the record; sets of them are masks. `lock` guards what several
 * requests share and is never held across I/O; `commit` is held while a record is written.
 */
#ifndef UBD_MIRROR_H
#define UBD_MIRROR_H

#include "../backing/legs.h"

#define MIRROR_LEGS 8
#define BLOCK 4096u
#define DATA_BEGIN (1u << 20) /* of a leg, bytes: where the disk begins */
#define REGIONS 30720u	      /* at most */
#define PIECE (1u << 20)      /* copied at a time, at most */

/* Operations beside those of requests, the worker's: have a piece, copy it to who lacks it. */
#define MIRROR_FETCH 0x40
#define MIRROR_COPY 0x41

#define for_each_leg(i, mask)               \
	for (unsigned i##_left = (mask), i; \
	     i##_left && (i = (unsigned)__builtin_ctz(i##_left), true); i##_left &= i##_left - 1)

/* All that is kept, in one block, little endian. A leg is out if neither active nor in sync. */
struct record {
	char magic[8];
	uint32_t version;
	uint32_t slots, slot;		  /* in use; this leg's */
	_Atomic uint32_t active, in_sync; /* masks: is written to; holds all that the disk does */
	uint32_t place;			  /* which of the two */
	uint64_t events;		  /* rises with each record written; 0: none was found */
	uint64_t size, chunk;		  /* of the disk, of a region; bytes */
	uint8_t uuid[16];
	uint64_t id[MIRROR_LEGS]; /* of the leg in each slot, random */
	uint8_t reserved[116];
	uint8_t map[REGIONS / 8]; /* regions in which the legs may differ */
	uint32_t crc;		  /* of what is before */
};

struct region {
	uint64_t since;	   /* the change that set its bit; 0: it is clear */
	uint32_t writers;  /* requests under way */
	uint32_t used;	   /* the round of cleaning in which the last of them ended */
	_Atomic bool sync; /* to be copied */
};

struct mirror {
	struct ubd_list paths, write_mostly;
	uint64_t chunk, rate, delay, retry;
	int read_policy, direct;
	bool create, rebuild, degraded;

	struct ubd_device *dev;
	struct legs legs;		  /* as they were named */
	struct backing *leg[MIRROR_LEGS]; /* by slot; NULL: not here */
	unsigned here, slow;		  /* masks; slow: write-mostly */
	struct record *out;		  /* one for each slot, aligned for direct I/O */
	void *piece;
	uint8_t place[MIRROR_LEGS]; /* of a leg's newest record; the other is written next */

	struct ubd_mutex commit;
	struct ubd_mutex lock; /* what follows */
	struct record rec;
	_Atomic uint64_t changed, durable; /* changes of it so far; on all active legs */
	_Atomic uint64_t dropped;	   /* the change that left a leg out last */
	struct region *region;
	uint64_t regions;
	_Atomic uint32_t nr_dirty, nr_sync; /* regions */
	_Atomic bool differ;	/* legs in sync may, where `sync` is: only the first is read */
	_Atomic uint32_t round; /* of cleaning */
	_Atomic uint64_t pos;	/* bytes: the next piece to copy */
	uint64_t copying;	/* a region + 1: writers wait; 0: none */
	struct ubd_cond turn;	/* for those and for the copier */
	struct ubd_cond work;	/* the worker waits here */
	_Atomic uint32_t read_errors[MIRROR_LEGS], next_read;
	_Atomic uint64_t head[MIRROR_LEGS];
};

/* record.c */
/* With the legs open, find out what they are. 0 or -errno, with sentence. May block. */
int assemble(struct mirror *m);
/* With the lock: the legs may differ in this region; sync: so it is to be copied. */
void region_mark(struct mirror *m, uint64_t nr, bool sync);
/* Until the change `want` is durable on all active legs. -errno: on none in sync. [awaits] */
int commit(struct ubd_queue *q, struct mirror *m, uint64_t want);
/* Write a leg's newest record again, over the older of its two; with `commit`. [awaits] */
int put_record(struct ubd_queue *q, unsigned i, void *mirror);
/*
 * Leave out the legs that failed, if one of the good is in sync: else err. What stands on it must
 * not be answered before commit(dropped). [awaits]
 */
int drop_legs(struct ubd_queue *q, struct mirror *m, unsigned good, unsigned failed, int err);

/* resync.c */
/* Copies, cleans and takes legs back, on the first queue. */
void mirror_worker(struct ubd_queue *q, void *self);
/*
 * Flush: then regions that nobody has written to since before that round are clean, and legs to
 * which all has been copied are in sync. [awaits]
 */
int settle(struct ubd_queue *q, struct mirror *m, uint32_t round);

/* mirror.c */
/* Any request but READ; also the worker's own FLUSH and MIRROR_COPY. 0 or -errno. [awaits] */
int mirror_write(struct ubd_io *io, struct mirror *m);

#endif
