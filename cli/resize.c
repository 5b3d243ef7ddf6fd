/* SPDX-License-Identifier: MIT */
/* ubd resize: another size for a disk, served or not. */
#define _GNU_SOURCE
#include <inttypes.h>

#include "command.h"
#include "json.h"
#include "say.h"
#include "verbs.h"

static const struct arg_option options[] = {
	{0},
};

static int run(int argc, char **argv)
{
	struct command c = {.verb = "resize", .words = {"resize"}, .count = 2};
	const char *value, *size = NULL;
	json_object *answer;
	uint64_t bytes;
	struct args args;
	int key, code;

	args_begin(&args, "resize", options, argc, argv);
	while ((key = args_next(&args, &value)) != ARG_END) {
		if (key == ARG_BAD)
			return EXIT_MISUSED;
		if (key == ARG_HELP)
			return verb_print_help(&verb_resize);
		if (size)
			return say_misused("resize: one device and one size, not also '%s'", value);
		if (c.where)
			size = value;
		else
			c.where = value;
	}
	if (!size)
		return say_misused(
			"resize: name a device or image and its new size, as in ubd resize "
			"0 20G");
	if (ubd_size_parse(size, &bytes) || !bytes || bytes % 512)
		return say_misused(
			"resize: '%s' is not a size in whole sectors of 512 bytes, like 20G", size);
	c.words[1] = size;
	code = command_run(&c, &answer);
	json_object_put(answer);
	return code;
}

const struct verb verb_resize = {
	.name = "resize",
	.usage = "DEV|IMAGE SIZE",
	.summary = "give a disk another size",
	.options = options,
	.details = "DEV is 3, ublkb3 or /dev/ublkb3, served by the target qcow2, on a driver that "
		   "has\n"
		   "update-size (see ubd features). IMAGE is a qcow2 image that nobody serves. "
		   "What lies\n"
		   "behind a smaller size is lost.\n",
	.run = run,
};
