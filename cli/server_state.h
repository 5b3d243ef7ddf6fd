/* SPDX-License-Identifier: MIT */
/* A running server's description of its device. */
#ifndef CLI_SERVER_STATE_H
#define CLI_SERVER_STATE_H

#include <json-c/json.h>

#include "add_args.h"

/* The document of RUN/N.json and of `ubd add --json`; the caller's to release. */
json_object *server_state(const struct add_request *request, const struct ubd_device *dev);

/* What its target says of itself, for the member "status"; NULL: nothing. The caller's. */
json_object *server_status(const struct ubd_device *dev);

#endif
