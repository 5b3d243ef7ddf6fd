/* SPDX-License-Identifier: MIT */
/* What `ubd add` was asked for, or `ubd recover` in its words. */
#ifndef CLI_ADD_ARGS_H
#define CLI_ADD_ARGS_H

#include <stdbool.h>
#include <stddef.h>

#include <ubd/ubd.h>

#include "args.h"

/* One option of the target, as given, paths made absolute. */
struct add_setting {
	const struct ubd_option *option;
	char *value;
};

struct add_request {
	const char *verb; /* which of them */
	const struct ubd_target *target;
	char *target_file; /* of a plugin given by its path, absolute; or NULL */
	struct ubd_device_config config;
	struct add_setting *settings;
	size_t count;
	bool foreground;
	bool json;
	bool help;
};

extern const struct arg_option add_options[];

/* 0, or the exit code after saying what is wrong. With .help the rest need not be complete. */
int add_parse(int argc, char **argv, struct add_request *request);
void add_release(struct add_request *request);
/* A server for it, in the background unless it says otherwise. Returns the exit code. */
int add_serve(struct add_request *request);

#endif
