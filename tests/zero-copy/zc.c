// SPDX-License-Identifier: MIT
/*
 * The extension commands by hand. See zc.h.
 */
#include "zc.h"

#include "client.h"
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define RESULT_LIMIT_MS 10000

const char *const backing_names[NR_BACKINGS] = {
	[TMPFS] = "/run/zc/tmpfs/file",	       [EXT4_BUFFERED] = "/run/zc/ext4/buffered",
	[EXT4_DIRECT] = "/run/zc/ext4/direct", [XFS_BUFFERED] = "/run/zc/xfs/buffered",
	[XFS_DIRECT] = "/run/zc/xfs/direct",   [BTRFS_BUFFERED] = "/run/zc/btrfs/file",
	[BLOCK_BUFFERED] = "/run/zc/disk",     [BLOCK_DIRECT] = "/run/zc/disk",
};

void zc_up(struct hand *h, uint64_t features, unsigned depth)
{
	struct dev *dev = dev_new(features | UBLK_F_USER_COPY, 1, depth);

	dev_add(dev);
	REQUIRE((dev->info.flags & features) == features,
		"the driver does not grant features 0x%llx, but 0x%llx",
		(unsigned long long)features, (unsigned long long)dev->info.flags);
	hand_up(h, dev);
}

/* ---- backings ---------------------------------------------------------------------------- */

static void fill(const char *path)
{
	static uint8_t buf[1 << 20];
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	REQUIRE(fd >= 0, "cannot open %s: %s", path, strerror(errno));
	for (uint64_t at = 0; at < ZC_FILE_BYTES; at += sizeof(buf)) {
		pattern_fill(buf, at, sizeof(buf), 7);
		REQUIRE(pwrite(fd, buf, sizeof(buf), (off_t)at) == (ssize_t)sizeof(buf),
			"cannot write to %s: %s", path, strerror(errno));
	}
	REQUIRE(fsync(fd) == 0, "cannot sync %s: %s", path, strerror(errno));
	close(fd);
}

int backing_open(enum backing b)
{
	bool direct = b == EXT4_DIRECT || b == XFS_DIRECT || b == BLOCK_DIRECT;
	const char *path = backing_names[b];
	char dir[64];
	int fd;

	snprintf(dir, sizeof(dir), "%s", path);
	if (b != BLOCK_BUFFERED && b != BLOCK_DIRECT)
		*strrchr(dir, '/') = 0;
	if (access(dir, F_OK))
		conform_skip("there is no %s in this guest", dir);
	fill(path);
	fd = open(path, O_RDWR | O_CLOEXEC | (direct ? O_DIRECT : 0));
	REQUIRE(fd >= 0, "cannot open %s: %s", path, strerror(errno));
	return fd;
}

int scratch_open(uint64_t bytes)
{
	char path[] = "/run/zc/tmpfs/scratch-XXXXXX";
	int fd = mkostemp(path, O_CLOEXEC);

	REQUIRE(fd >= 0, "cannot make a file in /run/zc/tmpfs: %s", strerror(errno));
	unlink(path);
	REQUIRE(ftruncate(fd, (off_t)bytes) == 0, "cannot make a file of %llu bytes",
		(unsigned long long)bytes);
	return fd;
}

/* ---- commands ---------------------------------------------------------------------------- */

uint32_t zc_generation(const struct ioq *q, unsigned tag)
{
	return (uint32_t)q->desc[tag].addr;
}

void zc_submit_raw(struct ioq *q, uint32_t op, unsigned tag, uint32_t generation_nr, uint64_t addr)
{
	ioq_sqe(q, op, (uint16_t)q->q_id, (uint16_t)tag, (int)generation_nr, addr);
	ioq_submit(q);
}

void zc_submit(struct ioq *q, uint32_t op, unsigned tag, const struct ubd_member *m, unsigned nr)
{
	zc_submit_raw(q, op, tag, ubd_generation_nr(zc_generation(q, tag), (uint8_t)nr),
		      (uintptr_t)m);
}

void zc_lease(struct ioq *q, unsigned tag, const struct ubd_lease *lease)
{
	zc_submit_raw(q, UBD_U_IO_LEASE, tag, ubd_generation_nr(zc_generation(q, tag), 0),
		      (uintptr_t)lease);
}

