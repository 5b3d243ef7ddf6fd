/* SPDX-License-Identifier: MIT */
/* ubd del: take devices away. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "holders.h"
#include "remove.h"
#include "say.h"
#include "state.h"
#include "verbs.h"
#include "view.h"

#define DEFAULT_WAIT 30
#define MAX_WAIT 86400

enum { KEY_ALL = 1, KEY_FORCE, KEY_WAIT };

static const struct arg_option options[] = {
	{KEY_ALL, "all", 'a', ARG_BARE, NULL, "all devices of ubd, and those without a server"},
	{KEY_FORCE, "force", 'f', ARG_BARE, NULL, "even if in use; kill a server that is stuck"},
	{KEY_WAIT, "wait", 'w', ARG_NEEDED, "SECONDS", "longest wait for a device (default: 30)"},
	{0},
};

struct request {
	struct removal how;
	bool all;
	unsigned *ids;
	size_t count;
};

static int add_device(struct request *r, const char *text)
{
	unsigned id, *more;
	int code = view_need("del", text, &id);

	if (code)
		return code;
	more = reallocarray(r->ids, r->count + 1, sizeof(*more));
	if (!more)
		return say_failed("del: out of memory");
	r->ids = more;
	r->ids[r->count++] = id;
	return 0;
}

static int parse(int argc, char **argv, struct request *r, bool *help)
{
	const char *value;
	struct args args;
	uint64_t seconds;
	int key, code = 0;

	args_begin(&args, "del", options, argc, argv);
	while (!code && (key = args_next(&args, &value)) != ARG_END) {
		switch (key) {
		case ARG_BAD:
			return EXIT_MISUSED;
		case ARG_HELP:
			*help = true;
			return 0;
		case KEY_ALL:
			r->all = true;
			break;
		case KEY_FORCE:
			r->how.force = true;
			break;
		case KEY_WAIT:
			if (!args_number(value, 1, MAX_WAIT, &seconds))
				code = say_misused("del: --wait must be a number of seconds from 1 "
						   "to %d, not '%s'",
						   MAX_WAIT, value);
			else
				r->how.wait = (unsigned)seconds;
			break;
		default:
			code = add_device(r, value);
		}
	}
	if (!code && r->all && r->count)
		code = say_misused("del: either --all or some devices, not both");
	if (!code && !r->all && !r->count)
		code = say_misused("del: name the devices to delete, as in ubd del 0, or all of "
				   "them with --all");
	return code;
}

/* With --all: what another program serves is that program's, and so is what is just being added. */
static bool left_alone(struct ubd_ctrl *ctrl, unsigned id)
{
	struct view v;
	bool foreign, begun;

	if (view_read(ctrl, id, &v))
		return true;
	foreign = v.served && !v.state;
	begun = !v.served && !v.state && holders_serve(id);
	if (begun)
		say_note("del: left alone /dev/ublkb%u, which a process is about to serve; name it "
			 "to delete it",
			 id);
	if (foreign)
		say_note("del: left alone /dev/ublkb%u, served by %s (process %d) and not by ubd; "
			 "name it to delete it",
			 id, v.server.name, (int)v.server.pid);
	view_release(&v);
	return foreign || begun;
}

/* A state file without a device: a server was killed and its device deleted by others. */
static void remove_orphan(unsigned id, void *arg)
{
	json_object *state = state_read(id);
	struct process server;

	(void)arg;
	if (state && !view_birth(id) && !state_server(state, &server))
		state_remove(id);
	json_object_put(state);
}

static int delete_all(struct ubd_ctrl *ctrl, const struct removal *how)
{
	unsigned *ids;
	int n = view_ids(&ids), code = 0;

	if (n < 0)
		return say_failed("del: cannot read the devices from /sys: %s", strerror(-n));
	for (int i = 0; i < n; i++)
		if (!left_alone(ctrl, ids[i]) && remove_device(ctrl, ids[i], how))
			code = EXIT_FAILED;
	free(ids);
	state_each(remove_orphan, NULL);
	return code;
}

static int run(int argc, char **argv)
{
	struct request r = {.how = {.wait = DEFAULT_WAIT}};
	struct ubd_ctrl *ctrl = NULL;
	bool help = false;
	int code = parse(argc, argv, &r, &help);

	if (!code && help) {
		verb_print_help(&verb_del);
	} else if (!code) {
		ctrl = control_open("del");
		if (!ctrl)
			code = EXIT_FAILED;
		else if (r.all)
			code = delete_all(ctrl, &r.how);
		for (size_t i = 0; ctrl && i < r.count; i++)
			if (remove_device(ctrl, r.ids[i], &r.how))
				code = EXIT_FAILED;
	}
	ubd_ctrl_close(ctrl);
	free(r.ids);
	return code;
}

const struct verb verb_del = {
	.name = "del",
	.usage = "[OPTION]... DEV... | --all",
	.summary = "delete devices",
	.options = options,
	.details =
		"DEV is 3, ublkb3 or /dev/ublkb3. What is written is made safe first: the disk\n"
		"is stopped, I/O in flight is finished, then its server ends. A device in use is\n"
		"refused unless --force is given.\n",
	.run = run,
};
