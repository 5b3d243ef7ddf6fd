/* SPDX-License-Identifier: MIT */
/*
 * mirror: the inside. docs/mirror.md has the format on disk and the order of writes.
 *
 *   mirror.c   requests and options     assemble.c  which legs are what, at the start
 *   meta.c     superblock, bitmap       resync.c    copying, cleaning, legs that come back
 *
 * Legs are known by their slot in the superblock; sets of them are masks. `lock` guards what
 * several requests share and is never held across I/O; `commit` is held while metadata is written.
 */
#ifndef UBD_MIRROR_H
#define UBD_MIRROR_H

#include <stdatomic.h>

#include "../backing/legs.h"

#define MIRROR_LEGS 8
#define META_BLOCK 4096u
#define MAP_BEGIN (2 * META_BLOCK)
#define DATA_BEGIN (1u << 20) /* of a leg, bytes: where the disk begins */
#define SECTOR_BITS 4064u     /* regions per 512 bytes of the bitmap */
#define PAGE_BITS (8 * SECTOR_BITS)
#define MAX_PAGES ((DATA_BEGIN - MAP_BEGIN) / META_BLOCK)
#define PIECE (1u << 20) /* copied at a time, at most */

enum leg_state { LEG_OUT, LEG_REBUILDING, LEG_IN_SYNC };

/* What every leg's superblock says, in memory. */
struct super {
	uint8_t uuid[16];
	uint64_t events; /* rises with each superblock written */
	uint64_t size;	 /* of the disk, bytes */
	uint64_t chunk;	 /* of a region, bytes */
	unsigned legs;	 /* slots in use */
	unsigned slot;	 /* of the leg it was read from */
	uint64_t id[MIRROR_LEGS];
	_Atomic uint8_t state[MIRROR_LEGS]; /* enum leg_state */
	uint8_t place;			    /* which of the leg's two it was */
};

enum {
	R_DIRTY = 1,  /* its bit is set, or about to be */
	R_SYNC = 2,   /* to be copied */
	R_DIFFER = 4, /* legs in sync may hold different bytes: only the first is read */
	R_USED = 8,   /* written to since cleaning last came by */
	R_IDLE = 16,  /* about to be cleaned */
};

struct region {
	uint32_t writers; /* requests under way */
	uint8_t flags;
};

/* The nth change of something, and the nth that is durable on all active legs. */
struct progress {
	uint64_t changed, durable;
};

struct mirror {
	struct ubd_list paths, write_mostly;
	uint64_t chunk, rate, delay, retry;
	int read_policy, direct;
	bool create, rebuild, degraded;

	struct ubd_device *dev;
	struct legs legs;		  /* as they were named */
	struct backing *leg[MIRROR_LEGS]; /* by slot; NULL: not here */
	bool read_only;
	unsigned slow; /* write-mostly */
	uint8_t *map;  /* pages of the bitmap, as on disk but for the checksums */
	uint8_t *out[MIRROR_LEGS], *piece;
	uint8_t place[MIRROR_LEGS]; /* of a leg's newest superblock; the other is written next */
	uint64_t regions;
	unsigned pages;

	struct ubd_mutex commit;
	struct ubd_mutex lock; /* what follows */
	struct super super;
	struct progress saved; /* of .super */
	struct progress page[MAX_PAGES];
	_Atomic unsigned active, in_sync;
	struct region *region;
	_Atomic uint64_t nr_dirty, nr_sync, nr_differ, sync_total; /* regions */
	uint64_t cursor, cursor_at; /* the next piece to copy: region, bytes into it */
	uint64_t copying;	    /* a region + 1: writers wait; 0: none */
	struct ubd_cond turn;	    /* for those and for the copier */
	struct ubd_cond work;	    /* the worker waits here */
	bool idle;
	unsigned read_errors[MIRROR_LEGS];
	_Atomic uint64_t head[MIRROR_LEGS];
	_Atomic unsigned next_read;
};

/* assemble.c: with the legs open, find out what they are. 0 or -errno, with sentence. */
int assemble(struct mirror *m);

/* meta.c */
/* The newest superblock of a leg. 1; 0: none; -errno, with sentence. May block. */
int super_read(struct mirror *m, const struct backing *b, struct super *s);
/* Or the leg's bitmap into ours; what cannot be read counts as set. May block. */
void map_read(struct mirror *m, const struct backing *b);
bool map_test(const struct mirror *m, uint64_t region);
/* With the lock. */
void map_set(struct mirror *m, uint64_t region, bool value);
void map_touch(struct mirror *m);
/*
 * Make pages [first, last] of the bitmap, or the superblock, durable as they are now. q NULL: with
 * calls that block. -errno: on no leg that is in sync. [awaits]
 */
int map_commit(struct ubd_queue *q, struct mirror *m, uint64_t first, uint64_t last);
int super_commit(struct ubd_queue *q, struct mirror *m);
/* Both, as after a change of the legs. [awaits] */
int meta_commit(struct ubd_queue *q, struct mirror *m);
/*
 * Of those who were told something, `failed` did not do it. Leave them out, unless none that is in
 * sync has done it: then -errno and all stay. [awaits]
 */
int legs_failed(struct ubd_queue *q, struct mirror *m, unsigned told, unsigned failed, int err);
/* Where legs differ: `good` could be read, `failed`, before it in order, not. [awaits] */
int source_failed(struct ubd_queue *q, struct mirror *m, unsigned failed, unsigned good);
/* fsync those in mask. 0 or -errno as above. [awaits] */
int legs_flush(struct ubd_queue *q, struct mirror *m, unsigned mask);
/* With the lock: the region is to be copied. */
void region_sync(struct mirror *m, uint64_t region, uint8_t flags);
static inline void mirror_lock(struct ubd_queue *q, struct mirror *m)
{
	if (q)
		ubd_mutex_lock(q, &m->lock);
}
static inline void mirror_unlock(struct ubd_queue *q, struct mirror *m)
{
	if (q)
		ubd_mutex_unlock(q, &m->lock);
}

/* resync.c: the worker, on the first queue. */
void mirror_worker(struct ubd_queue *q, void *self);
/* Clear all bits that can be; at the end, when no request is under way. May block. */
void mirror_settle(struct mirror *m);

#endif
