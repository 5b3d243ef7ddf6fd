/* SPDX-License-Identifier: MIT */
/*
 * A connection to the server, its requests, and its coming back when it was lost.
 *
 *   link.c   libnbd: connect and negotiate       conn.c   requests, loss and reconnection
 *   plain.c  transmission on our own socket      tls.c    transmission through libnbd
 *
 * A connection belongs to one queue, its home; all of it but the inbox is touched on that queue's
 * thread only. Requests of other queues come by the inbox, with their data in memory.
 */
#ifndef UBD_NBD_CONN_H
#define UBD_NBD_CONN_H

#include <ubd/target.h>

#include "link.h"
#include "proto.h"

/* Replies and requests below this travel many at once through buffers, larger payloads alone. */
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
	REQ_SENT,    /* its reply is due */
	REQ_ARRIVED, /* so is its data, from data on */
	REQ_DONE,    /* see result */
	REQ_LOST,    /* the connection broke before the reply */
};

struct req {
	struct ubd_io *io; /* whose data it is; or */
	void *mem;	   /* where the data is; NULL: with io */
	uint64_t offset;   /* bytes */
	uint32_t length;
	uint16_t cmd, flags; /* NBD's */
	enum req_state state;
	int result; /* 0 or -errno */
	uint32_t slot;
	uint64_t born; /* conn.now when it came */
	struct ubd_cond cond;
	const void *data; /* REQ_ARRIVED: in receive buffer number */
	unsigned from;
	bool streaming; /* the sender is at its data */
	struct conn *conn;
	/* From another queue, in the inbox: */
	struct req *next;
	bool finished;
	struct ubd_cond finish;
};

/* The cookie of a request is slot and generation: a reply to an old one finds nobody. */
struct conn_slot {
	struct req *req; /* NULL: free */
	uint32_t generation, next_free;
};

struct conn_out {
	uint8_t *buf;
	uint32_t used;
	uint32_t fillers; /* requests still copying their data in */
	struct req *tail; /* its payload follows the buffer */
};

struct conn_in {
	uint8_t *buf;
	uint32_t users; /* requests still copying their data out */
};

struct conn {
	const struct conn_config *cfg;
	struct ubd_queue *q;
	unsigned index;
	struct link link;
	bool up;
	unsigned busy; /* who still uses link and buffers */
	struct ubd_cond idle;

	struct conn_slot *slots;
	uint32_t nr_slots, free_slot;
	unsigned due;		  /* replies */
	unsigned large_due;	  /* of them, with large payloads */
	uint32_t small_due_bytes; /* the others together */

	/* The manager's clock, ms; it ticks while something is due or the connection is down. */
	uint64_t now, last_heard, down_since;
	int timer;
	bool ticking, kicked, closing;
	bool answered; /* since it came up */

	/* plain.c */
	struct conn_out out[2];
	struct conn_in in[2];
	unsigned filling, reading; /* which of them */
	uint32_t in_pos, in_len;
	bool last_large;
	struct ubd_cond room, work, filled, drained;

	/* Requests of other queues, under lock. */
	struct ubd_mutex lock;
	struct req *inbox;
	struct ubd_cond mail, gone;
	unsigned foreign;
	bool started, shut;
};

void conn_init(struct conn *c, const struct conn_config *cfg, unsigned index);
/* Connections go round the queues: whether this one belongs to q. Any thread. */
bool conn_is_home(const struct conn *c, const struct ubd_queue *q);
/* On its home: make it work. 0 or -errno. */
int conn_start(struct conn *c, struct ubd_queue *q);
/* End it, on q; its coroutines end soon after. */
void conn_stop(struct conn *c);
/* After its coroutines have ended. Also right for one that was never started. */
void conn_free(struct conn *c);

/* Carry out a request, from queue q, and wait for its end. 0 or -errno. [awaits] */
int conn_request(struct conn *c, struct ubd_queue *q, struct req *r);

/* ---- For plain.c and tls.c ------------------------------------------------------------------ */

/* The connection is of no more use, and why. */
void conn_break(struct conn *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Count the request among those due. 0 or -ENOMEM. */
int conn_expect(struct conn *c, struct req *r);
/* Find who a reply is for; NULL: nobody. */
struct req *conn_find(struct conn *c, uint64_t cookie);
uint64_t conn_cookie(const struct conn *c, const struct req *r);
/* The request is not due any more: it goes on in that state. */
void conn_settle(struct conn *c, struct req *r, enum req_state state, int result);
/* Something was heard from the server. */
void conn_heard(struct conn *c);
/* One user of link and buffers less. */
void conn_unuse(struct conn *c);
/* Wait until the connection, up or not, may have changed for a request that wants to be sent; 0, or
 * -ETIMEDOUT when it has waited long enough. [awaits] */
int conn_wait(struct conn *c, struct req *r);

/* Start the transmission's coroutines, each counted in busy. */
int plain_start(struct conn *c);
/* Send; returns when the request is expected and will be sent. 0 or -errno. */
int plain_send(struct conn *c, struct req *r);
/* The data of a request in REQ_ARRIVED to where it belongs. */
int plain_fetch(struct conn *c, struct req *r);
/* Let everybody who waits look at c->up. */
void plain_wake(struct conn *c);

/* A buffer's contents are sent, or never will be. */
void plain_forget(struct conn *c, struct conn_out *o);
/* Tell the server that this is the end, if that is possible at once. */
void plain_say_goodbye(struct conn *c);

int tls_start(struct conn *c);
int tls_send(struct conn *c, struct req *r);

#endif
