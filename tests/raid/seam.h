/* SPDX-License-Identifier: MIT */
/*
 * Between the targets and their legs: the library's calls are wrapped by the linker (see
 * meson.build), recorded, delayed or made to fail, leg by leg.
 */
#ifndef RAID_SEAM_H
#define RAID_SEAM_H

#include <stdbool.h>
#include <stdint.h>

#define SEAM_LEGS 8

/* Watch this file; its number is the order of these calls. What it holds now is its beginning. */
void seam_leg(const char *path);

/* ---- Faults: of every call on a leg, so many in a thousand fail or take longer ----------------
 */

struct seam_fault {
	unsigned fail, stall; /* of 1000 */
	unsigned stall_ms;
	int err; /* -errno */
	bool reads_only;
};

void seam_set_fault(unsigned leg, const struct seam_fault *fault);

/* ---- Recording ------------------------------------------------------------------------------- */

void seam_record(bool on);
/* Time is a count of events: the next moment, and the present one. Any thread. */
uint64_t seam_tick(void);
uint64_t seam_now(void);

enum seam_way {
	SEAM_ALL,     /* all that began has arrived */
	SEAM_NONE,    /* nothing but what is durable */
	SEAM_SOME,    /* calls at random */
	SEAM_SECTORS, /* sectors at random */
};

/* What the leg holds if power is lost at `cut`; allocated, *size bytes. */
uint8_t *seam_state(unsigned leg, uint64_t cut, enum seam_way way, uint64_t seed, uint64_t *size);
/* Calls recorded of a leg: writes and syncs that ended well. */
unsigned seam_syncs(unsigned leg);

#endif
