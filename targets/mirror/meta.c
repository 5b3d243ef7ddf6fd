/* SPDX-License-Identifier: MIT */
/* A mirror's metadata: superblocks that take turns, and the bitmap of regions being written. */
#define _GNU_SOURCE
#include "mirror.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#define VERSION 1

static const char magic[8] = "UBDMIRR";

/* On disk, little endian, in a block of 4096 bytes whose rest is zero. */
struct disk_super {
	char magic[8];
	uint32_t version;
	uint32_t crc; /* CRC-32 of the block with this field zero */
	uint8_t uuid[16];
	uint64_t events, size, chunk, data;
	uint32_t legs, slot;
	uint64_t id[MIRROR_LEGS];
	uint8_t state[MIRROR_LEGS];
};

static uint32_t checksum(const uint8_t *block)
{
	struct disk_super d;
	uLong crc;

	memcpy(&d, block, sizeof(d));
	d.crc = 0;
	crc = crc32(0, (const Bytef *)&d, sizeof(d));
	return (uint32_t)crc32(crc, block + sizeof(d), META_BLOCK - sizeof(d));
}

static void encode(const struct super *s, unsigned slot, uint8_t *block)
{
	struct disk_super d = {
		.version = htole32(VERSION),
		.events = htole64(s->events),
		.size = htole64(s->size),
		.chunk = htole64(s->chunk),
		.data = htole64(DATA_BEGIN),
		.legs = htole32(s->legs),
		.slot = htole32(slot),
	};

	memcpy(d.magic, magic, sizeof(magic));
	memcpy(d.uuid, s->uuid, sizeof(d.uuid));
	for (unsigned i = 0; i < MIRROR_LEGS; i++) {
		d.id[i] = htole64(s->id[i]);
		d.state[i] = s->state[i];
	}
	memset(block, 0, META_BLOCK);
	memcpy(block, &d, sizeof(d));
	d.crc = htole32(checksum(block));
	memcpy(block, &d, sizeof(d));
}

/* 1: valid; 0: not ours, or torn; -EPROTONOSUPPORT: of another version. */
static int decode(const uint8_t *block, struct super *s)
{
	struct disk_super d;

	memcpy(&d, block, sizeof(d));
	if (memcmp(d.magic, magic, sizeof(magic)) != 0 || le32toh(d.crc) != checksum(block))
		return 0;
	if (le32toh(d.version) != VERSION || le64toh(d.data) != DATA_BEGIN)
		return -EPROTONOSUPPORT;
	*s = (struct super){
		.events = le64toh(d.events),
		.size = le64toh(d.size),
		.chunk = le64toh(d.chunk),
		.legs = le32toh(d.legs),
		.slot = le32toh(d.slot),
	};
	memcpy(s->uuid, d.uuid, sizeof(d.uuid));
	for (unsigned i = 0; i < MIRROR_LEGS; i++) {
		s->id[i] = le64toh(d.id[i]);
		s->state[i] = d.state[i];
	}
	return s->legs && s->legs <= MIRROR_LEGS && s->slot < s->legs && s->size &&
	       s->chunk >= META_BLOCK && !(s->chunk & (s->chunk - 1));
}

int super_read(struct mirror *m, const struct backing *b, struct super *s)
{
	struct super one;
	int found = 0;

	for (unsigned i = 0; i < 2; i++) {
		int ret = 0;

		if (pread(b->fd, m->out[0], META_BLOCK, i * META_BLOCK) == META_BLOCK)
			ret = decode(m->out[0], &one);
		if (ret < 0)
			return ubd_device_fail(
				m->dev, ret,
				"%s: the mirror's metadata is of a version that this "
				"ubd does not know",
				b->path);
		if (ret && (!found || one.events > s->events)) {
			*s = one;
			s->place = (uint8_t)i;
			found = 1;
		}
	}
	return found;
}

/* ---- The bitmap ---------------------------------------------------------------------------- */

