/* SPDX-License-Identifier: MIT */
/* One device as everybody sees it: what the driver, the state file and the process table say. */
#ifndef CLI_VIEW_H
#define CLI_VIEW_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include <ubd/ubd.h>

#include "../include/uapi/ublk.h"
#include "process.h"

struct view {
	unsigned id;
	uint64_t birth; /* tells the device from a later one of the same number */
	struct ublksrv_ctrl_dev_info info;
	struct ublk_params params; /* .types is 0 when there are none yet */
	json_object *state;	   /* of our server, dead or alive; NULL: not ours */
	bool served;		   /* .server is alive */
	struct process server;	   /* .pid also when it has ended; 0: never known */
};

/* 3, ublkb3, ublkc3, /dev/ublkb3 or /dev/ublkc3. false: none of them. */
bool view_parse(const char *text, unsigned *id);
/* The same for a word of the command line: 0, or the exit code after saying what would be one. */
int view_need(const char *verb, const char *word, unsigned *id);
/* What identifies device id now; 0: there is none. */
uint64_t view_birth(unsigned id);
/* 0 or -errno, -ENODEV: no such device. Ended by view_release(). */
int view_read(struct ubd_ctrl *ctrl, unsigned id, struct view *view);
void view_release(struct view *view);

/* "live", "dead", "quiesced", "fail-io", "server gone". */
const char *view_state(const struct view *view);
uint64_t view_size(const struct view *view); /* bytes */
/* The way in force; for servers not ours as far as the flags tell. */
const char *view_way(const struct view *view);
/* "file=disk.img ro=yes" or ""; the caller's to free. */
char *view_options(const struct view *view);

/* The ids of all devices, in order; *ids is the caller's to free. Count or -errno. */
int view_ids(unsigned **ids);

#endif
