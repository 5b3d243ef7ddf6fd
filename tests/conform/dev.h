/* SPDX-License-Identifier: MIT */
/*
 * A device under test: added, given parameters, started, stopped and deleted by raw commands.
 * Lives in shared memory, so that servers and clients in other processes see it.
 */
#ifndef CONFORM_DEV_H
#define CONFORM_DEV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "job.h"
#include "uapi/ublk.h"

#define SECTOR 512U
#define DEV_BYTES (16ULL << 20)
#define DEV_ID_ANY ((uint32_t)-1)

struct dev {
	uint32_t id;
	struct ublksrv_ctrl_dev_info info; /* as ADD_DEV gave it back */
	struct ublk_params params;
	bool part_scan; /* let START_DEV scan where that can be chosen */
	uint32_t uid;	/* whose commands these are; 0: root's */
};

/* Not added yet: one queue of depth 8, no flags, requests up to 128 KiB, DEV_BYTES long. */
struct dev *dev_new(uint64_t flags, unsigned queues, unsigned depth);
/* ADD_DEV; the id in dev->id is asked for (DEV_ID_ANY at first). */
long dev_try_add(struct dev *dev);
long dev_try_set_params(struct dev *dev);
/* Add and SET_PARAMS; the case ends if that does not work. */
void dev_add(struct dev *dev);

/* A command for the device, with its path before the buffer when it is another user's. */
long dev_cmd(struct dev *dev, uint32_t op, uint64_t data, void *buf, uint16_t len);
struct job *dev_cmd_begin(struct dev *dev, uint32_t op, uint64_t data);

long dev_get_info(struct dev *dev, struct ublksrv_ctrl_dev_info *info);
/* UBLK_S_DEV_*, or -errno. */
int dev_state(struct dev *dev);
/* Wait for a state; false when it does not come. */
bool dev_wait_state(struct dev *dev, int state, unsigned ms);
/* Wait until /dev/ublkcN can be opened again, that is until nobody has it. */
bool dev_wait_released(struct dev *dev, unsigned ms);
/* Open it once nobody has it any more. A descriptor, or -errno: -EBUSY after ms. */
int dev_open_released(const struct dev *dev, unsigned ms);

void dev_stop(struct dev *dev);
void dev_del(struct dev *dev);

const char *dev_char_path(const struct dev *dev);
const char *dev_block_path(const struct dev *dev);
/* Open /dev/ublkcN in this process; -errno when that fails. */
int dev_open_char(const struct dev *dev);
bool dev_has_disk(const struct dev *dev);

/* A number from /sys/block/ublkbN/, -1 when it is not there. */
long long dev_sysfs(const struct dev *dev, const char *name);
void dev_sysfs_set(const struct dev *dev, const char *name, const char *value);

#endif
