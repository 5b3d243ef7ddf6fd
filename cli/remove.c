/* SPDX-License-Identifier: MIT */
/*
 * Taking one device away, with its server, within a bound.
 *
 * Stop the disk; its server then ends and deletes the device. What the server does not do (it is
 * dead, stuck, or another program) is done here. The number may be given to a new device at any
 * moment after the deletion: view_birth() tells it apart.
 */
#define _GNU_SOURCE
#include "remove.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <time.h>
#include <unistd.h>

#include "holders.h"
#include "json.h"
#include "say.h"
#include "state.h"
#include "view.h"

/* An opener that is passing (udev's probe, a partition tool) is given this long. */
#define PASSING_MS 2000
#define PAUSE_MS 20

struct job {
	struct ubd_ctrl *ctrl;
	const struct removal *how;
	struct view v;
	int server_fd; /* pidfd; -1: has ended, or is not ours to wait for */
};

static void pause_a_little(void)
{
	poll(NULL, 0, PAUSE_MS);
}

/* poll(NULL, …) alone ends early when the waiting line is printed. */
static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static bool still_there(const struct job *job)
{
	struct ublksrv_ctrl_dev_info info;

	/* Where /sys is not to be seen nothing tells it from the next of its number. */
	if (!job->v.birth)
		return !ubd_ctrl_info(job->ctrl, job->v.id, &info);
	return view_birth(job->v.id) == job->v.birth;
}

/* ---- Is it free? -------------------------------------------------------------------------- */

static int say_busy(const struct job *job, const char *holders)
{
	return say_failed(
		"del: /dev/ublkb%u is in use: %s; end that first, or take the device away "
		"regardless with ubd del --force %u",
		job->v.id, holders, job->v.id);
}

static int check_unused(const struct job *job)
{
	uint64_t end = now_ms() + PASSING_MS;
	bool lasting = false;
	char *holders;
	int code;

	say_waiting("whoever has /dev/ublkb%u open", job->v.id);
	while ((holders = holders_of(job->v.id, &lasting)) && !lasting && now_ms() < end) {
		free(holders);
		pause_a_little();
	}
	say_waited();
	if (!holders)
		return 0;
	code = say_busy(job, holders);
	free(holders);
	return code;
}

/* ---- The server --------------------------------------------------------------------------- */

/* The ids of other devices of the same process; "" when there are none. */
static char *other_devices(const struct job *job)
{
	char *text = say_format("%s", "");
	unsigned *ids;
	int n = view_ids(&ids);

	for (int i = 0; i < n; i++) {
		struct ublksrv_ctrl_dev_info info;
		char *longer;

		if (ids[i] == job->v.id || ubd_ctrl_info(job->ctrl, ids[i], &info) ||
		    info.ublksrv_pid != job->v.server.pid)
			continue;
		longer = say_format("%s /dev/ublkb%u", text, ids[i]);
		free(text);
		text = longer;
	}
	free(ids);
	return text;
}

/* true when the server has ended before the time is over. */
static bool server_ends(const struct job *job, unsigned ms)
{
	struct pollfd p = {.fd = job->server_fd, .events = POLLIN};
	uint64_t end = now_ms() + ms, now;

	if (job->server_fd < 0)
		return true;
	say_waiting("the server of /dev/ublkb%u (%s, process %d) to end", job->v.id,
		    job->v.server.name, (int)job->v.server.pid);
	while (!p.revents && (now = now_ms()) < end)
		poll(&p, 1, (int)(end - now));
	say_waited();
	return p.revents != 0;
}

static int kill_server(struct job *job)
{
	const struct process *server = &job->v.server;
	char *others = other_devices(job);
	int code = 0;

	if (job->server_fd < 0)
		job->server_fd = process_open(server);
	if (*others)
		code = say_failed("del: process %d (%s) is not killed for /dev/ublkb%u, because it "
				  "also serves%s; end it yourself",
				  (int)server->pid, server->name, job->v.id, others);
	else if (job->server_fd >= 0 && pidfd_send_signal(job->server_fd, SIGKILL, NULL, 0) < 0 &&
		 errno != ESRCH)
		code = say_failed(
			"del: cannot kill the server of /dev/ublkb%u (%s, process %d): %s",
			job->v.id, server->name, (int)server->pid, strerror(errno));
	else if (!server_ends(job, job->how->wait * 1000))
		code = say_failed("del: the server of /dev/ublkb%u (%s, process %d) was killed but "
				  "does not end: it is stuck in the kernel (see dmesg)",
				  job->v.id, server->name, (int)server->pid);
	free(others);
	if (!code && job->server_fd >= 0) {
		close(job->server_fd);
		job->server_fd = -1;
	}
	return code;
}

/* ---- Steps -------------------------------------------------------------------------------- */

/* Returns 0 or -errno; -EBUSY from drivers that look for users themselves. */
static int stop_disk(const struct job *job)
{
	bool asks = !job->how->force && job->v.info.flags & UBLK_F_SAFE_STOP_DEV;
	uint64_t end = now_ms() + PASSING_MS;
	int ret;

	ubd_ctrl_set_deadline(job->ctrl, job->how->wait * 1000);
	say_waiting("I/O in flight and unwritten data of /dev/ublkb%u", job->v.id);
	do {
		/* The number may have been given to another meanwhile. */
		if (!still_there(job))
			ret = -ENODEV;
		else
			ret = asks ? ubd_ctrl_try_stop(job->ctrl, job->v.id)
				   : ubd_ctrl_stop(job->ctrl, job->v.id);
		if (ret == -EOPNOTSUPP && asks)
			asks = false;
		else if (ret == -EBUSY)
			pause_a_little();
		else
			break;
	} while (now_ms() < end);
	say_waited();
	return ret == -ENODEV ? 0 : ret;
}

