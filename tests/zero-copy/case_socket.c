// SPDX-License-Identifier: MIT
/*
 * Members on sockets: streams carry the request's data, however slow the peer is.
 */
#include "client.h"
#include "harness.h"
#include "zc.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define AT (1ULL << 20)
#define LEN (128U << 10)

static uint8_t buf[LEN];

static void sends(bool tcp)
{
	struct ubd_member m[2];
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2];

	stream_pair(tcp, fds);
	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	for (unsigned i = 1; i <= 4; i++) {
		io = io_begin_seeded(h.dev, IO_WRITE, AT, LEN, i);
		tag = ioq_next(&h.q, NULL);
		m[0] = zc_send(fds[0], 0, LEN);
		m[0].flags = i % 2 ? UBD_MEMBER_F_MORE : 0;
		zc_submit(&h.q, i > 2 ? UBD_U_IO_FUSED : UBD_U_IO_MEMBERS, tag, m, 1);
		sleep_ms(50);
		REQUIRE(stream_get(fds[1], buf, LEN), "the data does not come");
		CHECK(pattern_check(buf, AT, LEN, i) < 0, "other data was sent");
		if (i <= 2) {
			RESULT("a send", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), LEN);
			ioq_commit(&h.q, tag, LEN);
		}
		CHECK(io_end(io) == LEN, "the write fails");
	}
	close(fds[0]);
	close(fds[1]);
	hand_down(&h);
}

static void receives(bool tcp)
{
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2];

	stream_pair(tcp, fds);
	zc_up(&h, UBD_F_MEMBERS | UBD_F_FUSED, 2);
	for (unsigned i = 1; i <= 4; i++) {
		long res = 0;

		io = io_begin(h.dev, IO_READ, AT, LEN);
		tag = ioq_next(&h.q, NULL);
		m = zc_recv(fds[0], 0, LEN);
		zc_submit(&h.q, i > 2 ? UBD_U_IO_FUSED : UBD_U_IO_MEMBERS, tag, &m, 1);
		pattern_fill(buf, AT, LEN, i);
		/* In three pieces, with time to wait in between. */
		for (unsigned part = 0; part < 3; part++) {
			unsigned from = LEN / 3 * part, to = part == 2 ? LEN : from + LEN / 3;

			sleep_ms(30);
			REQUIRE(stream_put(fds[1], buf + from, to - from), "cannot send");
		}
		if (i <= 2) {
			RESULT("a receive", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), LEN);
			ioq_commit(&h.q, tag, LEN);
		}
		REQUIRE(job_wait(io, 10000, &res) == 0 && res == LEN, "the read gives %s",
			conform_errname(res));
		CHECK(zc_data_differs(io, AT, LEN, i) < 0, "other data arrived");
		job_put(io);
	}
	close(fds[0]);
	close(fds[1]);
	hand_down(&h);
}

CASE(send_unix)
{
	sends(false);
}

CASE(send_tcp)
{
	sends(true);
}

CASE(recv_unix)
{
	receives(false);
}

CASE(recv_tcp)
{
	receives(true);
}

/* A write's data is the connection's, and nothing of it arrives. */
static struct job *send_in_vain(struct hand *h, unsigned *tag, int fds[2])
{
	struct ubd_member m;
	struct job *io;

	stream_pair(true, fds);
	zc_up(h, UBD_F_MEMBERS, 1);
	io = io_begin_seeded(h->dev, IO_WRITE, AT, 4096, 6);
	*tag = ioq_next(&h->q, NULL);
	m = zc_send(fds[0], 0, 4096);
	stream_loopback(false);
	zc_submit(&h->q, UBD_U_IO_MEMBERS, *tag, &m, 1);
	CHECK(ioq_quiet(&h->q, 500), "the member ends before the peer has anything");
	return io;
}

/* What is not acknowledged is sent again, from the request's own pages. */
CASE(send_tcp_unacknowledged)
{
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2];

	io = send_in_vain(&h, &tag, fds);
	stream_loopback(true);
	REQUIRE(stream_get(fds[1], buf, 4096), "the data does not come");
	CHECK(pattern_check(buf, AT, 4096, 6) < 0, "other data was sent");
	RESULT("the send", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), 4096);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the write fails");
	hand_down(&h);
}

