/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the driver's files share: the device, its queues, their slots, and the locking rules.
 *
 * Locks, outermost first:
 *
 *   ub->mutex        the device's state, disk and parameters. Held over del_gendisk(), which
 *                    waits for I/O: nothing that the server needs to make progress takes it.
 *   (uring_lock)     io_uring's, held by it around I/O commands and their task work, and taken
 *                    by it when we end a command out of turn
 *   ub->gate_mutex   who may pass: gate, closing, readiness, a slot's first fetch. Held over
 *                    synchronize_rcu() at most, never over a wait for the server.
 *   queue->lock      a slot's ARMED -> EMPTY, so that a command is cancelled once
 *   ub->disk_lock    the disk and server pointers, for those who may not take ub->mutex
 *
 * The I/O path takes none of them. It runs in RCU read sections: after a gate is closed and
 * synchronize_rcu() has returned, every request that passed has claimed its slot.
 */
#ifndef UBLK_DRIVER_H
#define UBLK_DRIVER_H

#include <linux/blk-mq.h>
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/uio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include "../include/uapi/ublk.h"
#include "compat/compat.h"
#include "zc/zc.h"

/* DKMS wants one: it replaces a module by a newer one only, and the kernel's own has none. */
#define UBLK_DRIVER_VERSION "0.1"

#define UBLK_MAX_DEVICES (1U << MINORBITS)

/* A disk's size in bytes is a loff_t. */
#define UBLK_MAX_SECTORS ((u64)LLONG_MAX >> SECTOR_SHIFT)

/**
 * enum ublk_slot_state - who holds a tag's command and request
 * @UBLK_SLOT_EMPTY: no command: before the fetch, or after an abort
 * @UBLK_SLOT_ARMED: the driver holds a command; it may be cancelled
 * @UBLK_SLOT_CLAIMED: a request claimed the command; its task work, on the way, owns the slot
 * @UBLK_SLOT_SERVED: the server holds the request; the server's task is the only one to touch
 *	the slot, and after that task's end the release
 * @UBLK_SLOT_NEED_DATA: as SERVED, for a write that was announced without its data
 * @UBLK_SLOT_FUSED: a command with members has taken the request over, to end it after them
 */
enum ublk_slot_state {
	UBLK_SLOT_EMPTY,
	UBLK_SLOT_ARMED,
	UBLK_SLOT_CLAIMED,
	UBLK_SLOT_SERVED,
	UBLK_SLOT_NEED_DATA,
	UBLK_SLOT_FUSED,
};

/* Bit in ublk_slot.lock: the filled prefix is being moved, see usercopy.c. */
#define UBLK_SLOT_FILL_LOCK 0

/**
 * struct ublk_slot - one tag
 * @cmd: the server's command, while ARMED or CLAIMED
 * @ring: while SERVED, with UBLK_F_AUTO_BUF_REG: whose table has its buffer, or NULL
 * @req: the request, while CLAIMED, SERVED or NEED_DATA, and until @ref is zero
 * @task: the only task whose commands count; set by the fetch
 * @addr: the server's buffer; with UBLK_F_AUTO_BUF_REG its struct ublk_auto_buf_reg
 * @lock: bit lock, UBLK_SLOT_FILL_LOCK
 * @ref: holds on the request besides the server's own; used by devices where data moves by
 *	other ways than a copy at dispatch and commit
 * @res: what the server committed
 * @filled: bytes at the request's start that hold what the server wrote, or zeroes
 * @state: enum ublk_slot_state
 * @shmem: the request's pages are the server's as well, nothing is copied
 * @shmem_held: and their buffer counts the request
 * @generation: of the request, with any of UBD_F_ALL
 *
 * One cache line each: neighbours are served by different CPUs.
 */
struct ublk_slot {
	union {
		struct io_uring_cmd *cmd;
		void *ring;
	};
	struct request *req;
	struct task_struct *task;
	u64 addr;
	unsigned long lock;
	refcount_t ref;
	s32 res;
	u32 filled;
	u8 state;
	bool shmem;
	bool shmem_held;
	u32 generation;
} ____cacheline_aligned_in_smp;

