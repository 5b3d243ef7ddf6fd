/* SPDX-License-Identifier: MIT */
/* ubd list: all devices of the machine, one line each. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "json.h"
#include "say.h"
#include "verbs.h"
#include "view.h"

/* The longest wait for one device: a stuck one must not hide the others. */
#define DEADLINE_MS 3000

enum { KEY_JSON = 1, KEY_NO_HEADINGS, KEY_COLUMNS };

/* ---- Columns ------------------------------------------------------------------------------ */

static char *cell_dev(const struct view *v)
{
	return say_format("/dev/ublkb%u", v->id);
}

static char *cell_target(const struct view *v)
{
	const char *target = json_get_string(v->state, "target");

	return say_format("%s", target ? target : v->served ? v->server.name : "-");
}

static char *cell_size(const struct view *v)
{
	char text[SAY_SIZE_LEN];

	return say_format("%s", say_size(view_size(v), text));
}

static char *cell_queues(const struct view *v)
{
	return say_format("%u", v->info.nr_hw_queues);
}

static char *cell_depth(const struct view *v)
{
	return say_format("%u", v->info.queue_depth);
}

static char *cell_state(const struct view *v)
{
	return say_format("%s", view_state(v));
}

static char *cell_pid(const struct view *v)
{
	return v->served ? say_format("%d", (int)v->server.pid) : say_format("-");
}

static char *cell_way(const struct view *v)
{
	return say_format("%s", view_way(v));
}

static char *cell_options(const struct view *v)
{
	char *text = view_options(v);

	if (*text)
		return text;
	free(text);
	return say_format("-");
}

static const struct column {
	const char *name, *title;
	bool right;
	char *(*cell)(const struct view *v);
} columns[] = {
	{"dev", "DEV", false, cell_dev},
	{"target", "TARGET", false, cell_target},
	{"size", "SIZE", true, cell_size},
	{"queues", "QUEUES", true, cell_queues},
	{"depth", "DEPTH", true, cell_depth},
	{"state", "STATE", false, cell_state},
	{"pid", "PID", true, cell_pid},
	{"way", "WAY", false, cell_way},
	{"options", "OPTIONS", false, cell_options},
};

#define ALL_COLUMNS ARRAY_SIZE(columns)

static const char *column_word(unsigned n)
{
	return n < ALL_COLUMNS ? columns[n].name : NULL;
}

static const struct arg_option options[] = {
	{KEY_JSON, "json", 0, ARG_BARE, NULL, "one JSON document"},
	{KEY_NO_HEADINGS, "noheadings", 'n', ARG_BARE, NULL, "without the line of titles"},
	{KEY_COLUMNS, "columns", 'o', ARG_NEEDED, "LIST", "these columns, comma between",
	 column_word},
	{0},
};

struct choice {
	const struct column *columns[ALL_COLUMNS];
	size_t count;
};

static int choose_columns(struct choice *choice, const char *list)
{
	char *copy = say_format("%s", list), *rest = copy, *word;
	int code = 0;

	choice->count = 0;
	while (!code && (word = strsep(&rest, ","))) {
		struct say_guess guess = {.word = word};
		size_t c = 0;

		while (c < ALL_COLUMNS && strcasecmp(columns[c].name, word) != 0)
			say_guess_try(&guess, columns[c++].name);
		if (c == ALL_COLUMNS)
			code = say_misused("list: no column '%s'%s; there are dev, target, size, "
					   "queues, depth, state, pid, way, options",
					   word, say_guess_hint(&guess, ""));
		else if (choice->count == ALL_COLUMNS)
			code = say_misused("list: %zu columns at most", ALL_COLUMNS);
		else
			choice->columns[choice->count++] = &columns[c];
	}
	free(copy);
	return code;
}

/* ---- Printing ----------------------------------------------------------------------------- */

/* rows of choice->count cells each, the titles first. */
static void print_table(const struct choice *choice, char **cells, size_t rows, bool headings)
{
	for (size_t r = headings ? 0 : 1; r < rows; r++) {
		for (size_t c = 0; c < choice->count; c++) {
			const char *cell = cells[r * choice->count + c];
			bool last = c + 1 == choice->count;
			int width = 0;

			for (size_t k = headings ? 0 : 1; k < rows; k++) {
				int len = (int)strlen(cells[k * choice->count + c]);

				width = len > width ? len : width;
			}
			if (choice->columns[c]->right)
				printf("%*s", width, cell);
			else
				printf("%-*s", last ? 0 : width, cell);
			fputs(last ? "\n" : "  ", stdout);
		}
	}
}

