/* SPDX-License-Identifier: MIT */
/*
 * The device, its connections to the server, their requests, and their coming back when lost.
 *
 *   nbd.c    options, limits, NBD's words        link.c   libnbd: connect and negotiate
 *   conn.c   requests, loss and reconnection     plain.c  transmission on our own socket
 *                                                tls.c    transmission through libnbd
 *
 * A connection belongs to one queue; all of it is touched on that queue's thread only.
 */
#ifndef UBD_NBD_CONN_H
#define UBD_NBD_CONN_H

#include <ubd/device.h>

#include "link.h"
#include "proto.h"

/* Requests and replies below this travel many at once through buffers, larger payloads alone. */
#define CONN_LARGE (32u << 10)
#define CONN_BUFFER (256u << 10)
#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* The device. Const once the queues run, but for the disk's size: atomic, set under resizing. */
struct nbd {
	/* The options. */
	struct link_address address;
	uint64_t connections, timeout, stall, linger; /* the last three in s; 0: none */
	int zero;
	bool no_trim;

	struct ubd_device *dev;
	struct link_export disk; /* what the first connection said, cut to what we rely on */
	struct ubd_mutex resizing;
	struct conn *conns;
	unsigned nr_conns;
};

/* A request's result while there is none. */
enum {
	REQ_LOST = 1, /* not sent, or the connection broke before the reply */
	REQ_DUE,      /* the reply is, or will be */
};

struct req {
	struct ubd_io *io;
	struct nbd_request on; /* the wire */
	int result;	       /* 0 or -errno, or REQ_* */
	uint64_t born;	       /* link_now() when it came */
	struct conn *conn;
	struct ubd_cond settled;
	struct req *next; /* to be sent */
};

struct conn {
	struct nbd *nbd;
	struct ubd_queue *q;
	struct link link;
	bool up, closing, over, ticking; /* over: the server says so. ticking: the clock, while
					    there are requests */
	uint64_t size;			 /* the export's, as it knows; bytes; atomic */

	struct req *due[UINT16_MAX + 1]; /* by tag, the low 16 bits of the cookie */
	unsigned requests;		 /* not answered, sent or not */
	uint64_t serial;	/* the rest of the cookie: a reply to an old request finds nobody */
	struct ubd_cond change; /* for those who wait until it is up: it is, or time has passed */

	uint64_t last_heard, down_since, pause; /* link_now(); ms before connecting again */

	struct req *first, *last; /* plain.c: to be sent */
	struct ubd_mutex turn;	  /* to send */
	unsigned senders;	  /* the one whose turn it is, and those who wait for theirs */
	uint32_t filled, in_pos, in_len; /* of out, and of in */
	bool large;			 /* the last reply's payload */
	/* Below CONN_BUFFER there is room for one more, and for a large one's head. */
	uint8_t out[CONN_BUFFER + 2 * CONN_LARGE], in[CONN_BUFFER];
};

/* Why the export, as it is now, cannot serve the disk; or NULL. */
const char *conn_misfit(const struct link_export *disk, const struct link_export *now);

/* Make a zeroed one with an open link work on q, its queue from now on. 0 or -errno. */
int conn_start(struct conn *c, struct nbd *n, struct ubd_queue *q);
/* End it; its coroutines end soon after. */
void conn_stop(struct conn *c);

/* Carry out a request and wait for its end. 0 or -errno. [awaits] */
int conn_request(struct conn *c, struct req *r);

/* ---- For plain.c and tls.c ------------------------------------------------------------------ */

/* The connection is of no more use, and why. */
void conn_break(struct conn *c, const char *why);
/* The request is about to be sent: it gets a cookie, and its reply is due. */
void conn_expect(struct conn *c, struct req *r);
/* The request is not due any more. */
void conn_settle(struct conn *c, struct req *r, int result);
/* Something was heard from the server. */
void conn_heard(struct conn *c);
/* Nobody else sends in between, and nobody closes the socket. [awaits] */
void conn_begin_turn(struct conn *c);
void conn_end_turn(struct conn *c);

/*
 * Transmission, by the session's kind. send: returns when the request is on its way, leaves it lost
 * if the connection broke before, or has settled it. receive: takes replies until the connection
 * breaks. Both await.
 */
void plain_send(struct conn *c, struct req *r);
void plain_receive(struct conn *c);
void tls_send(struct conn *c, struct req *r);
void tls_receive(struct conn *c);

#endif
