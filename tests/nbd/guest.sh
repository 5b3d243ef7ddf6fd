#!/bin/sh
# SPDX-License-Identifier: MIT
# The target nbd under a real disk: data, file systems and a server that dies, on every way of moving
# data that the driver has.
. "$(dirname "$0")/../guest/lib.sh"
here=$top/tests/nbd

# A server, how to reach it in $at, its pid in $server: nbdkit|qemu|tcp|tls.
server=
start_server() {
	rm -f "$scratch/s" "$scratch/pid"
	at="--unix $scratch/s"
	set -- "$1" --pidfile "$scratch/pid" "$scratch/image"
	case $1 in
	nbdkit) nbdkit -f -U "$scratch/s" "$2" "$3" file "$4" >/dev/null 2>&1 & ;;
	qemu) qemu-nbd -f raw -t -e 4 -k "$scratch/s" --pid-file "$3" "$4" >/dev/null 2>&1 & ;;
	tcp)
		at="nbd://127.0.0.1:10810"
		nbdkit -f -i 127.0.0.1 -p 10810 "$2" "$3" file "$4" >/dev/null 2>&1 &
		;;
	tls)
		at="--host 127.0.0.1 --port 10810 --tls require --tls-username alice --tls-psk-file $scratch/keys"
		[ -e "$scratch/keys" ] || echo "alice:$(openssl rand -hex 32)" >"$scratch/keys"
		nbdkit -f -i 127.0.0.1 -p 10810 --tls=require --tls-psk="$scratch/keys" "$2" "$3" file "$4" >/dev/null 2>&1 &
		;;
	esac
	server=$!
	trap 'kill -9 $server 2>/dev/null || :' EXIT
	within 20 test -s "$scratch/pid"
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

data() { # SERVER WAY
	rm -f "$scratch/image"
	truncate -s 32M "$scratch/image"
	start_server "$1"
	# shellcheck disable=SC2086 # several words
	add --queues 2 --zero-copy="$2" nbd $at
	verify 2
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

dies() { # SERVER WAY
	rm -f "$scratch/image"
	truncate -s 32M "$scratch/image"
	start_server "$1"
	# shellcheck disable=SC2086 # several words
	add --queues 2 --zero-copy="$2" nbd $at
	verify 2 5 &
	load=$!
	for _ in 1 2 3; do
		sleep 1
		stop_server
		sleep 0.3
		start_server "$1"
	done
	wait $load
	ubd del "$id"
}

# Our own server dies, and others go on with its I/O. (nbdkit might die of that as well: docs/nbd.md.)
recovered() {
	rm -f "$scratch/image"
	truncate -s 32M "$scratch/image"
	start_server qemu
	add --queues 2 --recovery reissue nbd --unix "$scratch/s"
	verify 2 5 &
	load=$!
	kill_and_recover 2
	wait $load
	ubd del "$id"
}

# A server that can do less than the disk promises is not taken.
refused_with() { # SENTENCE FILTER [PARAMETER]
	rm -f "$scratch/s"
	nbdkit -f -U "$scratch/s" --filter="$2" file "$scratch/image" ${3:+"$3"} >/dev/null 2>&1 &
	server=$!
	within 20 test -S "$scratch/s"
	fails ubd recover "$id" 2>"$scratch/err"
	grep -q "$1" "$scratch/err"
	stop_server
}

recovered_to_less() {
	rm -f "$scratch/image"
	truncate -s 32M "$scratch/image"
	start_server nbdkit
	add --queues 2 --recovery reissue nbd --unix "$scratch/s"
	kill -9 "$(pgrep -x ubd)"
	within 10 sh -c "ubd list -n -o state | grep -q quiesced"
	stop_server
	refused_with 'cannot write through its cache (FUA) any more' fua
	refused_with 'has 2 queues, its target can only serve 1 now' noparallel serialize=connections
	start_server nbdkit
	ubd recover "$id"
	verify 2
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
	refused 'cannot connect to .*nowhere' nbd --unix "$scratch/nowhere"
}

for way in $ways; do
	check "nbdkit, Unix socket, $way" data nbdkit "$way"
	check "nbdkit, TCP, $way" data tcp "$way"
	check "connections cut under load, $way" cut "$way"
done
check "nbdkit, auto" data nbdkit auto
check "qemu-nbd, auto" data qemu auto
check "TLS" data tls auto
for kind in nbdkit tcp tls; do
	check "killed and restarted under load, $kind" dies $kind auto
done
check "our server is killed, others go on with its I/O" recovered
check "a server that can do less does not take over" recovered_to_less
check "ext4" filesystem auto "mkfs.ext4 -q" "fsck.ext4 -f -n"
check "xfs" filesystem off "mkfs.xfs -q" "xfs_repair -n"
check "a server that stays away: errors, and the device can be deleted" gone
check "a server that is not there" cannot_connect
check "nothing is left" nothing_left
finish
