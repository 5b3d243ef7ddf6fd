// SPDX-License-Identifier: MIT
/*
 * A server, a thread of which waits for the disk that its own process serves, and that is killed.
 */
#include "client.h"
#include "ctrl.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#define RECOVER UBLK_F_USER_RECOVERY
#define AT (2ULL << 20)

static long read_own_disk(struct server *s)
{
	static uint8_t buf[4096] __attribute__((aligned(4096)));
	int fd = open(dev_block_path(s->dev), O_RDONLY | O_DIRECT | O_CLOEXEC);

	return fd < 0 ? -errno : pread(fd, buf, sizeof(buf), AT);
}

static void *serve_all_but_reads(void *arg)
{
	struct server *s = arg;
	struct ioq q;
	struct ioq_cqe cqe;

	if (ioq_open(&q, s->dev, (int)atomic_load(&s->custom[2]), 0))
		return NULL;
	ioq_fetch_all(&q);
	atomic_store(&s->queues_ready, 1);
	for (;;) {
		if (ioq_wait(&q, &cqe, 20) || cqe.res != UBLK_IO_RES_OK)
			continue;
		if (atomic_load(&s->custom[0]) &&
		    ublksrv_get_op(&q.desc[cqe.tag]) == UBLK_IO_OP_READ)
			atomic_fetch_add(&s->held, 1);
		else
			ioq_commit(&q, cqe.tag, (int)(q.desc[cqe.tag].nr_sectors * SECTOR));
	}
}

/* One thread serves; custom[3]: the other stops the device, or else reads the disk. */
static long wait_for_itself(struct server *s, int fd)
{
	struct ctrl stop = {.op = UBLK_U_CMD_STOP_DEV, .id = s->dev->id};
	pthread_t id;

	atomic_store(&s->custom[2], (unsigned)fd);
	if (pthread_create(&id, NULL, serve_all_but_reads, s))
		return -EAGAIN;
	while (!atomic_load(&s->custom[1]))
		sleep_ms(5);
	return atomic_load(&s->custom[3]) ? ctrl_direct(&stop) : read_own_disk(s);
}

/* The process cannot end before its own I/O has, nor can its files be closed: somebody must look.
 */
static void killed_while_it_waits(uint64_t flags, bool stops)
{
	struct server *s;
	struct job *io = NULL;

	conform_need_group("own_disk");
	conform_need_features(flags);
	s = server_up_with_body(flags, wait_for_itself);
	atomic_store(&s->custom[3], stops);
	atomic_store(&s->custom[0], 1);
	if (stops)
		io = io_begin(s->dev, IO_READ, AT, 4096);
	while (stops && !atomic_load(&s->held))
		sleep_ms(5);
	atomic_store(&s->custom[1], 1);
	sleep_ms(400);
	CHECK(atomic_load(&s->held) == 1, "%u reads are held", atomic_load(&s->held));
	CHECK(!job_ended(s->job), "the server did not wait");
	server_kill(s);
	if (io)
		CHECK(io_end(io) < 0, "a read that nobody served succeeded");
	dev_del(s->dev);
}

CASE(bug_killed_while_it_stops_its_own_device)
{
	killed_while_it_waits(0, true);
}

CASE(bug_killed_while_it_stops_its_own_device_recovery)
{
	killed_while_it_waits(RECOVER, true);
}

CASE(bug_killed_while_it_reads_its_own_disk)
{
	killed_while_it_waits(0, false);
}
