/* SPDX-License-Identifier: MIT */
/* The process that serves a device: what it tells, whom it obeys, how it ends. */
#define _GNU_SOURCE
#include "server.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "command.h"
#include "json.h"
#include "notify.h"
#include "say.h"
#include "server_state.h"
#include "state.h"

/* How long a start may go on after it was interrupted, when the kernel has no device yet. */
#define GIVE_UP_MS 2000

struct server {
	const struct add_request *request;
	struct ubd_device *dev;
	int report_fd;
	pthread_t watcher;
	sigset_t signals;
	struct command_server commands;

	pthread_mutex_t lock; /* for what follows */
	bool started;
	bool stop_wanted;
	bool ending;
	struct state_stats *page;
	json_object *state; /* as in its file */
};

/* ---- Telling ------------------------------------------------------------------------------ */

static atomic_bool detached;

void server_notice(void *arg, const char *line)
{
	(void)arg;
	if (atomic_load(&detached))
		syslog(LOG_WARNING, "%s", line);
	else
		say_note("%s", line);
}

/* The whole text, or an error: -EPIPE when nobody waits for it any more. */
static int report(int fd, char kind, const char *text)
{
	size_t len = strlen(text);
	ssize_t n = write(fd, &kind, 1);

	while (n > 0 && len) {
		n = write(fd, text, len);
		if (n > 0) {
			text += n;
			len -= (size_t)n;
		}
	}
	return n > 0 ? 0 : -errno;
}

static void report_failed(const struct server *s, const char *sentence)
{
	if (s->report_fd < 0)
		say_failed("%s", sentence);
	else
		report(s->report_fd, SERVER_FAILED, sentence);
}

/* From here on nobody watches: hold no terminal, pipe or directory of the adder's. */
static void detach(void)
{
	int fd = open("/dev/null", O_RDWR);

	openlog("ubd", LOG_PID, LOG_DAEMON);
	fflush(NULL);
	atomic_store(&detached, true);
	if (fd < 0)
		return;
	for (int std = 0; std <= 2; std++)
		dup2(fd, std);
	if (fd > 2)
		close(fd);
}

static void hang_up(struct server *s)
{
	close(s->report_fd);
	s->report_fd = -1;
}

static int report_ready(struct server *s, json_object *state)
{
	const char *text = s->request->json ? json_text(state) : ubd_device_path(s->dev);
	int ret;

	/* A relative path in a later message of the target's is of no use to anybody. */
	if (chdir("/") < 0)
		return -errno;
	if (s->report_fd < 0) {
		puts(text);
		if (fflush(stdout))
			return -errno;
		notify_manager("READY=1");
		return 0;
	}
	detach();
	ret = report(s->report_fd, SERVER_READY, text);
	hang_up(s);
	return ret;
}

/* Make the device known: state, counters, and the adder. 0 or -errno after saying why. */
static int announce(struct server *s)
{
	unsigned id = (unsigned)ubd_device_id(s->dev);
	json_object *state = server_state(s->request, s->dev);
	struct state_stats *page = NULL;
	int ret = state_write(id, state);
	char *why;

	if (!ret) {
		page = state_stats_create(id);
		ret = page ? command_server_start(&s->commands, s->dev) : -errno;
	}
	if (ret) {
		why = say_format("cannot write the state of %s: %s", ubd_device_path(s->dev),
				 strerror(-ret));
		report_failed(s, why);
		free(why);
		/* A disk that was there before goes on all the same. */
		if (s->request->config.take_over && s->report_fd >= 0) {
			detach();
			hang_up(s);
		}
	} else {
		struct ubd_stats none = {0};

		state_stats_publish(page, &none);
		pthread_mutex_lock(&s->lock);
		s->page = page;
		pthread_mutex_unlock(&s->lock);
		ret = report_ready(s, state);
	}
	/* The watcher's from now on. */
	pthread_mutex_lock(&s->lock);
	s->state = state;
	pthread_mutex_unlock(&s->lock);
	return ret;
}

