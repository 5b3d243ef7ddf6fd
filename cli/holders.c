/* SPDX-License-Identifier: MIT */
/*
 * Who uses a block device. Nothing here opens the device: with its server stuck, even that could
 * hang.
 */
#define _GNU_SOURCE
#include "holders.h"

#include <ctype.h>
#include <dirent.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "process.h"
#include "say.h"

#define SEEN_MAX 64
/* After so many the list is no longer read. */
#define NAMED_MAX 5

struct holders {
	char disk[32]; /* "ublkb3" */
	char *text;
	unsigned named;
	bool lasting;
	ino_t namespaces[SEEN_MAX]; /* mount namespaces looked at */
	unsigned seen;
};

static void add_holder(struct holders *h, const char *what, const char *who)
{
	char *longer;

	if (h->text && strstr(h->text, who))
		return;
	if (++h->named > NAMED_MAX)
		return;
	longer = say_format("%s%s%s%s%s", h->text ? h->text : "", h->text ? ", " : "",
			    h->named == NAMED_MAX ? "and more: " : "", what, who);
	free(h->text);
	h->text = longer;
}

/* "/dev/ublkb3" or one of its partitions, "/dev/ublkb3p1". */
static bool is_disk(const struct holders *h, const char *path)
{
	size_t len = strlen(h->disk);
	const char *rest;

	if (strncmp(path, "/dev/", 5) != 0 || strncmp(path + 5, h->disk, len) != 0)
		return false;
	rest = path + 5 + len;
	return !*rest || (rest[0] == 'p' && isdigit((unsigned char)rest[1]));
}

/* Devices stacked on the disk or on one of its partitions: dm, md, bcache. */
static void look_above(struct holders *h, const char *dir)
{
	char *path = say_format("%s/holders", dir);
	DIR *d = opendir(path);
	struct dirent *entry;

	free(path);
	while (d && (entry = readdir(d)))
		if (entry->d_name[0] != '.') {
			add_holder(h, "used by ", entry->d_name);
			h->lasting = true;
		}
	if (d)
		closedir(d);
}

static void look_at_stacks(struct holders *h)
{
	char *base = say_format("/sys/block/%s", h->disk), *part;
	DIR *d = opendir(base);
	struct dirent *entry;

	look_above(h, base);
	while (d && (entry = readdir(d)))
		if (strncmp(entry->d_name, h->disk, strlen(h->disk)) == 0) {
			part = say_format("%s/%s", base, entry->d_name);
			look_above(h, part);
			free(part);
		}
	if (d)
		closedir(d);
	free(base);
}

static void look_at_loops(struct holders *h)
{
	DIR *d = opendir("/sys/block");
	struct dirent *entry;

	while (d && (entry = readdir(d))) {
		char line[4096] = "", *path;
		FILE *f;

		if (strncmp(entry->d_name, "loop", 4) != 0)
			continue;
		path = say_format("/sys/block/%s/loop/backing_file", entry->d_name);
		f = fopen(path, "re");
		free(path);
		if (!f)
			continue;
		if (fgets(line, sizeof(line), f))
			line[strcspn(line, "\n")] = '\0';
		fclose(f);
		if (is_disk(h, line)) {
			add_holder(h, "used by ", entry->d_name);
			h->lasting = true;
		}
	}
	if (d)
		closedir(d);
}

/* A mounted btrfs names only one of its devices as the source. */
static void look_at_btrfs(struct holders *h)
{
	char *pattern = say_format("/sys/fs/btrfs/*/devices/%s*", h->disk);
	glob_t found = {0};

	if (!glob(pattern, GLOB_NOSORT, NULL, &found))
		for (size_t i = 0; i < found.gl_pathc; i++) {
			char *uuid = found.gl_pathv[i] + strlen("/sys/fs/btrfs/");
			char *name = say_format("/dev/%s", strrchr(uuid, '/') + 1);

			uuid[strcspn(uuid, "/")] = '\0';
			if (is_disk(h, name)) {
				add_holder(h, "part of the btrfs ", uuid);
				h->lasting = true;
			}
			free(name);
		}
	globfree(&found);
	free(pattern);
}

static void look_at_swaps(struct holders *h)
{
	FILE *f = fopen("/proc/swaps", "re");
	char line[4096];

	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, " \t\n")] = '\0';
		if (is_disk(h, line)) {
			add_holder(h, "swapped to as ", line);
			h->lasting = true;
		}
	}
	if (f)
		fclose(f);
}

