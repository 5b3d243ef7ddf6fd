/* SPDX-License-Identifier: MIT */
/* nbd: an export of a network block device server as a disk. */
#include "../targets.h"
#include "conn.h"

#include <errno.h>
#include <stdlib.h>

#define MAX_CONNECTIONS 64
#define OPEN_MS 30000
#define MAX_PAYLOAD (32u << 20) /* where the server does not say */
#define SECTOR 512u

enum zero { ZERO_ON, ZERO_FAST, ZERO_OFF };

struct nbd {
	struct link_address address;
	uint64_t connections, timeout, stall;
	int zero;
	bool no_trim;
	struct conn_config config;
	uint64_t size;
	struct conn *conns;
	unsigned nr_conns;
	bool tls;
};

/* ---- What the server can, and the disk's limits ------------------------------------------- */

static int check_address(struct ubd_device *dev, struct nbd *n)
{
	const struct link_address *a = &n->address;
	int ways = !!a->uri + !!a->unix_path + !!a->host;

	return ways == 1 ? 0
			 : ubd_device_fail(
				   dev, -EINVAL,
				   "nbd: %s: give one of a URI (nbd://HOST/EXPORT), unix and host",
				   ways ? "one server only" : "which server?");
}

static uint32_t power_of_two(uint32_t n)
{
	return n && !(n & (n - 1)) ? n : 0;
}

/* Make the export's description into what we rely on from now on. */
static int settle_export(struct ubd_device *dev, struct nbd *n, struct link_export *e)
{
	const char *name = link_name(&n->address);

	e->min = e->min < SECTOR ? SECTOR : e->min;
	if (!e->max || e->max > MAX_PAYLOAD)
		e->max = MAX_PAYLOAD;
	if (!power_of_two(e->min) || e->max < e->min)
		return ubd_device_fail(dev, -EPROTO,
				       "nbd: %s wants blocks of %u to %u bytes, which is no disk",
				       name, e->min, e->max);
	if (e->size < e->min)
		return ubd_device_fail(dev, -EINVAL,
				       "nbd: the export of %s has %llu bytes, not one block of %u",
				       name, (unsigned long long)e->size, e->min);
	if (e->size % e->min)
		ubd_device_notice(dev,
				  "nbd: the last %llu bytes of %s are left out: blocks have %u",
				  (unsigned long long)(e->size % e->min), name, e->min);
	n->size = e->size & ~(uint64_t)(e->min - 1);
	if (ubd_device_read_only(dev))
		e->can |= LINK_READ_ONLY;
	if (n->no_trim)
		e->can &= ~LINK_TRIM;
	if (n->zero == ZERO_OFF)
		e->can &= ~LINK_ZERO;
	if (n->zero != ZERO_FAST)
		e->can &= ~LINK_FAST_ZERO;
	return 0;
}

static void set_limits(const struct nbd *n, struct ubd_limits *l)
{
	const struct link_export *e = &n->config.disk;

	l->size = n->size;
	l->logical_block = e->min;
	/* A preference above a page is no sector, but a good size. */
	l->physical_block = e->pref <= 4096 ? power_of_two(e->pref) : 4096;
	l->io_min = power_of_two(e->pref);
	l->max_io = e->max & ~4095u ? e->max & ~4095u : e->max;
	l->max_discard = e->can & LINK_TRIM ? UBD_NO_LIMIT : 0;
	l->max_write_zeroes = e->can & LINK_ZERO ? UBD_NO_LIMIT : 0;
	l->read_only = e->can & LINK_READ_ONLY;
	l->rotational = e->can & LINK_ROTATIONAL;
	l->volatile_cache = e->can & LINK_FLUSH;
	l->fua = l->volatile_cache && e->can & LINK_FUA;
	l->max_queues = n->nr_conns;
}

/* ---- Opening ------------------------------------------------------------------------------- */

static int first_connection(struct ubd_device *dev, struct nbd *n)
{
	static const bool never;
	struct link *l = &n->conns[0].link;
	char why[LINK_WHY];
	int ret = link_open(l, &n->address, &never, OPEN_MS, why);

	if (ret)
		return ubd_device_fail(dev, ret, "nbd: cannot connect to %s: %s",
				       link_name(&n->address), why);
	n->nr_conns = 1;
	n->tls = l->h;
	/* Whoever could cut the connection must not be able to talk us out of TLS so. */
	if (n->address.tls == LINK_TLS_ALLOW)
		n->address.tls = l->h ? LINK_TLS_REQUIRE : LINK_TLS_OFF;
	ret = settle_export(dev, n, &l->export);
	n->config.disk = l->export;
	return ret;
}

