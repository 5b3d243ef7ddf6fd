/* SPDX-License-Identifier: MIT */
/* Devices inside a program: with its own poll loop, two in one process, started again and again. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <tap.h>
#include <ubd/ubd.h>

static struct ubd_device *make(const char *target, const char *size,
			       const struct ubd_device_config *config)
{
	const char *why;
	struct ubd_device *dev = ubd_device_new(ubd_target_find(target, &why), config);

	CHECK(!ubd_device_set_option(dev, "size", size), "%s", ubd_device_error(dev));
	return dev;
}

/* Writes a pattern through the disk and reads it back, past the page cache. */
static int write_read(const char *path, unsigned char value)
{
	_Alignas(4096) unsigned char mem[65536];
	int fd = open(path, O_RDWR | O_DIRECT), ret = 0;

	if (fd < 0)
		return -errno;
	for (off_t at = 0; at < 1 << 20 && !ret; at += sizeof(mem)) {
		memset(mem, value, sizeof(mem));
		if (pwrite(fd, mem, sizeof(mem), at) != sizeof(mem))
			ret = -errno;
		memset(mem, 0, sizeof(mem));
		if (!ret && pread(fd, mem, sizeof(mem), at) != sizeof(mem))
			ret = -errno;
		for (size_t i = 0; i < sizeof(mem) && !ret; i++)
			ret = mem[i] == value ? 0 : -EILSEQ;
	}
	if (fsync(fd) && !ret)
		ret = -errno;
	close(fd);
	return ret;
}

struct client {
	const char *path;
	unsigned char value;
	int ret;
	atomic_bool done;
};

static void *run_client(void *arg)
{
	struct client *c = arg;

	c->ret = write_read(c->path, c->value);
	atomic_store(&c->done, true);
	return NULL;
}

/* The caller's loop: all queues of n devices until the client is done. */
static void serve(struct ubd_device **devs, unsigned n, unsigned queues, struct client *c)
{
	while (!atomic_load(&c->done)) {
		struct pollfd fds[16];
		unsigned count = 0;

		for (unsigned d = 0; d < n; d++)
			for (unsigned q = 0; q < queues; q++)
				fds[count++] = (struct pollfd){
					.fd = ubd_queue_fd(ubd_device_queue(devs[d], q)),
					.events = POLLIN};
		poll(fds, count, 100);
		count = 0;
		for (unsigned d = 0; d < n; d++)
			for (unsigned q = 0; q < queues; q++)
				if (fds[count++].revents)
					CHECK(ubd_queue_process(ubd_device_queue(devs[d], q)) == 1,
					      "queue %u of device %u ended", q, d);
	}
}

static void test_loop(void)
{
	struct ubd_device_config config = {.queues = 2, .depth = 8, .embedded = true};
	struct ubd_device *dev = make("mem", "2M", &config);
	struct client c = {.value = 0x3c};
	pthread_t thread;
	struct stat st;

	REQUIRE(ubd_device_start(dev) == 0, "%s", ubd_device_error(dev));
	CHECK(!ubd_device_queue(dev, 2), "a third queue");
	c.path = ubd_device_path(dev);
	pthread_create(&thread, NULL, run_client, &c);
	serve(&dev, 1, 2, &c);
	pthread_join(thread, NULL);
	CHECK(c.ret == 0, "the client: %d", c.ret);
	CHECK(ubd_device_stop(dev) == 0, "stop");
	CHECK(ubd_device_wait(dev) == 0, "%s", ubd_device_error(dev));
	c.path = strdup(c.path);
	ubd_device_free(dev);
	CHECK(stat(c.path, &st) && errno == ENOENT, "%s is left", c.path);
	free((char *)c.path);
}

static void test_two_in_a_loop(void)
{
	struct ubd_device_config config = {.depth = 8, .embedded = true};
	struct ubd_device *devs[2];
	struct client c[2] = {{.value = 1}, {.value = 2}};
	pthread_t threads[2];

	for (int i = 0; i < 2; i++) {
		devs[i] = make("mem", "2M", &config);
		/* The first has to be served while the second starts: nobody uses it yet. */
		REQUIRE(ubd_device_start(devs[i]) == 0, "%s", ubd_device_error(devs[i]));
		c[i].path = ubd_device_path(devs[i]);
	}
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, run_client, &c[i]);
	serve(devs, 2, 1, &c[0]);
	serve(devs, 2, 1, &c[1]);
	for (int i = 0; i < 2; i++) {
		pthread_join(threads[i], NULL);
		CHECK(c[i].ret == 0, "client %d: %d", i, c[i].ret);
		ubd_device_free(devs[i]);
	}
}

static void test_two_with_threads(void)
{
	struct ubd_device_config config = {.queues = 2, .depth = 16};
	struct ubd_device *devs[2] = {make("mem", "2M", &config), make("mem", "4M", &config)};
	struct client c[2] = {{.value = 1}, {.value = 2}};
	pthread_t threads[2];

	for (int i = 0; i < 2; i++) {
		REQUIRE(ubd_device_start(devs[i]) == 0, "%s", ubd_device_error(devs[i]));
		c[i].path = ubd_device_path(devs[i]);
	}
	CHECK(ubd_device_id(devs[0]) != ubd_device_id(devs[1]), "the same number");
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, run_client, &c[i]);
	for (int i = 0; i < 2; i++) {
		pthread_join(threads[i], NULL);
		CHECK(c[i].ret == 0, "client %d: %d", i, c[i].ret);
	}
	/* One goes, the other stays. */
	ubd_device_free(devs[0]);
	CHECK(write_read(ubd_device_path(devs[1]), 9) == 0, "the other device");
	ubd_device_free(devs[1]);
}

static void test_again(void)
{
	struct ubd_device_config config = {.depth = 4};

	for (int i = 0; i < 15; i++) {
		struct ubd_device *dev = make("mem", "2M", &config);

		REQUIRE(ubd_device_start(dev) == 0, "round %d: %s", i, ubd_device_error(dev));
		if (i % 3 == 0)
			CHECK(write_read(ubd_device_path(dev), (unsigned char)i) == 0, "round %d",
			      i);
		if (i % 2)
			CHECK(ubd_device_stop(dev) == 0, "stop");
		ubd_device_free(dev);
	}
}

static void test_stats(void)
{
	struct ubd_device_config config = {.depth = 4};
	struct ubd_device *dev = make("mem", "2M", &config);
	struct ubd_stats s;

	REQUIRE(ubd_device_start(dev) == 0, "%s", ubd_device_error(dev));
	CHECK(write_read(ubd_device_path(dev), 7) == 0, "data");
	ubd_device_stats(dev, &s);
	CHECK(s.requests[1] == 16 && s.bytes[1] == 1 << 20, "%llu writes",
	      (unsigned long long)s.requests[1]);
	CHECK(s.requests[0] >= 16 && s.bytes[0] >= 1 << 20, "%llu reads",
	      (unsigned long long)s.requests[0]);
	CHECK(!s.errors && s.enters && s.sqes && s.cqes, "counts");
	ubd_device_free(dev);
}

static const struct tap_case cases[] = {
	{"a device served by the caller's own poll loop", test_loop},
	{"two devices in one poll loop", test_two_in_a_loop},
	{"two devices with threads in one process", test_two_with_threads},
	{"started and ended 15 times", test_again},
	{"statistics of a device", test_stats},
};

TAP_MAIN(cases)
