/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * The ublk ABI between a block driver and its userspace server, as Linux 7.2 speaks it.
 *
 * Numbers, names and layouts are those of mainline's <linux/ublk_cmd.h>, restated here so that
 * the driver, the library and the tests build from one text on machines whose own headers are
 * older. What mainline has and no kernel that we support has yet is marked so.
 *
 * Two character devices carry it, both through IORING_OP_URING_CMD:
 *   /dev/ublk-control  control commands; struct ublksrv_ctrl_cmd in a 128-byte SQE
 *   /dev/ublkcN        I/O commands of device N; struct ublksrv_io_cmd in any SQE
 */
#ifndef UBD_UAPI_UBLK_H
#define UBD_UAPI_UBLK_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* ---- Control commands -------------------------------------------------------------------- */

/*
 * Bare numbers are the legacy opcodes of kernels before 6.4; every command also has an
 * ioctl-encoded form, the only one that newer commands have.
 */
#define UBLK_CMD_GET_QUEUE_AFFINITY 0x01
#define UBLK_CMD_GET_DEV_INFO 0x02
#define UBLK_CMD_ADD_DEV 0x04
#define UBLK_CMD_DEL_DEV 0x05
#define UBLK_CMD_START_DEV 0x06
#define UBLK_CMD_STOP_DEV 0x07
#define UBLK_CMD_SET_PARAMS 0x08
#define UBLK_CMD_GET_PARAMS 0x09
#define UBLK_CMD_START_USER_RECOVERY 0x10
#define UBLK_CMD_END_USER_RECOVERY 0x11
#define UBLK_CMD_GET_DEV_INFO2 0x12

#define UBLK_CTRL_R(nr) _IOR('u', nr, struct ublksrv_ctrl_cmd)
#define UBLK_CTRL_RW(nr) _IOWR('u', nr, struct ublksrv_ctrl_cmd)

#define UBLK_U_CMD_GET_QUEUE_AFFINITY UBLK_CTRL_R(UBLK_CMD_GET_QUEUE_AFFINITY)
#define UBLK_U_CMD_GET_DEV_INFO UBLK_CTRL_R(UBLK_CMD_GET_DEV_INFO)
#define UBLK_U_CMD_ADD_DEV UBLK_CTRL_RW(UBLK_CMD_ADD_DEV)
#define UBLK_U_CMD_DEL_DEV UBLK_CTRL_RW(UBLK_CMD_DEL_DEV)
#define UBLK_U_CMD_START_DEV UBLK_CTRL_RW(UBLK_CMD_START_DEV)
#define UBLK_U_CMD_STOP_DEV UBLK_CTRL_RW(UBLK_CMD_STOP_DEV)
#define UBLK_U_CMD_SET_PARAMS UBLK_CTRL_RW(UBLK_CMD_SET_PARAMS)
#define UBLK_U_CMD_GET_PARAMS UBLK_CTRL_R(UBLK_CMD_GET_PARAMS)
#define UBLK_U_CMD_START_USER_RECOVERY UBLK_CTRL_RW(UBLK_CMD_START_USER_RECOVERY)
#define UBLK_U_CMD_END_USER_RECOVERY UBLK_CTRL_RW(UBLK_CMD_END_USER_RECOVERY)
#define UBLK_U_CMD_GET_DEV_INFO2 UBLK_CTRL_R(UBLK_CMD_GET_DEV_INFO2)
#define UBLK_U_CMD_GET_FEATURES UBLK_CTRL_R(0x13)
#define UBLK_U_CMD_DEL_DEV_ASYNC UBLK_CTRL_R(0x14)
#define UBLK_U_CMD_UPDATE_SIZE UBLK_CTRL_RW(0x15)  /* data[0]: new size in 512-byte sectors */
#define UBLK_U_CMD_QUIESCE_DEV UBLK_CTRL_RW(0x16)  /* data[0]: longest wait in ms, 0 = for ever */
#define UBLK_U_CMD_TRY_STOP_DEV UBLK_CTRL_RW(0x17) /* -EBUSY while the disk is open */
#define UBLK_U_CMD_REG_BUF UBLK_CTRL_RW(0x18)	   /* addr: struct ublk_shmem_buf_reg */
#define UBLK_U_CMD_UNREG_BUF UBLK_CTRL_RW(0x19)	   /* data[0]: the index REG_BUF returned */

