/* SPDX-License-Identifier: MIT */
/* Jobs on images: by a target of its own that does one while it opens. */
#include "tool.h"

#include <errno.h>
#include <stdio.h>

#include <ubd/local.h>

#include "target.h"

struct tool {
	const char *file, *journal;
	const struct ubd_qcow2_job *job;
};

static int list(struct qc_image *img, struct ubd_queue *q, const struct ubd_qcow2_job *job)
{
	struct qc_snapshots all;
	int ret = qc_snapshots_read(img, q, &all);

	for (unsigned i = 0; !ret && i < all.count; i++) {
		const struct qc_snapshot *s = &all.items[i];
		uint64_t vm = s->extra_length >= 8 ? get64(s->extra) : s->vm_state;

		job->snapshot(job->arg, &(struct ubd_qcow2_snapshot){s->id, s->name, s->size, vm,
								     s->seconds});
	}
	qc_snapshots_free(&all);
	return ret;
}

int qc_job_run(struct qc_image *img, struct ubd_queue *q, const struct ubd_qcow2_job *job)
{
	switch (job->verb) {
	case UBD_QCOW2_LIST:
		return list(img, q, job);
	case UBD_QCOW2_CREATE:
		return qc_snapshot_create(img, q, job->name);
	case UBD_QCOW2_DELETE:
		return qc_snapshot_delete(img, q, job->name);
	case UBD_QCOW2_APPLY:
		return qc_snapshot_apply(img, q, job->name);
	case UBD_QCOW2_RESIZE:
		return qc_resize(img, q, job->size);
	case UBD_QCOW2_REPAIR:
		return qc_repair(img, q);
	}
	return -EINVAL;
}

static int tool_open(struct ubd_device *dev, void *self)
{
	struct tool *t = self;
	const struct qc_options options = {
		.cache_bytes = 1 << 20,
		.repair = t->job->verb == UBD_QCOW2_REPAIR,
		.journal = qc_journal_dir(t->journal),
	};
	struct qc_image *img;
	int ret = qc_image_open(&img, dev, t->file, t->job->verb != UBD_QCOW2_LIST, &options);

	if (ret)
		return ret;
	ret = qc_job_run(img, NULL, t->job);
	if (ret)
		ubd_device_fail(dev, ret, "%s: %s", t->file, strerror(-ret));
	qc_image_close(img);
	/* Done, and no disk is wanted: qcow2_run() takes this as success. */
	return ret ? ret : -ECANCELED;
}

static int no_requests(struct ubd_io *io, void *self)
{
	(void)io;
	(void)self;
	return -EOPNOTSUPP;
}

static const struct ubd_option tool_options[] = {
	{"file", UBD_PATH, offsetof(struct tool, file), "image", .required = true},
	{0},
};

static _Thread_local const struct ubd_qcow2_job *current_job;

static int tool_start(struct ubd_device *dev, void *self)
{
	((struct tool *)self)->job = current_job;
	return tool_open(dev, self);
}

static const struct ubd_target target_tool = {
	.api = UBD_TARGET_API,
	.name = "qcow2-tool",
	.options = tool_options,
	.size = sizeof(struct tool),
	.open = tool_start,
	.handle = no_requests,
};

int qcow2_run(const char *file, const struct ubd_qcow2_job *job, char *error, size_t size)
{
	struct ubd_device *dev = ubd_device_new(&target_tool, NULL);
	int ret;

	if (!dev) {
		snprintf(error, size, "out of memory");
		return -ENOMEM;
	}
	current_job = job; /* open() runs on this thread */
	ret = ubd_device_set_option(dev, "file", file);
	if (!ret)
		ret = ubd_local_start(dev);
	snprintf(error, size, "%s", ret == -ECANCELED ? "" : ubd_device_error(dev));
	ubd_device_free(dev);
	return ret == -ECANCELED ? 0 : ret;
}