/**
 * enum ublk_gate - what happens to a request that arrives
 * @UBLK_GATE_PASS: there is a server
 * @UBLK_GATE_HOLD: there will be one: put the request back
 * @UBLK_GATE_FAIL: there is none and none to wait for
 */
enum ublk_gate {
	UBLK_GATE_PASS,
	UBLK_GATE_HOLD,
	UBLK_GATE_FAIL,
};

/**
 * struct ublk_queue - one hardware queue
 * @ub: the device
 * @desc: one descriptor per tag, mapped by the server
 * @features: copy of the device's UBLK_F_*
 * @batch: waiting tags and who fetches them, with UBLK_F_BATCH_IO
 * @q_id: the queue's number
 * @depth: number of tags
 * @gate: enum ublk_gate, written under gate_mutex
 * @closing: the server goes away or is sent away: commits arm no command; under gate_mutex
 * @nr_ready: slots that have fetched; under gate_mutex
 * @idle: the same commands waited at the watch's last two looks
 * @sum_before: what waited at its last look
 * @lock: see the locking rules
 * @zc: with any of UBD_F_ALL
 * @slots: one per tag
 */
struct ublk_queue {
	struct ublk_device *ub;
	struct ublksrv_io_desc *desc;
	u64 features;
	struct ublk_batch *batch;
	u16 q_id;
	u16 depth;
	u8 gate;
	bool closing;
	u16 nr_ready;
#ifndef UBLK_HAVE_CMD_CANCEL
	bool idle;
	unsigned long sum_before;
#endif
	spinlock_t lock;
	struct ublk_zc *zc;
	struct ublk_slot slots[];
};

/**
 * enum ublk_dev_state - life of a device, drawn in docs/driver.md
 * @UBLK_DEV_NEW: added, never started
 * @UBLK_DEV_LIVE: served
 * @UBLK_DEV_QUIESCED: no server; I/O waits
 * @UBLK_DEV_FAILING: no server; I/O fails
 * @UBLK_DEV_STOPPED: had a disk, has none any more
 * @UBLK_DEV_NR_STATES: how many there are
 */
enum ublk_dev_state {
	UBLK_DEV_NEW,
	UBLK_DEV_LIVE,
	UBLK_DEV_QUIESCED,
	UBLK_DEV_FAILING,
	UBLK_DEV_STOPPED,
	UBLK_DEV_NR_STATES,
};

/* Bits in ublk_device.flags. */
enum {
	UBLK_DEV_OPEN,	       /* a server has the char device */
	UBLK_DEV_DELETED,      /* DEL_DEV took it */
	UBLK_DEV_REMOVED,      /* and its char device has gone */
	UBLK_DEV_UNTRUSTED,    /* a task without CAP_SYS_ADMIN fetched */
	UBLK_DEV_REFUSE_OPENS, /* TRY_STOP_DEV found the disk unused */
	UBLK_DEV_CHARGED,      /* counts as an unprivileged device */
	UBLK_DEV_TAG_SET,      /* tag_set is to be freed */
	UBLK_DEV_SENT_AWAY,    /* the server has been told to go, until it has */
	UBLK_DEV_DYING,	       /* it goes by itself, nothing waits for it; under gate_mutex */
};