/* Bytes that GET_FEATURES writes: one little mask of UBLK_F_*. */
#define UBLK_FEATURES_LEN 8

/* Payload of a control command, in the SQE's 80-byte command area. */
struct ublksrv_ctrl_cmd {
	__u32 dev_id;	/* (__u32)-1 at ADD_DEV: let the driver choose */
	__u16 queue_id; /* (__u16)-1 unless the command is for one queue */
	__u16 len;	/* bytes at addr */
	__u64 addr;	/* the command's buffer, in or out */
	__u64 data[1];	/* the command's immediate value */
	/*
	 * Unprivileged devices and GET_DEV_INFO2: the buffer begins with the path of the char
	 * device, NUL included, of this many bytes.
	 */
	__u16 dev_path_len;
	__u16 pad;
	__u32 reserved;
};

struct ublksrv_ctrl_dev_info {
	__u16 nr_hw_queues;
	__u16 queue_depth;
	__u16 state;	    /* UBLK_S_DEV_* */
	__u16 io_desc_size; /* with UBLK_F_IO_DESC_SIZE (7.3), else 0 */

	__u32 max_io_buf_bytes;
	__u32 dev_id;

	__s32 ublksrv_pid; /* of the server while the device is live, else -1 */
	__u32 pad1;

	__u64 flags; /* UBLK_F_*: wanted at ADD_DEV, granted when it returns */

	__u64 ublksrv_flags; /* the server's own, never read by the driver */

	__u32 owner_uid; /* set by the driver */
	__u32 owner_gid; /* set by the driver */
	__u64 reserved1;
	__u64 reserved2;
};

/* Device states. */
#define UBLK_S_DEV_DEAD 0     /* no disk yet, or no more */
#define UBLK_S_DEV_LIVE 1     /* served */
#define UBLK_S_DEV_QUIESCED 2 /* no server; I/O waits for one */
#define UBLK_S_DEV_FAIL_IO 3  /* no server; I/O fails until there is one */

/* ---- Features, negotiated at ADD_DEV ----------------------------------------------------- */

