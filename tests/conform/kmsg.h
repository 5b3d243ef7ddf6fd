/* SPDX-License-Identifier: MIT */
/* The kernel's complaints, as they come. */
#ifndef CONFORM_KMSG_H
#define CONFORM_KMSG_H

#include <stdbool.h>
#include <stddef.h>

/* From now on. */
void kmsg_open(void);
/* The next message since then that says that something is wrong in the kernel, if any. */
bool kmsg_next_splat(char *line, size_t bytes);

#endif
