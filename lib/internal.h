/* SPDX-License-Identifier: MIT */
/*
 * The library's inside: devices, queues, tags and what flows between them.
 *
 *   device.c   the object          queue.c     thread and event loop
 *   life.c     starting, ending    member.c    transfers done by the driver
 *   params.c   limits              request.c   a request from fetch to commit
 *   ways.c     ways of moving it   transfer.c  moving a request's data
 *   option.c   target options      splice.c    moving it through a pipe
 *   ctrl.c     control commands    await.c     the target's own I/O
 *   local.c    requests from here  command.c   commands from elsewhere
 *   ring.c     the queue's io_uring
 *
 * Everything in struct queue belongs to the queue's thread unless said otherwise.
 */
#ifndef UBD_INTERNAL_H
#define UBD_INTERNAL_H

#include <ubd/ubd.h>

#include <limits.h>
#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "../include/uapi/ubd.h"
#include "coro.h"
#include "fault.h"
#include "util.h"

/* ---- Completions --------------------------------------------------------------------------- */

/*
 * user_data of every SQE: a pointer to a sink, or a tag number; the low bits say which. SINK_FAULT
 * is or-ed in when the SQE was made to fail on purpose.
 */
#define UD_SINK 0u
#define UD_TAG 1u
#define UD_IGNORE 2u
#define UD_KIND 3u
#define UD_FAULT 4u
#define UD_SHIFT 3

struct sink {
	void (*fn)(struct ubd_queue *q, struct sink *sink, int res);
};

/* ---- Requests ------------------------------------------------------------------------------ */

/* Who has the tag. */
enum tag_state {
	TAG_IDLE,   /* nobody: not fetched yet, aborted, or free in local use */
	TAG_FETCH,  /* the driver: a fetching command is in flight */
	TAG_DATA,   /* the driver: NEED_GET_DATA is in flight */
	TAG_SERVED, /* the target */
};

/* Of a READ: which bytes of the request have been filled. */
enum fill_state {
	FILL_NONE,
	FILL_PART, /* zeroed first, then filled here and there */
	FILL_FULL,
};

#define FUSED_MAX 4 /* transfers that ubd_io_finish() fuses; more go as members */
/* handle()'s result when the transfers go with the commit: no errno, no count. */
#define FUSED_RESULT INT_MIN

struct tag {
	struct ubd_io io;    /* first: handle() gets this */
	void *buf;	     /* the data in our memory, where the way has it there */
	void *own_buf;	     /* allocated for this tag; buf may be a caller's in local use */
	uint32_t dirty;	     /* bytes of own_buf from its start that may not be zero */
	uint32_t touched;    /* bytes of own_buf from its start that have memory of their own */
	uint8_t state;	     /* enum tag_state */
	uint8_t fill;	     /* enum fill_state */
	bool have_data;	     /* buf holds the WRITE's data */
	bool push_data;	     /* buf must be pushed to the driver before a READ ends */
	bool registered;     /* the data is in the ring's buffer table by our command */
	uint32_t generation; /* members: of the request now in this tag */
	uint8_t fused;	     /* members waiting for the commit, or gone with it */
	bool owed;	     /* the target has not heard of a fused request's end */
	bool telling;	     /* it is hearing of it */
	bool came;	     /* meanwhile, or until it can, the command has ended ... */
	int cqe;	     /* ... with this */
	bool again;	     /* that failed, and the request goes to the target once more */
	int result;
	struct local_request *local;
	struct ubd_member members[FUSED_MAX];
};

/* One way of moving data: what it needs of the driver, and its operations. */
struct way {
	const char *name;
	uint64_t features; /* UBLK_F_* that ADD_DEV must grant */
	bool buffers;	   /* the driver copies to and from own_buf */
	bool user_copy;	   /* read and write on the char device reach the data */
	bool fixed;   /* the data is registered buffer `tag` of the ring while a request lives */
	bool reg_cmd; /* ... which takes commands of ours */
	bool members; /* the driver does the I/O on the request's pages */
	bool fused;   /* ... and the commit with it */
	bool lease;   /* ... under a leader that holds the request */
	bool splice;  /* ... but for writes to files, which go through a pipe */
};

extern const struct way ways[UBD_ZC_MAX];

/* Where a target's items go: status(), and the answer of a command. */
struct ubd_status {
	ubd_status_fn *fn;
	void *arg;
};

/* ---- Queues -------------------------------------------------------------------------------- */

#define CACHE_LINE 64

struct ubd_waiter {
	struct ubd_queue *q;
	struct coro *co;
	struct ubd_waiter *next;
};