/* Each 512 bytes: a checksum, seeded with the mirror's name and the place, and bits. */
static uint32_t sector_crc(const struct mirror *m, uint64_t sector, const uint8_t *data)
{
	uint64_t where = htole64(sector);
	uLong crc = crc32(0, m->super.uuid, sizeof(m->super.uuid));

	crc = crc32(crc, (const Bytef *)&where, sizeof(where));
	return (uint32_t)crc32(crc, data + 4, 508);
}

static uint8_t *map_byte(const struct mirror *m, uint64_t region, uint8_t *bit)
{
	uint64_t rest = region % SECTOR_BITS;

	*bit = (uint8_t)(1u << rest % 8);
	return m->map + region / SECTOR_BITS * 512 + 4 + rest / 8;
}

bool map_test(const struct mirror *m, uint64_t region)
{
	uint8_t bit;

	return *map_byte(m, region, &bit) & bit;
}

void map_set(struct mirror *m, uint64_t region, bool value)
{
	uint8_t bit, *byte = map_byte(m, region, &bit);

	*byte = (uint8_t)(value ? *byte | bit : *byte & ~bit);
	m->page[region / PAGE_BITS].changed++;
}

void map_touch(struct mirror *m)
{
	for (unsigned p = 0; p < m->pages; p++)
		m->page[p].changed++;
}

void map_read(struct mirror *m, const struct backing *b)
{
	uint8_t *block = m->out[0];

	for (uint64_t sector = 0; sector < m->pages * 8ull; sector++) {
		uint8_t *to = m->map + sector * 512, *from = block + sector % 8 * 512;
		uint32_t crc;

		if (sector % 8 == 0 && pread(b->fd, block, META_BLOCK,
					     (off_t)(MAP_BEGIN + sector * 512)) != META_BLOCK)
			memset(block, 0, META_BLOCK);
		memcpy(&crc, from, sizeof(crc));
		if (le32toh(crc) != sector_crc(m, sector, from))
			memset(from, 0xff, 512);
		for (unsigned i = 4; i < 512; i++)
			to[i] |= from[i];
	}
}

/* ---- Writing ------------------------------------------------------------------------------- */

struct put {
	struct mirror *m;
	uint64_t pos; /* of a page; 0: a superblock, where the leg's newest is not */
	unsigned failed;
	int err;
	bool flush; /* only that */
};

static int put_leg(struct ubd_queue *q, unsigned i, void *arg)
{
	struct put *p = arg;
	bool super = !p->flush && !p->pos;
	uint64_t pos = super ? (p->m->place[i] ^ 1u) * META_BLOCK : p->pos;
	int fd = p->m->leg[i]->fd;
	ssize_t ret = 0;

	if (q && p->flush)
		ret = ubd_fsync(q, fd, true);
	else if (q)
		ret = ubd_pwrite(q, fd, p->m->out[i], META_BLOCK, pos, UBD_RW_FUA);
	else if ((!p->flush && (ret = pwrite(fd, p->m->out[i], META_BLOCK, (off_t)pos)) < 0) ||
		 fdatasync(fd) < 0)
		ret = -errno;
	if (ret < 0 || (!p->flush && ret != META_BLOCK)) {
		p->failed |= 1u << i;
		p->err = ret < 0 ? (int)ret : -EIO;
	} else if (super) {
		p->m->place[i] ^= 1u;
	}
	return 0;
}

static int put(struct ubd_queue *q, struct put *p, unsigned mask)
{
	if (q)
		legs_each(q, mask, put_leg, p);
	for (unsigned i = 0; !q && i < MIRROR_LEGS; i++)
		if (mask >> i & 1)
			put_leg(NULL, i, p);
	return p->failed ? legs_failed(q, p->m, mask, p->failed, p->err) : 0;
}

int legs_flush(struct ubd_queue *q, struct mirror *m, unsigned mask)
{
	return put(q, &(struct put){.m = m, .flush = true}, mask);
}

