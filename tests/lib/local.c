/* SPDX-License-Identifier: MIT */
#include "local.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	/* Others are at work still: no time for exit handlers. */
	_exit(1);
}

void fill_pattern(uint8_t *buf, size_t len, uint64_t seed)
{
	for (size_t i = 0; i + 8 <= len; i += 8) {
		uint64_t x = random_next(&seed);

		memcpy(buf + i, &x, 8);
	}
}

int disk_close(struct ubd_device *dev)
{
	int ret;

	ubd_device_stop(dev);
	ret = ubd_device_wait(dev);
	ubd_device_free(dev);
	return ret;
}