static int explain_stop(const struct job *job, int ret)
{
	bool lasting;
	char *holders;
	int code;

	if (ret == -EBUSY) {
		holders = holders_of(job->v.id, &lasting);
		code = say_busy(job, holders ? holders : "somebody has it open");
		free(holders);
		return code;
	}
	if (ret == -EPERM || ret == -EACCES)
		return say_failed("del: no permission to stop /dev/ublkb%u: run as root",
				  job->v.id);
	if (ret == -ETIMEDOUT)
		return say_failed("del: /dev/ublkb%u did not stop within %u s: its server (%s, "
				  "process %d) does not finish I/O in flight; ubd del --force %u "
				  "kills it",
				  job->v.id, job->how->wait, job->v.server.name,
				  (int)job->v.server.pid, job->v.id);
	return say_failed("del: cannot stop /dev/ublkb%u: %s", job->v.id, strerror(-ret));
}

static int stop(struct job *job)
{
	bool kill_first = job->how->force && job->v.served && strchr("Tt", job->v.server.state);
	int code = kill_first ? kill_server(job) : 0;
	int ret = code ? 0 : stop_disk(job);

	if (ret == -ETIMEDOUT && job->how->force && job->v.served && !kill_first) {
		code = kill_server(job);
		/* With its server gone nothing is in flight. */
		ret = code ? 0 : stop_disk(job);
	}
	return ret ? explain_stop(job, ret) : code;
}

/* Our own servers delete their device and put their things in order. */
static int let_server_end(struct job *job)
{
	if (!job->v.state || !job->v.served || server_ends(job, job->how->wait * 1000))
		return 0;
	if (job->how->force)
		return kill_server(job);
	return say_failed("del: /dev/ublkb%u is stopped, but its server (%s, process %d) has not "
			  "ended within %u s; ubd del --force %u kills it",
			  job->v.id, job->v.server.name, (int)job->v.server.pid, job->how->wait,
			  job->v.id);
}

static int delete_device(struct job *job)
{
	uint64_t end = now_ms() + job->how->wait * 1000ULL;
	int ret = 0;

	if (!still_there(job))
		return 0;
	say_waiting("/dev/ublkc%u to disappear", job->v.id);
	ret = ubd_ctrl_del_async(job->ctrl, job->v.id);
	while ((!ret || ret == -ENODEV) && still_there(job) && now_ms() < end)
		pause_a_little();
	say_waited();
	if (ret && ret != -ENODEV)
		return say_failed("del: cannot delete /dev/ublkb%u: %s", job->v.id, strerror(-ret));
	if (still_there(job))
		return say_failed(
			"del: /dev/ublkc%u is still there after %u s: some process has it "
			"open",
			job->v.id, job->how->wait);
	return 0;
}

/* Files of a server that did not remove them itself, unless a new one has written its own. */
static void clean_up(const struct job *job)
{
	json_object *now = state_read(job->v.id);
	struct process server;

	if (now && job->v.state && !state_server(now, &server) &&
	    json_get_number(now, "pid") == json_get_number(job->v.state, "pid"))
		state_remove(job->v.id);
	json_object_put(now);
}

/* ---- The whole ---------------------------------------------------------------------------- */

static int remove_leftovers(unsigned id)
{
	json_object *state = state_read(id);
	struct process server;

	if (!state)
		return say_failed("del: there is no device %u (ubd list shows those there are)",
				  id);
	if (!state_server(state, &server)) {
		state_remove(id);
		say_note("del: device %u was gone already; removed what its server had left", id);
	} else {
		json_object_put(state);
		return say_failed("del: device %u is being deleted by its server, process %d", id,
				  (int)server.pid);
	}
	json_object_put(state);
	return 0;
}

int remove_device(struct ubd_ctrl *ctrl, unsigned id, const struct removal *how)
{
	struct job job = {.ctrl = ctrl, .how = how, .server_fd = -1};
	int ret, code = 0;

	ubd_ctrl_set_deadline(ctrl, how->wait * 1000);
	ret = view_read(ctrl, id, &job.v);
	if (ret == -ENODEV)
		return remove_leftovers(id);
	if (ret)
		return say_failed("del: cannot ask for device %u: %s", id,
				  ret == -EPERM || ret == -EACCES ? "no permission; run as root"
								  : strerror(-ret));
	if (job.v.served)
		job.server_fd = process_open(&job.v.server);
	if (job.v.served && strchr("Tt", job.v.server.state) && !how->force)
		code = say_failed("del: the server of /dev/ublkb%u (%s, process %d) is stopped, by "
				  "SIGSTOP or a debugger: continue it (kill -CONT %d), or have it "
				  "killed by ubd del --force %u",
				  id, job.v.server.name, (int)job.v.server.pid,
				  (int)job.v.server.pid, id);
	if (!code && !how->force)
		code = check_unused(&job);
	if (!code)
		code = stop(&job);
	if (!code)
		code = let_server_end(&job);
	if (!code)
		code = delete_device(&job);
	if (!code)
		clean_up(&job);
	if (job.server_fd >= 0)
		close(job.server_fd);
	view_release(&job.v);
	return code;
}
