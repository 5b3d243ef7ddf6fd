/* SPDX-License-Identifier: MIT */
/*
 * The inside of the qcow2 target.
 *
 *   header.c  what an image says of itself     map.c       guest cluster to host cluster
 *   chain.c   image, data file, backings       refs.c      refcounts, finding free clusters
 *   cache.c   pages of metadata                commit.c    making changes durable, in order
 *   file.c    host files                       rebuild.c   new refcounts, in one step
 *   read.c    READ                             snapshot.c  snapshots, resize
 *   write.c   WRITE                            journal.c   what survives a killed server
 *   zero.c    WRITE_ZEROES, DISCARD            packed.c    compressed clusters
 *
 * All metadata is used under image.lock, a mutex held for microseconds and never across I/O. Code
 * under it is a transaction: it looks at cached pages only, and when one is missing (or a free
 * cluster, or a turn) it notes in image.need what that is and returns -EAGAIN, having changed
 * nothing. The caller unlocks, waits for that and runs the transaction again. So what a
 * transaction changes, it changes as one.
 */
#ifndef UBD_QCOW2_H
#define UBD_QCOW2_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/param.h>
#include <sys/queue.h>

#include "file.h"
#include "format.h"

struct qc_image;

#define COMPARE(a, b) (((a) > (b)) - ((a) < (b))) /* as qsort() wants it */

/* ---- Waiting for a turn -------------------------------------------------------------------- */

/* One coroutine waiting for something under image.lock to change. */
struct qc_waiter {
	struct ubd_mutex gate; /* held until woken */
	struct qc_waiter *next;
};

/* ---- Pages of metadata --------------------------------------------------------------------- */

/* When a commit writes a page: everything of a step is durable before the next begins. */
enum qc_step {
	STEP_REFS,  /* refcounts, which may be too high but never too low; all fresh tables */
	STEP_TABLE, /* the refcount table, which points at blocks */
	STEP_MAP,   /* L1 and L2 tables: what a reader follows */
	NR_STEPS,
};

struct qc_page {
	uint64_t pos;		   /* in the file */
	uint8_t *data;		   /* one piece of memory with this, which lies behind it */
	LIST_ENTRY(qc_page) chain; /* of the hash */
	TAILQ_ENTRY(qc_page) age;
	bool loading;
	bool dirty;
	bool writing; /* a commit has a copy of it on its way: not to be evicted */
	bool fresh;   /* of a table that nothing on disk points at yet */
	uint8_t step; /* enum qc_step, once it is no longer fresh */
	uint8_t now;  /* the step of the copy on its way */
};

struct qc_cache {
	unsigned page_bits;
	unsigned max, count, dirty;
	LIST_HEAD(qc_chain, qc_page) * hash;
	unsigned hash_mask;
	TAILQ_HEAD(qc_ages, qc_page) by_age; /* the newest first */
};

/* What a transaction that returned -EAGAIN waits for. */
struct qc_need {
	enum qc_need_kind { NEED_PAGE, NEED_TURN, NEED_COMMIT, NEED_ROOM } what;
	uint64_t pos;	  /* NEED_PAGE: where; NEED_ROOM: new end */
	unsigned commits; /* made for want of space: the next time there really is none */
};

/* ---- Ranges of clusters -------------------------------------------------------------------- */

struct qc_range {
	uint64_t first, count; /* clusters */
};

/* Guest clusters whose mapping a request is changing. */
struct qc_busy {
	uint64_t first, count;
	LIST_ENTRY(qc_busy) others;
};

/* ---- An image ------------------------------------------------------------------------------ */

/* A mapping that a dead server did not get to write. */
struct qc_patch {
	uint64_t guest, word, bits;
	uint32_t age;
};

struct qc_image {
	struct ubd_device *dev;
	struct qc_file file;
	struct qc_file data_file;
	struct qc_file *data; /* where guest clusters are: one of the two */
	struct qc_image *backing;
	uint64_t size; /* of the disk, bytes */
	bool raw;      /* not qcow2 at all: the file is the disk */
	bool writable;
	bool external; /* has a data file */
	bool data_raw; /* which is a raw image of the disk as well */

