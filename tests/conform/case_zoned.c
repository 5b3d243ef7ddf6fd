// SPDX-License-Identifier: MIT
/*
 * ZONED: the report that START_DEV asks for, and zone operations as they reach the server.
 */
#include "client.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/blkzoned.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define ZONE_SECTORS 2048U
#define NR_ZONES (DEV_BYTES / SECTOR / ZONE_SECTORS)

static int report(const uint64_t *write_pointers, struct server_io *io)
{
	struct blk_zone zones[64];
	unsigned first = (unsigned)(io->iod->start_sector / ZONE_SECTORS), nr = io->iod->nr_zones;
	ssize_t n;

	memset(zones, 0, sizeof(zones));
	if (nr > 64)
		nr = 64;
	for (unsigned i = 0; i < nr && first + i < NR_ZONES; i++) {
		struct blk_zone *z = &zones[i];

		z->start = (uint64_t)(first + i) * ZONE_SECTORS;
		z->len = z->capacity = ZONE_SECTORS;
		z->wp = write_pointers[first + i];
		z->type = BLK_ZONE_TYPE_SEQWRITE_REQ;
		z->cond = z->wp == z->start	       ? BLK_ZONE_COND_EMPTY
			  : z->wp == z->start + z->len ? BLK_ZONE_COND_FULL
						       : BLK_ZONE_COND_IMP_OPEN;
	}
	n = pwrite(io->q->fd, zones, nr * sizeof(zones[0]),
		   ioq_data_offset(io->q->q_id, io->tag, 0));
	return n < 0 ? -errno : (int)n;
}

static enum server_answer zoned(struct server *s, struct server_io *io)
{
	unsigned z = (unsigned)(io->iod->start_sector / ZONE_SECTORS);
	uint64_t *write_pointers = s->priv;

	io->res = 0;
	switch (ublksrv_get_op(io->iod)) {
	case UBLK_IO_OP_REPORT_ZONES:
		io->res = report(write_pointers, io);
		return ANSWER_RESULT;
	case UBLK_IO_OP_ZONE_RESET:
		write_pointers[z] = (uint64_t)z * ZONE_SECTORS;
		return ANSWER_RESULT;
	case UBLK_IO_OP_ZONE_RESET_ALL:
		for (unsigned i = 0; i < NR_ZONES; i++)
			write_pointers[i] = (uint64_t)i * ZONE_SECTORS;
		return ANSWER_RESULT;
	case UBLK_IO_OP_ZONE_FINISH:
		write_pointers[z] = (uint64_t)(z + 1) * ZONE_SECTORS;
		return ANSWER_RESULT;
	case UBLK_IO_OP_ZONE_OPEN:
	case UBLK_IO_OP_ZONE_CLOSE:
		return ANSWER_RESULT;
	case UBLK_IO_OP_WRITE:
		if (io->iod->start_sector != write_pointers[z])
			atomic_fetch_add(&s->custom[0], 1);
		write_pointers[z] = io->iod->start_sector + io->iod->nr_sectors;
		return ANSWER_STORE;
	}
	return ANSWER_STORE;
}

static struct server *zoned_up(void)
{
	struct dev *dev = dev_new(UBLK_F_ZONED | UBLK_F_USER_COPY, 1, 8);
	uint64_t *write_pointers;
	struct server *s;
	long res;

	conform_need_features(UBLK_F_ZONED | UBLK_F_USER_COPY);
	write_pointers = shared_alloc(NR_ZONES * sizeof(*write_pointers));
	for (unsigned i = 0; i < NR_ZONES; i++)
		write_pointers[i] = (uint64_t)i * ZONE_SECTORS;
	dev->params.types |= UBLK_PARAM_TYPE_ZONED;
	dev->params.basic.chunk_sectors = ZONE_SECTORS;
	dev->params.zoned.max_zone_append_sectors = 256;
	dev->params.zoned.max_open_zones = 4;
	dev->params.zoned.max_active_zones = 8;
	dev_add(dev);
	s = server_new(dev);
	s->hook = zoned;
	s->priv = write_pointers;
	server_start(s);
	res = dev_cmd(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s), NULL, 0);
	RESULT_REQUIRED("start-zoned", res, 0);
	return s;
}

