/* SPDX-License-Identifier: MIT */
/*
 * Zone states in a file: two copies of them, then the data (docs/zoned.md).
 *
 * The copies say what is durable: one is written after the data that it speaks of, so they may be
 * behind the data, never ahead. What requests were told since is in the live file, in tmpfs: that
 * outlives a killed server and not a power cut. The device works on it directly.
 */
#define _GNU_SOURCE
#include "zoned.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x31656e6f7a646275ull /* "ubdzone1": the 1 is the version */
#define COPY (ZONE_DATA_START / 2)
#define MAX_ZONES 131000u
#define LEN(nr) ((sizeof(struct zone_state) + (nr)*8 + ZONE_BLOCK - 1) / ZONE_BLOCK * ZONE_BLOCK)

#define fail(z, err, ...) ubd_device_fail((z)->dev, err, __VA_ARGS__)

static int check_geometry(struct zoned *z)
{
	struct zone_geometry *g = &z->geo;
	uint64_t zone = g->zone_size = g->zone_size ?: 64 << 20, nr = g->size / zone;
	uint64_t sequential = nr - g->conventional;

	g->zone_capacity = g->zone_capacity ?: zone;
	g->max_open = g->max_open ?: g->max_active;
	if (zone & (zone - 1) || zone < 64 << 10 || zone > 1ull << 40)
		return fail(z, -EINVAL, "the zone size must be a power of two from 64K to 1T");
	if (g->zone_capacity > zone || g->zone_capacity % ZONE_BLOCK)
		return fail(z, -EINVAL, "the zone capacity must be 4K blocks that fit a zone");
	if (!nr || g->size % zone || nr > MAX_ZONES)
		return fail(z, -EINVAL, "the size must be 1 to %u whole zones", MAX_ZONES);
	if (g->conventional >= nr)
		return fail(z, -EINVAL, "conventional < %" PRIu64 " is needed", nr);
	if (g->max_active > sequential || g->max_open > (g->max_active ?: sequential))
		return fail(z, -EINVAL, "max-open <= max-active <= %" PRIu64 " is needed",
			    sequential);
	z->nr_zones = (uint32_t)nr;
	return 0;
}

/* ---- The copies ---------------------------------------------------------------------------- */

/* Over the older copy: if that is torn, the other one counts. */
static int write_copy(struct zoned *z)
{
	return copies_store(NULL, z->b.fd, &z->durable->copy, COPY);
}

/* First what to tell, then the data that it tells of, then the telling. */
static int persist(void *arg)
{
	struct zoned *z = arg;
	bool changed = false;

	for (uint32_t i = 0; i < z->nr_zones; i++) {
		uint64_t word = zone_word(z, i);

		changed = changed || z->durable->words[i] != word;
		z->durable->words[i] = word;
	}
	if (fdatasync(z->b.fd) < 0)
		return -errno;
	return changed ? write_copy(z) : 0;
}

int image_flush(struct zoned *z, struct ubd_queue *q)
{
	int ret;

	if (!z->live_path)
		return 0;
	if (q)
		ubd_mutex_lock(q, &z->flushing);
	ret = z->failed;
	if (!ret && (ret = q ? ubd_offload(q, persist, z) : persist(z))) {
		/* Data that counted as written may be gone: the live file must not tell of it. */
		__atomic_store_n(&z->failed, ret, __ATOMIC_RELEASE);
		unlink(z->live_path);
		ubd_device_notice(z->dev, "%s cannot be synced, no more is written to it: %s",
				  z->file, strerror(-ret));
	}
	if (q)
		ubd_mutex_unlock(q, &z->flushing);
	return ret;
}

/* ---- The live file ------------------------------------------------------------------------- */

