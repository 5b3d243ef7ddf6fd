/* SPDX-License-Identifier: MIT */
/*
 * What the author of a target needs: the target itself, the requests it gets, and calls that
 * look blocking and are not.
 *
 * Every request runs handle() on a coroutine of its queue's thread. A call below marked
 * [awaits] suspends that coroutine until its result is there, while the queue goes on with
 * others; so locals are safe across it, and what several requests share may have changed.
 * All such calls take the queue they run on, must be made on a coroutine of that queue, and
 * return a count or 0, or -errno.
 */
#ifndef UBD_TARGET_H
#define UBD_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <ubd/option.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ubd_device;
struct ubd_queue;
struct ubd_status;

/* ---- The target -------------------------------------------------------------------------- */

struct ubd_io;

/* A command to a running target; all of it is valid until command() returns. */
struct ubd_command {
	const char *const *words; /* what to do, and with what */
	unsigned count;
	struct ubd_status *answer; /* for ubd_status_number(), ubd_status_text() */
};

#define UBD_TARGET_API 4

/* The target reads or writes the bytes themselves: ubd_io_data(), ubd_io_get(), ubd_io_put(). */
#define UBD_TARGET_SEES_DATA (1u << 0)
/*
 * It has another way when an ubd_io_finish() fails: handle() is then called once more, with
 * io->error, and should use ubd_io_transfer().
 */
#define UBD_TARGET_RETRIES (1u << 1)

/*
 * A target, usually one const object. New members come at the end; .api says which the author
 * knew. Calls get `self`, the target's own state of .size bytes: zeroed, filled from .options,
 * owned by the library, the same for all queues of a device. Only handle, name and api are
 * required.
 */
struct ubd_target {
	uint32_t api;	     /* UBD_TARGET_API */
	uint32_t flags;	     /* UBD_TARGET_* */
	const char *name;    /* as in `ubd add NAME` */
	const char *summary; /* one line, no full stop */
	const struct ubd_option *options;
	size_t size; /* of the target's state, bytes */

	/*
	 * Make ready: open the backing, set ubd_device_limits(). Runs once, on the thread that
	 * starts the device, before the kernel knows of it; may block; may not await. On failure
	 * return ubd_device_fail(); close() is then not called.
	 */
	int (*open)(struct ubd_device *dev, void *self);
	/* Undo open(). Runs once, after the last queue has ended; may block. */
	void (*close)(struct ubd_device *dev, void *self);
	/*
	 * Serve one request. Returns the bytes done (READ, WRITE: io->length unless short; others:
	 * 0 will do) or -errno. Runs on a coroutine; must not block the thread.
	 */
	int (*handle)(struct ubd_io *io, void *self);
	/*
	 * Per-queue set-up and tear-down, on a coroutine of the queue's thread: before its first
	 * request and after its last.
	 */
	int (*queue_open)(struct ubd_queue *q, void *self);
	void (*queue_close)(struct ubd_queue *q, void *self);
	/*
	 * From api 2: tell how the target does (ubd_status_number(), ubd_status_text()), for
	 * `ubd info`. Any thread, while the queues run; must neither block nor await.
	 */
	void (*status)(void *self, struct ubd_status *out);
	/*
	 * From api 3: carry out a command of the target's own, as `ubd snapshot` and `ubd resize`
	 * send them, on a coroutine of the first queue beside its requests; one at a time. 0, or
	 * -errno, then with a sentence by ubd_device_fail().
	 */
	int (*command)(struct ubd_queue *q, void *self, const struct ubd_command *c);
	/*
	 * From api 4: a request that handle() got is over, whatever came of it: nothing of it is
	 * under way any more. Once for each, on a coroutine of its queue; a request that the driver
	 * finished (ubd_io_finish()) may have ended up to some 20 ms before. For targets that
	 * count the requests under way; io is as handle() left it.
	 */
	void (*finished)(struct ubd_io *io, void *self);
};

/*
 * A plugin is a shared object that exports this symbol. Targets are found as
 * $libdir/ubd/NAME.so or by path.
 */
#define UBD_PLUGIN_SYMBOL "ubd_target"
#define UBD_PLUGIN(t) \
	__attribute__((visibility("default"))) const struct ubd_target *const ubd_target = &(t)

