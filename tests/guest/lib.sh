# SPDX-License-Identifier: MIT
# What the device tests share. They run where there is a ublk driver, with ubd in PATH and the test
# programs in $UBD_BUILD/gcc/tests/guest.
# shellcheck shell=sh
top=$(cd "$(dirname "$0")/../.." && pwd)
. "$top/tests/lib/tap.sh"

if ! command -v ubd >/dev/null || [ ! -e /dev/ublk-control ]; then
	echo "Bail out! needs ubd in PATH and a ublk driver: use tests/run"
	exit 99
fi
programs=${UBD_BUILD:-${XDG_CACHE_HOME:-$HOME/.cache}/ubd/build}/gcc/tests/guest
scratch=$tap_dir

# What a failed case leaves must not fail the next.
tap_clean_up() {
	timeout 60 ubd del --all --force 2>&1 | sed 's/^/# clean-up: /'
	rm -f "$scratch/image"
}

# Start a device: $dev is its path, $id its number.
add() {
	dev=$(ubd add "$@") || return 1
	id=${dev#/dev/ublkb}
}

# refused PATTERN ARGUMENT...: `ubd add` fails with one sentence, that it had to wait aside.
refused() {
	pattern=$1
	shift
	fails ubd add "$@" 2>"$scratch/err"
	cat "$scratch/err"
	[ "$(grep -vc '^ubd: waiting for ' "$scratch/err")" -eq 1 ]
	grep -q "$pattern" "$scratch/err"
}

# Waits until somebody who has just begun writes to the disk.
under_load() {
	within 20 written_since "$(writes)"
}

writes() {
	awk '{ print $5 }' "/sys/block/ublkb$id/stat"
}

written_since() {
	[ "$(writes)" -gt "$1" ]
}

# Kill the disk's server and have another take over, ROUNDS times.
kill_and_recover() { # ROUNDS
	for _ in $(seq "$1"); do
		sleep 0.5
		kill -9 "$(pgrep -x ubd)"
		within 10 sh -c "ubd list -n -o state | grep -q quiesced"
		ubd recover "$id"
	done
}

# The page cache over the disk BELOW says once that it could not write something: no flush of a disk that
# TARGET makes of it may succeed after that, not even if a write with FLAG of dd was told first.
flush_after_loss() { # BELOW TARGET [FLAG]
	sectors=$(blockdev --getsz "$1")
	DM_DISABLE_UDEV=1 dmsetup create lost --table "0 $sectors linear $1 0"
	add "$2" --direct off /dev/mapper/lost
	for table in error "linear $1 0"; do
		dd if=/dev/urandom of="$dev" bs=64k count=1 oflag=direct status=none
		DM_DISABLE_UDEV=1 dmsetup load lost --table "0 $sectors $table"
		DM_DISABLE_UDEV=1 dmsetup suspend --noflush --nolockfs lost
		DM_DISABLE_UDEV=1 dmsetup resume lost
		[ -z "${3:-}" ] || fails dd if=/dev/zero of="$dev" bs=4k seek=64 count=1 oflag=direct,"$3" status=none
		fails sync "$dev"
	done
	ubd del "$id"
	DM_DISABLE_UDEV=1 dmsetup remove lost
}

# The disk's attribute.
queue() {
	cat "/sys/block/ublkb$id/queue/$1"
}

# Fails when a device, a server or a state file is left.
nothing_left() {
	set -- /dev/ublkb* /dev/ublkc*
	for node; do
		[ ! -e "$node" ] || { echo "$node is left"; return 1; }
	done
	fails ls /run/ubd/*.json 2>/dev/null
	! pgrep -x ubd
}

# The ways of moving data that this driver has, or some of them.
ways=${UBD_WAYS:-$(ubd features | sed -n 's/^Zero copy: *auto *//p')}
