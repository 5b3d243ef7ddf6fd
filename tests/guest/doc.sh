#!/bin/sh
# SPDX-License-Identifier: MIT
# The target in docs/writing-a-target.md is taken out of the page, built and used as it says.
. "$(dirname "$0")/lib.sh"

page=$top/docs/writing-a-target.md
if ! [ -f "$page" ]; then
	echo "1..0 # SKIP $page is not there"
	exit 0
fi

extract() {
	"$top/tests/lib/example" >"$scratch/hello.c"
	grep -q UBD_PLUGIN "$scratch/hello.c"
}

build() {
	cc -shared -fPIC -Wall -Werror -o "$scratch/hello.so" "$scratch/hello.c" -I"$top/include"
}

use() {
	add "$scratch/hello.so" --size 32M
	[ "$(blockdev --getsize64 "$dev")" -eq 33554432 ]
	mkfs.ext4 -q "$dev"
	e2fsck -fn "$dev"
	ubd del "$id"
}

check "the page has a target" extract
check "it builds without a warning" build
check "it is a disk that holds a file system" use
check "nothing is left" nothing_left
finish
