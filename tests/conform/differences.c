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
