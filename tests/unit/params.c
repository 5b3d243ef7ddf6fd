/* SPDX-License-Identifier: MIT */
/* From a target's limits and the user's numbers to the driver's parameters. */
#include <internal.h>

#include <errno.h>

#include <tap.h>

static struct ubd_limits limits; /* what the next target has */

static int set_limits(struct ubd_device *dev, void *self)
{
	(void)self;
	*ubd_device_limits(dev) = limits;
	return 0;
}

static int handle(struct ubd_io *io, void *self)
{
	(void)self;
	return (int)io->length;
}

static const struct ubd_target target = {
	.api = UBD_TARGET_API, .name = "limits", .open = set_limits, .handle = handle};

/* Start locally, which checks as a real start does; then what the driver would be told. */
static int try(struct ubd_limits l, struct ubd_device_config c, struct ublk_params *p,
	       char *sentence)
{
	struct ubd_device *dev = ubd_device_new(&target, &c);
	int ret;

	limits = l;
	ret = ubd_local_start(dev);
	snprintf(sentence, 512, "%s", ubd_device_error(dev));
	if (!ret) {
		params_fill(dev, p);
		ubd_device_stop(dev);
	}
	ubd_device_free(dev);
	return ret;
}

static void test_defaults(void)
{
	struct ublk_params p;
	char sentence[512];

	REQUIRE(try((struct ubd_limits){.size = 1 << 20}, (struct ubd_device_config){0}, &p,
		    sentence) == 0,
		"%s", sentence);
	CHECK(p.types == UBLK_PARAM_TYPE_BASIC, "types %#x", p.types);
	CHECK(p.basic.logical_bs_shift == 9 && p.basic.physical_bs_shift == 9, "blocks");
	CHECK(p.basic.io_min_shift == 9 && p.basic.io_opt_shift == 0, "hints");
	CHECK(p.basic.dev_sectors == 2048 && p.basic.max_sectors == 1024, "sizes");
	CHECK(p.basic.attrs == 0, "attrs %#x", p.basic.attrs);
}

static void test_all(void)
{
	struct ublk_params p;
	char sentence[512];
	struct ubd_limits l = {
		.size = 1ULL << 44,
		.logical_block = 512,
		.physical_block = 4096,
		.io_min = 8192,
		.io_opt = 65536,
		.max_io = 131072,
		.chunk = 65536,
		.max_discard = UBD_NO_LIMIT,
		.max_write_zeroes = 1 << 20,
		.discard_granularity = 4096,
		.rotational = true,
		.volatile_cache = true,
		.fua = true,
	};

	REQUIRE(try(l, (struct ubd_device_config){.block_size = 4096}, &p, sentence) == 0, "%s",
		sentence);
	CHECK(p.basic.logical_bs_shift == 12 && p.basic.physical_bs_shift == 12, "blocks");
	CHECK(p.basic.io_min_shift == 13 && p.basic.io_opt_shift == 16, "hints");
	CHECK(p.basic.dev_sectors == 1ULL << 35 && p.basic.max_sectors == 256, "sizes");
	CHECK(p.basic.chunk_sectors == 128, "chunk");
	CHECK(p.basic.attrs == (UBLK_ATTR_ROTATIONAL | UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA),
	      "attrs %#x", p.basic.attrs);
	CHECK(p.types == (UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD), "types %#x", p.types);
	/* The byte count of one request has 32 bits in older kernels. */
	CHECK((uint64_t)p.discard.max_discard_sectors << 9 <= UINT32_MAX, "discard");
	CHECK(p.discard.max_discard_sectors % 8 == 0, "discard in whole blocks");
	CHECK(p.discard.max_write_zeroes_sectors == 2048, "write zeroes");
	CHECK(p.discard.discard_granularity == 4096, "granularity");
}

static void test_read_only(void)
{
	struct ublk_params p;
	char sentence[512];
	struct ubd_limits l = {.size = 1 << 20, .max_discard = UBD_NO_LIMIT};

	REQUIRE(try(l, (struct ubd_device_config){.read_only = true}, &p, sentence) == 0, "%s",
		sentence);
	CHECK(p.basic.attrs == UBLK_ATTR_READ_ONLY, "attrs %#x", p.basic.attrs);
	CHECK(!(p.types & UBLK_PARAM_TYPE_DISCARD), "a read-only disk discards");
}

struct refusal {
	const char *what;
	struct ubd_limits l;
	struct ubd_device_config c;
	const char *says;
};

#define SIZE .size = 1 << 20