/* Request buffers may be put into an io_uring's buffer table (REGISTER_IO_BUF). From 6.15. */
#define UBLK_F_SUPPORT_ZERO_COPY (1ULL << 0)
/* Deliver requests by io_uring's task work rather than the driver's own. */
#define UBLK_F_URING_CMD_COMP_IN_TASK (1ULL << 1)
/* A WRITE is announced first; its data comes after NEED_GET_DATA names a buffer. */
#define UBLK_F_NEED_GET_DATA (1ULL << 2)
/* The device survives its server: I/O waits for the next one; what was in flight fails ... */
#define UBLK_F_USER_RECOVERY (1ULL << 3)
/* ... or is given to the next server as well ... */
#define UBLK_F_USER_RECOVERY_REISSUE (1ULL << 4)
/* A device that an ordinary user owns, adds and serves. */
#define UBLK_F_UNPRIVILEGED_DEV (1ULL << 5)
/* Commands are ioctl-encoded. */
#define UBLK_F_CMD_IOCTL_ENCODE (1ULL << 6)
/* Data is moved by pread/pwrite on the char device at UBLKSRV_IO_BUF_OFFSET. */
#define UBLK_F_USER_COPY (1ULL << 7)
/* Host-managed zoned device. */
#define UBLK_F_ZONED (1ULL << 8)
/* ... or, with no server, all I/O fails at once. */
#define UBLK_F_USER_RECOVERY_FAIL_IO (1ULL << 9)
/* UPDATE_SIZE is there. */
#define UBLK_F_UPDATE_SIZE (1ULL << 10)
/* Request buffers enter and leave the fetching ring's buffer table by themselves. From 6.16. */
#define UBLK_F_AUTO_BUF_REG (1ULL << 11)
/* QUIESCE_DEV is there. */
#define UBLK_F_QUIESCE (1ULL << 12)
/* Each tag may have a task of its own, not only each queue. */
#define UBLK_F_PER_IO_DAEMON (1ULL << 13)
/* REGISTER_IO_BUF and UNREGISTER_IO_BUF may come from any task. */
#define UBLK_F_BUF_REG_OFF_DAEMON (1ULL << 14)
/* PREP_IO_CMDS, COMMIT_IO_CMDS and FETCH_IO_CMDS replace the one-request commands. */
#define UBLK_F_BATCH_IO (1ULL << 15)
/* Requests may carry integrity metadata. Needs UBLK_F_USER_COPY. */
#define UBLK_F_INTEGRITY (1ULL << 16)
/* TRY_STOP_DEV is there. */
#define UBLK_F_SAFE_STOP_DEV (1ULL << 17)
/* START_DEV does not read the partition table. */
#define UBLK_F_NO_AUTO_PART_SCAN (1ULL << 18)
/* REG_BUF and UNREG_BUF are there: I/O whose pages lie in them is not copied. */
#define UBLK_F_SHMEM_ZC (1ULL << 19)
/* The descriptor's size is dev_info.io_desc_size. 7.3 only. */
#define UBLK_F_IO_DESC_SIZE (1ULL << 20)

/* ---- I/O commands ------------------------------------------------------------------------ */

#define UBLK_IO_FETCH_REQ 0x20
#define UBLK_IO_COMMIT_AND_FETCH_REQ 0x21
#define UBLK_IO_NEED_GET_DATA 0x22

#define UBLK_IO_RW(nr) _IOWR('u', nr, struct ublksrv_io_cmd)
#define UBLK_BATCH_RW(nr) _IOWR('u', nr, struct ublk_batch_io)

#define UBLK_U_IO_FETCH_REQ UBLK_IO_RW(UBLK_IO_FETCH_REQ)
#define UBLK_U_IO_COMMIT_AND_FETCH_REQ UBLK_IO_RW(UBLK_IO_COMMIT_AND_FETCH_REQ)
#define UBLK_U_IO_NEED_GET_DATA UBLK_IO_RW(UBLK_IO_NEED_GET_DATA)
#define UBLK_U_IO_REGISTER_IO_BUF UBLK_IO_RW(0x23)   /* addr: index in the buffer table */
#define UBLK_U_IO_UNREGISTER_IO_BUF UBLK_IO_RW(0x24) /* addr: index in the buffer table */
#define UBLK_U_IO_PREP_IO_CMDS UBLK_BATCH_RW(0x25)   /* first: what each tag starts with */
#define UBLK_U_IO_COMMIT_IO_CMDS UBLK_BATCH_RW(0x26) /* returns the bytes of elements taken */
#define UBLK_U_IO_FETCH_IO_CMDS UBLK_BATCH_RW(0x27)  /* multishot: tags into provided buffers */

/* Results of a fetching command. */
#define UBLK_IO_RES_OK 0
#define UBLK_IO_RES_NEED_GET_DATA 1
#define UBLK_IO_RES_ABORT (-ENODEV) /* do not fetch again */

/* Payload of a one-request command; fits the 16-byte command area of a plain SQE. */
struct ublksrv_io_cmd {
	__u16 q_id;
	__u16 tag;
	__s32 result; /* COMMIT: bytes done or -errno */
	union {
		__u64 addr; /* server's buffer, or a table index; 0 with user copy */
		__u64 zone_append_lba;
	};
};

