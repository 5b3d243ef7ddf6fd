// SPDX-License-Identifier: MIT
/*
 * GET_FEATURES and ADD_DEV: what is refused, what is granted, what the driver fills in itself.
 */
#include "ctrl.h"
#include "dev.h"
#include "harness.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define BAD_ADDR 0x10

/* Adds and, should that work, deletes. */
static long add_and_del(struct dev *dev)
{
	long res = dev_try_add(dev);

	if (res == 0)
		dev_del(dev);
	return res;
}

CASE(add_features_length_and_address)
{
	uint64_t features[2] = {0, 0};

	RESULT("features-ok", ctrl(UBLK_U_CMD_GET_FEATURES, 0, .buf = features, .len = 8), 0);
	CHECK(features[0] & UBLK_F_CMD_IOCTL_ENCODE, "CMD_IOCTL_ENCODE is not among the features");
	CHECK(!features[1], "more than 8 bytes written");
	RESULT("features-short", ctrl(UBLK_U_CMD_GET_FEATURES, 0, .buf = features, .len = 4),
	       -EINVAL);
	RESULT("features-long", ctrl(UBLK_U_CMD_GET_FEATURES, 0, .buf = features, .len = 16),
	       -EINVAL);
	RESULT("features-null", ctrl(UBLK_U_CMD_GET_FEATURES, 0, .len = 8), -EINVAL);
	RESULT("features-bad-address", ctrl(UBLK_U_CMD_GET_FEATURES, 0, .addr = BAD_ADDR, .len = 8),
	       -EFAULT);
}

CASE(add_features_has_no_legacy_opcode)
{
	uint64_t features = 0;

	RESULT("features-legacy",
	       ctrl(_IOC_NR(UBLK_U_CMD_GET_FEATURES), 123456, .buf = &features, .len = 8), -ENODEV);
}

CASE(add_and_delete)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct ublksrv_ctrl_dev_info info;

	RESULT_REQUIRED("add", dev_try_add(dev), 0);
	CHECK(!access(dev_char_path(dev), F_OK), "no %s", dev_char_path(dev));
	CHECK(!dev_has_disk(dev), "a disk before START_DEV");
	RESULT_REQUIRED("info", dev_get_info(dev, &info), 0);
	CHECK(!memcmp(&info, &dev->info, sizeof(info)), "GET_DEV_INFO is not what ADD_DEV gave");
	dev_del(dev);
	RESULT("info-after-delete", dev_get_info(dev, &info), -ENODEV);
}

CASE(add_length_and_address)
{
	struct ublksrv_ctrl_dev_info info = dev_new(0, 1, 8)->info;

	info.dev_id = DEV_ID_ANY;
	RESULT("add-short",
	       ctrl(UBLK_U_CMD_ADD_DEV, DEV_ID_ANY, .buf = &info, .len = sizeof(info) - 8),
	       -EINVAL);
	RESULT("add-null", ctrl(UBLK_U_CMD_ADD_DEV, DEV_ID_ANY, .len = sizeof(info)), -EINVAL);
	RESULT("add-bad-address",
	       ctrl(UBLK_U_CMD_ADD_DEV, DEV_ID_ANY, .addr = BAD_ADDR, .len = sizeof(info)),
	       -EFAULT);
	RESULT("add-for-a-queue",
	       ctrl(UBLK_U_CMD_ADD_DEV, DEV_ID_ANY, .buf = &info, .len = sizeof(info), .queue = 0,
		    .queue_set = true),
	       -EINVAL);
}

/* Nothing may be left of a device whose information cannot be given back. */
CASE(add_result_cannot_be_written)
{
	static const struct ublksrv_ctrl_dev_info info = {
		.nr_hw_queues = 1,
		.queue_depth = 8,
		.max_io_buf_bytes = 4096,
		.dev_id = 777,
	};
	struct dev *dev = dev_new(0, 1, 8);

	conform_track_device(777);
	RESULT("add-read-only-address",
	       ctrl(UBLK_U_CMD_ADD_DEV, 777, .addr = (uint64_t)(uintptr_t)&info,
		    .len = sizeof(info)),
	       -EFAULT);
	CHECK(access("/dev/ublkc777", F_OK), "a char device is left");
	dev->id = 777;
	RESULT("add-after-failed-add", add_and_del(dev), 0);
}

