/* SPDX-License-Identifier: MIT */
/* nbd: an export of a network block device server as a disk. */
#define _GNU_SOURCE
#include "../targets.h"
#include "conn.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

#define MAX_CONNECTIONS 64
#define MAX_PAYLOAD (32u << 20) /* where the server does not say */
#define SECTOR 512u

enum zero { ZERO_ON, ZERO_FAST, ZERO_OFF };

/* ---- What the server can, and the disk's limits ------------------------------------------- */

static uint32_t power_of_two(uint32_t n)
{
	return n && !(n & (n - 1)) ? n : 0;
}

/* Make what the first connection says into what we rely on from now on. */
static int settle(struct ubd_device *dev, struct nbd *n, const struct link *l)
{
	struct ubd_limits *limits = ubd_device_limits(dev);
	struct link_export *e = &n->disk;
	const char *name = n->address.name;

	*e = l->export;
	/* Whoever could cut the connection must not be able to talk us out of TLS so. */
	if (n->address.tls == LINK_TLS_ALLOW)
		n->address.tls = l->tls ? LINK_TLS_REQUIRE : LINK_TLS_OFF;
	e->min = e->min < SECTOR ? SECTOR : e->min;
	e->max = e->max ? MIN(e->max, MAX_PAYLOAD) : MAX_PAYLOAD;
	if (!power_of_two(e->min) || e->max < e->min)
		return ubd_device_fail(dev, -EPROTO,
				       "nbd: %s wants blocks of %u to %u bytes, which is no disk",
				       name, e->min, e->max);
	if (e->size < e->min)
		return ubd_device_fail(dev, -EINVAL,
				       "nbd: the export of %s has %" PRIu64
				       " bytes, not one block of %u",
				       name, e->size, e->min);
	if (e->size % e->min)
		ubd_device_notice(dev, "nbd: the last %u bytes of %s are left out: blocks have %u",
				  (unsigned)(e->size % e->min), name, e->min);
	e->can |= ubd_device_read_only(dev) ? LINK_READ_ONLY : 0;
	e->can &= ~((n->no_trim ? LINK_TRIM : 0) | (n->zero == ZERO_OFF ? LINK_ZERO : 0) |
		    (n->zero != ZERO_FAST ? LINK_FAST_ZERO : 0));
	limits->size = e->size &= ~(uint64_t)(e->min - 1);
	limits->logical_block = e->min;
	/* A preference above a page is no sector, but a good size. */
	limits->physical_block = e->pref <= 4096 ? power_of_two(e->pref) : 4096;
	limits->io_min = power_of_two(e->pref);
	limits->max_io = e->max & ~4095u ? e->max & ~4095u : e->max;
	limits->max_discard = e->can & LINK_TRIM ? UBD_NO_LIMIT : 0;
	limits->max_write_zeroes = e->can & LINK_ZERO ? UBD_NO_LIMIT : 0;
	limits->read_only = e->can & LINK_READ_ONLY;
	limits->rotational = e->can & LINK_ROTATIONAL;
	limits->volatile_cache = e->can & LINK_FLUSH;
	limits->fua = limits->volatile_cache && e->can & LINK_FUA;
	return 0;
}

/* ---- Opening and closing ------------------------------------------------------------------- */

/* One connection, and as many more as are wanted and allowed. */
static int open_links(struct ubd_device *dev, struct nbd *n, unsigned want)
{
	const char *why;
	int ret;

	do {
		struct conn *c = &n->conns[n->nr_conns];

		ret = link_open(&c->link, &n->address, &c->closing);
		c->size = c->link.export.size;
		if (!ret && !n->nr_conns++ && settle(dev, n, &c->link))
			return -EPROTO;
		why = ret ? c->link.why : conn_misfit(&n->disk, &c->link.export);
		if (why && !ret)
			link_close(&n->conns[--n->nr_conns].link);
	} while (!why && n->nr_conns < want && n->disk.can & LINK_MULTI_CONN);
	if (!n->nr_conns)
		return ubd_device_fail(dev, ret, "nbd: cannot connect to %s: %s", n->address.name,
				       why);
	if (n->nr_conns < want)
		ubd_device_notice(dev, "nbd: %u of %u connections to %s: %s", n->nr_conns, want,
				  n->address.name, why ?: "the server does not promise multi-conn");
	/* A single one need not be shared when it comes back. */
	if (n->nr_conns == 1)
		n->disk.can &= ~LINK_MULTI_CONN;
	return 0;
}