struct ubd_queue {
	struct io_uring ring;
	struct ubd_device *dev;
	const struct ubd_target *target;
	void (*finished)(struct ubd_io *io, void *self); /* the target's, or NULL */
	void *self;
	const struct way *way;
	struct tag *tags;
	const struct ublksrv_io_desc *desc; /* the driver's, read-only mapping */
	int char_fd;			    /* as SQEs name it: fixed file 0 */
	unsigned index, depth;
	unsigned serving;    /* tags in TAG_SERVED */
	unsigned armed;	     /* tags in TAG_FETCH or TAG_DATA */
	unsigned owed, came; /* tags that are */
	bool looking;	     /* for the ends of fused requests */
	/* REGISTER_IO_BUF commands that failed whose UNREGISTER has not. */
	unsigned not_registered;
	bool stopping; /* nothing new is fetched */
	bool forced;   /* ends without waiting for what the driver has */
	bool closing;  /* queue_close() has been started */
	bool ended;
	int error; /* first that broke the queue */

	struct coro_pool coros;
	struct coro *ready_head, *ready_tail;
	struct fault fault;

	struct sink wake_sink; /* reads wake_fd */
	uint64_t wake_count;
	int wake_fd;
	int zero_fd;		   /* /dev/zero, for filling registered buffers */
	struct splice_pipe *pipes; /* not in use */

	void *data;	   /* the target's own */
	void *own_bufs;	   /* one mapping for all tags' buffers */
	size_t desc_size;  /* bytes mapped at desc */
	const void *zeros; /* max_io bytes of zeroes, shared by all tags */

	struct ubd_stats stats; /* written by the queue's thread only */

	/* Written by others, under remote_lock, followed by a write to wake_fd. */
	_Alignas(CACHE_LINE) pthread_mutex_t remote_lock;
	struct ubd_waiter *remote;
	struct local_request *local_head, *local_tail;
	struct command *command;
	bool stop_wanted;

	pthread_t thread;
	bool has_thread;
	bool open; /* being set up, or not yet torn down */
	bool up;   /* has been set up */
	bool has_ring;
};

/* ---- Devices ------------------------------------------------------------------------------- */

#define MAX_FDS 64
#define ERROR_SIZE 512

struct ubd_device {
	const struct ubd_target *target;
	void *self; /* the target's state */
	bool target_open;
	struct ubd_device_config cfg;
	char *fault; /* cfg.fault, own copy */
	struct ubd_limits limits;
	struct option_values *values;
	struct ublksrv_ctrl_dev_info info;
	enum ubd_zero_copy zero_copy;
	bool added;   /* the kernel has the device */
	bool started; /* and its disk */
	bool local;   /* never to have one */
	int char_fd;
	int fds[MAX_FDS]; /* [0] is the char device; the rest the target's */
	unsigned nr_fds;
	char path[32];
	struct ubd_ctrl *ctrl;

	struct ubd_queue *queues;
	unsigned nr_queues;
	struct offload *offload;
	struct pollfd *pollfds; /* embedded: the control ring and every queue */

	/* Queue threads report here. */
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned queues_up;   /* all fetches submitted */
	unsigned queues_down; /* set-up failed or ended */
	int queue_error;
	char error[ERROR_SIZE];
};

/* life.c */
/*
 * A queue has ended, q->error or not: on its own thread, or the embedder's. One that broke takes
 * the others along.
 */
void life_queue_ended(struct ubd_queue *q);
/* Undo whatever has been done. keep: leave the kernel's device to recovery. */
void life_end(struct ubd_device *dev, bool keep);

/* ways.c */
/* Resolve AUTO and check a forced way against what the driver offers. -EOPNOTSUPP, with sentence.
 */
int ways_choose(struct ubd_device *dev, uint64_t features);
/* UBLK_F_* to ask for. */
uint64_t ways_flags(const struct ubd_device *dev, uint64_t features);

/* params.c */
/* Check the user's numbers, and then them and the target's limits together; fill in defaults.
 * -EINVAL, with sentence. */
int params_check_config(struct ubd_device *dev);
int params_check(struct ubd_device *dev);
void params_fill(const struct ubd_device *dev, struct ublk_params *p);

/* option.c */
struct option_values *option_values_new(const struct ubd_target *t);
void option_values_free(struct option_values *v);
int option_set(struct ubd_device *dev, const char *name, const char *value);
/* Defaults for what was not given; -EINVAL when a required one is missing. */
int option_finish(struct ubd_device *dev);

/* queue.c */
int queue_init(struct ubd_queue *q, struct ubd_device *dev, unsigned index);
/* For the calling thread and those it makes: memory reclaim must not wait for our own I/O. */
void queue_io_flusher(void);
/* On the queue's thread; freed by queue_close(). */
int ring_open(struct ubd_queue *q);
/* Ring, buffers, queue_open(), first fetches: on the queue's thread. */
int queue_open(struct ubd_queue *q);
void queue_close(struct ubd_queue *q);
void queue_destroy(struct ubd_queue *q);
/* One round. wait: block for at least one completion. As ubd_queue_process(). */
int queue_round(struct ubd_queue *q, bool wait);
/* Submit what the last round prepared, for callers that will not come back by themselves. */
void queue_flush(struct ubd_queue *q);
void *queue_thread(void *arg);
/* It has ended: nothing from other threads is taken any more. */
void queue_refuse(struct ubd_queue *q);
/* An SQE, zeroed, in a batch to be submitted later; never NULL on a queue that is not broken. */
struct io_uring_sqe *queue_sqe(struct ubd_queue *q);
/* Finish it: who gets the completion. May replace it by one that fails, for tests. */
void queue_sqe_sink(struct ubd_queue *q, struct io_uring_sqe *sqe, struct sink *sink);
void queue_sqe_tag(struct ubd_queue *q, struct io_uring_sqe *sqe, uint16_t tag, enum fault_kind k);
/* Point the SQE at fd, through the registered table if it is there. */
void queue_sqe_fd(struct ubd_queue *q, struct io_uring_sqe *sqe, int fd);
void queue_break(struct ubd_queue *q, int err);
/* Let a suspended coroutine go on, after the present batch; from the queue's own thread. */
void queue_ready(struct ubd_queue *q, struct coro *co);
/* The same from anywhere. `from` is the caller's queue or NULL. */
void queue_wake(struct ubd_queue *from, struct ubd_waiter *w);
void queue_kick(struct ubd_queue *q);
/* End soon: serve what is in flight, leave fetches to be cancelled. Any thread. */
void queue_stop(struct ubd_queue *q);

