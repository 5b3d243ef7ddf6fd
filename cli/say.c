/* SPDX-License-Identifier: MIT */
/* How the command speaks: one sentence to a person, sizes and times that read well. */
#define _GNU_SOURCE
#include "say.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static void say(const char *fmt, va_list ap)
{
	char line[4096];
	int n = snprintf(line, sizeof(line), "ubd: ");

	/* One write: sentences of several processes do not mix. */
	vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	strcat(line, "\n");
	fflush(stdout);
	fputs(line, stderr);
}

int say_failed(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(fmt, ap);
	va_end(ap);
	return EXIT_FAILED;
}

int say_misused(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(fmt, ap);
	va_end(ap);
	return EXIT_MISUSED;
}

void say_note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(fmt, ap);
	va_end(ap);
}

char *say_format(const char *fmt, ...)
{
	char *text;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		abort();
	va_end(ap);
	return text;
}

const char *say_size(uint64_t bytes, char buf[SAY_SIZE_LEN])
{
	static const char units[] = "BKMGTPE";
	unsigned unit = 0;
	uint64_t whole = bytes, tenths = 0;

	while (whole >= 1024 && units[unit + 1]) {
		tenths = whole % 1024 * 10 / 1024;
		whole /= 1024;
		unit++;
	}
	if (!unit)
		snprintf(buf, SAY_SIZE_LEN, "%" PRIu64, whole);
	else if (tenths && whole < 100)
		snprintf(buf, SAY_SIZE_LEN, "%" PRIu64 ".%" PRIu64 "%c", whole, tenths,
			 units[unit]);
	else
		snprintf(buf, SAY_SIZE_LEN, "%" PRIu64 "%c", whole, units[unit]);
	return buf;
}

/* ---- Waiting ------------------------------------------------------------------------------ */

/* Read by the signal handler: complete before the timer is set. */
static char waiting_line[512];
static size_t waiting_len;

static void on_alarm(int sig)
{
	ssize_t n = write(STDERR_FILENO, waiting_line, waiting_len);

	(void)sig;
	(void)n; /* nowhere to complain */
}

void say_waiting(const char *fmt, ...)
{
	struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	struct itimerval in_a_second = {.it_value = {.tv_sec = 1}};
	char text[480];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	waiting_len =
		(size_t)snprintf(waiting_line, sizeof(waiting_line), "ubd: waiting for %s\n", text);
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &in_a_second, NULL);
}

void say_waited(void)
{
	struct itimerval never = {0};

	setitimer(ITIMER_REAL, &never, NULL);
}

/* ---- Guessing ----------------------------------------------------------------------------- */

#define GUESS_MAX 64

/* Insertions, deletions, replacements and swaps of neighbours that lead from a to b. */
static unsigned edit_distance(const char *a, const char *b)
{
	unsigned rows[3][GUESS_MAX + 1];
	unsigned *before = rows[0], *last = rows[1], *now = rows[2];
	size_t la = strlen(a), lb = strlen(b);

	if (la > GUESS_MAX || lb > GUESS_MAX)
		return GUESS_MAX;
	for (size_t j = 0; j <= lb; j++)
		last[j] = (unsigned)j;
	for (size_t i = 1; i <= la; i++) {
		unsigned *spare = before;

		now[0] = (unsigned)i;
		for (size_t j = 1; j <= lb; j++) {
			unsigned d = last[j - 1] + (a[i - 1] != b[j - 1]);

			if (last[j] + 1 < d)
				d = last[j] + 1;
			if (now[j - 1] + 1 < d)
				d = now[j - 1] + 1;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
			    before[j - 2] + 1 < d)
				d = before[j - 2] + 1;
			now[j] = d;
		}
		before = last;
		last = now;
		now = spare;
	}
	return last[lb];
}

void say_guess_try(struct say_guess *guess, const char *candidate)
{
	unsigned d = edit_distance(guess->word, candidate);

	/* A word cut short is meant more often than one with as many letters wrong. */
	if (d > 1 && strlen(guess->word) >= 3 &&
	    strncmp(guess->word, candidate, strlen(guess->word)) == 0)
		d = 1;
	if (!guess->best || d < guess->distance) {
		guess->best = candidate;
		guess->distance = d;
	}
}

const char *say_guess_best(const struct say_guess *guess)
{
	size_t len = strlen(guess->word);
	unsigned near = len < 4 ? 1 : len < 9 ? 2 : 3;

	return guess->best && guess->distance <= near ? guess->best : NULL;
}

const char *say_guess_hint(const struct say_guess *guess, const char *prefix)
{
	static char hint[128];
	const char *best = say_guess_best(guess);

	hint[0] = '\0';
	if (best)
		snprintf(hint, sizeof(hint), "; did you mean %s%s?", prefix, best);
	return hint;
}
