/* SPDX-License-Identifier: MIT */
/* From the target's limits and the user's wishes to the parameters that the driver takes. */
#include "internal.h"

#include <errno.h>
#include <inttypes.h>

#define SECTOR 512u
#define MAX_BLOCK 65536u
#define MAX_IO (32u << 20)    /* UBLK_IO_BUF_BITS */
#define MAX_ZONE (1ull << 40) /* chunk_sectors has 32 bits */

static int bad(struct ubd_device *dev, const char *what)
{
	return device_fail(dev, -EINVAL, "target %s: %s", dev->target->name, what);
}

int params_check_config(struct ubd_device *dev)
{
	struct ubd_device_config *c = &dev->cfg;
	uint32_t page = 4096;
	struct fault plan;

	if (!c->queues)
		c->queues = 1;
	if (!c->depth)
		c->depth = 128;
	if (!c->max_io)
		c->max_io = 512 * 1024;
	if (fault_parse(&plan, dev->fault))
		return device_fail(dev, -EINVAL, "fault plan \"%s\" is not understood", dev->fault);
	if (c->queues > UBD_MAX_QUEUES)
		return device_fail(dev, -EINVAL, "%u queues: the range is 1 to %u", c->queues,
				   UBD_MAX_QUEUES);
	if (c->depth > UBD_MAX_DEPTH)
		return device_fail(dev, -EINVAL, "queue depth %u: the range is 1 to %u", c->depth,
				   UBD_MAX_DEPTH);
	if (c->max_io < page || c->max_io > MAX_IO || c->max_io % page)
		return device_fail(dev, -EINVAL,
				   "largest request of %u bytes: a multiple of %u from %u to %u is "
				   "needed",
				   c->max_io, page, page, MAX_IO);
	if (c->block_size &&
	    (!is_power_of_two(c->block_size) || c->block_size < SECTOR || c->block_size > page))
		return device_fail(dev, -EINVAL,
				   "block size %u: a power of two from %u to %u is needed",
				   c->block_size, SECTOR, page);
	return 0;
}

static int check_blocks(struct ubd_device *dev)
{
	struct ubd_limits *l = &dev->limits;

	if (!l->logical_block)
		l->logical_block = SECTOR;
	if (dev->cfg.block_size) {
		if (dev->cfg.block_size < l->logical_block)
			return device_fail(dev, -EINVAL,
					   "block size %u: the backing needs at least %u",
					   dev->cfg.block_size, l->logical_block);
		l->logical_block = dev->cfg.block_size;
	}
	if (!is_power_of_two(l->logical_block) || l->logical_block > MAX_BLOCK ||
	    l->logical_block < SECTOR)
		return bad(dev, "its block size is not a power of two from 512 to 65536");
	l->physical_block = MAX(l->physical_block, l->logical_block);
	l->io_min = MAX(l->io_min, l->physical_block);
	if (!is_power_of_two(l->physical_block) || !is_power_of_two(l->io_min) ||
	    (l->io_opt && !is_power_of_two(l->io_opt)))
		return bad(dev, "its block and I/O sizes are not powers of two");
	if (!l->size)
		return device_fail(dev, -EINVAL, "the device would have size 0");
	if (l->size % l->logical_block)
		return device_fail(dev, -EINVAL,
				   "size %" PRIu64 " is not a multiple of the block size %u",
				   l->size, l->logical_block);
	return 0;
}

static int check_zones(struct ubd_device *dev)
{
	struct ubd_limits *l = &dev->limits;
	uint64_t nr;

	if (!l->zone_size)
		return 0;
	if (!is_power_of_two(l->zone_size) || l->zone_size < l->logical_block ||
	    l->zone_size > MAX_ZONE || l->size % l->zone_size)
		return bad(dev, "its zones are not powers of two from a block to 1 TiB that divide "
				"its size");
	nr = l->size / l->zone_size;
	if (l->max_open_zones > nr || l->max_active_zones > nr ||
	    (l->max_active_zones && l->max_open_zones > l->max_active_zones))
		return bad(dev, "it allows more open zones than active ones, or than there are");
	l->max_zone_append = MIN(l->max_zone_append ? l->max_zone_append : l->max_io, l->max_io);
	if (l->max_zone_append > l->zone_size)
		l->max_zone_append = (uint32_t)l->zone_size;
	l->max_zone_append -= l->max_zone_append % l->logical_block;
	return l->max_zone_append ? 0 : bad(dev, "its largest append is below a block");
}

