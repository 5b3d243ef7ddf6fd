#!/bin/bash
# SPDX-License-Identifier: MIT
# Devices that work, in a guest: add, list, info, features, del, and what they leave behind.
# shellcheck source=tests/cli/common.sh
. "$(dirname "$0")/common.sh"
guest "$0"
begin_guest

# ---- Adding ------------------------------------------------------------------

same "add null prints the path" "$("$ubd" add null)" /dev/ublkb0
check "the device is there when add returns" test -b /dev/ublkb0
same "it has null's size" "$(blockdev --getsize64 /dev/ublkb0)" $((250 << 30))
same "add mem with an id, options after the target" \
	"$("$ubd" add mem size=64M --id 5 --queues 2 -d 32)" /dev/ublkb5
same "it has its size" "$(blockdev --getsize64 /dev/ublkb5)" $((64 << 20))
truncate -s 32M disk.img
same "add loop with a relative path" "$("$ubd" add -n 7 loop disk.img)" /dev/ublkb7
truncate -s 16M other.img
same "the familiar form" "$("$ubd" add -t loop -n 8 -f other.img -q 2 -d 128 -z)" /dev/ublkb8
same "add --json is the state file" "$("$ubd" add mem --size 8M -n 9 --json)" "$(cat "$UBD_RUN_DIR/9.json")"
same "add --read-only makes a read-only disk" \
	"$("$ubd" add -n 10 -r null && blockdev --getro /dev/ublkb10)" "/dev/ublkb10"$'\n'1
same "add --block-size" \
	"$("$ubd" add -n 11 null --block-size 4K && blockdev --getss /dev/ublkb11)" "/dev/ublkb11"$'\n'4096
same "add --max-io" \
	"$("$ubd" add -n 12 --max-io 128K null && cat /sys/block/ublkb12/queue/max_hw_sectors_kb)" \
	"/dev/ublkb12"$'\n'128
same "a plugin by path, with its notice on the adder's stderr" \
	"$("$ubd" add -n 13 "$slow" 2>&1)" "ubd: the slow target is open"$'\n'/dev/ublkb13
same "null reads zeroes" "$(dd if=/dev/ublkb0 bs=64k count=4 2>/dev/null | tr -d '\0' | wc -c)" 0
head -c 1M /dev/urandom >data
dd if=data of=/dev/ublkb8 bs=64k oflag=direct conv=fsync 2>/dev/null
check "what is written to loop is in the file" cmp -n 1048576 data other.img

# ---- The server process ------------------------------------------------------

pid=$(server_of 7)
same "the server holds no terminal, pipe or file of the adder's" \
	"$(readlink /proc/"$pid"/fd/{0,1,2} | sort -u)" /dev/null
same "the server works in /" "$(readlink "/proc/$pid/cwd")" /
same "the server leads a session of its own" "$(ps -o sid= -p "$pid" | tr -d ' ')" "$pid"
check "add returns when its output is read to the end" timeout 20 sh -c \
	"x=\$($ubd add null -n 14 | cat) && test \$x = /dev/ublkb14"
"$ubd" add null -n 16 <&- >&- 2>&-
same "add works with all standard streams closed" "$? $(blockdev --getsize64 /dev/ublkb16; "$ubd" del 16)" "0 $((250 << 30))"
exec 9>lock && flock 9
"$ubd" add null -n 15 >/dev/null
exec 9>&-
check "the server holds no lock of the adder's" flock -n lock true
same "the state file is for everybody to read" "$(stat -c %a "$UBD_RUN_DIR/7.json")" 644
same "there is one state file per device" "$(find "$UBD_RUN_DIR" -name '*.json*' | wc -l)" \
	"$(find /dev -name 'ublkb*' | wc -l)"

# ---- list --------------------------------------------------------------------

same "list has a line per device and titles" "$("$ubd" list | wc -l)" 12
same "list -n has no titles" "$("$ubd" list -n | wc -l)" 11
same "list of chosen columns" "$("$ubd" list -n -o dev,target,size,queues,depth,state | sed -n 2p)" \
	"/dev/ublkb5   mem    64M  2   32  live"
same "list --json has all" "$("$ubd" list --json | json '[d2["id"] for d2 in d["devices"]]')" \
	"[0, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15]"
same "list --json keeps its keys" "$("$ubd" list --json | json '" ".join(d["devices"][1])')" \
	"id path target size queues depth state pid server ours zero_copy options"
same "list shows a path made absolute" "$("$ubd" list -n -o options | sed -n 3p)" "file=$work/disk.img"
same "no line ends in blanks" "$("$ubd" list | grep -c ' $')" 0

# ---- info --------------------------------------------------------------------

