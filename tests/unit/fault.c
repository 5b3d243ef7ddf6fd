/* SPDX-License-Identifier: MIT */
/* Plans of failures on purpose: what is understood and when it hits. */
#include <fault.h>

#include <errno.h>

#include <tap.h>

static void test_good(void)
{
	struct fault f;

	CHECK(fault_parse(&f, "sqe:3:EIO") == 0, "names");
	CHECK(f.armed && f.plan[FAULT_SQE].nth == 3 && f.plan[FAULT_SQE].err == EIO, "plan");
	CHECK(!f.plan[FAULT_SQE].sticky, "once");
	CHECK(fault_parse(&f, "ctrl:2+:110,commit:1:ENOMEM") == 0, "two plans, a number");
	CHECK(f.plan[FAULT_CTRL].err == 110 && f.plan[FAULT_CTRL].sticky, "ctrl");
	CHECK(f.plan[FAULT_COMMIT].err == ENOMEM && !f.plan[FAULT_SQE].nth, "commit");
	CHECK(fault_parse(&f, NULL) == 0 && !f.armed, "none");
	CHECK(fault_parse(&f, "") == 0 && !f.armed, "empty");
}

static void test_bad(void)
{
	static const char *const bad[] = {
		"x",	     "sqe",	    "sqe:",	  "sqe:1",	 "sqe:0:EIO",  "sqe:a:EIO",
		"sqe:1:",    "sqe:1:EWHAT", "sqe:1:-5",	  "sqe:1:0",	 "sqe:1:5000", "disk:1:EIO",
		"sqe:1+EIO", ":1:EIO",	    "sqe:1:EIO:", "sqe:1:EIO,x",
	};
	struct fault f;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK(fault_parse(&f, bad[i]) == -EINVAL, "taken: \"%s\"", bad[i]);
}

static void test_hits(void)
{
	struct fault f;

	fault_parse(&f, "sqe:2:EIO,fetch:3+:ENODEV");
	CHECK(fault_hit(&f, FAULT_SQE) == 0, "first");
	CHECK(fault_hit(&f, FAULT_COMMIT) == 0, "another kind");
	CHECK(fault_hit(&f, FAULT_SQE) == -EIO, "second");
	CHECK(fault_hit(&f, FAULT_SQE) == 0, "third");
	for (int i = 1; i <= 6; i++)
		CHECK(fault_hit(&f, FAULT_FETCH) == (i < 3 ? 0 : -ENODEV), "fetch %d", i);
}

static const struct tap_case cases[] = {
	{"plans are understood", test_good},
	{"nonsense is refused", test_bad},
	{"the nth hits, once or from then on", test_hits},
};

TAP_MAIN(cases)
