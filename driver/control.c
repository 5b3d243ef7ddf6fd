// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/ublk-control: one command after the other, looked at, permitted, sent where it belongs.
 */
#include <linux/cpumask.h>
#include <linux/module.h>
#include <linux/slab.h>
#include "driver.h"

static int get_features(const struct ublksrv_ctrl_cmd *h)
{
	u64 features = ublk_features();

	if (h->len != UBLK_FEATURES_LEN || !h->addr)
		return -EINVAL;
	if (copy_to_user(u64_to_user_ptr(h->addr), &features, UBLK_FEATURES_LEN))
		return -EFAULT;
	return 0;
}

static int get_dev_info(struct ublk_device *ub, const struct ublksrv_ctrl_cmd *h)
{
	struct ublksrv_ctrl_dev_info info;

	if (h->len < sizeof(info) || !h->addr)
		return -EINVAL;
	/* Not under the mutex: a STOP_DEV that hangs must not hide the device it hangs on. */
	info = ub->info;
	if (info.ublksrv_pid > 0)
		info.ublksrv_pid = ublk_server_vnr(ub) ?: -1;
	if (copy_to_user(u64_to_user_ptr(h->addr), &info, sizeof(info)))
		return -EFAULT;
	return 0;
}

static int copy_mask(void __user *to, u16 len, const struct cpumask *mask)
{
	u32 n = min_t(u32, len, cpumask_size());

	if (copy_to_user(to, mask, n) || clear_user(to + n, len - n))
		return -EFAULT;
	return 0;
}

static int get_affinity(struct ublk_device *ub, const struct ublksrv_ctrl_cmd *h)
{
	const unsigned int *map = ub->tag_set.map[HCTX_TYPE_DEFAULT].mq_map;
	cpumask_var_t mask;
	unsigned int cpu;
	int ret;

	if (h->len * BITS_PER_BYTE < nr_cpu_ids || h->len % sizeof(unsigned long) || !h->addr)
		return -EINVAL;
	if (h->data[0] >= ub->info.nr_hw_queues)
		return -EINVAL;
	if (!zalloc_cpumask_var(&mask, GFP_KERNEL))
		return -ENOMEM;
	for_each_possible_cpu(cpu)
		if (map[cpu] == h->data[0])
			cpumask_set_cpu(cpu, mask);
	ret = copy_mask(u64_to_user_ptr(h->addr), h->len, mask);
	free_cpumask_var(mask);
	return ret;
}

/* Gives a command to its device; consumes the caller's reference. */
static int run_on_device(struct ublk_device *ub, u32 nr, const struct ublksrv_ctrl_cmd *h)
{
	int ret;

	switch (nr) {
	case UBLK_CMD_DEL_DEV:
		return ublk_device_del(ub, true);
	case _IOC_NR(UBLK_U_CMD_DEL_DEV_ASYNC):
		return ublk_device_del(ub, false);
	case UBLK_CMD_START_DEV:
		ret = ublk_start(ub, (pid_t)h->data[0]);
		break;
	case UBLK_CMD_STOP_DEV:
		ret = ublk_end(ub);
		break;
	case _IOC_NR(UBLK_U_CMD_TRY_STOP_DEV):
		ret = ublk_try_stop(ub);
		break;
	case UBLK_CMD_GET_DEV_INFO:
	case UBLK_CMD_GET_DEV_INFO2:
		ret = get_dev_info(ub, h);
		break;
	case UBLK_CMD_GET_QUEUE_AFFINITY:
		ret = get_affinity(ub, h);
		break;
	case UBLK_CMD_GET_PARAMS:
		ret = ublk_params_get(ub, h);
		break;
	case UBLK_CMD_SET_PARAMS:
		ret = ublk_params_set(ub, h);
		break;
	case UBLK_CMD_START_USER_RECOVERY:
		ret = ublk_recovery_start(ub);
		break;
	case UBLK_CMD_END_USER_RECOVERY:
		ret = ublk_recovery_end(ub, (pid_t)h->data[0]);
		break;
	case _IOC_NR(UBLK_U_CMD_UPDATE_SIZE):
		ret = ublk_update_size(ub, h->data[0]);
		break;
	case _IOC_NR(UBLK_U_CMD_QUIESCE_DEV):
		ret = ublk_quiesce(ub, h->data[0]);
		break;
	case _IOC_NR(UBLK_U_CMD_REG_BUF):
		ret = ublk_shmem_register(ub, h);
		break;
	case _IOC_NR(UBLK_U_CMD_UNREG_BUF):
		ret = ublk_shmem_unregister(ub, h->data[0]);
		break;
	default:
		ret = -EOPNOTSUPP;
		break;
	}
	ublk_put(ub);
	return ret;
}