static void more_connections(struct ubd_device *dev, struct nbd *n, unsigned want)
{
	static const bool never;
	char why[LINK_WHY] = "it does not promise a consistent view of several (multi-conn)";

	while (n->nr_conns < want && n->config.disk.can & LINK_MULTI_CONN &&
	       !link_open(&n->conns[n->nr_conns].link, &n->address, &never, OPEN_MS, why))
		n->nr_conns++;
	if (n->nr_conns < want)
		ubd_device_notice(dev, "nbd: %u of %u connections to %s: %s", n->nr_conns, want,
				  link_name(&n->address), why);
	if (n->nr_conns < ubd_device_queues(dev))
		ubd_device_notice(dev, "nbd: %u queues instead of %u, each has a connection",
				  n->nr_conns, ubd_device_queues(dev));
}

static void nbd_close_target(struct ubd_device *dev, void *self)
{
	struct nbd *n = self;

	(void)dev;
	for (unsigned i = 0; i < n->nr_conns; i++)
		conn_free(&n->conns[i]);
	free(n->conns);
}

static int nbd_open(struct ubd_device *dev, void *self)
{
	struct nbd *n = self;
	unsigned want = n->connections ? (unsigned)n->connections : ubd_device_queues(dev);
	int ret = check_address(dev, n);

	if (ret)
		return ret;
	want = want < MAX_CONNECTIONS ? want : MAX_CONNECTIONS;
	n->conns = calloc(want, sizeof(*n->conns));
	if (!n->conns)
		return -ENOMEM;
	for (unsigned i = 0; i < want; i++)
		conn_init(&n->conns[i], &n->config, i);
	ret = first_connection(dev, n);
	if (ret) {
		nbd_close_target(dev, n);
		return ret;
	}
	more_connections(dev, n, want);
	n->config.dev = dev;
	n->config.address = n->address;
	n->config.size = &n->size;
	n->config.timeout_ms = n->timeout * 1000;
	n->config.stall_ms = n->stall * 1000;
	set_limits(n, ubd_device_limits(dev));
	return 0;
}

/* Connections and queues go round: each connection has a home, each queue a few connections. */
static int nbd_queue_open(struct ubd_queue *q, void *self)
{
	struct nbd *n = self;
	unsigned queues = ubd_device_queues(n->config.dev);
	int ret = 0;

	for (unsigned i = ubd_queue_index(q); i < n->nr_conns && !ret; i += queues)
		ret = conn_start(&n->conns[i], q);
	return ret;
}

static void nbd_queue_close(struct ubd_queue *q, void *self)
{
	struct nbd *n = self;
	unsigned queues = ubd_device_queues(n->config.dev);

	for (unsigned i = ubd_queue_index(q); i < n->nr_conns; i += queues)
		conn_stop(&n->conns[i]);
}

/* ---- Requests ------------------------------------------------------------------------------ */

/* One of the queue's own; a request of the same tag always has the same. */
static struct conn *choose(const struct nbd *n, const struct ubd_io *io)
{
	unsigned queues = ubd_device_queues(n->config.dev), index = ubd_queue_index(io->queue);
	unsigned mine = (n->nr_conns - index + queues - 1) / queues;

	return &n->conns[index + io->tag % mine * queues];
}

