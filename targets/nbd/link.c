/* SPDX-License-Identifier: MIT */
/*
 * libnbd does the talking up to the first request. It reads no byte past the end of the
 * negotiation, and the server sends none, so that a plain socket can then be taken from it. A
 * TLS session cannot: its keys and records are libnbd's, and it stays with it.
 */
#define _GNU_SOURCE
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define POLL_MS 50 /* how soon *stop is noticed */

const char *link_name(const struct link_address *a)
{
	return a->uri ? a->uri : a->unix_path ? a->unix_path : a->host;
}

const char *link_error(void)
{
	const char *text = nbd_get_error();
	const char *colon = text ? strstr(text, ": ") : NULL;

	/* libnbd says "function: cause"; the function is of no use to a user. */
	if (colon && !strncmp(text, "nbd_", 4))
		text = colon + 2;
	return text ? text : "the server closed it";
}

static int explain(char why[LINK_WHY], int fallback)
{
	int err = nbd_get_errno();

	snprintf(why, LINK_WHY, "%s", link_error());
	return -(err ? err : fallback);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static bool configure(struct nbd_handle *h, const struct link_address *a)
{
	static const int tls[] = {
		[LINK_TLS_OFF] = LIBNBD_TLS_DISABLE,
		[LINK_TLS_ALLOW] = LIBNBD_TLS_ALLOW,
		[LINK_TLS_REQUIRE] = LIBNBD_TLS_REQUIRE,
	};

	/* The user typed the URI, so files that it names are as good as other options. */
	return !nbd_set_uri_allow_local_file(h, true) &&
	       !nbd_set_request_structured_replies(h, false) && !nbd_set_strict_mode(h, 0) &&
	       !nbd_set_pread_initialize(h, false) &&
	       (!a->export_name || !nbd_set_export_name(h, a->export_name)) &&
	       (a->tls == LINK_TLS_AUTO || !nbd_set_tls(h, tls[a->tls])) &&
	       (!a->certificates || !nbd_set_tls_certificates(h, a->certificates)) &&
	       (!a->psk_file || !nbd_set_tls_psk_file(h, a->psk_file)) &&
	       (!a->username || !nbd_set_tls_username(h, a->username)) &&
	       (!a->no_verify || !nbd_set_tls_verify_peer(h, false));
}

static int begin(struct nbd_handle *h, const struct link_address *a)
{
	if (a->uri)
		return nbd_aio_connect_uri(h, a->uri);
	if (a->unix_path)
		return nbd_aio_connect_unix(h, a->unix_path);
	return nbd_aio_connect_tcp(h, a->host, a->port);
}

/* libnbd takes several steps; each may wait for the server. */
static int negotiate(struct nbd_handle *h, const bool *stop, unsigned ms, char why[LINK_WHY])
{
	uint64_t end = now_ms() + ms;

	while (!nbd_aio_is_ready(h)) {
		if (nbd_aio_is_dead(h) || nbd_aio_is_closed(h))
			return explain(why, ECONNRESET);
		if (nbd_poll(h, POLL_MS) < 0)
			return explain(why, ECONNRESET);
		if (__atomic_load_n(stop, __ATOMIC_RELAXED))
			return -ECANCELED;
		if (now_ms() >= end && !nbd_aio_is_ready(h)) {
			snprintf(why, LINK_WHY, "no end of the negotiation within %u ms", ms);
			return -ETIMEDOUT;
		}
	}
	return 0;
}

static uint32_t block_size(struct nbd_handle *h, int which)
{
	int64_t n = nbd_get_block_size(h, which);

	return n > 0 && n <= UINT32_MAX ? (uint32_t)n : 0;
}

static int describe(struct nbd_handle *h, struct link_export *e, char why[LINK_WHY])
{
	static const struct {
		int (*ask)(struct nbd_handle *h);
		unsigned bit;
	} abilities[] = {
		{nbd_is_read_only, LINK_READ_ONLY},
		{nbd_is_rotational, LINK_ROTATIONAL},
		{nbd_can_multi_conn, LINK_MULTI_CONN},
		{nbd_can_flush, LINK_FLUSH},
		{nbd_can_fua, LINK_FUA},
		{nbd_can_trim, LINK_TRIM},
		{nbd_can_zero, LINK_ZERO},
		{nbd_can_fast_zero, LINK_FAST_ZERO},
	};
	int64_t size = nbd_get_size(h);

	if (size < 0)
		return explain(why, EPROTO);
	*e = (struct link_export){
		.size = (uint64_t)size,
		.min = block_size(h, LIBNBD_SIZE_MINIMUM),
		.pref = block_size(h, LIBNBD_SIZE_PREFERRED),
		.max = block_size(h, LIBNBD_SIZE_MAXIMUM),
	};
	for (size_t i = 0; i < sizeof(abilities) / sizeof(*abilities); i++)
		e->can |= abilities[i].ask(h) == 1 ? abilities[i].bit : 0;
	return 0;
}

/* Take the socket away from libnbd. */
static int take_socket(struct link *l)
{
	int one = 1;

	l->fd = fcntl(nbd_aio_get_fd(l->h), F_DUPFD_CLOEXEC, 3);
	if (l->fd < 0)
		return -errno;
	nbd_close(l->h);
	l->h = NULL;
	/* io_uring itself waits on blocking sockets only; on others it gives up with EAGAIN. */
	if (fcntl(l->fd, F_SETFL, fcntl(l->fd, F_GETFL) & ~O_NONBLOCK) < 0)
		return -errno;
	/* A peer that vanished while the disk is idle is found out by the time it is needed. */
	setsockopt(l->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	return 0;
}

int link_open(struct link *l, const struct link_address *a, const bool *stop, unsigned ms,
	      char why[LINK_WHY])
{
	int ret;

	*l = (struct link){.fd = -1, .h = nbd_create()};
	why[0] = 0;
	if (!l->h || !configure(l->h, a) || begin(l->h, a) < 0)
		ret = explain(why, ENOMEM);
	else
		ret = negotiate(l->h, stop, ms, why);
	if (!ret)
		ret = describe(l->h, &l->export, why);
	if (!ret && nbd_get_tls_negotiated(l->h) != 1)
		ret = take_socket(l);
	if (!ret)
		return 0;
	if (!why[0])
		snprintf(why, LINK_WHY, "%s", strerror(-ret));
	link_close(l);
	return ret;
}

void link_close(struct link *l)
{
	nbd_close(l->h);
	l->h = NULL;
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
}

void link_cut(struct link *l, bool abort)
{
	static const struct sockaddr none = {.sa_family = AF_UNSPEC};
	int fd = l->h ? nbd_aio_get_fd(l->h) : l->fd;

	shutdown(fd, SHUT_RDWR);
	/* TCP would keep the pages of requests until a peer that is gone acknowledges them. */
	if (abort)
		connect(fd, &none, sizeof(none));
}
