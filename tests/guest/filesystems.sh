#!/bin/sh
# SPDX-License-Identifier: MIT
# Real file systems and partition tables on devices; their checkers find nothing wrong.
. "$(dirname "$0")/lib.sh"

mnt=$scratch/mnt
mkdir "$mnt"

tap_clean_up() {
	umount "$mnt" 2>/dev/null
	timeout 60 ubd del --all --force
	rm -f "$scratch/image"
}

use() { # FSTYPE MKFS...
	fstype=$1
	shift
	truncate -s 320M "$scratch/image"
	add --queues 2 loop "$scratch/image"
	"$@" "$dev"
	modprobe -q "$fstype" || true
	mount -t "$fstype" "$dev" "$mnt"
	cp -r "$top/lib" "$top/targets" "$mnt/"
	(cd "$top" && find lib targets -type f -exec md5sum {} +) >"$scratch/sums"
	dd if=/dev/urandom of="$mnt/random" bs=1M count=8 conv=fsync status=none
	md5sum <"$mnt/random" >"$scratch/random"
	umount "$mnt"
	ubd del "$id"
	# Everything was written back: another server finds the same.
	add loop "$scratch/image"
	mount -t "$fstype" "$dev" "$mnt"
	(cd "$mnt" && md5sum --quiet -c "$scratch/sums")
	md5sum <"$mnt/random" | cmp - "$scratch/random"
	fstrim "$mnt"
	umount "$mnt"
	case $fstype in
	ext4) e2fsck -fn "$dev" ;;
	xfs) xfs_repair -n "$dev" ;;
	btrfs) btrfs check "$dev" ;;
	esac
	ubd del "$id"
	rm "$scratch/image"
}

# One entry of an MBR partition table: Linux, START and LENGTH as four octal bytes each.
entry() {
	printf '\000\000\000\000\203\000\000\000%b%b' "$1" "$2"
}

partitions() {
	truncate -s 64M "$scratch/image"
	# 16 MiB from sector 2048, 8 MiB from sector 34816.
	{
		entry '\000\010\000\000' '\000\200\000\000'
		entry '\000\210\000\000' '\000\100\000\000'
	} | dd of="$scratch/image" bs=1 seek=446 conv=notrunc status=none
	printf '\125\252' | dd of="$scratch/image" bs=1 seek=510 conv=notrunc status=none
	add loop "$scratch/image"
	lsblk -no NAME,SIZE "$dev"
	[ -b "${dev}p1" ] && [ -b "${dev}p2" ]
	[ "$(blockdev --getsize64 "${dev}p1")" -eq 16777216 ]
	[ "$(blockdev --getsize64 "${dev}p2")" -eq 8388608 ]
	mkfs.ext4 -q "${dev}p1"
	e2fsck -fn "${dev}p1"
	ubd del "$id"
	rm "$scratch/image"
}

check "ext4" use ext4 mkfs.ext4 -q
check "xfs" use xfs mkfs.xfs -q
check "btrfs" use btrfs mkfs.btrfs -q
check "partitions appear and hold a file system" partitions
check "nothing is left" nothing_left
finish