/* The words in use: the live file, if there is something to make durable. */
static int map_state(struct zoned *z)
{
	const char *dir = getenv("UBD_RUN_DIR") ?: "/run/ubd";
	int fd = -1, ret = 0;
	struct stat st;

	if (z->file && !z->b.read_only) {
		mkdir(dir, 0755);
		if (fstat(z->b.fd, &st) < 0 ||
		    asprintf(&z->live_path, "%s/zoned-%jx-%jx-%jx.live", dir, (uintmax_t)st.st_dev,
			     (uintmax_t)st.st_ino, (uintmax_t)st.st_rdev) < 0)
			return -ENOMEM;
		z->live_is_new = access(z->live_path, F_OK) < 0;
		fd = open(z->live_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		/* Its space is taken now: a full file system must not show at a store. */
		if (fd < 0 || (errno = posix_fallocate(fd, 0, z->durable->copy.len)))
			ret = fail(z, -errno, "cannot make %s: %s", z->live_path, strerror(errno));
	}
	z->state = mmap(NULL, z->durable->copy.len, PROT_READ | PROT_WRITE,
			fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
	if (fd >= 0)
		close(fd);
	return z->state == MAP_FAILED ? -ENOMEM : ret;
}

/* Begin with what a killed server left, or else with what is durable. */
static int load_words(struct zoned *z)
{
	struct zone_state id = *z->durable; /* of whom a live file must be */
	int ret = map_state(z), fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	bool known = fd >= 0 && read(fd, id.boot, sizeof(id.boot) - 1) > 0;

	if (fd >= 0)
		close(fd);
	if (!ret && z->live_path && !known)
		return fail(z, -EIO, "the kernel's boot_id cannot be read");
	id.copy.sequence = id.copy.crc = 0;
	if (!ret && known && id.session && !memcmp(z->state, &id, sizeof(id)))
		return zones_load(z, z->state->words, true);
	if (ret || getrandom(&id.session, 8, 0) != 8)
		return ret ?: -EIO;
	z->state->copy.magic = 0;
	ret = zones_load(z, z->durable->words, false);
	/* From now on no earlier live file counts, wherever it is. */
	z->durable->session = id.session;
	if (!ret && z->live_path)
		ret = write_copy(z);
	memcpy(&z->state->copy.crc, &id.copy.crc, sizeof(id) - sizeof(id.copy.magic));
	__atomic_store_n(&z->state->copy.magic, MAGIC, __ATOMIC_RELEASE);
	return ret;
}

/* ---- Opening ------------------------------------------------------------------------------- */

static int format(struct zoned *z)
{
	uint64_t need = ZONE_DATA_START + z->geo.size;

	if (z->b.is_block && z->b.size < need)
		return fail(z, -ENOSPC, "%s is smaller than %" PRIu64 " bytes", z->file, need);
	/* Nothing of what was there before shows again, but in a disk's conventional zones. */
	if (!z->b.is_block && (ftruncate(z->b.fd, 0) || ftruncate(z->b.fd, (off_t)need)))
		return -errno;
	z->durable = z->copies;
	z->durable->copy.magic = MAGIC;
	z->durable->copy.len = (uint32_t)LEN(z->nr_zones);
	z->durable->geo = z->geo;
	for (uint32_t i = (uint32_t)z->geo.conventional; i < z->nr_zones; i++)
		z->durable->words[i] = BLK_ZONE_COND_EMPTY;
	return write_copy(z) ?: write_copy(z);
}

/* The newer good copy, and the geometry from it. What was given must agree with that. */
static int load(struct zoned *z)
{
	const uint64_t *given = (uint64_t *)&z->geo;

	z->durable = copies_load(z->b.fd, z->copies, COPY, MAGIC);
	if (errno)
		return -errno;
	if (!z->durable)
		return fail(z, -EINVAL, "%s is no good image: --format makes it one", z->file);
	for (unsigned i = 0; i < sizeof(z->geo) / 8; i++)
		if (given[i] && given[i] != ((uint64_t *)&z->durable->geo)[i])
			return fail(z, -EINVAL, "%s was made with other sizes: leave them out",
				    z->file);
	z->geo = z->durable->geo;
	if (check_geometry(z) || z->durable->copy.len != LEN(z->nr_zones) ||
	    z->b.size < ZONE_DATA_START + z->geo.size)
		return fail(z, -EINVAL, "%s has been cut short", z->file);
	return 0;
}

static int open_image(struct zoned *z)
{
	int ret = posix_memalign((void **)&z->copies, ZONE_BLOCK, ZONE_DATA_START);

	if (ret)
		return -ret;
	memset(z->copies, 0, ZONE_DATA_START);
	ret = z->format ? format(z) : load(z);
	z->zone_lock = calloc(z->nr_zones, sizeof(*z->zone_lock));
	if (!ret && !z->file)
		z->map = mmap(NULL, z->geo.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			      z->b.fd, ZONE_DATA_START);
	if (ret || !z->zone_lock || z->map == MAP_FAILED)
		return ret ?: -ENOMEM;
	/* Whatever the process locks: the data may be swapped out. */
	if (z->map)
		munlock(z->map, z->geo.size);
	return load_words(z);
}

int image_open(struct ubd_device *dev, struct zoned *z)
{
	struct backing_request want = {.path = z->file, .any_size = true, .max_block = ZONE_BLOCK};
	int fd = -1, ret;

	z->dev = dev;
	if (!z->file && ubd_device_takes_over(dev))
		return fail(z, -ENODATA, "what zoned held in memory died with its server");
	z->format = (z->format && !ubd_device_takes_over(dev)) || !z->file;
	want.read_only = ubd_device_read_only(dev) && !z->format;
	z->b = (struct backing){.fd = -1, .block = ZONE_BLOCK, .can_punch = true};
	ret = z->format ? check_geometry(z) : 0;
	if (!ret && z->file && z->format && access(z->file, F_OK) < 0) {
		/* With a first block, for the backing to open. */
		fd = open(z->file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
		ret = fd < 0 || ftruncate(fd, ZONE_BLOCK) ? -errno : close(fd);
	}
	if (!ret && z->file) {
		ret = backing_open(&z->b, dev, &want);
	} else if (!ret) {
		z->b.fd = memfd_create("ubd-zoned", MFD_CLOEXEC);
		ret = z->b.fd < 0 ? -errno : ubd_device_add_fd(dev, z->b.fd);
	}
	ret = ret ?: open_image(z);
	if (!ret)
		return 0;
	z->failed = fail(z, ret, "cannot open %s: %s", z->file ?: "memory", strerror(-ret));
	if (fd >= 0)
		unlink(z->file);
	/* What a killed server left in it is for the next try. */
	if (z->live_is_new)
		unlink(z->live_path);
	free(z->live_path);
	z->live_path = NULL;
	image_close(dev, z);
	return ret;
}

void image_close(struct ubd_device *dev, void *self)
{
	struct zoned *z = self;

	(void)dev;
	image_flush(z, NULL);
	if (z->live_path)
		unlink(z->live_path);
	if (z->state && z->state != MAP_FAILED)
		munmap(z->state, z->durable->copy.len);
	if (z->map && z->map != MAP_FAILED)
		munmap(z->map, z->geo.size);
	free(z->live_path);
	free(z->zone_lock);
	free(z->copies);
	backing_close(&z->b);
}
