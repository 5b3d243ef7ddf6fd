/* SPDX-License-Identifier: MIT */
/*
 * A test program in C: a table of cases, run in order, reported as TAP.
 *
 *     static void test_sum(void) { CHECK(1 + 1 == 2, "got %d", 1 + 1); }
 *     static const struct tap_case cases[] = {{"sums are right", test_sum}};
 *     int main(void) { return tap_run(cases, 1); }
 *
 * A case that hangs ends the program without its plan, which tests/run counts as a failure.
 */
#ifndef UBD_TAP_H
#define UBD_TAP_H

#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A busy machine gets so many times as long. */
#define TAP_PATIENCE 3

struct tap_case {
	const char *name;
	void (*run)(void);
	unsigned limit_s; /* on a machine that does nothing else; 0: 60 */
};

static bool tap_failed;
static char tap_skip_reason[256];
static const char *tap_name;

__attribute__((format(printf, 1, 2), unused)) static void tap_note(const char *fmt, ...)
{
	char text[2048];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	printf("# %s\n", text);
	fflush(stdout);
}

/* The case passes over the rest: call and return. */
__attribute__((format(printf, 1, 2), unused)) static void tap_skip(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(tap_skip_reason, sizeof(tap_skip_reason), fmt, ap);
	va_end(ap);
}

/* Note a failure and go on. A message follows the condition. */
#define CHECK(cond, ...)                                                          \
	do {                                                                      \
		if (!(cond)) {                                                    \
			__atomic_store_n(&tap_failed, true, __ATOMIC_RELAXED);    \
			tap_note("%s:%d: not so: %s", __FILE__, __LINE__, #cond); \
			tap_note("  " __VA_ARGS__);                               \
		}                                                                 \
	} while (0)

/* The same, and leave the (void) function. */
#define REQUIRE(cond, ...)                        \
	do {                                      \
		if (!(cond)) {                    \
			CHECK(cond, __VA_ARGS__); \
			return;                   \
		}                                 \
	} while (0)

static void tap_hangs(int signal_number)
{
	static const char text[] = "\nBail out! a case took longer than its limit\n";
	ssize_t ret = write(1, text, sizeof(text) - 1);

	(void)signal_number;
	(void)ret;
	_exit(3);
}

/* Run all cases; returns main()'s exit status. */
static int tap_run(const struct tap_case *cases, unsigned n)
{
	unsigned failures = 0;

	signal(SIGALRM, tap_hangs);
	printf("1..%u\n", n);
	for (unsigned i = 0; i < n; i++) {
		tap_failed = false;
		tap_skip_reason[0] = 0;
		tap_name = cases[i].name;
		fflush(stdout);
		alarm(TAP_PATIENCE * (cases[i].limit_s ? cases[i].limit_s : 60));
		cases[i].run();
		alarm(0);
		failures += tap_failed;
		printf("%sok %u - %s%s%s\n", tap_failed ? "not " : "", i + 1, cases[i].name,
		       tap_skip_reason[0] && !tap_failed ? " # SKIP " : "",
		       tap_failed ? "" : tap_skip_reason);
		fflush(stdout);
	}
	return failures != 0;
}

#define TAP_MAIN(cases)                                                    \
	int main(void)                                                     \
	{                                                                  \
		return tap_run(cases, sizeof(cases) / sizeof((cases)[0])); \
	}

#endif
