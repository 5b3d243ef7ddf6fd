/* SPDX-License-Identifier: MIT */
/* A running server's description of its device. */
#define _GNU_SOURCE
#include "server_state.h"

#include <time.h>
#include <unistd.h>

#include "json.h"
#include "process.h"

static void put_item(void *arg, const char *name, const char *text, uint64_t number)
{
	if (text)
		json_put_string(arg, name, text);
	else
		json_put_number(arg, name, number);
}

json_object *server_status(const struct ubd_device *dev)
{
	json_object *doc = json_object_new_object();

	ubd_device_status(dev, put_item, doc);
	if (json_object_object_length(doc))
		return doc;
	json_object_put(doc);
	return NULL;
}

json_object *server_state(const struct add_request *request, const struct ubd_device *dev)
{
	const struct ubd_device_config *config = &request->config;
	json_object *doc = json_object_new_object(), *options = json_object_new_array();
	struct process self = {0};

	process_read(getpid(), &self);
	for (size_t i = 0; i < request->count; i++) {
		json_object *pair = json_object_new_object();

		json_put_string(pair, "name", request->settings[i].option->name);
		json_put_string(pair, "value", request->settings[i].value);
		json_object_array_add(options, pair);
	}
	json_put_number(doc, "id", (uint64_t)ubd_device_id(dev));
	json_put_string(doc, "path", ubd_device_path(dev));
	json_put_string(doc, "target", request->target->name);
	if (request->target_file)
		json_put_string(doc, "target_file", request->target_file);
	json_object_object_add(doc, "options", options);
	json_put_number(doc, "pid", (uint64_t)getpid());
	json_put_number(doc, "pid_started", self.born);
	json_put_number(doc, "started", (uint64_t)time(NULL));
	json_put_number(doc, "size", ubd_device_size(dev));
	json_put_number(doc, "queues", ubd_device_queues(dev));
	json_put_number(doc, "depth", ubd_device_depth(dev));
	json_put_string(doc, "zero_copy", ubd_zero_copy_name(ubd_device_zero_copy(dev)));
	json_put_string(doc, "zero_copy_asked", ubd_zero_copy_name(config->zero_copy));
	json_put_string(doc, "recovery", ubd_recovery_name(config->recovery));
	json_put_bool(doc, "read_only", config->read_only);
	json_put_bool(doc, "unprivileged", config->unprivileged);
	json_put_bool(doc, "partitions", !config->no_partitions);
	json_put_bool(doc, "pin", config->pin);
	json_put_bool(doc, "batch", config->batch);
	json_put_bool(doc, "populate", config->populate);
	/* As asked for; 0: nothing was, and the library chose. */
	json_put_number(doc, "deadline_ms_asked", config->deadline_ms);
	json_put_number(doc, "block_size_asked", config->block_size);
	json_put_number(doc, "max_io_asked", config->max_io);
	json_object_object_add(doc, "status", server_status(dev));
	return doc;
}
