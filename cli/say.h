/* SPDX-License-Identifier: MIT */
/* How the command speaks: one sentence to a person, sizes and times that read well. */
#ifndef CLI_SAY_H
#define CLI_SAY_H

#include <stddef.h>
#include <stdint.h>

/* Exit codes beside 0. */
#define EXIT_FAILED 1
#define EXIT_MISUSED 2

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* Print "ubd: …" and a newline to stderr. Return EXIT_FAILED and EXIT_MISUSED for `return`. */
int say_failed(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int say_misused(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same for what is no error. */
void say_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* printf into memory to be freed by the caller; ends the program when there is none. */
char *say_format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* "1.5G" for bytes; buf is returned. */
#define SAY_SIZE_LEN 32
const char *say_size(uint64_t bytes, char buf[SAY_SIZE_LEN]);

/*
 * If what follows lasts longer than a second, say "ubd: waiting for …" once. Until say_waited(),
 * which costs nothing when no wait was announced. One at a time.
 */
void say_waiting(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void say_waited(void);

/* Finds the candidate that word was probably meant to be. */
struct say_guess {
	const char *word;
	const char *best;
	unsigned distance;
};
void say_guess_try(struct say_guess *guess, const char *candidate);
/* The best candidate when it is near enough, or NULL. */
const char *say_guess_best(const struct say_guess *guess);
/* "; did you mean PREFIXBEST?" or ""; static, until the next call. */
const char *say_guess_hint(const struct say_guess *guess, const char *prefix);

#endif
