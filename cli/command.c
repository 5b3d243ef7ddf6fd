/* SPDX-License-Identifier: MIT */
/* Asking for a command: the server of a device, or the target itself over a file. */
#define _GNU_SOURCE
#include "command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "json.h"
#include "say.h"
#include "state.h"
#include "view.h"

static bool send_words(int fd, const struct command *c)
{
	for (unsigned i = 0; i < c->count; i++) {
		size_t len = strlen(c->words[i]) + 1;

		if (send(fd, c->words[i], len, MSG_NOSIGNAL) != (ssize_t)len)
			return false;
	}
	return shutdown(fd, SHUT_WR) == 0;
}

/* One JSON document up to the end; NULL: there is none, or a broken one. */
static json_object *receive(int fd)
{
	json_tokener *tokener = json_tokener_new();
	json_object *doc = NULL;
	char part[4096];
	ssize_t n;

	while (tokener && !doc && (n = read(fd, part, sizeof(part))) > 0)
		doc = json_tokener_parse_ex(tokener, part, (int)n);
	json_tokener_free(tokener);
	return doc;
}

static int ask_server(const struct command *c, unsigned id, json_object **answer)
{
	int fd = state_connect(id), code = 0;
	json_object *doc = NULL, *list;

	if (fd == -ENOENT || fd == -ECONNREFUSED)
		return say_failed("%s: /dev/ublkb%u has no server of ubd (see ubd list)", c->verb,
				  id);
	if (fd < 0)
		return say_failed("%s: cannot reach the server of /dev/ublkb%u: %s", c->verb, id,
				  strerror(-fd));
	if (send_words(fd, c)) {
		say_waiting("the server of /dev/ublkb%u", id);
		doc = receive(fd);
		say_waited();
	}
	close(fd);
	if (!doc)
		code = say_failed("%s: the server of /dev/ublkb%u ended without an answer", c->verb,
				  id);
	else if (json_object_object_get_ex(doc, "answer", &list))
		*answer = json_object_get(list);
	else
		code = say_failed("%s: %s", c->verb, json_get_string(doc, "error"));
	json_object_put(doc);
	return code;
}

static void say_notice(void *arg, const char *line)
{
	say_note("%s: %s", (const char *)arg, line);
}

/* As a device that the kernel does not know of. */
static int run_here(const struct command *c, json_object **answer)
{
	struct ubd_device_config config = {
		.read_only = c->read_only,
		.notice = say_notice,
		.notice_arg = (void *)(uintptr_t)c->verb,
	};
	const char *why;
	const struct ubd_target *target = ubd_target_find("qcow2", &why);
	struct ubd_device *dev = target ? ubd_device_new(target, &config) : NULL;
	int ret, code = 0;

	if (!dev)
		return say_failed("%s: %s", c->verb, target ? "out of memory" : why);
	ret = ubd_device_set_option(dev, "file", c->where);
	if (!ret)
		ret = ubd_local_start(dev);
	if (!ret) {
		*answer = json_object_new_array();
		ret = ubd_device_command(dev, c->words, c->count, command_put_item, *answer);
	}
	if (ret) {
		code = say_failed("%s: %s", c->verb, ubd_device_error(dev));
		json_object_put(*answer);
		*answer = NULL;
	}
	ubd_device_stop(dev);
	ubd_device_free(dev);
	return code;
}

int command_run(const struct command *c, json_object **answer)
{
	unsigned id;

	*answer = NULL;
	return view_parse(c->where, &id) ? ask_server(c, id, answer) : run_here(c, answer);
}
