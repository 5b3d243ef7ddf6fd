/* SPDX-License-Identifier: MIT */
/* Calls that look blocking, on real files, sockets and pipes. */
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

static void pattern(unsigned char *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (unsigned char)(i * 7 + i / 251 + seed);
}

/* Run one function on a queue of its own device. */
static void on_queue(probe_fn *fn, void *arg)
{
	struct ubd_device *dev = probe_start(1, 8);

	CHECK(probe_run(dev, 0, fn, arg) == 0, "the function failed");
	probe_end(dev);
}

static int temporary(void)
{
	char path[] = "/tmp/ubd-await.XXXXXX";
	int fd = mkstemp(path);

	unlink(path);
	return fd;
}

static int try_files(struct ubd_io *io, void *arg)
{
	enum { N = 3 << 20 };
	struct ubd_queue *q = io->queue;
	unsigned char *in = malloc(N), *out = malloc(N);
	int fd = *(int *)arg;
	struct stat st;

	pattern(in, N, 1);
	CHECK(ubd_pwrite(q, fd, in, N, 777, 0) == N, "write");
	CHECK(ubd_pread(q, fd, out, N, 777) == N && !memcmp(in, out, N), "read back");
	CHECK(ubd_pread(q, fd, out, N, 777 + N - 100) == 100, "short at the end");
	CHECK(ubd_pread(q, fd, out, N, 777 + N) == 0, "nothing past the end");
	CHECK(ubd_pwrite(q, fd, in, 10, 0, UBD_RW_FUA) == 10, "durable write");
	CHECK(ubd_pwrite(q, fd, in, 0, 0, 0) == 0, "empty write");
	CHECK(ubd_fsync(q, fd, true) == 0 && ubd_fsync(q, fd, false) == 0, "fsync");
	CHECK(ubd_fallocate(q, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 20) == 0,
	      "punch");
	CHECK(ubd_pread(q, fd, out, 4096, 8192) == 4096, "read the hole");
	for (int i = 0; i < 4096; i++)
		CHECK(!out[i], "byte %d of the hole", i);
	CHECK(!fstat(fd, &st) && st.st_size == 777 + N, "size");
	CHECK(ubd_pread(q, -1, out, 1, 0) == -EBADF, "no file");
	CHECK(ubd_pwrite(q, fd, (void *)8, 4096, 0, 0) == -EFAULT, "no memory there");
	free(in);
	free(out);
	return 0;
}

static void test_files(void)
{
	int fd = temporary();

	on_queue(try_files, &fd);
	close(fd);
}

/* The other end of a socket: reads in small bites and sends everything back. */
static void *echo(void *arg)
{
	int fd = *(int *)arg;
	char buf[3000];
	ssize_t n;

	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
		for (ssize_t at = 0, m; at < n; at += m) {
			m = send(fd, buf + at, (size_t)(n - at), MSG_NOSIGNAL);
			if (m <= 0)
				return NULL;
		}
	shutdown(fd, SHUT_WR);
	return NULL;
}

struct sender {
	int fd;
	unsigned char *data;
	size_t len;
	bool done;
};

static void send_all(struct ubd_queue *q, void *arg)
{
	struct sender *s = arg;

	CHECK(ubd_send(q, s->fd, s->data, s->len, 0) == (ssize_t)s->len, "send");
	shutdown(s->fd, SHUT_WR);
	s->done = true;
}

static int try_sockets(struct ubd_io *io, void *arg)
{
	enum { N = 1 << 20 };
	struct ubd_queue *q = io->queue;
	int fd = *(int *)arg;
	unsigned char *in = malloc(N), *out = calloc(1, N);
	struct sender s = {.fd = fd, .data = in, .len = N};

	pattern(in, N, 2);
	/* More than the socket holds: sending and receiving must go on side by side. */
	CHECK(ubd_spawn(q, send_all, &s) == 0, "spawn");
	CHECK(ubd_recv_some(q, fd, out, 1) == 1, "one byte");
	CHECK(ubd_recv(q, fd, out + 1, N - 1) == N - 1 && !memcmp(in, out, N), "echo");
	CHECK(s.done, "all is back, so all was sent");
	CHECK(ubd_recv(q, fd, out, 100) == 0, "end of stream");
	CHECK(ubd_recv_some(q, fd, out, 100) == 0, "end of stream");
	free(in);
	free(out);
	return 0;
}

