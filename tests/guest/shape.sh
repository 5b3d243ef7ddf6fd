#!/bin/sh
# SPDX-License-Identifier: MIT
# Devices of all shapes: blocks, sizes, requests, windows into files, read-only, discard.
. "$(dirname "$0")/lib.sh"

edge() { # WAY BLOCK MAX-IO TARGET...
	way=$1 block=$2 max=$3
	shift 3
	add --zero-copy="$way" --block-size "$block" --max-io "$max" --queues 2 "$@"
	[ "$(queue logical_block_size)" -eq "$block" ]
	[ "$(queue max_hw_sectors_kb)" -eq $((max / 1024)) ]
	"$programs/guest-edge" "$dev"
	ubd del "$id"
}

sparse() {
	truncate -s 16T "$scratch/big"
	add --zero-copy="$1" loop "$scratch/big"
	[ "$(blockdev --getsize64 "$dev")" -eq 17592186044416 ]
	for at in 0 1 4294967295 4294967296 34359738367; do
		echo "sector $at" >"$scratch/in"
		truncate -s 512 "$scratch/in"
		dd if="$scratch/in" of="$dev" bs=512 seek=$at conv=notrunc oflag=direct status=none
		dd if="$dev" of="$scratch/out" bs=512 skip=$at count=1 iflag=direct status=none
		cmp "$scratch/in" "$scratch/out"
		# In the file at the same place.
		dd if="$scratch/big" bs=512 skip=$at count=1 status=none | cmp - "$scratch/in"
	done
	ubd del "$id"
	[ "$(du -k "$scratch/big" | cut -f1)" -lt 1000 ]
	rm "$scratch/big"
}

window() {
	head -c 1M /dev/urandom >"$scratch/image"
	cp "$scratch/image" "$scratch/before"
	add loop "$scratch/image" --offset 64K --size 128K
	[ "$(blockdev --getsize64 "$dev")" -eq 131072 ]
	cmp -n 131072 -i 0:65536 "$dev" "$scratch/before"
	dd if=/dev/zero of="$dev" bs=128K count=1 oflag=direct status=none
	ubd del "$id"
	cmp -n 65536 "$scratch/image" "$scratch/before"
	cmp -i 196608 "$scratch/image" "$scratch/before"
	cmp -n 131072 -i 65536:0 "$scratch/image" /dev/zero
	rm "$scratch/image" "$scratch/before"
}

read_only() {
	head -c 1M /dev/urandom >"$scratch/image"
	md5sum "$scratch/image" >"$scratch/sum"
	add --read-only loop "$scratch/image"
	[ "$(cat "/sys/block/ublkb$id/ro")" -eq 1 ]
	cmp "$dev" "$scratch/image"
	fails dd if=/dev/zero of="$dev" bs=4k count=1 oflag=direct 2>&1
	fails blkdiscard "$dev" 2>&1
	ubd del "$id"
	md5sum --quiet -c "$scratch/sum"
	rm "$scratch/image"
}

direct() { # on|off
	truncate -s 16M "$scratch/image"
	add loop "$scratch/image" --direct "$1"
	"$programs/guest-edge" "$dev"
	ubd del "$id"
	rm "$scratch/image"
}

# The file's blocks go and come back as zeroes; over more than one request's limit.
discard() { # WAY
	truncate -s 32M "$scratch/image"
	add --zero-copy="$1" loop "$scratch/image"
	dd if=/dev/urandom of="$dev" bs=1M count=32 oflag=direct status=none
	sync "$scratch/image"
	[ "$(du -k "$scratch/image" | cut -f1)" -ge 32768 ]
	blkdiscard -o 1M -l 16M "$dev"
	[ "$(du -k "$scratch/image" | cut -f1)" -le $((17 * 1024)) ]
	cmp -n 16777216 -i 1048576:0 "$dev" /dev/zero
	blkdiscard -z "$dev"
	cmp -n 33554432 "$dev" /dev/zero
	ubd del "$id"
	rm "$scratch/image"
}

discard_mem() {
	add mem 32M
	dd if=/dev/urandom of="$dev" bs=1M count=32 oflag=direct status=none
	before=$(awk '/^Shmem:/ {print $2}' /proc/meminfo)
	blkdiscard "$dev"
	after=$(awk '/^Shmem:/ {print $2}' /proc/meminfo)
	[ $((before - after)) -ge 30000 ]
	cmp -n 33554432 "$dev" /dev/zero
	ubd del "$id"
}

