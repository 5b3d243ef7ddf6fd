// SPDX-License-Identifier: MIT
/*
 * SET_PARAMS: how each parameter is validated, and what START_DEV makes of it in /sys/block.
 */
#include "client.h"
#include "ctrl.h"
#include "dev.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* LBMD_PI_* of <linux/fs.h>, which is newer than some build machines'. */
#define PI_CAP_INTEGRITY (1U << 0)
#define PI_CAP_REFTAG (1U << 1)
#define PI_CSUM_NONE 0
#define PI_CSUM_CRC16 2

#define BAD_ADDR 0x10

/* One parameter changed, the others as dev_new() has them. */
#define TRY(aspect, expected, dev, ...)                            \
	do {                                                       \
		struct ublk_params saved = (dev)->params;          \
		struct ublk_params *p = &(dev)->params;            \
		__VA_ARGS__;                                       \
		RESULT(aspect, dev_try_set_params(dev), expected); \
		(dev)->params = saved;                             \
	} while (0)

static struct dev *added(uint64_t flags)
{
	struct dev *dev = dev_new(flags, 1, 8);

	conform_need_features(flags);
	RESULT_REQUIRED("add", dev_try_add(dev), 0);
	return dev;
}

CASE(params_length_and_address)
{
	struct dev *dev = added(0);
	uint32_t big[256];

	TRY("params-ok", 0, dev, (void)p);
	RESULT("params-header-only",
	       ctrl(UBLK_U_CMD_SET_PARAMS, dev->id, .buf = &dev->params, .len = 8), -EINVAL);
	RESULT("params-null", ctrl(UBLK_U_CMD_SET_PARAMS, dev->id, .len = sizeof(dev->params)),
	       -EINVAL);
	RESULT("params-bad-address",
	       ctrl(UBLK_U_CMD_SET_PARAMS, dev->id, .addr = BAD_ADDR, .len = sizeof(dev->params)),
	       -EFAULT);
	TRY("params-length-0", -EINVAL, dev, p->len = 0);
	TRY("params-longer-than-the-buffer", -EINVAL, dev, p->len = sizeof(*p) + 1);
	TRY("params-no-types", -EINVAL, dev, p->types = 0);
	memset(big, 0, sizeof(big));
	memcpy(big, &dev->params, sizeof(dev->params));
	big[0] = sizeof(big);
	RESULT("params-from-the-future",
	       ctrl(UBLK_U_CMD_SET_PARAMS, dev->id, .buf = big, .len = sizeof(big)), 0);
	dev_del(dev);
}

CASE(params_without_basic)
{
	struct dev *dev = added(0);

	TRY("params-discard-only", -EINVAL, dev, p->types = UBLK_PARAM_TYPE_DISCARD;
	    p->discard.discard_granularity = 4096);
	TRY("params-unknown-type-only", -EINVAL, dev, p->types = 1U << 30);
	TRY("params-unknown-type-too", 0, dev, p->types |= 1U << 30);
	dev_del(dev);
}

/* Refused parameters must not stay behind, nor START_DEV use them. */
CASE(params_refused_are_forgotten)
{
	struct dev *dev = added(0);
	struct ublk_params back = {.len = sizeof(back)};

	TRY("params-bad-block-size", -EINVAL, dev, p->basic.logical_bs_shift = 8);
	RESULT("get-params",
	       ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &back, .len = sizeof(back)), 0);
	CHECK(!(back.types & UBLK_PARAM_TYPE_BASIC), "refused parameters are in force");
	dev_del(dev);
}

CASE(params_basic_block_sizes)
{
	struct dev *dev = added(0);

	TRY("params-logical-256", -EINVAL, dev, p->basic.logical_bs_shift = 8);
	TRY("params-logical-8192", -EINVAL, dev, p->basic.logical_bs_shift = 13;
	    p->basic.physical_bs_shift = 13);
	TRY("params-logical-0", -EINVAL, dev, p->basic.logical_bs_shift = 0);
	TRY("params-logical-255", -EINVAL, dev, p->basic.logical_bs_shift = 255;
	    p->basic.physical_bs_shift = 255);
	TRY("params-physical-below-logical", -EINVAL, dev, p->basic.logical_bs_shift = 12;
	    p->basic.physical_bs_shift = 9);
	TRY("params-physical-too-large", -EINVAL, dev, p->basic.physical_bs_shift = 29);
	TRY("params-io-min-too-large", -EINVAL, dev, p->basic.io_min_shift = 29);
	TRY("params-io-opt-too-large", -EINVAL, dev, p->basic.io_opt_shift = 29);
	TRY("params-io-opt-255", -EINVAL, dev, p->basic.io_opt_shift = 255);
	TRY("params-logical-4096", 0, dev, p->basic.logical_bs_shift = 12);
	TRY("params-logical-1024", 0, dev, p->basic.logical_bs_shift = 10);
	dev_del(dev);
}

