/* SPDX-License-Identifier: MIT */
/*
 * Hostile images: copies of good ones with damaged headers, tables, refcounts, snapshots and
 * compressed data, opened, read, written, repaired. Run under sanitizers; an iteration that takes
 * longer than 60 s or memory beyond 1 GiB ends the program.
 *
 *   hostile WORK SEED SECONDS IMAGE...
 *
 * WORK/hostile is left behind when the program dies.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../../targets/qcow2/format.h"
#include "disk.h"

#define MAX_READ (16u << 20)
#define PIECE (64u << 10)

struct base {
	uint8_t *data;
	uint64_t size;
};

static uint64_t seed;

static uint64_t any(uint64_t below)
{
	return random_next(&seed) % below;
}

/* Values that a check may have forgotten. */
static uint64_t nasty(const struct base *b)
{
	uint64_t cluster = 1ull << (get32(b->data + HDR_CLUSTER_BITS) & 31);
	const uint64_t values[] = {
		0,
		1,
		8,
		9,
		63,
		64,
		511,
		512,
		cluster,
		cluster - 1,
		cluster + 512,
		cluster * 2,
		b->size,
		b->size - 1,
		(b->size & ~(cluster - 1)) + cluster,
		UINT32_MAX,
		1ull << 31,
		UINT64_MAX,
		INT64_MAX,
		1ull << 62,
		ENTRY_COPIED,
		ENTRY_PACKED,
		ENTRY_OFFSET,
		ENTRY_COPIED | get64(b->data + HDR_L1_OFFSET),
		get64(b->data + HDR_RT_OFFSET),
		ENTRY_COPIED | cluster * any(64),
		ENTRY_COPIED | ENTRY_ZERO | cluster * any(64),
		ENTRY_PACKED | random_next(&seed),
		random_next(&seed),
		1ull << any(64),
	};

	return values[any(sizeof(values) / sizeof(*values))];
}

static void damage_number(struct base *b, uint64_t at, unsigned bytes)
{
	uint64_t value;

	if (at > b->size - 8)
		return;
	value = any(4) ? nasty(b) : get64(b->data + at) ^ 1ull << any(64);
	if (bytes == 8)
		put64(b->data + at, value);
	else
		put32(b->data + at, (uint32_t)value);
}

static void damage_header(struct base *b)
{
	static const struct {
		uint8_t at, bytes;
	} fields[] = {
		{HDR_VERSION, 4},	   {HDR_BACKING_OFFSET, 8}, {HDR_BACKING_LENGTH, 4},
		{HDR_CLUSTER_BITS, 4},	   {HDR_SIZE, 8},	    {HDR_CRYPT, 4},
		{HDR_L1_ENTRIES, 4},	   {HDR_L1_OFFSET, 8},	    {HDR_RT_OFFSET, 8},
		{HDR_RT_CLUSTERS, 4},	   {HDR_SNAPSHOTS, 4},	    {HDR_SNAPSHOTS_OFFSET, 8},
		{HDR_INCOMPATIBLE, 8},	   {HDR_AUTOCLEAR, 8},	    {HDR_REFCOUNT_ORDER, 4},
		{HDR_LENGTH, 4},	   {HDR_COMPRESSION, 4},    {HDR_COMPRESSION + 8, 4},
		{HDR_COMPRESSION + 12, 4},
	};
	unsigned i = (unsigned)any(sizeof(fields) / sizeof(*fields));

	damage_number(b, fields[i].at, fields[i].bytes);
}

/* An entry of the table at pos, near its beginning where there is something. */
static void damage_entry(struct base *b, uint64_t pos, unsigned bytes)
{
	uint64_t at = pos + any(64) * bytes;

	if (pos < b->size)
		damage_number(b, at, bytes);
}

static uint64_t entry_of(const struct base *b, uint64_t pos)
{
	return pos <= b->size - 8 ? get64(b->data + pos) & ENTRY_OFFSET : 0;
}

