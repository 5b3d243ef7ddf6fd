/* SPDX-License-Identifier: MIT */
/*
 * Flushes, and all legs of a mirror lost at once.
 *
 *   lost flush TARGET LEG... -- option=value...   each leg gets every flush
 *   lost two TARGET LEG... -- option=value...     two flushes, of which one is told of lost pages
 *   lost all mirror LEG... -- option=value...     errors while no leg works, none later
 *   lost again mirror LEG... -- option=value...   the second leg fails while a region is copied to
 * it
 */
#include "disk.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "seam.h"

#define SIZE (256u << 10)

static struct ubd_device *dev;
static unsigned nr_legs;

static void flush_reaches_all(void)
{
	for (unsigned n = 1; n <= 5; n++) {
		unsigned before[SEAM_LEGS];

		for (unsigned i = 0; i < nr_legs; i++)
			before[i] = seam_syncs(i);
		if (ubd_local_io(dev, 0, UBD_FLUSH, 0, 0, NULL, 0))
			die("the flush failed");
		for (unsigned i = 0; i < nr_legs; i++)
			if (seam_syncs(i) <= before[i])
				die("leg %u got no flush", i);
	}
}

static void *flush_first(void *arg)
{
	*(int *)arg = ubd_local_io(dev, 0, UBD_FLUSH, 0, 0, NULL, 0);
	return NULL;
}

/* The kernel tells the first of them, which hears of it late. */
static void two_flushes(void)
{
	static const struct seam_fault told = {
		.fail = 1000, .stall = 1000, .stall_ms = 300, .err = -EIO};
	pthread_t thread;
	int first, second;

	seam_set_fault(0, &told);
	if (pthread_create(&thread, NULL, flush_first, &first))
		die("cannot start a thread");
	usleep(100000);
	seam_set_fault(0, &(struct seam_fault){0});
	second = ubd_local_io(dev, 1, UBD_FLUSH, 0, 0, NULL, 0);
	pthread_join(thread, NULL);
	if (first != -EIO || second != -EIO)
		die("of two flushes one gives %d, the other %d", first, second);
}

static void set_all(int err)
{
	for (unsigned i = 0; i < nr_legs; i++)
		seam_set_fault(i, &(struct seam_fault){.fail = err ? 1000 : 0, .err = err});
}

static void expect(enum ubd_op op, void *buf, int want)
{
	int ret = ubd_local_io(dev, 0, op, 0, 0, buf, op == UBD_FLUSH ? 0 : SIZE);

	if (ret != want)
		die("operation %d: %d, expected %d", (int)op, ret, want);
}

static void wait_until_in_sync(void)
{
	for (unsigned n = 0; !disk_in_sync(dev); n++) {
		if (n > 20000)
			die("the legs are not in sync again");
		usleep(1000);
	}
}

static void all_lost(void)
{
	uint8_t *old = aligned_alloc(4096, SIZE), *now = aligned_alloc(4096, SIZE);

	memset(old, 1, SIZE);
	memset(now, 2, SIZE);
	expect(UBD_WRITE, old, SIZE);
	set_all(-EIO);
	expect(UBD_READ, now, -EIO);
	expect(UBD_WRITE, now, -EIO);
	expect(UBD_FLUSH, NULL, -EIO);
	expect(UBD_WRITE_ZEROES, NULL, -EIO);
	set_all(0);
	/* The last to work were not left out, so the mirror is there again by itself. */
	wait_until_in_sync();
	expect(UBD_FLUSH, NULL, 0);
	expect(UBD_WRITE, old, SIZE);
	memset(now, 0, SIZE);
	expect(UBD_READ, now, SIZE);
	if (memcmp(old, now, SIZE) != 0)
		die("what was written is not what is read");
	free(old);
	free(now);
}

static unsigned copied_percent(void)
{
	char text[1024], *at;
	unsigned percent = 0;

	disk_status(dev, text, sizeof(text));
	at = strstr(text, "resync: ");
	return at && sscanf(at, "resync: %u", &percent) == 1 ? percent : 0;
}

/* The beginning of a region changes when its end is still to be copied: nothing of it is skipped.
 */
static void lost_again(void)
{
	static const struct seam_fault bad = {.fail = 1000, .err = -EIO}, none = {0};
	uint8_t *buf = aligned_alloc(4096, SIZE);

	wait_until_in_sync();
	for (unsigned round = 1; round <= 2; round++) {
		for (unsigned n = 0; round == 2 && (copied_percent() < 25 || disk_drops != 1);
		     n++) {
			if (n > 20000)
				die("nothing is copied to the leg");
			usleep(1000);
		}
		seam_set_fault(1, &bad);
		memset(buf, (int)round, SIZE);
		expect(UBD_WRITE, buf, SIZE);
		/* In the first round the write was what it missed, in the second the copy. */
		for (unsigned n = 0; disk_drops != round; n++) {
			if (n > 20000)
				die("the leg is not left out");
			usleep(1000);
		}
		memset(buf, (int)round + 8, SIZE);
		expect(UBD_WRITE, buf, SIZE);
		seam_set_fault(1, &none);
	}
	wait_until_in_sync();
	free(buf);
}

int main(int argc, char **argv)
{
	static char word[32][512];
	char *words[33] = {0}, error[512];
	unsigned n = 0;

	if (argc < 4)
		die("usage: lost flush|two|all|again TARGET LEG... -- option=value...");
	for (int i = 3; i < argc; i++) {
		if (!strcmp(argv[i], "--"))
			continue;
		snprintf(word[n], sizeof(word[n]), strchr(argv[i], '=') ? "%s" : "leg=%s", argv[i]);
		if (!strchr(argv[i], '=')) {
			seam_leg(argv[i]);
			nr_legs++;
		}
		words[n] = word[n];
		n++;
	}
	seam_record(true);
	dev = disk_open(argv[2], strcmp(argv[1], "two") ? 1 : 2, words, false, error,
			sizeof(error));
	if (!dev)
		return 1;
	if (!strcmp(argv[1], "flush"))
		flush_reaches_all();
	else if (!strcmp(argv[1], "two"))
		two_flushes();
	else if (!strcmp(argv[1], "again"))
		lost_again();
	else
		all_lost();
	if (disk_close(dev))
		die("the device did not end well");
	return 0;
}
