#!/bin/sh
# SPDX-License-Identifier: MIT
# stripe and linear under a real disk: data on every way of moving it, a file system, and flush, FUA
# and discard counted below (/dev/vda and /dev/vdb, scratch disks with a volatile cache).
# shellcheck disable=SC2154 # dev, id, ways: lib.sh
. "$(dirname "$0")/../guest/lib.sh"

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
	rm "$scratch/copy"
}

filesystem() { # TARGET
	legs 130M 130M 130M
	add --queues 4 "$1" "$scratch"/leg*
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
	add --zero-copy="$1" "$2" /dev/vda /dev/vdb
	[ "$(queue write_cache)" = "write back" ]
	flushes 9 9 fio --output="$scratch/fio" --name=f --filename="$dev" --rw=randwrite --bs=4k --size=40k --fsync=1 \
		--ioengine=psync --direct=1
	if [ "$2" = stripe ]; then
		# The first chunk is on the one, the second on the other, a write of both on both.
		flushes 10 0 dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct,dsync status=none
		flushes 0 10 dd if=/dev/zero of="$dev" bs=4k count=10 seek=16 oflag=direct,dsync status=none
		flushes 1 1 dd if=/dev/zero of="$dev" bs=128k count=1 oflag=direct,dsync status=none
	else
		flushes 10 0 dd if=/dev/zero of="$dev" bs=4k count=10 oflag=direct,dsync status=none
		flushes 0 10 dd if=/dev/zero of="$dev" bs=4k count=10 seek=24576 oflag=direct,dsync status=none
	fi
	ubd del "$id"
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

refused() { # PATTERN OPTION...
	pattern=$1
	shift
	fails ubd add "$@" 2>"$scratch/err"
	cat "$scratch/err"
	[ "$(wc -l <"$scratch/err")" -eq 1 ] && grep -q "$pattern" "$scratch/err"
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

for way in $ways; do
	for queues in 1 4; do
		legs 8M 8M 8M
		check "stripe, $way, $queues queues" data $queues "$way" stripe
		legs 8M 3M 10M
		check "linear, $way, $queues queues" data $queues "$way" linear
	done
	check "stripe, $way: flush and FUA reach the disks" durable "$way" stripe
	check "linear, $way: flush and FUA reach the disks" durable "$way" linear
done
check "stripe: ext4, git" filesystem stripe
check "linear: ext4, git" filesystem linear
check "stripe: discard" discards stripe --chunk 16K
check "linear: discard" discards linear
check "refusals" refusals
check "nothing is left" nothing_left
finish