CASE(add_queue_count)
{
	struct dev *dev;
	long cpus = sysconf(_SC_NPROCESSORS_CONF);

	RESULT("add-no-queues", add_and_del(dev_new(0, 0, 8)), -EINVAL);
	RESULT("add-too-many-queues", add_and_del(dev_new(0, UBLK_MAX_NR_QUEUES + 1, 8)), -EINVAL);
	dev = dev_new(0, UBLK_MAX_NR_QUEUES, 1);
	RESULT_REQUIRED("add-most-queues", dev_try_add(dev), 0);
	CHECK(dev->info.nr_hw_queues == cpus, "%u queues granted on %ld processors",
	      dev->info.nr_hw_queues, cpus);
	dev_del(dev);
}

CASE(add_queue_depth)
{
	RESULT("add-depth-0", add_and_del(dev_new(0, 1, 0)), -EINVAL);
	RESULT("add-depth-4097", add_and_del(dev_new(0, 1, 4097)), -EINVAL);
	RESULT("add-depth-65535", add_and_del(dev_new(0, 1, 65535)), -EINVAL);
	RESULT("add-depth-1", add_and_del(dev_new(0, 1, 1)), 0);
	RESULT("add-depth-4096", add_and_del(dev_new(0, 1, 4096)), 0);
}

CASE(add_buffer_size_is_rounded_to_pages)
{
	struct dev *dev = dev_new(0, 1, 8);

	dev->info.max_io_buf_bytes = (64 << 10) + 4095;
	RESULT_REQUIRED("add-odd-buffer", dev_try_add(dev), 0);
	CHECK(dev->info.max_io_buf_bytes == 64 << 10, "%u bytes granted",
	      dev->info.max_io_buf_bytes);
	dev_del(dev);
}

CASE(add_id_in_use)
{
	struct dev *a = dev_new(0, 1, 8), *b = dev_new(0, 1, 8);

	a->id = b->id = 55;
	RESULT_REQUIRED("add-id", dev_try_add(a), 0);
	CHECK(a->id == 55, "id %u given for 55", a->id);
	RESULT("add-id-in-use", add_and_del(b), -EEXIST);
	dev_del(a);
	RESULT("add-id-free-again", add_and_del(b), 0);
}

CASE(add_id_out_of_range)
{
	struct dev *dev = dev_new(0, 1, 8);

	dev->id = 1U << 20;
	RESULT("add-id-too-large", add_and_del(dev), -EINVAL);
	dev->id = 0x80000000;
	RESULT("add-id-negative", add_and_del(dev), -EINVAL);
}

CASE(add_id_not_the_commands)
{
	struct ublksrv_ctrl_dev_info info = dev_new(0, 1, 8)->info;

	info.dev_id = 5;
	RESULT("add-id-mismatch", ctrl(UBLK_U_CMD_ADD_DEV, 6, .buf = &info, .len = sizeof(info)),
	       -EINVAL);
}

CASE(add_picks_the_lowest_free_id)
{
	struct dev *a = dev_new(0, 1, 1), *b = dev_new(0, 1, 1), *c = dev_new(0, 1, 1);

	RESULT_REQUIRED("add-first", dev_try_add(a), 0);
	RESULT_REQUIRED("add-second", dev_try_add(b), 0);
	CHECK(b->id > a->id, "ids %u and %u", a->id, b->id);
	dev_del(a);
	RESULT_REQUIRED("add-third", dev_try_add(c), 0);
	CHECK(c->id == a->id, "id %u, not %u again", c->id, a->id);
	dev_del(b);
	dev_del(c);
}

CASE(add_clears_unknown_flags)
{
	struct dev *dev = dev_new(1ULL << 40 | 1ULL << 47, 1, 8);
	uint64_t always = UBLK_F_CMD_IOCTL_ENCODE | UBLK_F_URING_CMD_COMP_IN_TASK;

	RESULT_REQUIRED("add-unknown-flags", dev_try_add(dev), 0);
	CHECK(!(dev->info.flags & (1ULL << 40 | 1ULL << 47)), "unknown flags granted");
	CHECK((dev->info.flags & always) == always, "flags granted: %s",
	      conform_feature_names(dev->info.flags));
	CHECK(!(dev->info.flags & ~conform_features()), "granted but not offered: %s",
	      conform_feature_names(dev->info.flags & ~conform_features()));
	dev_del(dev);
}

CASE(add_grants_each_offered_feature)
{
	uint64_t tried = UBLK_F_NEED_GET_DATA | UBLK_F_USER_RECOVERY | UBLK_F_USER_COPY |
			 UBLK_F_UPDATE_SIZE | UBLK_F_NO_AUTO_PART_SCAN | UBLK_F_SHMEM_ZC |
			 UBLK_F_BATCH_IO | UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_AUTO_BUF_REG;

	for (unsigned bit = 0; bit < 32; bit++) {
		struct dev *dev = dev_new(1ULL << bit, 1, 2);

		if (!(tried >> bit & 1))
			continue;
		RESULT_REQUIRED("add-one-flag", dev_try_add(dev), 0);
		CHECK((dev->info.flags >> bit & 1) == (conform_features() >> bit & 1),
		      "%s: offered %d, granted %d", conform_feature_names(1ULL << bit),
		      (int)(conform_features() >> bit & 1), (int)(dev->info.flags >> bit & 1));
		dev_del(dev);
	}
}

