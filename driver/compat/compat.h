/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The one place where kernels differ.
 *
 * compat_config.h holds the facts that compat/probe found in the headers built against. The
 * rest of the driver is written to the names below and never asks for a version.
 */
#ifndef UBLK_COMPAT_H
#define UBLK_COMPAT_H

#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mount.h>
#include <linux/user_namespace.h>
#if __has_include(<linux/io_uring/cmd.h>)
#include <linux/io_uring/cmd.h>
#else
#include <linux/io_uring.h>
#endif
#include <linux/io_uring_types.h>
#include "compat_config.h"

/* ---- io_uring commands ------------------------------------------------------------------- */

/* The command's own area of the SQE. It may be shared with the submitter: read each field once. */
static inline const void *ublk_cmd_payload(const struct io_uring_cmd *cmd)
{
#ifdef UBLK_HAVE_CMD_SQE
	return cmd->sqe->cmd;
#else
	return cmd->cmd;
#endif
}

/* sqe->addr, where a command brings something there. Read it once, too. */
static inline u64 ublk_cmd_sqe_addr(const struct io_uring_cmd *cmd)
{
#ifdef UBLK_HAVE_CMD_SQE
	return READ_ONCE(cmd->sqe->addr);
#else
	return 0;
#endif
}

/*
 * Every command ends here, also those that fail at once: before 6.2 a positive value returned
 * by ->uring_cmd() in a worker posted no completion at all.
 */
static inline void ublk_cmd_done(struct io_uring_cmd *cmd, int ret, unsigned int issue_flags)
{
#ifdef UBLK_HAVE_CMD_DONE_RES2
	io_uring_cmd_done(cmd, ret, 0, issue_flags);
#else
	io_uring_cmd_done(cmd, ret, issue_flags);
#endif
}

/* Does who gave the command go away, or begin another program? */
static inline bool ublk_cmd_is_deserted(struct io_uring_cmd *cmd)
{
#ifdef UBLK_HAVE_CMD_TASK
	const struct task_struct *task = io_uring_cmd_get_task(cmd);
#else
	const struct task_struct *task = cmd_to_io_kiocb(cmd)->task;
#endif

#ifdef UBLK_HAVE_IN_CANCEL
	return atomic_read(&task->io_uring->in_cancel);
#else
	return atomic_read(&task->io_uring->in_idle);
#endif
}

/* The ring that a command came through, to compare only. */
static inline void *ublk_cmd_ring(struct io_uring_cmd *cmd)
{
	return cmd_to_io_kiocb(cmd)->ctx;
}

#define ublk_cmd_pdu(cmd, type)                                                      \
	({                                                                           \
		BUILD_BUG_ON(sizeof(type) > sizeof_field(struct io_uring_cmd, pdu)); \
		(type *)&(cmd)->pdu;                                                 \
	})

/*
 * UBLK_TASK_WORK(name) opens the definition of a function that io_uring runs in the task that
 * submitted @cmd, as static void name(struct io_uring_cmd *cmd, unsigned int issue_flags);
 * name_tw is what io_uring_cmd_complete_in_task() takes.
 */
#ifdef UBLK_HAVE_TW_REQ
#define UBLK_TASK_WORK(name)                                                            \
	static void name(struct io_uring_cmd *cmd, unsigned int issue_flags);           \
	static void name##_tw(struct io_tw_req tw_req, io_tw_token_t tw)                \
	{                                                                               \
		name(io_uring_cmd_from_tw(tw_req), IO_URING_CMD_TASK_WORK_ISSUE_FLAGS); \
	}                                                                               \
	static void name(struct io_uring_cmd *cmd, unsigned int issue_flags)
#else
#define UBLK_TASK_WORK(name)                                                      \
	static void name(struct io_uring_cmd *cmd, unsigned int issue_flags);     \
	static void name##_tw(struct io_uring_cmd *cmd, unsigned int issue_flags) \
	{                                                                         \
		name(cmd, issue_flags);                                           \
	}                                                                         \
	static void name(struct io_uring_cmd *cmd, unsigned int issue_flags)
#endif

#ifdef UBLK_HAVE_CMD_CANCEL
static inline bool ublk_cmd_is_cancel(unsigned int issue_flags)
{
	return issue_flags & IO_URING_F_CANCEL;
}

static inline void ublk_cmd_mark_cancelable(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	io_uring_cmd_mark_cancelable(cmd, issue_flags);
}
#else
/* No call when the submitter goes away: watch.c looks for it. */
static inline bool ublk_cmd_is_cancel(unsigned int issue_flags)
{
	return false;
}

static inline void ublk_cmd_mark_cancelable(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
}
#endif

/*
 * Bios from a cache of the CPU's. They may end in interrupts since 6.2, which headers do not
 * tell; kernels that cancel commands are later.
 */
#ifdef UBLK_HAVE_CMD_CANCEL
#define UBLK_IOCB_CACHE IOCB_ALLOC_CACHE
#else
#define UBLK_IOCB_CACHE 0
#endif

/* ---- block layer ------------------------------------------------------------------------- */

#ifdef UBLK_HAVE_RQ_LIST
typedef struct rq_list ublk_rq_list_t;
#else
typedef struct request *ublk_rq_list_t;
#endif

#ifdef UBLK_HAVE_SHOULD_MERGE
#define UBLK_TAG_SET_FLAGS BLK_MQ_F_SHOULD_MERGE
#else
#define UBLK_TAG_SET_FLAGS 0
#endif

