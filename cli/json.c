/* SPDX-License-Identifier: MIT */
/* json-c in the few forms that the verbs use. */
#define _GNU_SOURCE
#include "json.h"

#include <stdio.h>

const char *json_get_string(const json_object *doc, const char *key)
{
	json_object *member;

	if (!doc || !json_object_object_get_ex(doc, key, &member) ||
	    !json_object_is_type(member, json_type_string))
		return NULL;
	return json_object_get_string(member);
}

uint64_t json_get_number(const json_object *doc, const char *key)
{
	json_object *member;

	if (!doc || !json_object_object_get_ex(doc, key, &member) ||
	    !json_object_is_type(member, json_type_int))
		return 0;
	return json_object_get_uint64(member);
}

const char *json_text(json_object *doc)
{
	return json_object_to_json_string_ext(doc, JSON_C_TO_STRING_PRETTY |
							   JSON_C_TO_STRING_SPACED |
							   JSON_C_TO_STRING_NOSLASHESCAPE);
}

void json_print(json_object *doc)
{
	puts(json_text(doc));
}
