/* SPDX-License-Identifier: MIT */
/* Who references which host cluster: counting from the tables themselves, refcounts unseen. */
#ifndef UBD_QCOW2_CENSUS_H
#define UBD_QCOW2_CENSUS_H

#include "qcow2.h"

#define CENSUS_OLD (1u << 31)	/* part of the image as it is: not to be overwritten */
#define CENSUS_TABLE (1u << 30) /* an L2 table in .tables */
#define CENSUS_COUNT (CENSUS_TABLE - 1)

/* An L2 table, and how often it counts in the image to come. */
struct census_table {
	uint64_t cluster;
	uint32_t times;
};

struct census {
	struct qc_image *img;
	struct ubd_queue *q;
	uint32_t *marks; /* of each host cluster: CENSUS_*, references in the image to come */
	uint64_t room;	 /* clusters in .marks */
	uint64_t top;	 /* the highest used, plus 1 */
	uint64_t cursor; /* no free one below */
	struct census_table *tables;
	size_t nr_tables;
	uint64_t l1_entries; /* looked at: bounds the work a hostile image can ask for */
	uint8_t *buffer;     /* a cluster */
};

int census_begin(struct census *c, struct qc_image *img, struct ubd_queue *q);
void census_end(struct census *c);
/* `count` clusters from the byte pos on: add `times` references, and flags. */
int census_mark(struct census *c, uint64_t pos, uint64_t count, uint32_t times, uint32_t flags);
/* An L1 table, its own clusters and its L2 tables; these count `times` times. */
int census_l1(struct census *c, uint64_t pos, uint64_t entries, uint32_t times);
/* The refcount structure as it is: not counted, but not to be overwritten. */
int census_spare_refcounts(struct census *c);
/* The data of the L2 table in .buffer, which is at pos. */
int census_entries(struct census *c, uint64_t pos, uint32_t times);
/* The data of all L2 tables met by census_l1(). */
int census_tables(struct census *c);
/* -EIO, with a sentence. */
int census_damaged(struct census *c, const char *what, uint64_t pos);
/* Clusters in a row that neither the image as it is nor the one to come uses; now referenced. */
int census_take(struct census *c, uint64_t count, uint64_t *pos);
/* The same, with what is to be in them. */
int census_put(struct census *c, const void *data, uint64_t count, uint64_t *pos);

#endif
