/* SPDX-License-Identifier: MIT */
/*
 * The driver fuzzer's parts: a random source that can be replayed, what all processes count
 * together, and the three kinds of worker.
 */
#ifndef DRIVER_FUZZ_H
#define DRIVER_FUZZ_H

#include <liburing.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "../lib/random.h"
#include "uapi/ublk.h"

#define FUZZ_FIRST_ID 300

struct fuzz {
	uint64_t seed;
	unsigned devices;
	uint64_t features;
	bool tame; /* keep away from what is known to bring in-tree drivers down */
	atomic_ulong commands;
	atomic_ulong refused;
	atomic_ulong started; /* START_DEV and END_USER_RECOVERY that succeeded */
	atomic_ulong requests;
	atomic_ulong transfers; /* by user copy */
	atomic_ulong client_ok;
	atomic_ulong client_failed;
};

/* The state of a worker's own numbers. */
uint64_t fuzz_seed(uint64_t seed, uint64_t a, uint64_t b);
/* True once in n times. */
bool fuzz_once_in(uint64_t *rng, unsigned n);
/* Flip some bits of some bytes. */
void fuzz_mutate(uint64_t *rng, void *buf, size_t bytes);

uint64_t fuzz_now_ms(void);

/* A ring with /dev/ublk-control; commands are begun and reaped later, since some never end. */
struct fuzz_ctrl {
	int fd;
	struct io_uring ring;
	unsigned in_flight;
};

int fuzz_ctrl_open(struct fuzz_ctrl *c);
void fuzz_ctrl_close(struct fuzz_ctrl *c);
/* Begin a command; tag comes back with its result. */
void fuzz_ctrl_send(struct fuzz *f, struct fuzz_ctrl *c, uint32_t op,
		    const struct ublksrv_ctrl_cmd *cmd, uint64_t tag);
/* The result of any command that ends within ms; false when none does. */
bool fuzz_ctrl_reap(struct fuzz *f, struct fuzz_ctrl *c, unsigned ms, uint64_t *tag, int *res);
/* One command and its result, -ETIME when it does not end within a second. */
int fuzz_ctrl_run(struct fuzz *f, struct fuzz_ctrl *c, uint32_t op,
		  const struct ublksrv_ctrl_cmd *cmd);

/* Valid for the most part, so that it gets somewhere. */
void fuzz_dev_info(struct fuzz *f, uint64_t *rng, struct ublksrv_ctrl_dev_info *info);
void fuzz_params(uint64_t *rng, uint64_t flags, struct ublk_params *p);

/* Workers: run until they have had enough, or are killed. */
void fuzz_server(struct fuzz *f, uint64_t *rng);
void fuzz_controller(struct fuzz *f, uint64_t *rng);
void fuzz_client(struct fuzz *f, uint64_t *rng);

#endif