static void damage(struct base *b)
{
	uint64_t l1 = get64(b->data + HDR_L1_OFFSET), rt = get64(b->data + HDR_RT_OFFSET);
	uint64_t l2 = entry_of(b, l1 + any(8) * 8), at = any(b->size);

	switch (any(9)) {
	case 0:
	case 1:
		damage_header(b);
		break;
	case 2:
		damage_entry(b, l1, 8);
		break;
	case 3:
	case 4:
		damage_entry(b, l2 ? l2 : l1, 8);
		break;
	case 5:
		damage_entry(b, any(2) ? rt : entry_of(b, rt), 8);
		break;
	case 6:
		damage_entry(b, get64(b->data + HDR_SNAPSHOTS_OFFSET), any(2) ? 4 : 8);
		break;
	case 7:
		/* Header extensions, names. */
		damage_number(b, 72 + any(400), any(2) ? 4 : 8);
		break;
	default:
		for (unsigned i = 0; i < 64 && at + i < b->size; i++)
			b->data[at + i] = (uint8_t)any(256);
	}
}

static void use(struct ubd_device *dev, bool write)
{
	static uint8_t buf[PIECE] __attribute__((aligned(4096)));
	uint64_t size = ubd_device_size(dev), most = size < MAX_READ ? size : MAX_READ;
	static const char *const jobs[] = {"create", "delete", "apply"};
	const char *job = jobs[any(3)], *name = any(2) ? "s" : "new";

	for (uint64_t at = 0; at + PIECE <= most; at += PIECE)
		ubd_local_io(dev, 0, UBD_READ, 0, at, buf, PIECE);
	if (size > PIECE)
		ubd_local_io(dev, 0, UBD_READ, 0, (size - PIECE) & ~511ull, buf, PIECE);
	for (unsigned i = 0; write && i < 12 && most > PIECE; i++) {
		static const enum ubd_op ops[] = {UBD_WRITE, UBD_WRITE, UBD_WRITE_ZEROES,
						  UBD_DISCARD, UBD_FLUSH};
		enum ubd_op op = ops[any(5)];
		uint32_t len = (uint32_t)(1 + any(PIECE / 512)) * 512;

		ubd_local_io(dev, 0, op, 0, op == UBD_FLUSH ? 0 : any((most - len) / 512) * 512,
			     buf, op == UBD_FLUSH ? 0 : len);
	}
	if (write && any(4) == 0)
		disk_command(dev, "snapshot", job, name);
}

static bool try_image(const char *path)
{
	bool write = any(3) != 0;
	struct disk_options o = {.image = path,
				 .journal = "off",
				 .cache = "1M",
				 .quiet = true,
				 .read_only = !write,
				 .repair = any(2)};
	char error[512] = "";
	struct ubd_device *dev;

	if (!write && any(3) == 0)
		o.snapshot = "s";
	dev = disk_open(&o, error, sizeof(error));
	if (!dev) {
		if (!error[0])
			die("refused without a sentence");
		return false;
	}
	use(dev, write);
	disk_close(dev);
	return true;
}

static void load(struct base *b, const char *path)
{
	FILE *f = fopen(path, "rb");
	struct stat st;

	if (!f || fstat(fileno(f), &st))
		die("cannot read %s", path);
	b->size = (uint64_t)st.st_size;
	b->data = malloc(b->size);
	if (fread(b->data, 1, b->size, f) != b->size)
		die("cannot read %s", path);
	fclose(f);
}

static void write_copy(const char *path, const struct base *b)
{
	struct base copy = {malloc(b->size), b->size};
	unsigned times = 1 + (unsigned)any(3);
	FILE *f = fopen(path, "wb");

	memcpy(copy.data, b->data, b->size);
	while (times--)
		damage(&copy);
	if (!f || fwrite(copy.data, 1, copy.size, f) != copy.size || fclose(f))
		die("cannot write %s", path);
	free(copy.data);
}

int main(int argc, char **argv)
{
	unsigned long tries = 0, opened = 0;
	struct base bases[16];
	struct rusage usage;
	char path[512];
	time_t end;
	int n = argc - 4;

	if (n < 1 || n > 16)
		die("usage: hostile WORK SEED SECONDS IMAGE...");
	snprintf(path, sizeof(path), "%s/hostile", argv[1]);
	seed = strtoull(argv[2], NULL, 0);
	end = time(NULL) + atoi(argv[3]);
	for (int i = 0; i < n; i++)
		load(&bases[i], argv[4 + i]);
	for (; time(NULL) < end; tries++) {
		alarm(60);
		write_copy(path, &bases[any((uint64_t)n)]);
		opened += try_image(path);
		unlink(path);
	}
	getrusage(RUSAGE_SELF, &usage);
	printf("%lu images, %lu opened, %ld MiB at most\n", tries, opened, usage.ru_maxrss / 1024);
	for (int i = 0; i < n; i++)
		free(bases[i].data);
	return usage.ru_maxrss > 1 << 20;
}
