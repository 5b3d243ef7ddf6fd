/* SPDX-License-Identifier: MIT */
/* What the test programs share. */
#define _GNU_SOURCE
#include "disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

uint8_t *load(const char *path, uint64_t *size)
{
	struct stat st;
	FILE *f = fopen(path, "rb");
	uint8_t *data;

	if (!f || fstat(fileno(f), &st))
		die("cannot read %s", path);
	*size = (uint64_t)st.st_size;
	data = malloc(*size + 1);
	if (!data || fread(data, 1, *size, f) != *size)
		die("cannot read %s", path);
	fclose(f);
	return data;
}

void store(const char *path, const uint8_t *data, uint64_t size)
{
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(data, 1, size, f) != size || fclose(f))
		die("cannot write %s", path);
}

_Atomic unsigned disk_drops, disk_returns;

static void take_notice(void *quiet, const char *line)
{
	disk_drops += strstr(line, "left out of the mirror") != NULL;
	disk_returns += strstr(line, "in sync again") != NULL;
	if (!quiet)
		fprintf(stderr, "%s\n", line);
}

struct ubd_device *disk_open(const char *name, unsigned queues, char *const *words, bool quiet,
			     char *error, size_t size)
{
	static char yes;
	struct ubd_device_config config = {.queues = queues,
					   .take_over = getenv("UBD_TAKE_OVER") != NULL,
					   .depth = 64,
					   .notice = take_notice,
					   .notice_arg = quiet ? &yes : NULL};
	const char *why = "out of memory";
	const struct ubd_target *target = ubd_target_find(name, &why);
	struct ubd_device *dev = target ? ubd_device_new(target, &config) : NULL;
	int ret = dev ? 0 : -1;

	for (; *words && !ret; words++) {
		char *option = strdup(*words), *value = strchr(option, '=');

		if (!value)
			die("%s: no value", option);
		*value++ = '\0';
		ret = ubd_device_set_option(dev, option, value);
		free(option);
	}
	if (!ret)
		ret = ubd_local_start(dev);
	if (!ret)
		return dev;
	snprintf(error, size, "%s", dev ? ubd_device_error(dev) : why);
	if (!quiet)
		fprintf(stderr, "%s\n", error);
	if (dev)
		ubd_device_free(dev);
	return NULL;
}

_Atomic uint64_t disk_ended[8];

void disk_wait_for_operations(unsigned threads)
{
	uint64_t before[8];

	for (unsigned i = 0; i < threads; i++)
		before[i] = disk_ended[i];
	for (unsigned i = 0; i < threads; i++)
		while (disk_ended[i] == before[i] && before[i] != UINT64_MAX)
			usleep(1000);
	usleep(60000);
}

struct sync_state {
	bool behind;
};

static void look(void *arg, const char *name, const char *text, uint64_t number)
{
	struct sync_state *s = arg;

	if (!strcmp(name, "regions_to_copy") && number)
		s->behind = true;
	if (!strncmp(name, "leg_", 4) && text && strncmp(text, "in sync", 7) != 0)
		s->behind = true;
}

bool disk_in_sync(const struct ubd_device *dev)
{
	struct sync_state s = {0};

	ubd_device_status(dev, look, &s);
	return !s.behind;
}

struct text {
	char *at;
	size_t left;
};

static void append(void *arg, const char *name, const char *text, uint64_t number)
{
	struct text *t = arg;
	int n = text ? snprintf(t->at, t->left, "%s: %s\n", name, text)
		     : snprintf(t->at, t->left, "%s: %llu\n", name, (unsigned long long)number);

	if (n > 0 && (size_t)n < t->left) {
		t->at += n;
		t->left -= (size_t)n;
	}
}

void disk_status(const struct ubd_device *dev, char *text, size_t size)
{
	struct text t = {text, size};

	*text = '\0';
	ubd_device_status(dev, append, &t);
}