/* ---- Obeying ------------------------------------------------------------------------------ */

/* Whether the kernel already has a device of ours: its char device is open then. */
static bool device_made(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *entry;
	bool made = false;

	while (d && !made && (entry = readdir(d))) {
		char target[64];
		ssize_t n = readlinkat(dirfd(d), entry->d_name, target, sizeof(target) - 1);

		target[n > 0 ? n : 0] = '\0';
		/* The control device means that a command may be under way: it has a bound. */
		made = strncmp(target, "/dev/ublk", 9) == 0;
	}
	if (d)
		closedir(d);
	return made;
}

/*
 * Interrupted while starting. Everything about the driver is bounded and undone by the library;
 * only the target's opening may last for ever, and then there is nothing to undo.
 */
static void leave_start(struct server *s)
{
	const struct timespec pause = {.tv_nsec = 50000000};
	bool over = false;

	for (int ms = 0; ms < GIVE_UP_MS && !over; ms += 50) {
		nanosleep(&pause, NULL);
		pthread_mutex_lock(&s->lock);
		over = s->started || s->ending;
		pthread_mutex_unlock(&s->lock);
	}
	if (over || device_made())
		return;
	report_failed(s, "interrupted while the target was opening; nothing was added");
	_exit(EXIT_FAILED);
}

static void stop_disk(struct server *s)
{
	int ret = ubd_device_stop(s->dev);
	char *line;

	if (!ret || ret == -ENODEV)
		return;
	line = say_format("%s does not stop: %s; ubd del --force ends it", ubd_device_path(s->dev),
			  ret == -ETIMEDOUT ? "I/O is still in flight" : strerror(-ret));
	server_notice(NULL, line);
	free(line);
}

/* What the target says of itself goes into the state, when it has changed. */
static void publish_status(struct server *s)
{
	json_object *fresh, *old = NULL;

	if (!s->state)
		return;
	fresh = server_status(s->dev);
	json_object_object_get_ex(s->state, "status", &old);
	if (json_object_equal(fresh, old)) {
		json_object_put(fresh);
		return;
	}
	json_object_object_add(s->state, "status", fresh);
	state_write((unsigned)ubd_device_id(s->dev), s->state);
}

static void publish(struct server *s)
{
	struct ubd_stats stats;

	if (!s->page)
		return;
	ubd_device_stats(s->dev, &stats);
	state_stats_publish(s->page, &stats);
	publish_status(s);
}

/* Signals and the counters' clock; ends when s->ending is set and a signal comes. */
static void *watch(void *arg)
{
	const struct timespec second = {.tv_sec = 1};
	struct server *s = arg;

	for (;;) {
		int sig = sigtimedwait(&s->signals, NULL, &second);
		bool ending, started;

		pthread_mutex_lock(&s->lock);
		ending = s->ending;
		started = s->started;
		if (sig > 0)
			s->stop_wanted = true;
		else if (!ending)
			publish(s);
		pthread_mutex_unlock(&s->lock);
		if (ending)
			return NULL;
		if (sig > 0 && started)
			stop_disk(s);
		else if (sig > 0)
			leave_start(s);
	}
}

static int start_watching(struct server *s)
{
	sigemptyset(&s->signals);
	sigaddset(&s->signals, SIGINT);
	sigaddset(&s->signals, SIGTERM);
	/* A terminal that closes ends what runs in its foreground, and nothing else. */
	if (s->report_fd < 0)
		sigaddset(&s->signals, SIGHUP);
	else
		signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	/* Threads made from now on inherit this: the watcher alone takes signals. */
	pthread_sigmask(SIG_BLOCK, &s->signals, NULL);
	return -pthread_create(&s->watcher, NULL, watch, s);
}