/* ---- The device, from open() on ----------------------------------------------------------- */

/* What the disk is like. Bytes unless said otherwise; 0 means the default where one is named. */
struct ubd_limits {
	uint64_t size;		      /* required; a multiple of logical_block */
	uint32_t logical_block;	      /* default 512; 512 … 65536, a power of two */
	uint32_t physical_block;      /* default logical_block; never below it */
	uint32_t io_min;	      /* default physical_block */
	uint32_t io_opt;	      /* 0: none */
	uint32_t max_io;	      /* largest request; default the device's own */
	uint32_t chunk;		      /* whole blocks: no request crosses a multiple; 0: none */
	uint64_t max_discard;	      /* largest DISCARD; 0: not supported */
	uint64_t max_write_zeroes;    /* largest WRITE_ZEROES; 0: not supported */
	uint32_t discard_granularity; /* default logical_block, when one of those is set */
	uint32_t discard_alignment;
	uint32_t dma_alignment; /* of request memory in zero copy, a power of two; default 512 */
	bool read_only;
	bool rotational;
	bool volatile_cache; /* acknowledged writes need a FLUSH to be safe: FLUSH is sent */
	bool fua;	     /* handle() honours UBD_IO_FUA; needs volatile_cache */
	/*
	 * A host-managed zoned device, when zone_size is not 0: size is a multiple of it, chunk is
	 * it, and the UBD_ZONE_* and UBD_REPORT_ZONES requests come. No DISCARD of sequential
	 * zones.
	 */
	uint64_t zone_size;	   /* a power of two; 1 TiB at most */
	uint32_t max_open_zones;   /* zones; 0: no limit */
	uint32_t max_active_zones; /* zones; 0: no limit */
	uint32_t max_zone_append;  /* largest ZONE_APPEND; default max_io */
	unsigned max_queues;	   /* fewer than the user asked for; 0: as asked */
};

/* No limit of its own: the library reduces this to what the kernel takes. */
#define UBD_NO_LIMIT UINT64_MAX

/* The limits to fill in; owned by the device; for open() only. */
struct ubd_limits *ubd_device_limits(struct ubd_device *dev);

/*
 * Record why open() failed, one sentence with object and cause, and return err (-errno) so that
 * `return ubd_device_fail(dev, -errno, "cannot open %s: %s", …)` reads well. The first call
 * counts. Any thread.
 */
