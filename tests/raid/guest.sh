#!/bin/sh
# SPDX-License-Identifier: MIT
# stripe, linear and mirror under a real disk: data on every way of moving it, a file system, and flush, FUA
# and discard counted below (/dev/vda and /dev/vdb, scratch disks with a volatile cache).
# shellcheck disable=SC2154 # dev, id, ways: lib.sh
. "$(dirname "$0")/../guest/lib.sh"

# Only cases that begin with a target's name: UBD_ONLY=mirror
case_() {
	case $1 in ${UBD_ONLY:-}*) check "$@" ;; esac
}

legs() { # SIZE...
	rm -f "$scratch"/leg*
	n=0
	for size; do
		n=$((n + 1))
		truncate -s "$size" "$scratch/leg$n"
	done
}

verify() { # QUEUES
	fio --output="$scratch/fio" --name=verify --filename="$dev" --ioengine=io_uring --direct=1 --rw=randwrite \
		--bsrange=4k-512k --iodepth=16 --size=4m --thread --numjobs="$1" --offset_increment=5m --verify=crc32c \
		--verify_fatal=1 --verify_state_save=0 --group_reporting --fsync=32 ||
		{ cat "$scratch/fio"; return 1; }
}

data() { # QUEUES WAY TARGET OPTION...
	queues=$1 way=$2
	shift 2
	add --queues "$queues" --zero-copy="$way" "$@" "$scratch"/leg*
	verify "$queues"
	dd if="$dev" of="$scratch/copy" bs=1M iflag=direct status=none
	ubd del "$id"
	case $1 in
	stripe) python3 -B "$top/tests/raid/layout.py" stripe 65536 "$scratch"/leg* | cmp - "$scratch/copy" ;;
	linear) python3 -B "$top/tests/raid/layout.py" linear "$scratch"/leg* | cmp - "$scratch/copy" ;;
	esac
	[ "$1" != mirror ] || same "$scratch/copy"
	rm "$scratch/copy"
}

# All legs of a mirror hold what FILE does.
same() { # FILE
	for leg in "$scratch"/leg*; do
		cmp -n "$(stat -c %s "$1")" -i 1048576:0 "$leg" "$1"
	done
}

status() { # NAME
	ubd info "$id" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["server_state"]["status"].get(sys.argv[1], ""))' "$1"
}

# Until the legs are in sync; the state is written once a second.
in_sync() {
	tries=0
	sleep 1.1
	while [ "$(status regions_to_copy)" != 0 ] || status leg_0 | grep -v "in sync" || status leg_1 | grep -v "in sync"; do
		tries=$((tries + 1))
		[ $tries -lt 180 ]
		sleep 0.5
	done
}

filesystem() { # TARGET OPTION...
	legs 130M 130M 130M
	add --queues 4 "$@" "$scratch"/leg*
	mkfs.ext4 -q "$dev"
	mkdir -p "$scratch/mnt"
	modprobe -q ext4 || true
	mount "$dev" "$scratch/mnt"
	mkdir "$scratch/source"
	cp -r "$top/lib" "$top/targets" "$scratch/source"
	git -C "$scratch/source" init -q
	git -C "$scratch/source" add .
	git -C "$scratch/source" -c user.name=ubd -c user.email=ubd@localhost commit -qm all
	git clone -q "$scratch/source" "$scratch/mnt/clone"
	umount "$scratch/mnt"
	e2fsck -fn "$dev"
	mount "$dev" "$scratch/mnt"
	git -C "$scratch/mnt/clone" fsck --full --strict
	diff -r "$top/lib" "$scratch/mnt/clone/lib"
	fstrim "$scratch/mnt"
	umount "$scratch/mnt"
	e2fsck -fn "$dev"
	ubd del "$id"
	rm -rf "$scratch/source"
}

# ---- What reaches the disks below --------------------------------------------------------------

count() { # DISK FIELD
	awk -v f="$2" '{print $f}' "/sys/block/$1/stat"
}

# Each disk sees at least so many flushes while COMMAND runs.
flushes() { # VDA VDB COMMAND...
	a=$(count vda 16) b=$(count vdb 16) least_a=$1 least_b=$2
	shift 2
	"$@"
	a=$(($(count vda 16) - a)) b=$(($(count vdb 16) - b))
	echo "$a and $b flushes below"
	[ $a -ge "$least_a" ] && [ $b -ge "$least_b" ]
}

