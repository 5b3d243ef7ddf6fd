// SPDX-License-Identifier: MIT
/*
 * Every way a server can go, on every recovery mode, with the disk in full use: no I/O without an
 * end, none that brings other data than was written, and the device recovers or goes in time.
 */
#include "client.h"
#include "harness.h"
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RECOVER UBLK_F_USER_RECOVERY
#define REISSUE (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE)
#define FAIL_IO (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_FAIL_IO)

#define USERS 10U
#define BLOCK 4096U
#define BLOCKS 64U
/* Of the server's death, until the device is what its mode says. */
#define DEADLINE_MS 10000
#define ROUNDS 2

/* ---- Users ----------------------------------------------------------------------------------- */

struct user {
	char path[64];
	uint64_t at;
	uint32_t seed;
	atomic_uint *over;
};

struct block {
	uint32_t seed; /* of what was written last; 0: nothing yet */
	bool unsure;   /* a write failed: it may be anything */
};

struct tally {
	unsigned done;
	unsigned failed;
};

static bool is_right(struct block *b, const uint8_t *buf, uint64_t at)
{
	return b->unsure || pattern_check(buf, at, BLOCK, b->seed) < 0;
}

static long one_io(int fd, struct job *job, const struct user *u, struct block *blocks, unsigned n)
{
	unsigned i = n * 7 % BLOCKS;
	uint64_t at = u->at + (uint64_t)i * BLOCK;
	bool write = n & 1;
	long res;

	if (write)
		pattern_fill(job->data, at, BLOCK, u->seed + n);
	else
		memset(job->data, 0xee, BLOCK);
	res = write ? pwrite(fd, job->data, BLOCK, (off_t)at)
		    : pread(fd, job->data, BLOCK, (off_t)at);
	if (res == BLOCK && write)
		blocks[i] = (struct block){.seed = u->seed + n};
	else if (write)
		blocks[i].unsure = true;
	else if (res == BLOCK && !is_right(&blocks[i], job->data, at))
		return -EBADMSG;
	return res == BLOCK;
}

