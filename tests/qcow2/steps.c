/* SPDX-License-Identifier: MIT */
/*
 * One step after the other on an image, and what may go wrong among them.
 *
 *   steps IMAGE [option=value]... STEP...
 *
 * Options: cache, direct. A step is one argument of these words; with a ! before it must fail, with
 * a ? it may:
 *
 *   write OFFSET LENGTH BYTE, read OFFSET LENGTH BYTE, discard OFFSET LENGTH, flush
 *   resize SIZE, snapshot JOB NAME
 *   size SIZE             the disk has that size
 *   fail KIND NTH [on]    that read, write, sync or truncate of the image's files fails, and those
 *                         that follow; 0: none
 *   full                  the file is a disk that cannot grow
 *   loaded                pages of metadata were read since this was asked last
 *   batch MOST            of metadata, no more was written between two syncs
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../targets/qcow2/file.h"
#include "disk.h"

#define PIECE (256u << 10)

static struct ubd_device *dev;
static struct qc_file *file; /* the image's */
static unsigned kind, left;  /* the operation that fails; 0: none */
static bool sticky;
static uint64_t loads, written, most_written;

static int before(const struct qc_file_op *op)
{
	if (!file)
		file = op->file;
	loads += op->kind == QC_READ && op->data;
	written += op->kind == QC_WRITE && op->data ? op->len : 0;
	if (op->kind == QC_SYNC) {
		most_written = written > most_written ? written : most_written;
		written = 0;
	}
	if (op->kind != kind || !left || (left > 1 && left--))
		return 0;
	left = sticky;
	return -EIO;
}

static void after(const struct qc_file_op *op, int ret)
{
	(void)op;
	(void)ret;
}

static const struct qc_file_hooks hooks = {before, after};

static uint64_t number(const char *word)
{
	uint64_t n = 0;

	if (strcmp(word, "0") != 0 && ubd_size_parse(word, &n))
		die("'%s' is no number", word);
	return n;
}

static int transfer(enum ubd_op op, uint64_t offset, uint64_t length, uint8_t byte)
{
	static uint8_t buf[PIECE] __attribute__((aligned(4096)));
	uint32_t n;

	for (uint64_t end = offset + length; offset < end; offset += n) {
		int ret;

		n = (uint32_t)(end - offset < PIECE ? end - offset : PIECE);
		memset(buf, op == UBD_WRITE ? byte : (uint8_t)~byte, n);
		ret = ubd_local_io(dev, 0, op, 0, offset, op == UBD_DISCARD ? NULL : buf, n);
		if (ret < 0)
			return ret;
		for (uint32_t i = 0; op == UBD_READ && i < n; i++)
			if (buf[i] != byte)
				die("at %llu: %u read, %u expected",
				    (unsigned long long)(offset + i), buf[i], byte);
	}
	return 0;
}

static int fail(const char *what, const char *nth, bool on)
{
	static const char *const kinds[] = {"read", "write", "sync", "truncate"};

	for (kind = 0; kind < 4 && strcmp(kinds[kind], what) != 0; kind++)
		;
	left = (unsigned)atoi(nth);
	sticky = on;
	return kind < 4 ? 0 : -EINVAL;
}

static int look(const char *verb, const char *word)
{
	uint64_t seen = loads;

	if (!strcmp(verb, "size"))
		return ubd_device_size(dev) == number(word) ? 0 : -ERANGE;
	if (!strcmp(verb, "batch"))
		return most_written <= number(word) ? 0 : -ERANGE;
	if (!strcmp(verb, "full")) {
		file->b.is_block = true;
		return 0;
	}
	if (strcmp(verb, "loaded") != 0)
		die("there is no step '%s'", verb);
	loads = 0;
	return seen ? 0 : -ERANGE;
}

/* Words that are not there are empty. */
static int run(char *const *w)
{
	if (!strcmp(w[0], "write"))
		return transfer(UBD_WRITE, number(w[1]), number(w[2]), (uint8_t)atoi(w[3]));
	if (!strcmp(w[0], "read"))
		return transfer(UBD_READ, number(w[1]), number(w[2]), (uint8_t)atoi(w[3]));
	if (!strcmp(w[0], "discard"))
		return transfer(UBD_DISCARD, number(w[1]), number(w[2]), 0);
	if (!strcmp(w[0], "flush"))
		return ubd_local_io(dev, 0, UBD_FLUSH, 0, 0, NULL, 0);
	if (!strcmp(w[0], "resize"))
		return disk_command(dev, w[0], w[1], NULL);
	if (!strcmp(w[0], "snapshot"))
		return disk_command(dev, w[0], w[1], w[2]);
	if (!strcmp(w[0], "fail"))
		return fail(w[1], w[2], !strcmp(w[3], "on"));
	return look(w[0], w[1]);
}

static void step(const char *text)
{
	static char none[] = "";
	char *copy = strdup(text), *words[4] = {none, none, none, none}, *save;
	char mode = strchr("!?", *text) ? *text : 0;
	int n = 0, ret;

	for (char *w = strtok_r(copy + !!mode, " ", &save); w && n < 4;
	     w = strtok_r(NULL, " ", &save))
		words[n++] = w;
	ret = run(words);
	printf("%s: %s\n", text, ret < 0 ? strerror(-ret) : "done");
	if (mode != '?' && (ret < 0) != (mode == '!'))
		die("%s: %s (%s)", text, ret < 0 ? strerror(-ret) : "should have failed",
		    ubd_device_error(dev));
	free(copy);
}

int main(int argc, char **argv)
{
	struct disk_options o = {.journal = "off"};
	char error[512];
	int i = 2;

	if (argc < 3)
		die("usage: steps IMAGE [option=value]... STEP...");
	o.image = argv[1];
	for (; i < argc && strchr(argv[i], '='); i++) {
		if (!strncmp(argv[i], "cache=", 6))
			o.cache = argv[i] + 6;
		else if (!strncmp(argv[i], "direct=", 7))
			o.direct = argv[i] + 7;
	}
	qc_file_hooks = &hooks;
	dev = disk_open(&o, error, sizeof(error));
	if (!dev)
		return 1;
	for (; i < argc; i++)
		step(argv[i]);
	if (disk_close(dev))
		die("the device did not end well");
	return 0;
}
