/* SPDX-License-Identifier: MIT */
/* What can be done with a qcow2 image besides serving it. */
#ifndef UBD_QCOW2_TOOL_H
#define UBD_QCOW2_TOOL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ubd_device;

enum ubd_qcow2_verb {
	UBD_QCOW2_LIST,	  /* snapshots: one call of .snapshot each */
	UBD_QCOW2_CREATE, /* a snapshot .name of the disk as it is */
	UBD_QCOW2_DELETE, /* the snapshot .name */
	UBD_QCOW2_APPLY,  /* the disk becomes as it was at .name */
	UBD_QCOW2_RESIZE, /* to .size bytes */
	UBD_QCOW2_REPAIR, /* refcounts, from what is referenced */
};

struct ubd_qcow2_snapshot {
	const char *id, *name;
	uint64_t size;	   /* of the disk then, bytes */
	uint64_t vm_state; /* bytes of a machine's state saved with it */
	uint64_t seconds;  /* since 1970 */
};

struct ubd_qcow2_job {
	enum ubd_qcow2_verb verb;
	const char *name; /* a snapshot's name or id */
	uint64_t size;
	void (*snapshot)(void *arg, const struct ubd_qcow2_snapshot *s);
	void *arg;
};

/*
 * On an image that nobody serves. Blocks. 0 or -errno, then with a sentence in error. A crash at
 * any point leaves the image as before or as after.
 */
int qcow2_run(const char *file, const struct ubd_qcow2_job *job, char *error, size_t size);
/*
 * On the image that a device of this process serves; requests wait meanwhile. From any thread but
 * the queues' own, one job at a time. -EOPNOTSUPP: not a qcow2 device, or not a local one.
 */
int qcow2_run_live(struct ubd_device *dev, const struct ubd_qcow2_job *job);

#ifdef __cplusplus
}
#endif

#endif
