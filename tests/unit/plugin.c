/* SPDX-License-Identifier: MIT */
/* Targets in shared objects: found by name and by path, refused with a reason. */
#include <stdlib.h>

#include <tap.h>
#include <ubd/ubd.h>

static const char *dir;

static void test_name(void)
{
	const char *why = NULL;
	const struct ubd_target *t;

	setenv("UBD_PLUGIN_DIR", dir, 1);
	t = ubd_target_find("good", &why);
	REQUIRE(t, "%s", why);
	CHECK(!strcmp(t->name, "good"), "%s", t->name);
	CHECK(ubd_target_find("good", &why) == t, "not the same the second time");
}

static void test_path(void)
{
	char path[4096];
	const char *why = NULL;
	const struct ubd_target *t;
	unsigned char mem[512];
	struct ubd_device *dev;

	snprintf(path, sizeof(path), "%s/good.so", dir);
	t = ubd_target_find(path, &why);
	REQUIRE(t, "%s", why);
	dev = ubd_device_new(t, NULL);
	CHECK(!ubd_device_set_option(dev, "byte", "42"), "%s", ubd_device_error(dev));
	REQUIRE(ubd_local_start(dev) == 0, "%s", ubd_device_error(dev));
	CHECK(ubd_local_io(dev, 0, UBD_READ, 0, 0, mem, 512) == 512 && mem[511] == 42, "data");
	ubd_device_stop(dev);
	ubd_device_wait(dev);
	ubd_device_free(dev);
}

static void refused(const char *name, const char *says)
{
	const char *why = "";

	CHECK(!ubd_target_find(name, &why), "%s was taken", name);
	CHECK(strstr(why, says), "%s: \"%s\" lacks \"%s\"", name, why, says);
}

static void test_refusals(void)
{
	setenv("UBD_PLUGIN_DIR", dir, 1);
	refused("alien", "has no symbol ubd_target");
	refused("newer", "version 99");
	refused("missing", "no target \"missing\"");
	refused("", "no target \"\"");
	refused("./missing.so", "cannot load ./missing.so");
	refused("/etc/passwd", "cannot load /etc/passwd");
}

static void test_built_in(void)
{
	const char *last = "", *why;
	unsigned n = 0;

	for (const struct ubd_target *const *t = ubd_targets(); *t; t++, n++) {
		CHECK(strcmp(last, (*t)->name) < 0, "%s after %s", (*t)->name, last);
		last = (*t)->name;
		CHECK(ubd_target_find(last, &why) == *t, "%s is not found", last);
		CHECK((*t)->summary && !strchr((*t)->summary, '\n'), "%s: its summary", last);
		for (const struct ubd_option *o = (*t)->options; o && o->name; o++)
			CHECK(o->help && o->help[0], "%s %s has no help", last, o->name);
	}
	CHECK(n >= 3, "%u targets", n);
}

static const struct tap_case cases[] = {
	{"found by name in the plugin directory", test_name},
	{"found by path, and it works", test_path},
	{"what is no plugin is refused with its reason", test_refusals},
	{"the built-in targets are in order and described", test_built_in},
};

int main(void)
{
	dir = getenv("UBD_UNIT_DIR");
	if (!dir) {
		printf("1..0 # SKIP UBD_UNIT_DIR does not say where the test plugins are\n");
		return 0;
	}
	return tap_run(cases, sizeof(cases) / sizeof(*cases));
}
