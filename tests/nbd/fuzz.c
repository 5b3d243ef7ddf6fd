/* SPDX-License-Identifier: MIT */
/*
 * The whole client against a server that makes up its replies: right ones, cut, repeated, mutated
 * and invented, in pieces of any size. It never lies about the data of a reply that is otherwise
 * right, so that whatever a read returns can be checked, and what is written as well.
 *
 *   fuzz SECONDS [SEED]
 *
 * The negotiation is left out: link_open() below takes link.c's place.
 */
#include "../lib/random.h"
#include "conn.h"

#include <ubd/local.h>
#include <ubd/ubd.h>

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define SIZE (4u << 20)
#define MOST (128u << 10)
#define CONNECTIONS "12"
#define CLIENTS 24
#define KEPT 64

static uint64_t seed;
static _Atomic uint64_t opened, lies, checked, failed;
static bool enough; /* atomic */

/* Every byte of the disk is known for ever. */
static void pattern(uint8_t *p, uint64_t offset, uint32_t length)
{
	for (uint32_t i = 0; i < length; i++)
		p[i] = (uint8_t)((offset + i) * 167 >> 3 ^ (offset + i) >> 11);
}

static void die(const char *what, uint64_t offset)
{
	printf("not ok 1 - %s at %llu, seed %llu\n", what, (unsigned long long)offset,
	       (unsigned long long)seed);
	fflush(stdout);
	abort();
}

/* ---- The server ---------------------------------------------------------------------------- */

struct request {
	uint64_t cookie, offset;
	uint32_t length;
	uint16_t cmd;
};

struct server {
	int fd;
	uint64_t random;
	unsigned honesty; /* percent */
	struct request kept[KEPT];
	unsigned nr_kept;
	uint8_t buf[NBD_REPLY_SIZE + MOST + 65536];
};

