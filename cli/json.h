/* SPDX-License-Identifier: MIT */
/* json-c in the few forms that the verbs use. */
#ifndef CLI_JSON_H
#define CLI_JSON_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

static inline void json_put_string(json_object *doc, const char *key, const char *text)
{
	json_object_object_add(doc, key, text ? json_object_new_string(text) : NULL);
}

static inline void json_put_number(json_object *doc, const char *key, uint64_t value)
{
	json_object_object_add(doc, key, json_object_new_uint64(value));
}

static inline void json_put_bool(json_object *doc, const char *key, bool value)
{
	json_object_object_add(doc, key, json_object_new_boolean(value));
}

/* A member's value, or what stands for a missing one: NULL and 0. */
const char *json_get_string(const json_object *doc, const char *key);
uint64_t json_get_number(const json_object *doc, const char *key);

/* To stdout, indented. */
void json_print(json_object *doc);
/* As json_print() prints it; owned by doc. */
const char *json_text(json_object *doc);

#endif
