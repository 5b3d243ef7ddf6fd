#!/bin/bash
# SPDX-License-Identifier: MIT
# In a guest with the debug kernel: makes the driver's allocations fail while devices live and die;
# first each of its own once, one after the other, then those in all that it calls, one in N for many
# N. Nothing may hang, leak or make the kernel complain, and all works after.
#   tests/conform/failslab.sh CONFORM [CASE]...
set -u

conform=$1
shift
cases=${*:-add_and_delete life_whole user_copy_write get_data_write zoned_data integrity_data
	shmem_data recovery_reissue_kill}
slab=/sys/kernel/debug/failslab page=/sys/kernel/debug/fail_page_alloc
text=/sys/module/ublk_drv/sections/.text
log=/mnt/failslab.log
number=0 failed=0

[ -e $slab/require-start ] || {
	echo "1..0 # SKIP this kernel cannot make a module's allocations fail: vm/run --kernel debug"
	exit 0
}

# set_knob NAME VALUE: for slabs and pages alike
set_knob() {
	echo "$2" >$slab/"$1"
	echo "$2" >$page/"$1"
}

result() {
	number=$((number + 1))
	[ "$1" = 0 ] && echo "ok $number - $2" && return
	failed=$((failed + 1))
	echo "not ok $number - $2"
}

# Most cases fail, as they should; a device or a process that stays is another matter.
run() {
	local status

	timeout 300 "$conform" --driver ours "$@" >$log 2>&1
	status=$?
	set_knob probability 0
	! grep -E 'cannot be (killed|deleted)|complained' $log && [ $status != 124 ]
}

# fails_once KNOBS INTERVAL CASE: run a case; has an allocation failed in it?
fails_once() {
	local times

	echo "$2" >"$1/interval"
	echo 1 >"$1/times"
	echo 100 >"$1/probability"
	run "$3" || bad=1
	read -r times <"$1/times"
	[ "$times" = 0 ]
}

# each KNOBS CASE: the first allocation fails, then the second, and so on to the last. The kernel
# counts those that might fail, and has one fail when it comes to a multiple of the interval.
each() {
	local n=1 bad=0 tries=0

	while fails_once "$1" $((count[${1##*/}] + n)) "$2"; do
		# With an interval of 1 it does not count.
		[ $((count[${1##*/}] += n)) != 1 ] || count[${1##*/}]=0
		n=$((n + 1))
	done
	# Where its count is now, it tells when it comes to the interval.
	while [ $n -gt 1 ] && [ $tries -lt 20 ]; do
		tries=$((tries + 1))
		fails_once "$1" $((count[${1##*/}] + n)) "$2" && break
	done
	[ $n = 1 ] || count[${1##*/}]=$((count[${1##*/}] + n))
	total=$((total + n - 1))
	result $bad "$2: each of $((n - 1)) allocations fails once (${1##*/})"
}

leaks() {
	echo scan >/sys/kernel/debug/kmemleak
	sleep 6
	echo scan >/sys/kernel/debug/kmemleak
	grep -c 'ublk_drv' /sys/kernel/debug/kmemleak
}

declare -A count=([failslab]=0 [fail_page_alloc]=0)
total=0
start=$(cat $text)
set_knob require-start "$start"
set_knob require-end "$(printf '0x%x' $((start + 0x40000)))"
set_knob verbose 0
set_knob probability 0
echo 0 >$slab/ignore-gfp-wait
echo 0 >$page/ignore-gfp-wait
echo 0 >$page/min-order
# From the allocator to the driver's function, which may have asked an idr or kvmalloc.
set_knob stacktrace-depth 8
for case in $cases; do
	each $slab "$case"
	each $page "$case"
done
[ $total -gt 20 ]
result $? "there are allocations to fail: $total"
# All that has a function of the module among its callers. Those that fail again and again do so
# early; the ones that do once, somewhere.
set_knob stacktrace-depth 32
for n in 1 2 3 5 11 23 41; do
	set_knob interval $n
	set_knob times -1
	set_knob probability 100
	# shellcheck disable=SC2086  # a list
	run $cases
	result $? "one allocation in $n fails"
done
for n in 53 101 211 401 809 1511 3001; do
	set_knob interval $n
	set_knob times 1
	set_knob probability 100
	# shellcheck disable=SC2086  # a list
	run $cases
	result $? "one allocation of the next $n fails"
done
# shellcheck disable=SC2086  # a list
"$conform" --driver ours $cases >$log 2>&1
result $? "all works when none fails"
lost=$(leaks)
[ "$lost" = 0 ] || cat /sys/kernel/debug/kmemleak
result "$lost" "no memory of the driver's is lost"
echo "1..$number"
[ $failed = 0 ]