durable() { # WAY TARGET
	# shellcheck disable=SC2046 # nothing or an option
	add --zero-copy="$1" "$2" $([ "$2" != mirror ] || echo --create) /dev/vda /dev/vdb
	[ "$(queue write_cache)" = "write back" ]
	flushes 9 9 fio --output="$scratch/fio" --name=f --filename="$dev" --rw=randwrite --bs=4k --size=40k --fsync=1 \
		--ioengine=psync --direct=1
	if [ "$2" = mirror ]; then
		flushes 10 10 dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct,dsync status=none
	elif [ "$2" = stripe ]; then
		# The first chunk is on the one, the second on the other, a write of both on both.
		flushes 10 0 dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct,dsync status=none
		flushes 0 10 dd if=/dev/zero of="$dev" bs=4k count=10 seek=16 oflag=direct,dsync status=none
		flushes 1 1 dd if=/dev/zero of="$dev" bs=128k count=1 oflag=direct,dsync status=none
	else
		flushes 10 0 dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct,dsync status=none
		flushes 0 10 dd if=/dev/zero of="$dev" bs=4k count=10 seek=24576 oflag=direct,dsync status=none
	fi
	ubd del "$id"
	[ "$2" != mirror ] || for disk in /dev/vda /dev/vdb; do
		dd if=/dev/zero of=$disk bs=8K count=1 oflag=direct status=none
	done
}

# Discard and zeroing give the legs' space back.
discards() { # TARGET
	legs 8M 8M 8M
	add "$@" "$scratch"/leg*
	dd if=/dev/urandom of="$dev" bs=1M count=24 oflag=direct status=none
	blkdiscard -f "$dev"
	for leg in "$scratch"/leg*; do
		[ "$(du -k "$leg" | cut -f1)" -eq 0 ]
	done
	dd if=/dev/urandom of="$dev" bs=1M count=24 oflag=direct status=none
	fallocate -z -o 4096 -l 20M "$dev"
	cmp -i 4096 -n 20971520 "$dev" /dev/zero
	ubd del "$id"
}

refusals() {
	legs 8M 8M
	add loop "$scratch/leg1"
	refused "is locked" stripe "$scratch/leg1" "$scratch/leg2"
	mkfs.ext4 -qF "$dev"
	mkdir -p "$scratch/mnt"
	modprobe -q ext4 || true
	mount "$dev" "$scratch/mnt"
	refused "is in use" linear "$dev" "$scratch/leg2"
	umount "$scratch/mnt"
	ln -s "$dev" "$scratch/link"
	refused "are the same" stripe "$dev" "$scratch/link"
	rm "$scratch/link"
	blockdev --setro "$dev"
	refused "for writing" stripe "$dev" "$scratch/leg2"
	ubd del "$id"
}

# Whoever was killed lets go of a block device a little later.
patient() {
	python3 -c 'import os, time; os.open("/dev/vda", os.O_RDWR | os.O_EXCL); print(flush=True); time.sleep(1)' \
		>"$scratch/held" &
	holder=$!
	within 10 test -s "$scratch/held"
	add stripe /dev/vda /dev/vdb
	wait $holder
	ubd del "$id"
	rm "$scratch/held"
}

# A mirror of which the second leg is a device mapper's.
mapped_mirror() { # OPTION...
	export DM_DISABLE_UDEV=1
	modprobe -q dm-mod || true
	legs 40M 40M
	modprobe -q loop || true
	back=$(losetup --sector-size "${leg_block:-512}" -f --show "$scratch/leg2")
	sectors=$(blockdev --getsz "$back")
	dmsetup create ubd-leg --table "0 $sectors linear $back 0"
	add --queues 2 "$@" mirror --create --retry 500 --bitmap-chunk 1M --bitmap-delay 100 "$scratch/leg1" /dev/mapper/ubd-leg
	in_sync
}

leg_becomes() { # TABLE
	dmsetup suspend --noflush ubd-leg
	dmsetup load ubd-leg --table "0 $sectors $1"
	dmsetup resume ubd-leg
}

unmap() {
	ubd del "$id"
	dmsetup remove ubd-leg
	losetup -d "$back"
}

leg_1_is() {
	status leg_1 | grep "$1"
}

# A leg that fails under load, and its return.
failing() {
	mapped_mirror
	fio --output="$scratch/fio" --name=verify --filename="$dev" --ioengine=io_uring --direct=1 --rw=randwrite --bs=16k \
		--iodepth=8 --size=24m --time_based --runtime=5 --verify=crc32c --verify_fatal=1 --verify_state_save=0 &
	load=$!
	under_load
	leg_becomes error
	within 10 leg_1_is "out\|rebuilding"
	leg_becomes "linear $back 0"
	wait $load
	in_sync
	dd if="$dev" of="$scratch/copy" bs=1M iflag=direct status=none
	unmap
	same "$scratch/copy"
	rm "$scratch/copy"
}

