/* SPDX-License-Identifier: MIT */
/*
 * Failure paths, in local mode: the nth io_uring operation of a workload fails, for every n until
 * none is left to fail. Every call returns, what succeeded is true, and nothing leaks.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <tap.h>
#include <ubd/ubd.h>

#define BLOCK 4096

static char image[] = "/tmp/ubd-sweep.XXXXXX";

static unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 512; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static unsigned count_threads(void)
{
	struct stat st;

	/* One link per thread, and two of the directory's own. */
	return stat("/proc/self/task", &st) ? 0 : (unsigned)st.st_nlink - 2;
}

/* Threads leave /proc a moment after they were joined, io_uring's after their ring. */
static unsigned threads_settle(unsigned want)
{
	unsigned n = count_threads();

	for (int i = 0; i < 3000 && n > want; i++) {
		usleep(10000);
		n = count_threads();
	}
	return n;
}

/* Which requests failed; checks that the others did what they say. */
static unsigned workload(struct ubd_device *dev)
{
	static unsigned char mem[16 * BLOCK] __attribute__((aligned(4096)));
	unsigned failed = 0;

	for (unsigned i = 0; i < 4; i++) {
		int ret;

		memset(mem, (int)i + 1, sizeof(mem));
		ret = ubd_local_io(dev, 0, UBD_WRITE, i % 2 ? UBD_IO_FUA : 0, i * sizeof(mem), mem,
				   sizeof(mem));
		CHECK(ret == (int)sizeof(mem) || ret == -EIO, "write: %d", ret);
		failed += ret < 0;
		if (ret > 0) {
			memset(mem, 0x99, sizeof(mem));
			ret = ubd_local_io(dev, 0, UBD_READ, 0, i * sizeof(mem), mem, sizeof(mem));
			CHECK(ret == (int)sizeof(mem) || ret == -EIO, "read: %d", ret);
			CHECK(ret < 0 || mem[BLOCK + 1] == i + 1, "a good read of bad data");
			failed += ret < 0;
		}
	}
	failed += ubd_local_io(dev, 0, UBD_FLUSH, 0, 0, NULL, 0) < 0;
	failed += ubd_local_io(dev, 0, UBD_DISCARD, 0, 0, NULL, BLOCK) < 0;
	failed += ubd_local_io(dev, 0, UBD_WRITE_ZEROES, 0, BLOCK, NULL, BLOCK) < 0;
	failed += ubd_local_io(dev, 0, UBD_WRITE_ZEROES, UBD_IO_FUA | UBD_IO_NO_UNMAP, BLOCK, NULL,
			       BLOCK) < 0;
	return failed;
}

/* Failed requests, or -errno when the device did not start. */
static int run(const char *target, const char *option, const char *value, const char *plan)
{
	const char *why;
	struct ubd_device_config config = {.depth = 8, .fault = plan};
	struct ubd_device *dev = ubd_device_new(ubd_target_find(target, &why), &config);
	int ret;

	CHECK(!ubd_device_set_option(dev, option, value), "%s", ubd_device_error(dev));
	ret = ubd_local_start(dev);
	if (ret) {
		CHECK(ubd_device_error(dev)[0], "no sentence");
		tap_note("%s: does not start: %s", plan ? plan : "no fault", ubd_device_error(dev));
	} else {
		ret = (int)workload(dev);
		ubd_device_stop(dev);
		ubd_device_wait(dev);
	}
	ubd_device_free(dev);
	return ret;
}

static void sweep(const char *target, const char *option, const char *value, const char *form)
{
	unsigned fds, threads, now, n, hits = 0;
	int ret;

	ret = run(target, option, value, NULL); /* whatever is made once is there now */
	REQUIRE(ret == 0, "fails without a fault: %d", ret);
	fds = count_fds();
	threads = count_threads(); /* and maybe some of that run's, which are going */
	for (n = 1; n < 500 && !tap_failed; n++) {
		char plan[64];

		snprintf(plan, sizeof(plan), form, n);
		ret = run(target, option, value, plan);
		CHECK(count_fds() == fds, "%s: %u open files, were %u", plan, count_fds(), fds);
		now = threads_settle(threads);
		CHECK(now <= threads, "%s: %u threads, were %u", plan, now, threads);
		threads = now;
		if (!ret)
			break;
		hits++;
	}
	CHECK(n < 500, "no end");
	CHECK(ret == 0, "the last run: %d", ret);
	tap_note("%s %s: %u operations failed one after another", target, form, hits);
}

static void test_mem(void)
{
	sweep("mem", "size", "1M", "sqe:%u:EIO");
	sweep("mem", "size", "1M", "sqe:%u+:EIO");
}

static void test_loop(void)
{
	sweep("loop", "file", image, "sqe:%u:EIO");
	sweep("loop", "file", image, "sqe:%u+:EIO");
}

static void test_transient(void)
{
	/* Interruptions are tried again: nobody sees them. */
	for (unsigned n = 1; n < 20; n++) {
		char plan[64];

		snprintf(plan, sizeof(plan), "sqe:%u:EINTR", n);
		CHECK(run("loop", "file", image, plan) == 0, "%s reached the reader", plan);
		snprintf(plan, sizeof(plan), "sqe:%u:EAGAIN", n);
		CHECK(run("loop", "file", image, plan) == 0, "%s reached the reader", plan);
	}
}

static void test_no_plan(void)
{
	const char *why;
	struct ubd_device_config config = {.fault = "sqe:never:EIO"};
	struct ubd_device *dev = ubd_device_new(ubd_target_find("null", &why), &config);

	CHECK(ubd_local_start(dev) == -EINVAL, "a plan that is nonsense was taken");
	CHECK(strstr(ubd_device_error(dev), "sqe:never:EIO"), "\"%s\"", ubd_device_error(dev));
	ubd_device_free(dev);
}

static const struct tap_case cases[] = {
	{"mem: every operation fails once, and from then on", test_mem, 120},
	{"loop: every operation fails once, and from then on", test_loop, 120},
	{"loop: interruptions are not failures", test_transient, 120},
	{"a plan that is not understood is refused", test_no_plan},
};

int main(void)
{
	int fd = mkstemp(image), ret;

	if (fd < 0 || ftruncate(fd, 1 << 20)) {
		printf("Bail out! cannot make %s\n", image);
		return 3;
	}
	close(fd);
	ret = tap_run(cases, sizeof(cases) / sizeof(*cases));
	unlink(image);
	return ret;
}