/**
 * struct ublk_device - one device, from ADD_DEV until the last reference is gone
 * @dev: the char device; counts the references
 * @cdev: the char device
 * @info: as negotiated; what changes of it changes under @mutex
 * @params: as last set; under @mutex
 * @serial: tells it from the next device of its number
 * @state: enum ublk_dev_state, by ublk_state_set() only
 * @flags: UBLK_DEV_OPEN and so on, atomic bits
 * @stopping: STOP_DEV has begun, there will be no next server
 * @closing: copy of the queues'; under @gate_mutex
 * @gate: the queues', enum ublk_gate; under @gate_mutex
 * @nr_ready: queues whose slots have all fetched; under @gate_mutex
 * @closes: times that the char device was released; under @gate_mutex
 * @mutex: see the locking rules
 * @gate_mutex: see the locking rules
 * @disk_lock: see the locking rules
 * @disk: the block device, or NULL
 * @server: thread group that opened the char device; under @disk_lock
 * @mm: address space that mapped the descriptors, to compare only
 * @wait: for readiness, for the end of the release
 * @release_work: the server has gone (recovery.c)
 * @close_work: ends what a server holds that is sent away, or is dying by one of its tasks
 * @scan_work: partition scan after START_DEV
 * @end_work: what STOP_DEV, TRY_STOP_DEV and DEL_DEV wait for
 * @ends_begun: times that it has begun
 * @ends_done: which of them ended last
 * @watch_work: looks whether the server is still there (watch.c)
 * @exec_before: a task was in exec at the watch's last look
 * @zc_wq: for members that sleep, with any of UBD_F_ALL
 * @shmem: registered buffers, with UBLK_F_SHMEM_ZC
 * @tag_set: of the disk
 * @queues: info.nr_hw_queues of them
 */
struct ublk_device {
	struct device dev;
	struct cdev cdev;
	struct ublksrv_ctrl_dev_info info;
	struct ublk_params params;
	u64 serial;

	enum ublk_dev_state state;
	unsigned long flags;
	bool stopping;
	bool closing;
	u8 gate;
	u32 nr_ready;
	u32 closes;

	struct mutex mutex;
	struct mutex gate_mutex;
	spinlock_t disk_lock;
	struct gendisk *disk;
	struct pid *server;
	struct mm_struct *mm;
	wait_queue_head_t wait;

	struct work_struct release_work;
	struct delayed_work close_work;
	struct work_struct scan_work;
	struct work_struct end_work;
	atomic_t ends_begun;
	int ends_done;
	struct delayed_work watch_work;
	bool exec_before;
	struct workqueue_struct *zc_wq;
	struct ublk_shmem *shmem;
	struct blk_mq_tag_set tag_set;
	struct ublk_queue *queues[];
};

/* In a command's private area from its fetch on. */
struct ublk_cmd_pdu {
	struct ublk_queue *q;
	struct request *list; /* to dispatch with this command's task work, by ->rq_next */
	u16 tag;
};

static inline bool ublk_has(const struct ublk_device *ub, u64 feature)
{
	return ub->info.flags & feature;
}

/* Data is copied between the request and the server's buffer at dispatch and commit. */
#define UBLK_F_NO_PLAIN_COPY \
	(UBLK_F_USER_COPY | UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_AUTO_BUF_REG | UBD_F_ALL)

/* Somebody else than the server's task may hold a request. */
#define UBLK_F_HELD UBLK_F_NO_PLAIN_COPY

static inline bool ublk_queue_copies(const struct ublk_queue *q)
{
	return !(q->features & UBLK_F_NO_PLAIN_COPY);
}

/* May the device outlive its server? */
static inline bool ublk_recovers(const struct ublk_device *ub)
{
	return ublk_has(ub, UBLK_F_USER_RECOVERY) && !READ_ONCE(ub->stopping);
}

static inline struct ublk_device *ublk_get(struct ublk_device *ub)
{
	get_device(&ub->dev);
	return ub;
}

static inline void ublk_put(struct ublk_device *ub)
{
	put_device(&ub->dev);
}

/* main.c */
extern struct workqueue_struct *ublk_wq, *ublk_release_wq, *ublk_end_wq;

/* control.c */
extern const struct file_operations ublk_control_fops;

/* device.c */
struct ublk_device *ublk_device_find(u32 id);
int ublk_device_add(const struct ublksrv_ctrl_cmd *h);
int ublk_device_del(struct ublk_device *ub, bool wait);
void ublk_device_remove(struct ublk_device *ub);
int ublk_devices_init(void);
void ublk_devices_exit(void);
u64 ublk_features(void);

/* state.c */
void ublk_state_set(struct ublk_device *ub, enum ublk_dev_state to);

