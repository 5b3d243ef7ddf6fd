// SPDX-License-Identifier: MIT
/*
 * Control commands in general: unknown devices and opcodes, SQE sizes, the commands that ask.
 */
#include "ctrl.h"
#include "dev.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define BAD_ADDR 0x10
#define NO_SUCH_ID 98765

static const uint32_t device_ops[] = {
	UBLK_U_CMD_GET_QUEUE_AFFINITY,
	UBLK_U_CMD_GET_DEV_INFO,
	UBLK_U_CMD_DEL_DEV,
	UBLK_U_CMD_START_DEV,
	UBLK_U_CMD_STOP_DEV,
	UBLK_U_CMD_SET_PARAMS,
	UBLK_U_CMD_GET_PARAMS,
	UBLK_U_CMD_START_USER_RECOVERY,
	UBLK_U_CMD_END_USER_RECOVERY,
	UBLK_U_CMD_GET_DEV_INFO2,
	UBLK_U_CMD_DEL_DEV_ASYNC,
	UBLK_U_CMD_UPDATE_SIZE,
	UBLK_U_CMD_QUIESCE_DEV,
	UBLK_U_CMD_TRY_STOP_DEV,
	UBLK_U_CMD_REG_BUF,
	UBLK_U_CMD_UNREG_BUF,
};
#define NR_DEVICE_OPS (sizeof(device_ops) / sizeof(device_ops[0]))

CASE(ctrl_unknown_device)
{
	char buf[256] = "";

	for (size_t i = 0; i < NR_DEVICE_OPS; i++) {
		long res = ctrl(device_ops[i], NO_SUCH_ID, .buf = buf, .len = sizeof(buf));

		CHECK(res == -ENODEV, "command 0x%02x: %s", _IOC_NR(device_ops[i]),
		      conform_errname(res));
		res = ctrl(device_ops[i], DEV_ID_ANY, .buf = buf, .len = sizeof(buf));
		CHECK(res == -ENODEV, "command 0x%02x, id -1: %s", _IOC_NR(device_ops[i]),
		      conform_errname(res));
	}
}

CASE(ctrl_unknown_opcodes)
{
	struct dev *dev = dev_new(0, 1, 8);

	dev_add(dev);
	RESULT("opcode-unknown-number", ctrl(_IOWR('u', 0x5f, struct ublksrv_ctrl_cmd), dev->id),
	       -EOPNOTSUPP);
	RESULT("opcode-number-0", ctrl(_IOWR('u', 0, struct ublksrv_ctrl_cmd), dev->id),
	       -EOPNOTSUPP);
	RESULT("opcode-foreign-type",
	       ctrl(_IOWR('x', UBLK_CMD_STOP_DEV, struct ublksrv_ctrl_cmd), dev->id), -EOPNOTSUPP);
	RESULT("opcode-legacy-unknown", ctrl(0x5f, dev->id), -EOPNOTSUPP);
	RESULT("opcode-io-command", ctrl(UBLK_U_IO_FETCH_REQ, dev->id), -EOPNOTSUPP);
	dev_del(dev);
}

CASE(ctrl_plain_sqe)
{
	struct dev *dev = dev_new(0, 1, 8);
	char buf[256] = "";

	dev_add(dev);
	for (size_t i = 0; i < NR_DEVICE_OPS; i++) {
		long res = ctrl(device_ops[i], dev->id, .buf = buf, .len = 64, .sqe64 = true);

		CHECK(res == -EINVAL, "command 0x%02x: %s", _IOC_NR(device_ops[i]),
		      conform_errname(res));
	}
	RESULT("features-plain-sqe",
	       ctrl(UBLK_U_CMD_GET_FEATURES, 0, .buf = buf, .len = 8, .sqe64 = true), -EINVAL);
	dev_del(dev);
}