/* One element of a batch buffer; optional 8-byte fields follow as ublk_batch_io.flags say. */
struct ublk_elem_header {
	__u16 tag;
	__u16 buf_index; /* with UBLK_F_AUTO_BUF_REG */
	__s32 result;	 /* COMMIT_IO_CMDS */
};

/* Payload of a batch command; the elements are at sqe->addr, sqe->len bytes. */
struct ublk_batch_io {
	__u16 q_id;
	__u16 flags; /* UBLK_BATCH_F_* */
	__u16 nr_elem;
	__u8 elem_bytes;
	__u8 reserved;
	__u64 reserved2;
};

#define UBLK_BATCH_F_HAS_ZONE_LBA (1 << 0)
#define UBLK_BATCH_F_HAS_BUF_ADDR (1 << 1)
#define UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK (1 << 2)

/* ---- Requests as the server sees them ---------------------------------------------------- */

#define UBLK_IO_OP_READ 0
#define UBLK_IO_OP_WRITE 1
#define UBLK_IO_OP_FLUSH 2
#define UBLK_IO_OP_DISCARD 3
#define UBLK_IO_OP_WRITE_SAME 4
#define UBLK_IO_OP_WRITE_ZEROES 5
#define UBLK_IO_OP_ZONE_OPEN 10
#define UBLK_IO_OP_ZONE_CLOSE 11
#define UBLK_IO_OP_ZONE_FINISH 12
#define UBLK_IO_OP_ZONE_APPEND 13
#define UBLK_IO_OP_ZONE_RESET_ALL 14
#define UBLK_IO_OP_ZONE_RESET 15
/*
 * Fill the buffer with struct blk_zone from start_sector on, nr_zones at most; an all-zero
 * entry ends a shorter report.
 */
#define UBLK_IO_OP_REPORT_ZONES 18

#define UBLK_IO_F_FAILFAST_DEV (1U << 8)
#define UBLK_IO_F_FAILFAST_TRANSPORT (1U << 9)
#define UBLK_IO_F_FAILFAST_DRIVER (1U << 10)
#define UBLK_IO_F_META (1U << 11)
#define UBLK_IO_F_FUA (1U << 13)
#define UBLK_IO_F_NOUNMAP (1U << 15)
#define UBLK_IO_F_SWAP (1U << 16)
/* Automatic registration failed and FALLBACK was asked for: register by hand. */
#define UBLK_IO_F_NEED_REG_BUF (1U << 17)
/* There is integrity metadata at UBLKSRV_IO_INTEGRITY_FLAG of the char device. */
#define UBLK_IO_F_INTEGRITY (1U << 18)
/* addr is an index and offset in a REG_BUF buffer, see ublk_shmem_zc_index(). */
#define UBLK_IO_F_SHMEM_ZC (1U << 19)

/* One per tag, in the read-only mapping of the char device. */
struct ublksrv_io_desc {
	__u32 op_flags; /* UBLK_IO_OP_* in the low byte, UBLK_IO_F_* above */
	union {
		__u32 nr_sectors; /* of 512 bytes */
		__u32 nr_zones;	  /* REPORT_ZONES */
	};
	__u64 start_sector; /* of 512 bytes */
	__u64 addr;	    /* the buffer the server gave */
};

static inline __u8 ublksrv_get_op(const struct ublksrv_io_desc *iod)
{
	return iod->op_flags & 0xff;
}

/* Shifted down: compare with UBLK_IO_F_x >> 8. */
static inline __u32 ublksrv_get_flags(const struct ublksrv_io_desc *iod)
{
	return iod->op_flags >> 8;
}

/* ---- Offsets on the char device ---------------------------------------------------------- */

#define UBLK_MAX_QUEUE_DEPTH 4096

/* mmap: queue q's descriptors are at this + q * (page-rounded UBLK_MAX_QUEUE_DEPTH of them). */
#define UBLKSRV_CMD_BUF_OFFSET 0

