/* SPDX-License-Identifier: MIT */
/*
 * The transmission phase of NBD as bytes: requests as we send them, simple replies as we take
 * them. Structured replies are not negotiated: a simple one lets a READ's payload go straight from
 * the socket to where it is wanted. All numbers are big-endian.
 */
#ifndef UBD_NBD_PROTO_H
#define UBD_NBD_PROTO_H

#include <endian.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_REPLY_MAGIC 0x67446698u
#define NBD_REQUEST_SIZE 28u
#define NBD_REPLY_SIZE 16u

enum nbd_cmd {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_WRITE_ZEROES = 6,
};

#define NBD_FLAG_FUA (1u << 0)
#define NBD_FLAG_NO_HOLE (1u << 1)
#define NBD_FLAG_FAST_ZERO (1u << 4)

/* The server goes away: not an answer to the request. */
#define NBD_ESHUTDOWN 108u

struct nbd_reply {
	uint32_t error; /* as on the wire */
	uint64_t cookie;
};

static inline void nbd_request_put(uint8_t *p, uint16_t flags, uint16_t cmd, uint64_t cookie,
				   uint64_t offset, uint32_t length)
{
	const struct {
		uint32_t magic;
		uint16_t flags, cmd;
		uint64_t cookie, offset;
		uint32_t length;
	} __attribute__((packed)) wire = {htobe32(NBD_REQUEST_MAGIC),
					  htobe16(flags),
					  htobe16(cmd),
					  htobe64(cookie),
					  htobe64(offset),
					  htobe32(length)};

	memcpy(p, &wire, NBD_REQUEST_SIZE);
}

/* -EPROTO: this is no simple reply. */
static inline int nbd_reply_get(const uint8_t *p, struct nbd_reply *r)
{
	struct {
		uint32_t magic, error;
		uint64_t cookie;
	} wire;

	memcpy(&wire, p, NBD_REPLY_SIZE);
	*r = (struct nbd_reply){be32toh(wire.error), be64toh(wire.cookie)};
	return be32toh(wire.magic) == NBD_REPLY_MAGIC ? 0 : -EPROTO;
}

/* NBD's errors are numbers of its own, which happen to be those of Linux on most machines. */
static inline int nbd_errno(uint32_t error)
{
	switch (error) {
	case 0:
		return 0;
	case 1:
		return -EPERM;
	case 12:
		return -ENOMEM;
	case 22:
		return -EINVAL;
	case 28:
		return -ENOSPC;
	case 75:
		return -EOVERFLOW;
	case 95:
		return -EOPNOTSUPP;
	default:
		return -EIO;
	}
}

#endif
