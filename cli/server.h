/* SPDX-License-Identifier: MIT */
/* The process that serves a device: what it tells, whom it obeys, how it ends. */
#ifndef CLI_SERVER_H
#define CLI_SERVER_H

#include "add_args.h"

/* First byte on the report pipe; text follows to the end. */
#define SERVER_READY 'R'  /* what to print on stdout */
#define SERVER_FAILED 'F' /* the sentence for stderr */

/* For ubd_device_config.notice: stderr, or the system log once nobody watches any more. */
void server_notice(void *arg, const char *line);

/*
 * Start the device, serve it until it is stopped by a signal or by anybody else, delete it. With
 * report_fd the outcome of starting goes there and standard streams are given up; with -1, the
 * foreground, to stdout and stderr. Frees dev. Returns the exit code.
 */
int server_run(const struct add_request *request, struct ubd_device *dev, int report_fd);

#endif
