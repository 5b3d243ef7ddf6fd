/* SPDX-License-Identifier: MIT */
/*
 * The arguments of `ubd add`: options of every device and options of one target, told apart.
 *
 * Before the target's name only the former are possible. After it, the target's own come first,
 * so that a target may use any name or letter it likes.
 */
#define _GNU_SOURCE
#include "add_args.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "say.h"
#include "target_help.h"

#define MAX_ID ((1u << 20) - 1)
#define MAX_MAX_IO (32u << 20)

enum {
	KEY_TARGET = 1,
	KEY_ID,
	KEY_QUEUES,
	KEY_DEPTH,
	KEY_BLOCK_SIZE,
	KEY_MAX_IO,
	KEY_READ_ONLY,
	KEY_ZERO_COPY,
	KEY_RECOVERY,
	KEY_NO_PARTITIONS,
	KEY_PIN,
	KEY_BATCH,
	KEY_POPULATE,
	KEY_UNPRIVILEGED,
	KEY_FOREGROUND,
	KEY_DEADLINE,
	KEY_JSON,
};

static const char *way_word(unsigned n)
{
	return ubd_zero_copy_name((enum ubd_zero_copy)n);
}

static const char *mode_word(unsigned n)
{
	return ubd_recovery_name((enum ubd_recovery)n);
}

static const char *target_word(unsigned n)
{
	const struct ubd_target *const *t = ubd_targets();

	for (unsigned i = 0; t[i]; i++)
		if (i == n)
			return t[i]->name;
	return NULL;
}

const struct arg_option add_options[] = {
	{KEY_TARGET, "target", 't', ARG_NEEDED, "TARGET", "the target, instead of as a word",
	 target_word},
	{KEY_ID, "id", 'n', ARG_NEEDED, "N", "number of the device (default: a free one)"},
	{KEY_QUEUES, "queues", 'q', ARG_NEEDED, "N", "queues, each with a thread (default: 1)"},
	{KEY_DEPTH, "depth", 'd', ARG_NEEDED, "N", "requests in flight per queue (default: 128)"},
	{KEY_BLOCK_SIZE, "block-size", 0, ARG_NEEDED, "SIZE", "logical block (default: target's)"},
	{KEY_MAX_IO, "max-io", 0, ARG_NEEDED, "SIZE", "largest request (default: 512K)"},
	{KEY_READ_ONLY, "read-only", 'r', ARG_BARE, NULL, "refuse writes"},
	{KEY_ZERO_COPY, "zero-copy", 'z', ARG_ALLOWED, "WAY",
	 "how data travels (default: auto, the best)", way_word},
	{KEY_RECOVERY, "recovery", 0, ARG_NEEDED, "MODE",
	 "when the server dies: none|queue|reissue|fail", mode_word},
	{KEY_NO_PARTITIONS, "no-partitions", 0, ARG_BARE, NULL, "do not read a partition table"},
	{KEY_PIN, "pin", 0, ARG_BARE, NULL, "keep each queue's thread on that queue's CPUs"},
	{KEY_BATCH, "batch", 0, ARG_BARE, NULL,
	 "let submitters go on first: throughput over latency"},
	{KEY_POPULATE, "populate", 0, ARG_BARE, NULL,
	 "take the memory of all buffers at once: for swap, by copy"},
	{KEY_UNPRIVILEGED, "unprivileged", 0, ARG_BARE, NULL, "a device owned by an ordinary user"},
	{KEY_FOREGROUND, "foreground", 'f', ARG_BARE, NULL, "serve from here until interrupted"},
	{KEY_DEADLINE, "deadline", 0, ARG_NEEDED, "SECONDS",
	 "longest wait for the driver (default: 30)"},
	{KEY_JSON, "json", 0, ARG_BARE, NULL, "print the device as one JSON document"},
	{0},
};

struct parser {
	struct add_request *request;
	char **argv;
	int argc, next;
	const struct ubd_option *positional; /* the one used last */
};

