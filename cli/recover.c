/* SPDX-License-Identifier: MIT */
/* ubd recover: another server for a disk whose server has died. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "add_args.h"
#include "control.h"
#include "json.h"
#include "process.h"
#include "say.h"
#include "verbs.h"
#include "view.h"

#define DYING_MS 1000 /* what was killed a moment ago is given to end */

static const struct arg_option options[] = {
	{0},
};

/* ---- The device ---------------------------------------------------------------------------- */

/* The device, and if its server is about to end, once that has. */
static int look(struct ubd_ctrl *ctrl, unsigned id, struct view *v)
{
	int ret = view_read(ctrl, id, v);
	struct pollfd server = {.events = POLLIN};

	if (ret || !v->served)
		return ret;
	server.fd = process_open(&v->server);
	if (server.fd >= 0) {
		poll(&server, 1, DYING_MS);
		close(server.fd);
	}
	view_release(v);
	return view_read(ctrl, id, v);
}

/* Whether there is something to recover: 0, or the exit code after saying why not. */
static int check(const struct view *v)
{
	if (v->served)
		return say_failed("recover: /dev/ublkb%u has its server, %s (process %d): there is "
				  "nothing to recover",
				  v->id, v->server.name, (int)v->server.pid);
	if (!v->state)
		return say_failed("recover: /dev/ublkb%u is not of ubd: the program that made it "
				  "has to recover it",
				  v->id);
	if (!(v->info.flags & UBLK_F_USER_RECOVERY))
		return say_failed("recover: /dev/ublkb%u was added without --recovery, so its disk "
				  "died with its server: ubd del %u takes the rest away",
				  v->id, v->id);
	return 0;
}

/* ---- What it was added with ---------------------------------------------------------------- */

struct words {
	char **items;
	int count;
};

/* Takes over word. */
static void add_word(struct words *w, char *word)
{
	char **more = reallocarray(w->items, (size_t)w->count + 1, sizeof(*more));

	if (!more)
		exit(say_failed("recover: out of memory"));
	w->items = more;
	w->items[w->count++] = word;
}

static bool flag(const json_object *state, const char *name)
{
	json_object *value;

	return json_object_object_get_ex(state, name, &value) && json_object_get_boolean(value);
}

static void add_flags(struct words *w, const json_object *state)
{
	static const char *const flags[] = {"read_only", "unprivileged", "pin", "batch",
					    "populate"};

	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		char *word;

		if (!flag(state, flags[i]))
			continue;
		word = say_format("--%s", flags[i]);
		for (char *at = word; (at = strchr(at, '_'));)
			*at = '-';
		add_word(w, word);
	}
	if (!flag(state, "partitions"))
		add_word(w, say_format("--no-partitions"));
}

static void add_number(struct words *w, const json_object *state, const char *name,
		       const char *option, unsigned unit)
{
	uint64_t value = json_get_number(state, name) / unit;

	if (value)
		add_word(w, say_format("--%s=%llu", option, (unsigned long long)value));
}

/* As words of `ubd add`: what it understood once, it understands again. */
static void add_words(struct words *w, const json_object *state)
{
	const char *file = json_get_string(state, "target_file");
	json_object *settings;

	add_number(w, state, "queues", "queues", 1);
	add_number(w, state, "depth", "depth", 1);
	add_number(w, state, "max_io_asked", "max-io", 1);
	add_number(w, state, "block_size_asked", "block-size", 1);
	add_number(w, state, "deadline_ms_asked", "deadline", 1000);
	add_word(w, say_format("--zero-copy=%s", json_get_string(state, "zero_copy")));
	add_word(w, say_format("--recovery=%s", json_get_string(state, "recovery")));
	add_flags(w, state);
	add_word(w, say_format("--target=%s", file ? file : json_get_string(state, "target")));
	if (!json_object_object_get_ex(state, "options", &settings) ||
	    !json_object_is_type(settings, json_type_array))
		return;
	for (size_t i = 0; i < json_object_array_length(settings); i++) {
		const json_object *pair = json_object_array_get_idx(settings, i);

		add_word(w, say_format("--%s=%s", json_get_string(pair, "name"),
				       json_get_string(pair, "value")));
	}
}

static int recover(const struct view *v)
{
	struct add_request r = {.verb = "recover"};
	struct words w = {.count = 0};
	int code;

	add_words(&w, v->state);
	code = add_parse(w.count, w.items, &r);
	r.config.has_id = r.config.take_over = true;
	r.config.id = v->id;
	if (!code)
		code = add_serve(&r);
	add_release(&r);
	while (w.count)
		free(w.items[--w.count]);
	free(w.items);
	return code;
}

static int run(int argc, char **argv)
{
	const char *value, *name = NULL;
	struct ubd_ctrl *ctrl;
	struct args args;
	struct view v;
	unsigned id;
	int key, code;

	args_begin(&args, "recover", options, argc, argv);
	while ((key = args_next(&args, &value)) != ARG_END) {
		if (key == ARG_BAD)
			return EXIT_MISUSED;
		if (key == ARG_HELP)
			return verb_print_help(&verb_recover);
		if (name)
			return say_misused("recover: one device, not also '%s'", value);
		name = value;
	}
	if (!name)
		return say_misused("recover: name the device, as in ubd recover 0");
	code = view_need("recover", name, &id);
	if (code)
		return code;
	ctrl = control_open("recover");
	if (!ctrl)
		return EXIT_FAILED;
	code = look(ctrl, id, &v);
	ubd_ctrl_close(ctrl);
	if (code == -ENODEV)
		return say_failed("recover: there is no device %u (see ubd list)", id);
	if (code)
		return say_failed("recover: cannot read what device %u is: %s", id,
				  strerror(-code));
	code = check(&v);
	if (!code)
		code = recover(&v);
	view_release(&v);
	return code;
}

const struct verb verb_recover = {
	.name = "recover",
	.usage = "DEV",
	.summary = "serve a disk again whose server has died",
	.options = options,
	.details =
		"DEV is 3, ublkb3 or /dev/ublkb3, added with --recovery queue, reissue or fail. A\n"
		"new server with the same target and options takes it over, with the I/O that\n"
		"waits. Prints the path of the device when it is served.\n",
	.run = run,
};
