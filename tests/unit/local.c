/* SPDX-License-Identifier: MIT */
/* Local mode: the targets' data against a model, from many threads, and stopping under load. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <random.h>
#include <tap.h>
#include <ubd/ubd.h>

#define SIZE (8u << 20)
#define MAX_IO (256u << 10)

static char image[] = "/tmp/ubd-local.XXXXXX";
static const struct ubd_device_config two_queues = {.queues = 2, .depth = 16, .max_io = MAX_IO};

static struct ubd_device *start(const char *target, const char *option, const char *value,
				const struct ubd_device_config *config)
{
	const char *why;
	struct ubd_device *dev = ubd_device_new(ubd_target_find(target, &why), config);

	if (ubd_device_set_option(dev, option, value) || ubd_local_start(dev)) {
		printf("Bail out! %s: %s\n", target, ubd_device_error(dev));
		exit(3);
	}
	return dev;
}

static void end(struct ubd_device *dev)
{
	CHECK(ubd_device_stop(dev) == 0, "stop");
	CHECK(ubd_device_wait(dev) == 0, "%s", ubd_device_error(dev));
	ubd_device_free(dev);
}

/* One thread's part of the disk, and what it should hold. */
struct part {
	struct ubd_device *dev;
	uint64_t seed;
	uint32_t block;
	uint64_t base, size;
	unsigned char *model;
	unsigned rounds;
	bool keeps; /* false: null */
};

static void write_some(struct part *p, uint64_t at, uint32_t len, unsigned char *mem)
{
	unsigned flags = random_next(&p->seed) % 8 ? 0 : UBD_IO_FUA;
	int ret;

	for (uint32_t i = 0; i < len; i++)
		mem[i] = (unsigned char)random_next(&p->seed);
	ret = ubd_local_io(p->dev, random_next(&p->seed) % 2, UBD_WRITE, flags, p->base + at, mem,
			   len);
	CHECK(ret == (int)len, "write of %u at %llu: %d", len, (unsigned long long)at, ret);
	if (p->keeps)
		memcpy(p->model + at, mem, len);
}

static void read_some(struct part *p, uint64_t at, uint32_t len, unsigned char *mem)
{
	int ret;

	memset(mem, 0xa5, len);
	ret = ubd_local_io(p->dev, random_next(&p->seed) % 2, UBD_READ, 0, p->base + at, mem, len);
	CHECK(ret == (int)len, "read of %u at %llu: %d", len, (unsigned long long)at, ret);
	CHECK(!memcmp(mem, p->model + at, len), "other data at %llu + %u", (unsigned long long)at,
	      len);
}

static void zero_some(struct part *p, uint64_t at, uint32_t len)
{
	enum ubd_op op = random_next(&p->seed) % 2 ? UBD_DISCARD : UBD_WRITE_ZEROES;
	unsigned flags = op == UBD_WRITE_ZEROES && random_next(&p->seed) % 2 ? UBD_IO_NO_UNMAP : 0;
	int ret =
		ubd_local_io(p->dev, random_next(&p->seed) % 2, op, flags, p->base + at, NULL, len);

	CHECK(ret == 0, "op %d of %u at %llu: %d", op, len, (unsigned long long)at, ret);
	/* Both read as zeroes on what these targets stand on, in whole blocks of the file system.
	 */
	if (p->keeps)
		memset(p->model + at, 0, len);
}