/* ---- Options of every device -------------------------------------------------------------- */

static int set_number(const char *name, const char *text, uint64_t min, uint64_t max, unsigned *out)
{
	uint64_t value;

	if (!args_number(text, min, max, &value))
		return say_misused("add: --%s must be a number from %llu to %llu, not '%s'", name,
				   (unsigned long long)min, (unsigned long long)max, text);
	*out = (unsigned)value;
	return 0;
}

static int set_block_size(struct ubd_device_config *config, const char *text)
{
	uint64_t value;

	if (ubd_size_parse(text, &value) || value < 512 || value > 4096 || value & (value - 1))
		return say_misused("add: --block-size must be a power of two from 512 to 4K, "
				   "not '%s'",
				   text);
	config->block_size = (uint32_t)value;
	return 0;
}

static int set_max_io(struct ubd_device_config *config, const char *text)
{
	uint64_t value;

	if (ubd_size_parse(text, &value) || value < 4096 || value > MAX_MAX_IO || value % 4096)
		return say_misused("add: --max-io must be a multiple of 4K from 4K to 32M, "
				   "not '%s'",
				   text);
	config->max_io = (uint32_t)value;
	return 0;
}

static int set_zero_copy(struct ubd_device_config *config, const char *word)
{
	struct say_guess guess = {.word = word ? word : ""};
	char ways[128] = "";
	int way = word ? ubd_zero_copy_parse(word) : UBD_ZC_AUTO;

	if (way >= 0) {
		config->zero_copy = (enum ubd_zero_copy)way;
		return 0;
	}
	for (int w = 0; w < UBD_ZC_MAX; w++) {
		size_t len = strlen(ways);

		say_guess_try(&guess, ubd_zero_copy_name((enum ubd_zero_copy)w));
		snprintf(ways + len, sizeof(ways) - len, "%s%s", len ? ", " : "",
			 ubd_zero_copy_name((enum ubd_zero_copy)w));
	}
	return say_misused("add: --zero-copy must be one of %s, not '%s'%s", ways, word,
			   say_guess_hint(&guess, ""));
}

static int set_recovery(struct ubd_device_config *config, const char *word)
{
	int mode = ubd_recovery_parse(word);

	if (mode < 0)
		return say_misused("add: --recovery must be one of none, queue, reissue, fail, "
				   "not '%s'",
				   word);
	config->recovery = (enum ubd_recovery)mode;
	return 0;
}

static char *absolute(const char *path)
{
	char *cwd, *whole;

	if (path[0] == '/' || !path[0])
		return say_format("%s", path);
	cwd = getcwd(NULL, 0);
	whole = say_format("%s%s%s", cwd ? cwd : "", cwd ? "/" : "", path);
	free(cwd);
	return whole;
}

static int set_target(struct parser *p, const char *name)
{
	struct add_request *r = p->request;

	if (r->target)
		return say_misused("add: one target at a time, not '%s' as well", name);
	r->target = target_need(r->verb, name);
	if (r->target && strchr(name, '/'))
		r->target_file = absolute(name);
	return r->target ? 0 : EXIT_MISUSED;
}

