// SPDX-License-Identifier: MIT
/*
 * Data that the server moves itself: USER_COPY by pread and pwrite, and NEED_GET_DATA.
 */
#include "client.h"
#include "hand.h"
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMIT UBLK_U_IO_COMMIT_AND_FETCH_REQ
#define GET_DATA UBLK_U_IO_NEED_GET_DATA
#define AT (1ULL << 20)

static uint8_t buf[16384] __attribute__((aligned(4096)));

static long get(const struct hand *h, unsigned q_id, unsigned tag, uint64_t off, size_t bytes)
{
	ssize_t n = pread(h->fd, buf, bytes, ioq_data_offset(q_id, tag, off));

	return n < 0 ? -errno : n;
}

static long put(const struct hand *h, unsigned q_id, unsigned tag, uint64_t off, size_t bytes)
{
	ssize_t n = pwrite(h->fd, buf, bytes, ioq_data_offset(q_id, tag, off));

	return n < 0 ? -errno : n;
}

CASE(user_copy_write)
{
	struct hand h;
	const struct ublksrv_io_desc *iod;
	struct job *io;
	unsigned tag;

	conform_need_features(UBLK_F_USER_COPY);
	hand_up(&h, dev_new(UBLK_F_USER_COPY, 1, 4));
	io = io_begin_seeded(h.dev, IO_WRITE, AT, 8192, 6);
	tag = ioq_next(&h.q, &iod);
	CHECK(iod->addr == 0, "the descriptor has an address");
	RESULT("user-copy-read-whole", get(&h, 0, tag, 0, 8192), 8192);
	CHECK(pattern_check(buf, AT, 8192, 6) < 0, "the data differs");
	RESULT("user-copy-read-part", get(&h, 0, tag, 1000 * 8, 96), 96);
	CHECK(pattern_check(buf, AT + 8000, 96, 6) < 0, "the part differs");
	RESULT("user-copy-read-one-byte", get(&h, 0, tag, 8191, 1), 1);
	RESULT("user-copy-over-the-end", get(&h, 0, tag, 8000, 512), 192);
	RESULT("user-copy-at-the-end", get(&h, 0, tag, 8192, 512), 0);
	RESULT("user-copy-beyond-the-end", get(&h, 0, tag, 8193, 512), -EINVAL);
	RESULT("user-copy-wrong-direction", put(&h, 0, tag, 0, 512), -EACCES);
	ioq_commit(&h.q, tag, 8192);
	CHECK(io_end(io) == 8192, "the write failed");
	RESULT("user-copy-after-commit", get(&h, 0, tag, 0, 512), -EINVAL);
	hand_down(&h);
}

CASE(user_copy_read)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	conform_need_features(UBLK_F_USER_COPY);
	hand_up(&h, dev_new(UBLK_F_USER_COPY, 1, 4));
	io = io_begin(h.dev, IO_READ, AT, 8192);
	tag = ioq_next(&h.q, NULL);
	RESULT("user-copy-wrong-direction", get(&h, 0, tag, 0, 512), -EACCES);
	/* In odd pieces, back to front. */
	for (int off = 7168; off >= 0; off -= 1024) {
		pattern_fill(buf, AT + (uint64_t)off, 1024, 8);
		RESULT("user-copy-write-part", put(&h, 0, tag, (uint64_t)off, 1024), 1024);
	}
	RESULT("user-copy-write-over-the-end", put(&h, 0, tag, 8192, 512), 0);
	RESULT("user-copy-write-beyond-the-end", put(&h, 0, tag, 8193, 512), -EINVAL);
	ioq_commit(&h.q, tag, 8192);
	REQUIRE(job_wait(io, 5000, NULL) == 0 && io->result == 8192, "the read failed");
	CHECK(pattern_check(io->data, AT, 8192, 8) < 0, "the data differs");
	hand_down(&h);
}

