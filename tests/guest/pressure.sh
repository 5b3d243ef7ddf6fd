#!/bin/sh
# SPDX-License-Identifier: MIT
# Memory reclaim that goes through the devices: one is the swap, another has a file system whose
# pages must be written back. In a guest with little memory and a disk of its own.
#   tests/guest/pressure.sh [WAY]...        $UBD_PRESSURE_SECONDS for each, or 40
. "$(dirname "$0")/lib.sh"

mnt=$scratch/mnt
mkdir "$mnt"
seconds=${UBD_PRESSURE_SECONDS:-40}

tap_clean_up() {
	umount "$mnt" 2>/dev/null
	swapoff -a
	timeout 60 ubd del --all --force
}

# MiB that are there at all.
memory() {
	awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo
}

reclaim() { # WAY
	# shellcheck disable=SC2086  # "off --populate"
	add --depth 32 --zero-copy=$1 loop /dev/vda1
	swap=$dev swap_id=$id
	mkswap "$swap" >/dev/null
	swapon "$swap"
	# shellcheck disable=SC2086
	add --depth 32 --zero-copy=$1 loop /dev/vda2
	mkfs.ext4 -q "$dev"
	modprobe -q ext4 || true
	mount -t ext4 "$dev" "$mnt"
	# The sum is more than there is, each alone is not.
	"$programs/guest-pressure" $(($(memory) * 8 / 10)) "$seconds" &
	anonymous=$!
	"$programs/guest-pressure" 200 "$seconds" "$mnt/file" &
	file=$!
	if ! { wait $anonymous && wait $file; }; then
		dmesg | grep -i 'out of memory'
		return 1
	fi
	umount "$mnt"
	ubd del "$id"
	echo "# $1: $(awk '/^pswpout/ { print $2 }' /proc/vmstat) pages swapped out so far"
	grep -q "^$swap " /proc/swaps
	swapoff "$swap"
	ubd del "$swap_id"
}

swapped_out() {
	[ "$(awk '/^pswpout/ { print $2 }' /proc/vmstat)" -gt 10000 ]
}

# Calls of the kernel's allocator for what a ring's read or write needs.
allocations() {
	awk '$1 == "ring" { print $2 }' "$tracing/kprobe_profile"
}

full_queue() {
	add --depth 32 loop /dev/vda1
	before=$(allocations)
	fio --name=full --filename="$dev" --rw=randread --bs=4k --iodepth=32 --ioengine=libaio \
		--direct=1 --number_ios=4000 --output-format=terse >/dev/null
	echo "# $before allocations before, $(allocations) after"
	[ "$(allocations)" -eq "$before" ]
	ubd del "$id"
}

if [ ! -b /dev/vda ]; then
	skip "reclaim" "needs a disk of its own"
	finish
fi
[ $# -gt 0 ] || set -- $ways
printf '1M,640M\n641M,320M\n' | sfdisk -q /dev/vda || exit 1
tracing=/sys/kernel/tracing
mount -t tracefs tracefs $tracing 2>/dev/null || true
what="a full queue allocates nothing in its ring"
if (echo 'p:ring io_alloc_async_data' >$tracing/kprobe_events) 2>/dev/null; then
	echo 1 >$tracing/events/kprobes/ring/enable
	check "$what" full_queue
	echo 0 >$tracing/events/kprobes/ring/enable
else
	skip "$what" "this kernel cannot be asked"
fi
for way; do
	check "$way: swap and write-back of a file system, ${seconds} s" reclaim "$way"
done
check "pages were swapped out" swapped_out
finish
