// SPDX-License-Identifier: MIT
/*
 * The suite's main program: picks the cases, runs each in a process group of its own under its time
 * limit, cleans up after it and prints TAP. See harness.h.
 */
#include "harness.h"

#include "ctrl.h"
#include "differences.h"
#include "job.h"
#include "kmsg.h"

#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_DEVICES 1024
#define CLEAN_LIMIT_MS 20000

enum outcome { CASE_PASSED, CASE_FAILED, CASE_SKIPPED };

/* What a case tells the runner. */
static struct board {
	unsigned failures;
	bool skipped;
	bool ended; /* by its own will */
	char reason[256];
	unsigned nr_devices;
	uint32_t devices[MAX_DEVICES];
	uint64_t features;
} * board;

static struct conform_case *first_case, **last_case = &first_case;
static unsigned limit_factor = 1;

unsigned conform_slow(void)
{
	return limit_factor;
}

void conform_register(struct conform_case *c)
{
	*last_case = c;
	last_case = &c->next;
}

/* ---- What cases call --------------------------------------------------------------------- */

uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void sleep_ms(unsigned ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};

	while (nanosleep(&ts, &ts))
		;
}

const char *conform_errname(long result)
{
	static char texts[4][48];
	static unsigned next;
	char *text = texts[next++ % 4];
	const char *errname = result < 0 ? strerrorname_np((int)-result) : NULL;

	if (errname)
		snprintf(text, sizeof(texts[0]), "%ld (%s)", result, errname);
	else
		snprintf(text, sizeof(texts[0]), "%ld", result);
	return text;
}

void conform_fail(const char *file, int line, const char *fmt, ...)
{
	const char *base = strrchr(file, '/');
	va_list ap;

	board->failures++;
	printf("# %s:%d: ", base ? base + 1 : file, line);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
}

void conform_note(const char *fmt, ...)
{
	va_list ap;

	printf("# ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
}

void conform_end(void)
{
	board->ended = true;
	fflush(stdout);
	_exit(0);
}

void conform_skip(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(board->reason, sizeof(board->reason), fmt, ap);
	va_end(ap);
	board->skipped = true;
	conform_end();
}

void conform_need_group(const char *group)
{
	const struct difference *d = difference_find(group);

	if (d && d->kind == DIFF_NOT_RUN)
		conform_skip("not run on %s: %s", driver_name(), d->reason);
}

bool conform_result(const char *file, int line, const char *aspect, long actual, long expected)
{
	const struct difference *d = difference_find(aspect);

	if (d && d->kind == DIFF_ANY)
		return true;
	if (d && d->kind == DIFF_RESULT)
		expected = d->result;
	if (actual == expected)
		return true;
	conform_fail(file, line, "%s: got %s, not %s", aspect, conform_errname(actual),
		     conform_errname(expected));
	return false;
}

void conform_track_device(uint32_t id)
{
	for (unsigned i = 0; i < board->nr_devices; i++) {
		if (board->devices[i] == id)
			return;
	}
	if (board->nr_devices < MAX_DEVICES)
		board->devices[board->nr_devices++] = id;
}

uint64_t conform_features(void)
{
	return board->features;
}

const char *conform_feature_names(uint64_t flags)
{
	static const char *const names[] = {
		"SUPPORT_ZERO_COPY",
		"URING_CMD_COMP_IN_TASK",
		"NEED_GET_DATA",
		"USER_RECOVERY",
		"USER_RECOVERY_REISSUE",
		"UNPRIVILEGED_DEV",
		"CMD_IOCTL_ENCODE",
		"USER_COPY",
		"ZONED",
		"USER_RECOVERY_FAIL_IO",
		"UPDATE_SIZE",
		"AUTO_BUF_REG",
		"QUIESCE",
		"PER_IO_DAEMON",
		"BUF_REG_OFF_DAEMON",
		"BATCH_IO",
		"INTEGRITY",
		"SAFE_STOP_DEV",
		"NO_AUTO_PART_SCAN",
		"SHMEM_ZC",
		"IO_DESC_SIZE",
	};
	static char text[512];
	size_t len = 0;

	text[0] = 0;
	for (unsigned i = 0; i < 64; i++) {
		if (!(flags >> i & 1) || len >= sizeof(text) - 32)
			continue;
		if (i < sizeof(names) / sizeof(names[0]))
			len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%s",
						len ? " " : "", names[i]);
		else
			len += (size_t)snprintf(text + len, sizeof(text) - len, "%sbit %u",
						len ? " " : "", i);
	}
	return text;
}

