/* SPDX-License-Identifier: MIT */
/* What an image's files have been told, in order, and what may be left of it after a crash. */
#ifndef RECORD_H
#define RECORD_H

#include <stdbool.h>
#include <stdint.h>

/* Begin and end recording; time is a count of events. Files are known by the order they appear. */
void record_begin(void);
void record_end(void);
/* The next moment. Any thread. */
uint64_t record_tick(void);
uint64_t record_now(void);

enum record_way {
	RECORD_ALL,	/* everything that began has arrived */
	RECORD_NONE,	/* nothing but what was synced */
	RECORD_SOME,	/* operations at random, in order */
	RECORD_SECTORS, /* sectors at random, operations in random order */
};

/*
 * The file's contents if power was lost at `cut`: base is what it was when recording began, of
 * *size bytes. Allocated; *size is set.
 */
uint8_t *record_state(const char *path, const uint8_t *base, uint64_t *size, uint64_t cut,
		      enum record_way way, uint64_t seed);

#endif
