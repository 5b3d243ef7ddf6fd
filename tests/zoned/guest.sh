#!/bin/sh
# SPDX-License-Identifier: MIT
# The target zoned under a real disk: the kernel's own view of its zones, each zone operation, fio's
# zoned workloads on every way of moving data, btrfs on it, and a server that dies.
# shellcheck disable=SC2154 # dev, id, ways: lib.sh
. "$(dirname "$0")/../guest/lib.sh"

image=$scratch/image
zone=8388608 # bytes
sectors=$((zone / 512))

tap_clean_up() {
	mountpoint -q "$scratch/mnt" && umount "$scratch/mnt"
	timeout 60 ubd del --all --force 2>&1 | sed 's/^/# clean-up: /'
	rm -f "$image"
}

# What the kernel knows of a zone: capacity, write pointer in it, condition.
zone_is() { # ZONE EXPECTED
	blkzone report -o $(($1 * sectors)) -c 1 "$dev" >"$scratch/zone"
	set -- "$1" "$2" "$(sed 's/.* cap \([^,]*\), wptr \([^ ]*\) .*(\(..\)) \[.*/\1 \2 \3/' "$scratch/zone")"
	[ "$2" = "$3" ] || { echo "zone $1: $3, not $2"; return 1; }
}

blkzone_do() { # OPERATION ZONE [COUNT]
	blkzone "$1" -o $(($2 * sectors)) -c "${3:-1}" "$dev"
}

put() { # ZONE BLOCK COUNT: 4K blocks
	dd if=/dev/urandom of="$dev" bs=4k seek=$(($1 * zone / 4096 + $2)) count="$3" oflag=direct conv=notrunc status=none
}

seen() {
	add zoned --size 128M --zone-size 8M --zone-capacity 6M --conventional 2 --max-open 3 --max-active 5
	[ "$(queue zoned)" = host-managed ]
	[ "$(queue nr_zones)" = 16 ]
	[ "$(queue chunk_sectors)" = $sectors ]
	[ "$(queue max_open_zones)" = 3 ]
	[ "$(queue max_active_zones)" = 5 ]
	[ "$(queue zone_append_max_bytes)" -ge 65536 ]
	[ "$(queue logical_block_size)" = 4096 ]
	[ "$(blkzone report "$dev" | wc -l)" = 16 ]
	[ "$(blkzone report -o $((3 * sectors)) "$dev" | wc -l)" = 13 ]
	zone_is 0 "0x004000 0x000000 nw"
	zone_is 2 "0x003000 0x000000 em"
	ubd del "$id"
}

operations() {
	add zoned --size 128M --zone-size 8M --zone-capacity 6M --conventional 2 --max-open 3 --max-active 5
	put 2 0 4
	zone_is 2 "0x003000 0x000020 oi"
	fails put 2 0 1
	fails put 2 5 1
	zone_is 2 "0x003000 0x000020 oi"
	put 2 4 1532
	zone_is 2 "0x003000 0x004000 fu"
	fails put 2 1536 1
	fails put 3 1 1
	put 1 77 3
	put 1 3 3
	blkzone_do open 3
	zone_is 3 "0x003000 0x000000 oe"
	put 3 0 1
	blkzone_do close 3
	zone_is 3 "0x003000 0x000008 cl"
	blkzone_do finish 3
	zone_is 3 "0x003000 0x004000 fu"
	blkzone_do reset 3
	zone_is 3 "0x003000 0x000000 em"
	[ "$(dd if="$dev" bs=8M skip=3 count=1 iflag=direct status=none | tr -d '\0' | wc -c)" = 0 ]
	blkzone_do open 3 3
	fails blkzone_do open 6
	fails put 6 0 1
	blkzone_do close 3
	zone_is 3 "0x003000 0x000000 em"
	# After an error the kernel wants to see a report before the next write.
	zone_is 6 "0x003000 0x000000 em"
	put 6 0 1
	put 7 0 1
	zone_is 6 "0x003000 0x000008 cl"
	fails blkzone_do open 1
	fails blkzone_do finish 1
	blkzone reset -o $((2 * sectors)) "$dev"
	for i in 2 4 7; do zone_is $i "0x003000 0x000000 em"; done
	put 8 0 1
	blkzone reset "$dev"
	zone_is 8 "0x003000 0x000000 em"
	[ "$(dd if="$dev" bs=8M skip=1 count=1 iflag=direct status=none | tr -d '\0' | wc -c)" -gt 20000 ]
	ubd del "$id"
}

fio_zoned() { # OPTION...
	fio --output="$scratch/fio" --name=zoned --filename="$dev" --zonemode=zbd --direct=1 --verify=crc32c \
		--verify_fatal=1 --verify_state_save=0 --offset=8m --group_reporting "$@" || { cat "$scratch/fio"; return 1; }
}