/* Writes and reads its own blocks until the case says so. Returns -EBADMSG for wrong data. */
static long use_the_disk(struct job *job)
{
	const struct user *u = (const struct user *)job->arg;
	struct tally *tally = (struct tally *)(job->data + JOB_DATA_BYTES - sizeof(*tally));
	struct block blocks[BLOCKS] = {{0}};
	int fd = open(u->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	unsigned n = 0;
	long res;

	*tally = (struct tally){0};
	if (fd < 0)
		return -errno;
	while (!atomic_load(u->over)) {
		res = one_io(fd, job, u, blocks, n++);
		if (res < 0)
			return res;
		if (res)
			tally->done++;
		else if (tally->failed++ > 20)
			sleep_ms(20); /* it fails at once, for as long as there is no server */
	}
	close(fd);
	return 0;
}

struct crowd {
	struct job *job[USERS];
	atomic_uint *over;
};

static void crowd_begin(struct crowd *c, const struct dev *dev, uint32_t seed)
{
	c->over = shared_alloc(sizeof(*c->over));
	atomic_store(c->over, 0);
	for (unsigned i = 0; i < USERS; i++) {
		struct user u = {
			.at = (uint64_t)i * BLOCKS * BLOCK,
			.seed = seed + i * 100000,
			.over = c->over,
		};

		memcpy(u.path, dev_block_path(dev), sizeof(u.path));
		c->job[i] = job_new(use_the_disk, &u, sizeof(u));
		job_start(c->job[i]);
	}
}

static struct tally crowd_tally(const struct crowd *c)
{
	struct tally sum = {0};

	for (unsigned i = 0; i < USERS; i++) {
		const uint8_t *end = c->job[i]->data + JOB_DATA_BYTES;
		const struct tally *t = (const struct tally *)(end - sizeof(*t));

		sum.done += t->done;
		sum.failed += t->failed;
	}
	return sum;
}

/* All of them are at work: each has got this many more done. */
static void crowd_works(const struct crowd *c, unsigned more)
{
	unsigned from = crowd_tally(c).done;
	uint64_t until = now_ms() + 20000;

	while (crowd_tally(c).done < from + more * USERS) {
		REQUIRE(now_ms() < until, "the users get no further than %u",
			crowd_tally(c).done - from);
		sleep_ms(5);
	}
}

static struct tally crowd_end(struct crowd *c)
{
	struct tally sum;

	atomic_store(c->over, 1);
	for (unsigned i = 0; i < USERS; i++) {
		long res = 0;
		int ret = job_wait(c->job[i], 20000, &res);

		REQUIRE(ret != JOB_RUNNING, "an I/O does not end");
		CHECK(ret == 0 && res == 0, "user %u: %s", i, conform_errname(ret ? ret : res));
		job_put(c->job[i]);
	}
	sum = crowd_tally(c);
	return sum;
}

/* ---- Ends ------------------------------------------------------------------------------------ */

static void by_kill(struct server *s)
{
	server_kill(s);
}

static void by_thread(struct server *s)
{
	s->dying_queue = 1;
	s->dying_how = DIE_THREAD;
	atomic_store(&s->die, true);
	sleep_ms(400);
	server_kill(s);
}

static void by_ring(struct server *s)
{
	s->dying_queue = 1;
	s->dying_how = DIE_RING;
	atomic_store(&s->die, true);
	sleep_ms(400);
	server_kill(s);
}

static void by_exec(struct server *s)
{
	s->dying_queue = 1;
	s->dying_how = DIE_EXEC;
	atomic_store(&s->die, true);
	/* Its place is taken: what it had open is closed. */
}

static void by_fork(struct server *s)
{
	uint64_t until = now_ms() + 10000;

	s->dying_queue = 1;
	s->dying_how = DIE_FORK;
	atomic_store(&s->die, true);
	while (!atomic_load(&s->child)) {
		REQUIRE(now_ms() < until, "the server does not fork");
		sleep_ms(2);
	}
	server_kill(s);
	sleep_ms(300);
	kill((pid_t)atomic_load(&s->child), SIGKILL);
}

static void by_stop(struct server *s)
{
	server_signal(s, SIGSTOP);
	sleep_ms(300);
	server_kill(s);
}

/* ---- The storm ------------------------------------------------------------------------------- */

static void take_over(struct server *s, struct server *next)
{
	long res = dev_cmd(s->dev, UBLK_U_CMD_START_USER_RECOVERY, 0, NULL, 0);

	RESULT_REQUIRED("start-recovery", res, 0);
	next->store = s->store;
	server_start(next);
	res = dev_cmd(s->dev, UBLK_U_CMD_END_USER_RECOVERY, (uint64_t)server_pid(next), NULL, 0);
	RESULT_REQUIRED("end-recovery", res, 0);
}

static void end_and_see(uint64_t flags, void (*end)(struct server *s))
{
	struct server *s = server_up(dev_new(flags, 2, 4)), *next = server_new(s->dev);
	struct crowd crowd;
	struct tally sum;
	int state = UBLK_S_DEV_QUIESCED;

	if (!(flags & UBLK_F_USER_RECOVERY))
		state = UBLK_S_DEV_DEAD;
	else if (flags & UBLK_F_USER_RECOVERY_FAIL_IO)
		state = UBLK_S_DEV_FAIL_IO;
	crowd_begin(&crowd, s->dev, 1);
	crowd_works(&crowd, 5);
	end(s);
	REQUIRE(dev_wait_state(s->dev, state, DEADLINE_MS), "state %d, not %d", dev_state(s->dev),
		state);
	if (state == UBLK_S_DEV_DEAD) {
		crowd_end(&crowd);
		dev_del(s->dev);
	} else {
		take_over(s, next);
		crowd_works(&crowd, 5);
		sum = crowd_end(&crowd);
		CHECK(!(flags & UBLK_F_USER_RECOVERY_REISSUE) || !sum.failed,
		      "%u I/Os failed, though the next server was to get them", sum.failed);
		server_down(next);
	}
	if (end == by_exec)
		server_kill(s);
}

static void storm(uint64_t flags, void (*end)(struct server *s))
{
	conform_need_group("storm");
	conform_need_features(flags);
	for (unsigned i = 0; i < ROUNDS; i++)
		end_and_see(flags, end);
}

#define STORM(how)                                      \
	CASE_LIMIT(storm_##how##_without_recovery, 120) \
	{                                               \
		storm(0, by_##how);                     \
	}                                               \
	CASE_LIMIT(storm_##how##_recovery, 120)         \
	{                                               \
		storm(RECOVER, by_##how);               \
	}                                               \
	CASE_LIMIT(storm_##how##_reissue, 120)          \
	{                                               \
		storm(REISSUE, by_##how);               \
	}                                               \
	CASE_LIMIT(storm_##how##_fail_io, 120)          \
	{                                               \
		storm(FAIL_IO, by_##how);               \
	}

STORM(kill)
STORM(thread)
STORM(ring)
STORM(exec)
STORM(fork)
STORM(stop)

/* Not an end at all: I/O waits, and goes on. */
CASE_LIMIT(storm_stop_and_continue, 60)
{
	struct server *s = server_up(dev_new(0, 2, 4));
	struct crowd crowd;
	struct tally sum;

	crowd_begin(&crowd, s->dev, 1);
	for (unsigned i = 0; i < 3; i++) {
		crowd_works(&crowd, 3);
		server_signal(s, SIGSTOP);
		sleep_ms(700);
		server_signal(s, SIGCONT);
	}
	crowd_works(&crowd, 3);
	sum = crowd_end(&crowd);
	CHECK(!sum.failed, "%u I/Os failed", sum.failed);
	server_down(s);
}
