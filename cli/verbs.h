/* SPDX-License-Identifier: MIT */
/* The verbs of the command: one object each, in a file of the same name. */
#ifndef CLI_VERBS_H
#define CLI_VERBS_H

#include "args.h"

struct verb {
	const char *name;
	const char *usage;   /* what follows "ubd NAME " */
	const char *summary; /* one line, no full stop */
	const struct arg_option *options;
	const char *details; /* more help, complete lines, or NULL */
	/* argv[0] is the first word after the verb. Returns the exit code. */
	int (*run)(int argc, char **argv);
};

extern const struct verb verb_add, verb_del, verb_list, verb_info, verb_features, verb_targets,
	verb_recover, verb_snapshot, verb_resize, verb_help, verb_version;

/* All verbs, in the order of help; ends with NULL. */
extern const struct verb *const verbs[];

/* Print a verb's help to stdout; returns 0. */
int verb_print_help(const struct verb *verb);

#endif