static int set_general(struct parser *p, const struct arg_option *o, const char *value)
{
	struct ubd_device_config *config = &p->request->config;
	unsigned seconds = 0;
	int ret;

	switch (o->key) {
	case KEY_TARGET:
		return set_target(p, value);
	case KEY_ID:
		config->has_id = true;
		return set_number(o->name, value, 0, MAX_ID, &config->id);
	case KEY_QUEUES:
		return set_number(o->name, value, 1, UBD_MAX_QUEUES, &config->queues);
	case KEY_DEPTH:
		return set_number(o->name, value, 1, UBD_MAX_DEPTH, &config->depth);
	case KEY_BLOCK_SIZE:
		return set_block_size(config, value);
	case KEY_MAX_IO:
		return set_max_io(config, value);
	case KEY_ZERO_COPY:
		return set_zero_copy(config, value);
	case KEY_RECOVERY:
		return set_recovery(config, value);
	case KEY_DEADLINE:
		ret = set_number(o->name, value, 1, 86400, &seconds);
		if (!ret)
			config->deadline_ms = seconds * 1000;
		return ret;
	case KEY_READ_ONLY:
		config->read_only = true;
		break;
	case KEY_NO_PARTITIONS:
		config->no_partitions = true;
		break;
	case KEY_PIN:
		config->pin = true;
		break;
	case KEY_BATCH:
		config->batch = true;
		break;
	case KEY_POPULATE:
		config->populate = true;
		break;
	case KEY_UNPRIVILEGED:
		config->unprivileged = true;
		break;
	case KEY_FOREGROUND:
		p->request->foreground = true;
		break;
	case KEY_JSON:
		p->request->json = true;
		break;
	}
	return 0;
}

/* ---- Options of the target ---------------------------------------------------------------- */

static int add_setting(struct parser *p, const struct ubd_option *o, const char *value)
{
	struct add_request *r = p->request;
	bool path = o->type == UBD_PATH || o->type == UBD_PATHS;
	struct add_setting *more;

	more = reallocarray(r->settings, r->count + 1, sizeof(*more));
	if (!more)
		return say_failed("add: out of memory");
	r->settings = more;
	more[r->count++] = (struct add_setting){
		.option = o,
		.value = path ? absolute(value) : say_format("%s", value),
	};
	return 0;
}

static bool already_set(const struct add_request *r, const struct ubd_option *o)
{
	for (size_t i = 0; i < r->count; i++)
		if (r->settings[i].option == o)
			return true;
	return false;
}

static const char *hint(const struct ubd_target *target, const char *name, bool general)
{
	struct say_guess guess = {.word = name};

	for (const struct ubd_option *o = target ? target->options : NULL; o && o->name; o++)
		say_guess_try(&guess, o->name);
	for (const struct arg_option *o = add_options; general && o->key; o++)
		say_guess_try(&guess, o->name);
	return say_guess_hint(&guess, general ? "--" : "");
}

/* A word that is no option: the target's name, NAME=VALUE, or the next positional option. */
static int take_word(struct parser *p, const char *word)
{
	const struct ubd_target *target = p->request->target;
	const struct ubd_option *o;
	size_t len = strcspn(word, "=");
	char *name;
	int ret;

	if (!target)
		return set_target(p, word);
	if (word[len] && (o = target_option(target, word, len)))
		return add_setting(p, o, word + len + 1);
	o = p->positional;
	if (!o || (o->type != UBD_LIST && o->type != UBD_PATHS)) {
		do
			o = target_positional(target, o);
		while (o && already_set(p->request, o));
	}
	if (o) {
		p->positional = o;
		return add_setting(p, o, word);
	}
	name = say_format("%.*s", (int)len, word);
	if (word[len])
		ret = say_misused("add: target %s has no option '%s'%s (see ubd help add %s)",
				  target->name, name, hint(target, name, false), target->name);
	else
		ret = say_misused("add: target %s takes no argument '%s' (see ubd help add %s)",
				  target->name, word, target->name);
	free(name);
	return ret;
}

/* The value of an option: what follows '=' or in the same word, or else the next word. */
static int take_value(struct parser *p, const char *option, const char **value)
{
	if (*value)
		return 0;
	if (p->next >= p->argc)
		return say_misused("add: option %s needs a value", option);
	*value = p->argv[p->next++];
	return 0;
}

static int take_target_option(struct parser *p, const struct ubd_option *o, const char *option,
			      const char *value)
{
	int ret;

	if (o->type == UBD_BOOL)
		return add_setting(p, o, value ? value : "yes");
	ret = take_value(p, option, &value);
	return ret ? ret : add_setting(p, o, value);
}

