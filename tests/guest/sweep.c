/* SPDX-License-Identifier: MIT */
/*
 * Failure paths of a real device: every control command, fetch, commit and other operation is made
 * to fail in turn, once and from then on. Each time the start fails with a sentence or the device
 * ends, and nothing is left: no node, no file, no thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <dirent.h>

#include "../../include/uapi/ubd.h"

#include <tap.h>
#include <ubd/ubd.h>

static unsigned entries(const char *dir, const char *prefix)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	unsigned n = 0;

	while (d && (e = readdir(d)))
		n += !strncmp(e->d_name, prefix, strlen(prefix));
	if (d)
		closedir(d);
	return n;
}

/*
 * Threads leave /proc a moment after they have been joined, nodes after the device is gone.
 * io_uring keeps a worker that has nothing to do for 5 s.
 */
static unsigned settled(const char *dir, const char *prefix, unsigned want)
{
	unsigned n = entries(dir, prefix);

	for (int i = 0; i < 1000 && n > want; i++) {
		usleep(10000);
		n = entries(dir, prefix);
	}
	return n;
}

/* I/O until the device fails or all is done; in a thread, because a broken device may block it. */
static void *use(void *arg)
{
	int fd = open(arg, O_RDWR | O_DIRECT);
	void *mem;

	if (fd < 0 || posix_memalign(&mem, 4096, 65536))
		return NULL;
	memset(mem, 1, 65536);
	for (int i = 0; i < 6; i++)
		if (pwrite(fd, mem, 65536, i * 65536) < 0 || pread(fd, mem, 4096, i * 65536) < 0)
			break;
	free(mem);
	close(fd);
	return NULL;
}

struct run {
	const struct ubd_target *own; /* else the one of that name */
	const char *target, *option, *value, *plan;
	enum ubd_zero_copy way;
	bool started;
	int ret;
};

static void run(struct run *r)
{
	const char *why;
	struct ubd_device_config config = {.depth = 4,
					   .max_io = 65536,
					   .zero_copy = r->way,
					   .fault = r->plan,
					   .deadline_ms = 10000};
	struct ubd_device *dev =
		ubd_device_new(r->own ? r->own : ubd_target_find(r->target, &why), &config);

	CHECK(r->own || !ubd_device_set_option(dev, r->option, r->value), "%s",
	      ubd_device_error(dev));
	r->ret = ubd_device_start(dev);
	r->started = !r->ret;
	if (r->ret) {
		CHECK(ubd_device_error(dev)[0], "%s: no sentence", r->plan);
	} else {
		char path[32];
		pthread_t thread;

		snprintf(path, sizeof(path), "%s", ubd_device_path(dev));
		pthread_create(&thread, NULL, use, path);
		if (!r->plan)
			pthread_join(thread, NULL);
		else
			usleep(50000);
		ubd_device_stop(dev); /* a broken one may refuse: then free() has to do it */
		r->ret = ubd_device_wait(dev);
		ubd_device_free(dev);
		dev = NULL;
		if (r->plan)
			pthread_join(thread, NULL);
	}
	ubd_device_free(dev);
}

static void sweep(const char *kind, struct run r, unsigned most)
{
	unsigned fds, threads, nodes, refused = 0, broken = 0, n;

	r.plan = NULL;
	run(&r);
	REQUIRE(r.started && !r.ret, "fails without a fault: %d", r.ret);
	nodes = settled("/dev", "ublk", 1);
	fds = entries("/proc/self/fd", "");
	threads = settled("/proc/self/task", "", 3);
	for (n = 1; n <= most; n++) {
		char plan[64];

		snprintf(plan, sizeof(plan), "%s:%u%s:EIO", kind, (n + 1) / 2, n % 2 ? "" : "+");
		r.plan = plan;
		tap_note("%s", plan); /* who looks at a hang wants to know */
		run(&r);
		refused += !r.started;
		broken += r.started && r.ret;
		REQUIRE(settled("/dev", "ublk", nodes) == nodes, "%s: a device is left", plan);
		REQUIRE(settled("/proc/self/fd", "", fds) == fds, "%s: %u open files, were %u",
			plan, entries("/proc/self/fd", ""), fds);
		REQUIRE(settled("/proc/self/task", "", threads) == threads, "%s: a thread is left",
			plan);
	}
	tap_note("%s on %s: %u plans, %u starts refused, %u devices broken", kind, r.target, most,
		 refused, broken);
	/* commands under way when the device is used: something must have been hit */
	CHECK(refused + broken || !strcmp(kind, "sqe"), "no plan hit anything");
}

static void test_ctrl(void)
{
	sweep("ctrl", (struct run){.target = "null", .option = "size", .value = "16M"}, 14);
}

static uint64_t features(void)
{
	struct ubd_ctrl *ctrl;
	uint64_t mask = 0, more = 0;
	int ret = ubd_ctrl_open(&ctrl);

	CHECK(!ret, "no driver: %d", ret);
	if (!ret) {
		ubd_ctrl_features(ctrl, &mask);
		ubd_ctrl_extensions(ctrl, &more, NULL, 0);
		ubd_ctrl_close(ctrl);
	}
	return mask | more;
}

