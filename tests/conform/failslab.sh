#!/bin/bash
# SPDX-License-Identifier: MIT
# In a guest with the debug kernel: makes the driver's allocations fail, one in N for many N, while
# devices live and die. Nothing may hang, leak or make the kernel complain, and all works after.
#   tests/conform/failslab.sh CONFORM [N]...
set -u

conform=$1
shift
cases="add_and_delete life_whole user_copy_write get_data_write zoned_data shmem_data recovery_reissue_kill"
intervals=${*:-1 2 3 5 7 11 13 17 19 23 29 31 37 41}
knobs="/sys/kernel/debug/failslab /sys/kernel/debug/fail_page_alloc"
text=/sys/module/ublk_drv/sections/.text

[ -e /sys/kernel/debug/failslab/require-start ] || {
	echo "1..0 # SKIP this kernel cannot make a module's allocations fail: vm/run --kernel debug"
	exit 0
}

# set KNOB VALUE: for slabs and pages alike
set_knob() {
	local dir

	for dir in $knobs; do
		[ ! -e "$dir/$1" ] || echo "$2" >"$dir/$1"
	done
}

leaks() {
	echo scan >/sys/kernel/debug/kmemleak
	sleep 6
	echo scan >/sys/kernel/debug/kmemleak
	grep -c 'ublk_drv' /sys/kernel/debug/kmemleak
}

# Only what is allocated below a function of the module.
start=$(cat $text)
end=$(printf '0x%x' $((start + 0x40000)))
set_knob require-start "$start"
set_knob require-end "$end"
set_knob stacktrace-depth 32
set_knob verbose 0
set_knob ignore-gfp-wait 0
set_knob min-order 0
number=0 failed=0
echo "1..$(($(echo $intervals | wc -w) + 2))"
result() {
	number=$((number + 1))
	[ "$1" = 0 ] && echo "ok $number - $2" && return
	failed=$((failed + 1))
	echo "not ok $number - $2"
}

for n in $intervals; do
	set_knob interval "$n"
	set_knob times -1
	set_knob probability 100
	# Most of them fail, as they should; a device or a process that stays is another matter.
	# shellcheck disable=SC2086  # a list
	timeout 300 "$conform" --driver ours $cases >/mnt/failslab.log 2>&1
	status=$?
	set_knob probability 0
	bad=$(grep -E 'cannot be (killed|deleted)|complained' /mnt/failslab.log)
	[ -z "$bad" ] || echo "$bad"
	echo "# one in $n: $(tail -n 1 /mnt/failslab.log)"
	[ -z "$bad" ] && [ $status != 124 ]
	result $? "one allocation in $n fails"
done
# shellcheck disable=SC2086  # a list
"$conform" --driver ours $cases >/mnt/failslab.log 2>&1
result $? "all works when none fails"
count=$(leaks)
[ "$count" = 0 ] || cat /sys/kernel/debug/kmemleak
result "$count" "no memory of the driver's is lost"
[ $failed = 0 ]
