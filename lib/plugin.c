/* SPDX-License-Identifier: MIT */
/* Targets by name: built in, or in a shared object. */
#define _GNU_SOURCE
#include "internal.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local char reason[512];

static const struct ubd_target *check(const struct ubd_target *t, const char *path)
{
	if (t->api == 0 || t->api > UBD_TARGET_API)
		snprintf(reason, sizeof(reason),
			 "%s was built for version %u of the target interface, this library has %u",
			 path, t->api, UBD_TARGET_API);
	else if (!t->name || !t->handle)
		snprintf(reason, sizeof(reason), "%s: its target has no name or no handle()", path);
	else
		return t;
	return NULL;
}

/* The object stays loaded for good: devices point into it. */
static const struct ubd_target *load(const char *path)
{
	void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	const struct ubd_target *const *symbol;
	const struct ubd_target *t;

	if (!object) {
		snprintf(reason, sizeof(reason), "cannot load %s", dlerror());
		return NULL;
	}
	symbol = dlsym(object, UBD_PLUGIN_SYMBOL);
	if (!symbol) {
		snprintf(reason, sizeof(reason), "%s is not a ubd target: it has no symbol %s",
			 path, UBD_PLUGIN_SYMBOL);
		dlclose(object);
		return NULL;
	}
	t = check(*symbol, path);
	if (!t)
		dlclose(object);
	return t;
}

const struct ubd_target *ubd_target_find(const char *name, const char **why)
{
	const char *dir = secure_getenv("UBD_PLUGIN_DIR");
	char path[4096];

	*why = reason;
	if (strchr(name, '/'))
		return load(name);
	for (const struct ubd_target *const *t = ubd_targets(); *t; t++)
		if (!strcmp((*t)->name, name))
			return *t;
	snprintf(path, sizeof(path), "%s/%s.so", dir ? dir : UBD_PLUGIN_DIR, name);
	if (access(path, F_OK)) {
		snprintf(reason, sizeof(reason), "there is no target \"%s\": see 'ubd targets'",
			 name);
		return NULL;
	}
	return load(path);
}
