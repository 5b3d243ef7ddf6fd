/* SPDX-License-Identifier: MIT */
/* The qcow2 format: what lies where in the file. All numbers there are big-endian. */
#ifndef UBD_QCOW2_FORMAT_H
#define UBD_QCOW2_FORMAT_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_V2_HEADER 72u
#define QCOW2_V3_HEADER 104u

/* Offsets of the header's fields. */
enum {
	HDR_MAGIC = 0,
	HDR_VERSION = 4,
	HDR_BACKING_OFFSET = 8,
	HDR_BACKING_LENGTH = 16,
	HDR_CLUSTER_BITS = 20,
	HDR_SIZE = 24,
	HDR_CRYPT = 32,
	HDR_L1_ENTRIES = 36,
	HDR_L1_OFFSET = 40,
	HDR_RT_OFFSET = 48,
	HDR_RT_CLUSTERS = 56,
	HDR_SNAPSHOTS = 60,
	HDR_SNAPSHOTS_OFFSET = 64,
	HDR_INCOMPATIBLE = 72,
	HDR_AUTOCLEAR = 88,
	HDR_REFCOUNT_ORDER = 96,
	HDR_LENGTH = 100,
	HDR_COMPRESSION = 104,
};

#define INCOMPAT_DIRTY (1ull << 0)
#define INCOMPAT_CORRUPT (1ull << 1)
#define INCOMPAT_DATA_FILE (1ull << 2)
#define INCOMPAT_COMPRESSION (1ull << 3)
#define INCOMPAT_EXTENDED_L2 (1ull << 4)
#define INCOMPAT_KNOWN 0x1full
#define AUTOCLEAR_RAW_DATA (1ull << 1)

#define EXT_END 0x00000000u
#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_DATA_FILE 0x44415441u

/* Entries of L1 and L2 tables and of the refcount table. */
#define ENTRY_COPIED (1ull << 63)
#define ENTRY_PACKED (1ull << 62)
#define ENTRY_ZERO (1ull << 0)
#define ENTRY_OFFSET 0x00fffffffffffe00ull
#define RT_OFFSET_MASK 0xfffffffffffffe00ull

/* Limits of ours, those of other programs too: they bound memory. */
#define MAX_L1_BYTES (32u << 20)
#define MAX_RT_BYTES (8u << 20)
#define MAX_NAME 1023u
#define MAX_SNAPSHOTS 65536u
#define MAX_SNAPSHOT_TABLE (64u << 20)
#define MAX_CHAIN 60
#define MAX_DISK (INT64_MAX - (4ull << 20))

/* A snapshot table entry's fixed part. */
enum {
	SNAP_L1_OFFSET = 0,
	SNAP_L1_ENTRIES = 8,
	SNAP_ID_LENGTH = 12,
	SNAP_NAME_LENGTH = 14,
	SNAP_SECONDS = 16,
	SNAP_NANOSECONDS = 20,
	SNAP_EXTRA_LENGTH = 36,
	SNAP_FIXED = 40,
	SNAP_EXTRA_SIZE = 48,
	SNAP_EXTRA_END = 56,
};

/* get16(p), put16(p, value) and so on: a number at p, wherever that is. */
#define QCOW2_NUMBER(bits)                                      \
	static inline uint##bits##_t get##bits(const void *p)   \
	{                                                       \
		uint##bits##_t v;                               \
                                                                \
		memcpy(&v, p, sizeof(v));                       \
		return be##bits##toh(v);                        \
	}                                                       \
                                                                \
	static inline void put##bits(void *p, uint##bits##_t v) \
	{                                                       \
		v = htobe##bits(v);                             \
		memcpy(p, &v, sizeof(v));                       \
	}

QCOW2_NUMBER(16)
QCOW2_NUMBER(32)
QCOW2_NUMBER(64)

#endif
