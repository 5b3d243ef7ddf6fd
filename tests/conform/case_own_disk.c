// SPDX-License-Identifier: MIT
/*
 * A server that waits for the disk that it serves itself, in a read or in a command, and that dies.
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

/* In custom[]. */
enum {
	HOLD_READS, /* set: reads are not answered */
	WAIT_NOW,   /* set: do what makes it wait */
	CHAR_FD,    /* the open char device */
	COMMAND,    /* what it waits in; 0: a read of the disk */
};

static long read_own_disk(struct server *s)
{
	static uint8_t buf[4096] __attribute__((aligned(4096)));
	int fd = open(dev_block_path(s->dev), O_RDONLY | O_DIRECT | O_CLOEXEC);

	return fd < 0 ? -errno : pread(fd, buf, sizeof(buf), AT);
}

/* leave: only begin it. */
static long wait_in_command(struct server *s, bool leave)
{
	struct ctrl c = {.op = atomic_load(&s->custom[COMMAND]), .id = s->dev->id, .leave = leave};

	return c.op ? ctrl_direct(&c) : read_own_disk(s);
}

static long serve_all_but_reads(struct server *s, int fd, bool for_ever)
{
	struct ioq q;
	struct ioq_cqe cqe;

	if (ioq_open(&q, s->dev, fd, 0))
		return -EIO;
	ioq_fetch_all(&q);
	atomic_store(&s->queues_ready, 1);
	while (for_ever || !atomic_load(&s->custom[WAIT_NOW])) {
		if (ioq_wait(&q, &cqe, 20) || cqe.res != UBLK_IO_RES_OK)
			continue;
		if (atomic_load(&s->custom[HOLD_READS]) &&
		    ublksrv_get_op(&q.desc[cqe.tag]) == UBLK_IO_OP_READ)
			atomic_fetch_add(&s->held, 1);
		else
			ioq_commit(&q, cqe.tag, (int)(q.desc[cqe.tag].nr_sectors * SECTOR));
	}
	return 0;
}

static void *serve_for_ever(void *arg)
{
	struct server *s = arg;

	serve_all_but_reads(s, (int)atomic_load(&s->custom[CHAR_FD]), true);
	return NULL;
}

static void *serve_and_leave(void *arg)
{
	struct server *s = arg;

	if (!serve_all_but_reads(s, (int)atomic_load(&s->custom[CHAR_FD]), false))
		wait_in_command(s, true);
	return NULL;
}

/* One thread serves, the other waits. */
static long another_waits(struct server *s, int fd)
{
	pthread_t id;

	atomic_store(&s->custom[CHAR_FD], (unsigned)fd);
	if (pthread_create(&id, NULL, serve_for_ever, s))
		return -EAGAIN;
	while (!atomic_load(&s->custom[WAIT_NOW]))
		sleep_ms(5);
	return wait_in_command(s, false);
}

/* The only thread waits. */
static long server_waits(struct server *s, int fd)
{
	return serve_all_but_reads(s, fd, false) ?: wait_in_command(s, false);
}

/* The thread that serves begins the command and ends; the process lives on. */
static long thread_leaves(struct server *s, int fd)
{
	pthread_t id;

	atomic_store(&s->custom[CHAR_FD], (unsigned)fd);
	if (pthread_create(&id, NULL, serve_and_leave, s))
		return -EAGAIN;
	pthread_join(id, NULL);
	atomic_store(&s->release, true);
	for (;;)
		pause();
}

static struct server *up(uint64_t flags, long (*body)(struct server *s, int fd))
{
	struct server *s;

	conform_need_group("own_disk");
	conform_need_features(flags);
	s = server_up_with_body(flags, body);
	atomic_store(&s->custom[HOLD_READS], 1);
	return s;
}

/* From outside, when the server is to wait in a command. */
static struct job *hold_a_read(struct server *s)
{
	struct job *io = io_begin(s->dev, IO_READ, AT, 4096);

	while (!atomic_load(&s->held))
		sleep_ms(5);
	return io;
}

/* Its own I/O keeps the process from its end, and its end is what would end the I/O. */
static void killed_while_it_waits(uint64_t flags, long (*body)(struct server *s, int fd),
				  uint32_t command)
{
	struct server *s = up(flags, body);
	struct job *io = NULL;

	atomic_store(&s->custom[COMMAND], command);
	if (command)
		io = hold_a_read(s);
	atomic_store(&s->custom[WAIT_NOW], 1);
	sleep_ms(400);
	CHECK(atomic_load(&s->held) == 1, "%u reads are held", atomic_load(&s->held));
	CHECK(!job_ended(s->job), "the server did not wait");
	server_kill(s);
	if (io)
		CHECK(io_end(io) < 0, "a read that nobody served succeeded");
	if (command != UBLK_U_CMD_DEL_DEV)
		dev_del(s->dev);
	else
		while (!access(dev_char_path(s->dev), F_OK)) /* what was begun goes on */
			sleep_ms(5);
}

CASE(bug_killed_while_it_reads_its_own_disk)
{
	killed_while_it_waits(0, another_waits, 0);
}

CASE(bug_killed_while_it_stops_its_own_device)
{
	killed_while_it_waits(0, another_waits, UBLK_U_CMD_STOP_DEV);
}

CASE(bug_killed_while_it_stops_its_own_device_recovery)
{
	killed_while_it_waits(RECOVER, another_waits, UBLK_U_CMD_STOP_DEV);
}

CASE(bug_killed_while_its_only_thread_stops_its_own_device)
{
	killed_while_it_waits(0, server_waits, UBLK_U_CMD_STOP_DEV);
}

CASE(bug_killed_while_its_only_thread_stops_its_own_device_recovery)
{
	killed_while_it_waits(RECOVER, server_waits, UBLK_U_CMD_STOP_DEV);
}

CASE(bug_killed_while_its_only_thread_deletes_its_own_device)
{
	killed_while_it_waits(0, server_waits, UBLK_U_CMD_DEL_DEV);
}

/* The thread that serves gives a command that waits for its own requests, and ends. */
static struct server *thread_ends_in(uint32_t command)
{
	struct server *s = up(0, thread_leaves);
	struct job *io = hold_a_read(s);

	atomic_store(&s->custom[COMMAND], command);
	atomic_store(&s->custom[WAIT_NOW], 1);
	CHECK(io_end(io) < 0, "a read that nobody served succeeded");
	for (unsigned ms = 0; !atomic_load(&s->release) && ms < 5000; ms += 5)
		sleep_ms(5);
	CHECK(atomic_load(&s->release), "the thread did not end");
	return s;
}

/* Its command is no longer in the way, and what it began goes on. */
CASE(bug_thread_ends_while_it_stops_its_own_device)
{
	struct server *s = thread_ends_in(UBLK_U_CMD_STOP_DEV);

	CHECK(!job_ended(s->job), "the process ended");
	RESULT("STOP_DEV again", dev_cmd(s->dev, UBLK_U_CMD_STOP_DEV, 0, NULL, 0), 0);
	server_kill(s);
	dev_del(s->dev);
}

/* Nobody asks a second time: it is done although who asked did not wait. */
CASE(bug_thread_ends_while_it_deletes_its_own_device)
{
	struct server *s = thread_ends_in(UBLK_U_CMD_DEL_DEV);

	server_kill(s);
	for (unsigned ms = 0; !access(dev_char_path(s->dev), F_OK) && ms < 5000; ms += 5)
		sleep_ms(5);
	CHECK(access(dev_char_path(s->dev), F_OK), "the device is still there");
}
