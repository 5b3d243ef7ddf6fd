/* SPDX-License-Identifier: MIT */
/* Reaching the driver, and saying what to do when it cannot be reached. */
#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "say.h"

#define NODE "/dev/ublk-control"

/* Run modprobe once; its first line of complaint goes to why. */
static bool load_module(char *why, size_t size)
{
	char *argv[] = {"modprobe", "ublk_drv", NULL};
	char *env[] = {"PATH=/usr/sbin:/sbin:/usr/bin:/bin", NULL};
	const char *const paths[] = {"/sbin/modprobe", "/usr/sbin/modprobe"};
	posix_spawn_file_actions_t files;
	int pipe_fds[2], status = -1, ret;
	ssize_t n = 0;
	pid_t pid;

	snprintf(why, size, "modprobe is not installed");
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return false;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&files, pipe_fds[1], 1);
	posix_spawn_file_actions_adddup2(&files, pipe_fds[1], 2);
	ret = ENOENT;
	for (size_t i = 0; i < ARRAY_SIZE(paths) && ret; i++)
		ret = posix_spawn(&pid, paths[i], &files, NULL, argv, env);
	posix_spawn_file_actions_destroy(&files);
	close(pipe_fds[1]);
	if (!ret) {
		say_waiting("modprobe ublk_drv");
		n = read(pipe_fds[0], why, size - 1);
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		say_waited();
		why[n > 0 ? n : 0] = '\0';
		why[strcspn(why, "\n")] = '\0';
	}
	close(pipe_fds[0]);
	return !ret && status == 0;
}

/* Whether this kernel has the module on disk, loaded or not. */
static bool module_there(const char *release)
{
	char *path = say_format("/lib/modules/%s/modules.dep", release);
	FILE *f = fopen(path, "re");
	char line[4096];
	bool there = false;

	free(path);
	if (!f)
		return false;
	while (!there && fgets(line, sizeof(line), f))
		there = strstr(line, "/ublk_drv.ko") != NULL;
	fclose(f);
	return there;
}

static void say_no_driver(const char *verb, const char *complaint)
{
	struct utsname kernel;

	uname(&kernel);
	if (geteuid() != 0 && module_there(kernel.release))
		say_failed("%s: the ublk driver is not loaded: run modprobe ublk_drv as root",
			   verb);
	else if (module_there(kernel.release))
		say_failed("%s: the ublk driver does not load: %s", verb,
			   *complaint ? complaint : "see the kernel log (dmesg)");
	else
		say_failed(
			"%s: kernel %s has no ublk driver: boot one that has (Debian 12: package "
			"linux-image-6.12-amd64 from bookworm-security), then modprobe ublk_drv; "
			"or install ubd's own driver (package ubd-dkms); or try it in a virtual "
			"machine with vm/run from the source tree",
			verb, kernel.release);
}

static bool missing(int err)
{
	return err == -ENOENT || err == -ENXIO || err == -ENODEV;
}

static void say_unreachable(const char *verb, int err)
{
	if (access(NODE, R_OK | W_OK) < 0 && errno != ENOENT)
		say_failed("%s: cannot open " NODE ": %s; run as root, or have the "
			   "administrator give you access to that node",
			   verb, strerror(errno));
	else if (err == -ENOSYS)
		say_failed("%s: this kernel has no io_uring (CONFIG_IO_URING), which ublk needs",
			   verb);
	else if (err == -EPERM)
		say_failed("%s: io_uring is disabled for you: see sysctl "
			   "kernel.io_uring_disabled, or the seccomp rules of this container",
			   verb);
	else
		say_failed("%s: cannot use " NODE ": %s", verb, strerror(-err));
}

struct ubd_ctrl *control_open(const char *verb)
{
	struct ubd_ctrl *ctrl = NULL;
	char complaint[256] = "";
	int ret = ubd_ctrl_open(&ctrl);

	if (missing(ret) && geteuid() == 0 && load_module(complaint, sizeof(complaint))) {
		/* The node is made by another process where there is no devtmpfs. */
		for (int tries = 0; tries < 20 && missing(ret = ubd_ctrl_open(&ctrl)); tries++)
			usleep(50000);
	}
	if (!ret)
		return ctrl;
	if (missing(ret))
		say_no_driver(verb, complaint);
	else
		say_unreachable(verb, ret);
	return NULL;
}
