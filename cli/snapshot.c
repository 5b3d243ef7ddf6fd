/* SPDX-License-Identifier: MIT */
/* ubd snapshot: the internal snapshots of a qcow2 image, served or not. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "json.h"
#include "say.h"
#include "verbs.h"

enum { KEY_JSON = 1 };

static const struct arg_option options[] = {
	{KEY_JSON, "json", 0, ARG_BARE, NULL, "with list: one JSON document"},
	{0},
};

static void print_table(json_object *list)
{
	printf("%-6s %9s  %-19s  %s\n", "ID", "SIZE", "TIME", "NAME");
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		json_object *s = json_object_array_get_idx(list, i);
		time_t seconds = (time_t)json_get_number(s, "time");
		char size[SAY_SIZE_LEN], when[32] = "";
		struct tm tm;

		if (localtime_r(&seconds, &tm))
			strftime(when, sizeof(when), "%F %T", &tm);
		printf("%-6s %9s  %-19s  %s\n", json_get_string(s, "id"),
		       say_size(json_get_number(s, "size"), size), when,
		       json_get_string(s, "name"));
	}
}

static int print(json_object *list, bool json)
{
	if (json) {
		json_object *doc = json_object_new_object();

		json_object_object_add(doc, "snapshots", json_object_get(list));
		json_print(doc);
		json_object_put(doc);
	} else if (json_object_array_length(list)) {
		print_table(list);
	}
	return 0;
}

static int check(const char *const *words, unsigned count, bool json)
{
	static const char *const jobs[] = {"list", "create", "delete", "apply"};
	struct say_guess guess = {.word = count > 1 ? words[1] : ""};
	unsigned job = 0;

	if (count < 2)
		return say_misused("snapshot: name a device or image and what to do, as in ubd "
				   "snapshot 0 list");
	for (; job < ARRAY_SIZE(jobs) && strcmp(words[1], jobs[job]) != 0; job++)
		say_guess_try(&guess, jobs[job]);
	if (job == ARRAY_SIZE(jobs))
		return say_misused(
			"snapshot: there is no '%s'%s: list, create, delete and apply are "
			"there",
			words[1], say_guess_hint(&guess, ""));
	if (count != (job ? 3u : 2u))
		return say_misused(job ? "snapshot: %s needs one name"
				       : "snapshot: %s takes no name",
				   words[1]);
	if (json && job)
		return say_misused("snapshot: --json goes with list");
	return 0;
}

static int run(int argc, char **argv)
{
	const char *value, *words[4];
	struct command c = {.verb = "snapshot"};
	json_object *answer;
	unsigned count = 0;
	bool json = false;
	struct args args;
	int key, code;

	args_begin(&args, "snapshot", options, argc, argv);
	while ((key = args_next(&args, &value)) != ARG_END) {
		if (key == ARG_BAD)
			return EXIT_MISUSED;
		if (key == ARG_HELP)
			return verb_print_help(&verb_snapshot);
		if (key == KEY_JSON)
			json = true;
		else if (count < ARRAY_SIZE(words))
			words[count++] = value;
	}
	code = check(words, count, json);
	if (code)
		return code;
	c.where = words[0];
	c.read_only = count == 2;
	c.words[c.count++] = "snapshot";
	for (unsigned i = 1; i < count; i++)
		c.words[c.count++] = words[i];
	code = command_run(&c, &answer);
	if (!code && c.read_only)
		code = print(answer, json);
	json_object_put(answer);
	return code;
}

const struct verb verb_snapshot = {
	.name = "snapshot",
	.usage = "[--json] DEV|IMAGE list | create NAME | delete NAME | apply NAME",
	.summary = "snapshots inside a qcow2 image",
	.options = options,
	.details = "DEV is 3, ublkb3 or /dev/ublkb3, served by the target qcow2; its I/O waits\n"
		   "meanwhile. IMAGE is a qcow2 image that nobody serves. apply makes the disk "
		   "what it\n"
		   "was when the snapshot was made: unmount it first.\n",
	.run = run,
};