# In the largest requests that there are: 2 GiB is what mkfs discards at a time.
discard_large() {
	add null
	blkdiscard -l 2G "$dev"
	blkdiscard -l 16G "$dev"
	blkdiscard -z -l 16G "$dev"
	[ "$(blockdev --getsize64 "$dev")" -eq $((250 << 30)) ]
	ubd del "$id"
}

# fallocate(1) on a block device: both forms of WRITE_ZEROES.
write_zeroes() {
	truncate -s 8M "$scratch/image"
	add loop "$scratch/image"
	tr '\0' '\377' </dev/zero | dd of="$dev" bs=1M count=8 iflag=fullblock oflag=direct status=none
	fallocate -z -o 1M -l 1M "$dev"
	fallocate -p -o 4M -l 1M "$dev"
	ubd del "$id"
	tr -d '\377' <"$scratch/image" | wc -c | grep -qx 2097152
	cmp -n 1048576 -i 1048576:0 "$scratch/image" /dev/zero
	cmp -n 1048576 -i 4194304:0 "$scratch/image" /dev/zero
	rm "$scratch/image"
}

# Is a mapping of the server that runs locked? NAME is in its line.
locked() { # NAME
	awk -v name="$1" '/^[0-9a-f]+-/ { here = index($0, name) } here && /^VmFlags:.* lo/ { n++ }
		END { exit !n }' "/proc/$(pgrep -x ubd)/smaps"
}

# Reclaim must not wait for the server's code; what a memory disk holds is no part of that.
stays_in_memory() {
	add mem 16M
	grep -q ubd-mem "/proc/$(pgrep -x ubd)/smaps"
	locked libubd.so
	fails locked ubd-mem
	ubd del "$id"
}

batch() {
	add --batch --queues 2 null
	threads=0
	for task in /proc/"$(pgrep -x ubd)"/task/*; do
		grep -q '^ubd-q' "$task/comm" || continue
		chrt -p "${task##*/}" | grep -q SCHED_BATCH
		threads=$((threads + 1))
	done
	[ $threads -eq 2 ]
	ubd del "$id"
}

# Where the driver would have one: one queue.
no_scheduler() {
	add null
	queue scheduler | tee /dev/stderr | grep -q '\[none\]'
	ubd del "$id"
}

# The rule that packaging installs, by the real udev; it runs in its guest only for this.
scheduler() {
	mkdir -p /run/udev/rules.d
	cp "$top/packaging/udev/60-ubd.rules" /run/udev/rules.d/
	/lib/systemd/systemd-udevd --daemon
	add null
	# The disk's own event has the rule as well.
	udevadm settle -t 20
	echo mq-deadline >"/sys/block/ublkb$id/queue/scheduler"
	queue scheduler | grep -q '\[mq-deadline\]'
	udevadm trigger --action=add "/sys/block/ublkb$id"
	udevadm settle -t 20
	within 10 sh -c "grep '\[none\]' /sys/block/ublkb$id/queue/scheduler"
	ubd del "$id"
	udevadm control --exit
	rm /run/udev/rules.d/60-ubd.rules
}

truncate -s 16M "$scratch/edge"
for way in $ways; do
	check "mem, $way, 512-byte blocks: all sizes and offsets" edge "$way" 512 1048576 mem 16M
	check "loop, $way, 4096-byte blocks: all sizes and offsets" edge "$way" 4096 65536 loop "$scratch/edge"
	check "loop, $way: discard gives space back" discard "$way"
done
check "a sparse file of 16 TiB" sparse auto
check "loop: offset and size stay in their window" window
check "read-only" read_only
check "loop --direct on" direct on
check "loop --direct off" direct off
check "mem: discard gives memory back" discard_mem
check "discard and write zeroes of gigabytes" discard_large
check "write zeroes, with and without unmapping" write_zeroes
check "the server's code is locked in memory, a disk's content is not" stays_in_memory
check "--batch" batch
check "a disk has no I/O scheduler" no_scheduler
check "the udev rule takes the I/O scheduler away" scheduler
check "nothing is left" nothing_left
finish
