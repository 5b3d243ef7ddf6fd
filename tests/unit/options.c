/* SPDX-License-Identifier: MIT */
/* Target options: every type, ranges, defaults, positions, and the sentences for what is wrong. */
#include <errno.h>
#include <stdlib.h>

#include <tap.h>
#include <ubd/ubd.h>

#include "../../include/uapi/ubd.h"

struct all {
	const char *string, *path;
	uint64_t size, number, plain;
	bool flag;
	int choice;
	struct ubd_list list, paths;
};

static struct all a; /* the state as the target saw it when it was opened */

static int all_open(struct ubd_device *dev, void *self)
{
	a = *(struct all *)self;
	ubd_device_limits(dev)->size = 1 << 20;
	return 0;
}

static int all_handle(struct ubd_io *io, void *self)
{
	(void)self;
	return (int)io->length;
}

static const struct ubd_option options[] = {
	{"string", UBD_STRING, offsetof(struct all, string), "a word", .positional = true},
	{"path", UBD_PATH, offsetof(struct all, path), "a file"},
	{"size", UBD_SIZE, offsetof(struct all, size), "a size", .fallback = "64K", .min = 512,
	 .max = 1 << 30},
	{"number", UBD_UINT, offsetof(struct all, number), "a number", .min = 2, .max = 9},
	{"plain", UBD_UINT, offsetof(struct all, plain), "any number"},
	{"flag", UBD_BOOL, offsetof(struct all, flag), "a switch"},
	{"choice", UBD_CHOICE, offsetof(struct all, choice), "one of", .choices = "red|green|blue",
	 .fallback = "green"},
	{"list", UBD_LIST, offsetof(struct all, list), "words", .positional = true},
	{"paths", UBD_PATHS, offsetof(struct all, paths), "files"},
	{0},
};

static const struct ubd_target target = {
	.api = UBD_TARGET_API,
	.name = "all",
	.options = options,
	.size = sizeof(struct all),
	.open = all_open,
	.handle = all_handle,
};

static const struct ubd_option needy_options[] = {
	{"file", UBD_PATH, 0, "the file", .required = true, .positional = true},
	{0},
};

static const struct ubd_target needy = {
	.api = UBD_TARGET_API,
	.name = "needy",
	.options = needy_options,
	.size = sizeof(char *),
	.open = all_open,
	.handle = all_handle,
};

/* Set options, "name=value" or "=positional" or "name", start; the first error. */
static int given(const struct ubd_target *t, struct ubd_device **out, const char *const *words)
{
	struct ubd_device *dev = ubd_device_new(t, NULL);
	int ret = 0;

	*out = dev;
	for (; *words && !ret; words++) {
		char name[64];
		const char *eq = strchr(*words, '=');

		snprintf(name, sizeof(name), "%.*s", eq ? (int)(eq - *words) : 63, *words);
		ret = ubd_device_set_option(dev, name[0] ? name : NULL, eq ? eq + 1 : NULL);
	}
	return ret ? ret : ubd_local_start(dev);
}

#define GIVEN(t, dev, ...) given(t, dev, (const char *const[]){__VA_ARGS__, NULL})

static void test_types(void)
{
	struct ubd_device *dev;
	char cwd[4096], want[4200];

	REQUIRE(GIVEN(&target, &dev, "=word", "path=some/file", "size=1M", "number=9",
		      "plain=18446744073709551615", "flag", "choice=blue", "list=a", "=b", "=c",
		      "paths=/x", "paths=y") == 0,
		"%s", ubd_device_error(dev));
	CHECK(getcwd(cwd, sizeof(cwd)), "getcwd");
	snprintf(want, sizeof(want), "%s/some/file", cwd);
	CHECK(!strcmp(a.string, "word"), "%s", a.string);
	CHECK(!strcmp(a.path, want), "%s", a.path);
	CHECK(a.size == 1 << 20 && a.number == 9 && a.plain == UINT64_MAX, "numbers");
	CHECK(a.flag && a.choice == 2, "flag %d choice %d", a.flag, a.choice);
	CHECK(a.list.count == 3 && !strcmp(a.list.items[0], "a") && !strcmp(a.list.items[2], "c"),
	      "list of %zu", a.list.count);
	snprintf(want, sizeof(want), "%s/y", cwd);
	CHECK(a.paths.count == 2 && !strcmp(a.paths.items[0], "/x") &&
		      !strcmp(a.paths.items[1], want),
	      "paths of %zu", a.paths.count);
	ubd_device_free(dev);
}