static int run(u32 op, struct ublksrv_ctrl_cmd *h)
{
	struct ublk_device *ub;
	u32 nr = _IOC_NR(op);
	int ret;

	/* Bare numbers are the opcodes of kernels before 6.4. */
	if (_IOC_TYPE(op) != 'u' && _IOC_TYPE(op) != 0)
		return -EOPNOTSUPP;
	if (op == UBLK_U_CMD_GET_FEATURES)
		return get_features(h);
	if (op == UBD_U_CMD_QUERY)
		return ublk_zc_query(h->addr, h->len);
	if (nr == UBLK_CMD_ADD_DEV)
		return ublk_device_add(h);
	ub = ublk_device_find(h->dev_id);
	if (!ub)
		return -ENODEV;
	ret = ublk_may_control(ub, nr, h);
	if (ret) {
		ublk_put(ub);
		return ret;
	}
	return run_on_device(ub, nr, h);
}

/* A tool that only looks should not need a worker thread for it. */
static bool may_sleep(u32 op)
{
	switch (_IOC_NR(op)) {
	case UBLK_CMD_GET_QUEUE_AFFINITY:
	case UBLK_CMD_GET_DEV_INFO:
	case UBLK_CMD_GET_DEV_INFO2:
	case _IOC_NR(UBLK_U_CMD_GET_FEATURES):
		return false;
	default:
		return true;
	}
}

/*
 * For a task that goes away. io_uring tells its worker once, perhaps before the worker began with
 * this: then what waits for a signal would wait for ever, and the task for the worker. What ends
 * a device is begun all the same, and finds at its first look that nobody waits for it.
 */
static int run_deserted(u32 op, struct ublksrv_ctrl_cmd *h)
{
	switch (_IOC_NR(op)) {
	case UBLK_CMD_STOP_DEV:
	case UBLK_CMD_DEL_DEV:
	case _IOC_NR(UBLK_U_CMD_DEL_DEV_ASYNC):
		set_thread_flag(TIF_NOTIFY_SIGNAL);
		return run(op, h);
	default:
		return -EINTR;
	}
}

static int control_uring_cmd(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	const struct ublksrv_ctrl_cmd *sqe = ublk_cmd_payload(cmd);
	struct ublksrv_ctrl_cmd h;
	int ret;

	if ((issue_flags & IO_URING_F_NONBLOCK) && may_sleep(cmd->cmd_op))
		return -EAGAIN;
	if (!(issue_flags & IO_URING_F_SQE128))
		return -EINVAL;
	h = (struct ublksrv_ctrl_cmd){
		.dev_id = READ_ONCE(sqe->dev_id),
		.queue_id = READ_ONCE(sqe->queue_id),
		.len = READ_ONCE(sqe->len),
		.addr = READ_ONCE(sqe->addr),
		.data[0] = READ_ONCE(sqe->data[0]),
		.dev_path_len = READ_ONCE(sqe->dev_path_len),
	};
	ret = ublk_cmd_is_deserted(cmd) ? run_deserted(cmd->cmd_op, &h) : run(cmd->cmd_op, &h);
	ublk_cmd_done(cmd, ret, issue_flags);
	return -EIOCBQUEUED;
}

const struct file_operations ublk_control_fops = {
	.owner = THIS_MODULE,
	.open = nonseekable_open,
	.uring_cmd = control_uring_cmd,
	.llseek = noop_llseek,
};