	/* The header, as on disk and taken apart. */
	uint8_t *header; /* first cluster of the file */
	unsigned version, cluster_bits, refcount_bits, compression;
	unsigned units;		      /* of a cluster that are mapped apart: 1, or 32 subclusters */
	unsigned unit_bits;	      /* log2 of a unit's bytes */
	uint32_t all_units;	      /* a bit for each */
	unsigned entry_size, l2_bits; /* of an L2 entry, bytes; log2 of those in a table */
	unsigned block_bits;	      /* log2 of the clusters that a refcount block counts */
	uint64_t incompatible, autoclear;
	uint64_t l1_offset, rt_offset, snapshots_offset;
	uint32_t l1_entries, rt_clusters, nr_snapshots;
	char *backing_name, *backing_format, *data_name;

	pthread_mutex_t lock; /* what follows */
	struct qc_waiter *waiters;
	struct qc_need *need; /* of the transaction under way */
	struct qc_cache cache;
	LIST_HEAD(, qc_busy) busy;
	_Atomic bool broken;  /* metadata found damaged: nothing is allocated any more */
	_Atomic bool marked;  /* the file says that it is in use (dirty bit) */
	uint64_t hint;	      /* no free host cluster below */
	uint64_t zero_from;   /* clusters from here on were never written: they are zero */
	uint64_t packed_seen; /* counts changes that may reuse compressed data's place */
	/*
	 * Unmapped clusters, the oldest first. Those before .leaving become free when the requests
	 * of the epoch before this have ended, those before .limbo are unmapped for good, and those
	 * before .sealed as soon as the commit under way is durable.
	 */
	struct qc_range *freed;
	size_t nr_freed, sealed, limbo, leaving;
	_Atomic bool paused;	    /* requests wait at the door */
	struct qc_journal *journal; /* mapped */
	char *journal_path;
	uint64_t journal_taken;	  /* its head when the last commit began */
	struct qc_patch *patches; /* for qc_rebuild() to work in, by guest cluster and age */
	uint32_t nr_patches;
	_Atomic bool commit_first; /* no journal: mappings are committed before they are told */

	struct ubd_mutex commit_lock;		      /* one commit, one rebuild, the first mark */
	_Atomic uint64_t commits_begun, commits_done; /* numbers of the last */

	_Atomic unsigned epoch;	      /* its low bit says where a request is counted */
	_Atomic unsigned inflight[2]; /* requests */

	/* The last compressed cluster that was unpacked. */
	uint8_t *packed_data;
	uint64_t packed_word, packed_at;
};

struct qc_options {
	uint64_t cache_bytes;
	int direct;
	bool writable;
	bool repair;	       /* accept an image marked corrupt, if a rebuild cures it */
	const char *snapshot;  /* open this one, read-only */
	const char *journal;   /* directory of journals; NULL: none, "": commit first */
	const char *data_file; /* overrides the name in the image */
};

static inline uint64_t cluster_size(const struct qc_image *img)
{
	return 1ull << img->cluster_bits;
}

static inline uint64_t page_size(const struct qc_image *img)
{
	return 1ull << img->cache.page_bits;
}

/* Entries of the refcount table. */
static inline uint64_t rt_entries(const struct qc_image *img)
{
	return (uint64_t)img->rt_clusters << (img->cluster_bits - 3);
}

/* Where in its cluster a byte lies. */
static inline uint64_t in_cluster(const struct qc_image *img, uint64_t pos)
{
	return pos & (cluster_size(img) - 1);
}

/* Clusters that `bytes` take. */
static inline uint64_t clusters_for(const struct qc_image *img, uint64_t bytes)
{
	return (bytes >> img->cluster_bits) + (in_cluster(img, bytes) != 0);
}

/* ---- header.c ------------------------------------------------------------------------------ */