/* pread/pwrite: byte offset in the request's data | tag << UBLK_TAG_OFF | queue << UBLK_QID_OFF,
 * the whole plus UBLKSRV_IO_BUF_OFFSET. */
#define UBLKSRV_IO_BUF_OFFSET 0x80000000

#define UBLK_IO_BUF_OFF 0
#define UBLK_IO_BUF_BITS 25 /* a request has 32 MiB at most */
#define UBLK_IO_BUF_BITS_MASK ((1ULL << UBLK_IO_BUF_BITS) - 1)

#define UBLK_TAG_OFF UBLK_IO_BUF_BITS
#define UBLK_TAG_BITS 16
#define UBLK_TAG_BITS_MASK ((1ULL << UBLK_TAG_BITS) - 1)

#define UBLK_QID_OFF (UBLK_TAG_OFF + UBLK_TAG_BITS)
#define UBLK_QID_BITS 12
#define UBLK_QID_BITS_MASK ((1ULL << UBLK_QID_BITS) - 1)

#define UBLK_MAX_NR_QUEUES (1U << UBLK_QID_BITS)

#define UBLKSRV_IO_BUF_TOTAL_BITS (UBLK_QID_OFF + UBLK_QID_BITS)
#define UBLKSRV_IO_BUF_TOTAL_SIZE (1ULL << UBLKSRV_IO_BUF_TOTAL_BITS)

/* Set in the offset: the request's integrity metadata instead of its data. */
#define UBLK_INTEGRITY_FLAG_OFF 62
#define UBLKSRV_IO_INTEGRITY_FLAG (1ULL << UBLK_INTEGRITY_FLAG_OFF)

/* ---- Automatic registration -------------------------------------------------------------- */

/* On failure deliver the request with UBLK_IO_F_NEED_REG_BUF instead of failing it. */
#define UBLK_AUTO_BUF_REG_FALLBACK (1 << 0)
#define UBLK_AUTO_BUF_REG_F_MASK UBLK_AUTO_BUF_REG_FALLBACK

/* Travels in sqe->addr of a fetching command: index in bits 0-15, flags in 16-23, rest zero. */
struct ublk_auto_buf_reg {
	__u16 index;
	__u8 flags;
	__u8 reserved0;
	__u32 reserved1;
};

static inline struct ublk_auto_buf_reg ublk_sqe_addr_to_auto_buf_reg(__u64 addr)
{
	struct ublk_auto_buf_reg reg = {
		.index = (__u16)(addr & 0xffff),
		.flags = (__u8)(addr >> 16 & 0xff),
		.reserved0 = (__u8)(addr >> 24 & 0xff),
		.reserved1 = (__u32)(addr >> 32),
	};

	return reg;
}

static inline __u64 ublk_auto_buf_reg_to_sqe_addr(const struct ublk_auto_buf_reg *reg)
{
	return (__u64)reg->reserved1 << 32 | (__u64)reg->reserved0 << 24 | (__u64)reg->flags << 16 |
	       reg->index;
}

/* ---- Shared-memory zero copy ------------------------------------------------------------- */

/* Argument of REG_BUF. */
struct ublk_shmem_buf_reg {
	__u64 addr; /* of the caller's mapping, page-aligned */
	__u64 len;  /* bytes, whole pages, 4 GiB at most */
	__u32 flags;
	__u32 reserved;
};

/* Only ever read by the server: a write-sealed memfd will do. */
#define UBLK_SHMEM_BUF_READ_ONLY (1U << 0)

#define UBLK_SHMEM_ZC_OFF_MASK 0xffffffffULL
#define UBLK_SHMEM_ZC_IDX_OFF 32
#define UBLK_SHMEM_ZC_IDX_MASK 0xffffULL

static inline __u64 ublk_shmem_zc_addr(__u16 index, __u32 offset)
{
	return (__u64)index << UBLK_SHMEM_ZC_IDX_OFF | offset;
}