CASE(add_recovery_flags_that_make_no_sense)
{
	conform_need_features(UBLK_F_USER_RECOVERY_FAIL_IO);
	RESULT("add-reissue-alone", add_and_del(dev_new(UBLK_F_USER_RECOVERY_REISSUE, 1, 8)),
	       -EINVAL);
	RESULT("add-fail-io-alone", add_and_del(dev_new(UBLK_F_USER_RECOVERY_FAIL_IO, 1, 8)),
	       -EINVAL);
	RESULT("add-reissue-and-fail-io",
	       add_and_del(dev_new(UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE |
					   UBLK_F_USER_RECOVERY_FAIL_IO,
				   1, 8)),
	       -EINVAL);
}

CASE(add_quiesce_needs_recovery)
{
	conform_need_features(UBLK_F_QUIESCE);
	RESULT("add-quiesce-alone", add_and_del(dev_new(UBLK_F_QUIESCE, 1, 8)), -EINVAL);
	RESULT("add-quiesce", add_and_del(dev_new(UBLK_F_QUIESCE | UBLK_F_USER_RECOVERY, 1, 8)), 0);
}

CASE(add_zoned_needs_user_copy)
{
	conform_need_features(UBLK_F_ZONED);
	RESULT("add-zoned-alone", add_and_del(dev_new(UBLK_F_ZONED, 1, 8)), -EINVAL);
	RESULT("add-zoned", add_and_del(dev_new(UBLK_F_ZONED | UBLK_F_USER_COPY, 1, 8)), 0);
}

CASE(add_integrity_needs_user_copy)
{
	conform_need_features(UBLK_F_INTEGRITY);
	RESULT("add-integrity-alone", add_and_del(dev_new(UBLK_F_INTEGRITY, 1, 8)), -EINVAL);
	RESULT("add-integrity", add_and_del(dev_new(UBLK_F_INTEGRITY | UBLK_F_USER_COPY, 1, 8)), 0);
}

CASE(add_user_copy_clears_need_get_data)
{
	struct dev *dev = dev_new(UBLK_F_USER_COPY | UBLK_F_NEED_GET_DATA, 1, 8);

	conform_need_features(UBLK_F_USER_COPY | UBLK_F_NEED_GET_DATA);
	RESULT_REQUIRED("add-user-copy-get-data", dev_try_add(dev), 0);
	CHECK(!(dev->info.flags & UBLK_F_NEED_GET_DATA), "NEED_GET_DATA granted with USER_COPY");
	dev_del(dev);
}

CASE(add_root_gets_no_unprivileged_device)
{
	struct dev *dev = dev_new(UBLK_F_UNPRIVILEGED_DEV, 1, 8);

	RESULT_REQUIRED("add-unprivileged-as-root", dev_try_add(dev), 0);
	CHECK(!(dev->info.flags & UBLK_F_UNPRIVILEGED_DEV), "root's device is unprivileged");
	dev_del(dev);
}

/* CVE-2026-74472: kernel-owned fields of dev_info taken from the caller. */
CASE(bug_add_takes_kernel_owned_fields_from_the_caller)
{
	struct dev *dev = dev_new(0, 1, 8);

	dev->info.state = UBLK_S_DEV_LIVE;
	dev->info.ublksrv_pid = 1;
	dev->info.owner_uid = dev->info.owner_gid = 4242;
	RESULT_REQUIRED("add-with-state", dev_try_add(dev), 0);
	CHECK(dev->info.state == UBLK_S_DEV_DEAD, "state %u taken from the caller",
	      dev->info.state);
	CHECK(dev->info.ublksrv_pid == -1, "pid %d taken from the caller", dev->info.ublksrv_pid);
	CHECK(dev->info.owner_uid == 0 && dev->info.owner_gid == 0,
	      "owner %u:%u taken from the caller", dev->info.owner_uid, dev->info.owner_gid);
	dev_stop(dev);
	dev_del(dev);
}

/*
 * Queues were initialised before the tag set in some releases, which dereferenced a null pointer
 * at the first ADD_DEV; the shapes below are the ones that reached it.
 */
CASE(bug_add_initialises_queues_before_the_tag_set)
{
	for (unsigned depth = 1; depth <= 4096; depth *= 8)
		RESULT("add-shape", add_and_del(dev_new(0, 4096, depth)), 0);
}
