/* SPDX-License-Identifier: MIT */
/* Target options: from words to the target's state, with sentences for what is wrong. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* What was given, and the memory that values point to. */
struct option_values {
	unsigned count; /* options in the table */
	bool *given;
	char **owned; /* strings */
	size_t nr_owned;
	void **arrays; /* of struct ubd_list */
	size_t nr_arrays;
};

static unsigned table_size(const struct ubd_target *t)
{
	unsigned n = 0;

	while (t->options && t->options[n].name)
		n++;
	return n;
}

struct option_values *option_values_new(const struct ubd_target *t)
{
	struct option_values *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->count = table_size(t);
	v->given = calloc(v->count + 1, sizeof(*v->given));
	if (!v->given) {
		free(v);
		return NULL;
	}
	return v;
}

void option_values_free(struct option_values *v)
{
	if (!v)
		return;
	for (size_t i = 0; i < v->nr_owned; i++)
		free(v->owned[i]);
	for (size_t i = 0; i < v->nr_arrays; i++)
		free(v->arrays[i]);
	free(v->owned);
	free(v->arrays);
	free(v->given);
	free(v);
}

/* Keep p until the values are freed; frees it and returns NULL when there is no memory. */
static void *keep(void ***list, size_t *n, void *p)
{
	void **bigger = p ? realloc(*list, (*n + 1) * sizeof(*bigger)) : NULL;

	if (!bigger) {
		free(p);
		return NULL;
	}
	*list = bigger;
	bigger[(*n)++] = p;
	return p;
}

static char *keep_string(struct option_values *v, char *s)
{
	return keep((void ***)&v->owned, &v->nr_owned, s);
}

/* realpath() wants the file to be there; a missing one is the target's to report. */
static char *absolute(const char *path)
{
	char cwd[PATH_MAX], *out;

	if (path[0] == '/')
		return strdup(path);
	if (!getcwd(cwd, sizeof(cwd)) || asprintf(&out, "%s/%s", cwd, path) < 0)
		return NULL;
	return out;
}

static int parse_bool(const char *s, bool *out)
{
	static const char *const words[][2] = {
		{"yes", "no"}, {"on", "off"}, {"true", "false"}, {"1", "0"}};

	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		for (int no = 0; no < 2; no++)
			if (!strcasecmp(s, words[i][no])) {
				*out = !no;
				return 0;
			}
	return -EINVAL;
}

static int parse_number(const char *s, bool size, uint64_t *out)
{
	static const char suffixes[] = "KMGTPE";
	unsigned long long n;
	const char *suffix;
	char *end;
	unsigned shift = 0;

	if (*s < '0' || *s > '9')
		return -EINVAL;
	errno = 0;
	/* A zero in front is no octal number: nobody means that. */
	n = strtoull(s, &end, s[0] == '0' && (s[1] == 'x' || s[1] == 'X') ? 16 : 10);
	if (errno || end == s)
		return -EINVAL;
	if (size && *end) {
		/* A blank without its bit 5 is the end of the string, which strchr() finds too. */
		suffix = *end != ' ' ? strchr(suffixes, *end & ~0x20) : NULL;
		if (suffix)
			shift = 10 * (unsigned)(suffix - suffixes + 1);
		else if (*end == 's')
			shift = 9;
		else if (*end != 'B')
			return -EINVAL;
		end++;
		/* KiB and K are the same here. */
		if (shift >= 10 && end[0] == 'i' && end[1] == 'B')
			end += 2;
		else if (shift >= 10 && end[0] == 'B')
			return -EINVAL;
	}
	if (*end || (shift && n > UINT64_MAX >> shift))
		return -EINVAL;
	*out = n << shift;
	return 0;
}

int ubd_size_parse(const char *text, uint64_t *bytes)
{
	return parse_number(text, true, bytes);
}

static int choice_index(const char *choices, const char *word)
{
	size_t len = strlen(word);

	for (int i = 0; *choices; i++) {
		size_t n = strcspn(choices, "|");

		if (n == len && !strncmp(choices, word, n))
			return i;
		choices += n;
		choices += *choices == '|';
	}
	return -EINVAL;
}

static int out_of_memory(struct ubd_device *dev)
{
	return device_fail(dev, -ENOMEM, "out of memory");
}