int ubd_device_fail(struct ubd_device *dev, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Whether a failure has been recorded. */
bool ubd_device_failed(const struct ubd_device *dev);
/* Say something to whoever started the device, one line. Any thread. */
void ubd_device_notice(struct ubd_device *dev, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* The user asked for a read-only device: open the backing so. */
bool ubd_device_read_only(const struct ubd_device *dev);
/*
 * The disk is in use and its last server is dead: open what that one left, make nothing anew. A
 * target that kept the bytes in its process must fail.
 */
bool ubd_device_takes_over(const struct ubd_device *dev);
/* Number of queues: as asked for during open(), then as there are. */
unsigned ubd_device_queues(const struct ubd_device *dev);
/*
 * Let the queues use fd without the per-I/O cost of looking it up (io_uring registered files).
 * For open(); the fd stays the caller's and must stay open until close(). Optional.
 */
int ubd_device_add_fd(struct ubd_device *dev, int fd);
/*
 * For status() and command(): one item, a number or a line of text. Names are lower-case words with
 * _ between them, the same from call to call; both strings are copied.
 */
void ubd_status_number(struct ubd_status *out, const char *name, uint64_t value);
void ubd_status_text(struct ubd_status *out, const char *name, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* New size in bytes, announced to the kernel. -EOPNOTSUPP where the driver cannot. [awaits] */
int ubd_device_resize(struct ubd_queue *q, uint64_t size);

/* ---- A request ----------------------------------------------------------------------------- */

/* Values are those of the ublk ABI (UBLK_IO_OP_*). */
enum ubd_op {
	UBD_READ = 0,
	UBD_WRITE = 1,
	UBD_FLUSH = 2,
	UBD_DISCARD = 3,
	UBD_WRITE_ZEROES = 5,
	UBD_ZONE_OPEN = 10,
	UBD_ZONE_CLOSE = 11,
	UBD_ZONE_FINISH = 12,
	UBD_ZONE_APPEND = 13,
	UBD_ZONE_RESET_ALL = 14,
	UBD_ZONE_RESET = 15,
	UBD_REPORT_ZONES = 18,
};

#define UBD_IO_FUA (1u << 0)	  /* durable before it is acknowledged */
#define UBD_IO_NO_UNMAP (1u << 1) /* WRITE_ZEROES: keep the space allocated */

/* One request. Owned by the library; valid until handle() returns, and in finished(). */
struct ubd_io {
	struct ubd_queue *queue;
	uint64_t offset;    /* bytes */
	uint32_t length;    /* bytes; REPORT_ZONES: zones, each a struct blk_zone of the data */
	uint8_t op;	    /* enum ubd_op */
	uint8_t flags;	    /* UBD_IO_* */
	uint16_t tag;	    /* unique among the queue's requests in flight */
	uint64_t append_at; /* ZONE_APPEND: set to the offset written, bytes */
	int error;	    /* of the ubd_io_finish() that failed, -errno; 0: none did */
	uint32_t note;	    /* the target's own, for the next call; 0 at first */
};

/* ---- Moving a request's data --------------------------------------------------------------- */

enum ubd_where {
	UBD_FILE,   /* file or block device fd at .pos */
	UBD_SOCKET, /* stream socket fd; one transfer per direction and socket at a time */
	UBD_ZEROES, /* READ: fill with zeroes; WRITE: drop */
};

/*
 * One piece of a request's data and where it goes (WRITE) or comes from (READ). How the bytes
 * travel, with or without a copy, is the library's business.
 */
struct ubd_transfer {
	enum ubd_where where;
	int fd;
	uint32_t at;  /* offset in the request's data, bytes */
	uint32_t len; /* bytes */
	uint64_t pos; /* UBD_FILE: offset in the file, bytes */
	/*
	 * UBD_FILE: the same bytes mapped shared in this process, or NULL. Lets the library copy
	 * once where no zero copy is to be had.
	 */
	void *mapped;
	uint32_t flags; /* UBD_XFER_* */
};

#define UBD_XFER_FUA (1u << 0)	/* WRITE to UBD_FILE: durable when it ends (RWF_DSYNC) */
#define UBD_XFER_MORE (1u << 1) /* WRITE to UBD_SOCKET: more follows at once (MSG_MORE) */

/*
 * Carry out n transfers of one request, all at once, and wait for the last. All or nothing:
 * returns the sum of their lengths or the first -errno; the end of a file inside a transfer is
 * -EIO. [awaits]
 */
int ubd_io_transfer(struct ubd_io *io, const struct ubd_transfer *t, unsigned n);

/*
 * The same as the request's whole answer: `return ubd_io_finish(io, t, n);`. The driver may then
 * move the data and complete the request in one command. The result must be handle()'s. The
 * array is copied. [awaits]
 */
int ubd_io_finish(struct ubd_io *io, const struct ubd_transfer *t, unsigned n);

/*
 * `return ubd_io_untouched(io);`: done, and a READ's data stays as it is, without the zeroing that
 * keeps old memory from readers. For benchmarks of the path alone.
 */
int ubd_io_untouched(struct ubd_io *io);

/*
 * The request's data as memory, io->length bytes, aligned to 4096: of a WRITE its bytes, of a READ
 * room to fill (what is not filled reads as zeroes). Valid until handle() returns. NULL: out of
 * memory or the kernel refused. Costs a copy.
 */
void *ubd_io_data(struct ubd_io *io);
/*
 * Copy len bytes of a WRITE at offset `at` to dst (get), or of src into a READ (put), at once:
 * other coroutines do not run meanwhile. Returns len or -errno.
 */
int ubd_io_get(struct ubd_io *io, uint32_t at, void *dst, uint32_t len);
int ubd_io_put(struct ubd_io *io, uint32_t at, const void *src, uint32_t len);

/* ---- The target's own I/O ------------------------------------------------------------------ */

#define UBD_RW_FUA (1u << 0) /* durable when it returns (RWF_DSYNC) */

/*
 * Whole transfers: short counts are continued. Returns bytes; fewer than len only at the end
 * of the file. [awaits]
 */
ssize_t ubd_pread(struct ubd_queue *q, int fd, void *buf, size_t len, uint64_t pos);
ssize_t ubd_pwrite(struct ubd_queue *q, int fd, const void *buf, size_t len, uint64_t pos,
		   unsigned flags);
/* data_only: fdatasync. [awaits] */
int ubd_fsync(struct ubd_queue *q, int fd, bool data_only);
/* mode: FALLOC_FL_*. Bytes. [awaits] */
int ubd_fallocate(struct ubd_queue *q, int fd, int mode, uint64_t pos, uint64_t len);
/* Whole buffers over a stream socket; recv returns fewer than len only at end of stream. [awaits]
 */
ssize_t ubd_send(struct ubd_queue *q, int fd, const void *buf, size_t len, int msg_flags);
ssize_t ubd_recv(struct ubd_queue *q, int fd, void *buf, size_t len);
/* One recv() of up to len bytes: what is there. [awaits] */
ssize_t ubd_recv_some(struct ubd_queue *q, int fd, void *buf, size_t len);
int ubd_connect(struct ubd_queue *q, int fd, const struct sockaddr *addr, socklen_t len);
/* Until one of the poll(2) events; returns those seen. [awaits] */
int ubd_poll(struct ubd_queue *q, int fd, short events);
/* Nanoseconds. [awaits] */
int ubd_sleep(struct ubd_queue *q, uint64_t ns);
/* Nanoseconds of a clock that never goes back. Anywhere. */
uint64_t ubd_now(void);
/*
 * Run fn(arg) on a helper thread, for libraries that block; returns its result. fn must not call
 * anything here. [awaits]
 */
int ubd_offload(struct ubd_queue *q, int (*fn)(void *arg), void *arg);
/* Let others run once. [awaits] */
void ubd_yield(struct ubd_queue *q);

/*
 * Start fn(q, arg) on a coroutine of its own, soon, on q's thread. The queue does not end before it
 * returns. On any coroutine of q, or in queue_open().
 */
int ubd_spawn(struct ubd_queue *q, void (*fn)(struct ubd_queue *q, void *arg), void *arg);
/* The queue's number, from 0; and whether it is ending: long waits should then be left. */
unsigned ubd_queue_index(const struct ubd_queue *q);
bool ubd_queue_stopping(const struct ubd_queue *q);
/* Per-queue pointer of the target's own: what was set, NULL at first. */
void *ubd_queue_data(const struct ubd_queue *q);
void ubd_queue_set_data(struct ubd_queue *q, void *data);

/* ---- Waiting for one another ------------------------------------------------------------- */

struct ubd_waiter;

/*
 * A mutex that suspends the coroutine instead of the thread; first come, first served; shared
 * by all queues of a device. Zeroed is ready; needs no destruction. Where no queue runs, in open()
 * and close(), nobody else can hold it and q may be NULL.
 */
struct ubd_mutex {
	uint32_t guard; /* the library's */
	uint32_t held;
	struct ubd_waiter *head, *tail;
};

void ubd_mutex_lock(struct ubd_queue *q, struct ubd_mutex *m); /* [awaits] */
void ubd_mutex_unlock(struct ubd_queue *q, struct ubd_mutex *m);

/*
 * Coroutines wait for something and are woken: a condition without a mutex of its own. `wait`
 * with m held gives m back while it waits and takes it again. Zeroed is ready.
 */
struct ubd_cond {
	uint32_t guard;
	struct ubd_waiter *head, *tail;
};

/* m may be NULL when all users are on one queue. [awaits] */
void ubd_cond_wait(struct ubd_queue *q, struct ubd_cond *c, struct ubd_mutex *m);
void ubd_cond_wake_one(struct ubd_queue *q, struct ubd_cond *c);
void ubd_cond_wake_all(struct ubd_queue *q, struct ubd_cond *c);

#ifdef __cplusplus
}
#endif

#endif