/* The request in NBD's words. -EOPNOTSUPP: there are none. */
static int translate(const struct nbd *n, const struct ubd_io *io, struct nbd_request *r)
{
	static const struct {
		uint16_t cmd;
		unsigned needs;
	} words[] = {
		[UBD_READ] = {NBD_CMD_READ},
		[UBD_WRITE] = {NBD_CMD_WRITE},
		[UBD_FLUSH] = {NBD_CMD_FLUSH, LINK_FLUSH},
		[UBD_DISCARD] = {NBD_CMD_TRIM, LINK_TRIM},
		[UBD_WRITE_ZEROES] = {NBD_CMD_WRITE_ZEROES, LINK_ZERO},
	};
	unsigned can = n->config.disk.can;
	bool writes = io->op != UBD_READ && io->op != UBD_FLUSH;

	if (io->op >= sizeof(words) / sizeof(*words) || (io->op && !words[io->op].cmd) ||
	    words[io->op].needs & ~can)
		return -EOPNOTSUPP;
	*r = (struct nbd_request){.cmd = words[io->op].cmd};
	/* A flush covers all that was acknowledged on any connection; it names no range. */
	if (io->op == UBD_FLUSH)
		return 0;
	r->offset = io->offset;
	r->length = io->length;
	if (writes && io->flags & UBD_IO_FUA && can & LINK_FUA)
		r->flags |= NBD_FLAG_FUA;
	if (io->op == UBD_WRITE_ZEROES)
		r->flags |= (io->flags & UBD_IO_NO_UNMAP ? NBD_FLAG_NO_HOLE : 0) |
			    (can & LINK_FAST_ZERO ? NBD_FLAG_FAST_ZERO : 0);
	return writes && can & LINK_READ_ONLY ? -EPERM : 0;
}

static int nbd_handle(struct ubd_io *io, void *self)
{
	struct nbd *n = self;
	struct req r = {.io = io};
	int ret = translate(n, io, &r.on);

	if (!ret && n->tls && r.on.cmd <= NBD_CMD_WRITE) {
		r.mem = ubd_io_data(io);
		ret = r.mem ? 0 : -ENOMEM;
	}
	if (!ret)
		ret = conn_request(choose(n, io), &r);
	return ret ? ret : (int)io->length;
}

#define OPTION(name, type, field, help, ...)                               \
	{                                                                  \
		name, type, offsetof(struct nbd, field), help, __VA_ARGS__ \
	}

static const struct ubd_option nbd_options[] = {
	OPTION("uri", UBD_STRING, address.uri,
	       "nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds:// for TLS",
	       .metavar = "URI", .positional = true),
	OPTION("unix", UBD_PATH, address.unix_path, "instead of a URI: the server's Unix socket",
	       .letter = 'u'),
	OPTION("host", UBD_STRING, address.host, "instead of a URI: the server's name or address"),
	OPTION("port", UBD_STRING, address.port, "its TCP port", .fallback = "10809"),
	OPTION("export", UBD_STRING, address.export_name, "the export's name", .letter = 'x'),
	OPTION("connections", UBD_UINT, connections,
	       "connections, if the server allows several; 0: one per queue", .fallback = "0",
	       .max = MAX_CONNECTIONS, .letter = 'C'),
	OPTION("timeout", UBD_UINT, timeout,
	       "seconds after which a request without a reply fails, reconnecting included; 0: "
	       "never",
	       .metavar = "SECONDS", .fallback = "120", .max = 86400, .letter = 't'),
	OPTION("stall", UBD_UINT, stall,
	       "seconds of silence while replies are due before connecting anew; 0: no limit",
	       .metavar = "SECONDS", .fallback = "30", .max = 86400),
	OPTION("zero", UBD_CHOICE, zero,
	       "write-zeroes requests: on; fast: the kernel writes where the server would; off",
	       .fallback = "on", .choices = "on|fast|off"),
	OPTION("no-trim", UBD_BOOL, no_trim, "pass no discards on"),
	OPTION("tls", UBD_CHOICE, address.tls, "TLS where the URI does not say", .fallback = "auto",
	       .choices = "auto|off|allow|require"),
	OPTION("tls-certificates", UBD_PATH, address.certificates,
	       "directory with ca-cert.pem and, where the server asks, client-cert.pem"),
	OPTION("tls-psk-file", UBD_PATH, address.psk_file, "file of pre-shared keys"),
	OPTION("tls-username", UBD_STRING, address.username, "whose key it is"),
	OPTION("tls-no-verify", UBD_BOOL, address.no_verify, "take any certificate of the server"),
	{0},
};

const struct ubd_target target_nbd = {
	.api = UBD_TARGET_API,
	.name = "nbd",
	.summary = "a network block device",
	.options = nbd_options,
	.size = sizeof(struct nbd),
	.open = nbd_open,
	.close = nbd_close_target,
	.handle = nbd_handle,
	.queue_open = nbd_queue_open,
	.queue_close = nbd_queue_close,
};
