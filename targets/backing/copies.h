/* SPDX-License-Identifier: MIT */
/*
 * Metadata that is kept twice at the beginning of a file, in two copies that are written in turns:
 * a write that is cut short leaves the other copy. The newer of those that are good counts.
 */
#ifndef UBD_COPIES_H
#define UBD_COPIES_H

#include <ubd/target.h>

/* What each copy begins with. Those with an even sequence number come first in the file. */
struct copy {
	uint64_t magic;
	uint32_t crc, len; /* of all from .len on; bytes of all, with this */
	uint64_t sequence; /* rises with each copy written */
};

/*
 * Read both, room bytes each, into zeroed memory. The one that counts, a part of that; NULL:
 * neither is good. errno: why one could not be read, or 0. Blocks.
 */
void *copies_load(int fd, void *both, uint32_t room, uint64_t magic);
/*
 * Write c over the older copy, durably, with the next sequence number; after an error c has the
 * number that it had. Without a queue it blocks. 0 or -errno. [awaits]
 */
int copies_store(struct ubd_queue *q, int fd, struct copy *c, uint32_t room);

#endif
