/* SPDX-License-Identifier: MIT */
/* What the test programs share. */
#include "disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char disk_error[512];

static void ignore_notice(void *arg, const char *line)
{
	(void)arg;
	(void)line;
}

struct ubd_device *disk_open(const char *options)
{
	struct ubd_device_config config = {.queues = 1, .depth = 32, .notice = ignore_notice};
	const char *why;
	char words[1024], *word, *save, *target_words[32];
	struct ubd_device *dev;
	unsigned n = 0;
	int ret = 0;

	snprintf(words, sizeof(words), "%s", options);
	for (word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		if (!strncmp(word, "queues=", 7))
			config.queues = (unsigned)atoi(word + 7);
		else if (!strcmp(word, "read-only"))
			config.read_only = true;
		else
			target_words[n++] = word;
	}
	dev = ubd_device_new(ubd_target_find("zoned", &why), &config);
	for (unsigned i = 0; i < n && !ret; i++) {
		char *value = strchr(target_words[i], '=');

		if (value)
			*value++ = 0;
		ret = ubd_device_set_option(dev, target_words[i], value);
	}
	if (!ret)
		ret = ubd_local_start(dev);
	disk_error[0] = 0;
	if (!ret)
		return dev;
	snprintf(disk_error, sizeof(disk_error), "%s", ubd_device_error(dev));
	ubd_device_free(dev);
	return NULL;
}

unsigned disk_report(struct ubd_device *dev, struct blk_zone *zones)
{
	unsigned n = 0;
	int ret = ubd_local_io(dev, 0, UBD_REPORT_ZONES, 0, 0, zones, MAX_ZONES);

	if (ret != (int)(MAX_ZONES * sizeof(*zones)))
		die("a report of zones returns %d", ret);
	while (n < MAX_ZONES && zones[n].len)
		n++;
	return n;
}

void block_fill(void *block, uint64_t tag)
{
	for (unsigned i = 0; i < BLOCK; i += 8)
		memcpy((char *)block + i, &tag, 8);
}

bool block_is(const void *block, uint64_t tag)
{
	for (unsigned i = 0; i < BLOCK; i += 8)
		if (memcmp((const char *)block + i, &tag, 8) != 0)
			return false;
	return true;
}
