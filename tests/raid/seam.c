/* SPDX-License-Identifier: MIT */
/* The wrapped calls, faults in them, and what they were. */
#define _GNU_SOURCE
#include "seam.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <ubd/target.h>

#include "disk.h"

#define SECTOR 512u

int __real_ubd_io_transfer(struct ubd_io *io, const struct ubd_transfer *t, unsigned n);
ssize_t __real_ubd_pread(struct ubd_queue *q, int fd, void *buf, size_t len, uint64_t pos);
ssize_t __real_ubd_pwrite(struct ubd_queue *q, int fd, const void *buf, size_t len, uint64_t pos,
			  unsigned flags);
int __real_ubd_fsync(struct ubd_queue *q, int fd, bool data_only);
int __real_ubd_fallocate(struct ubd_queue *q, int fd, int mode, uint64_t pos, uint64_t len);
ssize_t __real_pwrite(int fd, const void *buf, size_t len, off_t pos);
int __real_fdatasync(int fd);
ssize_t __real_pread64(int fd, void *buf, size_t len, off_t pos);
int __wrap_ubd_io_transfer(struct ubd_io *io, const struct ubd_transfer *t, unsigned n);
int __wrap_ubd_io_finish(struct ubd_io *io, const struct ubd_transfer *t, unsigned n);
ssize_t __wrap_ubd_pread(struct ubd_queue *q, int fd, void *buf, size_t len, uint64_t pos);
ssize_t __wrap_ubd_pwrite(struct ubd_queue *q, int fd, const void *buf, size_t len, uint64_t pos,
			  unsigned flags);
int __wrap_ubd_fsync(struct ubd_queue *q, int fd, bool data_only);
int __wrap_ubd_fallocate(struct ubd_queue *q, int fd, int mode, uint64_t pos, uint64_t len);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t len, off_t pos);
int __wrap_fdatasync(int fd);
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t pos);

enum kind { WRITE, ZERO, SYNC };

struct event {
	enum kind kind;
	unsigned leg;
	uint64_t pos, len, start, end; /* end 0: not yet, or it failed */
	uint8_t *data;
	bool fua;
};

static struct leg {
	dev_t dev;
	ino_t ino;
	uint8_t *base;
	uint64_t size;
} legs[SEAM_LEGS];

static unsigned nr_legs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct event *events; /* with the lock */
static size_t count, room;
static struct seam_fault faults[SEAM_LEGS]; /* with the lock */
static uint64_t seed = 1;
static _Atomic bool recording, faulty;
static _Atomic uint64_t ticks;

void seam_leg(const char *path)
{
	struct leg *l = &legs[nr_legs];
	struct stat st;

	l->base = load(path, &l->size);
	if (stat(path, &st))
		die("cannot read %s", path);
	l->dev = st.st_dev;
	l->ino = st.st_ino;
	nr_legs++;
}

static int leg_of(int fd)
{
	struct stat st;

	if (!nr_legs || fstat(fd, &st))
		return -1;
	for (unsigned i = 0; i < nr_legs; i++)
		if (legs[i].dev == st.st_dev && legs[i].ino == st.st_ino)
			return (int)i;
	return -1;
}

/* ---- Faults -------------------------------------------------------------------------------- */

void seam_set_fault(unsigned leg, const struct seam_fault *fault)
{
	pthread_mutex_lock(&lock);
	faults[leg] = *fault;
	pthread_mutex_unlock(&lock);
	faulty = true;
}

/* Before a call on a leg. 0 or -errno. */
static int meet_fault(struct ubd_queue *q, int leg, bool read)
{
	struct seam_fault f;
	unsigned dice, stall;

	if (leg < 0 || !faulty)
		return 0;
	pthread_mutex_lock(&lock);
	f = faults[leg];
	dice = random_next(&seed) % 1000;
	stall = random_next(&seed) % 1000;
	pthread_mutex_unlock(&lock);
	if (f.reads_only && !read)
		return 0;
	if (stall < f.stall && q)
		ubd_sleep(q, f.stall_ms * 1000000ull);
	return dice < f.fail ? f.err : 0;
}

