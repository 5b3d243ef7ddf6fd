/* SPDX-License-Identifier: MIT */
/* A verb's options: one table parses them, prints their help and completes them. */
#define _GNU_SOURCE
#include "args.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "say.h"

void args_begin(struct args *args, const char *verb, const struct arg_option *options, int argc,
		char **argv)
{
	*args = (struct args){
		.verb = verb,
		.options = options,
		.argc = argc,
		.argv = argv,
	};
}

const struct arg_option *args_by_name(const struct arg_option *o, const char *name, size_t len)
{
	for (; o->key; o++)
		if (strncmp(o->name, name, len) == 0 && !o->name[len])
			return o;
	return NULL;
}

const struct arg_option *args_by_letter(const struct arg_option *o, char letter)
{
	for (; o->key; o++)
		if (o->letter && o->letter == letter)
			return o;
	return NULL;
}

static int unknown(const struct args *args, const char *word, size_t len)
{
	char *name = say_format("%.*s", (int)len, word);
	struct say_guess guess = {.word = name};

	for (const struct arg_option *o = args->options; o->key; o++)
		say_guess_try(&guess, o->name);
	say_misused("%s: unknown option '--%s'%s (see ubd help %s)", args->verb, name,
		    say_guess_hint(&guess, "--"), args->verb);
	free(name);
	return ARG_BAD;
}

static int long_option(struct args *args, const char *word, const char **value)
{
	size_t len = strcspn(word, "=");
	const struct arg_option *o = args_by_name(args->options, word, len);

	if (strncmp(word, "help", len) == 0 && len == 4)
		return ARG_HELP;
	if (!o)
		return unknown(args, word, len);
	*value = word[len] ? word + len + 1 : NULL;
	if (o->value == ARG_BARE && *value) {
		say_misused("%s: option --%s takes no value", args->verb, o->name);
		return ARG_BAD;
	}
	if (o->value == ARG_NEEDED && !*value) {
		if (args->next >= args->argc) {
			say_misused("%s: option --%s needs a value: %s", args->verb, o->name,
				    o->metavar);
			return ARG_BAD;
		}
		*value = args->argv[args->next++];
	}
	return o->key;
}

static int short_option(struct args *args, const char **value)
{
	char letter = *args->bundle++;
	const struct arg_option *o = args_by_letter(args->options, letter);
	const char *rest = *args->bundle ? args->bundle : NULL;

	*value = NULL;
	if (!rest || (o && o->value == ARG_NEEDED))
		args->bundle = NULL;
	if (!o && letter == 'h')
		return ARG_HELP;
	if (!o) {
		say_misused("%s: unknown option '-%c' (see ubd help %s)", args->verb, letter,
			    args->verb);
		return ARG_BAD;
	}
	if (o->value != ARG_NEEDED)
		return o->key;
	if (!rest && args->next >= args->argc) {
		say_misused("%s: option -%c needs a value: %s", args->verb, letter, o->metavar);
		return ARG_BAD;
	}
	*value = rest ? rest : args->argv[args->next++];
	return o->key;
}

int args_next(struct args *args, const char **value)
{
	const char *word;

	if (args->bundle)
		return short_option(args, value);
	if (args->next >= args->argc)
		return ARG_END;
	word = args->argv[args->next++];
	if (!args->literal && strcmp(word, "--") == 0) {
		args->literal = true;
		return args_next(args, value);
	}
	if (args->literal || word[0] != '-' || !word[1]) {
		*value = word;
		return ARG_WORD;
	}
	if (word[1] == '-')
		return long_option(args, word + 2, value);
	args->bundle = word + 1;
	return short_option(args, value);
}

/* ---- Help --------------------------------------------------------------------------------- */

#define HELP_COLUMN 28

void args_print_help(const char *left, const char *help)
{
	if (strlen(left) + 2 < HELP_COLUMN)
		printf("  %-*s%s\n", HELP_COLUMN - 2, left, help);
	else
		printf("  %s\n%*s%s\n", left, HELP_COLUMN, "", help);
}

void args_print_options(const struct arg_option *options)
{
	for (const struct arg_option *o = options; o->key; o++) {
		char left[128], letter[8] = "    ";

		if (o->letter)
			snprintf(letter, sizeof(letter), "-%c, ", o->letter);
		if (o->value == ARG_ALLOWED)
			snprintf(left, sizeof(left), "%s--%s[=%s]", letter, o->name, o->metavar);
		else
			snprintf(left, sizeof(left), "%s--%s%s%s", letter, o->name,
				 o->value ? " " : "", o->value ? o->metavar : "");
		args_print_help(left, o->help);
	}
	args_print_help("-h, --help", "show this help");
}

/* ---- Values ------------------------------------------------------------------------------- */

bool args_number(const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return false;
	errno = 0;
	*value = strtoull(text, &end, 10);
	return !errno && !*end && *value >= min && *value <= max;
}
