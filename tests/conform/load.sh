#!/bin/sh
# SPDX-License-Identifier: MIT
# In a guest: the driver is unloaded and loaded again, many times, with devices in between. Where the
# kernel looks for lost memory (kmemleak) there must be none afterwards.
#   tests/conform/load.sh CONFORM intree|ours [CYCLES]
set -u

conform=$1 driver=$2 cycles=${3:-500}
module=/run/ubd/ublk_drv.ko
leaks=/sys/kernel/debug/kmemleak

load() {
	if [ "$driver" = ours ]; then
		insmod "$module"
	else
		modprobe ublk_drv
	fi
}

fail() {
	echo "not ok 1 - $cycles cycles of unloading and loading"
	echo "# cycle $i: $*"
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
}

echo 1..1
i=0
# What there is before is not the driver's.
[ ! -e $leaks ] || echo clear >$leaks
while [ $i -lt "$cycles" ]; do
	i=$((i + 1))
	rmmod ublk_drv || fail "it cannot be unloaded"
	[ ! -e /dev/ublk-control ] || fail "/dev/ublk-control is left behind"
	load || fail "it cannot be loaded"
	case=add_and_delete
	[ $((i % 25)) != 0 ] || case=life_whole
	"$conform" --driver "$driver" $case >/mnt/load.log 2>&1 ||
		fail "$case: $(grep -v '^ok' /mnt/load.log | head -n 5)"
done
if [ -e $leaks ]; then
	# Memory may be called lost when it is 5 s old, and twice not found.
	sleep 6
	echo scan >$leaks
	echo scan >$leaks
	[ -z "$(cat $leaks)" ] || fail "memory is lost: $(cat $leaks)"
fi
echo "ok 1 - $cycles cycles of unloading and loading"
echo "1 passed, 0 failed, 0 skipped"