CASE(ctrl_legacy_opcodes)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct ublksrv_ctrl_dev_info info;
	struct server *s;
	long res;

	dev->info.dev_id = DEV_ID_ANY;
	res = ctrl(UBLK_CMD_ADD_DEV, DEV_ID_ANY, .buf = &dev->info, .len = sizeof(dev->info));
	if (res == -EOPNOTSUPP)
		conform_skip("this kernel was built without the legacy opcodes");
	RESULT_REQUIRED("legacy-add", res, 0);
	dev->id = dev->info.dev_id;
	conform_track_device(dev->id);
	RESULT("legacy-set-params",
	       ctrl(UBLK_CMD_SET_PARAMS, dev->id, .buf = &dev->params, .len = sizeof(dev->params)),
	       0);
	RESULT("legacy-get-params",
	       ctrl(UBLK_CMD_GET_PARAMS, dev->id, .buf = &dev->params, .len = sizeof(dev->params)),
	       0);
	s = server_new(dev);
	s->legacy = true;
	server_start(s);
	RESULT_REQUIRED("legacy-start",
			ctrl(UBLK_CMD_START_DEV, dev->id, .data = (uint64_t)server_pid(s)), 0);
	RESULT("legacy-info",
	       ctrl(UBLK_CMD_GET_DEV_INFO, dev->id, .buf = &info, .len = sizeof(info)), 0);
	CHECK(info.state == UBLK_S_DEV_LIVE, "state %u after START_DEV", info.state);
	RESULT("legacy-stop", ctrl(UBLK_CMD_STOP_DEV, dev->id), 0);
	server_join(s);
	RESULT("legacy-del", ctrl(UBLK_CMD_DEL_DEV, dev->id), 0);
}

CASE(ctrl_get_dev_info_arguments)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct ublksrv_ctrl_dev_info info;

	dev_add(dev);
	RESULT("info-short",
	       ctrl(UBLK_U_CMD_GET_DEV_INFO, dev->id, .buf = &info, .len = sizeof(info) - 1),
	       -EINVAL);
	RESULT("info-null", ctrl(UBLK_U_CMD_GET_DEV_INFO, dev->id, .len = sizeof(info)), -EINVAL);
	RESULT("info-bad-address",
	       ctrl(UBLK_U_CMD_GET_DEV_INFO, dev->id, .addr = BAD_ADDR, .len = sizeof(info)),
	       -EFAULT);
	dev_del(dev);
}

static long info2(struct dev *dev, const char *path, uint16_t path_len, uint16_t len)
{
	char buf[8192] = "";

	strncpy(buf, path, 4500);
	return ctrl(UBLK_U_CMD_GET_DEV_INFO2, dev->id, .buf = buf, .len = len,
		    .path_len = path_len);
}

CASE(ctrl_get_dev_info2_checks_the_path)
{
	struct dev *dev = dev_new(0, 1, 8), *other = dev_new(0, 1, 8);
	uint16_t len = 32 + sizeof(struct ublksrv_ctrl_dev_info);

	dev_add(dev);
	dev_add(other);
	RESULT("info2", info2(dev, dev_char_path(dev), 32, len), 0);
	RESULT("info2-no-path", info2(dev, dev_char_path(dev), 0, len), -EINVAL);
	RESULT("info2-path-longer-than-buffer", info2(dev, dev_char_path(dev), 33, 32), -EINVAL);
	RESULT("info2-path-too-long", info2(dev, dev_char_path(dev), 4097, 8000), -EINVAL);
	RESULT("info2-no-room", info2(dev, dev_char_path(dev), 32, len - 1), -EINVAL);
	RESULT("info2-no-such-path", info2(dev, "/dev/no-such-thing", 32, len), -ENOENT);
	RESULT("info2-not-a-ublk-device", info2(dev, "/dev/null", 32, len), -EPERM);
	RESULT("info2-another-device", info2(dev, dev_char_path(other), 32, len), -EPERM);
	RESULT("info2-bad-address",
	       ctrl(UBLK_U_CMD_GET_DEV_INFO2, dev->id, .addr = BAD_ADDR, .len = len,
		    .path_len = 32),
	       -EFAULT);
	dev_del(other);
	dev_del(dev);
}

