// SPDX-License-Identifier: GPL-2.0-only
/*
 * A device's parameters: checked when they are set, turned into queue limits at START_DEV.
 */
#include <linux/log2.h>
#include <linux/sizes.h>
#include "driver.h"

#define KNOWN_TYPES                                                                    \
	(UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD | UBLK_PARAM_TYPE_DEVT |      \
	 UBLK_PARAM_TYPE_ZONED | UBLK_PARAM_TYPE_DMA_ALIGN | UBLK_PARAM_TYPE_SEGMENT | \
	 UBLK_PARAM_TYPE_INTEGRITY)

#define DMA_MASK 3 /* unless DMA_ALIGN says otherwise */

/* What both commands start with. */
struct params_head {
	u32 len;
	u32 types;
};

/* ---- checks ------------------------------------------------------------------------------ */

static int check_basic(const struct ublk_device *ub, const struct ublk_param_basic *p)
{
	unsigned int largest = ilog2(SZ_256M);

	if (p->logical_bs_shift < SECTOR_SHIFT || p->logical_bs_shift > PAGE_SHIFT)
		return -EINVAL;
	if (p->physical_bs_shift < p->logical_bs_shift)
		return -EINVAL;
	if (p->physical_bs_shift > largest || p->io_min_shift > largest ||
	    p->io_opt_shift > largest)
		return -EINVAL;
	if (p->max_sectors < PAGE_SIZE >> SECTOR_SHIFT ||
	    p->max_sectors > ub->info.max_io_buf_bytes >> SECTOR_SHIFT)
		return -EINVAL;
	if (p->dev_sectors > UBLK_MAX_SECTORS)
		return -EINVAL;
	return 0;
}

static int check_discard(const struct ublk_param_discard *p)
{
	if (!p->discard_granularity)
		return -EINVAL;
	if (p->max_discard_sectors && p->max_discard_segments != 1)
		return -EINVAL;
	return 0;
}

static int check_dma(const struct ublk_param_dma_align *p)
{
	if (p->alignment >= PAGE_SIZE || !is_power_of_2(p->alignment + 1))
		return -EINVAL;
	return 0;
}

static int check_segment(const struct ublk_param_segment *p)
{
	if (!is_power_of_2(p->seg_boundary_mask + 1))
		return -EINVAL;
	if (p->seg_boundary_mask < UBLK_MIN_SEGMENT_SIZE - 1)
		return -EINVAL;
	if (p->max_segment_size < UBLK_MIN_SEGMENT_SIZE || !p->max_segments)
		return -EINVAL;
	return 0;
}

/*
 * A block must get through in one piece, wherever it lies in memory: in two pages at most. Where
 * limits would cut it up 6.1's block layer is at a BUG(), a later one ignores them or fails the I/O.
 */
static int check_whole_blocks(const struct ublk_params *p)
{
	u32 block = 1U << p->basic.logical_bs_shift;
	u32 dma_mask = (p->types & UBLK_PARAM_TYPE_DMA_ALIGN) ? p->dma.alignment : DMA_MASK;

	if (p->basic.chunk_sectors % (block >> SECTOR_SHIFT))
		return -EINVAL;
	if (p->basic.virt_boundary_mask >= PAGE_SIZE)
		return -EINVAL;
	if ((p->types & UBLK_PARAM_TYPE_SEGMENT) && p->seg.max_segments < 2 &&
	    dma_mask < block - 1)
		return -EINVAL;
	return 0;
}

static int check_params(const struct ublk_device *ub, const struct ublk_params *p)
{
	int ret;

	if (!(p->types & UBLK_PARAM_TYPE_BASIC) || (p->types & UBLK_PARAM_TYPE_DEVT))
		return -EINVAL;
	ret = check_basic(ub, &p->basic);
	if (!ret && (p->types & UBLK_PARAM_TYPE_DISCARD))
		ret = check_discard(&p->discard);
	if (!ret && ublk_has(ub, UBLK_F_ZONED))
		ret = ublk_zoned_check(p);
	else if (!ret && (p->types & UBLK_PARAM_TYPE_ZONED))
		ret = -EINVAL;
	if (!ret && (p->types & UBLK_PARAM_TYPE_DMA_ALIGN))
		ret = check_dma(&p->dma);
	if (!ret && (p->types & UBLK_PARAM_TYPE_SEGMENT))
		ret = check_segment(&p->seg);
	if (!ret && (p->types & UBLK_PARAM_TYPE_INTEGRITY))
		ret = ublk_integrity_check(ub, p);
	return ret ?: check_whole_blocks(p);
}

/* ---- commands ---------------------------------------------------------------------------- */

static int read_head(const struct ublksrv_ctrl_cmd *h, struct params_head *head)
{
	if (h->len <= sizeof(*head) || !h->addr)
		return -EINVAL;
	if (copy_from_user(head, u64_to_user_ptr(h->addr), sizeof(*head)))
		return -EFAULT;
	if (!head->len || head->len > h->len)
		return -EINVAL;
	head->len = min_t(u32, head->len, sizeof(struct ublk_params));
	return 0;
}

