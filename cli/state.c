/* SPDX-License-Identifier: MIT */
/* What a server leaves for others to read: its state and its counters, in the run directory. */
#define _GNU_SOURCE
#include "state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "json.h"
#include "say.h"

#define STATE_MAX (1 << 20)

static void make_absolute(char *path, size_t len, const char *name)
{
	size_t n = 0;

	if (name[0] != '/' && getcwd(path, len - 1)) {
		n = strlen(path);
		path[n++] = '/';
	}
	snprintf(path + n, len - n, "%s", name);
}

static const char *dir(void)
{
	static char path[4096];
	const char *chosen = getenv("UBD_RUN_DIR"), *runtime = getenv("XDG_RUNTIME_DIR");

	/* Once: a server changes its directory later. */
	if (path[0])
		return path;
	if (chosen && *chosen)
		make_absolute(path, sizeof(path), chosen);
	else if (geteuid() != 0 && runtime && *runtime)
		snprintf(path, sizeof(path), "%s/ubd", runtime);
	else
		snprintf(path, sizeof(path), "/run/ubd");
	return path;
}

void state_dir_choose(void)
{
	setenv("UBD_RUN_DIR", dir(), 1);
}

static char *file(unsigned id, const char *suffix)
{
	return say_format("%s/%u.%s", dir(), id, suffix);
}

const char *state_dir_make(const char **why)
{
	static char reason[4200];
	struct stat st;

	if (mkdir(dir(), 0755) < 0 && errno != EEXIST)
		snprintf(reason, sizeof(reason), "cannot make the directory %s: %s", dir(),
			 strerror(errno));
	else if (stat(dir(), &st) < 0 || !S_ISDIR(st.st_mode))
		snprintf(reason, sizeof(reason), "%s is not a directory", dir());
	else if (access(dir(), W_OK | X_OK) < 0)
		snprintf(reason, sizeof(reason), "cannot write to %s: %s", dir(), strerror(errno));
	else
		return dir();
	*why = reason;
	return NULL;
}

int state_write(unsigned id, json_object *doc)
{
	const char *text = json_text(doc);
	size_t len = strlen(text);
	char *name = file(id, "json");
	char *fresh = say_format("%s.%d", name, (int)getpid());
	int ret = 0, fd;

	unlink(fresh); /* of a server that was killed here and had our number */
	fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0) {
		ret = -errno;
		goto out;
	}
	/* Readable by all whatever the umask; a reader sees the old state or the new one. */
	if (fchmod(fd, 0644) < 0 || write(fd, text, len) != (ssize_t)len ||
	    write(fd, "\n", 1) != 1 || rename(fresh, name) < 0)
		ret = errno ? -errno : -ENOSPC;
	close(fd);
	if (ret)
		unlink(fresh);
out:
	free(fresh);
	free(name);
	return ret;
}

json_object *state_read(unsigned id)
{
	char *name = file(id, "json");
	int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	json_object *doc = NULL;
	struct stat st;

	free(name);
	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size < STATE_MAX)
		doc = json_object_from_fd(fd);
	close(fd);
	if (doc &&
	    (!json_object_is_type(doc, json_type_object) || json_get_number(doc, "id") != id)) {
		json_object_put(doc);
		doc = NULL;
	}
	return doc;
}

void state_remove(unsigned id)
{
	static const char *const suffixes[] = {"json", "stats", "sock"};

	for (size_t i = 0; i < ARRAY_SIZE(suffixes); i++) {
		char *name = file(id, suffixes[i]);

		unlink(name);
		free(name);
	}
}

bool state_server(const json_object *doc, struct process *server)
{
	pid_t pid = (pid_t)json_get_number(doc, "pid");

	return process_read(pid, server) && server->born == json_get_number(doc, "pid_started");
}

void state_each(void (*fn)(unsigned id, void *arg), void *arg)
{
	DIR *d = opendir(dir());
	struct dirent *entry;

	while (d && (entry = readdir(d))) {
		unsigned id;
		int len = 0;

		if (sscanf(entry->d_name, "%u.json%n", &id, &len) == 1 && len &&
		    !entry->d_name[len])
			fn(id, arg);
	}
	if (d)
		closedir(d);
}

/* ---- The socket --------------------------------------------------------------------------- */

/* By way of the open directory: its path may be too long for an address. */
static int open_socket(unsigned id, bool listening)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int d = open(dir(), O_PATH | O_DIRECTORY | O_CLOEXEC), ret = -1;

	if (fd >= 0 && d >= 0) {
		snprintf(a.sun_path, sizeof(a.sun_path), "/proc/self/fd/%d/%u.sock", d, id);
		if (!listening) {
			ret = connect(fd, (struct sockaddr *)&a, sizeof(a));
		} else {
			unlink(a.sun_path); /* of an earlier device */
			ret = bind(fd, (struct sockaddr *)&a, sizeof(a));
			ret = ret ? ret : chmod(a.sun_path, 0600);
			ret = ret ? ret : listen(fd, 8);
		}
	}
	ret = ret < 0 ? -errno : fd;
	if (d >= 0)
		close(d);
	if (ret < 0 && fd >= 0)
		close(fd);
	return ret;
}

int state_listen(unsigned id)
{
	return open_socket(id, true);
}

int state_connect(unsigned id)
{
	return open_socket(id, false);
}

/* ---- Counters ----------------------------------------------------------------------------- */

struct state_stats *state_stats_create(unsigned id)
{
	char *name = file(id, "stats");
	void *page = MAP_FAILED;
	int fd, err;

	/* Never write into the file of an earlier device: somebody may have it mapped. */
	unlink(name);
	fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
	free(name);
	if (fd < 0)
		return NULL;
	errno = fchmod(fd, 0644) < 0 ? errno : posix_fallocate(fd, 0, STATE_STATS_LEN);
	if (!errno)
		page = mmap(NULL, STATE_STATS_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	err = errno;
	close(fd);
	errno = err;
	return page == MAP_FAILED ? NULL : page;
}

void state_stats_publish(struct state_stats *page, const struct ubd_stats *stats)
{
	__atomic_store_n(&page->seq, page->seq + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	page->size = sizeof(*page);
	page->time = (uint64_t)time(NULL);
	page->stats = *stats;
	page->magic = STATE_STATS_MAGIC;
	__atomic_store_n(&page->seq, page->seq + 1, __ATOMIC_RELEASE);
}

bool state_stats_read(unsigned id, struct state_stats *copy)
{
	char *name = file(id, "stats");
	int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct state_stats again;
	bool good = false;

	free(name);
	if (fd < 0)
		return false;
	/* Two equal readings: the server was not writing in between. */
	for (int tries = 0; tries < 1000 && !good; tries++)
		good = pread(fd, copy, sizeof(*copy), 0) == (ssize_t)sizeof(*copy) &&
		       pread(fd, &again, sizeof(again), 0) == (ssize_t)sizeof(again) &&
		       !(copy->seq & 1) && copy->seq == again.seq;
	close(fd);
	return good && copy->magic == STATE_STATS_MAGIC;
}
