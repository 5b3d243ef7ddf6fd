/* SPDX-License-Identifier: MIT */
/*
 * A target's options: one table describes them to the parser, to `ubd help` and to the target.
 *
 * The library allocates the target's state, writes each option's value into it at .offset and
 * checks types, ranges and required options before the target sees any of it.
 */
#ifndef UBD_OPTION_H
#define UBD_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum ubd_option_type {
	UBD_STRING, /* const char *; NULL when not given */
	UBD_PATH,   /* const char *, made absolute; NULL when not given */
	UBD_SIZE, /* uint64_t, bytes; suffixes K M G T P E (powers of 1024), s = 512-byte sectors */
	UBD_UINT, /* uint64_t */
	UBD_BOOL, /* bool; given bare or as =yes|no|on|off|true|false|1|0 */
	UBD_CHOICE, /* int, the index of the word in .choices */
	UBD_LIST,   /* struct ubd_list: UBD_STRING values; may be given many times */
	UBD_PATHS,  /* struct ubd_list: UBD_PATH values; may be given many times */
};

/* Values of a UBD_LIST or UBD_PATHS option, owned by the library until the target's close. */
struct ubd_list {
	const char **items;
	size_t count;
};

struct ubd_option {
	const char *name; /* "file": --file VALUE, file=VALUE; NULL ends the table */
	enum ubd_option_type type;
	size_t offset;	      /* of the value in the target's state: offsetof(struct …, …) */
	const char *help;     /* one line, no full stop */
	const char *metavar;  /* what help calls the value; NULL: the type's own word */
	const char *fallback; /* the value when not given, as a user would type it; or NULL */
	const char *choices;  /* UBD_CHOICE: the words, '|' between */
	uint64_t min, max;    /* UBD_SIZE, UBD_UINT: inclusive; max 0: no limit */
	bool required;
	bool positional; /* may be given without its name, in table order */
	char letter;	 /* a short form, -f; 0: none */
};

/* Parse a size as UBD_SIZE does. Bytes. -EINVAL. */
int ubd_size_parse(const char *text, uint64_t *bytes);

#ifdef __cplusplus
}
#endif

#endif