/**
 * ublk_params_set() - SET_PARAMS
 * @ub: the device
 * @h: the command
 *
 * A failed call leaves the device with no parameters, so that it cannot start with old ones.
 *
 * Return: 0 or -errno; -EACCES once the device has been started.
 */
int ublk_params_set(struct ublk_device *ub, const struct ublksrv_ctrl_cmd *h)
{
	struct ublk_params p = {};
	struct params_head head;
	int ret = read_head(h, &head);

	if (ret)
		return ret;
	if (!head.types)
		return -EINVAL;
	if (copy_from_user(&p, u64_to_user_ptr(h->addr), head.len))
		return -EFAULT;
	p.types &= KNOWN_TYPES;
	if (mutex_lock_killable(&ub->mutex))
		return -EINTR;
	if (ub->state != UBLK_DEV_NEW) {
		ret = -EACCES;
	} else {
		ret = check_params(ub, &p);
		if (ret)
			memset(&p, 0, sizeof(p));
		ub->params = p;
	}
	mutex_unlock(&ub->mutex);
	return ret;
}

/**
 * ublk_params_get() - GET_PARAMS
 * @ub: the device
 * @h: the command
 *
 * Return: 0 or -errno.
 */
int ublk_params_get(struct ublk_device *ub, const struct ublksrv_ctrl_cmd *h)
{
	struct params_head head;
	struct ublk_params p;
	struct gendisk *disk;
	int ret = read_head(h, &head);

	if (ret)
		return ret;
	/* Readable while a STOP_DEV hangs: only SET_PARAMS and UPDATE_SIZE could tear this. */
	p = ub->params;
	p.types |= UBLK_PARAM_TYPE_DEVT;
	p.devt = (struct ublk_param_devt){
		.char_major = MAJOR(ub->dev.devt),
		.char_minor = MINOR(ub->dev.devt),
	};
	disk = ublk_disk_get(ub);
	if (disk) {
		p.devt.disk_major = MAJOR(disk_devt(disk));
		p.devt.disk_minor = MINOR(disk_devt(disk));
		ublk_disk_put(disk);
	}
	return copy_to_user(u64_to_user_ptr(h->addr), &p, head.len) ? -EFAULT : 0;
}

/* ---- limits ------------------------------------------------------------------------------ */

/* Kernels before 6.11 cut larger ones off in silence, in the middle of a block. */
static u32 cap_sectors(const struct ublk_device *ub, u32 sectors)
{
	u32 block = 1U << (ub->params.basic.logical_bs_shift - SECTOR_SHIFT);

	return min_t(u32, sectors, round_down(UINT_MAX >> SECTOR_SHIFT, block));
}

static void limit_discard(const struct ublk_device *ub, struct ublk_limits *lim)
{
	const struct ublk_param_discard *p = &ub->params.discard;

	lim->discard_alignment = p->discard_alignment;
	lim->discard_granularity = p->discard_granularity;
	lim->max_discard_sectors = cap_sectors(ub, p->max_discard_sectors);
	lim->max_write_zeroes_sectors = cap_sectors(ub, p->max_write_zeroes_sectors);
	lim->max_discard_segments = p->max_discard_segments;
}

/**
 * ublk_params_limits() - what the device's parameters mean for its disk
 * @ub: the device, with basic parameters
 * @lim: filled in
 */
void ublk_params_limits(const struct ublk_device *ub, struct ublk_limits *lim)
{
	const struct ublk_params *p = &ub->params;
	const struct ublk_param_basic *b = &p->basic;

	*lim = (struct ublk_limits){
		.logical_block = 1U << b->logical_bs_shift,
		.physical_block = 1U << b->physical_bs_shift,
		.io_min = 1U << b->io_min_shift,
		.io_opt = 1U << b->io_opt_shift,
		.max_sectors = b->max_sectors,
		.chunk_sectors = b->chunk_sectors,
		.virt_boundary_mask = b->virt_boundary_mask,
		.max_segment_size = UINT_MAX,
		.max_segments = USHRT_MAX,
		.dma_mask = DMA_MASK,
		.write_cache = b->attrs & UBLK_ATTR_VOLATILE_CACHE,
		.rotational = b->attrs & UBLK_ATTR_ROTATIONAL,
	};
	/* Without a cache every write is forced unit access anyway. */
	lim->fua = lim->write_cache && (b->attrs & UBLK_ATTR_FUA);
	if (p->types & UBLK_PARAM_TYPE_DISCARD)
		limit_discard(ub, lim);
	if (p->types & UBLK_PARAM_TYPE_DMA_ALIGN)
		lim->dma_mask = p->dma.alignment;
	if (p->types & UBLK_PARAM_TYPE_SEGMENT) {
		lim->seg_boundary_mask = p->seg.seg_boundary_mask;
		lim->max_segment_size = p->seg.max_segment_size;
		lim->max_segments = p->seg.max_segments;
	}
	if (p->types & UBLK_PARAM_TYPE_INTEGRITY)
		ublk_integrity_limits(&p->integrity, lim);
	if (p->types & UBLK_PARAM_TYPE_ZONED) {
		lim->zoned = true;
		lim->max_open_zones = p->zoned.max_open_zones;
		lim->max_active_zones = p->zoned.max_active_zones;
		lim->max_zone_append_sectors = p->zoned.max_zone_append_sectors;
	}
}