static int unknown_option(const struct parser *p, const char *word)
{
	const struct ubd_target *target = p->request->target;
	char *name = say_format("%.*s", (int)strcspn(word, "="), word);
	bool is_long = word[1] == '-';
	const char *guess = is_long ? hint(target, name + 2, true) : "";
	int ret;

	if (target)
		ret = say_misused("add: neither target %s nor add has an option '%s'%s "
				  "(see ubd help add %s)",
				  target->name, name, guess, target->name);
	else
		ret = say_misused("add: unknown option '%s'%s%s (see ubd help add)", name, guess,
				  *guess ? "" : "; options of a target come after its name");
	free(name);
	return ret;
}

static int take_long(struct parser *p, const char *word)
{
	const struct ubd_target *target = p->request->target;
	size_t len = strcspn(word + 2, "=");
	const char *value = word[2 + len] ? word + 3 + len : NULL;
	const struct ubd_option *own = target ? target_option(target, word + 2, len) : NULL;
	const struct arg_option *o = args_by_name(add_options, word + 2, len);
	int ret = 0;

	if (own)
		return take_target_option(p, own, word, value);
	if (!o && strcmp(word, "--help") == 0) {
		p->request->help = true;
		return 0;
	}
	if (!o)
		return unknown_option(p, word);
	if (o->value == ARG_BARE && value)
		return say_misused("add: option --%s takes no value", o->name);
	if (o->value == ARG_NEEDED)
		ret = take_value(p, word, &value);
	return ret ? ret : set_general(p, o, value);
}

/* "-q2", "-q 2" or several letters without values, "-rz". */
static int take_short(struct parser *p, const char *word)
{
	for (const char *at = word + 1; *at && !p->request->help; at++) {
		const struct ubd_target *target = p->request->target;
		const struct ubd_option *own = target ? target_letter(target, *at) : NULL;
		const struct arg_option *o = args_by_letter(add_options, *at);
		char option[] = {'-', *at, '\0'};
		const char *value = at[1] ? at + 1 : NULL;
		int ret = 0;

		if (own && own->type != UBD_BOOL)
			return take_target_option(p, own, option, value);
		if (own)
			ret = take_target_option(p, own, option, NULL);
		else if (!o && *at == 'h')
			p->request->help = true;
		else if (!o)
			ret = unknown_option(p, option);
		else if (o->value == ARG_NEEDED)
			return (ret = take_value(p, option, &value)) ? ret
								     : set_general(p, o, value);
		else
			ret = set_general(p, o, NULL);
		if (ret)
			return ret;
	}
	return 0;
}

static int check_required(const struct add_request *r)
{
	for (const struct ubd_option *o = r->target->options; o && o->name; o++)
		if (o->required && !already_set(r, o))
			return say_misused("add: target %s needs the option %s, %s "
					   "(see ubd help add %s)",
					   r->target->name, o->name, o->help, r->target->name);
	return 0;
}

int add_parse(int argc, char **argv, struct add_request *request)
{
	struct parser p = {.request = request, .argv = argv, .argc = argc};
	bool literal = false;
	int ret = 0;

	while (!ret && !request->help && p.next < p.argc) {
		const char *word = p.argv[p.next++];

		if (literal || word[0] != '-' || !word[1])
			ret = take_word(&p, word);
		else if (strcmp(word, "--") == 0)
			literal = true;
		else if (word[1] == '-')
			ret = take_long(&p, word);
		else
			ret = take_short(&p, word);
	}
	if (ret || request->help)
		return ret;
	if (!request->target)
		return say_misused("add: no target given, as in ubd add null "
				   "(ubd targets lists them)");
	return check_required(request);
}

void add_release(struct add_request *request)
{
	for (size_t i = 0; i < request->count; i++)
		free(request->settings[i].value);
	free(request->settings);
	free(request->target_file);
}