static void test_defaults(void)
{
	struct ubd_device *dev;

	REQUIRE(given(&target, &dev, (const char *const[]){NULL}) == 0, "%s",
		ubd_device_error(dev));
	CHECK(!a.string && !a.path && a.size == 65536 && !a.number && !a.flag, "defaults");
	CHECK(a.choice == 1 && !a.list.count && !a.paths.count, "defaults");
	ubd_device_free(dev);
}

static void test_bools(void)
{
	static const char *const yes[] = {"yes", "on", "true", "1", "YES", "On"};
	static const char *const no[] = {"no", "off", "false", "0", "NO"};

	for (unsigned i = 0; i < 11; i++) {
		bool want = i < 6;
		char word[32];
		struct ubd_device *dev;

		snprintf(word, sizeof(word), "flag=%s", want ? yes[i] : no[i - 6]);
		CHECK(GIVEN(&target, &dev, word) == 0 && a.flag == want, "%s", word);
		ubd_device_free(dev);
	}
}

static void test_refusals(void)
{
	static const struct {
		const char *word;
		int err;
		const char *says; /* what the sentence must name */
	} bad[] = {
		{"nothing=1", -ENOENT, "no option \"nothing\""},
		{"number=1", -EINVAL, "2 to 9"},
		{"number=10", -EINVAL, "2 to 9"},
		{"number=-3", -EINVAL, "not a number"},
		{"number=", -EINVAL, "not a number"},
		{"number=7K", -EINVAL, "not a number"},
		{"plain=18446744073709551616", -EINVAL, "not a number"},
		{"size=511", -EINVAL, "512 to"},
		{"size=2G", -EINVAL, "512 to"},
		{"size=big", -EINVAL, "not a size"},
		{"size", -EINVAL, "needs a value"},
		{"flag=maybe", -EINVAL, "neither yes nor no"},
		{"choice=pink", -EINVAL, "red|green|blue"},
		{"choice=", -EINVAL, "red|green|blue"},
		{"choice=re", -EINVAL, "red|green|blue"},
		{"choice", -EINVAL, "needs a value"},
		{"path", -EINVAL, "needs a value"},
	};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct ubd_device *dev;
		int ret = GIVEN(&target, &dev, bad[i].word);

		CHECK(ret == bad[i].err, "%s: %d", bad[i].word, ret);
		CHECK(strstr(ubd_device_error(dev), bad[i].says), "%s: \"%s\"", bad[i].word,
		      ubd_device_error(dev));
		ubd_device_free(dev);
	}
}

static void test_twice(void)
{
	struct ubd_device *dev;

	CHECK(GIVEN(&target, &dev, "number=3", "number=4") == -EINVAL, "taken");
	CHECK(strstr(ubd_device_error(dev), "twice"), "%s", ubd_device_error(dev));
	ubd_device_free(dev);
}

static void test_needed(void)
{
	struct ubd_device *dev;

	CHECK(given(&needy, &dev, (const char *const[]){NULL}) == -EINVAL, "started without");
	CHECK(strstr(ubd_device_error(dev), "needs the option file"), "%s", ubd_device_error(dev));
	ubd_device_free(dev);
	CHECK(GIVEN(&needy, &dev, "=a", "=b") == -ENOENT, "too many");
	CHECK(strstr(ubd_device_error(dev), "\"b\""), "%s", ubd_device_error(dev));
	ubd_device_free(dev);
}