static json_object *view_json(const struct view *v)
{
	json_object *doc = json_object_new_object();
	char *dev = cell_dev(v), *text = view_options(v);

	json_put_number(doc, "id", v->id);
	json_put_string(doc, "path", dev);
	json_put_string(doc, "target", json_get_string(v->state, "target"));
	json_put_number(doc, "size", view_size(v));
	json_put_number(doc, "queues", v->info.nr_hw_queues);
	json_put_number(doc, "depth", v->info.queue_depth);
	json_put_string(doc, "state", view_state(v));
	json_object_object_add(doc, "pid", v->served ? json_object_new_int(v->server.pid) : NULL);
	json_put_string(doc, "server", v->served ? v->server.name : NULL);
	json_put_bool(doc, "ours", v->state != NULL);
	json_put_string(doc, "zero_copy", view_way(v));
	json_put_string(doc, "options", text);
	free(text);
	free(dev);
	return doc;
}

struct listing {
	struct choice choice;
	json_object *list; /* with --json */
	char **cells;	   /* otherwise */
	size_t rows;
};

static void add_row(struct listing *l, const struct view *v)
{
	size_t n = l->choice.count;

	if (l->list) {
		if (v)
			json_object_array_add(l->list, view_json(v));
		return;
	}
	l->cells = reallocarray(l->cells, (l->rows + 1) * n, sizeof(*l->cells));
	if (!l->cells)
		abort();
	for (size_t c = 0; c < n; c++)
		l->cells[l->rows * n + c] = v ? l->choice.columns[c]->cell(v)
					      : say_format("%s", l->choice.columns[c]->title);
	l->rows++;
}

static int read_all(struct listing *l, struct ubd_ctrl *ctrl)
{
	unsigned *ids;
	int n = view_ids(&ids), code = 0;

	if (n < 0)
		return say_failed("list: cannot read the devices from /sys: %s", strerror(-n));
	for (int i = 0; i < n; i++) {
		struct view v;
		int ret = view_read(ctrl, ids[i], &v);

		if (ret && ret != -ENODEV)
			code = say_failed("list: /dev/ublkc%u does not answer: %s", ids[i],
					  strerror(-ret));
		if (ret)
			continue;
		add_row(l, &v);
		view_release(&v);
	}
	free(ids);
	return code;
}

static int print_list(struct listing *l, bool headings)
{
	struct ubd_ctrl *ctrl = control_open("list");
	json_object *doc;
	int code;

	if (!ctrl)
		return EXIT_FAILED;
	ubd_ctrl_set_deadline(ctrl, DEADLINE_MS);
	add_row(l, NULL);
	say_waiting("the driver to describe its devices");
	code = read_all(l, ctrl);
	say_waited();
	ubd_ctrl_close(ctrl);
	if (l->list) {
		doc = json_object_new_object();
		json_object_object_add(doc, "devices", json_object_get(l->list));
		json_print(doc);
		json_object_put(doc);
	} else {
		print_table(&l->choice, l->cells, l->rows, headings);
	}
	for (size_t i = 0; i < l->rows * l->choice.count; i++)
		free(l->cells[i]);
	free(l->cells);
	return code;
}

static int run(int argc, char **argv)
{
	struct listing l = {.choice = {.count = ALL_COLUMNS}};
	bool headings = true, json = false;
	const char *value;
	struct args args;
	int key, code = 0;

	for (size_t c = 0; c < ALL_COLUMNS; c++)
		l.choice.columns[c] = &columns[c];
	args_begin(&args, "list", options, argc, argv);
	while (!code && (key = args_next(&args, &value)) != ARG_END) {
		if (key == ARG_BAD)
			return EXIT_MISUSED;
		if (key == ARG_HELP)
			return verb_print_help(&verb_list);
		if (key == ARG_WORD)
			code = say_misused("list: takes no argument '%s' (ubd info %s describes "
					   "one device)",
					   value, value);
		else if (key == KEY_JSON)
			json = true;
		else if (key == KEY_NO_HEADINGS)
			headings = false;
		else
			code = choose_columns(&l.choice, value);
	}
	if (code)
		return code;
	l.list = json ? json_object_new_array() : NULL;
	code = print_list(&l, headings);
	json_object_put(l.list);
	return code;
}

const struct verb verb_list = {
	.name = "list",
	.usage = "[--json] [-n] [-o COLUMN,...]",
	.summary = "list all devices",
	.options = options,
	.details = "Columns: dev, target, size, queues, depth, state, pid, way, options.\n"
		   "Devices served by other programs are listed too, with the program's name as\n"
		   "target.\n",
	.run = run,
};
