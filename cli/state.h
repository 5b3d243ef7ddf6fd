/* SPDX-License-Identifier: MIT */
/*
 * What a server leaves for others to read: RUN/N.json says what device N is and who serves it,
 * RUN/N.stats what it did, and at RUN/N.sock it takes commands. RUN is $UBD_RUN_DIR, or /run/ubd,
 * or $XDG_RUNTIME_DIR/ubd of an ordinary user.
 */
#ifndef CLI_STATE_H
#define CLI_STATE_H

#include <json-c/json.h>
#include <stdbool.h>

#include <ubd/ubd.h>

#include "process.h"

/* Choose the directory, also for the targets in this process: they look at UBD_RUN_DIR. */
void state_dir_choose(void);
/* The directory, made when it is missing. NULL with *why (static) when that fails. */
const char *state_dir_make(const char **why);

/* Replace the state of device id at once. 0 or -errno. */
int state_write(unsigned id, json_object *doc);
/* NULL: there is none, or none that can be read. To be released by json_object_put(). */
json_object *state_read(unsigned id);
/* All its files; it does not matter if they are gone. */
void state_remove(unsigned id);
/* The server named in a state: false when it has ended. */
bool state_server(const json_object *doc, struct process *server);
/* Call fn for the id of every state file. */
void state_each(void (*fn)(unsigned id, void *arg), void *arg);

/* The socket of device id: a new one to listen at, or one that reaches its server. -errno. */
int state_listen(unsigned id);
int state_connect(unsigned id);

/* The counters of a running server: a shared page of this form. */
struct state_stats {
	uint32_t magic; /* STATE_STATS_MAGIC; written last */
	uint32_t size;	/* of this struct: it grows at its end */
	uint64_t seq;	/* odd while the server writes */
	uint64_t time;	/* of the copy, seconds since 1970 */
	struct ubd_stats stats;
};
#define STATE_STATS_MAGIC 0x75627374
#define STATE_STATS_LEN 4096

/* The server's side: the mapped page, or NULL with errno. */
struct state_stats *state_stats_create(unsigned id);
void state_stats_publish(struct state_stats *page, const struct ubd_stats *stats);
/* The reader's side: false when there are none. */
bool state_stats_read(unsigned id, struct state_stats *copy);

#endif