static void end_watching(struct server *s)
{
	pthread_mutex_lock(&s->lock);
	s->ending = true;
	s->page = NULL;
	pthread_mutex_unlock(&s->lock);
	pthread_kill(s->watcher, SIGTERM);
	pthread_join(s->watcher, NULL);
	json_object_put(s->state);
	s->state = NULL;
}

/* An attribute of the disk's queue. */
static int open_attribute(unsigned id, const char *name, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/ublkb%u/queue/%s", id, name);
	return open(path, flags | O_CLOEXEC);
}

static bool is_zoned(unsigned id)
{
	int fd = open_attribute(id, "zoned", O_RDONLY);
	char word[8] = "";
	bool no = fd >= 0 && read(fd, word, sizeof(word) - 1) > 0 && !strncmp(word, "none", 4);

	if (fd >= 0)
		close(fd);
	return !no;
}

/*
 * No I/O scheduler, as the kernel's loop has none: mq-deadline, which the kernel's own driver
 * leaves to a disk of one queue, hands requests over one by one, and each wakes the server. A zoned
 * disk needs it. Where it is not allowed it stays as it is.
 */
static void take_scheduler_away(unsigned id)
{
	int fd = is_zoned(id) ? -1 : open_attribute(id, "scheduler", O_WRONLY);

	if (fd < 0)
		return;
	if (write(fd, "none", 4) < 0)
		syslog(LOG_DEBUG, "ublkb%u keeps its I/O scheduler: %m", id);
	close(fd);
}

/* ---- Serving ------------------------------------------------------------------------------ */

/* From started to stopped. Returns the exit code. */
static int serve(struct server *s)
{
	unsigned id = (unsigned)ubd_device_id(s->dev);
	/* A disk that was there before goes on, whoever still wants to hear of that. */
	bool keep = s->request->config.take_over, interrupted;
	int ret = 0;

	pthread_mutex_lock(&s->lock);
	s->started = true;
	interrupted = s->stop_wanted && !keep;
	pthread_mutex_unlock(&s->lock);
	if (interrupted) {
		report_failed(s, "interrupted; nothing was added");
		ret = -EINTR;
	} else {
		take_scheduler_away(id);
		ret = announce(s);
	}
	if (ret && !keep) {
		stop_disk(s);
		ubd_device_wait(s->dev);
	} else {
		ret = ubd_device_wait(s->dev);
		if (ret) {
			char *line =
				say_format("%s broke: %s", ubd_device_path(s->dev), strerror(-ret));
			server_notice(NULL, line);
			free(line);
		}
	}
	notify_manager("STOPPING=1");
	command_server_stop(&s->commands);
	end_watching(s);
	/* While the number is still ours: whoever gets it next writes files of the same name. */
	if (!interrupted)
		state_remove(id);
	return ret ? EXIT_FAILED : 0;
}

/*
 * Memory may be reclaimed through our own device, and then our code must not have to be read from a
 * disk first. Where locking is limited even mmap() would fail later: what the library locks itself
 * has to do.
 */
static void stay_in_memory(void)
{
	struct rlimit limit;

	if (geteuid() == 0 ||
	    (!getrlimit(RLIMIT_MEMLOCK, &limit) && limit.rlim_cur == RLIM_INFINITY)) {
		/* What is mapped is read in now, what comes later stays once it is touched. */
		mlockall(MCL_CURRENT);
		mlockall(MCL_FUTURE | MCL_ONFAULT);
	}
}

int server_run(const struct add_request *request, struct ubd_device *dev, int report_fd)
{
	struct server s = {
		.request = request,
		.dev = dev,
		.report_fd = report_fd,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.commands = {.fd = -1},
	};
	int ret, code = EXIT_FAILED;

	stay_in_memory();
	ret = start_watching(&s);
	if (ret) {
		report_failed(&s, "cannot start a thread");
	} else {
		ret = ubd_device_start(dev);
		if (ret == 0) {
			code = serve(&s);
		} else {
			end_watching(&s);
			report_failed(&s, ubd_device_error(dev));
		}
	}
	ubd_device_free(dev);
	return code;
}