int params_check(struct ubd_device *dev)
{
	struct ubd_limits *l = &dev->limits;
	int ret = check_blocks(dev);

	if (ret)
		return ret;
	l->max_io = MIN(l->max_io ? l->max_io : dev->cfg.max_io, dev->cfg.max_io);
	if (!l->dma_alignment)
		l->dma_alignment = SECTOR;
	if ((l->max_discard || l->max_write_zeroes) && !l->discard_granularity)
		l->discard_granularity = l->logical_block;
	l->read_only = l->read_only || dev->cfg.read_only;
	if (l->fua && !l->volatile_cache)
		return bad(dev, "fua without volatile_cache makes no sense");
	if (l->chunk % l->logical_block)
		return bad(dev, "its chunks are not whole blocks");
	return check_zones(dev);
}

/* Sectors of the largest DISCARD or WRITE_ZEROES, whose bytes are an int where they are a result.
 */
static uint32_t cap_sectors(uint64_t bytes, uint32_t block)
{
	uint64_t most = (INT32_MAX / block * (uint64_t)block) >> 9;

	return (uint32_t)MIN(bytes >> 9, most);
}

static uint8_t shift_of(uint32_t power)
{
	return power ? (uint8_t)__builtin_ctz(power) : 0;
}

void params_fill(const struct ubd_device *dev, struct ublk_params *p)
{
	const struct ubd_limits *l = &dev->limits;

	*p = (struct ublk_params){
		.len = sizeof(*p),
		.types = UBLK_PARAM_TYPE_BASIC,
		.basic =
			{
				.attrs = (l->read_only ? UBLK_ATTR_READ_ONLY : 0u) |
					 (l->rotational ? UBLK_ATTR_ROTATIONAL : 0u) |
					 (l->volatile_cache ? UBLK_ATTR_VOLATILE_CACHE : 0u) |
					 (l->fua ? UBLK_ATTR_FUA : 0u),
				.logical_bs_shift = shift_of(l->logical_block),
				.physical_bs_shift = shift_of(l->physical_block),
				.io_min_shift = shift_of(l->io_min),
				.io_opt_shift = shift_of(l->io_opt),
				.max_sectors = MIN(l->max_io, dev->info.max_io_buf_bytes) >> 9,
				.chunk_sectors =
					(uint32_t)((l->zone_size ? l->zone_size : l->chunk) >> 9),
				.dev_sectors = l->size >> 9,
			},
	};
	if ((l->max_discard || l->max_write_zeroes) && !l->read_only) {
		p->types |= UBLK_PARAM_TYPE_DISCARD;
		p->discard = (struct ublk_param_discard){
			.discard_alignment = l->discard_alignment,
			.discard_granularity = l->discard_granularity,
			.max_discard_sectors = cap_sectors(l->max_discard, l->logical_block),
			.max_write_zeroes_sectors =
				cap_sectors(l->max_write_zeroes, l->logical_block),
			.max_discard_segments = 1,
		};
	}
	if (l->zone_size) {
		p->types |= UBLK_PARAM_TYPE_ZONED;
		p->zoned = (struct ublk_param_zoned){
			.max_open_zones = l->max_open_zones,
			.max_active_zones = l->max_active_zones,
			.max_zone_append_sectors =
				MIN(l->max_zone_append, dev->info.max_io_buf_bytes) >> 9,
		};
	}
	/* Without a copy the request's memory goes to the backing as it is. */
	if ((ways[dev->zero_copy].fixed || ways[dev->zero_copy].members) &&
	    l->dma_alignment > SECTOR) {
		p->types |= UBLK_PARAM_TYPE_DMA_ALIGN;
		p->dma.alignment = l->dma_alignment - 1;
	}
}