static void *use_part(void *arg)
{
	struct part *p = arg;
	uint32_t blocks = (uint32_t)(p->size / p->block), most = MAX_IO / p->block;
	unsigned char *mem;

	if (posix_memalign((void **)&mem, 4096, MAX_IO + 4096))
		return NULL;
	for (unsigned i = 0; i < p->rounds && !tap_failed; i++) {
		uint64_t at = random_next(&p->seed) % blocks;
		uint32_t len = 1 + random_next(&p->seed) % most;
		/* Half of the time from memory that direct I/O could not use. */
		unsigned char *buf =
			mem + (random_next(&p->seed) % 2 ? 0 : 1 + random_next(&p->seed) % 4095);

		len = len > blocks - at ? (uint32_t)(blocks - at) : len;
		switch (random_next(&p->seed) % 8) {
		case 0:
			zero_some(p, at * p->block, len * p->block);
			break;
		case 1:
			CHECK(ubd_local_io(p->dev, 0, UBD_FLUSH, 0, 0, NULL, 0) == 0, "flush");
			break;
		case 2:
		case 3:
		case 4:
			write_some(p, at * p->block, len * p->block, buf);
			break;
		default:
			read_some(p, at * p->block, len * p->block, buf);
		}
	}
	free(mem);
	return NULL;
}

static void use(struct ubd_device *dev, uint32_t block, bool keeps, unsigned rounds)
{
	enum { THREADS = 8 };
	struct part parts[THREADS];
	pthread_t threads[THREADS];

	for (unsigned i = 0; i < THREADS; i++) {
		parts[i] = (struct part){
			.dev = dev,
			.seed = 77 + i,
			.block = block,
			.base = (uint64_t)i * SIZE / THREADS,
			.size = SIZE / THREADS,
			.model = calloc(1, SIZE / THREADS),
			.rounds = rounds,
			.keeps = keeps,
		};
		pthread_create(&threads[i], NULL, use_part, &parts[i]);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		free(parts[i].model);
	}
}

static void test_null(void)
{
	struct ubd_device *dev = start("null", "size", "8M", &two_queues);

	/* Writes fill the library's buffers; reads must still be zeroes. */
	use(dev, 512, false, 150);
	end(dev);
}

static void test_mem(void)
{
	struct ubd_device *dev = start("mem", "size", "8M", &two_queues);

	use(dev, 512, true, 150);
	end(dev);
}

static void make_image(void)
{
	int fd = open(image, O_RDWR | O_CREAT | O_TRUNC, 0600);

	CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0, "%s", image);
	close(fd);
}

static void loop_with(const char *direct, unsigned rounds)
{
	const char *why;
	struct ubd_device *dev;
	int ret;

	make_image();
	dev = ubd_device_new(ubd_target_find("loop", &why), &two_queues);
	CHECK(!ubd_device_set_option(dev, "file", image), "file");
	CHECK(!ubd_device_set_option(dev, "direct", direct), "direct");
	ret = ubd_local_start(dev);
	if (ret == -EINVAL && strstr(ubd_device_error(dev), "O_DIRECT")) {
		tap_skip("%s has no direct I/O", image);
	} else {
		CHECK(ret == 0, "%s", ubd_device_error(dev));
		/* A failed write through the page cache would hide what others lost. */
		CHECK(ubd_device_limits(dev)->volatile_cache, "it keeps no cache?");
		CHECK(ubd_device_limits(dev)->fua == !strcmp(direct, "on"), "FUA");
		/* Whole pages: a file system may need them for direct I/O. */
		use(dev, 4096, true, rounds);
		ubd_device_stop(dev);
		CHECK(ubd_device_wait(dev) == 0, "wait");
	}
	ubd_device_free(dev);
}

static void test_loop_buffered(void)
{
	loop_with("off", 100);
}

static void test_loop_direct(void)
{
	loop_with("on", 100);
}

