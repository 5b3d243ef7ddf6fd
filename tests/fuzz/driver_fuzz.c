// SPDX-License-Identifier: MIT
/*
 * Fuzzes the ublk driver of the running kernel: servers, controllers and clients, many at a time,
 * do what makes sense and what does not to a handful of devices, and are killed at random. In the
 * end every device must be removable and the kernel must not have complained.
 *
 * A seed gives every worker the same decisions again; how workers interleave is the kernel's.
 */
#include "fuzz.h"

#include "../conform/kmsg.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_WORKERS 64
#define CLEAN_LIMIT_MS 60000

/* Killed and not dead after this long, a worker waits in the kernel for a device. */
#define STUCK_MS 1000
#define MAX_STUCK 48

struct worker {
	pid_t pid;
	unsigned generation;
	uint64_t killed_at;
};

static struct fuzz *fuzz;
static unsigned stuck; /* workers whose place others have taken */

/*
 * Commands with mutated addresses make the kernel write near what was meant; what all processes
 * share is therefore near nothing.
 */
static void *shared_far_away(size_t bytes)
{
	size_t gap = 4ULL << 30;
	uint8_t *room =
		mmap(NULL, 2 * gap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	void *p;

	if (room == MAP_FAILED)
		return NULL;
	p = mmap(room + gap, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
		 -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static uint64_t probe_features(void)
{
	uint64_t features = 0;
	struct ublksrv_ctrl_cmd cmd = {
		.queue_id = (uint16_t)-1,
		.len = UBLK_FEATURES_LEN,
		.addr = (uint64_t)(uintptr_t)&features,
	};
	struct fuzz_ctrl c;
	int res = fuzz_ctrl_open(&c);

	if (!res) {
		res = fuzz_ctrl_run(fuzz, &c, UBLK_U_CMD_GET_FEATURES, &cmd);
		fuzz_ctrl_close(&c);
	}
	if (res) {
		fprintf(stderr,
			"driver_fuzz: GET_FEATURES on /dev/ublk-control failed: %s; is a "
			"ublk driver loaded, and are you root?\n",
			strerror(-res));
		exit(2);
	}
	return features;
}

/* Of every four workers two serve, one controls, one uses. */
static void start_worker(struct worker *w, unsigned index)
{
	uint64_t rng;
	pid_t pid = fork();

	w->generation++;
	w->killed_at = 0;
	if (pid) {
		w->pid = pid;
		return;
	}
	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	rng = fuzz_seed(fuzz->seed, index, w->generation);
	if (index % 4 == 0)
		fuzz_controller(fuzz, &rng);
	else if (index % 4 == 1)
		fuzz_client(fuzz, &rng);
	else
		fuzz_server(fuzz, &rng);
	/* It found nothing to do; not so often, please. */
	usleep(20000);
	_exit(0);
}

static void reap(struct worker *workers, unsigned nr)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
		unsigned i = 0;

		while (i < nr && workers[i].pid != pid)
			i++;
		if (i < nr)
			start_worker(&workers[i], i);
		else
			stuck--;
	}
}

/* One that is stuck may be so until its device goes: another one in its place. */
static void kill_one(struct worker *w, unsigned index)
{
	if (!w->killed_at) {
		kill(w->pid, SIGKILL);
		w->killed_at = fuzz_now_ms();
	} else if (fuzz_now_ms() > w->killed_at + STUCK_MS && stuck < MAX_STUCK) {
		stuck++;
		start_worker(w, index);
	}
}

static void run_workers(struct worker *workers, unsigned nr, unsigned seconds)
{
	uint64_t until = fuzz_now_ms() + seconds * 1000ULL, next_kill = 0;
	uint64_t rng;

	rng = fuzz_seed(fuzz->seed, MAX_WORKERS, 0);
	for (unsigned i = 0; i < nr; i++)
		start_worker(&workers[i], i);
	while (fuzz_now_ms() < until) {
		reap(workers, nr);
		if (fuzz_now_ms() > next_kill) {
			unsigned i = random_below(&rng, nr);

			kill_one(&workers[i], i);
			next_kill = fuzz_now_ms() + 50 + random_below(&rng, 1000);
		}
		usleep(5000);
	}
}

static void remove_device(uint32_t id)
{
	static const uint32_t ops[] = {UBLK_U_CMD_STOP_DEV, UBLK_U_CMD_DEL_DEV};
	struct ublksrv_ctrl_cmd cmd = {.dev_id = id, .queue_id = (uint16_t)-1};
	struct fuzz_ctrl c;
	uint64_t tag;
	int res;

	if (fuzz_ctrl_open(&c))
		_exit(1);
	for (unsigned i = 0; i < 2; i++) {
		fuzz_ctrl_send(fuzz, &c, ops[i], &cmd, ops[i]);
		while (!fuzz_ctrl_reap(fuzz, &c, 1000, &tag, &res))
			;
	}
	_exit(0);
}

static void show_stuck(pid_t pid)
{
	static const char *const files[] = {"wchan", "stack"};
	char path[64], line[256];

	for (unsigned i = 0; i < 2; i++) {
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, files[i]);
		f = fopen(path, "r");
		while (f && fgets(line, sizeof(line), f)) {
			line[strcspn(line, "\n")] = 0;
			printf("# process %d %s: %s\n", (int)pid, files[i], line);
		}
		if (f)
			fclose(f);
	}
}

