/* SPDX-License-Identifier: MIT */
/*
 * The driver's control commands (/dev/ublk-control), each with a deadline.
 *
 * One handle for one thread at a time. All calls return 0 or -errno: -ETIMEDOUT when the deadline
 * passed (the command goes on in the kernel), otherwise the driver's own. Structures are those of
 * the ublk ABI, <linux/ublk_cmd.h>. Commands are sent ioctl-encoded only.
 */
#ifndef UBD_CTRL_H
#define UBD_CTRL_H

#include <sched.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ubd_ctrl;
struct ublksrv_ctrl_dev_info;
struct ublk_params;

/* -ENOENT: no ublk in this kernel, -EACCES: no permission. Close frees it; NULL is fine. */
int ubd_ctrl_open(struct ubd_ctrl **ctrl);
void ubd_ctrl_close(struct ubd_ctrl *ctrl);
/* The longest wait of one command, ms; 0: the default, 30,000. */
void ubd_ctrl_set_deadline(struct ubd_ctrl *ctrl, unsigned ms);
/* Test aid, see ubd_device_config.fault. -EINVAL: not understood. */
int ubd_ctrl_set_fault(struct ubd_ctrl *ctrl, const char *fault);

/* A mask of UBLK_F_*; 0 from drivers older than the command. */
int ubd_ctrl_features(struct ubd_ctrl *ctrl, uint64_t *features);
/*
 * What ubd's own driver has beyond that (UBD_F_* of its ABI); 0 and an empty version from others.
 * version may be NULL; size in bytes.
 */
int ubd_ctrl_extensions(struct ubd_ctrl *ctrl, uint64_t *features, char *version, size_t size);
/* In: what is wanted, dev_id (uint32_t)-1 for any. Out: what was granted. */
int ubd_ctrl_add(struct ubd_ctrl *ctrl, struct ublksrv_ctrl_dev_info *info);
int ubd_ctrl_info(struct ubd_ctrl *ctrl, uint32_t id, struct ublksrv_ctrl_dev_info *info);
int ubd_ctrl_set_params(struct ubd_ctrl *ctrl, uint32_t id, const struct ublk_params *params);
int ubd_ctrl_params(struct ubd_ctrl *ctrl, uint32_t id, struct ublk_params *params);
/* CPUs of one queue; size in bytes of *cpus. */
int ubd_ctrl_affinity(struct ubd_ctrl *ctrl, uint32_t id, uint16_t queue, cpu_set_t *cpus,
		      size_t size);
/* pid: the process that opened the char device. Returns when every queue has fetched. */
int ubd_ctrl_start(struct ubd_ctrl *ctrl, uint32_t id, int pid);
/* Needs a live server, or a dead one; waits for I/O in flight. */
int ubd_ctrl_stop(struct ubd_ctrl *ctrl, uint32_t id);
/* -EBUSY while the disk is open; -EOPNOTSUPP where the driver cannot. */
int ubd_ctrl_try_stop(struct ubd_ctrl *ctrl, uint32_t id);
/*
 * Waits for the last reference to the char device; async (UBLK_U_CMD_DEL_DEV_ASYNC): does not, and
 * falls back to waiting where the driver cannot.
 */
int ubd_ctrl_del(struct ubd_ctrl *ctrl, uint32_t id);
int ubd_ctrl_del_async(struct ubd_ctrl *ctrl, uint32_t id);
int ubd_ctrl_start_recovery(struct ubd_ctrl *ctrl, uint32_t id);
int ubd_ctrl_end_recovery(struct ubd_ctrl *ctrl, uint32_t id, int pid);
/* Bytes, a multiple of 512. */
int ubd_ctrl_resize(struct ubd_ctrl *ctrl, uint32_t id, uint64_t size);
/* Longest wait for the server in ms. */
int ubd_ctrl_quiesce(struct ubd_ctrl *ctrl, uint32_t id, unsigned ms);

/*
 * The features by name, for people: entry n, from 0; NULL past the end. *mask gets the UBLK_F_* or
 * UBD_F_* bit, *what one line of explanation. Either may be NULL.
 */
const char *ubd_feature_name(unsigned n, uint64_t *mask, const char **what);

#ifdef __cplusplus
}
#endif

#endif
