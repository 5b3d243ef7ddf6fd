#!/bin/sh
# SPDX-License-Identifier: MIT
# The target nbd under a real disk: data, file systems and a server that dies, on every way of moving
# data that the driver has.
. "$(dirname "$0")/../guest/lib.sh"
here=$top/tests/nbd

server=
start_server() { # nbdkit|qemu
	rm -f "$scratch/s"
	case $1 in
	nbdkit) nbdkit -f -U "$scratch/s" file "$scratch/image" >/dev/null 2>&1 & ;;
	qemu) qemu-nbd -f raw -t -e 4 -k "$scratch/s" "$scratch/image" >/dev/null 2>&1 & ;;
	esac
	server=$!
	trap 'kill -9 $server 2>/dev/null || :' EXIT
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		[ ! -S "$scratch/s" ] || return 0
		sleep 0.2
	done
	return 1
}

stop_server() {
	kill -9 $server
	wait $server 2>/dev/null || :
}

verify() { # QUEUES SECONDS
	fio --output="$scratch/fio" --name=verify --filename="$dev" --ioengine=io_uring --direct=1 --rw=randrw \
		--bsrange=4k-256k --iodepth=16 --size=3m --numjobs="$1" --offset_increment=8m --verify=crc32c \
		--verify_fatal=1 --verify_state_save=0 --group_reporting ${2:+--time_based --runtime="$2"} ||
		{ cat "$scratch/fio"; return 1; }
}

data() { # SERVER QUEUES WAY
	rm -f "$scratch/image"
	truncate -s 32M "$scratch/image"
	start_server "$1"
	add --queues "$2" --zero-copy="$3" nbd --unix "$scratch/s"
	verify "$2"
	# What fio wrote and read is in the server's file too.
	sync "$dev"
	cmp "$dev" "$scratch/image"
	ubd del "$id"
}

filesystem() { # WAY MKFS FSCK
	rm -f "$scratch/image"
	truncate -s 320M "$scratch/image"
	start_server nbdkit
	add --zero-copy="$1" nbd --unix "$scratch/s"
	$2 "$dev"
	mkdir -p "$scratch/mnt"
	mount "$dev" "$scratch/mnt"
	cp -r "$top/lib" "$top/targets" "$scratch/mnt"
	dd if=/dev/urandom of="$scratch/mnt/big" bs=1M count=24 status=none
	sum=$(sha256sum <"$scratch/mnt/big")
	umount "$scratch/mnt"
	mount "$dev" "$scratch/mnt"
	diff -r "$top/lib" "$scratch/mnt/lib"
	[ "$sum" = "$(sha256sum <"$scratch/mnt/big")" ]
	rm "$scratch/mnt/big"
	fstrim "$scratch/mnt"
	umount "$scratch/mnt"
	$3 "$dev"
	ubd del "$id"
}

dies() { # WAY
	rm -f "$scratch/image"
	truncate -s 32M "$scratch/image"
	start_server nbdkit
	add --queues 2 --zero-copy="$1" nbd --unix "$scratch/s"
	verify 2 5 &
	load=$!
	for _ in 1 2 3; do
		sleep 1
		stop_server
		sleep 0.3
		start_server nbdkit
	done
	wait $load
	ubd del "$id"
}

# Connections cut at any byte, in both directions. Now and then nbdkit dies of that: it comes back.
keep_server() {
	while :; do
		rm -f "$scratch/s"
		nbdkit -f -U "$scratch/s" file "$scratch/image" >/dev/null 2>&1 &
		echo $! >"$scratch/server"
		wait $! || :
	done
}
cut() { # WAY
	rm -f "$scratch/image" "$scratch/cut" "$scratch/s"
	truncate -s 32M "$scratch/image"
	keep_server 2>/dev/null &
	keeper=$!
	# More bytes than what is in flight, or nothing would ever be answered.
	python3 -B "$here/cutter" "$scratch/cut" "$scratch/s" 20 6000000 7 >"$scratch/cuts" &
	cutter=$!
	trap 'kill -9 $keeper $cutter $(cat "$scratch/server") 2>/dev/null || :' EXIT
	until [ -S "$scratch/cut" ] && [ -S "$scratch/s" ]; do sleep 0.2; done
	add --queues 2 --zero-copy="$1" nbd --unix "$scratch/cut"
	verify 2 5
	ubd del "$id"
	kill $cutter
	wait $cutter || :
	cat "$scratch/cuts"
}

gone() {
	rm -f "$scratch/image"
	truncate -s 32M "$scratch/image"
	start_server nbdkit
	add nbd --unix "$scratch/s" --timeout 3
	stop_server
	! timeout 20 dd if="$dev" of=/dev/null bs=4k count=1 iflag=direct || return 1
	ubd del "$id"
}

cannot_connect() {
	! ubd add nbd --unix "$scratch/nowhere" 2>"$scratch/err" || return 1
	cat "$scratch/err"
	[ "$(wc -l <"$scratch/err")" -eq 1 ]
	grep -q 'cannot connect to .*nowhere' "$scratch/err"
}

for way in $ways; do
	check "nbdkit, $way, 2 queues" data nbdkit 2 "$way"
	check "killed and restarted under load, $way" dies "$way"
	check "connections cut under load, $way" cut "$way"
done
check "qemu-nbd, 2 queues" data qemu 2 auto
check "ext4" filesystem auto "mkfs.ext4 -q" "fsck.ext4 -f -n"
check "xfs" filesystem off "mkfs.xfs -q" "xfs_repair -n"
check "a server that stays away: errors, and the device can be deleted" gone
check "a server that is not there" cannot_connect
check "nothing is left" nothing_left
finish