static void test_sockets(void)
{
	pthread_t thread;
	int pair[2];

	REQUIRE(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
	pthread_create(&thread, NULL, echo, &pair[1]);
	on_queue(try_sockets, &pair[0]);
	close(pair[0]);
	pthread_join(thread, NULL);
	close(pair[1]);
}

static int try_broken(struct ubd_io *io, void *arg)
{
	char buf[10000] = {0};
	ssize_t ret = 0;

	/* No signal, though the other end is gone. */
	for (int i = 0; i < 100 && ret >= 0; i++)
		ret = ubd_send(io->queue, *(int *)arg, buf, sizeof(buf), 0);
	CHECK(ret == -EPIPE, "%zd", ret);
	/* Nor from what cannot ask for none, as writes of registered pages. */
	CHECK(write(*(int *)arg, buf, 1) < 0 && errno == EPIPE, "write: %s", strerror(errno));
	return 0;
}

static void test_broken(void)
{
	int pair[2];

	REQUIRE(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
	close(pair[1]);
	signal(SIGPIPE, SIG_DFL); /* whatever the caller's is */
	on_queue(try_broken, &pair[0]);
	close(pair[0]);
}

static int try_connect(struct ubd_io *io, void *arg)
{
	struct sockaddr_in *addr = arg;
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	char byte = 0;

	CHECK(ubd_connect(io->queue, fd, (struct sockaddr *)addr, sizeof(*addr)) == 0, "connect");
	CHECK(ubd_poll(io->queue, fd, POLLOUT) & POLLOUT, "writable");
	CHECK(ubd_recv(io->queue, fd, &byte, 1) == 1 && byte == 'x', "greeting");
	close(fd);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	addr->sin_port = htons(1);
	CHECK(ubd_connect(io->queue, fd, (struct sockaddr *)addr, sizeof(*addr)) == -ECONNREFUSED,
	      "nobody listens");
	close(fd);
	return 0;
}

static void *greet(void *arg)
{
	int fd = accept(*(int *)arg, NULL, NULL);

	CHECK(fd >= 0 && send(fd, "x", 1, 0) == 1, "accept");
	close(fd);
	return NULL;
}

static void test_connect(void)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t len = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	pthread_t thread;

	REQUIRE(!bind(fd, (struct sockaddr *)&addr, len) && !listen(fd, 1), "listen");
	getsockname(fd, (struct sockaddr *)&addr, &len);
	pthread_create(&thread, NULL, greet, &fd);
	on_queue(try_connect, &addr);
	pthread_join(thread, NULL);
	close(fd);
}

static int try_pipe(struct ubd_io *io, void *arg)
{
	int *fds = arg;
	char byte = 0;
	int ret;

	CHECK(write(fds[1], "p", 1) == 1, "write");
	ret = ubd_poll(io->queue, fds[0], POLLIN);
	CHECK(ret == POLLIN, "poll %d", ret);
	CHECK(ubd_pread(io->queue, fds[0], &byte, 1, (uint64_t)-1) == 1 && byte == 'p', "read");
	close(fds[1]);
	ret = ubd_poll(io->queue, fds[0], POLLIN);
	CHECK(ret > 0 && ret & POLLHUP, "poll after the end: %d", ret);
	return 0;
}

static void test_pipe(void)
{
	int fds[2];

	REQUIRE(!pipe(fds), "pipe");
	on_queue(try_pipe, fds);
	close(fds[0]);
}

static int try_sleep(struct ubd_io *io, void *arg)
{
	uint64_t start = ubd_now(), end;

	(void)arg;
	CHECK(ubd_sleep(io->queue, 30000000) == 0, "sleep");
	end = ubd_now();
	CHECK(end - start >= 30000000, "woke after %llu ns", (unsigned long long)(end - start));
	CHECK(ubd_sleep(io->queue, 0) == 0, "no time");
	return 0;
}

static void test_sleep(void)
{
	on_queue(try_sleep, NULL);
}

static void sleeper(struct ubd_queue *q, void *arg)
{
	ubd_sleep(q, 50000000);
	++*(unsigned *)arg;
}

/* Many sleep at once: together they take as long as one, and the request does not wait for them. */
static int try_spawn(struct ubd_io *io, void *arg)
{
	for (int i = 0; i < 200; i++)
		CHECK(ubd_spawn(io->queue, sleeper, arg) == 0, "spawn %d", i);
	CHECK(*(unsigned *)arg == 0, "one ran already");
	return 0;
}

static void test_spawn(void)
{
	unsigned done = 0;

	/* The device ends only after the last of them. */
	on_queue(try_spawn, &done);
	CHECK(done == 200, "%u", done);
}

static void yielder(struct ubd_queue *q, void *arg)
{
	char **at = arg;

	for (int i = 0; i < 3; i++) {
		*(*at)++ = 'b';
		ubd_yield(q);
	}
}

static int try_yield(struct ubd_io *io, void *arg)
{
	char **at = arg;

	CHECK(ubd_spawn(io->queue, yielder, arg) == 0, "spawn");
	for (int i = 0; i < 3; i++) {
		*(*at)++ = 'a';
		ubd_yield(io->queue);
	}
	return 0;
}

static void test_yield(void)
{
	char trace[16] = "", *at = trace;

	on_queue(try_yield, &at);
	CHECK(!strcmp(trace, "ababab"), "%s", trace);
}

static int block(void *arg)
{
	struct timespec ts = {.tv_nsec = 20000000};

	nanosleep(&ts, NULL);
	__atomic_add_fetch((unsigned *)arg, 1, __ATOMIC_RELAXED);
	return -EDOM;
}

static int quick(void *arg)
{
	return *(int *)arg;
}

static void ticker(struct ubd_queue *q, void *arg)
{
	unsigned *state = arg; /* ticks, stop */

	while (!state[1]) {
		ubd_sleep(q, 1000000);
		state[0]++;
	}
}

static int try_offload(struct ubd_io *io, void *arg)
{
	unsigned state[2] = {0}, calls = 0;
	int seven = 7;

	(void)arg;
	CHECK(ubd_spawn(io->queue, ticker, state) == 0, "spawn");
	for (int i = 0; i < 3; i++)
		CHECK(ubd_offload(io->queue, block, &calls) == -EDOM, "its result");
	CHECK(calls == 3, "%u calls", calls);
	CHECK(state[0] >= 5, "the queue stood still: %u ticks in 60 ms", state[0]);
	for (int i = 0; i < 1000; i++)
		CHECK(ubd_offload(io->queue, quick, &seven) == 7, "quick %d", i);
	state[1] = 1;
	ubd_sleep(io->queue, 10000000); /* state is on this stack */
	return 0;
}

static void test_offload(void)
{
	on_queue(try_offload, NULL);
}

static int offload_once(struct ubd_io *io, void *arg)
{
	return ubd_offload(io->queue, block, arg) == -EDOM ? 0 : -EIO;
}

static void test_offload_many(void)
{
	struct ubd_device *dev = probe_start(2, 16);
	struct probe_caller callers[16];
	unsigned calls = 0;

	for (unsigned i = 0; i < 16; i++)
		callers[i] = (struct probe_caller){
			.dev = dev, .queue = i % 2, .rounds = 5, .fn = offload_once, .arg = &calls};
	probe_together(callers, 16);
	CHECK(calls == 80, "%u calls", calls);
	probe_end(dev);
}

static int meet(void *all)
{
	pthread_barrier_wait(all);
	return 0;
}

static int offload_meeting(struct ubd_io *io, void *all)
{
	return ubd_offload(io->queue, meet, all);
}

static void test_offload_meeting(void)
{
	struct ubd_device *dev = probe_start(1, 8);
	struct probe_caller callers[4];
	pthread_barrier_t all;

	pthread_barrier_init(&all, NULL, 4);
	for (unsigned i = 0; i < 4; i++)
		callers[i] = (struct probe_caller){
			.dev = dev, .rounds = 100, .fn = offload_meeting, .arg = &all};
	probe_together(callers, 4);
	pthread_barrier_destroy(&all);
	probe_end(dev);
}

struct rendezvous {
	sem_t second_began;
	bool first_ended;
};

static int await_second(void *arg)
{
	struct rendezvous *r = arg;
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 5;
	return sem_timedwait(&r->second_began, &end) ? -errno : 0;
}

static int begin_second(void *arg)
{
	struct rendezvous *r = arg;

	return sem_post(&r->second_began);
}

static void offload_first(struct ubd_queue *q, void *arg)
{
	struct rendezvous *r = arg;

	CHECK(ubd_offload(q, await_second, r) == 0, "the second call waited for the first");
	r->first_ended = true;
}

static int try_one_idle(struct ubd_io *io, void *arg)
{
	struct rendezvous r = {0};
	int seven = 7;

	(void)arg;
	sem_init(&r.second_began, 0, 0);
	/* One helper, and time for it to fall asleep. */
	ubd_offload(io->queue, quick, &seven);
	ubd_sleep(io->queue, 20000000);
	CHECK(ubd_spawn(io->queue, offload_first, &r) == 0, "spawn");
	ubd_yield(io->queue);
	/* The first call has woken it. */
	CHECK(ubd_offload(io->queue, begin_second, &r) == 0, "post");
	while (!r.first_ended)
		ubd_sleep(io->queue, 1000000);
	return 0;
}

static void test_one_idle(void)
{
	for (int i = 0; i < 5 && !tap_failed; i++)
		on_queue(try_one_idle, NULL);
}

static int many_at_once(struct ubd_io *io, void *arg)
{
	unsigned char in[512], out[512];
	int fd = *(int *)arg;
	uint64_t at = (uint64_t)io->tag * 512;

	for (unsigned i = 0; i < 20; i++) {
		pattern(in, sizeof(in), io->tag + i);
		if (ubd_pwrite(io->queue, fd, in, 512, at, 0) != 512 ||
		    ubd_pread(io->queue, fd, out, 512, at) != 512 || memcmp(in, out, 512))
			return -EIO;
	}
	return 0;
}

/* Deeper than the ring's 64 entries in one round. */
static void test_many(void)
{
	struct ubd_device *dev = probe_start(1, 64);
	struct probe_caller callers[64];
	int fd = temporary();

	for (unsigned i = 0; i < 64; i++)
		callers[i] = (struct probe_caller){
			.dev = dev, .rounds = 20, .fn = many_at_once, .arg = &fd};
	probe_together(callers, 64);
	probe_end(dev);
	close(fd);
}

static void flood(struct ubd_queue *q, void *arg)
{
	(void)q;
	++*(unsigned *)arg;
	ubd_sleep(q, 1000000);
	++*(unsigned *)arg;
}

static int try_flood(struct ubd_io *io, void *arg)
{
	/* More operations in one round than the ring has entries. */
	for (int i = 0; i < 1000; i++)
		CHECK(ubd_spawn(io->queue, flood, arg) == 0, "spawn %d", i);
	return 0;
}

static void test_flood(void)
{
	unsigned done = 0;

	on_queue(try_flood, &done);
	CHECK(done == 2000, "%u", done);
}

static const struct tap_case cases[] = {
	{"files: whole, short, durable, holes, errors", test_files},
	{"sockets: both directions at once, end of stream", test_sockets},
	{"a broken socket is an error and no signal", test_broken},
	{"connect", test_connect},
	{"poll and pipes", test_pipe},
	{"sleep takes its time", test_sleep},
	{"the queue ends after what it spawned", test_spawn},
	{"yield lets others run", test_yield},
	{"a blocking call does not stop the queue", test_offload},
	{"blocking calls from many requests and queues", test_offload_many},
	{"blocking calls that wait for one another have a thread each", test_offload_meeting},
	{"two calls at once and one helper idle", test_one_idle},
	{"64 requests at once", test_many},
	{"more operations than the ring has entries", test_flood},
};

TAP_MAIN(cases)
