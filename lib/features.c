/* SPDX-License-Identifier: MIT */
/* What drivers can do, by name. */
#include "internal.h"

static const struct {
	uint64_t mask;
	const char *name;
	const char *what;
} features[] = {
	{UBLK_F_SUPPORT_ZERO_COPY, "zero-copy", "request pages can be registered with io_uring"},
	{UBLK_F_URING_CMD_COMP_IN_TASK, "comp-in-task", "requests are delivered by task work"},
	{UBLK_F_NEED_GET_DATA, "need-get-data", "write data is copied when asked for"},
	{UBLK_F_USER_RECOVERY, "recovery", "the device survives its server"},
	{UBLK_F_USER_RECOVERY_REISSUE, "recovery-reissue",
	 "I/O in flight is given to the next server"},
	{UBLK_F_UNPRIVILEGED_DEV, "unprivileged", "ordinary users may own devices"},
	{UBLK_F_CMD_IOCTL_ENCODE, "ioctl-encode", "commands are ioctl-encoded"},
	{UBLK_F_USER_COPY, "user-copy", "the server copies by pread and pwrite"},
	{UBLK_F_ZONED, "zoned", "host-managed zoned devices"},
	{UBLK_F_USER_RECOVERY_FAIL_IO, "recovery-fail-io", "I/O fails while there is no server"},
	{UBLK_F_UPDATE_SIZE, "update-size", "a live device can be resized"},
	{UBLK_F_AUTO_BUF_REG, "auto-buf-reg", "request pages are registered by the driver"},
	{UBLK_F_QUIESCE, "quiesce", "a server can be replaced with no failed I/O"},
	{UBLK_F_PER_IO_DAEMON, "per-io-daemon", "each request slot may have a thread of its own"},
	{UBLK_F_BUF_REG_OFF_DAEMON, "buf-reg-off-daemon", "any thread may register request pages"},
	{UBLK_F_BATCH_IO, "batch-io", "many requests per command"},
	{UBLK_F_INTEGRITY, "integrity", "integrity metadata"},
	{UBLK_F_SAFE_STOP_DEV, "safe-stop", "a device in use is not stopped by mistake"},
	{UBLK_F_NO_AUTO_PART_SCAN, "no-part-scan", "the partition table can be left unread"},
	{UBLK_F_SHMEM_ZC, "shmem-zc", "I/O from registered shared memory is not copied"},
	{UBLK_F_IO_DESC_SIZE, "io-desc-size", "request descriptors of other sizes"},
	/* Of ubd's own driver. */
	{UBD_F_MEMBERS, "members", "the driver does I/O on a request's pages"},
	{UBD_F_FUSED, "fused", "... and completes the request with the same command"},
	{UBD_F_LEASE, "lease", "a request's buffer can be lent to a group of members"},
	{UBD_F_SPLICE, "splice", "a write's pages can be spliced into a pipe"},
};

const char *ubd_feature_name(unsigned n, uint64_t *mask, const char **what)
{
	if (n >= ARRAY_SIZE(features))
		return NULL;
	if (mask)
		*mask = features[n].mask;
	if (what)
		*what = features[n].what;
	return features[n].name;
}

const char *ubd_version(void)
{
	return UBD_VERSION;
}
