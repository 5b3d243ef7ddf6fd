#!/bin/bash
# SPDX-License-Identifier: MIT
# Everything that must be refused by a driver that is there: one sentence, and nothing left behind.
# shellcheck source=tests/cli/common.sh
. "$(dirname "$0")/common.sh"
guest "$0"
begin_guest

# add FILE ARGUMENT...: both in the background and in the foreground.
refused_twice() {
	local name=$1 regex=$2
	shift 2
	refused "$name" 1 "$regex" "$ubd" add "$@"
	refused "$name, in the foreground" 1 "$regex" timeout 60 "$ubd" add -f "$@"
}

truncate -s 1M good.img
truncate -s 0 empty.img
truncate -s 1000 odd.img
mkfifo fifo
refused_twice "a missing file" "cannot open $work/none: No such file" loop none
refused_twice "a directory" "$work is a directory" loop "$work"
refused_twice "an empty file" "empty.img is empty" loop empty.img
refused_twice "a pipe" "neither a file nor a block device" loop fifo
refused_twice "less than a block" "(block|size)" loop odd.img --block-size 4096
refused_twice "an offset past the end" "offset" loop good.img --offset 2M
refused_twice "more than there is" "only" loop good.img --size 2M
refused "a size of 0" 2 "size: 0 is too small" "$ubd" add mem --size 0
refused_twice "a size that is no multiple" "multiple" null --size 1000
refused_twice "a block that is too large for the size" "multiple" null --size 512 --block-size 4096
refused_twice "too much memory" "memory" mem --size 1000T
refused_twice "what the target says" "told to fail" "$slow" --fail

# The command where others can reach it: its build may lie in root's home directory.
public=$(mktemp -d /mnt/ubd-public.XXXXXX)
mkdir "$public/cli" "$public/lib"
cp "$ubd" "$public/cli/"
cp -L "${ubd%/*}"/../lib/libubd.so.0 "$public/lib/" 2>/dev/null
chmod -R a+rX "$public"
nobody() {
	setpriv --reuid 65534 --clear-groups env UBD_RUN_DIR=/mnt "$public/cli/ubd" "$@"
}
refused "a node that may not be opened, by add" 1 "cannot open /dev/ublk-control: Permission denied; run as root" \
	nobody add null
refused "a node that may not be opened, by list" 1 "cannot open /dev/ublk-control: Permission denied; run as root" \
	nobody list
chmod 666 /dev/ublk-control
refused "no capability" 1 "root|CAP_SYS_ADMIN" nobody add null
chmod 600 /dev/ublk-control
rm -r "$public"

"$ubd" add null -n 4 >/dev/null
refused_twice "an id in use" "number 4 is already in use" null -n 4
same "the device in use is unharmed" "$("$ubd" list -n -o dev,state)" "/dev/ublkb4  live"
check "and its state file" test -s "$UBD_RUN_DIR/4.json"
UBD_RUN_DIR=/proc/nowhere refused "a run directory that cannot be made" 1 "cannot make the directory /proc/nowhere" \
	"$ubd" add null
UBD_RUN_DIR=$work/good.img refused "a run directory that is a file" 1 "good.img is not a directory" \
	"$ubd" add null
mkdir full && mount -t tmpfs -o size=4k,nr_inodes=2 none full && head -c 4096 /dev/zero >full/filler
UBD_RUN_DIR=$work/full refused "a run directory that is full" 1 "cannot write the state of /dev/ublkb0: No space" \
	"$ubd" add null
umount full
mount -t tmpfs -o size=64k none full
UBD_RUN_DIR=$work/full refused "a run directory too full for a target's things" 1 "cannot make .*live: No space" \
	"$ubd" add zoned new.img --format --size 1G --zone-size 64K
same "and neither they nor the image are left" "$(ls full; ls new.img 2>&1 | grep -o 'No such')" "No such"
umount full
check "del of that one device" "$ubd" del 4

# ---- In use ------------------------------------------------------------------

