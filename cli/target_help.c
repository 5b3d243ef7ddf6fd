/* SPDX-License-Identifier: MIT */
/* What a target's option table says: finding options in it, and explaining it. */
#define _GNU_SOURCE
#include "target_help.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "json.h"
#include "say.h"

static const struct ubd_option no_options[] = {{0}};

static const struct ubd_option *table(const struct ubd_target *target)
{
	return target->options ? target->options : no_options;
}

const struct ubd_target *target_need(const char *verb, const char *name)
{
	struct say_guess guess = {.word = name};
	const char *why = NULL;
	const struct ubd_target *target = ubd_target_find(name, &why);

	if (target)
		return target;
	for (const struct ubd_target *const *t = ubd_targets(); *t; t++)
		say_guess_try(&guess, (*t)->name);
	say_misused("%s: %s%s", verb, why, strchr(name, '/') ? "" : say_guess_hint(&guess, ""));
	return NULL;
}

const struct ubd_option *target_option(const struct ubd_target *target, const char *name,
				       size_t len)
{
	for (const struct ubd_option *o = table(target); o->name; o++)
		if (strncmp(o->name, name, len) == 0 && !o->name[len])
			return o;
	return NULL;
}

const struct ubd_option *target_letter(const struct ubd_target *target, char letter)
{
	for (const struct ubd_option *o = table(target); o->name; o++)
		if (o->letter && o->letter == letter)
			return o;
	return NULL;
}

const struct ubd_option *target_positional(const struct ubd_target *target,
					   const struct ubd_option *after)
{
	for (const struct ubd_option *o = after ? after + 1 : table(target); o->name; o++)
		if (o->positional)
			return o;
	return NULL;
}

static bool is_list(const struct ubd_option *o)
{
	return o->type == UBD_LIST || o->type == UBD_PATHS;
}

static const char *metavar(const struct ubd_option *o)
{
	static const char *const words[] = {
		[UBD_STRING] = "TEXT", [UBD_PATH] = "PATH",   [UBD_SIZE] = "SIZE",
		[UBD_UINT] = "N",      [UBD_BOOL] = "yes|no", [UBD_CHOICE] = "WORD",
		[UBD_LIST] = "TEXT",   [UBD_PATHS] = "PATH",
	};

	if (o->metavar)
		return o->metavar;
	return o->type == UBD_CHOICE && o->choices ? o->choices : words[o->type];
}

static void append_range(char *text, size_t size, const struct ubd_option *o)
{
	char low[SAY_SIZE_LEN], high[SAY_SIZE_LEN];
	size_t len = strlen(text);

	if ((o->type != UBD_SIZE && o->type != UBD_UINT) || (!o->min && !o->max))
		return;
	if (o->type == UBD_SIZE) {
		say_size(o->min, low);
		say_size(o->max, high);
	} else {
		snprintf(low, sizeof(low), "%" PRIu64, o->min);
		snprintf(high, sizeof(high), "%" PRIu64, o->max);
	}
	if (o->max)
		snprintf(text + len, size - len, ", %s to %s", low, high);
	else
		snprintf(text + len, size - len, ", at least %s", low);
}

static void print_option(const struct ubd_option *o)
{
	char left[128], help[256], letter[8] = "    ";
	size_t len;

	if (o->letter)
		snprintf(letter, sizeof(letter), "-%c, ", o->letter);
	if (o->type == UBD_BOOL)
		snprintf(left, sizeof(left), "%s--%s[=%s]", letter, o->name, metavar(o));
	else
		snprintf(left, sizeof(left), "%s--%s %s%s", letter, o->name, metavar(o),
			 is_list(o) ? "..." : "");
	snprintf(help, sizeof(help), "%s", o->help ? o->help : "");
	append_range(help, sizeof(help), o);
	len = strlen(help);
	if (o->required)
		snprintf(help + len, sizeof(help) - len, " (required)");
	else if (o->fallback)
		snprintf(help + len, sizeof(help) - len, " (default: %s)", o->fallback);
	args_print_help(left, help);
}

void target_print(const struct ubd_target *target)
{
	printf("Usage: ubd add [OPTION]... %s [OPTION]...", target->name);
	for (const struct ubd_option *o = table(target); o->name; o++)
		if (o->positional)
			printf(" %s%s%s%s", o->required ? "" : "[", metavar(o),
			       is_list(o) ? "..." : "", o->required ? "" : "]");
	printf("\n\n%c%s.\n", target->summary ? target->summary[0] & ~0x20 : 'A',
	       target->summary ? target->summary + 1 : " target");
	if (table(target)->name)
		printf("\nOptions of the target, as --NAME VALUE, --NAME=VALUE or NAME=VALUE:\n");
	for (const struct ubd_option *o = table(target); o->name; o++)
		print_option(o);
	printf("\nOptions of every device: ubd help add.\n");
}

int target_help(const char *name)
{
	const struct ubd_target *target = target_need("help", name);

	if (!target)
		return EXIT_MISUSED;
	target_print(target);
	return 0;
}

static json_object *option_json(const struct ubd_option *o)
{
	static const char *const types[] = {
		[UBD_STRING] = "string", [UBD_PATH] = "path",	[UBD_SIZE] = "size",
		[UBD_UINT] = "uint",	 [UBD_BOOL] = "bool",	[UBD_CHOICE] = "choice",
		[UBD_LIST] = "list",	 [UBD_PATHS] = "paths",
	};
	json_object *doc = json_object_new_object();
	char letter[2] = {o->letter, '\0'};

	json_put_string(doc, "name", o->name);
	json_put_string(doc, "letter", o->letter ? letter : NULL);
	json_put_string(doc, "type", types[o->type]);
	json_put_string(doc, "help", o->help);
	json_put_string(doc, "default", o->fallback);
	json_put_bool(doc, "required", o->required);
	json_put_bool(doc, "positional", o->positional);
	if (o->type == UBD_CHOICE) {
		json_object *words = json_object_new_array();
		char *copy = say_format("%s", o->choices), *rest = copy, *word;

		while ((word = strsep(&rest, "|")))
			json_object_array_add(words, json_object_new_string(word));
		free(copy);
		json_object_object_add(doc, "choices", words);
	}
	if (o->type == UBD_SIZE || o->type == UBD_UINT) {
		json_put_number(doc, "min", o->min);
		json_object_object_add(doc, "max", o->max ? json_object_new_uint64(o->max) : NULL);
	}
	return doc;
}

json_object *target_json(const struct ubd_target *target)
{
	json_object *doc = json_object_new_object(), *options = json_object_new_array();

	json_put_string(doc, "name", target->name);
	json_put_string(doc, "summary", target->summary);
	for (const struct ubd_option *o = table(target); o->name; o++)
		json_object_array_add(options, option_json(o));
	json_object_object_add(doc, "options", options);
	return doc;
}

void target_print_plain(const struct ubd_target *target)
{
	for (const struct ubd_option *o = table(target); o->name; o++) {
		bool path = o->type == UBD_PATH || o->type == UBD_PATHS;
		char *copy, *rest, *word;

		if (o->letter)
			printf("-%c\n", o->letter);
		printf("--%s%s\n", o->name, o->type == UBD_BOOL ? "" : "=");
		if (path)
			printf("--%s=<path>\n", o->name);
		if (o->type != UBD_CHOICE)
			continue;
		rest = copy = say_format("%s", o->choices);
		while ((word = strsep(&rest, "|")))
			printf("--%s=%s\n", o->name, word);
		free(copy);
	}
}
