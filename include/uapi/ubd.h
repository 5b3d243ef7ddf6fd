/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * What ubd's own driver adds to the ublk ABI: zero copy on any kernel from 6.1 on.
 *
 * A server that knows only <linux/ublk_cmd.h> never meets any of this: feature bits begin at 48,
 * command numbers at 0x60, GET_FEATURES stays mainline's and UBD_U_CMD_QUERY tells of these.
 *
 * The idea: the pages of a block request stay in the kernel. The server says which ranges of them
 * go to, or come from, which files and sockets ("members"), and the driver does that I/O on the
 * pages themselves. Every member holds the request; the request ends after its last member.
 *
 * In all of these ways the driver copies nothing at fetch and commit, ublksrv_io_cmd.addr is 0, and
 * pread/pwrite on the char device (UBLK_F_USER_COPY) reach the bytes where the server must see
 * them. Not for unprivileged devices.
 */
#ifndef UBD_UAPI_UBD_H
#define UBD_UAPI_UBD_H

#include "ublk.h"

#define UBD_ABI_VERSION 2

/* ---- Features ------------------------------------------------------------------------------ */

/* UBD_U_IO_MEMBERS: run members, report their result. */
#define UBD_F_MEMBERS (1ULL << 48)
/* UBD_U_IO_FUSED: run members, complete the request, fetch the next: one command per request. */
#define UBD_F_FUSED (1ULL << 49)
/* UBD_U_IO_LEASE and UBD_U_IO_RETURN: a leader, members under it, and what else uses the buffer. */
#define UBD_F_LEASE (1ULL << 50)
/* splice_read on the char device: pipe buffers that are a WRITE request's pages. */
#define UBD_F_SPLICE (1ULL << 51)

#define UBD_F_ALL (UBD_F_MEMBERS | UBD_F_FUSED | UBD_F_LEASE | UBD_F_SPLICE)

/*
 * Control command 0x60: fills struct ubd_query at addr, len bytes of it. Other drivers answer
 * -EOPNOTSUPP: that is how to tell.
 */
#define UBD_U_CMD_QUERY UBLK_CTRL_R(0x60)

struct ubd_query {
	__u32 abi_version; /* UBD_ABI_VERSION of the driver */
	__u32 reserved;
	__u64 features;	  /* UBD_F_* that ADD_DEV grants */
	char version[32]; /* of the driver, for people; NUL-terminated */
};

/* ---- Generations --------------------------------------------------------------------------- */

/*
 * A tag is used again as soon as its request has ended. A member that comes too late must not touch
 * the next request's pages, so each request of a tag has a generation: with any of the features
 * above it is in ublksrv_io_desc.addr, 24 bits, never 0. A command that names another is
 * refused with -ESTALE. From version 2 on it becomes 0, or the next request's, as soon as the
 * members of a fused commit have ended.
 */
#define UBD_GENERATION_MASK 0xffffffu

/* ---- Commands on the char device ----------------------------------------------------------- */

/*
 * Payload of the commands below; it fits a plain SQE's command area, as ublksrv_io_cmd does. What
 * it points to is read when the command is issued: before the submitting system call returns, but
 * for IOSQE_ASYNC and IORING_SETUP_SQPOLL.
 *
 * They come from the task that fetched the tag; from another they get -EINVAL. Neither registered
 * nor selected buffers: -EINVAL.
 */
struct ubd_io_cmd {
	__u16 q_id;
	__u16 tag;
	__u32 generation_nr; /* generation << 8 | number of members at addr */
	__u64 addr;	     /* struct ubd_member[nr], or what the command says */
};

#define UBD_MAX_MEMBERS 255 /* per command */

static inline __u32 ubd_generation_nr(__u32 generation, __u8 nr)
{
	return generation << 8 | nr;
}

#define UBD_IO_RW(nr) _IOWR('u', nr, struct ubd_io_cmd)

/*
 * Run 1 … UBD_MAX_MEMBERS members at once. Completes when the last has ended, with the sum of
 * their bytes or the first error; the others still end. The request stays the server's. Several
 * such commands for one request may be under way. Members may overlap; but one that fails zeroes
 * what it did not fill, whoever else has: commit after all that overlap have ended, and fill again
 * what a failed one has zeroed.
 */
#define UBD_U_IO_MEMBERS UBD_IO_RW(0x60)

/*
 * The same, and then the request's commit with the members' sum, and the tag's next fetch.
 * Completes as a fetch does: UBLK_IO_RES_OK with the next request, UBLK_IO_RES_ABORT. If a member
 * fails the request is not completed: the command ends with that error (never -ENODEV, which
 * becomes -EIO), the tag stays the server's and is committed by UBLK_U_IO_COMMIT_AND_FETCH_REQ. nr
 * 0, and a zone append, whose place only a commit can tell: -EINVAL. While it runs other commands
 * for the request get -EBUSY. The next request may be long in coming: that the members of this one
 * have ended shows in its generation.
 */