truncate -s 64M fs.img
"$ubd" add loop fs.img -n 6 >/dev/null
mkfs.ext4 -q /dev/ublkb6
mkdir mnt
mount /dev/ublkb6 mnt
refused "del of a mounted device says where" 1 "in use: mounted on $work/mnt; .*--force 6" "$ubd" del 6
refused "del --all refuses it as well" 1 "in use: mounted on $work/mnt" "$ubd" del --all
echo kept >mnt/file
check "it works on" sync mnt/file
umount mnt
unshare -m sh -c "mount /dev/ublkb6 '$work/mnt'; : >'$work/mounted'; sleep 60" &
holder=$!
within 10 test -e mounted
refused "a mount of another namespace counts" 1 "in use: mounted on $work/mnt" "$ubd" del 6
pkill -P $holder; kill $holder; wait $holder 2>/dev/null
read -r numbers </sys/block/ublkb6/dev
mknod alias b "${numbers%:*}" "${numbers#*:}"
mount alias mnt
refused "a mount by another name counts" 1 "in use: mounted on $work/mnt" "$ubd" del 6
umount mnt
crowd=()
for _ in {1..70}; do
	unshare -m sleep 60 &
	crowd+=($!)
done
unshare -m sh -c "mount alias '$work/mnt'; : >'$work/mounted-again'; exec sleep 60" &
crowd+=($!)
within 20 test -e mounted-again
refused "a mount of the 72nd namespace counts" 1 "in use: mounted on $work/mnt" "$ubd" del 6
kill "${crowd[@]}"
wait "${crowd[@]}" 2>/dev/null
exec 8</dev/ublkb6
refused "del of an open device says who" 1 "in use: open by [^ ]+ \(process $$\)[,;]" "$ubd" del 6
(sleep 1; :) 7<&8 &
exec 8<&-
check "a passing opener is waited for" "$ubd" del 6
wait
check "the file system was left whole" e2fsck -fn fs.img
check "with what was written to it" sh -c "debugfs -R 'cat file' fs.img 2>/dev/null | grep -qx kept"
"$ubd" add loop fs.img -n 6 >/dev/null
mount /dev/ublkb6 mnt
check "del --force takes a mounted device away" "$ubd" del --force 6
umount mnt
check "and it is gone" gone 6
if modprobe -q dm_mod && command -v dmsetup >/dev/null; then
	"$ubd" add null -n 6 >/dev/null
	dmsetup create ubd-test --table "0 2048 linear /dev/ublkb6 0"
	refused "a device mapper on top is named" 1 "used by dm-" "$ubd" del 6
	dmsetup remove --retry ubd-test
	"$ubd" del 6
else
	skip "a device mapper on top is named" "no device mapper in this guest"
fi

if modprobe -q btrfs && command -v mkfs.btrfs >/dev/null; then
	for leg in 6 7; do
		truncate -s 256M btrfs$leg.img
		"$ubd" add loop btrfs$leg.img -n $leg >/dev/null
	done
	read -r uuid </proc/sys/kernel/random/uuid
	mkfs.btrfs -q -U "$uuid" -d raid0 -m raid1 /dev/ublkb6 /dev/ublkb7
	mount -o device=/dev/ublkb7 /dev/ublkb6 mnt
	for leg in 6 7; do
		refused "device $leg of a mounted btrfs is named" 1 "part of the btrfs $uuid" "$ubd" del $leg
	done
	umount mnt
	check "del of both of an unmounted one" "$ubd" del 6 7
else
	skip "the devices of a mounted btrfs are named" "no btrfs in this guest"
fi

# ---- What is said whole, and what is left alone ------------------------------

deep=$work/$(printf 'd%.0s' {1..200})/$(printf 'e%.0s' {1..200})/$(printf 'f%.0s' {1..200})
deep=$deep/$(printf 'g%.0s' {1..200})/$(printf 'h%.0s' {1..200})
mkdir -p "$deep"
for i in {1..64}; do truncate -s 64K "$deep/leg$i"; done
same "a long state is printed whole" "$("$ubd" add linear "$deep"/leg* -n 7 --json | json 'len(d["options"])')" 64
"$ubd" del 7
UBD_RUN_DIR=here "$ubd" add zoned zones.img --format --size 64M --zone-size 8M -n 7 >/dev/null
check "a target keeps its things in the run directory" sh -c "ls here/zoned-*.live && ls here/7.json"
UBD_RUN_DIR=here "$ubd" del 7
same "and takes them away, wherever its server is" "$(ls here)" ""
"$ubd" add null -n 7 >/dev/null
kill -9 "$(server_of 7)"
within 10 sh -c "! pgrep -x ubd"
rm "$UBD_RUN_DIR"/7.*
exec 8<>/dev/ublkc7
said=$("$ubd" del --all 2>&1)
matches "del --all leaves alone what is being added" "$? $said" "^0 ubd: del: left alone /dev/ublkb7, which a process is about"
check "so it is there" test -e /dev/ublkc7
exec 8>&-
check "later it deletes it" "$ubd" del --all
check "and it is not there" gone 7
nothing_left "nothing is left behind"
finish
