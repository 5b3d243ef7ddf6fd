/* SPDX-License-Identifier: MIT */
/*
 * A device from the side of the program that serves it: make, configure, start, stop.
 *
 *     struct ubd_device *dev = ubd_device_new(&target, NULL);
 *     ubd_device_set_option(dev, "file", "disk.img");
 *     if (ubd_device_start(dev) == 0)
 *             ubd_device_wait(dev);
 *     else
 *             fprintf(stderr, "%s\n", ubd_device_error(dev));
 *     ubd_device_free(dev);
 *
 * Calls on one device come from one thread at a time, but ubd_device_stop() from any. No call
 * touches another device: a process may serve many.
 */
#ifndef UBD_DEVICE_H
#define UBD_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include <ubd/target.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How data travels between the kernel's request and the target. */
enum ubd_zero_copy {
	UBD_ZC_AUTO,	  /* the best that the driver offers for this target */
	UBD_ZC_OFF,	  /* the driver copies to and from the library's buffers */
	UBD_ZC_GET_DATA,  /* the same, but a WRITE's data is asked for (NEED_GET_DATA) */
	UBD_ZC_USER_COPY, /* the library copies, by pread and pwrite on the char device */
	UBD_ZC_REG_BUF,	  /* request pages registered with the ring, by command (from 6.15) */
	UBD_ZC_AUTO_BUF,  /* request pages registered with the ring by the driver (from 6.16) */
	UBD_ZC_MEMBER,	  /* ubd's driver does the I/O on the request's pages: one command for it */
	UBD_ZC_FUSED,	  /* ... and one for it and the commit together */
	UBD_ZC_LEASE,	  /* members under a leader, which has the request's buffer meanwhile */
	UBD_ZC_SPLICE,	  /* writes to files by splice(2); the rest as members */
	UBD_ZC_MAX,
};

/* What becomes of the device and its I/O when its server dies. */
enum ubd_recovery {
	UBD_RECOVER_NONE,    /* the disk is gone, I/O fails */
	UBD_RECOVER_QUEUE,   /* the disk stays, new I/O waits, I/O in flight fails */
	UBD_RECOVER_REISSUE, /* the disk stays, all I/O waits and is given to the next server */
	UBD_RECOVER_FAIL,    /* the disk stays, I/O fails until there is a server */
};

#define UBD_MAX_QUEUES 4096
#define UBD_MAX_DEPTH 4096

/* Zeroed is the default. */
struct ubd_device_config {
	bool has_id; /* .id is wanted; otherwise any free number */
	unsigned id;
	unsigned queues;     /* 1 … 4096, the driver reduces it to the CPUs; 0: 1 */
	unsigned depth;	     /* requests in flight per queue, 1 … 4096; 0: 128 */
	uint32_t max_io;     /* largest request, bytes; 0: 512 KiB */
	uint32_t block_size; /* logical block, bytes; 0: the target's */
	enum ubd_zero_copy zero_copy;
	enum ubd_recovery recovery;
	bool read_only;
	bool unprivileged;  /* owned by the calling user, as the driver allows */
	bool no_partitions; /* do not read the partition table */
	bool pin;	    /* queue threads on their queue's CPUs */
	bool batch;	    /* queue threads as SCHED_BATCH: who submits goes on first */
	bool populate; /* all buffers in memory from the start, for swap by a way that copies */
	bool embedded; /* no threads: the caller runs ubd_queue_process(), see <ubd/queue.h> */
	unsigned deadline_ms; /* longest wait of one control command; 0: 30,000 */
	/*
	 * Test aid: make the library's own commands fail. "KIND:NTH[+]:ERRNO", comma between, KIND
	 * one of sqe, fetch, commit, ctrl; + means from then on. NULL: none.
	 */
	const char *fault;
	/* Where notices and warnings go, one line each without a newline; NULL: standard error. */
	void (*notice)(void *arg, const char *line);
	void *notice_arg;
	/*
	 * Device .id is there and has lost its server: be the next one. Its queues and its depth are
	 * what they are; .zero_copy and .recovery must be those that it was added with. A failure
	 * leaves it as it is.
	 */
	bool take_over;
};

/*
 * A device served by target; nothing is opened yet. Both are borrowed: target until the device is
 * freed, config (NULL: defaults) only during the call. NULL: out of memory.
 */
