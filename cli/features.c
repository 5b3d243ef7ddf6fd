/* SPDX-License-Identifier: MIT */
/* ubd features: what the driver of this kernel can do. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "../include/uapi/ubd.h"
#include "../include/uapi/ublk.h"
#include "control.h"
#include "json.h"
#include "say.h"
#include "verbs.h"

enum { KEY_JSON = 1 };

static const struct arg_option options[] = {
	{KEY_JSON, "json", 0, ARG_BARE, NULL, "one JSON document"},
	{0},
};

struct driver {
	struct utsname kernel;
	char version[64]; /* of ours; "" of the kernel's own */
	uint64_t features;
	bool asked; /* the driver answered the question for them */
};

/*
 * Drivers before 6.15 report SUPPORT_ZERO_COPY and do not have it: only a device shows what is
 * granted. It never has a disk and is gone at once.
 */
static int probe_zero_copy(struct ubd_ctrl *ctrl, uint64_t *features)
{
	struct ublksrv_ctrl_dev_info info = {
		.dev_id = UINT32_MAX,
		.nr_hw_queues = 1,
		.queue_depth = 1,
		.max_io_buf_bytes = 4096,
		.ublksrv_pid = -1,
		.flags = UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_CMD_IOCTL_ENCODE,
	};
	int ret;

	if (!(*features & UBLK_F_SUPPORT_ZERO_COPY) || *features & UBLK_F_AUTO_BUF_REG)
		return 0;
	ret = ubd_ctrl_add(ctrl, &info);
	if (ret == -EINVAL || ret == -EOPNOTSUPP) {
		*features &= ~UBLK_F_SUPPORT_ZERO_COPY;
		return 0;
	}
	if (ret)
		return ret;
	if (!(info.flags & UBLK_F_SUPPORT_ZERO_COPY))
		*features &= ~UBLK_F_SUPPORT_ZERO_COPY;
	return ubd_ctrl_del_async(ctrl, info.dev_id);
}

static void print_text(const struct driver *d)
{
	uint64_t mask;
	const char *name, *what;

	printf("Kernel:    %s %s\n", d->kernel.sysname, d->kernel.release);
	if (*d->version)
		printf("Driver:    ubd's ublk_drv %s\n", d->version);
	else
		printf("Driver:    the kernel's own ublk_drv\n");
	printf("Zero copy:");
	for (int w = 0; w < UBD_ZC_MAX; w++)
		if (ubd_zero_copy_offered((enum ubd_zero_copy)w, d->features))
			printf(" %s", ubd_zero_copy_name((enum ubd_zero_copy)w));
	printf("\n\n");
	if (!d->asked)
		printf("This driver is older than the question for its features (Linux 6.5).\n");
	for (unsigned n = 0; d->asked && (name = ubd_feature_name(n, &mask, &what)); n++)
		printf("%-22s %-4s %s\n", name, d->features & mask ? "yes" : "no", what);
}

static void print_json(const struct driver *d)
{
	json_object *doc = json_object_new_object(), *list = json_object_new_array(),
		    *ways = json_object_new_array();
	const char *name, *what;
	uint64_t mask;

	json_put_string(doc, "kernel", d->kernel.release);
	json_put_string(doc, "driver", *d->version ? "ubd" : "in-tree");
	json_put_string(doc, "driver_version", *d->version ? d->version : NULL);
	json_put_number(doc, "mask", d->features);
	for (unsigned n = 0; (name = ubd_feature_name(n, &mask, &what)); n++) {
		json_object *feature = json_object_new_object();

		json_put_string(feature, "name", name);
		json_put_bool(feature, "available", d->features & mask);
		json_put_number(feature, "mask", mask);
		json_put_string(feature, "help", what);
		json_object_array_add(list, feature);
	}
	for (int w = 0; w < UBD_ZC_MAX; w++)
		if (ubd_zero_copy_offered((enum ubd_zero_copy)w, d->features))
			json_object_array_add(ways, json_object_new_string(ubd_zero_copy_name(
							    (enum ubd_zero_copy)w)));
	json_object_object_add(doc, "zero_copy", ways);
	json_object_object_add(doc, "features", list);
	json_print(doc);
	json_object_put(doc);
}

static int ask(struct driver *d)
{
	struct ubd_ctrl *ctrl = control_open("features");
	uint64_t extensions = 0;
	int ret;

	if (!ctrl)
		return EXIT_FAILED;
	say_waiting("the driver to say what it can do");
	ret = ubd_ctrl_features(ctrl, &d->features);
	d->asked = d->features != 0;
	if (!ret)
		ret = probe_zero_copy(ctrl, &d->features);
	if (!ret)
		ret = ubd_ctrl_extensions(ctrl, &extensions, d->version, sizeof(d->version));
	d->features |= extensions;
	say_waited();
	ubd_ctrl_close(ctrl);
	uname(&d->kernel);
	if (ret == -EPERM || ret == -EACCES)
		return say_failed("features: no permission to ask the driver: run as root");
	return ret ? say_failed("features: the driver does not answer: %s", strerror(-ret)) : 0;
}

static int run(int argc, char **argv)
{
	struct driver driver = {0};
	const char *value;
	bool json = false;
	struct args args;
	int key, code;

	args_begin(&args, "features", options, argc, argv);
	while ((key = args_next(&args, &value)) != ARG_END) {
		if (key == ARG_BAD)
			return EXIT_MISUSED;
		if (key == ARG_HELP)
			return verb_print_help(&verb_features);
		if (key == ARG_WORD)
			return say_misused("features: takes no argument '%s'", value);
		json = true;
	}
	code = ask(&driver);
	if (!code && json)
		print_json(&driver);
	else if (!code)
		print_text(&driver);
	return code;
}

const struct verb verb_features = {
	.name = "features",
	.usage = "[--json]",
	.summary = "show what the driver of this kernel can do",
	.options = options,
	.run = run,
};