/* ---- Recording ----------------------------------------------------------------------------- */

void seam_record(bool on)
{
	recording = on;
}

uint64_t seam_tick(void)
{
	return atomic_fetch_add(&ticks, 1) + 1;
}

uint64_t seam_now(void)
{
	return ticks;
}

/* The number of the event, or -1. */
static ssize_t began(int leg, enum kind kind, const void *data, uint64_t pos, uint64_t len,
		     bool fua)
{
	struct event e = {.kind = kind, .leg = (unsigned)leg, .pos = pos, .len = len, .fua = fua};
	ssize_t nr;

	if (leg < 0 || !recording)
		return -1;
	if (kind == WRITE) {
		e.data = malloc(len);
		memcpy(e.data, data, len);
	}
	pthread_mutex_lock(&lock);
	if (count == room) {
		room = room ? room * 2 : 4096;
		events = realloc(events, room * sizeof(*events));
	}
	e.start = seam_tick();
	nr = (ssize_t)count++;
	events[nr] = e;
	pthread_mutex_unlock(&lock);
	return nr;
}

static void ended(ssize_t nr, bool good)
{
	if (nr < 0 || !good)
		return;
	pthread_mutex_lock(&lock);
	events[nr].end = seam_tick();
	pthread_mutex_unlock(&lock);
}

static void apply(struct leg *l, uint8_t *state, const struct event *e, bool torn, uint64_t *dice)
{
	for (uint64_t at = 0; at < e->len; at += SECTOR) {
		uint64_t n = e->len - at < SECTOR ? e->len - at : SECTOR;

		if (e->pos + at + n > l->size || (torn && random_next(dice) % 2))
			continue;
		if (e->kind == WRITE)
			memcpy(state + e->pos + at, e->data + at, n);
		else
			memset(state + e->pos + at, 0, n);
	}
}

uint8_t *seam_state(unsigned leg, uint64_t cut, enum seam_way way, uint64_t dice, uint64_t *size)
{
	struct leg *l = &legs[leg];
	uint8_t *state = malloc(l->size);
	uint64_t last_sync = 0;

	memcpy(state, l->base, l->size);
	*size = l->size;
	for (size_t i = 0; i < count; i++)
		if (events[i].leg == leg && events[i].kind == SYNC && events[i].end &&
		    events[i].end <= cut && events[i].start > last_sync)
			last_sync = events[i].start;
	/* In order: of two writes to a sector the disk never keeps the older for the newer. */
	for (size_t i = 0; i < count; i++) {
		const struct event *e = &events[i];
		bool over = e->end && e->end <= cut;

		if (e->leg != leg || e->kind == SYNC || e->start > cut)
			continue;
		if (over && (e->fua || e->end < last_sync))
			apply(l, state, e, false, &dice);
		else if (way == SEAM_ALL || (way == SEAM_SOME && random_next(&dice) % 2))
			apply(l, state, e, false, &dice);
		else if (way == SEAM_SECTORS)
			apply(l, state, e, true, &dice);
	}
	return state;
}

unsigned seam_syncs(unsigned leg)
{
	unsigned n = 0;

	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < count; i++)
		n += events[i].leg == leg && events[i].kind == SYNC && events[i].end;
	pthread_mutex_unlock(&lock);
	return n;
}

/* ---- The calls ----------------------------------------------------------------------------- */

#define MAX_TRANSFERS 64