static void test_fetch(void)
{
	/* It knows a queue's task only when the last tag was fetched, and looks for it before. */
	if (!(features() & UBLK_F_PER_IO_DAEMON)) {
		tap_skip("this driver warns when a server ends with some of its fetches done");
		return;
	}
	sweep("fetch", (struct run){.target = "null", .option = "size", .value = "16M"}, 10);
}

static void test_commit(void)
{
	sweep("commit", (struct run){.target = "mem", .option = "size", .value = "16M"}, 40);
}

static void test_sqe(void)
{
	sweep("sqe",
	      (struct run){
		      .target = "mem", .option = "size", .value = "16M", .way = UBD_ZC_USER_COPY},
	      40);
}

static void test_loop(void)
{
	char image[] = "/mnt/ubd-sweep.XXXXXX";
	int fd = mkstemp(image);

	REQUIRE(fd >= 0 && !ftruncate(fd, 4 << 20), "%s", image);
	close(fd);
	sweep("sqe", (struct run){.target = "loop", .option = "file", .value = image}, 40);
	unlink(image);
}

static void test_reg_buf(void)
{
	if (!(features() & UBLK_F_SUPPORT_ZERO_COPY)) {
		tap_skip("this driver cannot register request pages");
		return;
	}
	sweep("sqe",
	      (struct run){
		      .target = "mem", .option = "size", .value = "16M", .way = UBD_ZC_REG_BUF},
	      40);
}

/* ---- A target whose requests the driver finishes, and which counts them --------------------- */

static int counted_fd = -1;
static _Atomic int under_way, fused;

static int counting_open(struct ubd_device *dev, void *self)
{
	(void)self;
	ubd_device_limits(dev)->size = 4 << 20;
	return 0;
}

static void counting_close(struct ubd_device *dev, void *self)
{
	(void)dev;
	(void)self;
	CHECK(!under_way, "%d requests have not ended when the device has", under_way);
}

static int counting_handle(struct ubd_io *io, void *self)
{
	struct ubd_transfer t = {
		.where = UBD_FILE, .fd = counted_fd, .len = io->length, .pos = io->offset};
	int ret;

	(void)self;
	under_way++;
	if (io->op != UBD_READ && io->op != UBD_WRITE)
		return 0;
	ret = ubd_io_finish(io, &t, 1);
	fused += ret == INT_MIN; /* neither a count nor an errno: it goes with the commit */
	return ret;
}

static void counting_finished(struct ubd_io *io, void *self)
{
	(void)io;
	(void)self;
	under_way--;
}

static const struct ubd_target counting = {
	.api = UBD_TARGET_API,
	.name = "counting",
	.open = counting_open,
	.close = counting_close,
	.handle = counting_handle,
	.finished = counting_finished,
};

static bool counting_ready(void)
{
	char image[] = "/tmp/ubd-sweep.XXXXXX";

	if (!(features() & UBD_F_FUSED)) {
		tap_skip("this driver has no fused commits");
		return false;
	}
	counted_fd = mkstemp(image);
	CHECK(counted_fd >= 0 && !ftruncate(counted_fd, 4 << 20) && !unlink(image), "%s", image);
	return true;
}

/* Nothing follows the last of them that could bring the news. */
static void test_finished(void)
{
	struct ubd_device_config config = {.depth = 4, .zero_copy = UBD_ZC_FUSED};
	struct ubd_device *dev;
	char path[32];

	if (!counting_ready())
		return;
	dev = ubd_device_new(&counting, &config);
	REQUIRE(!ubd_device_start(dev), "%s", ubd_device_error(dev));
	snprintf(path, sizeof(path), "%s", ubd_device_path(dev));
	fused = 0;
	use(path);
	for (unsigned i = 0; i < 500 && under_way; i++)
		usleep(10000);
	CHECK(fused >= 12 && !under_way, "%d fused, %d under way", fused, under_way);
	CHECK(!ubd_device_stop(dev) && !ubd_device_wait(dev), "%s", ubd_device_error(dev));
	ubd_device_free(dev);
	close(counted_fd);
}

static void test_fused(void)
{
	if (!counting_ready())
		return;
	sweep("commit", (struct run){.own = &counting, .target = "counting", .way = UBD_ZC_FUSED},
	      40);
	sweep("sqe", (struct run){.own = &counting, .target = "counting", .way = UBD_ZC_FUSED}, 20);
	close(counted_fd);
}

static const struct tap_case cases[] = {
	{"every control command fails", test_ctrl, 180},
	{"every fetch fails", test_fetch, 180},
	{"every commit fails", test_commit, 180},
	{"every operation of user copy fails", test_sqe, 180},
	{"every operation of loop fails", test_loop, 180},
	{"every operation around registered buffers fails", test_reg_buf, 180},
	{"fused requests are known to be over before the next ones", test_finished, 60},
	{"every fused commit fails", test_fused, 180},
};

TAP_MAIN(cases)
