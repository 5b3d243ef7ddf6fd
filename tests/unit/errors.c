/* SPDX-License-Identifier: MIT */
/* Targets that cannot start say why in one sentence: object and cause; and leave nothing. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <tap.h>
#include <ubd/ubd.h>

static char dir[] = "/tmp/ubd-errors.XXXXXX";

static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void make_file(const char *name, off_t size)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, size) == 0, "%s", path);
	close(fd);
}

#define ANY_ERROR 1 /* whatever the kernel says first */

struct bad {
	const char *target;
	const char *options[4]; /* "name=value"; a leading slash in the value is below dir */
	int err;
	const char *says;
	struct ubd_device_config config;
};

static void try(const struct bad *b)
{
	const char *why;
	const struct ubd_target *t = ubd_target_find(b->target, &why);
	unsigned before = open_fds();
	struct ubd_device *dev;
	int ret = 0;

	REQUIRE(t, "%s", why);
	dev = ubd_device_new(t, &b->config);
	for (unsigned i = 0; i < 4 && b->options[i] && !ret; i++) {
		char word[256], *eq;

		snprintf(word, sizeof(word), "%s", b->options[i]);
		eq = strchr(word, '=');
		*eq++ = 0;
		if (*eq == '/') {
			char path[400];

			snprintf(path, sizeof(path), "%s%s", dir, eq);
			ret = ubd_device_set_option(dev, word, path);
		} else {
			ret = ubd_device_set_option(dev, word, eq);
		}
	}
	if (!ret)
		ret = ubd_local_start(dev);
	CHECK(b->err == ANY_ERROR ? ret < 0 : ret == b->err, "%s %s: %d", b->target, b->options[0],
	      ret);
	CHECK(strstr(ubd_device_error(dev), b->says), "\"%s\" lacks \"%s\"", ubd_device_error(dev),
	      b->says);
	CHECK(!strchr(ubd_device_error(dev), '\n'), "more than one line");
	ubd_device_free(dev);
	CHECK(open_fds() == before, "%s: %u open files, were %u", b->options[0], open_fds(),
	      before);
}

static void test_loop(void)
{
	static const struct bad cases[] = {
		{"loop", {"file=/missing"}, -ENOENT, "/missing: No such file"},
		{"loop", {"file=/"}, -EISDIR, "is a directory"},
		{"loop", {"file=/empty"}, -EINVAL, "is empty"},
		{"loop", {"file=/odd"}, -EINVAL, "not both multiples of the block size 512"},
		{"loop", {"file=/disk", "offset=1M"}, -EINVAL, "at or past its end"},
		{"loop", {"file=/disk", "offset=2M"}, -EINVAL, "at or past its end"},
		{"loop", {"file=/disk", "offset=100"}, -EINVAL, "offset 100"},
		{"loop", {"file=/disk", "size=2M"}, -EINVAL, "has only 1048576 bytes"},
		{"loop", {"file=/disk", "offset=512K", "size=1M"}, -EINVAL, "has only 524288"},
		{"loop", {"file=/disk", "size=1000"}, -EINVAL, "size 1000"},
		{"loop", {"file=/disk", "direct=sometimes"}, -EINVAL, "auto|on|off"},
		{"loop", {"direct=on"}, -EINVAL, "needs the option file"},
		{"loop", {"file=/fifo"}, -EINVAL, "neither a file nor a block device"},
	};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		try(&cases[i]);
}

static void test_locked(void)
{
	static const struct bad locked = {
		"loop", {"file=/disk"}, -EBUSY, "another program is using it", {0}};
	struct ubd_device_config read_only = {.read_only = true};
	struct bad shared = locked;
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/disk", dir);
	fd = open(path, O_RDWR);
	CHECK(flock(fd, LOCK_EX) == 0, "flock");
	try(&locked);
	shared.config = read_only;
	try(&shared);
	close(fd);
}

static void test_permission(void)
{
	static const struct bad denied = {"loop", {"file=/secret"}, -EACCES, "--read-only", {0}};
	struct bad read_only = denied;
	char path[128];

	snprintf(path, sizeof(path), "%s/secret", dir);
	make_file("secret", 4096);
	chmod(path, 0);
	chmod(dir, 0755);
	if (seteuid(65534)) {
		tap_skip("cannot become an ordinary user");
		return;
	}
	try(&denied);
	read_only.config.read_only = true;
	read_only.says = "Permission denied";
	try(&read_only);
	CHECK(seteuid(0) == 0 || getuid(), "seteuid");
}

static void test_mem(void)
{
	static const struct bad cases[] = {
		{"mem", {NULL}, -EINVAL, "needs the option size"},
		{"mem", {"size=0"}, -EINVAL, "at least 512"},
		{"mem", {"size=1000"}, -EINVAL, "not a multiple"},
		{"mem", {"size=16E"}, -EINVAL, "not a size"},
		{"mem", {"size=15E"}, ANY_ERROR, "shared memory"},
		{"null", {"size=0"}, -EINVAL, "size 0"},
		{"null", {"untouched=perhaps"}, -EINVAL, "neither yes nor no"},
	};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		try(&cases[i]);
}

/* No file can be opened: that is what it says. */
static void test_mem_files(void)
{
	static const struct bad none = {"mem", {"size=1M"}, -EMFILE, "Too many open files", {0}};
	struct rlimit before, now;

	REQUIRE(!getrlimit(RLIMIT_NOFILE, &before), "getrlimit");
	now = before;
	now.rlim_cur = 0;
	REQUIRE(!setrlimit(RLIMIT_NOFILE, &now), "setrlimit");
	try(&none);
	REQUIRE(!setrlimit(RLIMIT_NOFILE, &before), "setrlimit");
}

static void test_no_driver(void)
{
	const char *why;
	struct ubd_device *dev;
	int ret;

	if (!access("/dev/ublk-control", F_OK)) {
		tap_skip("this kernel has a ublk driver");
		return;
	}
	dev = ubd_device_new(ubd_target_find("null", &why), NULL);
	ret = ubd_device_start(dev);
	CHECK(ret == -ENOENT, "%d", ret);
	CHECK(strstr(ubd_device_error(dev), "modprobe ublk_drv"), "%s", ubd_device_error(dev));
	ubd_device_free(dev);
}

static void test_setup(void)
{
	char path[128];

	REQUIRE(mkdtemp(dir), "mkdtemp");
	make_file("empty", 0);
	make_file("odd", 1000);
	make_file("disk", 1 << 20);
	snprintf(path, sizeof(path), "%s/fifo", dir);
	CHECK(mkfifo(path, 0600) == 0, "mkfifo");
}

static void test_cleanup(void)
{
	static const char *const names[] = {"empty", "odd", "disk", "fifo", "secret"};
	char path[128];

	for (unsigned i = 0; i < 5; i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
		unlink(path);
	}
	CHECK(rmdir(dir) == 0, "something is left in %s", dir);
}

static const struct tap_case cases[] = {
	{"(files to try)", test_setup},
	{"loop refuses what is no disk", test_loop},
	{"loop refuses a file that another program has locked", test_locked},
	{"loop says what permission is missing", test_permission},
	{"mem and null refuse impossible sizes", test_mem},
	{"mem without a file to be had", test_mem_files},
	{"a kernel without ublk is named as the cause", test_no_driver},
	{"(nothing left in the directory)", test_cleanup},
};

TAP_MAIN(cases)