int __wrap_ubd_io_transfer(struct ubd_io *io, const struct ubd_transfer *t, unsigned n)
{
	struct ubd_transfer real[MAX_TRANSFERS];
	ssize_t nr[MAX_TRANSFERS];
	unsigned m = 0, total = 0;
	int err = 0, ret = 0;

	if (!faulty && !recording)
		return __real_ubd_io_transfer(io, t, n);
	for (unsigned i = 0; i < n; i++) {
		int leg = leg_of(t[i].fd), fault = meet_fault(io->queue, leg, io->op == UBD_READ);
		uint8_t *data = NULL;

		if (fault) {
			err = fault;
			continue;
		}
		nr[m] = -1;
		if (io->op == UBD_WRITE && recording) {
			data = malloc(t[i].len);
			ubd_io_get(io, t[i].at, data, t[i].len);
			nr[m] = began(leg, WRITE, data, t[i].pos, t[i].len,
				      t[i].flags & UBD_XFER_FUA);
			free(data);
		}
		total += t[i].len;
		real[m++] = t[i];
	}
	/* As the real call: the others are carried out all the same. */
	if (m)
		ret = __real_ubd_io_transfer(io, real, m);
	for (unsigned i = 0; i < m; i++)
		ended(nr[i], ret >= 0);
	if (ret >= 0 && ret != (int)total)
		die("a transfer of %u bytes moved %d", total, ret);
	return err ? err : ret;
}

/* As the real one, where there is no kernel to finish anything. */
int __wrap_ubd_io_finish(struct ubd_io *io, const struct ubd_transfer *t, unsigned n)
{
	int ret = __wrap_ubd_io_transfer(io, t, n);

	if (ret < 0)
		io->error = ret;
	return ret;
}

ssize_t __wrap_ubd_pread(struct ubd_queue *q, int fd, void *buf, size_t len, uint64_t pos)
{
	int ret = meet_fault(q, leg_of(fd), true);

	return ret ? ret : __real_ubd_pread(q, fd, buf, len, pos);
}

ssize_t __wrap_ubd_pwrite(struct ubd_queue *q, int fd, const void *buf, size_t len, uint64_t pos,
			  unsigned flags)
{
	int leg = leg_of(fd), fault = meet_fault(q, leg, false);
	ssize_t nr, ret;

	if (fault)
		return fault;
	nr = began(leg, WRITE, buf, pos, len, flags & UBD_RW_FUA);
	ret = __real_ubd_pwrite(q, fd, buf, len, pos, flags);
	ended(nr, ret >= 0);
	return ret;
}

int __wrap_ubd_fsync(struct ubd_queue *q, int fd, bool data_only)
{
	int leg = leg_of(fd), ret = meet_fault(q, leg, false);
	ssize_t nr;

	if (ret)
		return ret;
	nr = began(leg, SYNC, NULL, 0, 0, false);
	ret = __real_ubd_fsync(q, fd, data_only);
	ended(nr, !ret);
	return ret;
}

int __wrap_ubd_fallocate(struct ubd_queue *q, int fd, int mode, uint64_t pos, uint64_t len)
{
	int leg = leg_of(fd), ret = meet_fault(q, leg, false);
	ssize_t nr;

	if (ret)
		return ret;
	nr = began(leg, ZERO, NULL, pos, len, false);
	ret = __real_ubd_fallocate(q, fd, mode, pos, len);
	ended(nr, !ret);
	return ret;
}

ssize_t __wrap_pwrite(int fd, const void *buf, size_t len, off_t pos)
{
	ssize_t nr = began(leg_of(fd), WRITE, buf, (uint64_t)pos, len, false), ret;

	ret = __real_pwrite(fd, buf, len, pos);
	ended(nr, ret >= 0);
	return ret;
}

int __wrap_fdatasync(int fd)
{
	ssize_t nr = began(leg_of(fd), SYNC, NULL, 0, 0, false);
	int ret = __real_fdatasync(fd);

	ended(nr, !ret);
	return ret;
}

/* Of the file named in the environment the first of the records cannot be read. */
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t pos)
{
	const char *unreadable = getenv("UBD_UNREADABLE");
	struct stat here, there;

	if (unreadable && len == 4096 && !pos && !fstat(fd, &here) && !stat(unreadable, &there) &&
	    here.st_ino == there.st_ino) {
		errno = EIO;
		return -1;
	}
	return __real_pread64(fd, buf, len, pos);
}
