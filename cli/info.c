/* SPDX-License-Identifier: MIT */
/* ubd info: everything about one device. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "control.h"
#include "holders.h"
#include "json.h"
#include "say.h"
#include "state.h"
#include "verbs.h"
#include "view.h"

#define DEADLINE_MS 5000

enum { KEY_JSON = 1 };

static const struct arg_option options[] = {
	{KEY_JSON, "json", 0, ARG_BARE, NULL, "one JSON document"},
	{0},
};

/* ---- One document, from which both forms are printed -------------------------------------- */

static json_object *flag_names(uint64_t flags)
{
	json_object *list = json_object_new_array();
	const char *name;
	uint64_t mask;

	for (unsigned n = 0; (name = ubd_feature_name(n, &mask, NULL)); n++)
		if (flags & mask)
			json_object_array_add(list, json_object_new_string(name));
	return list;
}

static json_object *device_json(const struct view *v)
{
	const struct ublksrv_ctrl_dev_info *info = &v->info;
	json_object *doc = json_object_new_object();

	json_put_number(doc, "queues", info->nr_hw_queues);
	json_put_number(doc, "depth", info->queue_depth);
	json_put_number(doc, "max_io", info->max_io_buf_bytes);
	json_object_object_add(doc, "server_pid", json_object_new_int(info->ublksrv_pid));
	json_put_number(doc, "flags", info->flags);
	json_object_object_add(doc, "flag_names", flag_names(info->flags));
	json_put_number(doc, "owner_uid", info->owner_uid);
	json_put_number(doc, "owner_gid", info->owner_gid);
	return doc;
}

static void add_basic(json_object *doc, const struct ublk_param_basic *b)
{
	json_put_number(doc, "size", b->dev_sectors << 9);
	json_put_number(doc, "logical_block", 1ULL << b->logical_bs_shift);
	json_put_number(doc, "physical_block", 1ULL << b->physical_bs_shift);
	json_put_number(doc, "io_min", 1ULL << b->io_min_shift);
	/* A shift of 0 says that there is no preference. */
	json_put_number(doc, "io_opt", b->io_opt_shift ? 1ULL << b->io_opt_shift : 0);
	json_put_number(doc, "max_request", (uint64_t)b->max_sectors << 9);
	json_put_number(doc, "chunk", (uint64_t)b->chunk_sectors << 9);
	json_put_bool(doc, "read_only", b->attrs & UBLK_ATTR_READ_ONLY);
	json_put_bool(doc, "rotational", b->attrs & UBLK_ATTR_ROTATIONAL);
	json_put_bool(doc, "volatile_cache", b->attrs & UBLK_ATTR_VOLATILE_CACHE);
	json_put_bool(doc, "fua", b->attrs & UBLK_ATTR_FUA);
}

static json_object *params_json(const struct ublk_params *p)
{
	json_object *doc = json_object_new_object();

	if (p->types & UBLK_PARAM_TYPE_BASIC)
		add_basic(doc, &p->basic);
	if (p->types & UBLK_PARAM_TYPE_DISCARD) {
		json_put_number(doc, "max_discard", (uint64_t)p->discard.max_discard_sectors << 9);
		json_put_number(doc, "max_write_zeroes",
				(uint64_t)p->discard.max_write_zeroes_sectors << 9);
		json_put_number(doc, "discard_granularity", p->discard.discard_granularity);
	}
	if (p->types & UBLK_PARAM_TYPE_DEVT) {
		json_put_number(doc, "disk_major", p->devt.disk_major);
		json_put_number(doc, "disk_minor", p->devt.disk_minor);
	}
	if (p->types & UBLK_PARAM_TYPE_DMA_ALIGN)
		json_put_number(doc, "dma_alignment", p->dma.alignment + 1ULL);
	if (p->types & UBLK_PARAM_TYPE_ZONED) {
		json_put_number(doc, "max_open_zones", p->zoned.max_open_zones);
		json_put_number(doc, "max_active_zones", p->zoned.max_active_zones);
		json_put_number(doc, "max_zone_append",
				(uint64_t)p->zoned.max_zone_append_sectors << 9);
	}
	return doc;
}

static json_object *server_json(const struct view *v)
{
	json_object *doc = json_object_new_object();

	json_put_number(doc, "pid", (uint64_t)v->server.pid);
	json_put_bool(doc, "alive", v->served);
	json_put_bool(doc, "suspended", v->served && strchr("Tt", v->server.state));
	json_put_string(doc, "name", v->served ? v->server.name : NULL);
	json_put_bool(doc, "ours", v->state != NULL);
	return doc;
}

static json_object *stats_json(unsigned id)
{
	json_object *doc = json_object_new_object();
	struct state_stats copy;
	const struct ubd_stats *s = &copy.stats;

	if (!state_stats_read(id, &copy)) {
		json_object_put(doc);
		return NULL;
	}
	json_put_number(doc, "time", copy.time);
	json_put_number(doc, "reads", s->requests[0]);
	json_put_number(doc, "writes", s->requests[1]);
	json_put_number(doc, "flushes", s->requests[2]);
	json_put_number(doc, "others", s->requests[3]);
	json_put_number(doc, "bytes_read", s->bytes[0]);
	json_put_number(doc, "bytes_written", s->bytes[1]);
	json_put_number(doc, "errors", s->errors);
	json_put_number(doc, "bytes_copied", s->bytes_copied);
	json_put_number(doc, "bytes_moved", s->bytes_moved);
	json_put_number(doc, "sqes", s->sqes);
	json_put_number(doc, "cqes", s->cqes);
	json_put_number(doc, "enters", s->enters);
	return doc;
}