struct zone_call {
	char path[64];
	unsigned long request;
	uint64_t sector;
	uint64_t sectors;
};

static long run_zone_call(struct job *job)
{
	const struct zone_call *c = (const struct zone_call *)job->arg;
	int fd = open(c->path, O_RDWR | O_CLOEXEC);
	long res;

	if (fd < 0)
		return -errno;
	if (c->request == BLKREPORTZONE) {
		struct blk_zone_report *r = (struct blk_zone_report *)job->data;

		memset(r, 0, sizeof(*r));
		r->sector = c->sector;
		r->nr_zones = (uint32_t)c->sectors;
		res = ioctl(fd, c->request, r);
		res = res < 0 ? -errno : (long)r->nr_zones;
	} else {
		struct blk_zone_range range = {c->sector, c->sectors};

		res = ioctl(fd, c->request, &range);
		res = res < 0 ? -errno : res;
	}
	close(fd);
	return res;
}

static long zone_call(struct server *s, unsigned long request, uint64_t sector, uint64_t sectors,
		      struct blk_zone *first)
{
	struct zone_call c = {.request = request, .sector = sector, .sectors = sectors};
	struct job *job;
	long res = 0;

	memcpy(c.path, dev_block_path(s->dev), sizeof(c.path));
	job = job_new(run_zone_call, &c, sizeof(c));
	job_start(job);
	REQUIRE(job_wait(job, 10000, &res) == 0, "a zone command does not end");
	if (first)
		memcpy(first, ((struct blk_zone_report *)job->data)->zones, sizeof(*first));
	job_put(job);
	return res;
}

CASE(zoned_start_and_sysfs)
{
	struct server *s = zoned_up();

	CHECK(server_find(s, UBLK_IO_OP_REPORT_ZONES, 0) != NULL, "START_DEV asked for no report");
	CHECK(dev_sysfs(s->dev, "queue/nr_zones") == (long long)NR_ZONES, "%lld zones",
	      dev_sysfs(s->dev, "queue/nr_zones"));
	CHECK(dev_sysfs(s->dev, "queue/chunk_sectors") == ZONE_SECTORS, "zones of %lld",
	      dev_sysfs(s->dev, "queue/chunk_sectors"));
	CHECK(dev_sysfs(s->dev, "queue/max_open_zones") == 4, "%lld open zones",
	      dev_sysfs(s->dev, "queue/max_open_zones"));
	CHECK(dev_sysfs(s->dev, "queue/max_active_zones") == 8, "%lld active zones",
	      dev_sysfs(s->dev, "queue/max_active_zones"));
	CHECK(dev_sysfs(s->dev, "queue/zone_append_max_bytes") == 256 * 512, "append of %lld",
	      dev_sysfs(s->dev, "queue/zone_append_max_bytes"));
	server_down(s);
}

CASE(zoned_report)
{
	struct server *s = zoned_up();
	struct blk_zone z;

	CHECK(io_write(s->dev, ZONE_SECTORS * SECTOR, 65536, 1) == 65536, "write failed");
	server_forget(s);
	RESULT("report-all", zone_call(s, BLKREPORTZONE, 0, NR_ZONES, &z), (long)NR_ZONES);
	CHECK(z.start == 0 && z.len == ZONE_SECTORS && z.wp == 0, "zone 0 differs");
	RESULT("report-from-1", zone_call(s, BLKREPORTZONE, ZONE_SECTORS, 3, &z), 3);
	CHECK(z.start == ZONE_SECTORS && z.wp == ZONE_SECTORS + 128, "zone 1: write pointer %llu",
	      (unsigned long long)z.wp);
	CHECK(server_find(s, UBLK_IO_OP_REPORT_ZONES, ZONE_SECTORS) != NULL,
	      "no report from zone 1 on");
	server_down(s);
}

