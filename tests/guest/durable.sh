#!/bin/sh
# SPDX-License-Identifier: MIT
# A flush of the device is a flush of what is below: counted on a disk with a volatile cache
# (/dev/vda, a scratch disk of the guest).
. "$(dirname "$0")/lib.sh"

below=/dev/vda
if [ ! -b $below ] || [ "$(cat /sys/block/vda/queue/write_cache)" != "write back" ]; then
	echo "1..0 # SKIP needs a scratch disk $below with a write-back cache: vm/run --disk 128M"
	exit 0
fi

flushes() {
	awk '{print $16}' "/sys/block/${1#/dev/}/stat"
}

# Flushes that reach the disk below while COMMAND runs.
counted() { # MINIMUM COMMAND...
	least=$1
	shift
	before=$(flushes $below)
	"$@"
	after=$(flushes $below)
	echo "$((after - before)) flushes below"
	[ $((after - before)) -ge "$least" ]
}

# fio sends an fsync after each of ten writes but the last.
flush_block() {
	add loop $below
	[ "$(queue write_cache)" = "write back" ]
	counted 9 fio --output="$scratch/fio" --name=f --filename="$dev" --rw=randwrite --bs=4k --size=40k \
		--fsync=1 --ioengine=psync --direct=1
	ubd del "$id"
}

fua_block() {
	add loop $below
	[ "$(queue fua)" -eq 1 ]
	# O_DSYNC on a block device is a FUA write.
	counted 10 dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct,dsync status=none
	ubd del "$id"
}

# Through the page cache there is no FUA: the kernel flushes after the write.
fua_cached() {
	add loop --direct off $below
	[ "$(queue fua)" -eq 0 ]
	counted 10 dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct,dsync status=none
	ubd del "$id"
}

no_flush() {
	add loop $below
	before=$(flushes $below)
	dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct status=none
	[ "$(flushes $below)" -eq "$before" ]
	ubd del "$id"
}

file_system() {
	mkfs.ext4 -qF $below
	mkdir -p "$scratch/mnt"
	modprobe -q ext4 || true
	mount $below "$scratch/mnt"
	truncate -s 8M "$scratch/mnt/image"
}

flush_file() { # WAY
	add --zero-copy="$1" loop "$scratch/mnt/image"
	counted 9 fio --output="$scratch/fio" --name=f --filename="$dev" --rw=randwrite --bs=4k --size=40k \
		--fsync=1 --ioengine=psync --direct=1 --thread
	counted 10 dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct,dsync status=none
	counted 1 fallocate -z -l 64K "$dev"
	ubd del "$id"
}

mem_has_none() {
	add mem 8M
	[ "$(queue write_cache)" = "write through" ]
	ubd del "$id"
}

check "fsync on loop over a disk flushes the disk" flush_block
check "a FUA write on loop over a disk is durable below" fua_block
check "a FUA write through the page cache as well" fua_cached
check "writes alone do not flush" no_flush
check "(a file system on the disk)" file_system
for way in $ways; do
	check "loop over a file, $way: fsync and FUA reach the disk" flush_file "$way"
done
umount "$scratch/mnt"
check "a flush after one that failed fails as well" flush_after_loss $below loop
check "a flush after a FUA write that failed fails as well" flush_after_loss $below loop dsync
check "mem, which keeps nothing, asks for no flushes" mem_has_none
check "nothing is left" nothing_left
finish