/* start.c */
int ublk_start(struct ublk_device *ub, pid_t pid);
int ublk_end(struct ublk_device *ub);
void ublk_end_work(struct work_struct *work);
void ublk_stop_locked(struct ublk_device *ub);
int ublk_try_stop(struct ublk_device *ub);
int ublk_wait_ready_lock(struct ublk_device *ub, pid_t pid);
int ublk_update_size(struct ublk_device *ub, u64 sectors);
struct gendisk *ublk_disk_get(struct ublk_device *ub);
void ublk_disk_put(struct gendisk *disk);
void ublk_scan_work(struct work_struct *work);

/* params.c */
int ublk_params_set(struct ublk_device *ub, const struct ublksrv_ctrl_cmd *h);
int ublk_params_get(struct ublk_device *ub, const struct ublksrv_ctrl_cmd *h);
void ublk_params_limits(const struct ublk_device *ub, struct ublk_limits *lim);

/* queue.c */
int ublk_queues_init(struct ublk_device *ub);
void ublk_queues_exit(struct ublk_device *ub);
size_t ublk_desc_bytes(unsigned int depth);
extern const struct blk_mq_ops ublk_mq_ops;

/* dispatch.c */
struct ublk_slot *ublk_claim(struct ublk_queue *q, struct request *rq);
void ublk_deliver_later(struct request *list);
void ublk_reject(struct ublk_queue *q, struct request *rq);
void ublk_reissue(struct ublk_queue *q, struct request *rq);
bool ublk_deliver_batched(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd,
			  unsigned int issue_flags);
bool ublk_slot_arm(struct ublk_queue *q, struct ublk_slot *slot, struct io_uring_cmd *cmd);

/* complete.c */
void ublk_end_request(struct request *rq, blk_status_t status);
void ublk_complete(struct ublk_queue *q, struct ublk_slot *slot, struct request *rq, u64 addr,
		   struct io_comp_batch *iob);
void ublk_complete_batch(struct io_comp_batch *iob);

/* In ublk_slot.res: the server died, the next one gets the request. No server can commit it. */
#define UBLK_RES_REISSUE S32_MIN

/* copy.c */
size_t ublk_copy_data(struct request *rq, size_t off, struct iov_iter *iter);
bool ublk_copy_to_server(struct request *rq, u64 addr);
bool ublk_copy_from_server(struct request *rq, u64 addr, u32 len);
void ublk_zero_data(struct request *rq, u32 from, u32 to);

/* usercopy.c */
struct ublk_place {
	u16 q_id;
	u16 tag;
	u32 off;
	bool integrity;
};

int ublk_place_decode(struct ublk_device *ub, loff_t pos, struct ublk_place *p);
bool ublk_slot_hold(struct ublk_slot *slot);
void ublk_slot_release(struct ublk_queue *q, struct ublk_slot *slot);
int ublk_fill_begin(struct ublk_slot *slot, struct request *rq, u32 from, u32 end, u32 *before);
ssize_t ublk_ch_read_iter(struct kiocb *iocb, struct iov_iter *to);
ssize_t ublk_ch_write_iter(struct kiocb *iocb, struct iov_iter *from);

/* io.c */
int ublk_ch_uring_cmd(struct io_uring_cmd *cmd, unsigned int issue_flags);

/* chdev.c */
extern const struct file_operations ublk_ch_fops;

/* server.c */
void ublk_gate_set(struct ublk_device *ub, enum ublk_gate gate);
enum ublk_gate ublk_gate_closed(const struct ublk_device *ub);
int ublk_gate_open(struct ublk_device *ub);
void ublk_close(struct ublk_device *ub);
void ublk_server_reset(struct ublk_device *ub);
void ublk_close_later(struct ublk_device *ub);
void ublk_close_work(struct work_struct *work);
void ublk_cancel_slot(struct ublk_queue *q, u16 tag, struct io_uring_cmd *cmd,
		      unsigned int issue_flags);
void ublk_send_away(struct ublk_device *ub);
int ublk_slot_fetch(struct ublk_queue *q, u16 tag, u64 addr, struct io_uring_cmd *cmd,
		    unsigned int issue_flags);