CASE(ctrl_queue_affinity)
{
	struct dev *dev = dev_new(0, 64, 2);
	uint8_t all[128] = {0}, mask[128];
	long cpus = sysconf(_SC_NPROCESSORS_CONF), seen = 0;

	dev_add(dev);
	for (unsigned q = 0; q < dev->info.nr_hw_queues; q++) {
		memset(mask, 0xff, sizeof(mask));
		RESULT_REQUIRED("affinity",
				ctrl(UBLK_U_CMD_GET_QUEUE_AFFINITY, dev->id, .buf = mask,
				     .len = sizeof(mask), .data = q),
				0);
		for (unsigned i = 0; i < sizeof(mask); i++) {
			CHECK(!(all[i] & mask[i]), "a processor belongs to two queues");
			all[i] |= mask[i];
		}
	}
	for (unsigned i = 0; i < sizeof(all) * 8; i++)
		seen += all[i / 8] >> i % 8 & 1;
	CHECK(seen >= cpus, "the queues serve %ld of %ld processors", seen, cpus);
	RESULT("affinity-no-such-queue",
	       ctrl(UBLK_U_CMD_GET_QUEUE_AFFINITY, dev->id, .buf = mask, .len = sizeof(mask),
		    .data = dev->info.nr_hw_queues),
	       -EINVAL);
	RESULT("affinity-huge-queue",
	       ctrl(UBLK_U_CMD_GET_QUEUE_AFFINITY, dev->id, .buf = mask, .len = sizeof(mask),
		    .data = 1ULL << 32),
	       -EINVAL);
	RESULT("affinity-no-length", ctrl(UBLK_U_CMD_GET_QUEUE_AFFINITY, dev->id, .buf = mask),
	       -EINVAL);
	RESULT("affinity-odd-length",
	       ctrl(UBLK_U_CMD_GET_QUEUE_AFFINITY, dev->id, .buf = mask, .len = 12), -EINVAL);
	RESULT("affinity-null", ctrl(UBLK_U_CMD_GET_QUEUE_AFFINITY, dev->id, .len = 128), -EINVAL);
	RESULT("affinity-bad-address",
	       ctrl(UBLK_U_CMD_GET_QUEUE_AFFINITY, dev->id, .addr = BAD_ADDR, .len = 128), -EFAULT);
	dev_del(dev);
}

CASE(ctrl_get_params_arguments)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct ublk_params p = {.len = sizeof(p)};
	struct ublk_params whole = {.len = sizeof(whole)};

	dev_add(dev);
	RESULT("get-params",
	       ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &whole, .len = sizeof(whole)), 0);
	CHECK(whole.types & UBLK_PARAM_TYPE_DEVT, "no DEVT among the parameters");
	CHECK(!memcmp(&whole.basic, &dev->params.basic, sizeof(whole.basic)),
	      "not the basic parameters that were set");
	RESULT("get-params-header-only", ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &p, .len = 8),
	       -EINVAL);
	RESULT("get-params-null", ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .len = sizeof(p)), -EINVAL);
	RESULT("get-params-bad-address",
	       ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .addr = BAD_ADDR, .len = sizeof(p)), -EFAULT);
	RESULT("get-params-shorter-than-said",
	       ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &p, .len = sizeof(p) - 1), -EINVAL);
	p.len = 0;
	RESULT("get-params-length-0",
	       ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &p, .len = sizeof(p)), -EINVAL);
	memset(&p, 0xaa, sizeof(p));
	p.len = 16;
	RESULT("get-params-part", ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &p, .len = sizeof(p)),
	       0);
	CHECK(!memcmp((char *)&p + 8, (char *)&whole + 8, 8), "the part is not the whole's");
	CHECK(((uint8_t *)&p)[16] == 0xaa, "more was written than asked for");
	dev_del(dev);
}

CASE(ctrl_get_params_longer_than_the_drivers)
{
	struct dev *dev = dev_new(0, 1, 8);
	uint32_t big[256] = {sizeof(big)};

	dev_add(dev);
	RESULT("get-params-long",
	       ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = big, .len = sizeof(big)), 0);
	CHECK(big[255] == 0, "written beyond the parameters");
	dev_del(dev);
}

CASE(ctrl_params_devt)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct ublk_params p = {.len = sizeof(p)};
	struct server *s;

	dev_add(dev);
	ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &p, .len = sizeof(p));
	CHECK(p.devt.char_major, "no number of the char device");
	CHECK(!p.devt.disk_major && !p.devt.disk_minor, "a disk's number before there is one");
	s = server_up(dev);
	p.len = sizeof(p);
	ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &p, .len = sizeof(p));
	CHECK(p.devt.disk_major, "no number of the disk");
	server_down(s);
}

/* Commands with no use for a path must not mind one, nor be confused by it. */
CASE(ctrl_path_on_a_privileged_device)
{
	struct dev *dev = dev_new(0, 1, 4);

	dev_add(dev);
	RESULT("path-ignored",
	       ctrl(UBLK_U_CMD_STOP_DEV, dev->id, .addr = BAD_ADDR, .len = 64, .path_len = 64), 0);
	dev_del(dev);
}
