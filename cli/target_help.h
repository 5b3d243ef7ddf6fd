/* SPDX-License-Identifier: MIT */
/* What a target's option table says: finding options in it, and explaining it. */
#ifndef CLI_TARGET_HELP_H
#define CLI_TARGET_HELP_H

#include <json-c/json.h>

#include <ubd/ubd.h>

/* The target, or NULL after saying why there is none. */
const struct ubd_target *target_need(const char *verb, const char *name);
/* One option by its name of len bytes, by letter, or the next positional one after `after`. */
const struct ubd_option *target_option(const struct ubd_target *target, const char *name,
				       size_t len);
const struct ubd_option *target_letter(const struct ubd_target *target, char letter);
const struct ubd_option *target_positional(const struct ubd_target *target,
					   const struct ubd_option *after);

/* Print what a target takes; returns the exit code. */
int target_help(const char *name);
void target_print(const struct ubd_target *target);
/* The same as JSON, and as bare words for completion. */
json_object *target_json(const struct ubd_target *target);
void target_print_plain(const struct ubd_target *target);

#endif