static int store_number(struct ubd_device *dev, const struct ubd_option *o, const char *value,
			uint64_t *out)
{
	uint64_t n;

	if (parse_number(value, o->type == UBD_SIZE, &n))
		return device_fail(dev, -EINVAL, "option %s: \"%s\" is not a %s", o->name, value,
				   o->type == UBD_SIZE
					   ? "size (a number, K M G T P E or s after it)"
					   : "number");
	if (n < o->min || (o->max && n > o->max)) {
		if (o->max)
			return device_fail(dev, -EINVAL,
					   "option %s: %s is out of range, %llu to %llu", o->name,
					   value, (unsigned long long)o->min,
					   (unsigned long long)o->max);
		return device_fail(dev, -EINVAL,
				   "option %s: %s is too small, at least %llu is needed", o->name,
				   value, (unsigned long long)o->min);
	}
	*out = n;
	return 0;
}

static int store_list(struct ubd_device *dev, const struct ubd_option *o, const char *value,
		      struct ubd_list *list)
{
	struct option_values *v = dev->values;
	char *s = keep_string(v, o->type == UBD_PATHS ? absolute(value) : strdup(value));
	const char **items = s ? malloc((list->count + 1) * sizeof(*items)) : NULL;

	if (!keep(&v->arrays, &v->nr_arrays, items))
		return out_of_memory(dev);
	if (list->count)
		memcpy(items, list->items, list->count * sizeof(*items));
	items[list->count] = s;
	list->items = items;
	list->count++;
	return 0;
}

static int store(struct ubd_device *dev, const struct ubd_option *o, const char *value)
{
	void *at = (char *)dev->self + o->offset;
	char *s;

	if (!value && o->type != UBD_BOOL)
		return device_fail(dev, -EINVAL, "option %s needs a value", o->name);
	switch (o->type) {
	case UBD_STRING:
	case UBD_PATH:
		s = keep_string(dev->values, o->type == UBD_PATH ? absolute(value) : strdup(value));
		if (!s)
			return out_of_memory(dev);
		*(const char **)at = s;
		return 0;
	case UBD_SIZE:
	case UBD_UINT:
		return store_number(dev, o, value, at);
	case UBD_BOOL:
		if (parse_bool(value ? value : "yes", at))
			return device_fail(dev, -EINVAL, "option %s: \"%s\" is neither yes nor no",
					   o->name, value);
		return 0;
	case UBD_CHOICE:
		*(int *)at = choice_index(o->choices, value);
		if (*(int *)at < 0)
			return device_fail(dev, -EINVAL, "option %s: \"%s\" is not one of %s",
					   o->name, value, o->choices);
		return 0;
	case UBD_LIST:
	case UBD_PATHS:
		return store_list(dev, o, value, at);
	}
	return device_fail(dev, -EINVAL, "option %s has an unknown type", o->name);
}

static bool repeats(const struct ubd_option *o)
{
	return o->type == UBD_LIST || o->type == UBD_PATHS;
}

static int find(const struct ubd_device *dev, const char *name)
{
	const struct ubd_option *table = dev->target->options;

	for (unsigned i = 0; i < dev->values->count; i++)
		if (name ? !strcmp(table[i].name, name)
			 : table[i].positional && (!dev->values->given[i] || repeats(&table[i])))
			return (int)i;
	return -1;
}

int option_set(struct ubd_device *dev, const char *name, const char *value)
{
	const struct ubd_option *table = dev->target->options;
	int i = find(dev, name);

	if (i < 0 && name)
		return device_fail(dev, -ENOENT, "target %s has no option \"%s\"",
				   dev->target->name, name);
	if (i < 0)
		return device_fail(dev, -ENOENT, "target %s takes no further argument: \"%s\"",
				   dev->target->name, value);
	if (dev->values->given[i] && !repeats(&table[i]))
		return device_fail(dev, -EINVAL, "option %s is given twice", table[i].name);
	dev->values->given[i] = true;
	return store(dev, &table[i], value);
}

int option_finish(struct ubd_device *dev)
{
	const struct ubd_option *table = dev->target->options;

	for (unsigned i = 0; i < dev->values->count; i++) {
		int ret = 0;

		if (dev->values->given[i])
			continue;
		if (table[i].required)
			return device_fail(dev, -EINVAL, "target %s needs the option %s: %s",
					   dev->target->name, table[i].name, table[i].help);
		if (table[i].fallback)
			ret = store(dev, &table[i], table[i].fallback);
		if (ret)
			return ret;
	}
	return 0;
}
