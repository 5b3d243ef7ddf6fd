#!/bin/sh
# SPDX-License-Identifier: MIT
# The target qcow2 under a real disk: data on every way of moving it, file systems, discard, and a
# server that dies. QEMU checks each image afterwards.
# shellcheck disable=SC2154 # dev, id, ways: lib.sh
. "$(dirname "$0")/../guest/lib.sh"

image=$scratch/image

sound() {
	qemu-img check -q -f qcow2 "$image"
}

verify() { # QUEUES
	fio --output="$scratch/fio" --name=verify --filename="$dev" --ioengine=io_uring --direct=1 --rw=randwrite \
		--bsrange=4k-256k --iodepth=16 --size=4m --numjobs="$1" --offset_increment=4m --verify=crc32c \
		--verify_fatal=1 --verify_state_save=0 --group_reporting --fsync=64 ||
		{ cat "$scratch/fio"; return 1; }
}

data() { # QUEUES WAY OPTIONS
	rm -f "$image"
	qemu-img create -q -f qcow2 ${3:+-o "$3"} "$image" 24M
	add --queues "$1" --zero-copy="$2" qcow2 "$image"
	verify "$1"
	sync "$dev"
	dd if="$dev" of="$scratch/copy" bs=1M iflag=direct status=none
	ubd del "$id"
	sound
	qemu-img compare -q -f qcow2 -F raw "$image" "$scratch/copy"
	rm -f "$scratch/copy"
}

overlay() { # WAY
	rm -f "$image" "$scratch/base"
	qemu-img create -q -f raw "$scratch/base" 16M
	dd if=/dev/urandom of="$scratch/base" bs=1M count=16 conv=notrunc status=none
	qemu-img create -q -f qcow2 -b "$scratch/base" -F raw "$image" 24M
	add --queues 2 --zero-copy="$1" qcow2 "$image"
	cmp -n 16777216 "$dev" "$scratch/base"
	verify 2
	blkdiscard -f -o 12582912 -l 2097152 "$dev"
	sync "$dev"
	dd if="$dev" of="$scratch/copy" bs=1M iflag=direct status=none
	ubd del "$id"
	sound
	qemu-img compare -q -f qcow2 -F raw "$image" "$scratch/copy"
	rm -f "$scratch/copy" "$scratch/base"
}

packed() { # WAY
	rm -f "$image"
	dd if=/dev/zero of="$scratch/raw" bs=1M count=16 status=none
	seq 1 300000 | dd of="$scratch/raw" conv=notrunc bs=1M status=none
	qemu-img convert -c -f raw -O qcow2 "$scratch/raw" "$image"
	add --zero-copy="$1" qcow2 "$image"
	cmp "$dev" "$scratch/raw"
	verify 1
	ubd del "$id"
	sound
	rm -f "$scratch/raw"
}

filesystem() { # WAY MKFS FSCK
	rm -f "$image"
	qemu-img create -q -f qcow2 "$image" 400M
	add --zero-copy="$1" --queues 2 qcow2 "$image"
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
	sound
	[ "$(du -m "$image" | cut -f1)" -lt 60 ]
}

# What was answered is there again, flushed or not: the machine has not lost power.
dies() { # WAY RECOVERY
	rm -f "$image"
	qemu-img create -q -f qcow2 "$image" 24M
	add --zero-copy="$1" --recovery "$2" --queues 2 qcow2 "$image"
	server=$(pgrep -x ubd)
	dd if=/dev/urandom of="$scratch/some" bs=1M count=8 status=none
	dd if="$scratch/some" of="$dev" bs=64k oflag=direct status=none
	fio --output="$scratch/fio" --name=load --filename="$dev" --ioengine=io_uring --direct=1 --rw=randwrite \
		--bs=4k --iodepth=16 --offset=8m --size=16m --time_based --runtime=60 --allow_file_create=0 2>/dev/null &
	load=$!
	under_load
	kill -9 "$server"
	sleep 0.5
	# With reissue the load waits for another server.
	[ "$2" = none ] || kill -0 $load
	timeout 60 ubd del "$id" --force || timeout 60 ubd del "$id"
	wait $load || :
	sound || [ $? -eq 3 ] # leaks
	add --zero-copy="$1" qcow2 "$image"
	cmp -n 8388608 "$dev" "$scratch/some"
	ubd del "$id"
	sound
	rm -f "$scratch/some"
}

# With another server each time nobody notices, and nothing is lost.
recovered() {
	rm -f "$image"
	qemu-img create -q -f qcow2 "$image" 24M
	add --recovery reissue --queues 2 qcow2 "$image"
	verify 2 &
	load=$!
	kill_and_recover 3
	wait $load
	ubd del "$id"
	sound
}

# Who says nonsense to a server, or nothing, disturbs nobody.
nonsense() { # SOCKET
	python3 -c '
import socket, sys
for text in (b"", b"no end", b"\0" * 9, b"snapshot\0" * 3, b"x\0" * 70000, None):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(sys.argv[1])
    try:
        if text is not None:
            s.sendall(text)
            s.shutdown(socket.SHUT_WR)
        assert b"error" in s.recv(4096), text
    except (BrokenPipeError, ConnectionResetError):
        assert len(text) > 65536, text
' "$1"
}

