/* SPDX-License-Identifier: MIT */
/*
 * Load on a device until it fails: several threads write and read.
 *
 *     guest-load DEVICE THREADS      prints "running", then how it ended: the first error
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIZE 16384

static atomic_int first_error;
static atomic_ulong done;

static void *work(void *arg)
{
	int fd = *(int *)arg;
	unsigned seed = (unsigned)gettid();
	void *mem;

	if (posix_memalign(&mem, 4096, SIZE))
		return NULL;
	memset(mem, 0x42, SIZE);
	while (!atomic_load(&first_error)) {
		off_t at = (off_t)(rand_r(&seed) % 256) * SIZE;
		ssize_t ret =
			rand_r(&seed) % 2 ? pwrite(fd, mem, SIZE, at) : pread(fd, mem, SIZE, at);
		int none = 0;

		if (ret != SIZE)
			atomic_compare_exchange_strong(&first_error, &none,
						       ret < 0 ? errno : EREMOTEIO);
		else if (atomic_fetch_add(&done, 1) == 20) {
			printf("running\n");
			fflush(stdout);
		}
	}
	free(mem);
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned threads = argc == 3 ? (unsigned)atoi(argv[2]) : 0;
	pthread_t ids[64];
	int fd;

	if (!threads || threads > 64)
		errx(2, "usage: guest-load DEVICE THREADS");
	fd = open(argv[1], O_RDWR | O_DIRECT);
	if (fd < 0)
		err(1, "%s", argv[1]);
	for (unsigned i = 0; i < threads; i++)
		if (pthread_create(&ids[i], NULL, work, &fd))
			errx(1, "no thread");
	for (unsigned i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	printf("ended %s\n", strerrorname_np(first_error));
	return 0;
}