CASE(params_basic_max_sectors_over_the_buffer)
{
	struct dev *dev = added(0);

	TRY("params-max-sectors", 0, dev, p->basic.max_sectors = 256);
	TRY("params-max-sectors-too-large", -EINVAL, dev, p->basic.max_sectors = 257);
	TRY("params-max-sectors-huge", -EINVAL, dev, p->basic.max_sectors = UINT32_MAX);
	dev_del(dev);
}

CASE(params_basic_size_below_zero)
{
	struct dev *dev = added(0);

	TRY("params-size-negative", -EINVAL, dev, p->basic.dev_sectors = UINT64_MAX);
	TRY("params-size-over-loff", -EINVAL, dev, p->basic.dev_sectors = 1ULL << 54);
	TRY("params-size-largest", 0, dev, p->basic.dev_sectors = (1ULL << 54) - 1);
	dev_del(dev);
}

CASE(bug_max_sectors_below_a_page_accepted)
{
	struct dev *dev = added(0);

	TRY("params-max-sectors-0", -EINVAL, dev, p->basic.max_sectors = 0);
	TRY("params-max-sectors-7", -EINVAL, dev, p->basic.max_sectors = 7);
	TRY("params-max-sectors-8", 0, dev, p->basic.max_sectors = 8);
	dev_del(dev);
}

CASE(params_discard)
{
	struct dev *dev = added(0);

	dev->params.types |= UBLK_PARAM_TYPE_DISCARD;
	dev->params.discard = (struct ublk_param_discard){
		.discard_granularity = 4096,
		.max_discard_sectors = 1 << 20,
		.max_discard_segments = 1,
	};
	TRY("params-discard", 0, dev, (void)p);
	TRY("params-discard-no-granularity", -EINVAL, dev, p->discard.discard_granularity = 0);
	TRY("params-discard-0-segments", -EINVAL, dev, p->discard.max_discard_segments = 0);
	TRY("params-discard-2-segments", -EINVAL, dev, p->discard.max_discard_segments = 2);
	TRY("params-discard-off", 0, dev, p->discard.max_discard_sectors = 0;
	    p->discard.max_discard_segments = 0);
	dev_del(dev);
}

CASE(params_devt_is_read_only)
{
	struct dev *dev = added(0);

	TRY("params-devt", -EINVAL, dev, p->types |= UBLK_PARAM_TYPE_DEVT);
	dev_del(dev);
}

CASE(params_zoned)
{
	struct dev *dev = added(UBLK_F_ZONED | UBLK_F_USER_COPY);

	TRY("params-zoned-missing", -EINVAL, dev, p->basic.chunk_sectors = 2048);
	dev->params.types |= UBLK_PARAM_TYPE_ZONED;
	dev->params.basic.chunk_sectors = 2048;
	dev->params.zoned.max_zone_append_sectors = 256;
	TRY("params-zoned", 0, dev, (void)p);
	TRY("params-zoned-no-append", -EINVAL, dev, p->zoned.max_zone_append_sectors = 0);
	TRY("params-zoned-odd-zone-size", -EINVAL, dev, p->basic.chunk_sectors = 2049);
	TRY("params-zoned-zone-size-0", -EINVAL, dev, p->basic.chunk_sectors = 0);
	TRY("params-zoned-many-open", -EINVAL, dev, p->zoned.max_open_zones = 17);
	TRY("params-zoned-many-active", -EINVAL, dev, p->zoned.max_active_zones = 17);
	TRY("params-zoned-all-open", 0, dev, p->zoned.max_open_zones = 16;
	    p->zoned.max_active_zones = 16);
	dev_del(dev);
}

CASE(params_zoned_without_the_flag)
{
	struct dev *dev = added(0);

	conform_need_features(UBLK_F_ZONED);
	TRY("params-zoned-not-granted", -EINVAL, dev, p->types |= UBLK_PARAM_TYPE_ZONED;
	    p->basic.chunk_sectors = 2048; p->zoned.max_zone_append_sectors = 256);
	dev_del(dev);
}

