/* SPDX-License-Identifier: MIT */
/* What a target says of itself, from its status() to whoever asks. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>

#define TEXT_SIZE 512

void ubd_status_number(struct ubd_status *out, const char *name, uint64_t value)
{
	out->fn(out->arg, name, NULL, value);
}

void ubd_status_text(struct ubd_status *out, const char *name, const char *fmt, ...)
{
	char text[TEXT_SIZE];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	out->fn(out->arg, name, text, 0);
}

void ubd_device_status(const struct ubd_device *dev, ubd_status_fn *fn, void *arg)
{
	struct ubd_status out = {fn, arg};

	/* A target of an earlier interface ends before that member. */
	if (dev->target->api >= 2 && dev->target->status)
		dev->target->status(dev->self, &out);
}
