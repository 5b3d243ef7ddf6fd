/* SPDX-License-Identifier: MIT */
/* Metadata in two copies that take turns. */
#define _GNU_SOURCE
#include "copies.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>
#include <zlib.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a copy is kept as it is in memory");

static uint32_t checksum(const struct copy *c)
{
	return (uint32_t)crc32(0, (const void *)&c->len, c->len - offsetof(struct copy, len));
}

void *copies_load(int fd, void *both, uint32_t room, uint64_t magic)
{
	struct copy *best = NULL;
	int err = 0;

	for (size_t i = 0; i < 2; i++) {
		struct copy *c = (void *)((char *)both + i * room);

		if (pread(fd, c, room, (off_t)(i * room)) < 0)
			err = errno;
		else if (c->magic == magic && c->len >= sizeof(*c) && c->len <= room &&
			 c->crc == checksum(c) && (!best || c->sequence > best->sequence))
			best = c;
	}
	errno = err;
	return best;
}

int copies_store(struct ubd_queue *q, int fd, struct copy *c, uint32_t room)
{
	struct iovec iov = {.iov_base = c, .iov_len = c->len};
	uint64_t pos = ++c->sequence % 2 * room;
	ssize_t n;

	c->crc = checksum(c);
	if (q)
		n = ubd_pwrite(q, fd, c, c->len, pos, UBD_RW_FUA);
	else if ((n = pwritev2(fd, &iov, 1, (off_t)pos, RWF_DSYNC)) < 0)
		n = -errno;
	if (n == c->len)
		return 0;
	c->sequence--;
	return n < 0 ? (int)n : -EIO;
}
