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

#include "../backing/copies.h"
#include "../backing/legs.h"

#define MIRROR_LEGS 8
#define BLOCK 4096u
#define DATA_BEGIN (1u << 20) /* of a leg, bytes: where the disk begins */
#define REGIONS 30720u	      /* at most */
#define PIECE (1u << 20)      /* copied at a time, at most */

/* Operations beside those of requests, the worker's: have a piece, copy it to who lacks it. */
enum { MIRROR_FETCH = 0x40, MIRROR_COPY };

#define fail(m, ...) ubd_device_fail((m)->dev, -EINVAL, __VA_ARGS__)

/* All that is kept, in one block, little endian. A leg is out if neither active nor in sync. */
struct record {
	struct copy copy; /* the sequence is of each leg */
	uint32_t version;
	uint32_t slots, slot;		  /* in use; this leg's */
	_Atomic uint32_t active, in_sync; /* masks: is written to; holds all that the disk does */
	uint32_t reserved;
	uint64_t events;      /* rises with each change that is written to the legs */
	uint64_t size, chunk; /* of the disk, of a region; bytes */
	uint8_t uuid[16];
	uint64_t id[MIRROR_LEGS]; /* of the leg in each slot, random */
	uint8_t map[REGIONS / 8]; /* regions in which the legs may differ */
	uint8_t rest[104];
};

/* Aligned for direct I/O. */
struct buffers {
	struct record out[MIRROR_LEGS]; /* by slot: what each leg has */
	char piece[PIECE];		/* that is being copied */
};

/*
 * What a region is; its bit is set if not CLEAN. A DIRTY one is RESTING after a cleaning that found
 * no writers, CLEAN after the next if none came. To be copied are those that are LACKED by legs not
 * in sync, and those that are DIFFERENT: any two legs may be, only the first in sync is read.
 */
enum { CLEAN, RESTING, DIRTY, LACKED, DIFFERENT };

struct region {
	uint64_t since;	  /* the change that set or cleared its bit */
	uint32_t writers; /* requests under way */
	_Atomic uint32_t state;
};

struct mirror {
	struct legs legs; /* as they were named */
	struct ubd_list write_mostly;
	uint64_t chunk, rate, delay, retry;
	int nearest; /* is read; else each in turn */
	bool create, rebuild, degraded;

	struct ubd_device *dev;
	struct backing *leg[MIRROR_LEGS]; /* by slot; NULL: not here */
	unsigned here, slow;		  /* masks; slow: write-mostly */
	struct buffers *buf;

	struct ubd_mutex commit;
	struct ubd_mutex lock; /* what follows */
	struct record rec;
	_Atomic uint64_t changed, durable; /* changes of it so far; on all active legs */
	_Atomic uint64_t dropped;	   /* the change that left a leg out last */
	struct region region[REGIONS];
	_Atomic uint32_t nr_dirty, nr_sync; /* regions not CLEAN; to be copied */
	_Atomic uint64_t pos;		    /* bytes: the next piece to copy */
	struct region *copying;		    /* writers wait; NULL: none */
	struct ubd_cond news;		    /* for those, the copier and the worker at rest */
	unsigned tries;			    /* to take legs back */
	_Atomic uint32_t read_errors[MIRROR_LEGS];
	_Atomic uint64_t reads, last[MIRROR_LEGS]; /* so far; each leg's: its number, or end */
};

/* record.c */
/* With the legs open, find out what they are. 0 or -errno, with sentence. May block. */
int assemble(struct mirror *m);
/* With the lock. */
void region_set(struct mirror *m, uint64_t nr, unsigned state);
/* Until the change `want` is durable on all active legs. -errno: on none in sync. [awaits] */
int commit(struct ubd_queue *q, struct mirror *m, uint64_t want);
/* Write a leg's newest record, or once more, over the older copy; with `commit`. [awaits] */
int put_record(struct ubd_queue *q, unsigned i, void *mirror);
/*
 * Leave out the legs that failed, if one of the good is in sync: else err. What stands on it must
 * not be answered before commit(dropped). [awaits]
 */
int drop_legs(struct ubd_queue *q, struct mirror *m, uint64_t good, uint64_t failed, int err);

/* resync.c */
/* Copies, cleans and takes legs back, on the first queue. */
void mirror_worker(struct ubd_queue *q, void *self);

/* mirror.c */
/*
 * Any request but READ; also the worker's FLUSH. What depends on it must not be answered before
 * commit(dropped). 0 or -errno. [awaits]
 */
int mirror_write(struct ubd_io *io, struct mirror *m);
/* A MIRROR_FETCH, and then the MIRROR_COPY to the legs that lack it. As above. [awaits] */
int mirror_copy(struct ubd_io *io, struct mirror *m);

#endif
