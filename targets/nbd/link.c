/* SPDX-License-Identifier: MIT */
/*
 * libnbd does the talking up to the first request. It reads no byte past the end of the
 * negotiation, and the server sends none, so that a plain socket can then be used without it. A
 * TLS session cannot: its keys and records are libnbd's.
 */
#define _GNU_SOURCE
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECT_MS 15000
#define POLL_MS 50 /* how soon *stop is noticed */

uint64_t link_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
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

/* What libnbd says of its last failure. */
static int explain(struct link *l, int fallback)
{
	snprintf(l->why, sizeof(l->why), "%s", link_error());
	return -(nbd_get_errno() ?: fallback);
}

static bool configure(struct nbd_handle *h, const struct link_address *a)
{
	/* The user typed the URI, so files that it names are as good as other options. */
	return !nbd_set_uri_allow_local_file(h, true) &&
	       !nbd_set_request_structured_replies(h, false) && !nbd_set_strict_mode(h, 0) &&
	       !nbd_set_pread_initialize(h, false) &&
	       (!a->export_name || !nbd_set_export_name(h, a->export_name)) &&
	       (a->tls == LINK_TLS_AUTO || !nbd_set_tls(h, a->tls - LINK_TLS_OFF)) &&
	       (!a->certificates || !nbd_set_tls_certificates(h, a->certificates)) &&
	       (!a->psk_file || !nbd_set_tls_psk_file(h, a->psk_file)) &&
	       (!a->username || !nbd_set_tls_username(h, a->username)) &&
	       (!a->no_verify || !nbd_set_tls_verify_peer(h, false));
}

static int begin(struct nbd_handle *h, const struct link_address *a)
{
	return a->uri	      ? nbd_aio_connect_uri(h, a->uri)
	       : a->unix_path ? nbd_aio_connect_unix(h, a->unix_path)
			      : nbd_aio_connect_tcp(h, a->host, a->port ?: "10809");
}

/* libnbd takes several steps; each may wait for the server. */
static int negotiate(struct link *l, const struct link_address *a, const bool *stop)
{
	uint64_t end = link_now() + CONNECT_MS;

	if (!l->h || !configure(l->h, a) || begin(l->h, a) < 0)
		return explain(l, ENOMEM);
	while (!nbd_aio_is_ready(l->h)) {
		if (__atomic_load_n(stop, __ATOMIC_RELAXED))
			return -ECANCELED;
		if (link_now() >= end) {
			snprintf(l->why, sizeof(l->why), "the negotiation does not end");
			return -ETIMEDOUT;
		}
		if (nbd_aio_is_dead(l->h) || nbd_aio_is_closed(l->h) || nbd_poll(l->h, POLL_MS) < 0)
			return explain(l, ECONNRESET);
	}
	return 0;
}

static uint32_t block_size(struct nbd_handle *h, int which)
{
	int64_t n = nbd_get_block_size(h, which);

	return n > 0 && n <= UINT32_MAX ? (uint32_t)n : 0;
}

static int describe(struct link *l)
{
	/* By the bits of LINK_*. */
	static int (*const can[])(struct nbd_handle *) = {
		nbd_is_read_only, nbd_is_rotational, nbd_can_multi_conn, nbd_can_flush,
		nbd_can_fua,	  nbd_can_trim,	     nbd_can_zero,	 nbd_can_fast_zero,
	};
	struct nbd_handle *h = l->h;
	int64_t size = nbd_get_size(h);

	if (size < 0)
		return explain(l, EPROTO);
	l->tls = nbd_get_tls_negotiated(h) == 1;
	/* libnbd closes its own when it gives up, whoever waits for it. */
	l->fd = l->tls ? fcntl(nbd_aio_get_fd(h), F_DUPFD_CLOEXEC, 0) : nbd_aio_get_fd(h);
	if (l->fd < 0)
		return explain(l, errno);
	l->export = (struct link_export){
		.size = (uint64_t)size,
		.min = block_size(h, LIBNBD_SIZE_MINIMUM),
		.pref = block_size(h, LIBNBD_SIZE_PREFERRED),
		.max = block_size(h, LIBNBD_SIZE_MAXIMUM),
	};
	for (size_t i = 0; i < sizeof(can) / sizeof(*can); i++)
		l->export.can |= (unsigned)(can[i](h) == 1) << i;
	return 0;
}

int link_open(struct link *l, const struct link_address *a, const bool *stop)
{
	const int one = 1;
	int ret;

	*l = (struct link){.h = nbd_create()};
	ret = negotiate(l, a, stop) ?: describe(l);
	if (ret) {
		link_close(l);
		return ret;
	}
	/* A peer that vanished while the disk is idle is found out by the time it is needed. */
	setsockopt(l->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	/* io_uring itself waits on blocking sockets only; on others it gives up with EAGAIN. */
	if (!l->tls)
		fcntl(l->fd, F_SETFL, fcntl(l->fd, F_GETFL) & ~O_NONBLOCK);
	return 0;
}

void link_close(struct link *l)
{
	if (l->tls)
		close(l->fd);
	nbd_close(l->h);
	l->h = NULL;
	l->tls = false;
}

uint64_t link_silence(const struct link *l)
{
	struct tcp_info info;
	socklen_t len = sizeof(info);

	return getsockopt(l->fd, IPPROTO_TCP, TCP_INFO, &info, &len) ? UINT64_MAX
								     : info.tcpi_last_data_recv;
}

void link_cut(struct link *l, bool abort)
{
	static const struct sockaddr none = {.sa_family = AF_UNSPEC};

	if (!abort)
		nbd_aio_disconnect(l->h, 0);
	shutdown(l->fd, SHUT_RDWR);
	/* TCP would keep the pages of requests until a peer that is gone acknowledges them. */
	if (abort)
		connect(l->fd, &none, sizeof(none));
}