# Reads go on when a leg cannot be read, and after some of them it is out.
unreadable() { # WAY
	mapped_mirror --zero-copy="$1"
	dd if=/dev/urandom of="$scratch/some" bs=1M count=24 status=none
	dd if="$scratch/some" of="$dev" bs=1M oflag=direct conv=fsync status=none
	sleep 1 # until no bit is set: cleaning them would find out first
	leg_becomes error
	dd if="$dev" of="$scratch/copy" bs=64k count=8 iflag=direct status=none
	status leg_1 | grep "in sync"
	dd if="$dev" bs=64k skip=8 count=376 iflag=direct status=none >>"$scratch/copy"
	cmp "$scratch/copy" "$scratch/some"
	within 10 leg_1_is out
	leg_becomes "linear $back 0"
	in_sync
	unmap
	rm "$scratch/copy" "$scratch/some"
}

# The server is killed in the middle of writes; then one leg is new.
killed() {
	legs 40M 40M
	add mirror --create --bitmap-chunk 1M --resync-rate 0 "$scratch/leg1" "$scratch/leg2"
	in_sync
	dd if=/dev/urandom of="$scratch/some" bs=1M count=8 status=none
	dd if="$scratch/some" of="$dev" bs=1M oflag=direct conv=fsync status=none
	fio --output="$scratch/fio" --name=w --filename="$dev" --ioengine=io_uring --direct=1 --rw=randwrite --bs=16k \
		--iodepth=8 --offset=8m --size=24m --time_based --runtime=30 --allow_file_create=0 >/dev/null 2>&1 &
	load=$!
	under_load
	kill -9 "$(pgrep -x ubd)"
	timeout 60 ubd del "$id" --force || timeout 60 ubd del "$id"
	wait $load || true
	add mirror "$scratch/leg1" "$scratch/leg2"
	cmp -n 8388608 "$dev" "$scratch/some"
	in_sync
	dd if="$dev" of="$scratch/copy" bs=1M iflag=direct status=none
	ubd del "$id"
	same "$scratch/copy"
	rm "$scratch/leg2"
	truncate -s 40M "$scratch/leg2"
	refused "give --rebuild" mirror "$scratch/leg1" "$scratch/leg2"
	add mirror --rebuild --resync-rate 4M "$scratch/leg1" "$scratch/leg2"
	ubd info "$id" >"$scratch/info"
	grep "leg 1: *rebuilding" "$scratch/info"
	grep "resync: .* %" "$scratch/info"
	in_sync
	ubd del "$id"
	same "$scratch/copy"
	rm "$scratch/copy" "$scratch/some"
}

# The leg of larger blocks is out, the server is killed, and the leg gone: the disk goes on without it.
recovered() {
	leg_block=4096
	mapped_mirror --recovery reissue
	leg_block=
	[ "$(queue logical_block_size)" -eq 4096 ]
	dd if=/dev/urandom of="$scratch/some" bs=1M count=4 status=none
	leg_becomes error
	dd if="$scratch/some" of="$dev" bs=1M oflag=direct conv=fsync status=none
	within 10 leg_1_is out
	kill -9 "$(pgrep -x ubd)"
	within 10 sh -c "ubd list -n -o state | grep -x quiesced"
	dmsetup remove ubd-leg
	losetup -d "$back"
	ubd recover "$id"
	cmp -n 4194304 "$dev" "$scratch/some"
	ubd del "$id"
	rm "$scratch/some"
}

some=4
for way in $ways; do
	# One queue and four with each driver's first and best, in turn with the others.
	case $way in off | auto-buf | fused) some="1 4" ;; *) some=$((5 - ${some#* })) ;; esac
	for queues in $some; do
		legs 8M 8M 8M
		case_ "stripe, $way, $queues queues" data "$queues" "$way" stripe
		legs 8M 3M 10M
		case_ "linear, $way, $queues queues" data "$queues" "$way" linear
		legs 18M 18M 18M
		case_ "mirror, $way, $queues queues" data "$queues" "$way" mirror --create --bitmap-chunk 1M --bitmap-delay 100
	done
	case $way in get-data | user-copy | reg-buf) continue ;; esac # as off, as auto-buf
	case_ "mirror, $way: a leg that cannot be read" unreadable "$way"
	for target in stripe linear mirror; do
		case_ "$target, $way: flush and FUA reach the disks" durable "$way" $target
	done
done
case_ "stripe: ext4, git" filesystem stripe
case_ "linear: ext4, git" filesystem linear
case_ "mirror: ext4, git" filesystem mirror --create
case_ "mirror: a leg fails under load and comes back" failing
case_ "mirror: the server is killed, a leg is replaced" killed
case_ "mirror: taken over without its leg of larger blocks" recovered
case_ "stripe: discard" discards stripe --chunk 16K
case_ "linear: discard" discards linear
case_ "stripe, linear: refusals" refusals
case_ "stripe: a block device that is let go soon" patient
check "nothing is left" nothing_left
finish