void conform_need_features(uint64_t flags)
{
	uint64_t missing = flags & ~board->features;

	if (missing)
		conform_skip("not offered by this driver: %s", conform_feature_names(missing));
}

/* ---- Running one case -------------------------------------------------------------------- */

static void show_stuck(pid_t pid)
{
	static const char *const files[] = {"comm", "wchan", "stack"};
	char path[64], line[256];

	printf("# process %d does not end:\n", (int)pid);
	for (unsigned i = 0; i < 3; i++) {
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, files[i]);
		f = fopen(path, "r");
		if (!f)
			continue;
		while (fgets(line, sizeof(line), f)) {
			line[strcspn(line, "\n")] = 0;
			printf("#   %s: %s\n", files[i], line);
		}
		fclose(f);
	}
}

static void show_group(pid_t group)
{
	DIR *dir = opendir("/proc");
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		pid_t pid = (pid_t)atoi(e->d_name);

		if (pid > 0 && getpgid(pid) == group)
			show_stuck(pid);
	}
	if (dir)
		closedir(dir);
}

/* Kill all that the case started; false when something does not die. */
static bool kill_group(pid_t group)
{
	uint64_t until = now_ms() + CLEAN_LIMIT_MS;
	bool shown = false;

	while (kill(-group, SIGKILL) == 0 || errno == EPERM) {
		while (waitpid(-group, NULL, WNOHANG) > 0)
			;
		if (!shown && now_ms() > until - CLEAN_LIMIT_MS / 2) {
			show_group(group);
			shown = true;
		}
		if (now_ms() > until)
			return false;
		sleep_ms(2);
	}
	return true;
}

static void remove_device(uint32_t id)
{
	struct ctrl stop = {.op = UBLK_U_CMD_STOP_DEV, .id = id};
	struct ctrl del = {.op = UBLK_U_CMD_DEL_DEV, .id = id};
	char path[128];

	/* An unprivileged device's commands begin with its path, whoever gives them. */
	snprintf(path, sizeof(path), "/dev/ublkc%u", id);
	stop.buf = del.buf = path;
	stop.path_len = del.path_len = (uint16_t)(strlen(path) + 1);
	stop.len = del.len = (uint16_t)sizeof(path);
	ctrl_direct(&stop);
	ctrl_direct(&del);
}

/* Returns whether a tracked device was still there. */
static bool remove_devices(bool *stuck)
{
	bool found = false;

	*stuck = false;
	for (unsigned i = 0; i < board->nr_devices; i++) {
		uint64_t until = now_ms() + CLEAN_LIMIT_MS;
		char path[64];
		pid_t pid;

		snprintf(path, sizeof(path), "/sys/class/ublk-char/ublkc%u", board->devices[i]);
		if (access(path, F_OK))
			continue;
		found = true;
		pid = fork();
		if (pid == 0) {
			setpgid(0, 0);
			remove_device(board->devices[i]);
			_exit(0);
		}
		while (waitpid(pid, NULL, WNOHANG) == 0 && now_ms() < until)
			sleep_ms(2);
		if (access(path, F_OK))
			continue;
		*stuck = true;
		show_stuck(pid);
		kill(pid, SIGKILL);
	}
	return found;
}

static _Noreturn void run_child(const struct conform_case *c)
{
	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	jobs_init();
	c->run();
	conform_end();
}

static bool wait_child(pid_t pid, const struct conform_case *c, int *status)
{
	uint64_t until = now_ms() + c->limit_s * 1000ULL * limit_factor;
	unsigned nap = 1;

	while (waitpid(pid, status, WNOHANG) == 0) {
		if (now_ms() > until)
			return false;
		sleep_ms(nap);
		if (nap < 10)
			nap++;
	}
	return true;
}

static enum outcome run_case(const struct conform_case *c)
{
	char splat[512];
	int status = 0;
	bool stuck;
	pid_t pid;

	memset(board, 0, offsetof(struct board, features));
	fflush(stdout);
	pid = fork();
	if (pid == 0)
		run_child(c);
	setpgid(pid, pid);
	if (!wait_child(pid, c, &status))
		conform_fail(c->name, 0, "not done after %u s", c->limit_s * limit_factor);
	else if (!board->ended)
		conform_fail(c->name, 0, "the case died (status 0x%x)", status);
	if (!kill_group(pid))
		conform_fail(c->name, 0, "something it started cannot be killed");
	if (remove_devices(&stuck) && !board->skipped && !board->failures)
		conform_fail(c->name, 0, "it left a device behind");
	if (stuck)
		conform_fail(c->name, 0, "a device cannot be deleted");
	while (kmsg_next_splat(splat, sizeof(splat)))
		conform_fail(c->name, 0, "the kernel complained: %s", splat);
	if (board->failures)
		return CASE_FAILED;
	return board->skipped ? CASE_SKIPPED : CASE_PASSED;
}