CASE(user_copy_bad_places)
{
	void *nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct hand h;
	struct job *io;
	unsigned tag;

	conform_need_features(UBLK_F_USER_COPY);
	hand_open(&h, dev_new(UBLK_F_USER_COPY, 1, 4));
	RESULT("user-copy-before-start", get(&h, 0, 0, 0, 512), -EACCES);
	ioq_fetch_all(&h.q);
	ioq_start_dev(&h.q);
	io = io_begin(h.dev, IO_WRITE, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("user-copy-bad-queue", get(&h, 1, tag, 0, 512), -EINVAL);
	RESULT("user-copy-last-queue", get(&h, 4095, tag, 0, 512), -EINVAL);
	RESULT("user-copy-bad-tag", get(&h, 0, 4, 0, 512), -EINVAL);
	RESULT("user-copy-last-tag", get(&h, 0, 65535, 0, 512), -EINVAL);
	RESULT("user-copy-idle-tag", get(&h, 0, (tag + 1) % 4, 0, 512), -EINVAL);
	RESULT("user-copy-last-offset", get(&h, 0, tag, UBLK_IO_BUF_BITS_MASK, 512), -EINVAL);
	RESULT("user-copy-below-the-area", pread(h.fd, buf, 512, 0) < 0 ? -errno : 0, -EINVAL);
	CHECK(pread(h.fd, nowhere, 512, ioq_data_offset(0, tag, 0)) <= 0,
	      "data went to a bad address");
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the write failed");
	io = io_begin(h.dev, IO_FLUSH, 0, 0);
	tag = ioq_next(&h.q, NULL);
	RESULT("user-copy-no-data", get(&h, 0, tag, 0, 512), -EINVAL);
	ioq_commit(&h.q, tag, 0);
	CHECK(io_end(io) == 0, "the flush failed");
	hand_down(&h);
}

CASE(user_copy_not_granted)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	hand_up(&h, dev_new(0, 1, 4));
	io = io_begin(h.dev, IO_WRITE, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("user-copy-not-granted", get(&h, 0, tag, 0, 512), -EACCES);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the write failed");
	hand_down(&h);
}

struct copier {
	const struct hand *h;
	unsigned tag;
	long res;
};

static void *copy_elsewhere(void *arg)
{
	struct copier *c = arg;

	c->res = get(c->h, 0, c->tag, 0, 4096);
	return NULL;
}

CASE(user_copy_from_another_thread_and_process)
{
	struct hand h;
	struct copier c;
	struct job *io;
	pthread_t id;
	int status = -1;
	pid_t pid;

	conform_need_features(UBLK_F_USER_COPY);
	hand_up(&h, dev_new(UBLK_F_USER_COPY, 1, 4));
	io = io_begin_seeded(h.dev, IO_WRITE, AT, 4096, 2);
	c = (struct copier){.h = &h, .tag = ioq_next(&h.q, NULL)};
	pthread_create(&id, NULL, copy_elsewhere, &c);
	pthread_join(id, NULL);
	RESULT("user-copy-other-thread", c.res, 4096);
	CHECK(pattern_check(buf, AT, 4096, 2) < 0, "the data differs");
	pid = fork();
	if (pid == 0)
		_exit(get(&h, 0, c.tag, 0, 4096) == 4096 ? 0 : 1);
	waitpid(pid, &status, 0);
	RESULT("user-copy-other-process", status, 0);
	ioq_commit(&h.q, c.tag, 4096);
	CHECK(io_end(io) == 4096, "the write failed");
	hand_down(&h);
}

/* ---- NEED_GET_DATA ------------------------------------------------------------------------ */

static unsigned next_get_data(struct hand *h)
{
	struct ioq_cqe cqe;

	REQUIRE(ioq_wait(&h->q, &cqe, 5000) == 0, "no request comes");
	RESULT_REQUIRED("get-data-announced", cqe.res, UBLK_IO_RES_NEED_GET_DATA);
	return cqe.tag;
}

CASE(get_data_write)
{
	struct hand h;
	struct ioq_cqe cqe;
	struct job *io;
	unsigned tag;

	conform_need_features(UBLK_F_NEED_GET_DATA);
	hand_up(&h, dev_new(UBLK_F_NEED_GET_DATA, 1, 2));
	io = io_begin_seeded(h.dev, IO_WRITE, AT, 4096, 5);
	tag = next_get_data(&h);
	CHECK(ublksrv_get_op(&h.q.desc[tag]) == UBLK_IO_OP_WRITE, "not a write");
	CHECK(h.q.desc[tag].nr_sectors == 8, "%u sectors", h.q.desc[tag].nr_sectors);
	RESULT("get-data-commit-first",
	       ioq_refused(&h.q, COMMIT, 0, (uint16_t)tag, 4096, ioq_addr(&h.q, tag)), -EINVAL);
	ioq_sqe(&h.q, GET_DATA, 0, (uint16_t)tag, 0, (uint64_t)(uintptr_t)buf);
	ioq_submit(&h.q);
	REQUIRE(ioq_wait(&h.q, &cqe, 5000) == 0, "the data does not come");
	RESULT("get-data", cqe.res, 0);
	CHECK(h.q.desc[tag].addr == (uint64_t)(uintptr_t)buf, "the descriptor has another address");
	CHECK(pattern_check(buf, AT, 4096, 5) < 0, "the data differs");
	RESULT("get-data-twice",
	       ioq_refused(&h.q, GET_DATA, 0, (uint16_t)tag, 0, (uint64_t)(uintptr_t)buf), -EINVAL);
	ioq_commit(&h.q, tag, 4096);
	CHECK(io_end(io) == 4096, "the write failed");
	hand_down(&h);
}

CASE(get_data_not_owned)
{
	struct hand h;

	conform_need_features(UBLK_F_NEED_GET_DATA);
	hand_open(&h, dev_new(UBLK_F_NEED_GET_DATA, 1, 2));
	RESULT("get-data-before-fetch", ioq_refused(&h.q, GET_DATA, 0, 0, 0, ioq_addr(&h.q, 0)),
	       -EINVAL);
	ioq_fetch_all(&h.q);
	ioq_start_dev(&h.q);
	RESULT("get-data-idle", ioq_refused(&h.q, GET_DATA, 0, 0, 0, ioq_addr(&h.q, 0)), -EBUSY);
	RESULT("get-data-bad-tag", ioq_refused(&h.q, GET_DATA, 0, 2, 0, ioq_addr(&h.q, 0)),
	       -EINVAL);
	hand_down(&h);
}

/* Fetching needs no buffer then; a read gets its with the commit. */
CASE(get_data_without_buffers)
{
	struct hand h;
	struct job *io;
	unsigned tag;

	conform_need_features(UBLK_F_NEED_GET_DATA);
	hand_open(&h, dev_new(UBLK_F_NEED_GET_DATA, 1, 1));
	ioq_sqe(&h.q, UBLK_U_IO_FETCH_REQ, 0, 0, 0, 0);
	ioq_submit(&h.q);
	ioq_start_dev(&h.q);
	io = io_begin(h.dev, IO_READ, AT, 4096);
	tag = ioq_next(&h.q, NULL);
	RESULT("get-data-read-no-buffer", ioq_refused(&h.q, COMMIT, 0, (uint16_t)tag, 4096, 0),
	       -EINVAL);
	pattern_fill(buf, AT, 4096, 3);
	ioq_sqe(&h.q, COMMIT, 0, (uint16_t)tag, 4096, (uint64_t)(uintptr_t)buf);
	ioq_submit(&h.q);
	REQUIRE(job_wait(io, 5000, NULL) == 0 && io->result == 4096, "the read failed");
	CHECK(pattern_check(io->data, AT, 4096, 3) < 0, "the data differs");
	hand_down(&h);
}

CASE(get_data_server_ends_in_between)
{
	struct hand h;
	struct job *io;

	conform_need_features(UBLK_F_NEED_GET_DATA);
	hand_up(&h, dev_new(UBLK_F_NEED_GET_DATA, 1, 2));
	io = io_begin(h.dev, IO_WRITE, AT, 4096);
	next_get_data(&h);
	ioq_close(&h.q);
	close(h.fd);
	CHECK(io_end(io) == -EIO, "the write did not fail");
	dev_stop(h.dev);
	dev_del(h.dev);
}