/* By its number, "259:1": the source of a mount may have another name, /dev/root or a link. */
static bool is_number(const struct holders *h, const char *number)
{
	char path[64], link[512], *name;
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/dev/block/%.20s", number);
	n = readlink(path, link, sizeof(link) - 1);
	link[n > 0 ? n : 0] = '\0';
	name = strstr(link, "/block/");
	if (!name)
		return false;
	name += strlen("/block/");
	name[strcspn(name, "/")] = '\0'; /* a partition is in its disk */
	return !strcmp(name, h->disk);
}

/* One file in the form of /proc/PID/mountinfo. */
static void look_at_mounts(struct holders *h, const char *path)
{
	FILE *f = fopen(path, "re");
	char line[8192];

	while (f && fgets(line, sizeof(line), f)) {
		char *point = line, *number = line, *source = strstr(line, " - ");

		for (int field = 0; point && field < 4; field++) {
			point = strchr(point, ' ');
			point = point ? point + 1 : NULL;
			number = field == 1 ? point : number;
		}
		if (!point || !source)
			continue;
		/* " - TYPE SOURCE OPTIONS" */
		source = strchr(source + 3, ' ');
		if (!source)
			continue;
		source++;
		source[strcspn(source, " \n")] = '\0';
		point[strcspn(point, " ")] = '\0';
		number[strcspn(number, " ")] = '\0';
		if (is_disk(h, source) || is_number(h, number)) {
			add_holder(h, "mounted on ", point);
			h->lasting = true;
		}
	}
	if (f)
		fclose(f);
}

/* Mount namespaces of containers and services: each once, those that there is no room for often. */
static void look_at_namespace(struct holders *h, const char *pid)
{
	char path[64], link[64];
	unsigned long inode;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%.20s/ns/mnt", pid);
	n = readlink(path, link, sizeof(link) - 1);
	if (n <= 0)
		return;
	link[n] = '\0';
	if (sscanf(link, "mnt:[%lu]", &inode) != 1)
		return;
	for (unsigned i = 0; i < h->seen; i++)
		if (h->namespaces[i] == inode)
			return;
	if (h->seen < SEEN_MAX)
		h->namespaces[h->seen++] = inode;
	snprintf(path, sizeof(path), "/proc/%.20s/mountinfo", pid);
	look_at_mounts(h, path);
}

static void look_at_files(struct holders *h, const char *pid)
{
	char *path = say_format("/proc/%s/fd", pid);
	DIR *d = opendir(path);
	struct dirent *entry;
	struct process p;

	free(path);
	while (d && (entry = readdir(d))) {
		char target[64];
		ssize_t n = readlinkat(dirfd(d), entry->d_name, target, sizeof(target) - 1);

		target[n > 0 ? n : 0] = '\0';
		if (is_disk(h, target) && process_read((pid_t)atoi(pid), &p)) {
			char *who = say_format("%s (process %s)", p.name, pid);

			add_holder(h, "open by ", who);
			free(who);
			break;
		}
	}
	if (d)
		closedir(d);
}

char *holders_of(unsigned id, bool *lasting)
{
	struct holders h = {0};
	DIR *d;
	struct dirent *entry;

	snprintf(h.disk, sizeof(h.disk), "ublkb%u", id);
	look_at_mounts(&h, "/proc/self/mountinfo");
	look_at_stacks(&h);
	look_at_loops(&h);
	look_at_btrfs(&h);
	look_at_swaps(&h);
	d = opendir("/proc");
	while (d && (entry = readdir(d))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		look_at_namespace(&h, entry->d_name);
		/* What this process has open it was handed by another, who is found too. */
		if (atoi(entry->d_name) != getpid())
			look_at_files(&h, entry->d_name);
	}
	if (d)
		closedir(d);
	*lasting = h.lasting;
	return h.text;
}

bool holders_serve(unsigned id)
{
	struct holders h = {0};
	DIR *d = opendir("/proc");
	struct dirent *entry;

	snprintf(h.disk, sizeof(h.disk), "ublkc%u", id);
	while (d && !h.text && (entry = readdir(d)))
		if (isdigit((unsigned char)entry->d_name[0]))
			look_at_files(&h, entry->d_name);
	if (d)
		closedir(d);
	free(h.text);
	return h.named;
}
