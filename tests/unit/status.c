/* SPDX-License-Identifier: MIT */
/* What a target says of itself, and its commands, reach whoever asks, and only targets that know
 * how. */
#include <errno.h>
#include <pthread.h>

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

/* ---- Commands ------------------------------------------------------------------------------ */

static struct ubd_device *commanded;

static int open_small(struct ubd_device *dev, void *self)
{
	(void)self;
	ubd_device_limits(dev)->size = 4096;
	return 0;
}

static int obey(struct ubd_queue *q, void *self, const struct ubd_command *c)
{
	(void)self;
	ubd_yield(q); /* it may await */
	if (!strcmp(c->words[0], "fail"))
		return ubd_device_fail(commanded, -EPERM, "no %s", c->words[1]);
	if (!strcmp(c->words[0], "silent"))
		return -EBADMSG;
	for (unsigned i = 0; i < c->count; i++)
		ubd_status_text(c->answer, "word", "%s", c->words[i]);
	return 0;
}

static struct ubd_target obedient = {
	.api = 3, .name = "obedient", .open = open_small, .handle = handle, .command = obey};

static int command(const char *a, const char *b)
{
	const char *words[] = {a, b};

	seen[0] = '\0';
	return ubd_device_command(commanded, words, 2, take, seen);
}

static void test_commands(void)
{
	int ret;

	commanded = ubd_device_new(&obedient, NULL);
	ret = command("too", "early");
	CHECK(ret == -ENODEV, "before the start: %d", ret);
	REQUIRE(!ubd_local_start(commanded), "%s", ubd_device_error(commanded));
	ret = command("a", "b");
	CHECK(!ret && !strcmp(seen, "word=a;word=b;"), "%d, \"%s\"", ret, seen);
	ret = command("fail", "luck");
	CHECK(ret == -EPERM && !strcmp(ubd_device_error(commanded), "no luck"), "%d, \"%s\"", ret,
	      ubd_device_error(commanded));
	ret = command("silent", "x");
	CHECK(ret == -EBADMSG && ubd_device_error(commanded)[0], "%d", ret);
	ret = command("c", "d");
	CHECK(!ret && !strcmp(seen, "word=c;word=d;"), "after failures: %d, \"%s\"", ret, seen);
	ubd_device_stop(commanded);
	ubd_device_wait(commanded);
	ret = command("too", "late");
	CHECK(ret == -ENODEV, "after the end: %d", ret);
	ubd_device_free(commanded);
}

static void *stop_soon(void *arg)
{
	ubd_device_stop(arg);
	return NULL;
}

/* Each command is carried out or refused, whatever the moment. */
static void test_commands_and_the_end(void)
{
	for (unsigned i = 0; i < 50; i++) {
		pthread_t t;
		int ret;

		commanded = ubd_device_new(&obedient, NULL);
		REQUIRE(!ubd_local_start(commanded), "%s", ubd_device_error(commanded));
		pthread_create(&t, NULL, stop_soon, commanded);
		do
			ret = command("a", "b");
		while (!ret);
		CHECK(ret == -ENODEV, "%d", ret);
		pthread_join(t, NULL);
		ubd_device_wait(commanded);
		ubd_device_free(commanded);
	}
}

static void test_disobedient(void)
{
	struct ubd_target older = obedient;

	older.api = 2;
	commanded = ubd_device_new(&older, NULL);
	CHECK(command("a", "b") == -EOPNOTSUPP, "a target of interface 2 is asked");
	ubd_device_free(commanded);
}

static const struct tap_case cases[] = {
	{"texts and numbers arrive as they are put", test_items},
	{"a target may say nothing", test_silent},
	{"a target of interface 1 is not asked", test_older},
	{"commands are carried out, one after another", test_commands},
	{"a command during the end is carried out or refused", test_commands_and_the_end},
	{"a target of interface 2 gets no commands", test_disobedient},
};

TAP_MAIN(cases)