/* All workers dead and all devices gone? */
static bool workers_end(struct worker *workers, unsigned nr)
{
	uint64_t until = fuzz_now_ms() + CLEAN_LIMIT_MS;
	unsigned left = nr + stuck;

	/*
	 * Removal goes on meanwhile: a client that waits for a device whose server is gone for good
	 * ends only with the device.
	 */
	for (unsigned i = 0; i < nr; i++)
		kill(workers[i].pid, SIGKILL);
	for (unsigned i = 0; i < fuzz->devices; i++) {
		if (fork() == 0)
			remove_device(FUZZ_FIRST_ID + i);
	}
	left += fuzz->devices;
	while (left && fuzz_now_ms() < until) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			left--;
		usleep(10000);
	}
	for (unsigned i = 0; left && i < nr; i++) {
		if (kill(workers[i].pid, 0) == 0)
			show_stuck(workers[i].pid);
	}
	return left == 0;
}

static unsigned devices_left(void)
{
	unsigned left = 0;
	char path[64];

	for (unsigned i = 0; i < fuzz->devices; i++) {
		snprintf(path, sizeof(path), "/sys/class/ublk-char/ublkc%u", FUZZ_FIRST_ID + i);
		left += !access(path, F_OK);
	}
	return left;
}

static bool kernel_is_content(void)
{
	char line[512];
	bool content = true;

	while (kmsg_next_splat(line, sizeof(line))) {
		printf("# the kernel complained: %s\n", line);
		content = false;
	}
	return content;
}

static int report(bool ended)
{
	bool content = kernel_is_content();
	unsigned left = devices_left();
	bool worked = fuzz->started && fuzz->requests && fuzz->client_ok;

	printf("# %lu commands (%lu refused), %lu devices live, %lu requests, %lu transfers, "
	       "%lu I/Os done, %lu failed\n",
	       fuzz->commands, fuzz->refused, fuzz->started, fuzz->requests, fuzz->transfers,
	       fuzz->client_ok, fuzz->client_failed);
	printf("%sok 1 - devices came up and did I/O\n", worked ? "" : "not ");
	printf("%sok 2 - every process can be killed\n", ended ? "" : "not ");
	printf("%sok 3 - every device can be deleted\n", left ? "not " : "");
	printf("%sok 4 - the kernel does not complain\n", content ? "" : "not ");
	if (!worked || !ended || left || !content)
		printf("# again: driver_fuzz --seed %llu%s\n", (unsigned long long)fuzz->seed,
		       fuzz->tame ? " --tame" : "");
	return worked && ended && !left && content ? 0 : 1;
}

static void usage(FILE *f)
{
	fputs("usage: driver_fuzz [--seed N] [--seconds S] [--devices D] [--workers W] [--tame]\n"
	      "Fuzzes the ublk driver of the running kernel, as root.\n"
	      "  --seed     decide as that run did (the time)\n"
	      "  --seconds  how long (30)\n"
	      "  --devices  how many to fight over (3)\n"
	      "  --workers  processes at a time, 4 or more (8)\n"
	      "  --tame     no recovery, and no results that in-tree drivers are known to mind\n",
	      f);
}

static unsigned number(const char *text, const char *option, unsigned from, unsigned to)
{
	char *end;
	unsigned long n = strtoul(text, &end, 0);

	if (*end || end == text || n < from || n > to) {
		fprintf(stderr, "driver_fuzz: %s takes a number from %u to %u, not %s\n", option,
			from, to, text);
		exit(2);
	}
	return (unsigned)n;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"seed", required_argument, NULL, 'r'},
		{"seconds", required_argument, NULL, 's'},
		{"devices", required_argument, NULL, 'd'},
		{"workers", required_argument, NULL, 'w'},
		{"tame", no_argument, NULL, 't'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	struct worker workers[MAX_WORKERS] = {0};
	unsigned seconds = 30, nr = 8;
	int opt;

	fuzz = shared_far_away(sizeof(*fuzz));
	if (!fuzz)
		return 2;
	fuzz->seed = (uint64_t)time(NULL);
	fuzz->devices = 3;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'r':
			fuzz->seed = strtoull(optarg, NULL, 0);
			break;
		case 's':
			seconds = number(optarg, "--seconds", 1, 86400);
			break;
		case 'd':
			fuzz->devices = number(optarg, "--devices", 1, 64);
			break;
		case 'w':
			nr = number(optarg, "--workers", 4, MAX_WORKERS);
			break;
		case 't':
			fuzz->tame = true;
			break;
		default:
			usage(opt == 'h' ? stdout : stderr);
			return opt == 'h' ? 0 : 2;
		}
	}
	fuzz->features = probe_features();
	kmsg_open();
	printf("# seed %llu, %u s, %u devices, %u workers%s\n1..4\n",
	       (unsigned long long)fuzz->seed, seconds, fuzz->devices, nr,
	       fuzz->tame ? ", tame" : "");
	fflush(stdout);
	run_workers(workers, nr, seconds);
	return report(workers_end(workers, nr));
}