matches "info names the flags" "$("$ubd" info 5)" "flag names: .*ioctl-encode"
for name in 5 ublkb5 ublkc5 /dev/ublkb5 /dev/ublkc5; do
	same "info $name" "$("$ubd" info "$name" --json | json 'd["path"], d["server"]["alive"]')" \
		"/dev/ublkb5 True"
done
same "info --json keeps its keys" "$("$ubd" info 5 --json | json '" ".join(d)')" \
	"id path state size zero_copy users server device params server_state stats"
same "info has the parameters" \
	"$("$ubd" info 11 --json | json 'd["params"]["logical_block"]')" 4096
dd if=/dev/zero of=/dev/ublkb5 bs=1M count=8 oflag=direct 2>/dev/null
check "info counts within two seconds" within 2 sh -c \
	"$ubd info 5 --json | python3 -SE -c 'import json,sys; sys.exit(json.load(sys.stdin)[\"stats\"][\"bytes_written\"] < 8 << 20)'"
exec 8</dev/ublkb5
matches "info says who has it open" "$("$ubd" info 5 --json | json 'd["users"]')" "open by [^ ]+ \\(process $$\\)"
exec 8<&-
refused "info of no device" 1 "there is no device 77" "$ubd" info 77

# ---- features ----------------------------------------------------------------

before=$(find /dev -name 'ublk*' | sort)
matches "features names driver and kernel" "$("$ubd" features)" "Kernel:    Linux $(uname -r | sed 's/+/./').*Driver: .*ublk_drv"
same "features --json keeps its keys" "$("$ubd" features --json | json '" ".join(d)')" \
	"kernel driver driver_version mask zero_copy features"
same "features leaves no device" "$(find /dev -name 'ublk*' | sort)" "$before"
for way in $("$ubd" features --json | json '" ".join(d["zero_copy"])'); do
	same "the way $way can be used" \
		"$("$ubd" add -n 20 null --zero-copy="$way" && dd if=/dev/ublkb20 of=/dev/null bs=64k count=2 2>/dev/null && "$ubd" del 20)" \
		/dev/ublkb20
done
usable=" $("$ubd" features --json | json '" ".join(d["zero_copy"])') "
for way in $("$ubd" help --plain add | sed -n 's/^--zero-copy=\(.\)/\1/p'); do
	[[ $usable == *" $way "* ]] && continue
	refused "the way $way is refused, as features says" 1 "$way" "$ubd" add null --zero-copy="$way"
done

# ---- del ---------------------------------------------------------------------

same "del says nothing" "$("$ubd" del 0 2>&1 | grep -v "^ubd: waiting for the server")" ""
check "and the device is gone" gone 0
same "its number is free again" "$("$ubd" add null)" /dev/ublkb0
check "del of several, by all names" "$ubd" del ublkb5 /dev/ublkb7 /dev/ublkc8
refused "del goes on after a failure and tells" 1 "there is no device 99" "$ubd" del 99 9
check "the other is gone" gone 9
kill "$(server_of 10)"
check "SIGTERM to the server deletes the device" within 5 gone 10
kill -INT "$(server_of 11)"
check "SIGINT too" within 5 gone 11
check "del --all" "$ubd" del --all
check "del --all of nothing is no failure" "$ubd" del --all
same "list has only the titles" "$("$ubd" list | wc -l)" 1
nothing_left "nothing is left behind"

# ---- In the foreground -------------------------------------------------------

"$ubd" add -f null -n 3 >out 2>err &
pid=$!
check "add --foreground says when it is ready" within 10 grep -qx /dev/ublkb3 out
same "the state names the foreground process" "$(server_of 3)" "$pid"
kill -INT $pid
wait $pid
same "Ctrl-C ends it well" "$? $(cat err)" "0 "
check "and deletes the device" gone 3
"$ubd" add --foreground loop disk.img -n 3 >out 2>err &
pid=$!
within 10 grep -qx /dev/ublkb3 out
check "del from elsewhere" "$ubd" del 3
wait $pid
same "ends the foreground server well" "$? $(cat err)" "0 "
same "a foreground server that cannot start" \
	"$("$ubd" add -f loop /nowhere 2>&1; echo $?)" "ubd: cannot open /nowhere: No such file or directory"$'\n'1
cat >manager.py <<'PY'
import os, socket, subprocess, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind("notify")
s.settimeout(20)
os.environ["NOTIFY_SOCKET"] = os.path.abspath("notify")
p = subprocess.Popen([sys.argv[1], "add", "-f", "null", "-n", "3"], stdout=subprocess.DEVNULL)
first = s.recv(100).decode()
there = os.path.exists("/dev/ublkb3")
p.terminate()
print(first, there, s.recv(100).decode(), p.wait())
PY
same "a service manager is told" "$(python3 -SE manager.py "$ubd")" "READY=1 True STOPPING=1 0"
nothing_left "nothing is left behind by the foreground"
finish
