/* SPDX-License-Identifier: MIT */
/* The protocol's bytes, against ones written out by hand from its specification. */
#include "proto.h"

#include "tap.h"

static void request_bytes(void)
{
	static const uint8_t expected[NBD_REQUEST_SIZE] = {
		0x25, 0x60, 0x95, 0x13, 0x00, 0x13, 0x00, 0x06, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab,
		0xcd, 0xef, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x02, 0x00, 0xff, 0xff, 0xfe, 0x00,
	};
	uint8_t p[NBD_REQUEST_SIZE + 2] = {[0] = 0x5a, [NBD_REQUEST_SIZE + 1] = 0x5a};

	/* At an odd address: buffers are packed. */
	nbd_request_put(p + 1,
			&(struct nbd_request){
				.flags = NBD_FLAG_FUA | NBD_FLAG_NO_HOLE | NBD_FLAG_FAST_ZERO,
				.cmd = NBD_CMD_WRITE_ZEROES,
				.cookie = 0x0123456789abcdefull,
				.offset = 0x1000000200ull,
				.length = 0xfffffe00u,
			});
	CHECK(!memcmp(p + 1, expected, sizeof(expected)), "the bytes differ");
	CHECK(p[0] == 0x5a && p[NBD_REQUEST_SIZE + 1] == 0x5a, "bytes beside it were written");
}

static void reply_bytes(void)
{
	uint8_t p[NBD_REPLY_SIZE + 1] = {0,    0x67, 0x44, 0x66, 0x98, 0x00, 0x00, 0x00, 0x1c,
					 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10};
	struct nbd_reply r;

	CHECK(!nbd_reply_get(p + 1, &r), "refused");
	CHECK(r.error == 28 && r.cookie == 0xfedcba9876543210ull, "error %u, cookie %llx", r.error,
	      (unsigned long long)r.cookie);
}

/* Every single wrong bit of the magic, and the magic of structured replies. */
static void reply_magic(void)
{
	uint8_t p[NBD_REPLY_SIZE] = {0x67, 0x44, 0x66, 0x98};
	static const uint8_t structured[] = {0x66, 0x8e, 0x33, 0xef};
	struct nbd_reply r;

	for (unsigned bit = 0; bit < 32; bit++) {
		p[bit / 8] ^= (uint8_t)(1u << bit % 8);
		CHECK(nbd_reply_get(p, &r) == -EPROTO, "bit %u was overlooked", bit);
		p[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	memcpy(p, structured, sizeof(structured));
	CHECK(nbd_reply_get(p, &r) == -EPROTO, "a structured reply was taken for a simple one");
}

static void errors(void)
{
	static const struct {
		uint32_t wire;
		int linux_errno;
	} table[] = {{0, 0},	   {1, EPERM},	       {5, EIO},	{12, ENOMEM},
		     {22, EINVAL}, {28, ENOSPC},       {75, EOVERFLOW}, {95, EOPNOTSUPP},
		     {2, EIO},	   {4294967295u, EIO}, {512, EIO}};

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		CHECK(nbd_errno(table[i].wire) == -table[i].linux_errno, "%u became %d",
		      table[i].wire, nbd_errno(table[i].wire));
}

static const struct tap_case cases[] = {
	{"a request's bytes", request_bytes},
	{"a reply's bytes", reply_bytes},
	{"what is no reply is refused", reply_magic},
	{"errors on the wire become ours, unknown ones EIO", errors},
};
TAP_MAIN(cases)
