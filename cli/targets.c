/* SPDX-License-Identifier: MIT */
/* ubd targets: what a device can be made of. */
#define _GNU_SOURCE
#include <stdio.h>

#include <ubd/ubd.h>

#include "json.h"
#include "say.h"
#include "target_help.h"
#include "verbs.h"

enum { KEY_JSON = 1, KEY_PLAIN };

static const struct arg_option options[] = {
	{KEY_JSON, "json", 0, ARG_BARE, NULL, "one JSON document"},
	{KEY_PLAIN, "plain", 0, ARG_BARE, NULL, "bare words for shell completion, one on a line"},
	{0},
};

static int print_all(bool json, bool plain)
{
	json_object *doc, *list;

	if (!json) {
		for (const struct ubd_target *const *t = ubd_targets(); *t; t++)
			if (plain)
				printf("%s\n", (*t)->name);
			else
				printf("%-10s %s\n", (*t)->name, (*t)->summary);
		return 0;
	}
	doc = json_object_new_object();
	list = json_object_new_array();
	for (const struct ubd_target *const *t = ubd_targets(); *t; t++)
		json_object_array_add(list, target_json(*t));
	json_object_object_add(doc, "targets", list);
	json_print(doc);
	json_object_put(doc);
	return 0;
}

static int print_one(const char *name, bool json, bool plain)
{
	const struct ubd_target *target = target_need("targets", name);
	json_object *doc;

	if (!target)
		return EXIT_MISUSED;
	if (plain) {
		target_print_plain(target);
	} else if (json) {
		doc = target_json(target);
		json_print(doc);
		json_object_put(doc);
	} else {
		target_print(target);
	}
	return 0;
}

static int run(int argc, char **argv)
{
	const char *value, *name = NULL;
	bool json = false, plain = false;
	struct args args;
	int key;

	args_begin(&args, "targets", options, argc, argv);
	while ((key = args_next(&args, &value)) != ARG_END) {
		if (key == ARG_BAD)
			return EXIT_MISUSED;
		if (key == ARG_HELP)
			return verb_print_help(&verb_targets);
		if (key == KEY_JSON)
			json = true;
		else if (key == KEY_PLAIN)
			plain = true;
		else if (name)
			return say_misused("targets: one target at a time, not '%s' as well",
					   value);
		else
			name = value;
	}
	return name ? print_one(name, json, plain) : print_all(json, plain);
}

const struct verb verb_targets = {
	.name = "targets",
	.usage = "[--json] [TARGET]",
	.summary = "list the targets, or explain one",
	.options = options,
	.details = "A target is what a device is made of: a file, memory, an image, a server.\n"
		   "Plugins are found by name or by path and are not listed.\n",
	.run = run,
};
