// SPDX-License-Identifier: MIT
/*
 * The process that forks jobs, and the memory they share. See job.h.
 */
#include "job.h"

#include "harness.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARENA_BYTES (2ULL << 30)

static uint8_t *arena;
static size_t arena_used;
static struct job *jobs;
static int job_pipe = -1;

void *shared_alloc(size_t bytes)
{
	void *p = arena + arena_used;

	bytes = (bytes + 4095) & ~(size_t)4095;
	REQUIRE(arena_used + bytes <= ARENA_BYTES, "the case asks for too much shared memory");
	arena_used += bytes;
	return p;
}

static void run_job(struct job *job)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(job_pipe);
	job->result = job->fn(job);
	_exit(0);
}

static void fork_job(struct job *job, int sigfd, const sigset_t *mask)
{
	pid_t pid = fork();

	if (pid == 0) {
		close(sigfd);
		sigprocmask(SIG_UNBLOCK, mask, NULL);
		run_job(job);
	}
	job->pid = pid;
	sem_post(&job->started);
}

static void reap_jobs(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (int i = 0; i < JOB_MAX; i++) {
			if (jobs[i].pid == pid) {
				jobs[i].status = status;
				jobs[i].pid = 0;
				sem_post(&jobs[i].ended);
			}
		}
	}
}

static _Noreturn void forker(int in)
{
	struct signalfd_siginfo info;
	struct pollfd fds[2];
	sigset_t mask;
	uint8_t slot;

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	fds[0] = (struct pollfd){.fd = in, .events = POLLIN};
	fds[1] = (struct pollfd){.fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK),
				 .events = POLLIN};
	job_pipe = in;
	for (;;) {
		if (poll(fds, 2, -1) < 0)
			_exit(1);
		if (fds[1].revents && read(fds[1].fd, &info, sizeof(info)) > 0)
			reap_jobs();
		if (fds[0].revents) {
			if (read(in, &slot, 1) != 1)
				_exit(0);
			fork_job(&jobs[slot], fds[1].fd, &mask);
		}
	}
}

void jobs_init(void)
{
	int fds[2];
	pid_t pid;

	arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	REQUIRE(arena != MAP_FAILED, "no shared memory: %s", strerror(errno));
	jobs = shared_alloc(sizeof(*jobs) * JOB_MAX);
	for (int i = 0; i < JOB_MAX; i++)
		jobs[i].data = shared_alloc(JOB_DATA_BYTES);
	REQUIRE(pipe(fds) == 0, "no pipe: %s", strerror(errno));
	pid = fork();
	REQUIRE(pid >= 0, "cannot fork: %s", strerror(errno));
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(fds[1]);
		forker(fds[0]);
	}
	close(fds[0]);
	job_pipe = fds[1];
}

struct job *job_new(long (*fn)(struct job *job), const void *arg, size_t bytes)
{
	for (int i = 0; i < JOB_MAX; i++) {
		struct job *job = &jobs[i];

		if (job->used)
			continue;
		job->used = true;
		job->over = false;
		job->pid = 0;
		job->result = -EINPROGRESS;
		job->fn = fn;
		sem_init(&job->started, 1, 0);
		sem_init(&job->ended, 1, 0);
		REQUIRE(bytes <= sizeof(job->arg), "a job's argument is too long");
		memcpy(job->arg, arg, bytes);
		return job;
	}
	REQUIRE(false, "the case runs more than %d jobs at a time", JOB_MAX);
	return NULL;
}

void job_start(struct job *job)
{
	uint8_t slot = (uint8_t)(job - jobs);

	REQUIRE(write(job_pipe, &slot, 1) == 1, "cannot start a job: %s", strerror(errno));
	while (sem_wait(&job->started))
		;
	REQUIRE(job->pid >= 0, "cannot fork a job");
}

void job_signal(const struct job *job, int sig)
{
	pid_t pid = job->pid;

	/* Zero when it has ended, and that would mean the case's own process group. */
	if (pid > 0)
		kill(pid, sig);
}

static bool take_end(struct job *job, unsigned ms)
{
	struct timespec until;

	if (job->over)
		return true;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += ms / 1000;
	until.tv_nsec += ms % 1000 * 1000000L;
	if (until.tv_nsec >= 1000000000L) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000L;
	}
	while (sem_timedwait(&job->ended, &until)) {
		if (errno == ETIMEDOUT)
			return false;
	}
	job->over = true;
	return true;
}

bool job_ended(struct job *job)
{
	return take_end(job, 0);
}

int job_wait(struct job *job, unsigned ms, long *result)
{
	if (!take_end(job, ms))
		return JOB_RUNNING;
	if (!WIFEXITED(job->status) || WEXITSTATUS(job->status))
		return -ECHILD;
	if (result)
		*result = job->result;
	return 0;
}

void job_put(struct job *job)
{
	job->used = false;
}
