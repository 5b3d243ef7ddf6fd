// SPDX-License-Identifier: MIT
/*
 * INTEGRITY: protection information that the block layer makes and checks, and the server keeps.
 */
#include "client.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define PI_BYTES 8U
#define PI_CAP_INTEGRITY (1U << 0)
#define PI_CAP_REFTAG (1U << 1)
#define PI_CSUM_CRC16 2
#define AT (4ULL << 20)

static off_t pi_offset(const struct server_io *io, uint64_t offset)
{
	return ioq_data_offset(io->q->q_id, io->tag, offset) | (off_t)UBLKSRV_IO_INTEGRITY_FLAG;
}

/* custom[0]: requests without the flag; custom[1]: transfers of another length. */
static enum server_answer keep_pi(struct server *s, struct server_io *io)
{
	uint8_t *pi = (uint8_t *)s->priv + io->iod->start_sector * PI_BYTES;
	size_t bytes = io->iod->nr_sectors * PI_BYTES;
	unsigned op = ublksrv_get_op(io->iod);
	ssize_t n = 0;

	if (op != UBLK_IO_OP_READ && op != UBLK_IO_OP_WRITE)
		return ANSWER_STORE;
	if (!(io->iod->op_flags & UBLK_IO_F_INTEGRITY))
		atomic_fetch_add(&s->custom[0], 1);
	if (op == UBLK_IO_OP_WRITE)
		n = pread(io->q->fd, pi, bytes, pi_offset(io, 0));
	else
		n = pwrite(io->q->fd, pi, bytes, pi_offset(io, 0));
	if (n != (ssize_t)bytes)
		atomic_fetch_add(&s->custom[1], 1);
	return ANSWER_STORE;
}

static struct server *pi_up(void)
{
	struct dev *dev = dev_new(UBLK_F_INTEGRITY | UBLK_F_USER_COPY, 1, 8);
	struct server *s;
	long res;

	conform_need_features(UBLK_F_INTEGRITY | UBLK_F_USER_COPY);
	dev->params.types |= UBLK_PARAM_TYPE_INTEGRITY;
	dev->params.integrity = (struct ublk_param_integrity){
		.flags = PI_CAP_INTEGRITY | PI_CAP_REFTAG,
		.interval_exp = 9,
		.metadata_size = PI_BYTES,
		.csum_type = PI_CSUM_CRC16,
	};
	dev_add(dev);
	s = server_new(dev);
	s->priv = shared_alloc(DEV_BYTES / SECTOR * PI_BYTES);
	/* All ones: not to be checked. */
	memset(s->priv, 0xff, DEV_BYTES / SECTOR * PI_BYTES);
	s->hook = keep_pi;
	server_start(s);
	res = dev_cmd(dev, UBLK_U_CMD_START_DEV, (uint64_t)server_pid(s), NULL, 0);
	RESULT_REQUIRED("start-integrity", res, 0);
	return s;
}

CASE(integrity_data)
{
	struct server *s = pi_up();
	uint8_t *pi = (uint8_t *)s->priv + AT / SECTOR * PI_BYTES;
	unsigned blank = 0;

	CHECK(io_write(s->dev, AT, 16384, 3) == 16384, "write failed");
	for (unsigned i = 0; i < 32 * PI_BYTES; i += PI_BYTES)
		blank += pi[i] == 0xff && pi[i + 1] == 0xff && pi[i + 4] == 0xff;
	CHECK(blank == 0, "%u sectors came without protection information", blank);
	CHECK(io_verify(s->dev, AT, 16384, 3) == 16384, "read failed or differs");
	CHECK(io_verify(s->dev, AT + 4096, 512, 3) == 512, "read of one sector failed");
	CHECK(atomic_load(&s->custom[0]) == 0, "%u requests without the flag",
	      atomic_load(&s->custom[0]));
	CHECK(atomic_load(&s->custom[1]) == 0, "%u transfers of another length",
	      atomic_load(&s->custom[1]));
	server_down(s);
}

CASE(integrity_corruption_is_found)
{
	struct server *s = pi_up();
	uint8_t *pi = (uint8_t *)s->priv + AT / SECTOR * PI_BYTES;

	CHECK(io_write(s->dev, AT, 4096, 3) == 4096, "write failed");
	pi[2 * PI_BYTES] ^= 1;
	RESULT("corrupt-protection-information", io_run(s->dev, IO_READ, AT, 4096), -EILSEQ);
	pi[2 * PI_BYTES] ^= 1;
	s->store[AT + 1000] ^= 1;
	RESULT("corrupt-data", io_run(s->dev, IO_READ, AT, 4096), -EILSEQ);
	s->store[AT + 1000] ^= 1;
	RESULT("sound-again", io_verify(s->dev, AT, 4096, 3), 4096);
	server_down(s);
}

static enum server_answer bad_places(struct server *s, struct server_io *io)
{
	size_t bytes = io->iod->nr_sectors * PI_BYTES;
	uint8_t buf[64];
	ssize_t n;

	if (ublksrv_get_op(io->iod) != UBLK_IO_OP_WRITE)
		return keep_pi(s, io);
	n = pread(io->q->fd, buf, 8, pi_offset(io, bytes + 1));
	atomic_store(&s->custom[2], (unsigned)(n < 0 ? errno : 0));
	n = pwrite(io->q->fd, buf, 8, pi_offset(io, 0));
	atomic_store(&s->custom[3], (unsigned)(n < 0 ? errno : 0));
	n = pread(io->q->fd, buf, 64, pi_offset(io, bytes - 8));
	atomic_store(&s->custom[4], (unsigned)n);
	return keep_pi(s, io);
}

CASE(integrity_bad_places)
{
	struct server *s = pi_up();

	s->hook = bad_places;
	CHECK(io_write(s->dev, AT, 4096, 3) == 4096, "write failed");
	RESULT("integrity-beyond-the-end", atomic_load(&s->custom[2]), EINVAL);
	RESULT("integrity-wrong-direction", atomic_load(&s->custom[3]), EACCES);
	RESULT("integrity-over-the-end", atomic_load(&s->custom[4]), 8);
	server_down(s);
}

static enum server_answer not_granted(struct server *s, struct server_io *io)
{
	uint8_t buf[8];

	if (ublksrv_get_op(io->iod) == UBLK_IO_OP_WRITE)
		atomic_store(&s->custom[2],
			     pread(io->q->fd, buf, 8, pi_offset(io, 0)) < 0 ? (unsigned)errno : 0);
	return ANSWER_STORE;
}

CASE(integrity_not_granted)
{
	struct server *s;

	conform_need_features(UBLK_F_INTEGRITY);
	s = server_up(dev_new(UBLK_F_USER_COPY, 1, 4));
	s->hook = not_granted;
	CHECK(io_write(s->dev, AT, 4096, 3) == 4096, "write failed");
	RESULT("integrity-not-granted", atomic_load(&s->custom[2]), EINVAL);
	server_down(s);
}
