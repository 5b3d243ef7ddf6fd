/* SPDX-License-Identifier: MIT */
/* Failures on purpose: parsing the plan and counting. */
#define _GNU_SOURCE
#include "fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const kinds[FAULT_KINDS] = {
	[FAULT_SQE] = "sqe",
	[FAULT_FETCH] = "fetch",
	[FAULT_COMMIT] = "commit",
	[FAULT_CTRL] = "ctrl",
};

static int parse_errno(const char *word, size_t len)
{
	for (int e = 1; e < 134; e++) {
		const char *name = strerrorname_np(e);

		if (name && strlen(name) == len && !strncmp(name, word, len))
			return e;
	}
	char *end;
	long n = strtol(word, &end, 10);

	return end == word + len && n > 0 && n < 4096 ? (int)n : 0;
}

static int parse_one(struct fault *f, const char *text, size_t len)
{
	const char *colon = memchr(text, ':', len);
	struct fault_plan plan = {0};
	char *end;

	if (!colon)
		return -EINVAL;
	plan.nth = (unsigned)strtoul(colon + 1, &end, 10);
	if (*end == '+') {
		plan.sticky = true;
		end++;
	}
	if (!plan.nth || *end != ':' || end >= text + len)
		return -EINVAL;
	plan.err = parse_errno(end + 1, (size_t)(text + len - end - 1));
	if (!plan.err)
		return -EINVAL;
	for (int k = 0; k < FAULT_KINDS; k++)
		if (strlen(kinds[k]) == (size_t)(colon - text) &&
		    !strncmp(kinds[k], text, strlen(kinds[k]))) {
			f->plan[k] = plan;
			f->armed = true;
			return 0;
		}
	return -EINVAL;
}

int fault_parse(struct fault *f, const char *text)
{
	*f = (struct fault){0};
	while (text && *text) {
		size_t len = strcspn(text, ",");
		int ret = parse_one(f, text, len);

		if (ret)
			return ret;
		text += len;
		text += *text == ',';
	}
	return 0;
}

int fault_hit(struct fault *f, enum fault_kind kind)
{
	struct fault_plan *plan = &f->plan[kind];

	if (!f->armed || !plan->nth || --plan->nth)
		return 0;
	if (plan->sticky)
		plan->nth = 1;
	return -plan->err;
}
