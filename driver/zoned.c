// SPDX-License-Identifier: GPL-2.0-only
/*
 * Host-managed zoned devices: zone operations as requests, and zone reports, for which the
 * block layer asks outside of any request: the driver makes one that brings the zones back.
 */
#include <linux/log2.h>
#include <linux/mm.h>
#include "driver.h"

#ifdef CONFIG_BLK_DEV_ZONED

/* What a report request asks for; in the request's private area. */
struct report {
	sector_t sector;
	u32 nr_zones;
};

/**
 * ublk_zoned_cmd_size() - private area of each request of a zoned device
 *
 * Return: bytes.
 */
unsigned int ublk_zoned_cmd_size(void)
{
	return sizeof(struct report);
}

/**
 * ublk_zoned_desc() - describe a request that only zoned devices get
 * @rq: the request
 * @desc: its descriptor, filled in for a read or write; a report changes it
 *
 * Return: the UBLK_IO_OP_*, or -EOPNOTSUPP.
 */
int ublk_zoned_desc(struct request *rq, struct ublksrv_io_desc *desc)
{
	const struct report *report;

	switch (req_op(rq)) {
	case REQ_OP_ZONE_OPEN:
		return UBLK_IO_OP_ZONE_OPEN;
	case REQ_OP_ZONE_CLOSE:
		return UBLK_IO_OP_ZONE_CLOSE;
	case REQ_OP_ZONE_FINISH:
		return UBLK_IO_OP_ZONE_FINISH;
	case REQ_OP_ZONE_RESET:
		return UBLK_IO_OP_ZONE_RESET;
	case REQ_OP_ZONE_RESET_ALL:
		return UBLK_IO_OP_ZONE_RESET_ALL;
	case REQ_OP_ZONE_APPEND:
		return UBLK_IO_OP_ZONE_APPEND;
	case REQ_OP_DRV_IN:
		report = blk_mq_rq_to_pdu(rq);
		desc->start_sector = report->sector;
		desc->nr_zones = report->nr_zones;
		return UBLK_IO_OP_REPORT_ZONES;
	default:
		return -EOPNOTSUPP;
	}
}

/**
 * ublk_zoned_appended() - where an append went
 * @rq: the request
 * @lba: the first sector, from the server
 *
 * Return: true, or false when that is not in the zone that was asked for.
 */
bool ublk_zoned_appended(struct request *rq, u64 lba)
{
	u64 zone = blk_rq_pos(rq), size = rq->q->limits.chunk_sectors;

	if (lba < zone || lba - zone > size || blk_rq_sectors(rq) > size - (lba - zone))
		return false;
	rq->__sector = lba;
	return true;
}

static u32 nr_zones(const struct ublk_params *p)
{
	return p->basic.dev_sectors >> ilog2(p->basic.chunk_sectors);
}

/**
 * ublk_zoned_check() - check the parameters of a zoned device
 * @p: the parameters; the basic ones are good
 *
 * Return: 0 or -EINVAL.
 */
int ublk_zoned_check(const struct ublk_params *p)
{
	if (!(p->types & UBLK_PARAM_TYPE_ZONED) || !is_power_of_2(p->basic.chunk_sectors))
		return -EINVAL;
	if (!p->zoned.max_zone_append_sectors)
		return -EINVAL;
	if (p->zoned.max_open_zones > nr_zones(p) || p->zoned.max_active_zones > nr_zones(p))
		return -EINVAL;
	return 0;
}

/* As much of what is wanted as there is memory for and a request carries. */
static struct blk_zone *report_alloc(struct gendisk *disk, u32 *zones)
{
	size_t most = (size_t)queue_max_hw_sectors(disk->queue) << SECTOR_SHIFT;
	size_t bytes = min((size_t)*zones * sizeof(struct blk_zone), most);
	void *buf;

	for (; bytes >= sizeof(struct blk_zone); bytes /= 2) {
		buf = kvmalloc(bytes, GFP_KERNEL | __GFP_NORETRY);
		if (buf) {
			*zones = bytes / sizeof(struct blk_zone);
			return buf;
		}
	}
	return NULL;
}

static int report_ask(struct gendisk *disk, struct blk_zone *buf, sector_t sector, u32 zones)
{
	struct report *report;
	struct request *rq;
	int ret;

	memset(buf, 0, zones * sizeof(*buf));
	rq = blk_mq_alloc_request(disk->queue, REQ_OP_DRV_IN, 0);
	if (IS_ERR(rq))
		return PTR_ERR(rq);
	report = blk_mq_rq_to_pdu(rq);
	report->sector = sector;
	report->nr_zones = zones;
	ret = ublk_rq_map_kern(rq, buf, zones * sizeof(*buf));
	if (!ret)
		ret = blk_status_to_errno(blk_execute_rq(rq, false));
	blk_mq_free_request(rq);
	return ret;
}

static int report_zones(struct gendisk *disk, sector_t sector, u32 wanted,
			const struct ublk_zone_sink *sink)
{
	struct ublk_device *ub = disk->private_data;
	u32 shift = ilog2(disk->queue->limits.chunk_sectors);
	u32 all = nr_zones(&ub->params), first = sector >> shift;
	u32 done = 0, batch, i;
	struct blk_zone *buf;
	int ret = 0;

	if (first >= all)
		return 0;
	wanted = min(wanted, all - first);
	batch = wanted;
	buf = report_alloc(disk, &batch);
	if (!buf)
		return -ENOMEM;
	while (!ret && done < wanted) {
		u32 n = min(batch, wanted - done);

		ret = report_ask(disk, buf, (sector_t)(first + done) << shift, n);
		/* A zone without a length ends a shorter report. */
		for (i = 0; !ret && i < n && buf[i].len; i++)
			ret = ublk_zone_report(disk, &buf[i], done++, sink);
		if (!ret && i < n)
			break;
	}
	kvfree(buf);
	return ret ?: done;
}

UBLK_REPORT_ZONES(ublk_report_zones)

#endif