/* DMA_ALIGN and SEGMENT came after GET_FEATURES, with no bit of their own: 6.15 knows them. */
static void need_late_params(struct dev *dev)
{
	struct ublk_params back = {.len = sizeof(back)};
	struct ublk_params saved = dev->params;

	dev->params.types |= UBLK_PARAM_TYPE_DMA_ALIGN;
	dev->params.dma.alignment = 511;
	dev_try_set_params(dev);
	dev->params = saved;
	ctrl(UBLK_U_CMD_GET_PARAMS, dev->id, .buf = &back, .len = sizeof(back));
	if (!(back.types & UBLK_PARAM_TYPE_DMA_ALIGN)) {
		dev_del(dev);
		conform_skip("not offered by this driver: parameter types after ZONED");
	}
}

/* 6.1's block layer is at a BUG() when a single block has to be split. */
CASE(bug_limits_that_cut_a_block_up_accepted)
{
	struct dev *dev = added(0);

	need_late_params(dev);
	dev->params.basic.logical_bs_shift = 12;
	dev->params.basic.physical_bs_shift = 12;
	TRY("params-chunk-cuts-blocks", -EINVAL, dev, p->basic.chunk_sectors = 12);
	TRY("params-chunk-below-a-block", -EINVAL, dev, p->basic.chunk_sectors = 1);
	TRY("params-chunk-of-blocks", 0, dev, p->basic.chunk_sectors = 24);
	TRY("params-boundary-over-a-page", -EINVAL, dev, p->basic.virt_boundary_mask = 8191);
	TRY("params-boundary-of-a-page", 0, dev, p->basic.virt_boundary_mask = 4095);
	dev->params.types |= UBLK_PARAM_TYPE_SEGMENT;
	dev->params.seg = (struct ublk_param_segment){
		.seg_boundary_mask = 4095, .max_segment_size = 4096, .max_segments = 1};
	TRY("params-block-over-segments", -EINVAL, dev, (void)p);
	TRY("params-block-in-segments", 0, dev, p->seg.max_segments = 2);
	TRY("params-block-in-a-segment", 0, dev, p->types |= UBLK_PARAM_TYPE_DMA_ALIGN;
	    p->dma.alignment = 4095);
	dev_del(dev);
}

CASE(params_dma_align)
{
	struct dev *dev = added(0);

	need_late_params(dev);
	dev->params.types |= UBLK_PARAM_TYPE_DMA_ALIGN;
	TRY("params-dma-0", 0, dev, p->dma.alignment = 0);
	TRY("params-dma-511", 0, dev, p->dma.alignment = 511);
	TRY("params-dma-4095", 0, dev, p->dma.alignment = 4095);
	TRY("params-dma-4096", -EINVAL, dev, p->dma.alignment = 4096);
	TRY("params-dma-8191", -EINVAL, dev, p->dma.alignment = 8191);
	TRY("params-dma-510", -EINVAL, dev, p->dma.alignment = 510);
	TRY("params-dma-all-ones", -EINVAL, dev, p->dma.alignment = UINT32_MAX);
	dev_del(dev);
}

CASE(params_segment)
{
	struct dev *dev = added(0);

	need_late_params(dev);
	dev->params.types |= UBLK_PARAM_TYPE_SEGMENT;
	dev->params.seg = (struct ublk_param_segment){
		.seg_boundary_mask = 65535,
		.max_segment_size = 65536,
		.max_segments = 16,
	};
	TRY("params-segment", 0, dev, (void)p);
	TRY("params-segment-mask-odd", -EINVAL, dev, p->seg.seg_boundary_mask = 65534);
	TRY("params-segment-mask-2047", -EINVAL, dev, p->seg.seg_boundary_mask = 2047);
	TRY("params-segment-mask-4095", 0, dev, p->seg.seg_boundary_mask = 4095);
	TRY("params-segment-mask-all-ones", -EINVAL, dev, p->seg.seg_boundary_mask = UINT64_MAX);
	TRY("params-segment-size-4095", -EINVAL, dev, p->seg.max_segment_size = 4095);
	TRY("params-segment-size-4096", 0, dev, p->seg.max_segment_size = 4096);
	dev_del(dev);
}

