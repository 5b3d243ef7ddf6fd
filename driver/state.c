// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device's state machine: which steps there are, and that no other is ever taken.
 */
#include "driver.h"
#include "trace.h"

#define TO(state) BIT(UBLK_DEV_##state)

static const u8 steps[UBLK_DEV_NR_STATES] = {
	[UBLK_DEV_NEW] = TO(LIVE),
	/* Back to NEW when START_DEV fails half-way. */
	[UBLK_DEV_LIVE] = TO(NEW) | TO(QUIESCED) | TO(FAILING) | TO(STOPPED),
	[UBLK_DEV_QUIESCED] = TO(LIVE) | TO(STOPPED),
	[UBLK_DEV_FAILING] = TO(LIVE) | TO(STOPPED),
	[UBLK_DEV_STOPPED] = 0,
};

/* As dev_info has it. Both states without a disk are DEAD. */
static u16 as_seen(enum ublk_dev_state state)
{
	switch (state) {
	case UBLK_DEV_LIVE:
		return UBLK_S_DEV_LIVE;
	case UBLK_DEV_QUIESCED:
		return UBLK_S_DEV_QUIESCED;
	case UBLK_DEV_FAILING:
		return UBLK_S_DEV_FAIL_IO;
	default:
		return UBLK_S_DEV_DEAD;
	}
}

/**
 * ublk_state_set() - take one step
 * @ub: the device, its mutex held
 * @to: the next state
 */
void ublk_state_set(struct ublk_device *ub, enum ublk_dev_state to)
{
	lockdep_assert_held(&ub->mutex);
	WARN_ONCE(!(steps[ub->state] & BIT(to)), "ublk%u: state %u to %u is no step\n",
		  ub->info.dev_id, ub->state, to);
	trace_ublk_state(ub->info.dev_id, ub->state, to);
	WRITE_ONCE(ub->state, to);
	WRITE_ONCE(ub->info.state, as_seen(to));
}
