/* SPDX-License-Identifier: MIT */
/*
 * A whole server in a process of its own: one thread per queue, a memory store behind it, a log of
 * what it was asked, and a hook that can answer in its stead. Shares all of that with the case.
 */
#ifndef CONFORM_SERVER_H
#define CONFORM_SERVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "dev.h"
#include "ioq.h"
#include "job.h"

#define SERVER_LOG 4096
#define SERVER_QUEUES 16

enum server_answer {
	ANSWER_STORE,  /* as the memory store would */
	ANSWER_HOLD,   /* not now: when server->release is set */
	ANSWER_RESULT, /* with io->res */
	ANSWER_NEVER,  /* not at all */
};

/* What the thread of the dying queue does. */
enum server_death {
	DIE_THREAD, /* ends */
	DIE_RING,   /* closes its ring and lives on */
	DIE_EXEC,   /* becomes another program, and all other threads with it */
	DIE_FORK,   /* leaves a child that has the char device open, and goes on */
};

struct server_io {
	struct ioq *q;
	unsigned tag;
	const struct ublksrv_io_desc *iod;
	uint8_t *buf;
	int res;
};

struct server_log {
	uint16_t q_id;
	uint16_t tag;
	struct ublksrv_io_desc desc;
};

struct server {
	struct dev *dev;
	struct job *job;
	uint8_t *store;
	enum server_answer (*hook)(struct server *server, struct server_io *io);
	/* Instead of threads and queues: what the process does with the open char device. */
	long (*body)(struct server *server, int fd);
	bool legacy;	      /* bare opcodes */
	unsigned dying_queue; /* + 1: the thread of this queue dies when die is set */
	enum server_death dying_how;
	atomic_bool die;
	atomic_uint child; /* of DIE_FORK */
	atomic_bool release;
	atomic_uint queues_ready;
	atomic_uint queues_over; /* every command came back aborted */
	atomic_uint held;
	atomic_uint nr_log;
	atomic_int error;
	atomic_uint custom[8]; /* the case's */
	void *priv;	       /* the case's, from shared_alloc() */
	struct server_log log[SERVER_LOG];
};

struct server *server_new(struct dev *dev);
/* Begin, and return when every tag of every queue has been fetched. */
void server_start(struct server *server);
/* SIGKILL; returns when the process is gone. */
void server_kill(struct server *server);
/* Wait until it has ended by itself, since all its commands were aborted. */
void server_join(struct server *server);
/* Send it a signal; nothing when it has ended. */
void server_signal(const struct server *server, int sig);
int server_pid(const struct server *server);

/* All of it: a device added, served and started; then stopped and deleted. */
struct server *server_up(struct dev *dev);
/* The same for a process with one queue of depth 8 that does nothing but body. */
struct server *server_up_with_body(uint64_t flags, long (*body)(struct server *server, int fd));
void server_down(struct server *server);

/* Skip where the device got fewer: a kernel gives one at most a queue per processor. */
void server_need_queues(struct server *server, unsigned nr);

/* Requests in the log with this operation, that begin at this sector (-1: anywhere). */
unsigned server_count(const struct server *server, unsigned op, int64_t sector);
const struct server_log *server_find(const struct server *server, unsigned op, int64_t sector);
void server_forget(struct server *server);

/* What the memory store does; the result to commit. */
int server_store(struct server *server, struct server_io *io);

#endif