static void nbd_close_target(struct ubd_device *dev, void *self)
{
	struct nbd *n = self;

	(void)dev;
	for (unsigned i = 0; i < n->nr_conns; i++)
		link_close(&n->conns[i].link);
	free(n->conns);
}

static const char *nonsense(const struct link_address *a)
{
	bool keys = a->certificates || a->psk_file || a->username || a->no_verify;
	bool secret = a->tls > LINK_TLS_OFF || (!a->tls && a->uri && !strncmp(a->uri, "nbds", 4));

	if (!!a->uri + !!a->unix_path + !!a->host != 1)
		return "which server? Give one of a URI (nbd://HOST/EXPORT), unix and host";
	if (a->uri && a->export_name)
		return "the URI names the export (nbd://HOST/EXPORT): leave out export";
	if (a->port && !a->host)
		return "port is for host only";
	return keys && !secret ? "without TLS keys are of no use: add tls=require" : NULL;
}

static int nbd_open(struct ubd_device *dev, void *self)
{
	struct nbd *n = self;
	struct link_address *a = &n->address;
	unsigned want = n->connections ? (unsigned)n->connections : ubd_device_queues(dev);
	const char *why = nonsense(a);
	int ret;

	if (why)
		return ubd_device_fail(dev, -EINVAL, "nbd: %s", why);
	a->name = a->uri ? a->uri : a->unix_path ? a->unix_path : a->host;
	n->dev = dev;
	want = want < MAX_CONNECTIONS ? want : MAX_CONNECTIONS;
	n->conns = calloc(want, sizeof(*n->conns));
	if (!n->conns)
		return -ENOMEM;
	/* Memory reclaim may depend on this disk. */
	mlock2(n->conns, want * sizeof(*n->conns), MLOCK_ONFAULT);
	ret = open_links(dev, n, want);
	if (ret)
		nbd_close_target(dev, n);
	ubd_device_limits(dev)->max_queues = n->nr_conns;
	return ret;
}

/* Connections and queues go round: each connection has a home, each queue a few connections. */
static int nbd_queue_open(struct ubd_queue *q, void *self)
{
	struct nbd *n = self;
	int ret = 0;

	/* The dead server's connections are lost as well. */
	if (ubd_device_takes_over(n->dev))
		ubd_sleep(q, n->linger * 1000000000);
	for (unsigned i = ubd_queue_index(q); i < n->nr_conns && !ret;
	     i += ubd_device_queues(n->dev))
		ret = conn_start(&n->conns[i], n, q);
	return ret;
}

static void nbd_queue_close(struct ubd_queue *q, void *self)
{
	struct nbd *n = self;

	for (unsigned i = ubd_queue_index(q); i < n->nr_conns; i += ubd_device_queues(n->dev))
		conn_stop(&n->conns[i]);
}

/* ---- Requests ------------------------------------------------------------------------------ */

/* One of the queue's own; a request of the same tag always has the same. */
static struct conn *choose(const struct nbd *n, const struct ubd_io *io)
{
	unsigned queues = ubd_device_queues(n->dev), index = ubd_queue_index(io->queue);
	unsigned mine = (n->nr_conns - index + queues - 1) / queues;

	return &n->conns[index + io->tag % mine * queues];
}