static json_object *whole(const struct view *v)
{
	json_object *doc = json_object_new_object();
	char *path = say_format("/dev/ublkb%u", v->id), *users;
	bool lasting;

	json_put_number(doc, "id", v->id);
	json_put_string(doc, "path", path);
	json_put_string(doc, "state", view_state(v));
	json_put_number(doc, "size", view_size(v));
	json_put_string(doc, "zero_copy", view_way(v));
	users = holders_of(v->id, &lasting);
	json_put_string(doc, "users", users);
	json_object_object_add(doc, "server", server_json(v));
	json_object_object_add(doc, "device", device_json(v));
	json_object_object_add(doc, "params", params_json(&v->params));
	json_object_object_add(doc, "server_state", json_object_get(v->state));
	json_object_object_add(doc, "stats", v->state ? stats_json(v->id) : NULL);
	free(users);
	free(path);
	return doc;
}

/* ---- For people --------------------------------------------------------------------------- */

/* Members that count bytes; the rest are printed as they are. */
static bool is_size(const char *key)
{
	static const char *const keys[] = {
		"size",
		"max_io",
		"logical_block",
		"physical_block",
		"io_min",
		"io_opt",
		"max_request",
		"chunk",
		"max_discard",
		"max_write_zeroes",
		"discard_granularity",
		"dma_alignment",
		"bytes_read",
		"bytes_written",
		"bytes_copied",
		"bytes_moved",
		"max_zone_append",
	};

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		if (strcmp(keys[i], key) == 0)
			return true;
	return false;
}

static void print_list(json_object *list)
{
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		json_object *item = json_object_array_get_idx(list, i);

		if (json_object_is_type(item, json_type_object))
			printf("%s%s=%s", i ? " " : "", json_get_string(item, "name"),
			       json_get_string(item, "value"));
		else
			printf("%s%s", i ? " " : "", json_object_get_string(item));
	}
	printf("\n");
}

static void print_value(const char *key, json_object *value)
{
	char text[SAY_SIZE_LEN], date[64];
	time_t when;

	switch (json_object_get_type(value)) {
	case json_type_null:
		printf("-\n");
		break;
	case json_type_boolean:
		printf("%s\n", json_object_get_boolean(value) ? "yes" : "no");
		break;
	case json_type_array:
		print_list(value);
		break;
	case json_type_int:
		when = (time_t)json_object_get_int64(value);
		if (is_size(key))
			printf("%s\n", say_size(json_object_get_uint64(value), text));
		else if ((strcmp(key, "started") == 0 || strcmp(key, "time") == 0) &&
			 strftime(date, sizeof(date), "%F %T %z", localtime(&when)))
			printf("%s\n", date);
		else if (strcmp(key, "flags") == 0)
			printf("0x%" PRIx64 "\n", json_object_get_uint64(value));
		else
			printf("%s\n", json_object_get_string(value));
		break;
	default:
		printf("%s\n", json_object_get_string(value));
	}
}

static void print_object(json_object *doc, int indent)
{
	json_object_object_foreach(doc, key, value)
	{
		char *title = say_format("%s:", key);

		for (char *at = title; *at; at++)
			*at = *at == '_' ? ' ' : *at;
		if (json_object_is_type(value, json_type_object)) {
			printf("%*s%s\n", indent, "", title);
			print_object(value, indent + 2);
		} else {
			printf("%*s%-*s ", indent, "", 22 - indent, title);
			print_value(key, value);
		}
		free(title);
	}
}

static int print_device(unsigned id, bool json)
{
	struct ubd_ctrl *ctrl = control_open("info");
	json_object *doc;
	struct view v;
	int ret;

	if (!ctrl)
		return EXIT_FAILED;
	ubd_ctrl_set_deadline(ctrl, DEADLINE_MS);
	say_waiting("the driver to describe device %u", id);
	ret = view_read(ctrl, id, &v);
	say_waited();
	ubd_ctrl_close(ctrl);
	if (ret == -ENODEV)
		return say_failed("info: there is no device %u (ubd list shows those there are)",
				  id);
	if (ret)
		return say_failed("info: cannot ask for device %u: %s", id, strerror(-ret));
	doc = whole(&v);
	if (json)
		json_print(doc);
	else
		print_object(doc, 0);
	json_object_put(doc);
	view_release(&v);
	return 0;
}

static int run(int argc, char **argv)
{
	const char *value, *name = NULL;
	bool json = false;
	struct args args;
	unsigned id;
	int key, code;

	args_begin(&args, "info", options, argc, argv);
	while ((key = args_next(&args, &value)) != ARG_END) {
		if (key == ARG_BAD)
			return EXIT_MISUSED;
		if (key == ARG_HELP)
			return verb_print_help(&verb_info);
		if (key == KEY_JSON)
			json = true;
		else if (name)
			return say_misused("info: one device at a time, not '%s' as well", value);
		else
			name = value;
	}
	if (!name)
		return say_misused("info: name a device, as in ubd info 0");
	code = view_need("info", name, &id);
	return code ? code : print_device(id, json);
}

const struct verb verb_info = {
	.name = "info",
	.usage = "[--json] DEV",
	.summary = "show everything about a device",
	.options = options,
	.details = "DEV is 3, ublkb3 or /dev/ublkb3.\n",
	.run = run,
};
