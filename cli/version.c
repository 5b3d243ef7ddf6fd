/* SPDX-License-Identifier: MIT */
/* ubd version: which ubd this is. */
#define _GNU_SOURCE
#include <stdio.h>

#include <ubd/ubd.h>

#include "json.h"
#include "say.h"
#include "verbs.h"

enum { KEY_JSON = 1 };

static const struct arg_option options[] = {
	{KEY_JSON, "json", 0, ARG_BARE, NULL, "one JSON document"},
	{0},
};

static int run(int argc, char **argv)
{
	json_object *doc;
	const char *value;
	bool json = false;
	struct args args;
	int key;

	args_begin(&args, "version", options, argc, argv);
	while ((key = args_next(&args, &value)) != ARG_END) {
		if (key == ARG_BAD)
			return EXIT_MISUSED;
		if (key == ARG_HELP)
			return verb_print_help(&verb_version);
		if (key == ARG_WORD)
			return say_misused("version: takes no argument '%s'", value);
		json = true;
	}
	if (!json) {
		printf("ubd %s\n", ubd_version());
		return 0;
	}
	doc = json_object_new_object();
	json_put_string(doc, "version", ubd_version());
	json_print(doc);
	json_object_put(doc);
	return 0;
}

const struct verb verb_version = {
	.name = "version",
	.usage = "",
	.summary = "print the version",
	.options = options,
	.run = run,
};