#ifdef UBLK_HAVE_BLK_MODE
#define UBLK_DISK_OPEN(name) static int name(struct gendisk *disk, blk_mode_t mode)
#else
#define UBLK_DISK_OPEN(name)                                     \
	static int name##_disk(struct gendisk *disk);            \
	static int name(struct block_device *bdev, fmode_t mode) \
	{                                                        \
		return name##_disk(bdev->bd_disk);               \
	}                                                        \
	static int name##_disk(struct gendisk *disk)
#endif

#if defined(UBLK_HAVE_LIM_INTEGRITY) && defined(CONFIG_BLK_DEV_INTEGRITY)
#define UBLK_HAVE_INTEGRITY
#endif

/*
 * What a device's parameters mean for its request queue: filled in by params.c in the block
 * layer's units, given to the kernel by compat/disk.c.
 */
struct ublk_limits {
	u32 logical_block;
	u32 physical_block;
	u32 io_min;
	u32 io_opt;
	u32 max_sectors;
	u32 chunk_sectors;
	unsigned long virt_boundary_mask;
	unsigned long seg_boundary_mask; /* 0: the kernel's */
	u32 max_segment_size;
	u16 max_segments;
	u32 dma_mask;
	u32 discard_alignment;
	u32 discard_granularity;
	u32 max_discard_sectors;
	u32 max_write_zeroes_sectors;
	u16 max_discard_segments;
	u32 max_open_zones;
	u32 max_active_zones;
	u32 max_zone_append_sectors;
	bool write_cache;
	bool fua;
	bool rotational;
	bool zoned;
#ifdef UBLK_HAVE_INTEGRITY
	u16 max_integrity_segments;
	struct blk_integrity integrity;
#endif
};

struct gendisk *ublk_compat_alloc_disk(struct blk_mq_tag_set *set, const struct ublk_limits *lim);

#ifdef CONFIG_BLK_DEV_ZONED
/*
 * Where a zone report goes. UBLK_REPORT_ZONES(name) defines @name for block_device_operations by
 * a static report_zones(disk, sector, nr_zones, sink).
 */
#ifdef UBLK_HAVE_REPORT_ZONES_ARGS
struct ublk_zone_sink {
	struct blk_report_zones_args *args;
};

static inline int ublk_zone_report(struct gendisk *disk, struct blk_zone *zone, u32 index,
				   const struct ublk_zone_sink *sink)
{
	return disk_report_zone(disk, zone, index, sink->args);
}

int ublk_report_zones(struct gendisk *disk, sector_t sector, unsigned int nr_zones,
		      struct blk_report_zones_args *args);
#define UBLK_REPORT_ZONES(name)                                                \
	int name(struct gendisk *disk, sector_t sector, unsigned int nr_zones, \
		 struct blk_report_zones_args *args)                           \
	{                                                                      \
		struct ublk_zone_sink sink = {.args = args};                   \
                                                                               \
		return report_zones(disk, sector, nr_zones, &sink);            \
	}
#else
struct ublk_zone_sink {
	report_zones_cb cb;
	void *data;
};

static inline int ublk_zone_report(struct gendisk *disk, struct blk_zone *zone, u32 index,
				   const struct ublk_zone_sink *sink)
{
	return sink->cb(zone, index, sink->data);
}

int ublk_report_zones(struct gendisk *disk, sector_t sector, unsigned int nr_zones,
		      report_zones_cb cb, void *data);
#define UBLK_REPORT_ZONES(name)                                                                    \
	int name(struct gendisk *disk, sector_t sector, unsigned int nr_zones, report_zones_cb cb, \
		 void *data)                                                                       \
	{                                                                                          \
		struct ublk_zone_sink sink = {.cb = cb, .data = data};                             \
                                                                                                   \
		return report_zones(disk, sector, nr_zones, &sink);                                \
	}
#endif

static inline int ublk_revalidate_zones(struct gendisk *disk)
{
#ifdef UBLK_HAVE_REVALIDATE_ONE_ARG
	return blk_revalidate_disk_zones(disk);
#else
	return blk_revalidate_disk_zones(disk, NULL);
#endif
}
#endif

/* Bytes of the current vector that an iterator has left behind; renamed in 7.3. */
static inline u32 ublk_bvec_done(const struct bvec_iter *it)
{
#ifdef UBLK_HAVE_BVEC_DONE
	return it->bi_bvec_done;
#else
	return it->bi_offset;
#endif
}

static inline int ublk_rq_map_kern(struct request *rq, void *buf, unsigned int len)
{
#ifdef UBLK_HAVE_MAP_KERN_QUEUE
	return blk_rq_map_kern(rq->q, rq, buf, len, GFP_KERNEL);
#else
	return blk_rq_map_kern(rq, buf, len, GFP_KERNEL);
#endif
}

/* ---- memory and files -------------------------------------------------------------------- */

/* mprotect() must never make this mapping writable. */
static inline void ublk_vma_forbid_write(struct vm_area_struct *vma)
{
#ifdef UBLK_HAVE_VM_FLAGS_CLEAR
	vm_flags_clear(vma, VM_MAYWRITE);
#else
	vma->vm_flags &= ~VM_MAYWRITE;
#endif
}

static inline int ublk_inode_permission(struct inode *inode, int mask)
{
#ifdef UBLK_HAVE_MNT_IDMAP
	return inode_permission(&nop_mnt_idmap, inode, mask);
#else
	return inode_permission(&init_user_ns, inode, mask);
#endif
}

#endif