struct ubd_device *ubd_device_new(const struct ubd_target *target,
				  const struct ubd_device_config *config);
/*
 * Set one of the target's options. name NULL: the next positional one. -ENOENT: no such option,
 * -EINVAL: a bad value; ubd_device_error() has the sentence.
 */
int ubd_device_set_option(struct ubd_device *dev, const char *name, const char *value);
/*
 * Open the target, add the device, start queues and disk. Returns when /dev/ublkbN answers, or
 * with -errno and nothing left behind; -ETIMEDOUT when a deadline passed.
 */
int ubd_device_start(struct ubd_device *dev);
/* Block until the device has been stopped, by anybody. Returns its queues' first error or 0. */
int ubd_device_wait(struct ubd_device *dev);
/*
 * Ask the driver to stop the disk, while the queues go on serving what is in flight. Any thread;
 * not a coroutine. Then ubd_device_wait() returns.
 */
int ubd_device_stop(struct ubd_device *dev);
/*
 * Close the target and release everything. A device that was started is deleted from the kernel,
 * unless keep: then it is left to recovery.
 */
void ubd_device_free(struct ubd_device *dev);
void ubd_device_leave(struct ubd_device *dev);

/* Why the last call failed: one sentence, "" when it did not. Owned by the device. */
const char *ubd_device_error(const struct ubd_device *dev);
/* After a successful start. Paths are owned by the device. */
int ubd_device_id(const struct ubd_device *dev);
const char *ubd_device_path(const struct ubd_device *dev); /* "/dev/ublkb3" */
unsigned ubd_device_depth(const struct ubd_device *dev);
uint64_t ubd_device_size(const struct ubd_device *dev);		       /* bytes */
enum ubd_zero_copy ubd_device_zero_copy(const struct ubd_device *dev); /* in force, never AUTO */
const char *ubd_zero_copy_name(enum ubd_zero_copy way);		       /* "auto-buf" */
/*
 * Whether a driver with these features has the way: ubd_ctrl_features() and ubd_ctrl_extensions(),
 * or'd. What a device was granted (ublksrv_ctrl_dev_info.flags) will do as well.
 */
bool ubd_zero_copy_offered(enum ubd_zero_copy way, uint64_t features);
int ubd_zero_copy_parse(const char *word); /* -EINVAL: not a way; any word, also "on" (auto) */
const char *ubd_recovery_name(enum ubd_recovery mode);
int ubd_recovery_parse(const char *word);

/* What the queues did so far, summed; counts from the start. Any thread; relaxed reads. */
struct ubd_stats {
	uint64_t requests[4]; /* read, write, flush, others */
	uint64_t bytes[2];    /* read, written */
	uint64_t errors;
	uint64_t bytes_copied;	     /* moved by a copy, the driver's included */
	uint64_t bytes_moved;	     /* moved without one */
	uint64_t sqes, cqes, enters; /* io_uring: entries, completions, system calls */
};
void ubd_device_stats(const struct ubd_device *dev, struct ubd_stats *stats);

/*
 * What the target says of itself: fn gets one item after another, text NULL for a number. Any
 * thread, from a successful start until the device ends. No items: the target says nothing.
 */
typedef void ubd_status_fn(void *arg, const char *name, const char *text, uint64_t number);
void ubd_device_status(const struct ubd_device *dev, ubd_status_fn *fn, void *arg);

/*
 * Have the target carry out a command; fn gets the items of its answer, on a queue's thread, and
 * one whose name was there before begins a new record. Any thread but the queues' own, one command
 * at a time, from a successful start until the device is freed. Blocks. 0, or -errno, then with
 * ubd_device_error(): -EOPNOTSUPP: not a command of this target, -ENODEV: the device is ending.
 */
int ubd_device_command(struct ubd_device *dev, const char *const *words, unsigned count,
		       ubd_status_fn *fn, void *arg);

/* ---- Targets by name ---------------------------------------------------------------------- */

/* The targets built in, in name order; ends with NULL. */
const struct ubd_target *const *ubd_targets(void);
/*
 * Find a target: built in, then NAME.so in the plugin directory ($UBD_PLUGIN_DIR or the one built
 * in), or a path with a slash. NULL with *why (one sentence, static or until the next call on
 * this thread).
 */
const struct ubd_target *ubd_target_find(const char *name, const char **why);

#ifdef __cplusplus
}
#endif

#endif
