/* SPDX-License-Identifier: MIT */
/* Commands to a target: through the socket of the server that runs it, or on a file nobody serves.
 */
#ifndef CLI_COMMAND_H
#define CLI_COMMAND_H

#include <json-c/json.h>
#include <pthread.h>
#include <stdbool.h>

#include <ubd/ubd.h>

/* ---- The server's side (command_server.c) -------------------------------------------------- */

/* Takes commands for one device, one after another, on a thread of its own. */
struct command_server {
	struct ubd_device *dev;
	int fd; /* listening; -1: not running */
	pthread_t thread;
};

/* Listen at RUN/N.sock, as root and the server's own user may use it. 0 or -errno. */
int command_server_start(struct command_server *s, struct ubd_device *dev);
/* What is under way is finished first. */
void command_server_stop(struct command_server *s);

/* For ubd_device_command(): adds the item to a list of records, a json_object array. */
void command_put_item(void *list, const char *name, const char *text, uint64_t number);

/* ---- Who asks (command.c) ------------------------------------------------------------------- */

/* "snapshot", "create", "x", to what `where` names. */
struct command {
	const char *verb;  /* of ubd, for messages */
	const char *where; /* a device, or a qcow2 image that nobody serves */
	const char *words[4];
	unsigned count;
	bool read_only; /* changes nothing */
};

/* The exit code; 0: *answer, an array of objects, is the caller's to put. Says why it fails. */
int command_run(const struct command *c, json_object **answer);

#endif