static void test_sizes(void)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},	    {"1", 1},		{"512", 512},
		{"4096B", 4096},    {"1K", 1 << 10},	{"1k", 1 << 10},
		{"3M", 3 << 20},    {"3MiB", 3 << 20},	{"2G", 2ULL << 30},
		{"1T", 1ULL << 40}, {"5P", 5ULL << 50}, {"15E", 15ULL << 60},
		{"8s", 4096},	    {"0x1000", 4096},	{"18446744073709551615", UINT64_MAX},
		{"010", 10},	    {"08K", 8192},
	};
	static const char *const bad[] = {
		"",
		" 1",
		"-1",
		"+1",
		"K",
		"1KK",
		"1KB",
		"1Ki",
		"1 K",
		"1.5G",
		"16E",
		"1Z",
		"99999999999999999999",
		"1s1",
		"0x",
		"1073741824 ",
		"1M ",
		"ten",
	};
	uint64_t n;

	for (unsigned i = 0; i < sizeof(good) / sizeof(*good); i++) {
		n = 1;
		CHECK(ubd_size_parse(good[i].text, &n) == 0 && n == good[i].bytes, "%s: %llu",
		      good[i].text, (unsigned long long)n);
	}
	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK(ubd_size_parse(bad[i], &n) == -EINVAL, "taken: \"%s\"", bad[i]);
}

static void test_words(void)
{
	for (int i = 0; i < UBD_ZC_MAX; i++)
		CHECK(ubd_zero_copy_parse(ubd_zero_copy_name((enum ubd_zero_copy)i)) == i, "%d", i);
	CHECK(ubd_zero_copy_parse("on") == UBD_ZC_AUTO, "on");
	CHECK(ubd_zero_copy_parse("") == -EINVAL && ubd_zero_copy_parse("OFF") == -EINVAL, "bad");
	CHECK(!ubd_zero_copy_name(UBD_ZC_MAX), "past the end");
	for (int i = 0; i <= UBD_RECOVER_FAIL; i++)
		CHECK(ubd_recovery_parse(ubd_recovery_name((enum ubd_recovery)i)) == i, "%d", i);
	CHECK(ubd_recovery_parse("maybe") == -EINVAL, "bad");
}

/* A way needs all of its features: those a driver offers, or a device was granted. */
static void test_offers(void)
{
	const uint64_t members = UBD_F_MEMBERS | UBLK_F_USER_COPY;

	CHECK(ubd_zero_copy_offered(UBD_ZC_OFF, 0), "off needs nothing");
	CHECK(ubd_zero_copy_offered(UBD_ZC_MEMBER, members), "member");
	CHECK(!ubd_zero_copy_offered(UBD_ZC_MEMBER, UBD_F_MEMBERS), "member without user copy");
	CHECK(!ubd_zero_copy_offered(UBD_ZC_FUSED, members), "fused without fused");
	CHECK(ubd_zero_copy_offered(UBD_ZC_LEASE, members | UBD_F_LEASE), "lease");
	CHECK(ubd_zero_copy_offered(UBD_ZC_SPLICE, members | UBD_F_SPLICE), "splice");
	CHECK(!ubd_zero_copy_offered(UBD_ZC_MAX, ~0ull), "past the end");
}

static const struct tap_case cases[] = {
	{"every type of option is parsed", test_types},
	{"defaults come from the table", test_defaults},
	{"all words for yes and no", test_bools},
	{"bad values get their sentence", test_refusals},
	{"an option is not taken twice", test_twice},
	{"required and surplus arguments", test_needed},
	{"sizes", test_sizes},
	{"names of ways and recovery modes", test_words},
	{"which ways a driver has", test_offers},
};

TAP_MAIN(cases)
