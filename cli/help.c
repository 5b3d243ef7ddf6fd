/* SPDX-License-Identifier: MIT */
/* ubd help: what the verbs are and what they take. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include <ubd/ubd.h>

#include "say.h"
#include "target_help.h"
#include "verbs.h"

enum { KEY_PLAIN = 1 };

static const struct arg_option options[] = {
	{KEY_PLAIN, "plain", 0, ARG_BARE, NULL, "bare words for shell completion, one on a line"},
	{0},
};

static int print_overview(void)
{
	printf("ubd %s: userspace block devices\n\nUsage: ubd VERB [OPTION]... [ARGUMENT]...\n\n",
	       ubd_version());
	for (const struct verb *const *v = verbs; *v; v++)
		printf("  %-10s %s\n", (*v)->name, (*v)->summary);
	printf("\nA device is named by its number, 3, or by ublkb3 or /dev/ublkb3.\n"
	       "More: ubd help VERB, ubd add TARGET --help, man ubd.\n\n"
	       "  ubd add loop disk.img     a file as a block device\n"
	       "  ubd add mem --size 1G     a RAM disk\n"
	       "  ubd list\n"
	       "  ubd del 0\n");
	return 0;
}

int verb_print_help(const struct verb *verb)
{
	printf("Usage: ubd %s%s%s\n\n%c%s.\n", verb->name, *verb->usage ? " " : "", verb->usage,
	       verb->summary[0] & ~0x20, verb->summary + 1);
	if (verb->details)
		printf("\n%s", verb->details);
	printf("\nOptions:\n");
	args_print_options(verb->options);
	return 0;
}

/* What can be typed: --name for a switch, --name= with a value, --name=WORD for a known one. */
static void print_plain(const struct verb *verb)
{
	const char *word;

	for (const struct arg_option *o = verb->options; o->key; o++) {
		if (o->letter)
			printf("-%c\n", o->letter);
		if (o->value != ARG_NEEDED)
			printf("--%s\n", o->name);
		if (o->value != ARG_BARE)
			printf("--%s=\n", o->name);
		for (unsigned n = 0; o->word && (word = o->word(n)); n++)
			printf("--%s=%s\n", o->name, word);
	}
	printf("--help\n");
}

static int help_on(const char *name, const char *topic, bool plain)
{
	struct say_guess guess = {.word = name};

	for (const struct verb *const *v = verbs; *v; v++) {
		if (strcmp((*v)->name, name) == 0) {
			if (topic && *v == &verb_add)
				return target_help(topic);
			if (topic)
				return say_misused("help: one verb at a time");
			if (!plain)
				return verb_print_help(*v);
			print_plain(*v);
			return 0;
		}
		say_guess_try(&guess, (*v)->name);
	}
	return say_misused("help: unknown verb '%s'%s (see ubd help)", name,
			   say_guess_hint(&guess, "ubd help "));
}

static int run(int argc, char **argv)
{
	const char *value, *name = NULL, *topic = NULL;
	bool plain = false;
	struct args args;
	int key;

	args_begin(&args, "help", options, argc, argv);
	while ((key = args_next(&args, &value)) != ARG_END) {
		if (key == ARG_BAD)
			return EXIT_MISUSED;
		if (key == ARG_HELP)
			return verb_print_help(&verb_help);
		if (key == KEY_PLAIN)
			plain = true;
		else if (!name)
			name = value;
		else if (!topic)
			topic = value;
		else
			return say_misused("help: one verb at a time");
	}
	if (name)
		return help_on(name, topic, plain);
	if (!plain)
		return print_overview();
	for (const struct verb *const *v = verbs; *v; v++)
		printf("%s\n", (*v)->name);
	return 0;
}

const struct verb verb_help = {
	.name = "help",
	.usage = "[VERB]",
	.summary = "explain the command or one verb",
	.options = options,
	.details = "ubd help add TARGET explains a target's options.\n",
	.run = run,
};
