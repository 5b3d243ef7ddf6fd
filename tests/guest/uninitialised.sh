#!/bin/sh
# SPDX-License-Identifier: MIT
# No reader ever sees memory that nobody filled, though the server's buffers are full of data.
. "$(dirname "$0")/lib.sh"

lazy() { # WAY DEPTH
	add --zero-copy="$1" --depth "$2" "$programs/lazy.so"
	"$programs/guest-lazycheck" "$dev"
	ubd del "$id"
}

null() { # WAY
	add --zero-copy="$1" --depth 2 null --size 16M
	tr '\0' '\252' </dev/zero | dd of="$dev" bs=512K count=32 iflag=fullblock oflag=direct status=none
	cmp -n 16777216 "$dev" /dev/zero
	dd if="$dev" bs=512K count=32 iflag=direct status=none | cmp -n 16777216 - /dev/zero
	ubd del "$id"
}

# The file shrinks under the server: an error, not what was in a buffer.
shrunk() { # WAY
	truncate -s 4M "$scratch/image"
	add --zero-copy="$1" --depth 2 loop "$scratch/image"
	tr '\0' '\252' </dev/zero | dd of="$dev" bs=512K count=8 iflag=fullblock oflag=direct status=none
	truncate -s 1M "$scratch/image"
	fails dd if="$dev" bs=64K skip=32 count=1 iflag=direct of="$scratch/out" 2>/dev/null
	[ ! -s "$scratch/out" ]
	ubd del "$id"
	rm "$scratch/image"
}

for way in $ways; do
	check "a target that leaves gaps, $way" lazy "$way" 2
	check "null, $way" null "$way"
	check "loop on a file that shrank, $way" shrunk "$way"
done
check "nothing is left" nothing_left
finish
