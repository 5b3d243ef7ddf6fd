/* SPDX-License-Identifier: MIT */
/* ubd add: make a device, served by a process of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ubd/ubd.h>

#include "add_args.h"
#include "control.h"
#include "say.h"
#include "server.h"
#include "state.h"
#include "target_help.h"
#include "verbs.h"

/* Say something after this long. */
#define PATIENCE_MS 3000

static volatile sig_atomic_t interrupts;

static void on_interrupt(int sig)
{
	(void)sig;
	interrupts = interrupts + 1;
}

/* ---- Before the server -------------------------------------------------------------------- */

/* The device with its options set, or NULL after saying what is wrong, with *code. */
static struct ubd_device *make_device(struct add_request *r, int *code)
{
	struct ubd_device *dev;

	r->config.notice = server_notice;
	dev = ubd_device_new(r->target, &r->config);
	if (!dev) {
		*code = say_failed("%s: out of memory", r->verb);
		return NULL;
	}
	for (size_t i = 0; i < r->count; i++) {
		int ret = ubd_device_set_option(dev, r->settings[i].option->name,
						r->settings[i].value);

		if (ret) {
			*code = say_misused("%s: %s (see ubd help add %s)", r->verb,
					    ubd_device_error(dev), r->target->name);
			ubd_device_free(dev);
			return NULL;
		}
	}
	return dev;
}

/* What would fail anyhow is better said before there is a server to say it. */
static int check_surroundings(const struct add_request *r)
{
	struct ubd_ctrl *ctrl = control_open(r->verb);
	const char *why;

	if (!ctrl)
		return EXIT_FAILED;
	ubd_ctrl_close(ctrl);
	return state_dir_make(&why) ? 0 : say_failed("%s: %s", r->verb, why);
}

/* ---- The server in the background --------------------------------------------------------- */

/* Signals stay blocked: the server takes them from where it is ready to. */
static void become_server(const struct add_request *r, struct ubd_device *dev, int report_fd)
{
	setsid();
	/* A server lives long: it must not hold the locks and pipes of whoever called. */
	if (report_fd > 3)
		close_range(3, (unsigned)report_fd - 1, 0);
	close_range((unsigned)report_fd + 1, ~0u, 0);
	exit(server_run(r, dev, report_fd));
}

/* Room for something more, and for the zero after it. */
static char *make_room(const struct add_request *r, char *text, size_t len, size_t *room)
{
	if (*room - len > 1)
		return text;
	*room = *room ? *room * 2 : 4096;
	text = realloc(text, *room);
	if (!text)
		exit(say_failed("%s: out of memory", r->verb));
	return text;
}

/* Read the server's report to its end, passing interruptions on. The caller's to free. */
static char *read_report(const struct add_request *r, int fd, pid_t server, const sigset_t *mask)
{
	struct timespec patience = {.tv_sec = PATIENCE_MS / 1000};
	bool told = false;
	int passed_on = 0;
	size_t len = 0, room = 0;
	char *text = make_room(r, NULL, 0, &room);

	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		int ready = ppoll(&p, 1, told ? NULL : &patience, mask);
		ssize_t n;

		/* A device that was there before is not to be taken away. */
		if (interrupts && r->config.take_over)
			break;
		if (interrupts > passed_on) {
			/* Who insists, does not want to wait for things to be put in order. */
			kill(server, passed_on ? SIGKILL : SIGTERM);
			passed_on = interrupts;
		}
		if (ready == 0) {
			say_note("waiting for the server (process %d) to get the device ready; "
				 "Ctrl-C %s",
				 (int)server,
				 r->config.take_over ? "leaves it to that" : "gives up");
			told = true;
		}
		if (ready <= 0)
			continue;
		text = make_room(r, text, len, &room);
		n = read(fd, text + len, room - 1 - len);
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	text[len] = '\0';
	return text;
}

static int explain_end(const struct add_request *r, pid_t server)
{
	int status;

	if (interrupts && r->config.take_over)
		return say_failed("%s: interrupted; the server (process %d) goes on", r->verb,
				  (int)server);
	while (waitpid(server, &status, 0) < 0 && errno == EINTR)
		;
	if (interrupts)
		return say_failed("add: interrupted%s",
				  WIFSIGNALED(status) ? "; what is left of the device is listed "
							"by ubd list"
						      : "; nothing was added");
	if (WIFSIGNALED(status))
		return say_failed("%s: the server was killed by signal %d (%s) while starting; "
				  "ubd list shows whether it left a device",
				  r->verb, WTERMSIG(status), strsignal(WTERMSIG(status)));
	return say_failed("%s: the server ended without a word, status %d", r->verb,
			  WEXITSTATUS(status));
}

static int wait_for_server(const struct add_request *r, int fd, pid_t server, const sigset_t *mask)
{
	char *text = read_report(r, fd, server, mask);
	int code = 0;

	if (interrupts || !text[0]) {
		code = explain_end(r, server);
	} else if (text[0] == SERVER_READY) {
		puts(text + 1);
	} else {
		/* Nothing is left behind once it has ended; one that takes over may not end. */
		while (!r->config.take_over && waitpid(server, NULL, 0) < 0 && errno == EINTR)
			;
		code = say_failed("%s", text + 1);
	}
	free(text);
	return code;
}

static int add_in_background(const struct add_request *r, struct ubd_device *dev)
{
	struct sigaction sa = {.sa_handler = on_interrupt};
	sigset_t blocked, before;
	int fds[2], code;
	pid_t server;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return say_failed("%s: cannot make a pipe: %s", r->verb, strerror(errno));
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGINT);
	sigaddset(&blocked, SIGTERM);
	sigaddset(&blocked, SIGHUP);
	/* Blocked outside ppoll(): no interruption falls between looking and waiting. */
	sigprocmask(SIG_BLOCK, &blocked, &before);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	fflush(NULL);
	server = fork();
	if (server == 0) {
		close(fds[0]);
		become_server(r, dev, fds[1]);
	}
	close(fds[1]);
	if (server < 0)
		code = say_failed("%s: cannot make a process: %s", r->verb, strerror(errno));
	else
		code = wait_for_server(r, fds[0], server, &before);
	close(fds[0]);
	ubd_device_free(dev);
	return code;
}

int add_serve(struct add_request *r)
{
	int code = 0;
	struct ubd_device *dev = make_device(r, &code);

	if (!dev)
		return code;
	code = check_surroundings(r);
	if (code)
		ubd_device_free(dev);
	else if (r->foreground)
		code = server_run(r, dev, -1);
	else
		code = add_in_background(r, dev);
	return code;
}

static int run(int argc, char **argv)
{
	struct add_request r = {.verb = "add"};
	int code = add_parse(argc, argv, &r);

	if (!code && r.help) {
		if (r.target)
			target_print(r.target);
		else
			verb_print_help(&verb_add);
	} else if (!code) {
		code = add_serve(&r);
	}
	add_release(&r);
	return code;
}

const struct verb verb_add = {
	.name = "add",
	.usage = "[OPTION]... TARGET [TARGET OPTION]...",
	.summary = "make a device and serve it",
	.options = add_options,
	.details =
		"Prints the path of the new device, /dev/ublkbN, when it is ready; a process in\n"
		"the background serves it until ubd del. A target's own options come after its\n"
		"name: ubd add TARGET --help. The options below may come before or after it.\n\n"
		"  ubd add loop disk.img --queues 2\n"
		"  ubd add -n 3 mem --size 1G\n",
	.run = run,
};
