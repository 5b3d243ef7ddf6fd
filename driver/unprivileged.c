// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who may do what: root everything; an ordinary user what concerns devices of their own.
 *
 * An unprivileged device is controlled by whoever may open its char device: each command names
 * the node by a path, in the caller's own mount namespace, and the node's permissions decide.
 */
#include <linux/cred.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/slab.h>
#include <linux/stat.h>
#include <linux/uidgid.h>
#include "driver.h"

static unsigned int ublks_max = 64;
module_param(ublks_max, uint, 0644);
MODULE_PARM_DESC(ublks_max, "how many unprivileged devices there may be (default: 64)");

static atomic_t charged = ATOMIC_INIT(0);

/**
 * ublk_unprivileged_charge() - count one more unprivileged device
 *
 * Return: true, or false when there are too many.
 */
bool ublk_unprivileged_charge(void)
{
	if (atomic_inc_return(&charged) <= READ_ONCE(ublks_max))
		return true;
	atomic_dec(&charged);
	return false;
}

/**
 * ublk_unprivileged_uncharge() - one unprivileged device is gone
 */
void ublk_unprivileged_uncharge(void)
{
	atomic_dec(&charged);
}

/**
 * ublk_may_add() - may the caller add such a device?
 * @info: what is asked for; features that an unprivileged device cannot have are cleared
 *
 * Return: 0, -EPERM, or -EINVAL when a feature is asked for that would give an untrusted
 * server a look at the kernel's memory.
 */
int ublk_may_add(struct ublksrv_ctrl_dev_info *info)
{
	if (capable(CAP_SYS_ADMIN)) {
		info->flags &= ~UBLK_F_UNPRIVILEGED_DEV;
		return 0;
	}
	if (!(info->flags & UBLK_F_UNPRIVILEGED_DEV))
		return -EPERM;
	if (info->flags & UBLK_F_NO_PLAIN_COPY)
		return -EINVAL;
	/* Nobody could be made to bring back a server: I/O must not wait for one. */
	info->flags &= ~(UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE |
			 UBLK_F_USER_RECOVERY_FAIL_IO | UBLK_F_QUIESCE);
	/* Nor may they pin memory without end. */
	info->flags &= ~UBLK_F_SHMEM_ZC;
	return 0;
}

/**
 * ublk_may_open() - may the caller open the disk?
 * @ub: its device
 *
 * A user could lure others into a device that they serve: only they and root get in.
 *
 * Return: true when so.
 */
bool ublk_may_open(const struct ublk_device *ub)
{
	if (!ublk_has(ub, UBLK_F_UNPRIVILEGED_DEV) || capable(CAP_SYS_ADMIN))
		return true;
	return uid_eq(current_uid(), make_kuid(&init_user_ns, ub->info.owner_uid)) &&
	       gid_eq(current_gid(), make_kgid(&init_user_ns, ub->info.owner_gid));
}

/* Does @path name this device's node, and may the caller use it so? */
static int check_node(struct ublk_device *ub, const char *name, int mask)
{
	struct inode *inode;
	struct path path;
	int ret = kern_path(name, LOOKUP_FOLLOW, &path);

	if (ret)
		return ret;
	inode = d_backing_inode(path.dentry);
	if (!S_ISCHR(inode->i_mode) || inode->i_rdev != ub->dev.devt)
		ret = -EPERM;
	else
		ret = ublk_inode_permission(inode, mask);
	path_put(&path);
	return ret;
}

static int needed_mask(u32 nr)
{
	switch (nr) {
	case UBLK_CMD_GET_DEV_INFO:
	case UBLK_CMD_GET_DEV_INFO2:
	case UBLK_CMD_GET_QUEUE_AFFINITY:
	case UBLK_CMD_GET_PARAMS:
		return MAY_READ;
	case UBLK_CMD_START_DEV:
	case UBLK_CMD_STOP_DEV:
	case UBLK_CMD_DEL_DEV:
	case UBLK_CMD_SET_PARAMS:
	case UBLK_CMD_START_USER_RECOVERY:
	case UBLK_CMD_END_USER_RECOVERY:
	case _IOC_NR(UBLK_U_CMD_DEL_DEV_ASYNC):
	case _IOC_NR(UBLK_U_CMD_UPDATE_SIZE):
	case _IOC_NR(UBLK_U_CMD_QUIESCE_DEV):
	case _IOC_NR(UBLK_U_CMD_TRY_STOP_DEV):
	case _IOC_NR(UBLK_U_CMD_REG_BUF):
	case _IOC_NR(UBLK_U_CMD_UNREG_BUF):
		return MAY_READ | MAY_WRITE;
	default:
		return -EINVAL;
	}
}

/**
 * ublk_may_control() - may the caller give this command to this device?
 * @ub: the device
 * @nr: the command's number
 * @h: the command; a leading path is taken off its buffer
 *
 * Return: 0 or -errno.
 */
int ublk_may_control(struct ublk_device *ub, u32 nr, struct ublksrv_ctrl_cmd *h)
{
	char *path;
	int mask, ret;

	if (!ublk_has(ub, UBLK_F_UNPRIVILEGED_DEV)) {
		if (!capable(CAP_SYS_ADMIN))
			return -EPERM;
		if (nr != UBLK_CMD_GET_DEV_INFO2)
			return 0;
	}
	if (!h->dev_path_len || h->dev_path_len > PATH_MAX || h->len < h->dev_path_len)
		return -EINVAL;
	mask = needed_mask(nr);
	if (mask < 0)
		return mask;
	path = memdup_user_nul(u64_to_user_ptr(h->addr), h->dev_path_len);
	if (IS_ERR(path))
		return PTR_ERR(path);
	ret = check_node(ub, path, mask);
	kfree(path);
	if (!ret) {
		h->len -= h->dev_path_len;
		h->addr += h->dev_path_len;
	}
	return ret;
}
