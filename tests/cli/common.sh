# SPDX-License-Identifier: MIT
# What the tests of the command share: TAP, running ubd and judging what it
# says, moving into a guest, and looking for what was left behind.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
# A place of its own: what is left in it was left by the command.
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/ubd-cli.XXXXXX") || exit 99
export TMPDIR
# shellcheck source=tests/lib/tap.sh
. "$top/tests/lib/tap.sh"
trap 'cd / && rm -rf "$TMPDIR"' EXIT

bail() {
	echo "Bail out! $*"
	exit 1
}

# The command under test.
ubd=${UBD_COMMAND:-$(command -v ubd || echo "$top/build/cli/ubd")}
[ -x "$ubd" ] || bail "$ubd is missing: build it, or name it in UBD_COMMAND"

pass() {
	tap_count=$((tap_count + 1))
	echo "ok $tap_count - $1"
}

# flunk NAME [WHY]...
flunk() {
	tap_count=$((tap_count + 1))
	tap_failures=$((tap_failures + 1))
	echo "not ok $tap_count - $1"
	shift
	[ $# -eq 0 ] || printf '%s\n' "$@" | sed 's/^/# /'
}

# same NAME GOT WANTED
same() {
	if [ "$2" = "$3" ]; then
		pass "$1"
	else
		flunk "$1" "got:    $2" "wanted: $3"
	fi
}

# matches NAME TEXT REGEX
matches() {
	if [[ $2 =~ $3 ]]; then
		pass "$1"
	else
		flunk "$1" "got:       $2" "wanted to match: $3"
	fi
}

# refused NAME STATUS REGEX COMMAND...: the command exits with STATUS, prints
# nothing on stdout and one sentence of ubd's that matches on stderr, beside
# what it waits for.
refused() {
	local name=$1 status=$2 regex=$3 got out err
	shift 3
	out=$("$@" 2>"$work/err")
	got=$?
	err=$(grep -v '^ubd: waiting for ' "$work/err")
	if [ "$got" -ne "$status" ] || [ -n "$out" ] || [[ $err == *$'\n'* ]] ||
		[[ $err != ubd:\ * ]] || ! [[ $err =~ $regex ]]; then
		flunk "$name" "status $got, wanted $status" "stdout: $out" "stderr: $err" "wanted: $regex"
	else
		pass "$name"
	fi
}

# json FILTER: of the document on stdin, a Python expression on d.
json() {
	python3 -SE -c "import json,sys; d=json.load(sys.stdin); print($1)"
}

gone() {
	! [ -e "/dev/ublkc$1" ] && ! [ -e "/dev/ublkb$1" ] && ! [ -e "$UBD_RUN_DIR/$1.json" ]
}

# The server's process of device N.
server_of() {
	json 'd["pid"]' <"$UBD_RUN_DIR/$1.json"
}

left_behind() {
	pgrep -x ubd
	ls "$UBD_RUN_DIR"
	find /dev -name 'ublk[bc]*'
	find "$TMPDIR" -mindepth 1 -maxdepth 1 ! -path "$work" ! -path "$tap_dir"
}

nothing_left() {
	# A server that was told to end may be on its last steps.
	within 5 sh -c "! pgrep -x ubd"
	same "$1" "$(left_behind)" ""
}

# guest SCRIPT: go on in a guest, unless this is one already.
guest() {
	[ -n "${UBD_VM-}" ] && return
	UBD_COMMAND=$ubd "$top/vm/run" --kernel "${UBD_TEST_KERNEL:-6.12}" --timeout 600 -- bash "$@"
	exit
}

# The target slow, see slow.c.
build_slow() {
	slow=$TMPDIR/work/slow.so
	"${CC:-cc}" -std=gnu17 -O1 -g -Wall -Wextra -Wno-missing-field-initializers -Werror -fPIC \
		-shared -I"$top/include" -o "$slow" "$here/slow.c" || bail "cannot build the target slow"
}

# begin: work in a directory that is removed, with a state directory of its own.
begin() {
	work=$TMPDIR/work
	export UBD_RUN_DIR=$work/run
	mkdir "$work" && cd "$work" || exit 99
}

# begin_guest: there must be a driver.
begin_guest() {
	begin
	[ -e /dev/ublk-control ] || modprobe ublk_drv || bail "no ublk driver in this guest"
	build_slow
}
