#!/bin/sh
# SPDX-License-Identifier: MIT
# In a guest: the driver is unloaded and loaded again, many times, with devices in between.
#   tests/conform/load.sh CONFORM intree|ours [CYCLES]
set -u

conform=$1 driver=$2 cycles=${3:-500}
module=/run/ubd/ublk_drv.ko

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
echo "ok 1 - $cycles cycles of unloading and loading"
echo "1 passed, 0 failed, 0 skipped"