/* What was acknowledged is in the file, at its offset, and nothing outside the range. */
static void test_loop_range(void)
{
	unsigned char *all = malloc(SIZE), block[4096];
	const char *why;
	struct ubd_device *dev;
	int fd;

	make_image();
	dev = ubd_device_new(ubd_target_find("loop", &why), NULL);
	ubd_device_set_option(dev, NULL, image);
	ubd_device_set_option(dev, "offset", "1M");
	ubd_device_set_option(dev, "size", "64K");
	REQUIRE(ubd_local_start(dev) == 0, "%s", ubd_device_error(dev));
	CHECK(ubd_device_size(dev) == 65536, "size");
	memset(block, 0x5a, sizeof(block));
	CHECK(ubd_local_io(dev, 0, UBD_WRITE, 0, 0, block, 4096) == 4096, "first");
	CHECK(ubd_local_io(dev, 0, UBD_WRITE, UBD_IO_FUA, 61440, block, 4096) == 4096, "last");
	CHECK(ubd_local_io(dev, 0, UBD_WRITE, 0, 65536, block, 4096) == -EINVAL, "past the end");
	CHECK(ubd_local_io(dev, 0, UBD_READ, 0, 61440, block, 8192) == -EINVAL, "across the end");
	CHECK(ubd_local_io(dev, 0, UBD_WRITE, 0, UINT64_MAX, block, 4096) == -EINVAL, "wraps");
	CHECK(ubd_local_io(dev, 1, UBD_READ, 0, 0, block, 4096) == -EINVAL, "no such queue");
	CHECK(ubd_local_io(dev, 0, UBD_READ, 0, 0, NULL, 4096) == -EINVAL, "no memory");
	end(dev);
	fd = open(image, O_RDONLY);
	REQUIRE(read(fd, all, SIZE) == SIZE, "read the image");
	for (unsigned i = 0; i < SIZE; i++) {
		bool ours = (i >= 1 << 20 && i < (1 << 20) + 4096) ||
			    (i >= (1 << 20) + 61440 && i < (1 << 20) + 65536);

		REQUIRE(all[i] == (ours ? 0x5a : 0), "byte %u is %#x", i, all[i]);
	}
	close(fd);
	free(all);
}

static void test_loop_discard(void)
{
	struct ubd_device *dev;
	unsigned char *mem = malloc(MAX_IO);
	struct stat before, after;

	make_image();
	dev = start("loop", "file", image, &two_queues);
	memset(mem, 0x77, MAX_IO);
	for (unsigned at = 0; at < SIZE; at += MAX_IO)
		CHECK(ubd_local_io(dev, 0, UBD_WRITE, 0, at, mem, MAX_IO) == MAX_IO, "write");
	CHECK(ubd_local_io(dev, 0, UBD_FLUSH, 0, 0, NULL, 0) == 0, "flush");
	stat(image, &before);
	CHECK(ubd_local_io(dev, 0, UBD_DISCARD, 0, 1 << 20, NULL, 4 << 20) == 0, "discard");
	stat(image, &after);
	CHECK(before.st_blocks - after.st_blocks >= (4 << 20) / 512 - 64,
	      "%ld blocks before, %ld after", (long)before.st_blocks, (long)after.st_blocks);
	CHECK(ubd_local_io(dev, 0, UBD_READ, 0, 1 << 20, mem, 4096) == 4096 && !mem[0], "zeroes");
	end(dev);
	free(mem);
}

static void test_read_only(void)
{
	struct ubd_device_config config = {.read_only = true};
	unsigned char mem[4096] = {1};
	struct ubd_device *dev;

	make_image();
	dev = start("loop", "file", image, &config);
	CHECK(ubd_local_io(dev, 0, UBD_READ, 0, 0, mem, 4096) == 4096 && !mem[0], "read");
	CHECK(ubd_local_io(dev, 0, UBD_WRITE, 0, 0, mem, 4096) < 0, "a write went through");
	CHECK(ubd_local_io(dev, 0, UBD_WRITE_ZEROES, 0, 0, NULL, 4096) < 0, "zeroing went through");
	CHECK(ubd_local_io(dev, 0, UBD_DISCARD, 0, 0, NULL, 4096) < 0, "a discard went through");
	end(dev);
}

struct hammer {
	struct ubd_device *dev;
	bool *stopping;
	unsigned queue;
	unsigned long done;
	int last;
};