int legs_failed(struct ubd_queue *q, struct mirror *m, unsigned told, unsigned failed, int err)
{
	mirror_lock(q, m);
	if (!(m->in_sync & told & ~failed)) {
		mirror_unlock(q, m);
		return err;
	}
	failed &= m->active;
	m->active &= ~failed;
	m->in_sync &= ~failed;
	m->saved.changed += failed != 0;
	for (unsigned i = 0; i < MIRROR_LEGS; i++)
		if (failed >> i & 1) {
			m->super.state[i] = LEG_OUT;
			ubd_device_notice(m->dev,
					  "%s failed (%s) and is left out of the mirror; the I/O "
					  "goes on with %d in sync",
					  m->leg[i]->path, strerror(-err),
					  __builtin_popcount(m->in_sync));
		}
	if (m->idle && q)
		ubd_cond_wake_one(q, &m->work);
	mirror_unlock(q, m);
	return 0;
}

int source_failed(struct ubd_queue *q, struct mirror *m, unsigned failed, unsigned good)
{
	int ret = legs_failed(q, m, good, failed, -EIO);

	return ret ? ret : super_commit(q, m);
}

/* With the lock `commit`. */
static int commit_page(struct ubd_queue *q, struct mirror *m, uint64_t page)
{
	struct put p = {.m = m, .pos = MAP_BEGIN + page * META_BLOCK};
	struct progress *done = &m->page[page];
	unsigned mask;
	uint64_t seq;
	int ret;

	mirror_lock(q, m);
	seq = done->changed;
	mask = m->active;
	if (done->durable == seq)
		mask = 0;
	for (unsigned i = 0; i < MIRROR_LEGS; i++)
		if (mask >> i & 1)
			memcpy(m->out[i], m->map + page * META_BLOCK, META_BLOCK);
	mirror_unlock(q, m);
	if (!mask)
		return 0;
	for (unsigned i = 0; i < MIRROR_LEGS; i++)
		for (unsigned s = 0; s < 8 && mask >> i & 1; s++) {
			uint8_t *at = m->out[i] + s * 512;
			uint32_t crc = htole32(sector_crc(m, page * 8 + s, at));

			memcpy(at, &crc, sizeof(crc));
		}
	ret = put(q, &p, mask);
	mirror_lock(q, m);
	if (!ret)
		done->durable = seq;
	mirror_unlock(q, m);
	return ret;
}

int map_commit(struct ubd_queue *q, struct mirror *m, uint64_t first, uint64_t last)
{
	int ret = 0;

	if (q)
		ubd_mutex_lock(q, &m->commit);
	for (uint64_t page = first; page <= last && !ret && !m->read_only; page++)
		ret = commit_page(q, m, page);
	if (q)
		ubd_mutex_unlock(q, &m->commit);
	return ret;
}

/* A leg that fails while it is told that another has failed makes for one more turn. */
int super_commit(struct ubd_queue *q, struct mirror *m)
{
	bool done = false;
	int ret = 0;

	if (q)
		ubd_mutex_lock(q, &m->commit);
	while (!ret && !done && !m->read_only) {
		struct put p = {.m = m};
		unsigned mask;
		uint64_t seq;

		mirror_lock(q, m);
		seq = m->saved.changed;
		done = m->saved.durable == seq;
		mask = done ? 0 : m->active;
		m->super.events += !done;
		for (unsigned i = 0; i < MIRROR_LEGS; i++)
			if (mask >> i & 1)
				encode(&m->super, i, m->out[i]);
		mirror_unlock(q, m);
		ret = mask ? put(q, &p, mask) : 0;
		mirror_lock(q, m);
		if (!ret && !done)
			m->saved.durable = seq;
		mirror_unlock(q, m);
	}
	if (q)
		ubd_mutex_unlock(q, &m->commit);
	return ret;
}

int meta_commit(struct ubd_queue *q, struct mirror *m)
{
	int ret = map_commit(q, m, 0, m->pages - 1);

	return ret ? ret : super_commit(q, m);
}

void region_sync(struct mirror *m, uint64_t region, uint8_t flags)
{
	struct region *r = &m->region[region];
	uint8_t fresh = (uint8_t)(flags & ~r->flags);

	r->flags |= flags;
	m->nr_sync += (fresh & R_SYNC) != 0;
	m->nr_differ += (fresh & R_DIFFER) != 0;
	if (m->sync_total < m->nr_sync)
		m->sync_total = m->nr_sync;
}
