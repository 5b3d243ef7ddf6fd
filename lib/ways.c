/* SPDX-License-Identifier: MIT */
/* The ways of moving data: what each needs of the driver, their names, and choosing one. */
#include "internal.h"

#include <errno.h>
#include <string.h>

const struct way ways[UBD_ZC_MAX] = {
	[UBD_ZC_AUTO] = {.name = "auto"},
	[UBD_ZC_OFF] = {.name = "off", .buffers = true},
	[UBD_ZC_GET_DATA] = {.name = "get-data", .features = UBLK_F_NEED_GET_DATA, .buffers = true},
	[UBD_ZC_USER_COPY] = {.name = "user-copy", .features = UBLK_F_USER_COPY, .user_copy = true},
	/* User copy comes along for targets that must see bytes now and then. */
	[UBD_ZC_REG_BUF] = {.name = "reg-buf",
			    .features = UBLK_F_SUPPORT_ZERO_COPY | UBLK_F_USER_COPY,
			    .user_copy = true,
			    .fixed = true,
			    .reg_cmd = true},
	[UBD_ZC_AUTO_BUF] = {.name = "auto-buf",
			     .features = UBLK_F_AUTO_BUF_REG | UBLK_F_USER_COPY,
			     .user_copy = true,
			     .fixed = true},
	[UBD_ZC_MEMBER] = {.name = "member",
			   .features = UBD_F_MEMBERS | UBLK_F_USER_COPY,
			   .user_copy = true,
			   .members = true},
	[UBD_ZC_FUSED] = {.name = "fused",
			  .features = UBD_F_MEMBERS | UBD_F_FUSED | UBLK_F_USER_COPY,
			  .user_copy = true,
			  .members = true,
			  .fused = true},
	[UBD_ZC_LEASE] = {.name = "lease",
			  .features = UBD_F_MEMBERS | UBD_F_LEASE | UBLK_F_USER_COPY,
			  .user_copy = true,
			  .members = true,
			  .lease = true},
	[UBD_ZC_SPLICE] = {.name = "splice",
			   .features = UBD_F_MEMBERS | UBD_F_SPLICE | UBLK_F_USER_COPY,
			   .user_copy = true,
			   .members = true,
			   .splice = true},
};

static const char *const recovery_names[] = {
	[UBD_RECOVER_NONE] = "none",
	[UBD_RECOVER_QUEUE] = "queue",
	[UBD_RECOVER_REISSUE] = "reissue",
	[UBD_RECOVER_FAIL] = "fail",
};

const char *ubd_zero_copy_name(enum ubd_zero_copy way)
{
	return (unsigned)way < UBD_ZC_MAX ? ways[way].name : NULL;
}

int ubd_zero_copy_parse(const char *word)
{
	if (!strcmp(word, "on"))
		return UBD_ZC_AUTO;
	for (int i = 0; i < UBD_ZC_MAX; i++)
		if (!strcmp(word, ways[i].name))
			return i;
	return -EINVAL;
}

const char *ubd_recovery_name(enum ubd_recovery mode)
{
	return (unsigned)mode < ARRAY_SIZE(recovery_names) ? recovery_names[mode] : NULL;
}

int ubd_recovery_parse(const char *word)
{
	for (size_t i = 0; i < ARRAY_SIZE(recovery_names); i++)
		if (!strcmp(word, recovery_names[i]))
			return (int)i;
	return -EINVAL;
}

bool ubd_zero_copy_offered(enum ubd_zero_copy way, uint64_t features)
{
	return (unsigned)way < UBD_ZC_MAX && (ways[way].features & ~features) == 0;
}

/* The best way for this target, best first. */
static enum ubd_zero_copy best(const struct ubd_device *dev, uint64_t features)
{
	enum ubd_zero_copy plain = dev->limits.zone_size ? UBD_ZC_USER_COPY : UBD_ZC_OFF;

	/* Drivers know no unprivileged device whose server could leave pages unfilled. */
	if (dev->cfg.unprivileged || dev->target->flags & UBD_TARGET_SEES_DATA)
		return plain;
	if (ubd_zero_copy_offered(UBD_ZC_FUSED, features))
		return UBD_ZC_FUSED;
	return ubd_zero_copy_offered(UBD_ZC_AUTO_BUF, features) ? UBD_ZC_AUTO_BUF : plain;
}

static int check_zoned(struct ubd_device *dev, enum ubd_zero_copy way, uint64_t features)
{
	if (!dev->limits.zone_size)
		return 0;
	if (!(features & UBLK_F_ZONED))
		return device_fail(
			dev, -EOPNOTSUPP,
			"this kernel's ublk driver has no zoned devices: use kernel 6.6 or "
			"later, or ubd's driver");
	if (dev->cfg.unprivileged)
		return device_fail(dev, -EPERM, "a zoned device cannot be unprivileged");
	/* An append's place comes back where the buffer's address would be. */
	if (ways[way].buffers)
		return device_fail(dev, -EOPNOTSUPP,
				   "zero-copy way \"%s\" is not for zoned devices: use auto or "
				   "user-copy",
				   ways[way].name);
	return 0;
}

int ways_choose(struct ubd_device *dev, uint64_t features)
{
	enum ubd_zero_copy way = dev->cfg.zero_copy;
	int ret;

	if (dev->local) {
		dev->zero_copy = UBD_ZC_OFF;
		return 0;
	}
	if (way == UBD_ZC_AUTO)
		way = best(dev, features);
	ret = check_zoned(dev, way, features);
	if (ret)
		return ret;
	if (!ubd_zero_copy_offered(way, features))
		return device_fail(dev, -EOPNOTSUPP,
				   "this kernel's ublk driver has no zero-copy way \"%s\": see "
				   "'ubd features' for those it has",
				   ways[way].name);
	if (dev->cfg.unprivileged && (ways[way].user_copy || ways[way].fixed))
		return device_fail(dev, -EPERM,
				   "zero-copy way \"%s\" is not for unprivileged devices: use off "
				   "or get-data",
				   ways[way].name);
	dev->zero_copy = way;
	return 0;
}

uint64_t ways_flags(const struct ubd_device *dev, uint64_t features)
{
	uint64_t flags = ways[dev->zero_copy].features | UBLK_F_CMD_IOCTL_ENCODE;

	switch (dev->cfg.recovery) {
	case UBD_RECOVER_NONE:
		break;
	case UBD_RECOVER_QUEUE:
		flags |= UBLK_F_USER_RECOVERY;
		break;
	case UBD_RECOVER_REISSUE:
		flags |= UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE;
		break;
	case UBD_RECOVER_FAIL:
		flags |= UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_FAIL_IO;
		break;
	}
	if (dev->cfg.unprivileged)
		flags |= UBLK_F_UNPRIVILEGED_DEV;
	if (dev->cfg.no_partitions)
		flags |= UBLK_F_NO_AUTO_PART_SCAN & features;
	if (dev->cfg.recovery != UBD_RECOVER_NONE)
		flags |= UBLK_F_QUIESCE & features;
	if (dev->limits.zone_size)
		flags |= UBLK_F_ZONED;
	return flags | (UBLK_F_UPDATE_SIZE & features);
}
