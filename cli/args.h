/* SPDX-License-Identifier: MIT */
/* A verb's options: one table parses them, prints their help and completes them. */
#ifndef CLI_ARGS_H
#define CLI_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum arg_value {
	ARG_BARE,    /* --name */
	ARG_NEEDED,  /* --name VALUE, --name=VALUE, -n VALUE, -nVALUE */
	ARG_ALLOWED, /* --name or --name=VALUE */
};

struct arg_option {
	int key; /* what args_next() returns for it, above 0; 0 ends the table */
	const char *name;
	char letter; /* 0: none */
	enum arg_value value;
	const char *metavar;
	const char *help; /* one line, no full stop */
	/* The nth word it takes as a value, NULL past the end; for completion. */
	const char *(*word)(unsigned n);
};

/* Results of args_next() beside the keys. */
enum {
	ARG_END = 0,
	ARG_WORD = -1, /* *value is not an option */
	ARG_HELP = -2, /* --help or -h */
	ARG_BAD = -3,  /* said so; exit with EXIT_MISUSED */
};

struct args {
	const char *verb;
	const struct arg_option *options;
	int argc, next;
	char **argv;
	const char *bundle; /* rest of "-rz" after one letter */
	bool literal;	    /* "--" was seen */
};

void args_begin(struct args *args, const char *verb, const struct arg_option *options, int argc,
		char **argv);
int args_next(struct args *args, const char **value);

/* By name of len bytes, by letter; NULL: none. */
const struct arg_option *args_by_name(const struct arg_option *options, const char *name,
				      size_t len);
const struct arg_option *args_by_letter(const struct arg_option *options, char letter);
/* The two columns of one option in help. */
void args_print_help(const char *left, const char *help);
void args_print_options(const struct arg_option *options);

/* A whole number. false: not one, or out of [min, max]. */
bool args_number(const char *text, uint64_t min, uint64_t max, uint64_t *value);

#endif
