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

enum { NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_FLUSH = 3, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES = 6 };

#define NBD_FLAG_FUA (1u << 0)
#define NBD_FLAG_NO_HOLE (1u << 1)
#define NBD_FLAG_FAST_ZERO (1u << 4)

/* The server goes away: not an answer to the request. */
#define NBD_ESHUTDOWN 108u

struct nbd_request {
	uint64_t cookie, offset;
	uint32_t length;
	uint16_t cmd, flags;
};

struct nbd_reply {
	uint32_t magic, error; /* error as on the wire */
	uint64_t cookie;
};

static inline void nbd_request_put(uint8_t *p, const struct nbd_request *r)
{
	const uint64_t wire[] = {
		htobe64((uint64_t)NBD_REQUEST_MAGIC << 32 | (uint32_t)r->flags << 16 | r->cmd),
		htobe64(r->cookie), htobe64(r->offset), htobe64((uint64_t)r->length << 32)};

	memcpy(p, wire, NBD_REQUEST_SIZE);
}

/* -EPROTO: this is no simple reply. */
static inline int nbd_reply_get(const uint8_t *p, struct nbd_reply *r)
{
	memcpy(r, p, NBD_REPLY_SIZE);
	*r = (struct nbd_reply){be32toh(r->magic), be32toh(r->error), be64toh(r->cookie)};
	return r->magic == NBD_REPLY_MAGIC ? 0 : -EPROTO;
}

/* NBD's errors are numbers of its own, which happen to be those of Linux on most machines. */
static inline int nbd_errno(uint32_t error)
{
	static const int known[] = {
		[1] = EPERM,   [12] = ENOMEM,	 [22] = EINVAL,
		[28] = ENOSPC, [75] = EOVERFLOW, [95] = EOPNOTSUPP,
	};

	if (!error)
		return 0;
	return error < sizeof(known) / sizeof(*known) && known[error] ? -known[error] : -EIO;
}

#endif