static enum outcome report_case(const struct conform_case *c, unsigned nr)
{
	const struct difference *d = difference_find(c->name);
	uint64_t start = now_ms();
	enum outcome outcome;

	if (d && d->kind == DIFF_NOT_RUN) {
		printf("ok %u - %s # SKIP not run on %s: %s\n", nr, c->name, driver_name(),
		       d->reason);
		return CASE_SKIPPED;
	}
	outcome = run_case(c);
	printf("%sok %u - %s%s%s\n", outcome == CASE_FAILED ? "not " : "", nr, c->name,
	       outcome == CASE_SKIPPED ? " # SKIP " : "",
	       outcome == CASE_SKIPPED ? board->reason : "");
	if (now_ms() - start > 10000)
		printf("# took %u s\n", (unsigned)((now_ms() - start) / 1000));
	fflush(stdout);
	return outcome;
}

/* ---- The command line -------------------------------------------------------------------- */

static bool wanted(const struct conform_case *c, char **names, int nr)
{
	for (int i = 0; i < nr; i++) {
		size_t len = strlen(names[i]);

		if (!strcmp(names[i], c->name))
			return true;
		if (len && names[i][len - 1] == '*' && !strncmp(names[i], c->name, len - 1))
			return true;
	}
	return nr == 0;
}

static void usage(FILE *f)
{
	fputs("usage: conform [--driver intree|ours] [--slow N] [--list] [NAME | PREFIX*]...\n"
	      "Runs the conformance cases on the ublk driver of the running kernel, as root.\n"
	      "  --driver  whose driver it is (intree)\n"
	      "  --slow    multiply all time limits by N\n"
	      "  --list    print the names of the cases\n",
	      f);
}

static uint64_t probe_features(void)
{
	uint64_t features = 0;
	struct ctrl c = {
		.op = UBLK_U_CMD_GET_FEATURES,
		.buf = &features,
		.len = UBLK_FEATURES_LEN,
	};
	long res = ctrl_direct(&c);

	if (res) {
		fprintf(stderr,
			"conform: GET_FEATURES on /dev/ublk-control failed: %s; is a ublk "
			"driver loaded, and are you root?\n",
			conform_errname(res));
		exit(2);
	}
	return features;
}

static int run_cases(char **names, int nr_names)
{
	unsigned total = 0, nr = 0, counts[3] = {0, 0, 0};

	for (struct conform_case *c = first_case; c; c = c->next)
		total += wanted(c, names, nr_names);
	if (!total) {
		fprintf(stderr, "conform: no case is called %s; see conform --list\n", names[0]);
		return 2;
	}
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	board->features = probe_features();
	kmsg_open();
	printf("# %s offers: %s\n1..%u\n", driver_name(), conform_feature_names(board->features),
	       total);
	for (struct conform_case *c = first_case; c; c = c->next) {
		if (wanted(c, names, nr_names))
			counts[report_case(c, ++nr)]++;
	}
	printf("# %s: %u passed, %u failed, %u skipped\n", driver_name(), counts[CASE_PASSED],
	       counts[CASE_FAILED], counts[CASE_SKIPPED]);
	printf("%u passed, %u failed, %u skipped\n", counts[CASE_PASSED], counts[CASE_FAILED],
	       counts[CASE_SKIPPED]);
	return counts[CASE_FAILED] ? 1 : 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"driver", required_argument, NULL, 'd'},
		{"slow", required_argument, NULL, 's'},
		{"list", no_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	const char *driver = "intree";
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 'l') {
			for (struct conform_case *c = first_case; c; c = c->next)
				puts(c->name);
			return 0;
		}
		if (opt == 'd')
			driver = optarg;
		else if (opt == 's')
			limit_factor = (unsigned)atoi(optarg) ? (unsigned)atoi(optarg) : 1;
		else {
			usage(opt == 'h' ? stdout : stderr);
			return opt == 'h' ? 0 : 2;
		}
	}
	if (driver_select(driver)) {
		fprintf(stderr, "conform: --driver is intree or ours, not %s\n", driver);
		return 2;
	}
	return run_cases(argv + optind, argc - optind);
}
