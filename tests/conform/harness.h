/* SPDX-License-Identifier: MIT */
/*
 * What a conformance case is made of: how it is declared, what it may check, and how it is run.
 *
 * A case is a function. It runs in a process group of its own, under a time limit; whatever it
 * leaves running is killed and whatever device it leaves behind is removed, and held against it.
 */
#ifndef CONFORM_HARNESS_H
#define CONFORM_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct conform_case {
	const char *name;
	void (*run)(void);
	unsigned limit_s;
	struct conform_case *next;
};

void conform_register(struct conform_case *c);

#define CASE_LIMIT(name_, limit_)                                       \
	static void name_(void);                                        \
	__attribute__((constructor)) static void register_##name_(void) \
	{                                                               \
		static struct conform_case c = {                        \
			.name = #name_,                                 \
			.run = name_,                                   \
			.limit_s = (limit_),                            \
		};                                                      \
		conform_register(&c);                                   \
	}                                                               \
	static void name_(void)

#define CASE(name_) CASE_LIMIT(name_, 40)

/* Note a failure and go on. */
void conform_fail(const char *file, int line, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* End the case: as failed when a check failed, else as passed. */
_Noreturn void conform_end(void);
/* End the case as skipped. */
_Noreturn void conform_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Say something about the case in its output. */
void conform_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define CHECK(cond, ...)                                               \
	do {                                                           \
		if (!(cond))                                           \
			conform_fail(__FILE__, __LINE__, __VA_ARGS__); \
	} while (0)

#define REQUIRE(cond, ...)                                             \
	do {                                                           \
		if (!(cond)) {                                         \
			conform_fail(__FILE__, __LINE__, __VA_ARGS__); \
			conform_end();                                 \
		}                                                      \
	} while (0)

/*
 * A command's result against what mainline says it is. The table of differences may say something
 * else for the driver under test; aspect is its key, as well as what a failure calls the check.
 */
bool conform_result(const char *file, int line, const char *aspect, long actual, long expected);

#define RESULT(aspect, actual, expected) \
	conform_result(__FILE__, __LINE__, aspect, actual, expected)
#define RESULT_REQUIRED(aspect, actual, expected)      \
	do {                                           \
		if (!RESULT(aspect, actual, expected)) \
			conform_end();                 \
	} while (0)

/* A result in words: "-22 (EINVAL)". Valid until the fourth next call. */
const char *conform_errname(long result);

/* Memory that the case, its jobs and its servers share; zeroed, never freed. */
void *shared_alloc(size_t bytes);

/* Put a device on the list of what has to be gone when the case ends. */
void conform_track_device(uint32_t id);

/* What the driver offers, from GET_FEATURES (guessed where that is not there). */
uint64_t conform_features(void);
/* Skip unless the driver offers all of these. */
void conform_need_features(uint64_t flags);
/* Skip where this group of cases is not run, by the table of differences. */
void conform_need_group(const char *group);
/* Names of feature bits, for messages. */
const char *conform_feature_names(uint64_t flags);

/* How many times as long as usual everything may take: --slow. */
unsigned conform_slow(void);

uint64_t now_ms(void);
void sleep_ms(unsigned ms);

#endif