int ublk_slot_prepare(struct ublk_queue *q, u16 tag, u64 addr);
void ublk_slot_ready(struct ublk_queue *q, u16 tag);
void ublk_slot_unready(struct ublk_queue *q, u16 tag);
bool ublk_is_ready(const struct ublk_device *ub);
void ublk_server_set(struct ublk_device *ub, struct pid *pid);
pid_t ublk_server_vnr(struct ublk_device *ub);
void ublk_server_kill(struct ublk_device *ub);

/* recovery.c */
void ublk_release_work(struct work_struct *work);
bool ublk_reissues(const struct ublk_device *ub, struct request *rq);
void ublk_abandon(struct ublk_queue *q, struct ublk_slot *slot);
bool ublk_abandon_dead(struct ublk_device *ub);
int ublk_recovery_start(struct ublk_device *ub);
int ublk_recovery_end(struct ublk_device *ub, pid_t pid);
int ublk_quiesce(struct ublk_device *ub, u64 timeout_ms);

/* batch.c */
#ifdef UBLK_HAVE_MSHOT_CMD
#define UBLK_F_BATCH_IO_HERE UBLK_F_BATCH_IO
int ublk_batch_init(struct ublk_queue *q);
void ublk_batch_queue(struct ublk_queue *q, struct request *list);
void ublk_batch_cancel(struct ublk_queue *q, struct io_uring_cmd *cmd, unsigned int issue_flags);
void ublk_batch_abandon(struct ublk_queue *q);
void ublk_batch_command(struct ublk_device *ub, struct io_uring_cmd *cmd, unsigned int issue_flags);
#else
#define UBLK_F_BATCH_IO_HERE 0
static inline int ublk_batch_init(struct ublk_queue *q)
{
	return -EOPNOTSUPP;
}

static inline void ublk_batch_queue(struct ublk_queue *q, struct request *list)
{
}

static inline void ublk_batch_cancel(struct ublk_queue *q, struct io_uring_cmd *cmd,
				     unsigned int issue_flags)
{
}

static inline void ublk_batch_abandon(struct ublk_queue *q)
{
}

static inline void ublk_batch_command(struct ublk_device *ub, struct io_uring_cmd *cmd,
				      unsigned int issue_flags)
{
}
#endif

/* regbuf.c */
#ifdef UBLK_HAVE_BUFFER_BVEC
#define UBLK_F_REGBUF_HERE \
	(UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_AUTO_BUF_REG | UBLK_F_BUF_REG_OFF_DAEMON)
int ublk_buffer_put(struct ublk_slot *slot, u32 index, void (*released)(void *),
		    struct io_uring_cmd *cmd, unsigned int issue_flags);
int ublk_buffer_take(u32 index, struct io_uring_cmd *cmd, unsigned int issue_flags);
int ublk_buffer_register(struct ublk_queue *q, u16 tag, u64 index, struct io_uring_cmd *cmd,
			 unsigned int issue_flags);
int ublk_buffer_unregister(const struct ublk_device *ub, u64 index, struct io_uring_cmd *cmd,
			   unsigned int issue_flags);
bool ublk_auto_is_good(u64 addr);
bool ublk_auto_register(struct ublk_queue *q, struct ublk_slot *slot, struct io_uring_cmd *cmd,
			unsigned int issue_flags);
void ublk_auto_unregister(struct ublk_slot *slot, struct io_uring_cmd *cmd,
			  unsigned int issue_flags);
#else
#define UBLK_F_REGBUF_HERE 0
static inline int ublk_buffer_put(struct ublk_slot *slot, u32 index, void (*released)(void *),
				  struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	return -EOPNOTSUPP;
}

static inline int ublk_buffer_take(u32 index, struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	return -EOPNOTSUPP;
}

static inline int ublk_buffer_register(struct ublk_queue *q, u16 tag, u64 index,
				       struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	return -EINVAL;
}

static inline int ublk_buffer_unregister(const struct ublk_device *ub, u64 index,
					 struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	return -EINVAL;
}