/* The request in NBD's words. -EOPNOTSUPP: there are none. */
static int translate(const struct nbd *n, const struct ubd_io *io, struct nbd_request *r)
{
	unsigned can = n->disk.can;

	/* NBD counts like us, but for the disconnection, which comes third, and our fourth, which
	 * is nothing. */
	if (io->op > UBD_WRITE_ZEROES || io->op == UBD_DISCARD + 1)
		return -EOPNOTSUPP;
	r->cmd = (uint16_t)(io->op + (io->op > UBD_WRITE));
	/* A flush covers all that was acknowledged on any connection; it names no range. */
	if (io->op == UBD_FLUSH)
		return 0;
	r->offset = io->offset;
	r->length = io->length;
	/* Without a flush there is no other way to the server's disk. */
	if (io->op && can & LINK_FUA && (io->flags & UBD_IO_FUA || !(can & LINK_FLUSH)))
		r->flags |= NBD_FLAG_FUA;
	if (io->op == UBD_WRITE_ZEROES)
		r->flags |= (io->flags & UBD_IO_NO_UNMAP ? NBD_FLAG_NO_HOLE : 0) |
			    (can & LINK_FAST_ZERO ? NBD_FLAG_FAST_ZERO : 0);
	return io->op != UBD_READ && can & LINK_READ_ONLY ? -EPERM : 0;
}

static int nbd_handle(struct ubd_io *io, void *self)
{
	struct nbd *n = self;
	struct req r = {.io = io};

	return translate(n, io, &r.on) ?: conn_request(choose(n, io), &r) ?: (int)io->length;
}

/* clang-format off */
#define AT(member) offsetof(struct nbd, member)
static const struct ubd_option nbd_options[] = {
	{"uri", UBD_STRING, AT(address.uri), "nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds:// for TLS", .metavar = "URI", .positional = true},
	{"unix", UBD_PATH, AT(address.unix_path), "instead of a URI: the server's Unix socket", .letter = 'u'},
	{"host", UBD_STRING, AT(address.host), "instead of a URI: the server's name or address"},
	{"port", UBD_STRING, AT(address.port), "its TCP port; 10809 unless given"},
	{"export", UBD_STRING, AT(address.export_name), "without a URI: the export's name", .letter = 'x'},
	{"connections", UBD_UINT, AT(connections), "connections, if the server allows several; 0: one per queue", .fallback = "0", .max = MAX_CONNECTIONS, .letter = 'C'},
	{"timeout", UBD_UINT, AT(timeout), "seconds after which a request without a reply fails; 0: never", .metavar = "SECONDS", .fallback = "120", .max = 86400, .letter = 't'},
	{"stall", UBD_UINT, AT(stall), "seconds of silence while replies are due before connecting anew; 0: no limit", .metavar = "SECONDS", .fallback = "30", .max = 86400},
	{"linger", UBD_UINT, AT(linger), "seconds that the server may go on with what a lost connection brought it", .metavar = "SECONDS", .fallback = "1", .max = 3600},
	{"zero", UBD_CHOICE, AT(zero), "write-zeroes requests: on; fast: the kernel writes where the server would; off", .fallback = "on", .choices = "on|fast|off"},
	{"no-trim", UBD_BOOL, AT(no_trim), "pass no discards on"},
	{"tls", UBD_CHOICE, AT(address.tls), "TLS where the URI does not say", .fallback = "auto", .choices = "auto|off|allow|require"},
	{"tls-certificates", UBD_PATH, AT(address.certificates), "directory with ca-cert.pem and, where the server asks, client-cert.pem"},
	{"tls-psk-file", UBD_PATH, AT(address.psk_file), "file of pre-shared keys"},
	{"tls-username", UBD_STRING, AT(address.username), "whose key it is"},
	{"tls-no-verify", UBD_BOOL, AT(address.no_verify), "take any certificate of the server"},
	{0},
};

const struct ubd_target target_nbd = {
	.api = UBD_TARGET_API, .name = "nbd", .summary = "a network block device",
	.options = nbd_options, .size = sizeof(struct nbd), .open = nbd_open, .close = nbd_close_target,
	.handle = nbd_handle, .queue_open = nbd_queue_open, .queue_close = nbd_queue_close,
};
