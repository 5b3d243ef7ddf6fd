#!/bin/sh
# SPDX-License-Identifier: MIT
# The server is killed under load, again and again, in each recovery mode: I/O fails or waits as the
# mode says, the device goes within its deadline, nothing hangs.
. "$(dirname "$0")/lib.sh"

rounds=${UBD_KILL_ROUNDS:-20}

# Ended, whether or not somebody has waited for it yet.
gone() {
	! [ -e "/proc/$1" ] || grep -qs '^State:.Z' "/proc/$1/status" || ! [ -e "/proc/$1" ]
}

has_line() {
	grep -q "^$1" "$scratch/load"
}

one_round() { # MODE WAY TARGET...
	mode=$1 way=$2 late=
	shift 2
	add --recovery "$mode" --zero-copy="$way" --queues 2 "$@"
	server=$(pgrep -x ubd)
	"$programs/guest-load" "$dev" 8 >"$scratch/load" 2>&1 &
	load=$!
	within 20 has_line running
	kill -9 "$server"
	within 10 gone "$server"
	case $mode in
	none | fail)
		# I/O fails: the load ends by itself.
		within 20 gone $load
		has_line "ended E"
		;;
	reissue)
		# All I/O waits: the load is still there.
		sleep 0.3
		fails gone $load
		;;
	queue)
		# What the server had fails, new I/O waits: of the load too, when some thread got it out
		# between the death and the first error.
		dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null &
		late=$!
		sleep 0.3
		fails gone $late
		;;
	esac
	timeout 30 ubd del --force "$id"
	within 20 gone $load
	has_line "ended E"
	[ -z "$late" ] || within 20 gone "$late"
	[ ! -e "/dev/ublkc$id" ]
}

all_rounds() { # MODE
	mode=$1
	truncate -s 8M "$scratch/image"
	set -- $ways
	for round in $(seq "$rounds"); do
		echo "round $round"
		way=$1
		shift
		set -- "$@" "$way"
		case $((round % 2)) in
		0) one_round "$mode" "$way" mem 8M ;;
		1) one_round "$mode" "$way" loop "$scratch/image" ;;
		esac
	done
	rm "$scratch/image"
}

check "killed $rounds times, recovery none" all_rounds none
check "killed $rounds times, recovery queue" all_rounds queue
check "killed $rounds times, recovery reissue" all_rounds reissue
if ubd features | grep -q '^recovery-fail-io *yes'; then
	check "killed $rounds times, recovery fail" all_rounds fail
else
	skip "killed $rounds times, recovery fail" "this driver has no recovery-fail-io"
fi
check "nothing is left" nothing_left
finish
