/* SPDX-License-Identifier: MIT */
/* What a target says of itself reaches whoever asks, and only from targets that know how. */
#include <tap.h>

#include <ubd/ubd.h>

static char seen[256];

static void take(void *arg, const char *name, const char *text, uint64_t number)
{
	size_t len = strlen(seen);

	CHECK(arg == seen, "not what was passed");
	if (text)
		snprintf(seen + len, sizeof(seen) - len, "%s=%s;", name, text);
	else
		snprintf(seen + len, sizeof(seen) - len, "%s:%llu;", name,
			 (unsigned long long)number);
}

static void tell(void *self, struct ubd_status *out)
{
	CHECK(*(uint64_t *)self == 0, "not the target's state");
	ubd_status_text(out, "server", "%s %d", "away", 3);
	ubd_status_number(out, "retries", UINT64_MAX);
}

static int handle(struct ubd_io *io, void *self)
{
	(void)io;
	(void)self;
	return 0;
}

static void ask(const struct ubd_target *target, const char *want)
{
	struct ubd_device *dev = ubd_device_new(target, NULL);

	REQUIRE(dev, "no device");
	seen[0] = '\0';
	ubd_device_status(dev, take, seen);
	CHECK(!strcmp(seen, want), "\"%s\", expected \"%s\"", seen, want);
	ubd_device_free(dev);
}

static struct ubd_target target = {.api = UBD_TARGET_API,
				   .name = "talker",
				   .size = sizeof(uint64_t),
				   .handle = handle,
				   .status = tell};

static void test_items(void)
{
	ask(&target, "server=away 3;retries:18446744073709551615;");
}

static void test_silent(void)
{
	struct ubd_target silent = target;

	silent.status = NULL;
	ask(&silent, "");
}

/* Its struct ends before the member: what lies there is something else. */
static void test_older(void)
{
	struct ubd_target older = target;

	older.api = 1;
	ask(&older, "");
}

static const struct tap_case cases[] = {
	{"texts and numbers arrive as they are put", test_items},
	{"a target may say nothing", test_silent},
	{"a target of interface 1 is not asked", test_older},
};

TAP_MAIN(cases)
