#!/bin/sh
# SPDX-License-Identifier: MIT
# vm/run keeps its promises: exit status, streams, splats, time limit, nothing left behind.
# Runs on the host and starts guests of its own.
here=$(dirname "$(readlink -f "$0")")
top=$here/../..
# shellcheck source=tests/lib/tap.sh
. "$top/tests/lib/tap.sh"

run=$(readlink -f "$top/vm/run")
kernel=${UBD_KERNEL:-6.12}

# Runs in a guest, output in $tap_dir/{1,2}, status in $status.
guest() {
	status=0
	"$run" --kernel "$kernel" --driver none --timeout 60 "$@" >"$tap_dir/1" 2>"$tap_dir/2" || status=$?
	echo "status $status"
	cat "$tap_dir/1" "$tap_dir/2"
}

# Several promises in one guest: each costs a boot.
streams() {
	cd "$top/include"
	printf 'one\ntwo\n' >"$tap_dir/in"
	guest --stdin --disk 64M --env UBD_WORD="it's" --env PLAIN=1 --log "$tap_dir/log" -- sh -c '
		pwd
		tr a-z A-Z
		echo "$UBD_WORD $PLAIN"
		uname -r
		cat /sys/block/vda/size
		echo straight >/dev/stderr
		seq 1 200000
		sleep 1000 &
		exit 37' <"$tap_dir/in"
	test "$status" -eq 37
	{ pwd -P; echo ONE; echo TWO; echo "it's 1"; } >"$tap_dir/want"
	head -n 4 "$tap_dir/1" | cmp - "$tap_dir/want"
	test "$(sed -n 6p "$tap_dir/1")" = 131072
	test "$(tail -n +7 "$tap_dir/1" | md5sum)" = "$(seq 1 200000 | md5sum)"
	grep -v 'waiting for one to end' "$tap_dir/2" >"$tap_dir/err" || :
	echo straight | cmp - "$tap_dir/err"
	grep -q 'Linux version' "$tap_dir/log"
}

splat() {
	guest -- sh -c 'echo "BUG: ubd test" >/dev/kmsg; echo done'
	test "$status" -eq 125
	grep -q '^done$' "$tap_dir/1"
	grep -q 'BUG: ubd test' "$tap_dir/2"
}

panic() {
	guest -- sh -c 'echo c >/proc/sysrq-trigger'
	test "$status" -eq 125
	grep -q 'Kernel panic' "$tap_dir/2"
}

time_limit() {
	guest --timeout 2 -- sleep 1000
	test "$status" -eq 124
	grep -q 'time limit reached' "$tap_dir/2"
}

# The processes that descend from $1, and $1.
family() {
	echo "$1"
	for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do
		family "$child"
	done
}

# One signal to the runner itself, once its guest is up: it and QEMU go.
signalled() {
	mkfifo "$tap_dir/up.$1"
	"$run" --kernel "$kernel" --driver none --timeout 60 -- sh -c 'echo up; sleep 1000' >"$tap_dir/up.$1" 2>"$tap_dir/2" &
	pid=$!
	read -r line <"$tap_dir/up.$1"
	test "$line" = up
	processes=$(family $pid)
	echo "processes: $processes"
	test "$(echo "$processes" | wc -l)" -ge 2
	kill "-$1" $pid
	wait $pid || status=$?
	test "$status" -ne 0
	for tries in 1 2 3 4 5 6 7 8 9 10; do
		left=
		for process in $processes; do
			! kill -0 "$process" 2>/dev/null || left="$left $process"
		done
		[ -n "$left" ] || break
		sleep 0.5
	done
	echo "left after $tries tries: $left"
	test -z "$left"
}

# What a run could leave: temporary files, mounts, files in the cache.
leavings() {
	cache=${UBD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ubd}
	ls -d /tmp/ubd-vm* "$cache"/tmp* "$cache"/kernels/tmp* "$cache"/initrd/tmp* 2>/dev/null || :
	grep "$cache" /proc/mounts || :
}

nothing_left() {
	leavings
	test -z "$(leavings)"
}

refused() {
	guest "$@"
	test "$status" -eq 2
	test "$(wc -l <"$tap_dir/2")" -le 4
}

refusals() {
	refused --kernel bogus -- true
	grep -q -- '--kernel bogus: not one of' "$tap_dir/2"
	refused --disk nosuchfile -- true
	grep -q -- 'neither a size such as 64M nor a file' "$tap_dir/2"
	refused --disk 100 -- true
	refused --root /nonesuch -- true
	refused --kernel 6.1 --driver intree -- true
	grep -q 'built without ublk' "$tap_dir/2"
	refused --mem lots -- true
	refused --smp 0 -- true
	refused --timeout -1 -- true
	refused
	grep -q 'no command' "$tap_dir/2"
}

no_module() {
	guest --module nonesuch -- true
	test "$status" -eq 125
	grep -q 'module nonesuch does not load' "$tap_dir/2"
}

instructions() {
	guest --icount -- sh -c 'nproc; seq 1 50000 | tail -n 1; exit 3'
	test "$status" -eq 3
	printf '1\n50000\n' | cmp - "$tap_dir/1"
}

# As a kernel and its headers are when a fresh machine fetches both: neither may find the lists locked.
package_lists() {
	# shellcheck disable=SC2016  # the inner shell expands
	set -- env UBD_CACHE="$tap_dir/fresh" bash -euc '. "$0"; apt_use bookworm; apt_update bookworm
		packages | grep -c linux-image-6.1' "$top/vm/lib.sh"
	"$@" &
	"$@"
	wait $!
}

check "bad options are refused before anything starts, in a sentence" refusals
check "status, both streams, input, directory, variables, disk and log pass, with a process left running" streams
check "a splat in the kernel log fails a run that succeeded" splat
check "a panic fails the run and is shown" panic
check "a time limit ends the run with status 124" time_limit
check "SIGINT leaves no process behind" signalled INT
check "SIGTERM leaves no process behind" signalled TERM
check "SIGKILL leaves no process behind" signalled KILL
check "a module that does not load is named" no_module
check "two at once on a fresh machine read the package lists" package_lists
check "counting instructions: one processor, no output lost" instructions
check "no file and no mount is left" nothing_left
finish
