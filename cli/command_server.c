/* SPDX-License-Identifier: MIT */
/*
 * The server's ear: words, each ended by a zero byte, come over RUN/N.sock; what goes back is one
 * JSON object, {"answer": [...]} or {"error": "..."}.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "command.h"
#include "json.h"
#include "say.h"
#include "state.h"

#define MAX_REQUEST 65536
#define MAX_WORDS 8

/* A name seen before begins a new record. */
void command_put_item(void *arg, const char *name, const char *text, uint64_t number)
{
	json_object *list = arg, *last = NULL;
	size_t n = json_object_array_length(list);

	if (n)
		last = json_object_array_get_idx(list, n - 1);
	if (!last || json_object_object_get_ex(last, name, NULL)) {
		last = json_object_new_object();
		json_object_array_add(list, last);
	}
	if (text)
		json_put_string(last, name, text);
	else
		json_put_number(last, name, number);
}

/* Everything up to the other side's end, in words. How many, 0: not a request. */
static unsigned read_words(int fd, char *text, const char **words)
{
	size_t len = 0, at = 0;
	unsigned count = 0;
	ssize_t n;

	while (len < MAX_REQUEST && (n = read(fd, text + len, MAX_REQUEST - len)) > 0)
		len += (size_t)n;
	if (!len || text[len - 1])
		return 0;
	for (; at < len && count < MAX_WORDS; at += strlen(text + at) + 1)
		words[count++] = text + at;
	return at < len ? 0 : count;
}

static void reply(int fd, json_object *doc)
{
	const char *text = json_text(doc);
	size_t len = strlen(text);

	while (len) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

static bool allowed(int fd)
{
	struct ucred who;
	socklen_t len = sizeof(who);

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) &&
	       (who.uid == 0 || who.uid == geteuid());
}

static void serve(struct ubd_device *dev, int fd)
{
	/* Who connects has its words ready, and somewhere to put the answer. */
	const struct timeval patience = {.tv_sec = 2};
	json_object *doc = json_object_new_object(), *answer = json_object_new_array();
	static char text[MAX_REQUEST];
	const char *words[MAX_WORDS];
	unsigned count;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	count = allowed(fd) ? read_words(fd, text, words) : 0;
	if (!count)
		json_put_string(doc, "error",
				"not a command, or not from root or the server's user");
	else if (ubd_device_command(dev, words, count, command_put_item, answer))
		json_put_string(doc, "error", ubd_device_error(dev));
	else
		json_object_object_add(doc, "answer", json_object_get(answer));
	reply(fd, doc);
	json_object_put(answer);
	json_object_put(doc);
}

static void *listen_on(void *arg)
{
	struct command_server *s = arg;
	int fd;

	for (;;) {
		fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0) {
			serve(s->dev, fd);
			close(fd);
		} else if (errno == EINVAL) {
			return NULL; /* shut down */
		} else if (errno != EINTR && errno != ECONNABORTED) {
			usleep(100000); /* out of something: not for ever */
		}
	}
}

int command_server_start(struct command_server *s, struct ubd_device *dev)
{
	int ret;

	s->dev = dev;
	s->fd = state_listen((unsigned)ubd_device_id(dev));
	if (s->fd < 0)
		return s->fd;
	ret = pthread_create(&s->thread, NULL, listen_on, s);
	if (ret) {
		close(s->fd);
		s->fd = -1;
	}
	return -ret;
}

void command_server_stop(struct command_server *s)
{
	if (s->fd < 0)
		return;
	shutdown(s->fd, SHUT_RDWR);
	pthread_join(s->thread, NULL);
	close(s->fd);
	s->fd = -1;
}