/* The first bytes of the file, whatever it is, to img->header. Blocks. */
int qc_header_load(struct qc_image *img, uint64_t len);
/* Check them as a header, and take it; sentences go to the device. Blocks. */
int qc_header_read(struct qc_image *img);
/* Whether there can be an L1 table at pos, for a disk of that size. */
bool qc_l1_fits(const struct qc_image *img, uint64_t pos, uint32_t entries, uint64_t size);
/* The fields that change. All lie in the header's first sector, so they change as one. */
void qc_header_take(struct qc_image *img, const uint8_t *header);
/*
 * commit_lock held: the header says that what other programs keep beside the disk (bitmaps) is
 * stale, and has these features more; durable. [awaits]
 */
int qc_header_claim(struct qc_image *img, struct ubd_queue *q, uint64_t more);
/* Before the first change of a session: mark the file as in use. [awaits] */
int qc_header_mark(struct qc_image *img, struct ubd_queue *q);
/* One sentence about the image, which begins with its name. */
#define qc_fail(img, err, fmt, ...) \
	ubd_device_fail((img)->dev, err, "%s" fmt, (img)->file.path, ##__VA_ARGS__)
/* The contents are damaged: say so in the file, refuse writes from here on. Returns -EIO. */
int qc_damaged(struct qc_image *img, const char *what, uint64_t where);

/* ---- chain.c ------------------------------------------------------------------------------- */

/* Open an image and everything below it. Blocks. Failures are told to dev. */
int qc_image_open(struct qc_image **img, struct ubd_device *dev, const char *path,
		  const struct qc_options *o);
/* Commit, give back what was reserved, say that the image is in order. Blocks. */
void qc_image_close(struct qc_image *img);

/* ---- cache.c ------------------------------------------------------------------------------- */

int qc_cache_init(struct qc_image *img, uint64_t bytes);
/* Lock held: the byte at pos, in a cached page; NULL: -EAGAIN. */
uint8_t *qc_meta(struct qc_image *img, uint64_t pos);
/* Lock held: what qc_meta() gave has been changed. Takes effect with the next commit. */
void qc_meta_dirty(struct qc_image *img, uint64_t pos, enum qc_step step);
/*
 * Lock held: a fresh table in the cluster at pos, a copy of the one at `from`, all of which is
 * cached, or empty (0). -errno: none of it.
 */
int qc_meta_table(struct qc_image *img, uint64_t pos, uint64_t from, enum qc_step step);
/* Lock held: drop everything, all clean. */
void qc_cache_drop(struct qc_image *img);
/* Lock held: wake everybody who waits for a turn. q: the caller's queue. */
void qc_wake(struct qc_image *img, struct ubd_queue *q);
/* Lock held; given back while waiting. */
void qc_wait(struct qc_image *img, struct ubd_queue *q);

/* In a transaction: what it waits for. Returns -EAGAIN. */
int qc_needs(struct qc_image *img, enum qc_need_kind what, uint64_t pos);
/* The end of a transaction: unlocks. If *ret is -EAGAIN, gets what it needs; true: run it again. */
bool qc_again(struct qc_image *img, struct ubd_queue *q, struct qc_need *need, int *ret);

/* Run `expr`, which calls a transaction, as often as needed; its result. [awaits] */
#define QC_TRANSACTION(img, q, expr)                       \
	({                                                 \
		struct qc_need need_ = {0};                \
		int ret_;                                  \
                                                           \
		do {                                       \
			pthread_mutex_lock(&(img)->lock);  \
			(img)->need = &need_;              \
			ret_ = (expr);                     \
		} while (qc_again(img, q, &need_, &ret_)); \
		ret_;                                      \
	})

/* ---- map.c --------------------------------------------------------------------------------- */

/* An L2 entry, taken apart. Units are bits; without subclusters there is one. */
struct qc_entry {
	uint64_t word, bits; /* as on disk */
	uint64_t host;	     /* 0 with !has_host: none */
	uint32_t alloc;	     /* units whose data is at host */
	uint32_t zero;	     /* units that read as zeroes */
	bool has_host, packed, copied;
	uint64_t place; /* of the entry in the file; 0: there is no L2 table */
	bool own_table; /* the L2 table is not shared with a snapshot */
};

/* Lock held. The entry of a guest cluster; an absent L2 table gives an empty one. */
int qc_map_get(struct qc_image *img, uint64_t guest, struct qc_entry *e);
/* The same, to be changed: in an L2 table of our own. */
int qc_map_prepare(struct qc_image *img, uint64_t guest, struct qc_entry *e);
/* After qc_map_prepare() in the same transaction: *old becomes *e. Writes the journal. */
void qc_map_set(struct qc_image *img, uint64_t guest, const struct qc_entry *old,
		const struct qc_entry *e);
/* What an L2 table has at p. -EIO: it cannot be. */
int qc_entry_parse(const struct qc_image *img, const uint8_t *p, struct qc_entry *e);
/* word and bits from the other members; not for compressed ones. */
void qc_entry_build(const struct qc_image *img, struct qc_entry *e);
/* An entry's words to its place in a table. */
void qc_entry_store(const struct qc_image *img, uint8_t *p, uint64_t word, uint64_t bits);
/* Lock held: an entry's data is no longer mapped. */
void qc_entry_drop(struct qc_image *img, const struct qc_entry *e);
/* Clusters of the image's file that an entry's data touches, from *first on; 0: none. */
uint64_t qc_entry_clusters(const struct qc_image *img, const struct qc_entry *e, uint64_t *first);
/* Host range of a compressed cluster, bytes. */
void qc_packed_range(const struct qc_image *img, uint64_t word, uint64_t *pos, uint64_t *len);

enum qc_kind { KIND_ZERO, KIND_DATA, KIND_PACKED, KIND_HOLE };

/* A stretch of the disk that lies in one place. */
struct qc_extent {
	enum qc_kind kind;
	struct qc_image *img; /* whose; of the chain */
	uint64_t len;
	uint64_t host; /* KIND_DATA: offset in img->data; KIND_PACKED: in the cluster */
	uint64_t word; /* KIND_PACKED: the whole L2 entry */
};

/* Where [offset, offset + at most len) lies, down the chain; never KIND_HOLE. [awaits] */
int qc_find(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len,
	    struct qc_extent *e);
/* Whether all of it reads as zeroes. 1, 0 or -errno. [awaits] */
int qc_is_zero(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len);

/* ---- refs.c -------------------------------------------------------------------------------- */

/* Lock held. */
int qc_ref_get(struct qc_image *img, uint64_t cluster, uint64_t *count);
int qc_ref_set(struct qc_image *img, uint64_t cluster, uint64_t count);
/* Lock held. Up to `want` free clusters in a row, their refcounts now 1. */
int qc_alloc(struct qc_image *img, uint64_t want, uint64_t *first, uint64_t *count, bool *zeroed);
/* In memory: entry i of a block. */
void qc_ref_poke(uint8_t *block, unsigned bits, uint64_t i, uint64_t value);
/* With room for one more item, `count` of them there; NULL: no memory, they stay where they are. */
void *qc_grow(void *items, size_t count, size_t size);
/* Lock held: clusters no longer mapped become free, some time after the next commit. */
void qc_free(struct qc_image *img, uint64_t first, uint64_t count);
/* Whether [pos, pos + len) meets the header or a top-level table. */
bool qc_is_metadata(const struct qc_image *img, uint64_t pos, uint64_t len);
/* Whether there can be a table or data at pos, as an entry says; if not, the image is damaged. */
int qc_check_place(struct qc_image *img, uint64_t pos, const char *what);

/* ---- commit.c ------------------------------------------------------------------------------ */

/* Everything done before the call is durable. [awaits] */
int qc_commit(struct qc_image *img, struct ubd_queue *q);
/* The same, commit_lock held. */
int qc_commit_locked(struct qc_image *img, struct ubd_queue *q);
/* The image's files, the data file first. [awaits] */
int qc_sync(struct qc_image *img, struct ubd_queue *q);
/* Around each request: clusters it may have seen are not given to others before it ends. */
unsigned qc_enter(struct qc_image *img, struct ubd_queue *q);
void qc_leave(struct qc_image *img, struct ubd_queue *q, unsigned epoch);
/* Keep requests out and wait for those within; and let them in again. One at a time. [awaits] */
void qc_pause(struct qc_image *img, struct ubd_queue *q);
void qc_resume(struct qc_image *img, struct ubd_queue *q);

/* ---- journal.c ----------------------------------------------------------------------------- */

int qc_journal_open(struct qc_image *img, const char *dir);
void qc_journal_close(struct qc_image *img, bool clean);
/* Everything noted is in the image now; its patches as well. */
void qc_journal_reset(struct qc_image *img);
/* Lock held. */
bool qc_journal_full(const struct qc_image *img);
void qc_journal_add(struct qc_image *img, uint64_t guest, uint64_t word, uint64_t bits);
void qc_journal_begin(struct qc_image *img); /* a commit takes what there is */
void qc_journal_end(struct qc_image *img);   /* it is durable */

/* ---- packed.c ------------------------------------------------------------------------------ */

/* Unpack a compressed cluster and copy len bytes from its offset `at`. [awaits] */
int qc_packed_read(struct qc_image *img, struct ubd_queue *q, uint64_t word, uint64_t at, void *buf,
		   uint64_t len);

/* ---- read.c, write.c, zero.c --------------------------------------------------------------- */

int qc_read(struct qc_image *img, struct ubd_io *io);
/* The disk's bytes to memory; past its end, zeroes. [awaits] */
int qc_read_memory(struct qc_image *img, struct ubd_queue *q, uint64_t offset, void *buf,
		   uint64_t len);
/* The part of io's data that belongs there; io NULL: zeroes as data. [awaits] */
int qc_write_range(struct qc_image *img, struct ubd_queue *q, struct ubd_io *io, uint64_t offset,
		   uint64_t len);

enum qc_zeroing {
	ZERO_UNMAP,   /* the space may be given back */
	ZERO_KEEP,    /* it stays allocated */
	ZERO_DISCARD, /* need not take effect */
};
int qc_zero(struct qc_image *img, struct ubd_queue *q, uint64_t offset, uint64_t len,
	    enum qc_zeroing how);

/* Lock held: -EAGAIN, while a request is changing the cluster. */
int qc_turn(struct qc_image *img, uint64_t guest);

/* ---- rebuild.c, snapshot.c ----------------------------------------------------------------- */

struct qc_snapshot {
	uint8_t *raw; /* in the table, .length bytes */
	uint64_t length;
	uint64_t l1_offset, size;
	uint32_t l1_entries;
	char *id, *name; /* owned, in one piece */
};

struct qc_snapshots {
	uint8_t *table; /* owned; has room for one more, and for whole clusters */
	uint64_t bytes; /* of the entries; behind them zeroes */
	struct qc_snapshot *items;
	unsigned count;
};

/* What an image is to become, in one step. */
struct qc_world {
	uint64_t size;
	const struct qc_snapshots *now;	 /* the snapshots that there are */
	uint64_t bytes;			 /* of now.table, as it is to be */
	bool created;			 /* one more, of the disk as it is */
	const struct qc_snapshot *gone;	 /* one of now that is to go */
	const struct qc_snapshot *adopt; /* one of now that becomes the disk */
};

/*
 * Write new refcounts from what is referenced, and with them any change of snapshots and size;
 * one write of the header's sector makes it so. No requests may be under way. [awaits]
 */
int qc_rebuild(struct qc_image *img, struct ubd_queue *q, const struct qc_world *w);
/* Whether the refcount table may not be able to count what the disk comes to need. */
bool qc_table_is_small(const struct qc_image *img);

int qc_snapshots_read(struct qc_image *img, struct ubd_queue *q, struct qc_snapshots *s);
void qc_snapshots_free(struct qc_snapshots *s);
/* By id or by name; NULL: there is none. */
const struct qc_snapshot *qc_snapshot_find(const struct qc_snapshots *s, const char *word);
/* Whether the disk can be as that snapshot says. */
int qc_snapshot_check(const struct qc_image *img, const struct qc_snapshot *s);
/*
 * The image anew, with right refcounts, the disk of that size. job: "create", "delete", or "apply":
 * make the disk what it was when the snapshot was made; NULL: nothing else.
 */
int qc_remake(struct qc_image *img, struct ubd_queue *q, uint64_t size, const char *job,
	      const char *name);
int qc_resize(struct qc_image *img, struct ubd_queue *q, uint64_t size);

#endif