static inline __u16 ublk_shmem_zc_index(__u64 addr)
{
	return (__u16)(addr >> UBLK_SHMEM_ZC_IDX_OFF & UBLK_SHMEM_ZC_IDX_MASK);
}

static inline __u32 ublk_shmem_zc_offset(__u64 addr)
{
	return (__u32)(addr & UBLK_SHMEM_ZC_OFF_MASK);
}

/* ---- Parameters: SET_PARAMS before START_DEV --------------------------------------------- */

#define UBLK_ATTR_READ_ONLY (1 << 0)
#define UBLK_ATTR_ROTATIONAL (1 << 1)
#define UBLK_ATTR_VOLATILE_CACHE (1 << 2)
#define UBLK_ATTR_FUA (1 << 3)

struct ublk_param_basic {
	__u32 attrs; /* UBLK_ATTR_* */
	__u8 logical_bs_shift;
	__u8 physical_bs_shift;
	__u8 io_opt_shift;
	__u8 io_min_shift;

	__u32 max_sectors;   /* of 512 bytes, per request */
	__u32 chunk_sectors; /* no request crosses a multiple of it; the zone size when zoned */

	__u64 dev_sectors;
	__u64 virt_boundary_mask;
};

struct ublk_param_discard {
	__u32 discard_alignment;   /* bytes */
	__u32 discard_granularity; /* bytes */
	__u32 max_discard_sectors;

	__u32 max_write_zeroes_sectors;
	__u16 max_discard_segments;
	__u16 reserved0;
};

/* Filled in by the driver; read-only. */
struct ublk_param_devt {
	__u32 char_major;
	__u32 char_minor;
	__u32 disk_major;
	__u32 disk_minor;
};

struct ublk_param_zoned {
	__u32 max_open_zones;
	__u32 max_active_zones;
	__u32 max_zone_append_sectors;
	__u8 reserved[20];
};

struct ublk_param_dma_align {
	__u32 alignment; /* mask, bytes */
	__u8 pad[4];
};

#define UBLK_MIN_SEGMENT_SIZE 4096

struct ublk_param_segment {
	__u64 seg_boundary_mask; /* >= UBLK_MIN_SEGMENT_SIZE - 1, of the form 2^n - 1 */
	__u32 max_segment_size;	 /* bytes, >= UBLK_MIN_SEGMENT_SIZE */
	__u16 max_segments;
	__u8 pad[2];
};

struct ublk_param_integrity {
	__u32 flags;		      /* LBMD_PI_CAP_* of <linux/fs.h> */
	__u16 max_integrity_segments; /* 0: no limit */
	__u8 interval_exp;
	__u8 metadata_size; /* bytes per interval, not 0 */
	__u8 pi_offset;
	__u8 csum_type; /* LBMD_PI_CSUM_* of <linux/fs.h> */
	__u8 tag_size;
	__u8 pad[5];
};

#define UBLK_PARAM_TYPE_BASIC (1 << 0)
#define UBLK_PARAM_TYPE_DISCARD (1 << 1)
#define UBLK_PARAM_TYPE_DEVT (1 << 2)
#define UBLK_PARAM_TYPE_ZONED (1 << 3)
#define UBLK_PARAM_TYPE_DMA_ALIGN (1 << 4)
#define UBLK_PARAM_TYPE_SEGMENT (1 << 5)
#define UBLK_PARAM_TYPE_INTEGRITY (1 << 6) /* needs UBLK_F_INTEGRITY */

struct ublk_params {
	__u32 len;   /* sizeof of the caller's struct: older ones are shorter */
	__u32 types; /* UBLK_PARAM_TYPE_*: the members below that count */

	struct ublk_param_basic basic;
	struct ublk_param_discard discard;
	struct ublk_param_devt devt;
	struct ublk_param_zoned zoned;
	struct ublk_param_dma_align dma;
	struct ublk_param_segment seg;
	struct ublk_param_integrity integrity;
};

#endif