static void *hammer(void *arg)
{
	struct hammer *h = arg;
	unsigned char mem[8192];

	memset(mem, 1, sizeof(mem));
	do {
		/* Each queue its half: two at the same place at once would be a race of ours. */
		h->last = ubd_local_io(h->dev, h->queue, UBD_WRITE, 0,
				       h->queue * SIZE / 2 + h->done % 100 * 8192, mem, 8192);
		h->done++;
	} while (h->last == 8192);
	return NULL;
}

/* More threads than tags: every call returns, with its result or with -ENODEV. */
static void test_stop_under_load(void)
{
	for (int round = 0; round < 10; round++) {
		struct ubd_device_config config = {.queues = 2, .depth = 4, .max_io = 65536};
		struct ubd_device *dev;
		struct hammer h[24];
		pthread_t threads[24];

		dev = round % 2 ? start("mem", "size", "8M", &config)
				: start("loop", "file", image, &config);
		for (unsigned i = 0; i < 24; i++) {
			h[i] = (struct hammer){.dev = dev, .queue = i % 2};
			pthread_create(&threads[i], NULL, hammer, &h[i]);
		}
		usleep(20000);
		CHECK(ubd_device_stop(dev) == 0, "stop");
		for (unsigned i = 0; i < 24; i++) {
			pthread_join(threads[i], NULL);
			CHECK(h[i].last == -ENODEV, "thread %u ended with %d", i, h[i].last);
		}
		CHECK(ubd_device_wait(dev) == 0, "wait");
		ubd_device_free(dev);
	}
}

static void test_close_without_stop(void)
{
	struct ubd_device *dev = start("mem", "size", "1M", &two_queues);

	ubd_device_free(dev);
	dev = ubd_device_new(ubd_targets()[0], NULL);
	ubd_device_free(dev);
	ubd_device_free(NULL);
}

static void test_stats(void)
{
	struct ubd_device *dev = start("mem", "size", "1M", &two_queues);
	static unsigned char mem[65536];
	struct ubd_stats s;

	for (unsigned i = 0; i < 10; i++)
		ubd_local_io(dev, i % 2, UBD_WRITE, 0, 0, mem, 4096);
	for (unsigned i = 0; i < 3; i++)
		ubd_local_io(dev, 0, UBD_READ, 0, 0, mem, 65536);
	ubd_local_io(dev, 0, UBD_FLUSH, 0, 0, NULL, 0);
	ubd_local_io(dev, 0, UBD_DISCARD, 0, 0, NULL, 4096);
	ubd_local_io(dev, 0, UBD_ZONE_OPEN, 0, 0, NULL, 4096);
	ubd_device_stop(dev);
	ubd_device_wait(dev);
	ubd_device_stats(dev, &s);
	CHECK(s.requests[0] == 3 && s.requests[1] == 10 && s.requests[2] == 1 && s.requests[3] == 1,
	      "%lu %lu %lu %lu", (long)s.requests[0], (long)s.requests[1], (long)s.requests[2],
	      (long)s.requests[3]);
	CHECK(s.bytes[0] == 3 * 65536 && s.bytes[1] == 10 * 4096, "bytes");
	CHECK(s.errors == 1, "%lu errors", (long)s.errors);
	CHECK(s.cqes && s.sqes >= s.cqes && s.enters, "io_uring counts");
	ubd_device_free(dev);
}

static unsigned calls;

/* What is finished first fails; then the data is put there, or not. */
static int second_way(struct ubd_io *io, void *self)
{
	struct ubd_transfer t = {.where = UBD_FILE, .fd = -1, .len = io->length};
	unsigned char data[4096];

	(void)self;
	memset(data, 0x3c, sizeof(data));
	calls++;
	if (!io->error) {
		CHECK(!io->note, "the last request's note");
		io->note = 7;
		return ubd_io_finish(io, &t, 1);
	}
	CHECK(io->error == -EBADF && io->note == 7, "error %d, note %u", io->error, io->note);
	return io->offset ? -EIO : ubd_io_put(io, 0, data, sizeof(data));
}

static int one_mib(struct ubd_device *dev, void *self)
{
	(void)self;
	ubd_device_limits(dev)->size = 1 << 20;
	return 0;
}