/* Not sent, and never acknowledged: the connection ends first. */
CASE(send_tcp_connection_lost)
{
	const struct sockaddr none = {.sa_family = AF_UNSPEC};
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2];

	io = send_in_vain(&h, &tag, fds);
	REQUIRE(connect(fds[0], &none, sizeof(none)) == 0, "cannot disconnect: %s",
		strerror(errno));
	RESULT("the send", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), -ECONNRESET);
	stream_loopback(true);
	ioq_commit(&h.q, tag, -EIO);
	CHECK(io_end(io) == -EIO, "the write does not fail");
	hand_down(&h);
}

/* What the processors have done since the start, in ticks of 10 ms. */
static unsigned long long busy(void)
{
	unsigned long long t[8] = {0};
	FILE *f = fopen("/proc/stat", "re");

	REQUIRE(f && fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2],
			    &t[3], &t[4], &t[5], &t[6], &t[7]) == 8,
		"cannot read /proc/stat");
	fclose(f);
	return t[0] + t[1] + t[2] + t[5] + t[6];
}

/* Ready by poll and not so: waited for all the same, without a processor's whole time. */
CASE(recv_with_an_error_queued)
{
	unsigned long long before;
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2];

	stream_pair(true, fds);
	stream_leave_error(fds);
	zc_up(&h, UBD_F_MEMBERS, 1);
	io = io_begin(h.dev, IO_READ, AT, LEN);
	tag = ioq_next(&h.q, NULL);
	m = zc_recv(fds[0], 0, LEN);
	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, &m, 1);
	before = busy();
	CHECK(ioq_quiet(&h.q, 2000), "the member ends without data");
	CHECK(busy() - before < 100, "%llu ms of work in 2 s of waiting", (busy() - before) * 10);
	pattern_fill(buf, AT, LEN, 4);
	REQUIRE(stream_put(fds[1], buf, LEN), "cannot send");
	RESULT("the receive", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), LEN);
	ioq_commit(&h.q, tag, LEN);
	REQUIRE(job_wait(io, 10000, NULL) == 0, "the read does not end");
	CHECK(zc_data_differs(io, AT, LEN, 4) < 0, "other data arrived");
	job_put(io);
	hand_down(&h);
}

/* As to mirrors: the same data to two peers at once, one of them slow. */
static void both(bool tcp)
{
	int a[2], b[2];
	struct hand h;
	struct job *io;
	unsigned tag;

	stream_pair(tcp, a);
	stream_pair(tcp, b);
	setsockopt(b[0], SOL_SOCKET, SO_SNDBUF, &(int){4096}, sizeof(int));
	zc_up(&h, UBD_F_MEMBERS, 2);
	io = io_begin_seeded(h.dev, IO_WRITE, AT, LEN, 5);
	tag = ioq_next(&h.q, NULL);
	struct ubd_member m[] = {zc_send(a[0], 0, LEN), zc_send(b[0], 0, LEN)};

	zc_submit(&h.q, UBD_U_IO_MEMBERS, tag, m, 2);
	REQUIRE(stream_get(a[1], buf, LEN), "the data does not come");
	CHECK(pattern_check(buf, AT, LEN, 5) < 0, "other data was sent to the first");
	sleep_ms(100);
	REQUIRE(stream_get(b[1], buf, LEN), "the data does not come to the slow one");
	CHECK(pattern_check(buf, AT, LEN, 5) < 0, "other data was sent to the second");
	RESULT("two sends", zc_result(&h.q, UBD_U_IO_MEMBERS, tag), 2 * LEN);
	ioq_commit(&h.q, tag, LEN);
	CHECK(io_end(io) == LEN, "the write fails");
	hand_down(&h);
}

CASE(send_both_unix)
{
	both(false);
}

CASE(send_both_tcp)
{
	both(true);
}

static void broken(bool tcp)
{
	struct ubd_member m;
	struct hand h;
	struct job *io;
	unsigned tag;
	int fds[2], res;

	stream_pair(tcp, fds);
	close(fds[1]);
	zc_up(&h, UBD_F_MEMBERS, 2);
	io = io_begin(h.dev, IO_WRITE, AT, LEN);
	tag = ioq_next(&h.q, NULL);
	m = zc_send(fds[0], 0, LEN);
	res = zc_members(&h.q, tag, &m, 1);
	/* TCP may take it all before it hears that nobody is there. */
	if (res > 0)
		res = zc_members(&h.q, tag, &m, 1);
	CHECK(res == -EPIPE || res == -ECONNRESET, "a send to nobody: %s", conform_errname(res));
	ioq_commit(&h.q, tag, -EIO);
	CHECK(io_end(io) == -EIO, "the write does not fail");
	hand_down(&h);
}

CASE(send_broken_unix)
{
	broken(false);
}

CASE(send_broken_tcp)
{
	broken(true);
}