static inline bool ublk_auto_is_good(u64 addr)
{
	return false;
}

static inline bool ublk_auto_register(struct ublk_queue *q, struct ublk_slot *slot,
				      struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	return true;
}

static inline void ublk_auto_unregister(struct ublk_slot *slot, struct io_uring_cmd *cmd,
					unsigned int issue_flags)
{
}
#endif

/* shmem.c */
int ublk_shmem_init(struct ublk_device *ub);
void ublk_shmem_exit(struct ublk_device *ub);
int ublk_shmem_register(struct ublk_device *ub, const struct ublksrv_ctrl_cmd *h);
int ublk_shmem_unregister(struct ublk_device *ub, u64 index);
bool ublk_shmem_find(struct ublk_device *ub, struct request *rq, u64 *addr);
void ublk_shmem_put(struct ublk_queue *q, struct request *rq);

/* integrity.c */
#ifdef UBLK_HAVE_INTEGRITY
#define UBLK_F_INTEGRITY_HERE UBLK_F_INTEGRITY
int ublk_integrity_check(const struct ublk_device *ub, const struct ublk_params *all);
void ublk_integrity_limits(const struct ublk_param_integrity *p, struct ublk_limits *lim);
u32 ublk_integrity_bytes(struct request *rq);
size_t ublk_integrity_copy(struct request *rq, size_t off, struct iov_iter *iter);
void ublk_integrity_prepare(struct request *rq);
#else
#define UBLK_F_INTEGRITY_HERE 0
static inline int ublk_integrity_check(const struct ublk_device *ub, const struct ublk_params *all)
{
	return -EINVAL;
}

static inline void ublk_integrity_limits(const struct ublk_param_integrity *p,
					 struct ublk_limits *lim)
{
}

static inline u32 ublk_integrity_bytes(struct request *rq)
{
	return 0;
}

static inline size_t ublk_integrity_copy(struct request *rq, size_t off, struct iov_iter *iter)
{
	return 0;
}

static inline void ublk_integrity_prepare(struct request *rq)
{
}
#endif

/* zoned.c */
#ifdef CONFIG_BLK_DEV_ZONED
#define UBLK_F_ZONED_HERE UBLK_F_ZONED
unsigned int ublk_zoned_cmd_size(void);
int ublk_zoned_desc(struct request *rq, struct ublksrv_io_desc *desc);
bool ublk_zoned_appended(struct request *rq, u64 lba);
int ublk_zoned_check(const struct ublk_params *p);
#else
#define UBLK_F_ZONED_HERE 0
static inline unsigned int ublk_zoned_cmd_size(void)
{
	return 0;
}

static inline int ublk_zoned_desc(struct request *rq, struct ublksrv_io_desc *desc)
{
	return -EOPNOTSUPP;
}

static inline bool ublk_zoned_appended(struct request *rq, u64 lba)
{
	return false;
}

static inline int ublk_zoned_check(const struct ublk_params *p)
{
	return -EOPNOTSUPP;
}

static inline int ublk_revalidate_zones(struct gendisk *disk)
{
	return -EOPNOTSUPP;
}
#endif

/* watch.c */
bool ublk_task_is_in_exec(const struct task_struct *task);
bool ublk_task_is_leaving(const struct task_struct *task);
void ublk_watch_work(struct work_struct *work);
void ublk_watch_start(struct ublk_device *ub);
#ifdef UBLK_HAVE_CMD_CANCEL
static inline bool ublk_ring_is_dying(struct io_uring_cmd *cmd)
{
	return false;
}
#else
bool ublk_ring_is_dying(struct io_uring_cmd *cmd);
#endif

/* unprivileged.c */
int ublk_may_control(struct ublk_device *ub, u32 nr, struct ublksrv_ctrl_cmd *h);
int ublk_may_add(struct ublksrv_ctrl_dev_info *info);
bool ublk_may_open(const struct ublk_device *ub);
bool ublk_unprivileged_charge(void);
void ublk_unprivileged_uncharge(void);

#endif