#define UBD_U_IO_FUSED UBD_IO_RW(0x61)

/*
 * Take the lease of the request's buffer for a group: the leader of the members that name it. addr
 * points to struct ubd_lease; the number of members is 0. Completes when all of the lease's members
 * have ended, and is returned by then. If it is refused, its members end with -ECANCELED.
 */
#define UBD_U_IO_LEASE UBD_IO_RW(0x62)

/*
 * Return a lease that is open (UBD_LEASE_OPEN) or still expects members: no further users. The
 * leader completes after the last. Also after the request's commit. With UBD_LEASE_INDEX from the
 * leader's ring. addr and nr are 0.
 */
#define UBD_U_IO_RETURN UBD_IO_RW(0x63)

struct ubd_lease {
	/* Commands UBD_U_IO_MEMBERS with UBD_MEMBER_F_LEASED that will come; 0 when open. */
	__u32 nr_members;
	__u32 flags; /* UBD_LEASE_* */
	/*
	 * Kernels with io_buffer_register_bvec (6.15 on): also put the buffer into the ring's table
	 * at this index, for ordinary requests of io_uring, until the return. With
	 * UBD_LEASE_INDEX, which needs UBD_LEASE_OPEN. A READ's pages are zeroed first.
	 */
	__u16 buf_index;
	__u16 reserved[3];
};

#define UBD_LEASE_OPEN (1u << 0)  /* ends at UBD_U_IO_RETURN, not at a count */
#define UBD_LEASE_INDEX (1u << 1) /* buf_index counts; -EOPNOTSUPP where the kernel cannot */

/* ---- Members ------------------------------------------------------------------------------- */

enum ubd_member_op {
	UBD_MEMBER_READ =
		0, /* file or block device fd, at pos, into the request; request is a READ */
	UBD_MEMBER_WRITE = 1, /* the request to fd at pos; request is a WRITE */
	UBD_MEMBER_SEND = 2,  /* the request to a stream socket; request is a WRITE */
	UBD_MEMBER_RECV = 3,  /* from a stream socket into the request; request is a READ */
	UBD_MEMBER_ZERO = 4,  /* zeroes into the request; request is a READ; fd -1 */
	UBD_MEMBER_FSYNC = 5, /* fdatasync of fd; at and len are 0; any request */
};

/* WRITE: durable when it ends (RWF_DSYNC). */
#define UBD_MEMBER_F_FUA (1u << 0)
/* SEND: more follows at once (MSG_MORE). */
#define UBD_MEMBER_F_MORE (1u << 1)
/* READ: the end of the file reads as zeroes instead of failing with -EIO. */
#define UBD_MEMBER_F_ZERO_EOF (1u << 2)
/* The member belongs to the lease under way on its request; all of a command's members or none. */
#define UBD_MEMBER_F_LEASED (1u << 3)

#define UBD_MEMBER_F_ALL \
	(UBD_MEMBER_F_FUA | UBD_MEMBER_F_MORE | UBD_MEMBER_F_ZERO_EOF | UBD_MEMBER_F_LEASED)

/*
 * One member. All or nothing: short I/O is continued; the end of a file or stream within it is
 * -EIO; then, and after any error of a READ or RECV, what it did not fill has been zeroed, even
 * where another member had filled it. fd is looked up once, when the command is issued. Refused
 * with -EINVAL: the char device, this device's own disk and files on it, files that are opened for
 * appending, pipes.
 */
struct ubd_member {
	__u8 op;    /* enum ubd_member_op */
	__u8 flags; /* UBD_MEMBER_F_* */
	__u16 reserved;
	__s32 fd;
	__u32 at;  /* offset in the request's data, bytes */
	__u32 len; /* bytes */
	__u64 pos; /* READ, WRITE: offset in the file, bytes; otherwise 0 */
	__u64 reserved2;
};

/* ---- Splice -------------------------------------------------------------------------------- */

/*
 * splice(2) from the char device at the offset that pread would have (see UBLKSRV_IO_BUF_OFFSET)
 * fills the pipe with a WRITE request's pages. Each pipe buffer holds the request: a commit is
 * taken at once and carried out when the last buffer has been consumed. A READ request is refused
 * with -EINVAL: a module cannot take pages out of a pipe; members do that job. So they do for
 * memory of the slab allocator, which file systems write blocks smaller than a page from:
 * -EOPNOTSUPP.
 */

#endif