static bool get(struct server *s, void *buf, size_t len)
{
	return recv(s->fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

/* In pieces. */
static bool put(struct server *s, const uint8_t *p, size_t len)
{
	while (len) {
		size_t piece = random_below(&s->random, 4)
				       ? len
				       : 1 + random_below(&s->random, (uint32_t)len);

		if (send(s->fd, p, piece, MSG_NOSIGNAL) != (ssize_t)piece)
			return false;
		p += piece;
		len -= piece;
	}
	return true;
}

static bool take_request(struct server *s)
{
	struct request *r = &s->kept[s->nr_kept];
	uint8_t h[NBD_REQUEST_SIZE];
	uint32_t magic;

	if (!get(s, h, sizeof(h)))
		return false;
	memcpy(&magic, h, 4);
	memcpy(&r->cmd, h + 6, 2);
	memcpy(&r->cookie, h + 8, 8);
	memcpy(&r->offset, h + 16, 8);
	memcpy(&r->length, h + 24, 4);
	r->cmd = be16toh(r->cmd);
	r->cookie = be64toh(r->cookie);
	r->offset = be64toh(r->offset);
	r->length = be32toh(r->length);
	if (be32toh(magic) != NBD_REQUEST_MAGIC || r->length > MOST)
		die("the client sent no request", r->offset);
	if (r->cmd == 2 /* DISC */)
		return false;
	if (r->cmd == NBD_CMD_WRITE) {
		uint8_t *want = s->buf + MOST;

		if (!get(s, s->buf, r->length))
			return false;
		for (uint32_t at = 0; at < r->length; at += 4096) {
			pattern(want, r->offset + at, 4096);
			if (memcmp(s->buf + at, want, 4096))
				die("the client wrote wrong data", r->offset + at);
		}
	}
	s->nr_kept++;
	return true;
}

static size_t build(struct server *s, const struct request *r)
{
	uint32_t magic = htobe32(NBD_REPLY_MAGIC), error = 0;
	uint64_t cookie = htobe64(r->cookie);

	memcpy(s->buf, &magic, 4);
	memcpy(s->buf + 4, &error, 4);
	memcpy(s->buf + 8, &cookie, 8);
	if (r->cmd != NBD_CMD_READ)
		return NBD_REPLY_SIZE;
	pattern(s->buf + NBD_REPLY_SIZE, r->offset, r->length);
	return NBD_REPLY_SIZE + r->length;
}

/* Something that is no right reply. Whether the connection goes on. */
static bool lie(struct server *s, size_t len)
{
	uint64_t *x = &s->random;
	uint32_t n;

	lies++;
	switch (random_below(x, 9)) {
	case 0: /* cut, and closed */
		put(s, s->buf, random_below(x, (uint32_t)len));
		return false;
	case 1: /* cut, and silent until the client has had enough */
		put(s, s->buf, random_below(x, (uint32_t)len));
		poll(&(struct pollfd){.fd = s->fd, .events = POLLRDHUP}, 1, 3000);
		return false;
	case 2: /* a bit of magic or error */
		n = random_below(x, 64);
		s->buf[n / 8] ^= (uint8_t)(1u << n % 8);
		return put(s, s->buf, n < 32 ? len : NBD_REPLY_SIZE);
	case 3: /* a bit of the cookie that makes it nobody's */
		n = random_below(x, 48);
		s->buf[8 + n / 8] ^= (uint8_t)(1u << n % 8);
		return put(s, s->buf, len);
	case 4: /* twice */
		return put(s, s->buf, len) && put(s, s->buf, len);
	case 5: /* too long */
		n = 1 + random_below(x, 65000);
		for (uint32_t i = 0; i < n; i++)
			s->buf[len + i] = (uint8_t)random_below(x, 256);
		return put(s, s->buf, len + n);
	case 6: /* noise */
		n = 1 + random_below(x, 3000);
		for (uint32_t i = 0; i < n; i++)
			s->buf[i] = (uint8_t)random_below(x, 256);
		return put(s, s->buf, n);
	case 7: /* shutting down */
		s->buf[7] = NBD_ESHUTDOWN;
		return put(s, s->buf, NBD_REPLY_SIZE);
	default: /* an error with the payload that should not come with it */
		s->buf[7] = 5;
		return put(s, s->buf, len);
	}
}

static void *serve(void *arg)
{
	struct server *s = arg;
	bool more = true;

	while (more) {
		bool ready = poll(&(struct pollfd){.fd = s->fd, .events = POLLIN}, 1,
				  s->nr_kept ? 0 : -1) > 0;
		unsigned i;
		size_t len;

		/* Collect some, answer some, in any order. */
		if (!s->nr_kept || (ready && s->nr_kept < KEPT && random_below(&s->random, 3))) {
			more = take_request(s);
			continue;
		}
		i = random_below(&s->random, s->nr_kept);
		len = build(s, &s->kept[i]);
		s->kept[i] = s->kept[--s->nr_kept];
		more = random_below(&s->random, 100) < s->honesty ? put(s, s->buf, len)
								  : lie(s, len);
	}
	close(s->fd);
	free(s);
	return NULL;
}

int link_open(struct link *l, const struct link_address *a, const bool *stop)
{
	uint64_t n = ++opened;
	struct server *s = calloc(1, sizeof(*s));
	pthread_t id;
	int fds[2];

	(void)a;
	(void)stop;
	*l = (struct link){.fd = -1};
	if (!s || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
		return -ENOMEM;
	s->fd = fds[1];
	s->random = random_mix(seed + n);
	s->honesty = 80 + random_below(&s->random, 20);
	if (pthread_create(&id, NULL, serve, s))
		return -EAGAIN;
	pthread_detach(id);
	l->fd = fds[0];
	l->export = (struct link_export){
		.size = SIZE, .can = LINK_FLUSH | LINK_FUA | LINK_TRIM | LINK_MULTI_CONN};
	return 0;
}

void link_close(struct link *l)
{
	/* Zeroed: never opened. */
	if (l->fd > 0)
		close(l->fd);
	l->fd = -1;
}

void link_cut(struct link *l, bool abort)
{
	(void)abort;
	shutdown(l->fd, SHUT_RDWR);
}

uint64_t link_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

uint64_t link_silence(const struct link *l)
{
	(void)l;
	return UINT64_MAX;
}

const char *link_error(void)
{
	return "";
}

/* ---- The clients --------------------------------------------------------------------------- */

static struct ubd_device *dev;

static void *client(void *arg)
{
	uint64_t random = random_mix(seed ^ (uint64_t)(uintptr_t)arg);
	uint8_t *room = aligned_alloc(4096, MOST + 8192), *want = malloc(MOST);

	while (!__atomic_load_n(&enough, __ATOMIC_RELAXED)) {
		uint32_t kind = random_below(&random, 10),
			 blocks = random_below(&random, 3) ? 1 : MOST / 4096;
		uint32_t length = 4096 * (1 + random_below(&random, blocks));
		uint64_t offset = 4096ull * random_below(&random, (SIZE - length) / 4096 + 1);
		enum ubd_op op = kind < 6 ? UBD_READ : kind < 9 ? UBD_WRITE : UBD_FLUSH;
		uint8_t *buf = room + 4096;
		int ret;

		memset(room, 0x5a, MOST + 8192);
		pattern(want, offset, length);
		if (op == UBD_WRITE)
			memcpy(buf, want, length);
		ret = ubd_local_io(dev, random_below(&random, 2), op, 0,
				   op == UBD_FLUSH ? 0 : offset, op == UBD_FLUSH ? NULL : buf,
				   op == UBD_FLUSH ? 0 : length);
		for (uint32_t i = 0; i < 4096; i++)
			if (room[i] != 0x5a || buf[length + i] != 0x5a)
				die("bytes outside the request were written", offset);
		if (op == UBD_READ && ret >= 0 && (ret != (int)length || memcmp(buf, want, length)))
			die("wrong data was read", offset);
		if (ret < 0)
			failed++;
		else
			checked++;
	}
	free(room);
	free(want);
	return NULL;
}

static void quiet(void *arg, const char *line)
{
	(void)arg;
	(void)line;
}

int main(int argc, char **argv)
{
	struct ubd_device_config config = {.queues = 2, .depth = 32, .notice = quiet};
	int seconds = argc > 1 ? atoi(argv[1]) : 10;
	pthread_t ids[CLIENTS];
	const char *why;

	seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL);
	printf("# seed %llu\n", (unsigned long long)seed);
	dev = ubd_device_new(ubd_target_find("nbd", &why), &config);
	if (ubd_device_set_option(dev, "host", "fuzz") ||
	    ubd_device_set_option(dev, "connections", CONNECTIONS) ||
	    ubd_device_set_option(dev, "stall", "1") || ubd_device_set_option(dev, "linger", "0") ||
	    ubd_device_set_option(dev, "timeout", "10") || ubd_local_start(dev)) {
		printf("not ok 1 - %s\n", ubd_device_error(dev));
		return 1;
	}
	/* Between DISCARD and WRITE_ZEROES: in NBD there is another command. */
	if (ubd_local_io(dev, 0, (enum ubd_op)(UBD_DISCARD + 1), 0, 0, NULL, 4096) != -EOPNOTSUPP)
		die("an unknown operation was sent", 0);
	for (uintptr_t i = 0; i < CLIENTS; i++)
		pthread_create(&ids[i], NULL, client, (void *)i);
	sleep((unsigned)seconds);
	__atomic_store_n(&enough, true, __ATOMIC_RELAXED);
	for (int i = 0; i < CLIENTS; i++)
		pthread_join(ids[i], NULL);
	ubd_device_stop(dev);
	ubd_device_wait(dev);
	ubd_device_free(dev);
	printf("# %d s: %llu connections, %llu wrong replies, %llu requests right, %llu failed\n",
	       seconds, (unsigned long long)opened, (unsigned long long)lies,
	       (unsigned long long)checked, (unsigned long long)failed);
	printf("%sok 1 - made-up replies do no harm\n1..1\n", checked ? "" : "not ");
	return !checked;
}
