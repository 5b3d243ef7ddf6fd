// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allocating the disk with its limits: one call since 6.9, setters on a live queue before.
 */
#include "compat.h"

#ifdef UBLK_HAVE_DISK_LIMITS

static blk_features_t limit_features(const struct ublk_limits *l)
{
	blk_features_t features = 0;

	if (l->write_cache)
		features |= BLK_FEAT_WRITE_CACHE;
	if (l->fua)
		features |= BLK_FEAT_FUA;
	if (l->rotational)
		features |= BLK_FEAT_ROTATIONAL;
	if (l->zoned)
		features |= BLK_FEAT_ZONED;
	return features;
}

/**
 * ublk_compat_alloc_disk() - allocate a disk whose queue has the given limits
 * @set: the device's tag set
 * @l: the limits
 *
 * Return: the disk, or an ERR_PTR().
 */
struct gendisk *ublk_compat_alloc_disk(struct blk_mq_tag_set *set, const struct ublk_limits *l)
{
	struct queue_limits lim = {
		.logical_block_size = l->logical_block,
		.physical_block_size = l->physical_block,
		.io_min = l->io_min,
		.io_opt = l->io_opt,
		.max_hw_sectors = l->max_sectors,
		.chunk_sectors = l->chunk_sectors,
		.virt_boundary_mask = l->virt_boundary_mask,
		.seg_boundary_mask = l->seg_boundary_mask,
		.max_segment_size = l->max_segment_size,
		.max_segments = l->max_segments,
		.dma_alignment = l->dma_mask,
		.discard_alignment = l->discard_alignment,
		.discard_granularity = l->discard_granularity,
		.max_hw_discard_sectors = l->max_discard_sectors,
		.max_write_zeroes_sectors = l->max_write_zeroes_sectors,
		.max_discard_segments = l->max_discard_segments,
		.max_open_zones = l->max_open_zones,
		.max_active_zones = l->max_active_zones,
		.features = limit_features(l),
	};

#ifdef UBLK_HAVE_ZONE_APPEND_LIMIT
	lim.max_hw_zone_append_sectors = l->max_zone_append_sectors;
#else
	lim.max_zone_append_sectors = l->max_zone_append_sectors;
#endif
#ifdef UBLK_HAVE_INTEGRITY
	lim.max_integrity_segments = l->max_integrity_segments;
	lim.integrity = l->integrity;
#endif
	return blk_mq_alloc_disk(set, &lim, NULL);
}

#else

static void set_discard(struct request_queue *q, const struct ublk_limits *l)
{
	q->limits.discard_alignment = l->discard_alignment;
	q->limits.discard_granularity = l->discard_granularity;
	blk_queue_max_discard_sectors(q, l->max_discard_sectors);
	blk_queue_max_write_zeroes_sectors(q, l->max_write_zeroes_sectors);
	blk_queue_max_discard_segments(q, l->max_discard_segments);
}

/**
 * ublk_compat_alloc_disk() - allocate a disk whose queue has the given limits
 * @set: the device's tag set
 * @l: the limits
 *
 * Return: the disk, or an ERR_PTR().
 */
struct gendisk *ublk_compat_alloc_disk(struct blk_mq_tag_set *set, const struct ublk_limits *l)
{
	struct gendisk *disk = blk_mq_alloc_disk(set, NULL);
	struct request_queue *q;

	if (IS_ERR(disk))
		return disk;
	q = disk->queue;
	blk_queue_logical_block_size(q, l->logical_block);
	blk_queue_physical_block_size(q, l->physical_block);
	blk_queue_io_min(q, l->io_min);
	blk_queue_io_opt(q, l->io_opt);
	blk_queue_max_hw_sectors(q, l->max_sectors);
	blk_queue_chunk_sectors(q, l->chunk_sectors);
	blk_queue_max_segments(q, l->max_segments);
	if (l->seg_boundary_mask)
		blk_queue_segment_boundary(q, l->seg_boundary_mask);
	/* A virtual boundary lifts the limit on segments: no other may be set beside it. */
	if (l->virt_boundary_mask)
		blk_queue_virt_boundary(q, l->virt_boundary_mask);
	else
		blk_queue_max_segment_size(q, l->max_segment_size);
	blk_queue_dma_alignment(q, l->dma_mask);
	set_discard(q, l);
	blk_queue_write_cache(q, l->write_cache, l->fua);
	if (l->rotational)
		blk_queue_flag_clear(QUEUE_FLAG_NONROT, q);
	else
		blk_queue_flag_set(QUEUE_FLAG_NONROT, q);
	if (l->zoned) {
		disk_set_zoned(disk, BLK_ZONED_HM);
		blk_queue_required_elevator_features(q, ELEVATOR_F_ZBD_SEQ_WRITE);
		blk_queue_flag_set(QUEUE_FLAG_ZONE_RESETALL, q);
		disk_set_max_open_zones(disk, l->max_open_zones);
		disk_set_max_active_zones(disk, l->max_active_zones);
		blk_queue_max_zone_append_sectors(q, l->max_zone_append_sectors);
	}
	return disk;
}

#endif
