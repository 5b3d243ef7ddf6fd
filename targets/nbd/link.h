/* SPDX-License-Identifier: MIT */
/* From a URI to a connection ready for requests: libnbd connects and negotiates. */
#ifndef UBD_NBD_LINK_H
#define UBD_NBD_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nbd_handle;

/* From OFF on they are libnbd's plus one. */
enum link_tls { LINK_TLS_AUTO, LINK_TLS_OFF, LINK_TLS_ALLOW, LINK_TLS_REQUIRE };

/* What the user said about the server. */
struct link_address {
	const char *name;		    /* as a person would know it */
	const char *uri, *unix_path, *host; /* one of them */
	const char *port, *export_name;	    /* NULL: the URI's */
	int tls;			    /* enum link_tls */
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
/* What a disk relies on. */
#define LINK_PROMISES (~(LINK_READ_ONLY | LINK_ROTATIONAL))

/* What the server says about the export. */
struct link_export {
	uint64_t size;		 /* bytes */
	uint32_t min, pref, max; /* block sizes, bytes; 0: not told */
	unsigned can;		 /* LINK_* */
};

struct link {
	struct nbd_handle *h;
	bool tls; /* the session is libnbd's, and fd only to wait and to end it */
	int fd;	  /* otherwise: the socket, ours alone and blocking */
	struct link_export export;
	char why[256]; /* why it could not be opened */
};

/*
 * Connect and negotiate within fifteen seconds, or until *stop is true. 0, or -errno with the cause
 * in l->why. Blocks; any thread.
 */
int link_open(struct link *l, const struct link_address *a, const bool *stop);
/* Also right for one that is not open, or zeroed. */
void link_close(struct link *l);
/* Both directions end at once, whoever waits for them. abort: what was not sent is dropped;
 * otherwise the server is told that this is the end. */
void link_cut(struct link *l, bool abort);
/* How long no byte came, ms, where the kernel knows (TCP); UINT64_MAX where it does not. */
uint64_t link_silence(const struct link *l);
/* Why the last call of libnbd failed on this thread. */
const char *link_error(void);
/* A clock, ms, good to some milliseconds and cheap. */
uint64_t link_now(void);

#endif