static const struct refusal refusals[] = {
	{"no size", {0}, {0}, "size 0"},
	{"odd size", {.size = 1000}, {0}, "not a multiple of the block size 512"},
	{"size and block", {.size = 6144}, {.block_size = 4096}, "block size 4096"},
	{"block of 513", {SIZE, .logical_block = 513}, {0}, "not a power of two"},
	{"block of 256", {SIZE, .logical_block = 256}, {0}, "not a power of two"},
	{"block of 128K", {SIZE, .logical_block = 131072}, {0}, "not a power of two"},
	{"odd hints", {SIZE, .io_opt = 3000}, {0}, "not powers of two"},
	{"block below the backing's",
	 {SIZE, .logical_block = 4096},
	 {.block_size = 512},
	 "at least 4096"},
	{"user's block of 1000", {SIZE}, {.block_size = 1000}, "power of two from 512"},
	{"user's block of 256", {SIZE}, {.block_size = 256}, "power of two from 512"},
	{"zones of 3 MiB", {.size = 12 << 20, .zone_size = 3 << 20}, {0}, "powers of two"},
	{"zones of 256 bytes", {SIZE, .zone_size = 256}, {0}, "powers of two"},
	{"zones of 2 TiB", {.size = 1ULL << 42, .zone_size = 1ULL << 41}, {0}, "powers of two"},
	{"half a zone", {.size = 3 << 19, .zone_size = 1 << 20}, {0}, "divide its size"},
	{"more open zones than zones",
	 {SIZE, .zone_size = 65536, .max_open_zones = 17},
	 {0},
	 "open zones"},
	{"more open zones than active ones",
	 {SIZE, .zone_size = 65536, .max_open_zones = 3, .max_active_zones = 2},
	 {0},
	 "open zones"},
	{"fua alone", {SIZE, .fua = true}, {0}, "fua"},
	{"odd chunks", {SIZE, .chunk = 6144}, {.block_size = 4096}, "whole blocks"},
	{"too many queues", {SIZE}, {.queues = 4097}, "1 to 4096"},
	{"too deep", {SIZE}, {.depth = 4097}, "1 to 4096"},
	{"requests of 0.5 KiB", {SIZE}, {.max_io = 512}, "multiple of 4096"},
	{"odd requests", {SIZE}, {.max_io = 5000}, "multiple of 4096"},
	{"requests of 64 MiB", {SIZE}, {.max_io = 64 << 20}, "multiple of 4096"},
};

static void test_refusals(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(refusals); i++) {
		const struct refusal *r = &refusals[i];
		struct ublk_params p;
		char sentence[512];
		int ret = try(r->l, r->c, &p, sentence);

		CHECK(ret == -EINVAL, "%s: %d", r->what, ret);
		CHECK(strstr(sentence, r->says), "%s: \"%s\"", r->what, sentence);
	}
}

static void test_caps(void)
{
	/* Nothing that a target says about itself may exceed what fits the ABI, and a result. */
	for (unsigned shift = 9; shift <= 16; shift++) {
		struct ubd_limits l = {.size = 1ULL << 40,
				       .logical_block = 1u << shift,
				       .max_discard = UBD_NO_LIMIT,
				       .max_write_zeroes = UBD_NO_LIMIT};
		struct ublk_params p;
		char sentence[512];
		uint64_t bytes;

		REQUIRE(try(l, (struct ubd_device_config){0}, &p, sentence) == 0, "%s", sentence);
		bytes = (uint64_t)p.discard.max_write_zeroes_sectors << 9;
		CHECK(bytes <= INT32_MAX && bytes % (1u << shift) == 0, "block 2^%u: %llu", shift,
		      (unsigned long long)bytes);
		CHECK(p.discard.discard_granularity == 1u << shift, "granularity");
	}
}

static void test_zones(void)
{
	struct ublk_params p;
	char sentence[512];
	struct ubd_limits l = {
		.size = 1ULL << 40,
		.logical_block = 4096,
		.zone_size = 1ULL << 36,
		.max_open_zones = 3,
		.max_active_zones = 5,
		.max_zone_append = 70000,
	};

	REQUIRE(try(l, (struct ubd_device_config){0}, &p, sentence) == 0, "%s", sentence);
	CHECK(p.types == (UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_ZONED), "types %#x", p.types);
	CHECK(p.basic.chunk_sectors == 1u << 27, "zone size");
	CHECK(p.zoned.max_open_zones == 3 && p.zoned.max_active_zones == 5, "open, active");
	CHECK(p.zoned.max_zone_append_sectors == 136, "append in whole blocks");
	l.max_zone_append = 0;
	REQUIRE(try(l, (struct ubd_device_config){0}, &p, sentence) == 0, "%s", sentence);
	CHECK(p.zoned.max_zone_append_sectors == 1024, "append as large as a write");
}

static const struct tap_case cases[] = {
	{"defaults", test_defaults},
	{"every limit arrives", test_all},
	{"read-only disks do not discard", test_read_only},
	{"zones arrive", test_zones},
	{"impossible numbers get their sentence", test_refusals},
	{"discard and write-zeroes fit the ABI", test_caps},
};

TAP_MAIN(cases)
