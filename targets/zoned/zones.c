/* SPDX-License-Identifier: MIT */
/* The zones' state machine, as ZBC and ZNS have it: conditions, write pointers, and the resources
 * that open and active zones take. */
#include "zoned.h"

#include <errno.h>

#define EMPTY BLK_ZONE_COND_EMPTY
#define IMPLICIT BLK_ZONE_COND_IMP_OPEN
#define EXPLICIT BLK_ZONE_COND_EXP_OPEN
#define CLOSED BLK_ZONE_COND_CLOSED
#define FULL BLK_ZONE_COND_FULL

static int set(struct zoned *z, uint32_t i, unsigned cond, uint64_t written)
{
	z->count[ZONE_COND(z->state->words[i])]--;
	z->count[cond]++;
	__atomic_store_n(&z->state->words[i], written / ZONE_BLOCK << 8 | cond, __ATOMIC_RELEASE);
	return 0;
}

int zones_load(struct zoned *z, const uint64_t *words, bool killed)
{
	for (uint32_t i = 0; i < z->nr_zones; i++) {
		uint64_t written = ZONE_WRITTEN(words[i]), cond = ZONE_COND(words[i]);
		bool active = cond > EMPTY && cond <= CLOSED;

		if ((i < z->geo.conventional) != !words[i] || written > z->geo.zone_capacity ||
		    (words[i] && cond != EMPTY && !active && cond != FULL))
			return ubd_device_fail(z->dev, -EINVAL, "zone %u is damaged", i);
		/* A kill in the midst of a zone's first write leaves it open with nothing in it. */
		if (active && !(killed && (written || cond == EXPLICIT)))
			cond = written ? CLOSED : EMPTY;
		z->state->words[i] = written / ZONE_BLOCK << 8 | cond;
		z->count[cond]++;
	}
	return 0;
}

/* What nobody has written to need not stay active. An implicitly open one is about to be. */
static int close_zone(struct zoned *z, uint32_t i, unsigned cond, uint64_t written)
{
	return set(z, i, written || cond == IMPLICIT ? CLOSED : EMPTY, written);
}

/* Open the zone; one that was opened by a write only is closed for it if need be. */
static int open_zone(struct zoned *z, uint32_t i, unsigned how, unsigned cond, uint64_t written)
{
	uint32_t open = z->count[IMPLICIT] + z->count[EXPLICIT];
	bool opens = cond != IMPLICIT && cond != EXPLICIT;

	if (cond == EMPTY && z->geo.max_active && open + z->count[CLOSED] >= z->geo.max_active)
		return -EOVERFLOW;
	if (opens && z->geo.max_open && open >= z->geo.max_open) {
		if (!z->count[IMPLICIT])
			return -ETOOMANYREFS;
		do
			z->cursor = (z->cursor + 1) % z->nr_zones;
		while (ZONE_COND(z->state->words[z->cursor]) != IMPLICIT);
		close_zone(z, z->cursor, IMPLICIT, ZONE_WRITTEN(z->state->words[z->cursor]));
	}
	return cond == EXPLICIT ? 0 : set(z, i, how, written);
}

static int apply(struct zoned *z, uint32_t i, unsigned op, uint64_t *at, uint32_t len)
{
	uint64_t written = ZONE_WRITTEN(z->state->words[i]);
	unsigned cond = ZONE_COND(z->state->words[i]);

	switch (op) {
	case UBD_ZONE_APPEND:
		*at = written;
		/* fallthrough */
	case UBD_WRITE:
		if (cond == FULL || *at != written || len > z->geo.zone_capacity - written)
			return -EIO;
		return open_zone(z, i, IMPLICIT, cond, written);
	case ZONE_WRITTEN_TO: /* the zone may have been closed meanwhile */
		if (written + len == z->geo.zone_capacity)
			cond = FULL;
		else if (!(written + len) && cond != EXPLICIT)
			cond = EMPTY;
		return set(z, i, cond, written + len);
	case UBD_ZONE_OPEN:
		return cond == FULL ? -EIO : open_zone(z, i, EXPLICIT, cond, written);
	case UBD_ZONE_CLOSE:
		if (cond == EMPTY || cond == FULL)
			return -EIO;
		return cond == CLOSED ? 0 : close_zone(z, i, cond, written);
	case UBD_ZONE_FINISH:
		return set(z, i, FULL, written);
	default:
		return set(z, i, EMPTY, 0);
	}
}

int zones_apply(struct zoned *z, uint32_t i, unsigned op, uint64_t *at, uint32_t len)
{
	int ret;

	pthread_mutex_lock(&z->lock);
	ret = apply(z, i, op, at, len);
	pthread_mutex_unlock(&z->lock);
	return ret;
}

void zones_report(const struct zoned *z, uint32_t i, struct blk_zone *out)
{
	uint64_t word = zone_word(z, i), start = i * z->geo.zone_size;
	uint64_t wp = start + (ZONE_COND(word) == FULL ? z->geo.zone_size : ZONE_WRITTEN(word));

	*out = (struct blk_zone){
		.start = start >> 9,
		.len = z->geo.zone_size >> 9,
		.capacity = (word ? z->geo.zone_capacity : z->geo.zone_size) >> 9,
		.type = word ? BLK_ZONE_TYPE_SEQWRITE_REQ : BLK_ZONE_TYPE_CONVENTIONAL,
		.cond = (uint8_t)ZONE_COND(word),
		.wp = word ? wp >> 9 : UINT64_MAX, /* none */
	};
}