sum() {
	dd if="$dev" bs=1M "$@" status=none | cksum
}

data() { # QUEUES WAY [PATH]
	rm -f "$image"
	set -- "$1" "$2" ${3:+"$3" --format}
	# shellcheck disable=SC2086
	add --queues "$1" --zero-copy="$2" zoned $3 $4 --size 32M --zone-size 4M --zone-capacity 3M \
		--conventional 2 --max-open 4
	fio_zoned --ioengine=io_uring --rw=write --bsrange=4k-256k --iodepth=8 --size=4m --max_open_zones=1 \
		--thread --numjobs="$1" --offset_increment=4m
	blkzone reset "$dev" -o 16384
	fio_zoned --ioengine=psync --rw=randwrite --bs=16k --size=16m --io_size=1m --max_open_zones=4
	blkzone report "$dev" >"$scratch/before"
	was=$(sum iflag=direct)
	[ "$(sum)" = "$was" ]
	ubd del "$id"
	[ "${3:-}" ] || return 0
	add --zero-copy="$2" zoned "$3"
	[ "$(sum iflag=direct)" = "$was" ]
	# As after a power cycle: nothing is open.
	sed -i 's/2(oi)/4(cl)/; s/3(oe)/4(cl)/' "$scratch/before"
	blkzone report "$dev" | diff "$scratch/before" -
	ubd del "$id"
	rm -f "$image"
}

# Its zones are as they were, open ones too, whatever was flushed.
dies() { # WAY
	rm -f "$image"
	add --zero-copy="$1" zoned "$image" --format --size 64M --zone-size 8M --max-open 8
	put 0 0 5
	put 1 0 2048
	blkzone_do open 2
	put 3 0 7
	sync "$dev"
	put 3 7 9
	blkzone_do open 3
	put 4 0 1
	blkzone_do close 4
	blkzone_do finish 5
	put 6 0 3
	blkzone_do reset 6
	blkzone report "$dev" >"$scratch/before"
	was=$(sum iflag=direct)
	kill -9 "$(pgrep -x ubd)"
	timeout 60 ubd del "$id" --force || timeout 60 ubd del "$id"
	add --zero-copy="$1" zoned "$image"
	blkzone report "$dev" | diff "$scratch/before" -
	[ "$(sum iflag=direct)" = "$was" ]
	put 3 16 1
	ubd del "$id"
	[ -z "$(find /run/ubd -name '*.live')" ]
	rm -f "$image"
}

# btrfs writes its data by zone appends.
btrfs() { # WAY FILE
	rm -f "$image"
	set -- "$1" ${2:+"$2" --format}
	# shellcheck disable=SC2086
	add --queues 2 --zero-copy="$1" zoned $2 $3 --size 512M --zone-size 8M --max-open 24
	mkfs.btrfs -q -O zoned -d single -m single "$dev"
	mkdir -p "$scratch/mnt"
	mount -t btrfs "$dev" "$scratch/mnt"
	cp -r "$top/lib" "$top/targets" "$top/tests" "$scratch/mnt"
	dd if=/dev/urandom of="$scratch/mnt/big" bs=1M count=24 status=none
	sum=$(sha256sum <"$scratch/mnt/big")
	sync
	rm -r "$scratch/mnt/tests"
	umount "$scratch/mnt"
	if [ "${2:-}" ]; then
		ubd del "$id"
		# shellcheck disable=SC2086
		add --queues 2 --zero-copy="$1" zoned $2
	fi
	mount -t btrfs "$dev" "$scratch/mnt"
	diff -r "$top/lib" "$scratch/mnt/lib"
	diff -r "$top/targets" "$scratch/mnt/targets"
	[ "$sum" = "$(sha256sum <"$scratch/mnt/big")" ]
	umount "$scratch/mnt"
	command btrfs check "$dev"
	ubd del "$id"
	rm -f "$image"
}

only=${1:-*}
case_() {
	# shellcheck disable=SC2254 # a pattern
	case $1 in $only) check "$@" ;; esac
}

case_ "the kernel's view" seen
case_ "operations, allowed and not" operations
queues=1
for way in $ways; do
	case $way in off | get-data) continue ;; esac
	case_ "data in a file, $way, $queues queues" data $queues "$way" "$image"
	queues=$((5 - queues))
done
case_ "data in memory" data 4 auto
case_ "the server is killed" dies auto
if grep -qw btrfs /proc/filesystems || modprobe -q btrfs; then
	case_ "btrfs in memory" btrfs auto
	case_ "btrfs in a file" btrfs auto "$image"
else
	skip "btrfs" "this kernel has none"
fi
case_ "ways without room for an append's place are refused" refused "not for zoned" --zero-copy=off zoned --size 128M
case_ "bad geometry is refused" refused "power of two" zoned --size 96M --zone-size 3M
case_ "nothing is left" nothing_left
finish