CASE(zoned_management)
{
	struct server *s = zoned_up();
	uint64_t zone2 = 2 * ZONE_SECTORS;
	static const struct {
		unsigned long request;
		unsigned op;
	} calls[] = {
		{BLKOPENZONE, UBLK_IO_OP_ZONE_OPEN},
		{BLKCLOSEZONE, UBLK_IO_OP_ZONE_CLOSE},
		{BLKFINISHZONE, UBLK_IO_OP_ZONE_FINISH},
		{BLKRESETZONE, UBLK_IO_OP_ZONE_RESET},
	};

	CHECK(io_write(s->dev, zone2 * SECTOR, 4096, 1) == 4096, "write failed");
	for (unsigned i = 0; i < 4; i++) {
		RESULT("zone-management", zone_call(s, calls[i].request, zone2, ZONE_SECTORS, NULL),
		       0);
		CHECK(server_count(s, calls[i].op, (int64_t)zone2) == 1,
		      "operation %u did not come once", calls[i].op);
	}
	RESULT("zone-reset-all", zone_call(s, BLKRESETZONE, 0, NR_ZONES * ZONE_SECTORS, NULL), 0);
	CHECK(server_count(s, UBLK_IO_OP_ZONE_RESET_ALL, -1) +
			      server_count(s, UBLK_IO_OP_ZONE_RESET, -1) >=
		      2,
	      "no reset of all zones came");
	RESULT("zone-management-unaligned",
	       zone_call(s, BLKRESETZONE, zone2 + 1, ZONE_SECTORS, NULL), -EINVAL);
	server_down(s);
}

CASE(zoned_data)
{
	struct server *s = zoned_up();

	for (unsigned i = 0; i < 8; i++)
		CHECK(io_write(s->dev, 4ULL * ZONE_SECTORS * SECTOR + i * 65536, 65536, i + 1) ==
			      65536,
		      "write %u failed", i);
	for (unsigned i = 0; i < 8; i++)
		CHECK(io_verify(s->dev, 4ULL * ZONE_SECTORS * SECTOR + i * 65536, 65536, i + 1) ==
			      65536,
		      "read %u failed or differs", i);
	CHECK(atomic_load(&s->custom[0]) == 0, "%u writes off the write pointer",
	      atomic_load(&s->custom[0]));
	server_down(s);
}

/* The block layer's maps of the zones do not grow: it would look beyond them. */
CASE(zoned_update_size)
{
	struct server *s;
	long res;

	conform_need_features(UBLK_F_UPDATE_SIZE);
	s = zoned_up();
	res = dev_cmd(s->dev, UBLK_U_CMD_UPDATE_SIZE, 64 * (DEV_BYTES / SECTOR), NULL, 0);
	RESULT("update-size-zoned", res, -EOPNOTSUPP);
	CHECK(dev_sysfs(s->dev, "size") == (long long)(DEV_BYTES / SECTOR), "size %lld",
	      dev_sysfs(s->dev, "size"));
	server_down(s);
}

/* A server that cannot report its zones gets no disk, and can be deleted. */
static enum server_answer no_report(struct server *s, struct server_io *io)
{
	(void)s;
	io->res = ublksrv_get_op(io->iod) == UBLK_IO_OP_REPORT_ZONES ? -EIO : 0;
	return ANSWER_RESULT;
}

CASE(zoned_report_fails_at_start)
{
	struct dev *dev = dev_new(UBLK_F_ZONED | UBLK_F_USER_COPY, 1, 8);
	struct server *s;
	long res;

	conform_need_features(UBLK_F_ZONED | UBLK_F_USER_COPY);
	dev->params.types |= UBLK_PARAM_TYPE_ZONED;
	dev->params.basic.chunk_sectors = ZONE_SECTORS;
	dev->params.zoned.max_zone_append_sectors = 256;
	dev_add(dev);
	s = server_new(dev);
	s->hook = no_report;
	server_start(s);
	res = dev_cmd(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s), NULL, 0);
	CHECK(res < 0, "START_DEV succeeded without a report");
	CHECK(!dev_has_disk(dev), "a disk without a report");
	server_kill(s);
	dev_del(dev);
}
