/* SPDX-License-Identifier: MIT */
/*
 * Jobs on an image that nobody serves, and its contents:
 *
 *   tool IMAGE list|create|delete|apply|resize|repair [NAME|BYTES]
 *   tool IMAGE dump [SNAPSHOT]      to standard output
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"

#define PIECE (64u << 10)

static void print(void *arg, const struct ubd_qcow2_snapshot *s)
{
	(void)arg;
	printf("%s %s %llu\n", s->id, s->name, (unsigned long long)s->size);
}

static int dump(const char *image, const char *snapshot)
{
	struct disk_options o = {.image = image, .snapshot = snapshot, .read_only = !snapshot};
	static uint8_t buf[PIECE] __attribute__((aligned(4096)));
	char error[512];
	struct ubd_device *dev = disk_open(&o, error, sizeof(error));
	uint64_t size = dev ? ubd_device_size(dev) : 0;

	if (!dev)
		return 1;
	if (ubd_local_io(dev, 0, UBD_WRITE, 0, 0, buf, 512) >= 0)
		die("a write to a read-only disk succeeds");
	for (uint64_t at = 0; at < size; at += PIECE) {
		uint32_t n = (uint32_t)(size - at < PIECE ? size - at : PIECE);

		if (ubd_local_io(dev, 0, UBD_READ, 0, at, buf, n) != (int)n)
			die("cannot read at %llu", (unsigned long long)at);
		fwrite(buf, 1, n, stdout);
	}
	return disk_close(dev);
}

int main(int argc, char **argv)
{
	static const char *const verbs[] = {"list",  "create", "delete",
					    "apply", "resize", "repair"};
	struct ubd_qcow2_job job = {.snapshot = print, .name = argv[3]};
	char error[512];

	if (argc < 3)
		die("usage: tool IMAGE VERB [NAME|BYTES]");
	if (!strcmp(argv[2], "dump"))
		return dump(argv[1], argv[3]);
	while (job.verb <= UBD_QCOW2_REPAIR && strcmp(verbs[job.verb], argv[2]) != 0)
		job.verb++;
	if (job.verb > UBD_QCOW2_REPAIR)
		die("%s: no such verb", argv[2]);
	job.size = argv[3] ? strtoull(argv[3], NULL, 0) : 0;
	if (qcow2_run(argv[1], &job, error, sizeof(error)))
		die("%s", error);
	return 0;
}
