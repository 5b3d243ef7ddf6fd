/* SPDX-License-Identifier: MIT */
/* From a URI to a connection ready for requests: libnbd connects and negotiates. */
#ifndef UBD_NBD_LINK_H
#define UBD_NBD_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nbd_handle;

enum link_tls { LINK_TLS_AUTO, LINK_TLS_OFF, LINK_TLS_ALLOW, LINK_TLS_REQUIRE };

/* What the user said about the server. */
struct link_address {
	const char *uri; /* or one of the next two */
	const char *unix_path;
	const char *host;
	const char *port;
	const char *export_name; /* NULL: the URI's */
	int tls;		 /* enum link_tls */
	const char *certificates, *psk_file, *username;
	bool no_verify; /* take any server certificate */
};

#define LINK_READ_ONLY (1u << 0)
#define LINK_ROTATIONAL (1u << 1)
#define LINK_MULTI_CONN (1u << 2)
#define LINK_FLUSH (1u << 3)
#define LINK_FUA (1u << 4)
#define LINK_TRIM (1u << 5)
#define LINK_ZERO (1u << 6)
#define LINK_FAST_ZERO (1u << 7)
#define LINK_PROMISES (LINK_FLUSH | LINK_FUA | LINK_TRIM | LINK_ZERO | LINK_FAST_ZERO)

/* What the server says about the export. */
struct link_export {
	uint64_t size;		 /* bytes */
	uint32_t min, pref, max; /* block sizes, bytes; 0: not told */
	unsigned can;		 /* LINK_* */
};

struct link {
	int fd;		      /* plain: blocking, ours alone; -1: there is none */
	struct nbd_handle *h; /* TLS: libnbd's; NULL otherwise */
	struct link_export export;
};

#define LINK_WHY 256

/*
 * Connect and negotiate within ms milliseconds, or until *stop is true. 0, or -errno with the
 * cause in why. Blocks; any thread.
 */
int link_open(struct link *l, const struct link_address *a, const bool *stop, unsigned ms,
	      char why[LINK_WHY]);
void link_close(struct link *l);
/* Both directions end at once, whoever waits for them; abort: what was not sent is dropped. */
void link_cut(struct link *l, bool abort);
/* Why the last call of libnbd failed on this thread. */
const char *link_error(void);
/* The address as a person would know it. */
const char *link_name(const struct link_address *a);

#endif
