// SPDX-License-Identifier: MIT
/*
 * The table of intended differences between drivers, each with its reason. Nothing else in the
 * suite knows which driver it talks to.
 */
#include "differences.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

static const struct difference differences[] = {
	{"start-foreign-pid", DRV_INTREE_6_12, DIFF_RESULT, 0,
	 "6.12 takes any pid; that it is the opener's is checked from 6.17 on"},
	{"params-physical-too-large", DRV_INTREE_6_12, DIFF_RESULT, 0,
	 "6.12 has no upper bound for block and I/O sizes"},
	{"params-io-min-too-large", DRV_INTREE_6_12, DIFF_RESULT, 0,
	 "6.12 has no upper bound for block and I/O sizes"},
	{"params-io-opt-too-large", DRV_INTREE_6_12, DIFF_RESULT, 0,
	 "6.12 has no upper bound for block and I/O sizes"},
	{"params-io-opt-255", DRV_INTREE_6_12, DIFF_RESULT, 0,
	 "6.12 has no upper bound for block and I/O sizes"},
	{"fetch-twice", DRV_INTREE_6_12, DIFF_RESULT, -EBUSY,
	 "6.12 calls a command fetched twice busy; both refuse it"},
	{"foreign-fetch-after-start", DRV_INTREE_6_12, DIFF_RESULT, -EINVAL,
	 "6.12 checks the task before the state; both refuse it"},
	{"commit_too_much_for_a_read", DRV_INTREE, DIFF_NOT_RUN, 0,
	 "a result above the request's length makes the kernel warn, from any server"},
	{"short-within-a-sector-wrong-data", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree asks for the rest from the next sector on and misplaces it"},
	{"user-copy-not-granted", DRV_INTREE_6_12, DIFF_RESULT, -EINVAL,
	 "6.12 has another error for it; both refuse it"},
	{"user-copy-over-the-end", DRV_INTREE_6_12, DIFF_RESULT, 512,
	 "6.12 counts bytes beyond the request that it did not copy"},
	{"lazy-server-nothing-filled", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree leaves pages as they were that a user-copy server did not fill"},
	{"lazy-server-first-part-filled", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree leaves pages as they were that a user-copy server did not fill"},
	{"lazy-server-last-part-filled", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree leaves pages as they were that a user-copy server did not fill"},
	{"lazy-server-middle-filled", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree leaves pages as they were that a user-copy server did not fill"},
	{"recovery_after_half_a_recovery", DRV_INTREE_6_12, DIFF_NOT_RUN, 0,
	 "6.12 dereferences a null pointer when a recovering server dies before all fetches"},
	{"end-recovery-foreign-pid", DRV_INTREE_6_12, DIFF_RESULT, 0,
	 "6.12 takes any pid; that it is the opener's is checked from 6.17 on"},
	{"start-recovery-never-started", DRV_INTREE_6_12, DIFF_RESULT, -EINVAL,
	 "6.12 has another error for it; both refuse it"},
	{"every-tag-in-flight-noticed-in-10-s", DRV_INTREE_6_12, DIFF_ANY, 0,
	 "6.12 notices by the request timeout of 30 s"},
	{"death_by_closing_everything", DRV_INTREE_6_12, DIFF_NOT_RUN, 0,
	 "6.12 warns when the recovered server's task is still alive"},
	{"death_by_exec", DRV_INTREE_6_12, DIFF_NOT_RUN, 0,
	 "6.12 leaves I/O without an end when its server becomes another program"},
	{"bug_double_completion_at_cancel", DRV_INTREE_6_12, DIFF_NOT_RUN, 0,
	 "6.12 leaves I/O without an end, and DEL_DEV, when a busy server is killed beside it"},
	{"bug_use_after_free_in_cancel", DRV_INTREE_6_12, DIFF_NOT_RUN, 0,
	 "6.12 leaves I/O without an end, and DEL_DEV, when a busy server is killed beside it"},
	{"death_everything_at_once", DRV_INTREE_7_2, DIFF_NOT_RUN, 0,
	 "7.2 may warn when a killed server's commands are cancelled from its ring's exit"},
	{"bug_ring_ends_with_the_buffer_of_a_committed_request", DRV_INTREE_7_2, DIFF_NOT_RUN, 0,
	 "7.2 does not cancel the command of a tag whose request is not over: request, buffer and "
	 "ring wait for one another, and no process of the server can end"},
	{"bug_partition_scan_of_a_dead_server_reissue", DRV_INTREE_6_12, DIFF_NOT_RUN, 0,
	 "6.12 deadlocks in the partition scan (CVE-2025-68823)"},
	{"storm", DRV_INTREE_6_12, DIFF_NOT_RUN, 0,
	 "6.12 leaves I/O without an end when a busy server goes"},
	{"params-size-negative", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree takes sizes that no device can have"},
	{"params-size-over-loff", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree takes sizes that no device can have"},
	{"params-chunk-cuts-blocks", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree takes limits that cut a block up"},
	{"params-chunk-below-a-block", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree takes limits that cut a block up"},
	{"params-boundary-over-a-page", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree takes limits that cut a block up"},
	{"params-block-over-segments", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree takes limits that cut a block up"},
	{"bug_stop_that_waits_for_another_cannot_be_killed", DRV_INTREE, DIFF_NOT_RUN, 0,
	 "in-tree waits for the other where no signal reaches it"},
	{"own_disk", DRV_INTREE, DIFF_NOT_RUN, 0,
	 "in-tree hears of a death when the process's files are closed, which here waits for the "
	 "disk"},
	{"bug_parameters_refused_while_start_waits", DRV_INTREE_6_12, DIFF_NOT_RUN, 0,
	 "START_DEV of 6.12 does not end after that"},
	{"bug_parameters_refused_while_start_waits", DRV_INTREE_7_2, DIFF_NOT_RUN, 0,
	 "7.2 starts the device with what it has refused"},
	{"zoned_update_size", DRV_INTREE, DIFF_NOT_RUN, 0,
	 "in-tree lets a zoned device grow beyond the block layer's maps of its zones"},
	{"open-while-deleting", DRV_INTREE, DIFF_ANY, 0,
	 "in-tree lets a server open a device that is being deleted"},
	{"life_number_taken_again", DRV_INTREE, DIFF_NOT_RUN, 0,
	 "in-tree's DEL_DEV waits as long as any device has the number"},
	{"trap_start_after_stop", DRV_INTREE, DIFF_NOT_RUN, 0,
	 "in-tree does not promise that a stopped device can be started again"},
	{"read-after-quiesce-of-a-batch-device", DRV_INTREE_7_2, DIFF_RESULT, -EIO,
	 "7.2 leaves force_abort set until the queue is fetched again, and fails I/O that should "
	 "wait"},
};

static unsigned current;
static char name[64];

int driver_select(const char *kind)
{
	unsigned major, minor;
	struct utsname uts;
	bool ours = !strcmp(kind, "ours");

	if (!ours && strcmp(kind, "intree"))
		return -EINVAL;
	uname(&uts);
	if (sscanf(uts.release, "%u.%u", &major, &minor) != 2)
		return -EINVAL;
	snprintf(name, sizeof(name), "%s on %u.%u", ours ? "our driver" : "in-tree driver", major,
		 minor);
	/* Between the three kernels a driver is taken for the older neighbour's. */
	if (major < 6 || (major == 6 && minor < 12))
		current = ours ? DRV_OURS_6_1 : DRV_INTREE_6_12;
	else if (major < 7)
		current = ours ? DRV_OURS_6_12 : DRV_INTREE_6_12;
	else
		current = ours ? DRV_OURS_7_2 : DRV_INTREE_7_2;
	return 0;
}

unsigned driver_current(void)
{
	return current;
}

const char *driver_name(void)
{
	return name;
}

bool driver_is(unsigned drivers)
{
	return current & drivers;
}

const struct difference *difference_find(const char *aspect)
{
	for (size_t i = 0; i < sizeof(differences) / sizeof(differences[0]); i++) {
		const struct difference *d = &differences[i];

		if (!strcmp(d->aspect, aspect) && driver_is(d->drivers))
			return d;
	}
	return NULL;
}