CASE(params_integrity)
{
	struct dev *dev = added(UBLK_F_INTEGRITY | UBLK_F_USER_COPY);

	dev->params.types |= UBLK_PARAM_TYPE_INTEGRITY;
	dev->params.integrity = (struct ublk_param_integrity){
		.flags = PI_CAP_INTEGRITY | PI_CAP_REFTAG,
		.interval_exp = 9,
		.metadata_size = 8,
		.csum_type = PI_CSUM_CRC16,
	};
	TRY("params-integrity", 0, dev, (void)p);
	TRY("params-integrity-flags", -EINVAL, dev, p->integrity.flags |= 1U << 5);
	TRY("params-integrity-csum", -EINVAL, dev, p->integrity.csum_type = 9);
	TRY("params-integrity-no-metadata", -EINVAL, dev, p->integrity.metadata_size = 0);
	TRY("params-integrity-small-metadata", -EINVAL, dev, p->integrity.metadata_size = 7);
	TRY("params-integrity-offset", -EINVAL, dev, p->integrity.pi_offset = 1);
	TRY("params-integrity-offset-in-room", 0, dev, p->integrity.pi_offset = 8;
	    p->integrity.metadata_size = 16);
	TRY("params-integrity-reftag-no-csum", -EINVAL, dev, p->integrity.csum_type = PI_CSUM_NONE);
	TRY("params-integrity-interval-256", -EINVAL, dev, p->integrity.interval_exp = 8);
	TRY("params-integrity-interval-over-block", -EINVAL, dev, p->integrity.interval_exp = 10);
	dev_del(dev);
}

CASE(params_integrity_without_the_flag)
{
	struct dev *dev = added(0);

	conform_need_features(UBLK_F_INTEGRITY);
	TRY("params-integrity-not-granted", -EINVAL, dev, p->types |= UBLK_PARAM_TYPE_INTEGRITY;
	    p->integrity.metadata_size = 8; p->integrity.interval_exp = 9);
	dev_del(dev);
}

/* ---- Their effect ------------------------------------------------------------------------- */

static void check_sysfs(const struct dev *dev, const char *name, long long want)
{
	long long got = dev_sysfs(dev, name);

	CHECK(got == want, "%s is %lld, not %lld", name, got, want);
}

CASE(params_effect_of_basic)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct server *s;

	dev->params.basic.logical_bs_shift = 10;
	dev->params.basic.physical_bs_shift = 13;
	dev->params.basic.io_min_shift = 13;
	dev->params.basic.io_opt_shift = 17;
	dev->params.basic.max_sectors = 64;
	dev->params.basic.chunk_sectors = 32;
	dev->params.basic.dev_sectors = 20000;
	s = server_up(dev);
	check_sysfs(dev, "queue/logical_block_size", 1024);
	check_sysfs(dev, "queue/physical_block_size", 8192);
	check_sysfs(dev, "queue/minimum_io_size", 8192);
	check_sysfs(dev, "queue/optimal_io_size", 131072);
	check_sysfs(dev, "queue/max_hw_sectors_kb", 32);
	check_sysfs(dev, "queue/chunk_sectors", 32);
	check_sysfs(dev, "size", 20000);
	check_sysfs(dev, "ro", 0);
	check_sysfs(dev, "queue/discard_max_bytes", 0);
	check_sysfs(dev, "queue/write_zeroes_max_bytes", 0);
	CHECK(io_run(dev, IO_READ, 512, 512) == -EINVAL, "a read below the block size");
	server_down(s);
}

CASE(params_effect_of_chunk_sectors)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct server *s;

	dev->params.basic.chunk_sectors = 32;
	s = server_up(dev);
	CHECK(io_write(dev, 1 << 20, 65536, 1) == 65536, "write failed");
	for (unsigned i = 0; i < atomic_load(&s->nr_log) && i < SERVER_LOG; i++) {
		const struct ublksrv_io_desc *d = &s->log[i].desc;

		CHECK(!d->nr_sectors ||
			      d->start_sector / 32 == (d->start_sector + d->nr_sectors - 1) / 32,
		      "a request of %u sectors at %llu crosses a chunk", d->nr_sectors,
		      (unsigned long long)d->start_sector);
	}
	server_down(s);
}

static void check_attributes(uint32_t attrs, long long ro, long long rotational, long long fua,
			     bool write_back)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct server *s;
	char cache[64] = "", path[128];
	FILE *f;

	dev->params.basic.attrs = attrs;
	s = server_up(dev);
	check_sysfs(dev, "ro", ro);
	check_sysfs(dev, "queue/rotational", rotational);
	check_sysfs(dev, "queue/fua", fua);
	snprintf(path, sizeof(path), "/sys/block/ublkb%u/queue/write_cache", dev->id);
	f = fopen(path, "r");
	if (f) {
		CHECK(fgets(cache, sizeof(cache), f) != NULL, "cannot read write_cache");
		fclose(f);
	}
	CHECK(!strncmp(cache, write_back ? "write back" : "write through", 10),
	      "attributes 0x%x: write_cache is %s", attrs, cache);
	server_down(s);
}

