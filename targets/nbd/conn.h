/* SPDX-License-Identifier: MIT */
/*
 * A connection to the server, its requests, and its coming back when it was lost.
 *
 *   link.c   libnbd: connect and negotiate       conn.c   requests, loss and reconnection
 *   plain.c  transmission on our own socket      tls.c    transmission through libnbd
 *
 * A connection belongs to one queue; all of it is touched on that queue's thread only.
 */
#ifndef UBD_NBD_CONN_H
#define UBD_NBD_CONN_H

#include <ubd/target.h>

#include "link.h"
#include "proto.h"

/* Requests and replies below this travel many at once through buffers, larger payloads alone. */
#define CONN_LARGE (32u << 10)
#define CONN_BUFFER (256u << 10)

/* What all connections of a device have in common. Const once the queues run. */
struct conn_config {
	struct ubd_device *dev;
	struct link_address address;
	struct link_export disk; /* what the disk was made from */
	uint64_t timeout_ms;	 /* of a request, resending included; 0: none */
	uint64_t stall_ms;	 /* of a server that owes replies and sends nothing; 0: none */
	uint64_t *size;		 /* of the disk now, bytes; atomic */
};

enum req_state {
	REQ_LOST, /* not sent, or the connection broke before the reply */
	REQ_DUE,  /* the reply is */
	REQ_DONE, /* see result */
};

struct req {
	struct ubd_io *io;
	void *mem;	       /* TLS: where its data is */
	struct nbd_request on; /* the wire */
	enum req_state state;
	int result;    /* 0 or -errno */
	uint64_t born; /* conn.now when it came */
	struct conn *conn;
	struct ubd_cond settled;
};

struct conn {
	const struct conn_config *cfg;
	struct ubd_queue *q;
	struct link link;
	unsigned index;
	bool up, closing;

	struct req **due;	/* by tag, the low 16 bits of the cookie */
	unsigned tags;		/* of them, that were ever used */
	uint64_t serial;	/* the rest of the cookie: a reply to an old request finds nobody */
	unsigned requests;	/* not answered, sent or not */
	unsigned large_due;	/* replies with payloads that travel alone */
	uint32_t small_due;	/* bytes of all other replies */
	struct ubd_cond change; /* for those who wait until it is up: it is, or time has passed */

	/* The clock, ms; it ticks while there are requests. */
	uint64_t now, last_heard, down_since;
	bool ticking;
	bool answered; /* since it came up */

	/* What goes out. */
	unsigned senders; /* those at it, and those waiting for their turn */
	struct ubd_mutex turn;
	struct ubd_cond idle; /* no senders */
	uint8_t *out;
	uint32_t sent, filled;
	struct ubd_cond room;
	/* What comes in. */
	uint8_t *in;
	uint32_t in_pos, in_len;
	bool large; /* the last one's payload */
};

static inline bool conn_is_large(const struct req *r)
{
	return r->on.cmd <= NBD_CMD_WRITE && r->on.length >= CONN_LARGE;
}

void conn_init(struct conn *c, const struct conn_config *cfg, unsigned index);
/* Make it work on q, its queue from now on. 0 or -errno. */
int conn_start(struct conn *c, struct ubd_queue *q);
/* End it; its coroutines end soon after. */
void conn_stop(struct conn *c);
/* After its coroutines have ended. Also right for one that was never started. */
void conn_free(struct conn *c);

/* Carry out a request and wait for its end. 0 or -errno. [awaits] */
int conn_request(struct conn *c, struct req *r);

/* ---- For plain.c and tls.c ------------------------------------------------------------------ */

/* The connection is of no more use, and why. */
void conn_break(struct conn *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The request is about to be sent: it gets a cookie, and its reply is due. */
void conn_expect(struct conn *c, struct req *r);
/* Find who a reply is for; NULL: nobody. */
struct req *conn_find(const struct conn *c, uint64_t cookie);
/* The request is not due any more. */
void conn_settle(struct conn *c, struct req *r, enum req_state state, int result);
/* Something was heard from the server. */
void conn_heard(struct conn *c);
/* One sender less. */
void conn_sent(struct conn *c);

/*
 * Transmission, by the session's kind. send: returns when the request is on its way, leaves it lost
 * if the connection broke before, or has settled it. receive: takes replies until the connection
 * breaks. Both await.
 */
void plain_send(struct conn *c, struct req *r);
void plain_receive(struct conn *c);
/* Tell the server that this is the end, if that is possible at once. */
void plain_say_goodbye(struct conn *c);
void tls_send(struct conn *c, struct req *r);
void tls_receive(struct conn *c);

#endif