/* request.c */
int request_fetch_all(struct ubd_queue *q);
void request_complete(struct ubd_queue *q, uint16_t tag, int res);
void request_start(struct ubd_queue *q, struct tag *t);
/* May a request end without our doing? Not if the target would not hear of it. On a coroutine. */
bool request_may_fuse(struct ubd_queue *q);

/* transfer.c */
/* What must happen to the data of a READ that is about to end with res > 0 bytes; 0 or -errno. */
int transfer_end_read(struct tag *t, uint32_t res);
/* Take the request's data out of the ring's buffer table, if we put it there. */
void transfer_unregister(struct tag *t);
/* Where byte `at` of the request's data is on the char device. */
uint64_t transfer_char_offset(const struct tag *t, uint32_t at);

/* await.c */
/* Submit sqe with the next batch and suspend until it completes; its result. */
int await_sqe(struct ubd_queue *q, struct io_uring_sqe *sqe);

/* member.c */
/* A command of ubd's driver for the request, to be finished. addr and nr as it wants them. */
struct io_uring_sqe *member_command(struct tag *t, uint32_t op, const void *addr, unsigned nr);
/* Run n transfers of a request in the driver; 0 or -errno. */
int member_run(struct tag *t, const struct ubd_transfer *x, unsigned n);
/* Can these go with the commit? Then they are in t->members. */
bool member_fuse(struct tag *t, const struct ubd_transfer *x, unsigned n);

/* splice.c */
/* Splice n transfers of a WRITE to where they go; 0 or -errno. */
int splice_run(struct tag *t, const struct ubd_transfer *x, unsigned n);
/* Pipes for all that will be spliced; 0 or -errno. */
int splice_open(struct ubd_queue *q);
void splice_close(struct ubd_queue *q);

/* local.c */
void local_drain(struct ubd_queue *q);
void local_done(struct ubd_queue *q, struct tag *t);

/* command.c */
/* Start the command that another thread has left, or refuse it when the queue is ending. */
void command_drain(struct ubd_queue *q);

/* offload.c */
/* ready: that many threads are there at once; NULL: they cannot be. */
struct offload *offload_new(unsigned ready);
void offload_free(struct offload *o);

/* device.c: ubd_device_fail() for the library's own use. */
int device_fail(struct ubd_device *dev, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* An SQE, to be finished: a command on the char device with its payload of len bytes. */
static inline struct io_uring_sqe *queue_command(struct ubd_queue *q, uint32_t op,
						 const void *payload, size_t len)
{
	struct io_uring_sqe *sqe = queue_sqe(q);

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->fd = 0;
	sqe->cmd_op = op;
	memcpy(sqe->cmd, payload, len);
	return sqe;
}

static inline struct coro *queue_current(struct ubd_queue *q)
{
	return q->coros.current;
}

/* Before a system call in place of an SQE: 0, or the -errno that it has to fail with. */
static inline int queue_fault(struct ubd_queue *q)
{
	return unlikely(q->fault.armed) ? fault_hit(&q->fault, FAULT_SQE) : 0;
}

/* Bytes of data that a request has. */
static inline uint64_t data_bytes(const struct ubd_io *io)
{
	switch (io->op) {
	case UBD_READ:
	case UBD_WRITE:
	case UBD_ZONE_APPEND:
		return io->length;
	case UBD_REPORT_ZONES:
		return io->length * 64ull; /* struct blk_zone */
	default:
		return 0;
	}
}

/* Which way they go. */
static inline bool carries_read_data(const struct ubd_io *io)
{
	return io->op == UBD_READ || io->op == UBD_REPORT_ZONES;
}

static inline bool carries_write_data(const struct ubd_io *io)
{
	return io->op == UBD_WRITE || io->op == UBD_ZONE_APPEND;
}

static inline struct tag *tag_of(struct ubd_io *io)
{
	return container_of(io, struct tag, io);
}

/* Suspend the running coroutine until somebody makes it ready. */
static inline void queue_suspend(struct ubd_queue *q)
{
	coro_suspend(&q->coros);
}

#endif