CASE(params_effect_of_attributes)
{
	check_attributes(0, 0, 0, 0, false);
	check_attributes(UBLK_ATTR_READ_ONLY, 1, 0, 0, false);
	check_attributes(UBLK_ATTR_ROTATIONAL, 0, 1, 0, false);
	check_attributes(UBLK_ATTR_VOLATILE_CACHE, 0, 0, 0, true);
	check_attributes(UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA, 0, 0, 1, true);
	check_attributes(UBLK_ATTR_FUA, 0, 0, 0, false);
}

CASE(params_read_only_disk_refuses_writes)
{
	struct dev *dev = dev_new(0, 1, 4);
	struct server *s;
	long res;

	dev->params.basic.attrs = UBLK_ATTR_READ_ONLY;
	s = server_up(dev);
	res = io_write(dev, 0, 4096, 1);
	CHECK(res == -EACCES || res == -EPERM || res == -EROFS, "a write: %s",
	      conform_errname(res));
	CHECK(io_run(dev, IO_READ, 0, 4096) == 4096, "no read");
	CHECK(server_count(s, UBLK_IO_OP_WRITE, -1) == 0, "the server saw a write");
	server_down(s);
}

CASE(params_effect_of_discard)
{
	struct dev *dev = dev_new(0, 1, 8);
	struct server *s;

	dev->params.types |= UBLK_PARAM_TYPE_DISCARD;
	dev->params.discard = (struct ublk_param_discard){
		.discard_alignment = 0,
		.discard_granularity = 8192,
		.max_discard_sectors = 1024,
		.max_write_zeroes_sectors = 2048,
		.max_discard_segments = 1,
	};
	s = server_up(dev);
	check_sysfs(dev, "queue/discard_granularity", 8192);
	check_sysfs(dev, "queue/discard_max_hw_bytes", 1024 * 512);
	check_sysfs(dev, "queue/discard_max_bytes", 1024 * 512);
	check_sysfs(dev, "queue/write_zeroes_max_bytes", 2048 * 512);
	server_down(s);
}

CASE(params_effect_of_segment_and_dma)
{
	struct dev *dev = added(0);
	struct server *s;

	need_late_params(dev);
	dev->params.types |= UBLK_PARAM_TYPE_SEGMENT | UBLK_PARAM_TYPE_DMA_ALIGN;
	dev->params.dma.alignment = 511;
	dev->params.seg = (struct ublk_param_segment){
		.seg_boundary_mask = 65535,
		.max_segment_size = 32768,
		.max_segments = 4,
	};
	RESULT_REQUIRED("set-params", dev_try_set_params(dev), 0);
	s = server_up(dev);
	check_sysfs(dev, "queue/max_segments", 4);
	check_sysfs(dev, "queue/max_segment_size", 32768);
	check_sysfs(dev, "queue/dma_alignment", 511);
	CHECK(io_write(dev, 0, 1 << 20, 5) == 1 << 20, "write failed");
	CHECK(io_verify(dev, 0, 1 << 20, 5) == 1 << 20, "read failed or differs");
	server_down(s);
}

CASE(params_effect_of_integrity)
{
	struct dev *dev = dev_new(UBLK_F_INTEGRITY | UBLK_F_USER_COPY, 1, 8);
	struct server *s;

	conform_need_features(UBLK_F_INTEGRITY | UBLK_F_USER_COPY);
	dev->params.types |= UBLK_PARAM_TYPE_INTEGRITY;
	dev->params.integrity = (struct ublk_param_integrity){
		.interval_exp = 9,
		.metadata_size = 16,
		.csum_type = PI_CSUM_NONE,
	};
	s = server_up(dev);
	check_sysfs(dev, "integrity/protection_interval_bytes", 512);
	CHECK(dev_sysfs(dev, "integrity/tag_size") == 0, "a tag size from nowhere");
	server_down(s);
}

/* A device of no sectors, and one whose last block is not whole, must not upset START_DEV. */
CASE(params_odd_sizes)
{
	static const uint64_t sizes[] = {0, 1, 7, 9, DEV_BYTES / SECTOR - 1};

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct dev *dev = dev_new(0, 1, 4);
		struct server *s;

		dev->params.basic.dev_sectors = sizes[i];
		s = server_up(dev);
		check_sysfs(dev, "size", (long long)sizes[i]);
		server_down(s);
	}
}