static void test_retries(void)
{
	struct ubd_target target = {
		.api = UBD_TARGET_API,
		.flags = UBD_TARGET_RETRIES,
		.name = "second-way",
		.open = one_mib,
		.handle = second_way,
	};
	unsigned char mem[4096] = {0};

	for (unsigned n = 0; n < 2; n++) {
		struct ubd_device *dev = ubd_device_new(&target, NULL);

		REQUIRE(ubd_local_start(dev) == 0, "%s", ubd_device_error(dev));
		for (unsigned round = 0; round < 2; round++) {
			int ok = ubd_local_io(dev, 0, UBD_READ, 0, 0, mem, sizeof(mem));
			int bad = ubd_local_io(dev, 0, UBD_READ, 0, 4096, mem, sizeof(mem));

			CHECK(ok == (n ? -EBADF : (int)sizeof(mem)), "first: %d", ok);
			CHECK(bad == (n ? -EBADF : -EIO), "second: %d", bad);
			CHECK(n || (mem[0] == 0x3c && mem[4095] == 0x3c), "data");
		}
		CHECK(calls == (n ? 4 : 8), "%u calls", calls);
		calls = 0;
		end(dev);
		/* The same without. */
		target.flags = 0;
	}
}

static unsigned handled, finished;

static int fails_now_and_then(struct ubd_io *io, void *self)
{
	struct ubd_transfer t = {.where = UBD_FILE, .fd = -1, .len = io->length};

	(void)self;
	handled++;
	CHECK(finished == io->offset / 4096, "%u are over before this one", finished);
	io->note = 5;
	if (io->offset >= 8192)
		return io->error ? (int)io->length : ubd_io_finish(io, &t, 1);
	return io->offset ? -EIO : (int)io->length;
}

static void count_finished(struct ubd_io *io, void *self)
{
	(void)self;
	CHECK(io->offset / 4096 == finished && io->note == 5, "another request's end");
	ubd_yield(io->queue);
	finished++;
}

/* Whatever becomes of it, and once though handle() is called twice. */
static void test_finished(void)
{
	const struct ubd_target target = {
		.api = UBD_TARGET_API,
		.flags = UBD_TARGET_RETRIES,
		.name = "finished",
		.open = one_mib,
		.handle = fails_now_and_then,
		.finished = count_finished,
	};
	struct ubd_device *dev = ubd_device_new(&target, NULL);
	unsigned char mem[4096];

	REQUIRE(ubd_local_start(dev) == 0, "%s", ubd_device_error(dev));
	for (unsigned i = 0; i < 3; i++)
		ubd_local_io(dev, 0, UBD_READ, 0, i * 4096, mem, sizeof(mem));
	CHECK(handled == 4 && finished == 3, "%u handled, %u finished", handled, finished);
	end(dev);
}

static void test_cleanup(void)
{
	CHECK(unlink(image) == 0, "unlink");
}

static void test_setup(void)
{
	int fd = mkstemp(image);

	CHECK(fd >= 0, "mkstemp");
	close(fd);
}

static const struct tap_case cases[] = {
	{"(an image)", test_setup},
	{"null reads zeroes whatever was written", test_null, 120},
	{"mem keeps what is written, 8 threads on 2 queues", test_mem, 120},
	{"loop keeps what is written, buffered", test_loop_buffered, 120},
	{"loop keeps what is written, direct", test_loop_direct, 120},
	{"loop stays in its range of the file", test_loop_range},
	{"loop gives discarded space back", test_loop_discard},
	{"a read-only loop refuses every change", test_read_only},
	{"stopping under load: every call returns", test_stop_under_load, 120},
	{"closing without stopping", test_close_without_stop},
	{"statistics count", test_stats},
	{"a target may have another way when a finish fails", test_retries},
	{"a target hears of each request's end", test_finished},
	{"(the image goes)", test_cleanup},
};

TAP_MAIN(cases)