int zc_result(struct ioq *q, uint32_t op, unsigned tag)
{
	struct ioq_cqe cqe;
	int ret = ioq_wait(q, &cqe, RESULT_LIMIT_MS);

	REQUIRE(ret == 0, "command 0x%x of tag %u does not end: %s", _IOC_NR(op), tag,
		conform_errname(ret));
	REQUIRE(cqe.op == op && cqe.tag == tag,
		"command 0x%x of tag %u ended with %s instead of command 0x%x of tag %u",
		_IOC_NR(cqe.op), cqe.tag, conform_errname(cqe.res), _IOC_NR(op), tag);
	return cqe.res;
}

int zc_members(struct ioq *q, unsigned tag, const struct ubd_member *m, unsigned nr)
{
	zc_submit(q, UBD_U_IO_MEMBERS, tag, m, nr);
	return zc_result(q, UBD_U_IO_MEMBERS, tag);
}

struct ubd_member zc_read(int fd, uint32_t at, uint32_t len, uint64_t pos)
{
	return (struct ubd_member){
		.op = UBD_MEMBER_READ, .fd = fd, .at = at, .len = len, .pos = pos};
}

struct ubd_member zc_write(int fd, uint32_t at, uint32_t len, uint64_t pos)
{
	return (struct ubd_member){
		.op = UBD_MEMBER_WRITE, .fd = fd, .at = at, .len = len, .pos = pos};
}

struct ubd_member zc_send(int fd, uint32_t at, uint32_t len)
{
	return (struct ubd_member){.op = UBD_MEMBER_SEND, .fd = fd, .at = at, .len = len};
}

struct ubd_member zc_recv(int fd, uint32_t at, uint32_t len)
{
	return (struct ubd_member){.op = UBD_MEMBER_RECV, .fd = fd, .at = at, .len = len};
}

/* ---- streams ----------------------------------------------------------------------------- */

static void tcp_pair(int fds[2])
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(at);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	REQUIRE(listener >= 0 && bind(listener, (struct sockaddr *)&at, sizeof(at)) == 0 &&
			listen(listener, 1) == 0 &&
			getsockname(listener, (struct sockaddr *)&at, &len) == 0,
		"cannot listen on the loopback: %s", strerror(errno));
	fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	REQUIRE(connect(fds[0], (struct sockaddr *)&at, sizeof(at)) == 0,
		"cannot connect over the loopback: %s", strerror(errno));
	fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	REQUIRE(fds[1] >= 0, "cannot accept: %s", strerror(errno));
	close(listener);
}

void stream_pair(bool tcp, int fds[2])
{
	struct timeval limit = {.tv_sec = 10};

	if (tcp)
		tcp_pair(fds);
	else
		REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0,
			"cannot make a socket pair: %s", strerror(errno));
	for (int i = 0; i < 2; i++) {
		setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
		setsockopt(fds[i], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	}
}

void stream_loopback(bool up)
{
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = up ? IFF_UP : 0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	REQUIRE(ioctl(fd, SIOCSIFFLAGS, &lo) == 0, "cannot set the loopback %s: %s",
		up ? "up" : "down", strerror(errno));
	close(fd);
}

bool stream_put(int fd, const void *buf, size_t bytes)
{
	for (const uint8_t *p = buf; bytes;) {
		ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL);

		/* The end of one of our own commands interrupts as a signal does. */
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		bytes -= (size_t)n;
	}
	return true;
}

bool stream_get(int fd, void *buf, size_t bytes)
{
	for (uint8_t *p = buf; bytes;) {
		ssize_t n = recv(fd, p, bytes, 0);

		/* The end of one of our own commands interrupts as a signal does. */
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		bytes -= (size_t)n;
	}
	return true;
}

void stream_leave_error(int fds[2])
{
	uint8_t byte = 0;

	REQUIRE(setsockopt(fds[0], SOL_SOCKET, SO_ZEROCOPY, &(int){1}, sizeof(int)) == 0 &&
			send(fds[0], &byte, 1, MSG_ZEROCOPY) == 1 && stream_get(fds[1], &byte, 1),
		"cannot send with MSG_ZEROCOPY: %s", strerror(errno));
}

/* ---- what a client read ------------------------------------------------------------------ */

int64_t zc_data_differs(const struct job *io, uint64_t offset, uint64_t bytes, uint32_t seed)
{
	return pattern_check(io->data, offset, bytes, seed);
}

bool zc_data_is_zero(const struct job *io, uint64_t from, uint64_t to)
{
	for (; from < to; from++)
		if (io->data[from])
			return false;
	return true;
}
