/* SPDX-License-Identifier: MIT */
/* Coroutines: switching, many at once, reuse, registers kept, guard pages. */
#include <coro.h>

#include <fenv.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <tap.h>

#define STACK (64 * 1024)

static struct coro_pool pool;
static char trace[64];
static unsigned trace_len;

static void mark(char c)
{
	if (trace_len < sizeof(trace) - 1)
		trace[trace_len++] = c;
}

static void start_trace(void)
{
	memset(trace, 0, sizeof(trace));
	trace_len = 0;
	coro_pool_init(&pool, STACK, false);
}

static void thrice(void *arg)
{
	for (int i = 0; i < 3; i++) {
		mark(*(char *)arg);
		coro_suspend(&pool);
	}
	mark('.');
}

static void test_switch(void)
{
	char names[2] = "ab";
	struct coro *a, *b;

	start_trace();
	a = coro_new(&pool, thrice, &names[0]);
	b = coro_new(&pool, thrice, &names[1]);
	REQUIRE(a && b, "no memory");
	CHECK(pool.live == 2, "%u", pool.live);
	for (int i = 0; i < 4; i++) {
		coro_enter(a);
		CHECK(!pool.current, "current after a");
		coro_enter(b);
	}
	CHECK(!strcmp(trace, "ababab.."), "%s", trace);
	CHECK(pool.live == 0, "%u", pool.live);
	coro_pool_destroy(&pool);
}

static void none(void *arg)
{
	++*(unsigned *)arg;
}

static void test_reuse(void)
{
	unsigned runs = 0;
	struct coro *first = NULL;

	start_trace();
	for (int i = 0; i < 10000; i++) {
		struct coro *co = coro_new(&pool, none, &runs);

		REQUIRE(co, "no memory");
		if (!first)
			first = co;
		CHECK(co == first, "a new stack in round %d", i);
		coro_enter(co);
	}
	CHECK(runs == 10000, "%u", runs);
	coro_pool_destroy(&pool);
}

/* Starts another coroutine, which its maker enters later: as a queue does. */
static struct coro *child;

static void parent(void *arg)
{
	mark('p');
	child = coro_new(&pool, thrice, arg);
	coro_suspend(&pool);
	mark('q');
}

static void test_nested(void)
{
	struct coro *p;

	start_trace();
	p = coro_new(&pool, parent, "c");
	coro_enter(p);
	CHECK(child && child != p, "child");
	coro_enter(child);
	coro_enter(p);
	while (!child->done)
		coro_enter(child);
	CHECK(!strcmp(trace, "pcqcc."), "%s", trace);
	coro_pool_destroy(&pool);
}

struct sum {
	unsigned seed;
	uint64_t total;
	double real;
};

/* Keeps values in registers and on the stack across many switches. */
static void add_up(void *arg)
{
	struct sum *s = arg;
	uint64_t a = s->seed, b = a * 3, c = a * 5, d = a * 7, e = a * 11, f = a * 13;
	double r = a, t = a / 2.0;
	volatile char pad[2048];

	memset((char *)pad, (int)s->seed, sizeof(pad));
	for (unsigned i = 0; i < 20; i++) {
		a += i, b ^= a, c += b, d ^= c, e += d, f ^= e;
		r += t / (i + 1);
		coro_suspend(&pool);
		if (pad[i * 100] != (char)s->seed)
			s->seed = 0;
	}
	s->total = a + b + c + d + e + f;
	s->real = r;
}

static void expected(struct sum *s)
{
	uint64_t a = s->seed, b = a * 3, c = a * 5, d = a * 7, e = a * 11, f = a * 13;
	double r = a, t = a / 2.0;

	for (unsigned i = 0; i < 20; i++) {
		a += i, b ^= a, c += b, d ^= c, e += d, f ^= e;
		r += t / (i + 1);
	}
	s->total = a + b + c + d + e + f;
	s->real = r;
}

static void test_thousands(void)
{
	enum { N = 4000 };
	static struct sum sums[N];
	static struct coro *cos[N];

	start_trace();
	CHECK(coro_pool_reserve(&pool, 100) == 0, "reserve");
	for (unsigned i = 0; i < N; i++) {
		sums[i] = (struct sum){.seed = i + 1};
		cos[i] = coro_new(&pool, add_up, &sums[i]);
		REQUIRE(cos[i], "no memory for coroutine %u", i);
	}
	for (int round = 0; round <= 20; round++)
		for (unsigned i = 0; i < N; i++)
			coro_enter(cos[round % 2 ? N - 1 - i : i]);
	for (unsigned i = 0; i < N; i++) {
		struct sum want = {.seed = i + 1};

		expected(&want);
		REQUIRE(cos[i]->done, "%u not done", i);
		REQUIRE(sums[i].total == want.total && sums[i].real == want.real, "sum %u", i);
	}
	CHECK(pool.live == 0, "%u", pool.live);
	coro_pool_destroy(&pool);
}

static void check_stack(void *arg)
{
	uintptr_t here = (uintptr_t)__builtin_frame_address(0);

	/* What the ABI promises to code that uses SSE on the stack. */
	*(bool *)arg = here % 16 == 0;
}

static void test_alignment(void)
{
	bool aligned = false;

	start_trace();
	coro_enter(coro_new(&pool, check_stack, &aligned));
	CHECK(aligned, "the frame is not aligned to 16");
	coro_pool_destroy(&pool);
}

/* Recursion the compiler cannot turn into a loop. */
static unsigned __attribute__((noinline)) deeper(unsigned n)
{
	volatile char frame[512];

	frame[n % 512] = (char)n;
	return n ? deeper(n + 1) + (unsigned)frame[n % 512] : 0;
}

static void overrun(void *arg)
{
	(void)arg;
	deeper(1);
}

static void test_guard(void)
{
	int status = 0;
	pid_t pid = fork();

	REQUIRE(pid >= 0, "fork");
	if (!pid) {
		static char stack[65536];
		stack_t alt = {.ss_sp = stack, .ss_size = sizeof(stack)};

		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
		sigaltstack(&alt, NULL);
		signal(SIGSEGV, SIG_DFL);
		freopen("/dev/null", "w", stderr);
		start_trace();
		coro_pool_reserve(&pool, 8);
		coro_enter(coro_new(&pool, overrun, NULL));
		_exit(0);
	}
	REQUIRE(waitpid(pid, &status, 0) == pid, "waitpid");
	/* Sanitizers turn the signal into a report and exit status 1 or so. */
	CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) ||
		      (WIFEXITED(status) && WEXITSTATUS(status)),
	      "an overrun stack went unnoticed: status %#x", (unsigned)status);
}

static const struct tap_case cases[] = {
	{"two coroutines take turns", test_switch},
	{"a finished coroutine's stack is used again", test_reuse},
	{"a coroutine makes another", test_nested},
	{"4000 at once keep their registers and stacks", test_thousands},
	{"stacks are aligned", test_alignment},
	{"an overrun meets the guard page", test_guard},
};

TAP_MAIN(cases)
