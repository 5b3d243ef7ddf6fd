#!/bin/sh
# SPDX-License-Identifier: MIT
# What is written is read back: fio with checksums on every target, way of moving data and number of
# queues.
. "$(dirname "$0")/lib.sh"

verify() { # QUEUES
	fio --output="$scratch/fio" --name=verify --filename="$dev" --ioengine=io_uring --direct=1 \
		--rw=randwrite --bsrange=4k-256k --iodepth=16 --size=2m --thread --numjobs="$1" \
		--offset_increment=8m --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
		--group_reporting || { cat "$scratch/fio"; return 1; }
}

round_trip() { # QUEUES WAY TARGET...
	queues=$1 way=$2
	shift 2
	add --queues "$queues" --zero-copy="$way" "$@"
	ubd info "$id" --json | grep -q "\"$way\""
	verify "$queues"
	ubd del "$id"
}

zeroes() { # QUEUES WAY
	add --queues "$1" --zero-copy="$2" null --size 4M
	# Fill the server's buffers, then look whether any of it comes back.
	fio --output="$scratch/fio" --name=fill --filename="$dev" --ioengine=io_uring --direct=1 \
		--rw=write --bs=256k --iodepth=16 --size=4m --thread
	cmp -n 4194304 "$dev" /dev/zero
	ubd del "$id"
}

for way in $ways; do
	for queues in 1 2; do
		truncate -s 16M "$scratch/image"
		check "mem, $way, $queues queues" round_trip $queues "$way" mem 16M
		check "loop, $way, $queues queues" round_trip $queues "$way" loop "$scratch/image"
		check "null reads zeroes, $way, $queues queues" zeroes $queues "$way"
		rm -f "$scratch/image"
	done
done
check "nothing is left" nothing_left
finish
