/* SPDX-License-Identifier: MIT */
/* One device as everybody sees it: what the driver, the state file and the process table say. */
#define _GNU_SOURCE
#include "view.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "args.h"
#include "json.h"
#include "say.h"
#include "state.h"

#define CLASS_DIR "/sys/class/ublk-char"

bool view_parse(const char *text, unsigned *id)
{
	uint64_t n;

	if (strncmp(text, "/dev/", 5) == 0)
		text += 5;
	if (strncmp(text, "ublkb", 5) == 0 || strncmp(text, "ublkc", 5) == 0)
		text += 5;
	if (!args_number(text, 0, UINT32_MAX - 1, &n))
		return false;
	*id = (unsigned)n;
	return true;
}

int view_need(const char *verb, const char *word, unsigned *id)
{
	if (view_parse(word, id))
		return 0;
	return say_misused("%s: '%s' names no device: 3, ublkb3 and /dev/ublkb3 would", verb, word);
}

/* The kernel numbers sysfs directories without ever using a number again. */
uint64_t view_birth(unsigned id)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), CLASS_DIR "/ublkc%u/", id);
	return stat(path, &st) == 0 ? st.st_ino : 0;
}

static void find_server(struct view *v)
{
	json_object *state = state_read(v->id);
	pid_t live = v->info.ublksrv_pid;
	bool ours = state && state_server(state, &v->server);

	/* A file left by an earlier device of this number says nothing about this one. */
	if (state && live > 0 && live != (pid_t)json_get_number(state, "pid")) {
		json_object_put(state);
		state = NULL;
		ours = false;
	}
	v->state = state;
	v->served = ours;
	if (!ours)
		v->served = live > 0 && process_read(live, &v->server);
	if (!v->served)
		v->server = (struct process){
			.pid = live > 0 ? live : (pid_t)json_get_number(state, "pid")};
}

int view_read(struct ubd_ctrl *ctrl, unsigned id, struct view *v)
{
	int ret;

	memset(v, 0, sizeof(*v));
	v->id = id;
	v->birth = view_birth(id);
	ret = ubd_ctrl_info(ctrl, id, &v->info);
	if (ret)
		return ret == -EINVAL || ret == -ENOENT ? -ENODEV : ret;
	if (ubd_ctrl_params(ctrl, id, &v->params))
		v->params.types = 0;
	find_server(v);
	return 0;
}

void view_release(struct view *v)
{
	json_object_put(v->state);
	v->state = NULL;
}

const char *view_state(const struct view *v)
{
	switch (v->info.state) {
	case UBLK_S_DEV_LIVE:
		return v->served ? "live" : "server gone";
	case UBLK_S_DEV_QUIESCED:
		return "quiesced";
	case UBLK_S_DEV_FAIL_IO:
		return "fail-io";
	default:
		return v->state && !v->served ? "server gone" : "dead";
	}
}

uint64_t view_size(const struct view *v)
{
	return v->params.types & UBLK_PARAM_TYPE_BASIC ? v->params.basic.dev_sectors << 9 : 0;
}

const char *view_way(const struct view *v)
{
	const char *word = json_get_string(v->state, "zero_copy");
	uint64_t flags = v->info.flags;
	int way = UBD_ZC_MAX - 1;

	if (word)
		return word;
	/* Each asks for what it needs, and no more. */
	while (way > UBD_ZC_OFF && !ubd_zero_copy_offered((enum ubd_zero_copy)way, flags))
		way--;
	return ubd_zero_copy_name((enum ubd_zero_copy)way);
}

char *view_options(const struct view *v)
{
	json_object *options;
	char *text = say_format("%s", "");

	if (!v->state || !json_object_object_get_ex(v->state, "options", &options) ||
	    !json_object_is_type(options, json_type_array))
		return text;
	for (size_t i = 0; i < json_object_array_length(options); i++) {
		const json_object *pair = json_object_array_get_idx(options, i);
		const char *name = json_get_string(pair, "name");
		const char *value = json_get_string(pair, "value");
		char *longer = say_format("%s%s%s=%s", text, i ? " " : "", name ? name : "?",
					  value ? value : "?");

		free(text);
		text = longer;
	}
	return text;
}

static int by_number(const void *a, const void *b)
{
	unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;

	return (x > y) - (x < y);
}

int view_ids(unsigned **ids)
{
	DIR *d = opendir(CLASS_DIR);
	unsigned *all = NULL, id;
	struct dirent *entry;
	size_t n = 0;

	*ids = NULL;
	if (!d)
		return errno == ENOENT ? 0 : -errno;
	while ((entry = readdir(d))) {
		unsigned *more;

		if (sscanf(entry->d_name, "ublkc%u", &id) != 1)
			continue;
		more = reallocarray(all, n + 1, sizeof(*all));
		if (!more) {
			free(all);
			closedir(d);
			return -ENOMEM;
		}
		all = more;
		all[n++] = id;
	}
	closedir(d);
	if (n)
		qsort(all, n, sizeof(*all), by_number);
	*ids = all;
	return (int)n;
}