# Snapshots and sizes of a disk in use.
commands() {
	rm -f "$image"
	qemu-img create -q -f qcow2 "$image" 24M
	add --queues 2 qcow2 "$image"
	dd if=/dev/urandom of="$scratch/first" bs=1M count=8 status=none
	dd if="$scratch/first" of="$dev" bs=1M oflag=direct status=none
	fio --output="$scratch/fio" --name=load --filename="$dev" --ioengine=io_uring --direct=1 --rw=randwrite \
		--bs=4k --iodepth=8 --offset=8m --size=8m --time_based --runtime=3 &
	for name in one two three; do
		ubd snapshot "$id" create $name
	done
	ubd snapshot "$dev" delete two
	wait $!
	ubd snapshot "$id" list --json | grep -c '"name"' | grep -qx 2
	fails ubd snapshot "$id" create one 2>"$scratch/err"
	grep -q "has a snapshot 'one' already" "$scratch/err"
	nonsense "/run/ubd/$id.sock"
	dd if=/dev/zero of="$dev" bs=1M count=8 oflag=direct conv=fsync status=none
	ubd snapshot "$id" apply one
	cmp -n 8388608 "$dev" "$scratch/first"
	if ubd features | grep -q '^update-size *yes'; then
		ubd resize "$id" 64M
		blockdev --getsize64 "$dev" | grep -qx 67108864
		dd if="$scratch/first" of="$dev" bs=1M seek=56 oflag=direct conv=fsync status=none
		ubd resize "$id" 32M
		blockdev --getsize64 "$dev" | grep -qx 33554432
		ubd list | grep -q ' 32M '
	else
		fails ubd resize "$id" 64M 2>"$scratch/err"
		grep -q "cannot give a running device another size" "$scratch/err"
		blockdev --getsize64 "$dev" | grep -qx 25165824
	fi
	cmp -n 8388608 "$dev" "$scratch/first"
	ubd del "$id"
	sound
	fails ubd snapshot "$id" list 2>"$scratch/err"
	rm -f "$scratch/first"
}

# An image on a disk below us that flushes are counted of, and that others can be laid over.
disk_below() {
	modprobe null_blk nr_devices=0
	disk=/sys/kernel/config/nullb/nullb0
	mkdir $disk
	for setting in size=64 memory_backed=1 cache_size=1 power=1; do
		echo "${setting#*=}" >"$disk/${setting%%=*}"
	done
	qemu-img create -q -f qcow2 /dev/nullb0 1M
}

no_disk_below() {
	echo 0 >$disk/power
	rmdir $disk
}

lost() {
	disk_below
	flush_after_loss /dev/nullb0 qcow2
	no_disk_below
}

# A write that the driver finishes is known to be over only later. Its user may flush at once, and may have
# flushed while it was under way: the disk below, which is slow to write, must see the second one.
late() {
	disk_below
	modprobe dm-delay
	DM_DISABLE_UDEV=1 dmsetup create late --table "0 131072 delay /dev/nullb0 0 0 /dev/nullb0 0 100 /dev/nullb0 0 0"
	add qcow2 /dev/mapper/late
	python3 - "$dev" <<-END
		import mmap, os, sys, threading, time
		disk, memory = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096)
		flushes = lambda: int(open("/sys/block/nullb0/stat").read().split()[15])
		os.pwrite(disk, memory, 0)
		os.fsync(disk)
		def put():
		    begun.append(time.monotonic())
		    os.pwrite(disk, memory, 0)
		beside = 0
		for i in range(100):
		    begun = []
		    write = threading.Thread(target=put)
		    write.start()
		    time.sleep(0.02)
		    os.fsync(disk)
		    # The write takes 100 ms. On a busy machine it may be over, and this one covers it.
		    early = begun and time.monotonic() - begun[0] < 0.09
		    write.join()
		    before = flushes()
		    os.fsync(disk)
		    assert not early or flushes() > before, f"write {i} was flushed, and the disk below was not"
		    beside += bool(early)
		    if beside == 20:
		        break
		assert beside, "no flush came in time"
	END
	ubd del "$id"
	DM_DISABLE_UDEV=1 dmsetup remove late
	no_disk_below
}

encrypted() {
	rm -f "$image"
	qemu-img create -q -f qcow2 --object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s "$image" 1M
	refused encrypted qcow2 "$image"
}

queues=1
for way in $ways; do
	check "data, $way, $queues queues" data $queues "$way"
	check "subclusters, $way" data 2 "$way" extended_l2=on
	check "on a backing file, $way" overlay "$way"
	check "compressed, $way" packed "$way"
	queues=$((queues % 4 + 1))
done
check "512-byte clusters, 4 queues" data 4 auto cluster_size=512
check "preallocated, 3 queues" data 3 auto preallocation=metadata
check "ext4" filesystem auto "mkfs.ext4 -q" "fsck.ext4 -f -n"
for way in $ways; do
	check "the server is killed, $way" dies "$way" none
done
check "the server is killed, its I/O waits" dies auto reissue
check "the server is killed, others go on with its I/O" recovered
check "snapshots and sizes of a disk in use" commands
check "a flush of what the driver has just finished reaches the disk" late
check "a flush after one that failed fails as well" lost
check "encrypted images are refused" encrypted
check "nothing is left" nothing_left
finish
