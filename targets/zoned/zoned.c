/* SPDX-License-Identifier: MIT */
/* zoned: an emulated host-managed zoned block device, in memory or in a file. */
#include "zoned.h"

#include <errno.h>

#include "../targets.h"

static int zoned_open(struct ubd_device *dev, void *self)
{
	struct ubd_limits *l = ubd_device_limits(dev);
	struct zoned *z = self;
	int ret = image_open(dev, z);

	if (ret)
		return ret;
	pthread_mutex_init(&z->lock, NULL);
	backing_limits(&z->b, l);
	l->size = z->geo.size;
	l->logical_block = ZONE_BLOCK;
	l->max_discard = l->max_write_zeroes = 0;
	l->volatile_cache = z->live_path;
	l->zone_size = z->geo.zone_size;
	l->max_open_zones = (uint32_t)z->geo.max_open;
	l->max_active_zones = (uint32_t)z->geo.max_active;
	return 0;
}

/* ---- Requests ------------------------------------------------------------------------------ */

static struct ubd_transfer piece(const struct zoned *z, const struct ubd_io *io, uint64_t pos,
				 uint32_t len)
{
	struct ubd_transfer t = backing_transfer(&z->b, io, 0, len, ZONE_DATA_START + pos);

	t.mapped = z->map ? z->map + pos : NULL;
	return t;
}

/* What has not been written reads as zeroes, whatever the backing holds there. */
static int read_zone(const struct zoned *z, struct ubd_io *io, uint32_t i)
{
	uint64_t end = i < z->geo.conventional ? z->geo.zone_size : ZONE_WRITTEN(zone_word(z, i));
	uint64_t at = io->offset - i * z->geo.zone_size, left = at < end ? end - at : 0;
	uint32_t have = left < io->length ? (uint32_t)left : io->length;
	const struct ubd_transfer t[2] = {
		piece(z, io, io->offset, have),
		{.where = UBD_ZEROES, .at = have, .len = io->length - have},
	};

	return ubd_io_finish(io, have ? t : t + 1, have && have < io->length ? 2 : 1);
}

static int write_zone(struct zoned *z, struct ubd_io *io, uint32_t i)
{
	uint64_t start = i * z->geo.zone_size, at = io->offset - start;
	struct ubd_transfer t = piece(z, io, io->offset, io->length);
	int ret;

	if (io->op == UBD_ZONE_APPEND && (at || i < z->geo.conventional))
		return -EIO;
	if (i < z->geo.conventional)
		return ubd_io_finish(io, &t, 1);
	ubd_mutex_lock(io->queue, &z->zone_lock[i]);
	ret = zones_apply(z, i, io->op, &at, io->length);
	if (!ret) {
		t = piece(z, io, start + at, io->length);
		t.flags = 0; /* of a FUA takes care what follows */
		ret = ubd_io_transfer(io, &t, 1);
		zones_apply(z, i, ZONE_WRITTEN_TO, NULL, ret < 0 ? 0 : io->length);
	}
	ubd_mutex_unlock(io->queue, &z->zone_lock[i]);
	io->append_at = start + at;
	/* All before it in the zone as well, or the write pointer could not cover it. */
	return ret >= 0 && io->flags & UBD_IO_FUA ? image_flush(z, io->queue) ?: ret : ret;
}

/* An operation on zones [first, end). What resets give back is discarded once they are durable:
 * until then a power cut would bring back the old state. No reader sees whether that works. */
static int manage(struct zoned *z, struct ubd_io *io, unsigned op, uint64_t first, uint64_t end)
{
	int ret = 0;

	for (uint64_t i = first; i < end; i++) {
		ubd_mutex_lock(io->queue, &z->zone_lock[i]);
		ret = zones_apply(z, (uint32_t)i, op, NULL, 0);
	}
	if (op == UBD_ZONE_RESET || op == UBD_ZONE_FINISH)
		ret = image_flush(z, io->queue);
	if (!ret && op == UBD_ZONE_RESET && z->b.can_punch)
		backing_discard(&z->b, io->queue, ZONE_DATA_START + first * z->geo.zone_size,
				(end - first) * z->geo.zone_size);
	for (uint64_t i = first; i < end; i++)
		ubd_mutex_unlock(io->queue, &z->zone_lock[i]);
	return ret;
}

static int report(const struct zoned *z, struct ubd_io *io, uint32_t i)
{
	struct blk_zone *zones = ubd_io_data(io);

	for (uint32_t n = 0; zones && n < io->length && i < z->nr_zones; n++)
		zones_report(z, i++, &zones[n]);
	return zones ? (int)(io->length * sizeof(*zones)) : -ENOMEM;
}

static int zoned_handle(struct ubd_io *io, void *self)
{
	struct zoned *z = self;
	uint64_t i = io->offset / z->geo.zone_size;
	bool data = io->op == UBD_READ || io->op == UBD_WRITE || io->op == UBD_ZONE_APPEND;

	if (io->op == UBD_FLUSH)
		return image_flush(z, io->queue);
	/* Requests are of whole blocks and do not reach into the next zone. */
	if (i >= z->nr_zones || (data && (io->offset | io->length) % ZONE_BLOCK) ||
	    (data ? io->length > (i + 1) * z->geo.zone_size - io->offset
		  : io->offset % z->geo.zone_size))
		return -EINVAL;
	if (io->op == UBD_READ)
		return read_zone(z, io, (uint32_t)i);
	if (io->op == UBD_REPORT_ZONES)
		return report(z, io, (uint32_t)i);
	if (z->b.read_only || __atomic_load_n(&z->failed, __ATOMIC_ACQUIRE))
		return z->b.read_only ? -EROFS : -EIO;
	if (data)
		return write_zone(z, io, (uint32_t)i);
	if (io->op == UBD_ZONE_RESET_ALL)
		return manage(z, io, UBD_ZONE_RESET, z->geo.conventional, z->nr_zones);
	if (io->op < UBD_ZONE_OPEN || io->op > UBD_ZONE_RESET)
		return -EOPNOTSUPP;
	return i < z->geo.conventional ? -EIO : manage(z, io, io->op, i, i + 1);
}

/* clang-format off */
#define AT(member) offsetof(struct zoned, member)
static const struct ubd_option zoned_options[] = {
	{"file", UBD_PATH, AT(file), "file or block device; none: memory", .positional = true, .letter = 'f'},
	{"format", UBD_BOOL, AT(format), "make the file, anew if it is there"},
	{"size", UBD_SIZE, AT(geo.size), "of the device, in memory or with --format"},
	{"zone-size", UBD_SIZE, AT(geo.zone_size), "a power of two (default: 64M)"},
	{"zone-capacity", UBD_SIZE, AT(geo.zone_capacity), "that can be written (default: the zone size)"},
	{"conventional", UBD_UINT, AT(geo.conventional), "first zones, without write pointer (default: 0)"},
	{"max-open", UBD_UINT, AT(geo.max_open), "zones open at a time (default: no limit)"},
	{"max-active", UBD_UINT, AT(geo.max_active), "zones open or closed (default: no limit)"},
	{0},
};

const struct ubd_target target_zoned = {
	.api = UBD_TARGET_API, .name = "zoned", .summary = "an emulated host-managed zoned device",
	.options = zoned_options, .size = sizeof(struct zoned), .open = zoned_open, .close = image_close, .handle = zoned_handle,
};
