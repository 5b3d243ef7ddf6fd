#!/bin/bash
# SPDX-License-Identifier: MIT
# Servers that die, hang or are interrupted, and commands that race: del cleans up within a bound.
# shellcheck source=tests/cli/common.sh
. "$(dirname "$0")/common.sh"
guest "$0"
begin_guest

# ---- Dead servers ------------------------------------------------------------

for mode in none queue reissue; do
	"$ubd" add null -n 1 --recovery $mode >/dev/null
	pid=$(server_of 1)
	kill -9 "$pid"
	within 5 sh -c "! kill -0 $pid"
	sleep 0.3
	state=$("$ubd" list -n -o state)
	case $mode in
	none) same "killed, recovery none: list says so" "$state" "server gone" ;;
	*) same "killed, recovery $mode: list says so" "$state" quiesced ;;
	esac
	same "killed, recovery $mode: info says so" "$("$ubd" info 1 --json | json 'd["server"]["alive"]')" False
	check "killed, recovery $mode: del within 10 s" timeout 10 "$ubd" del 1
	check "killed, recovery $mode: gone" gone 1
done
"$ubd" add null -n 1 >/dev/null
check "where /sys is not to be seen del deletes as well" unshare -m sh -c "umount -l /sys && exec '$ubd' del 1"
check "without /sys: gone" gone 1
"$ubd" add null -n 1 >/dev/null
kill -9 "$(server_of 1)"
same "an add right after a death gets another number" "$("$ubd" add null)" /dev/ublkb0
check "del --all takes the dead and the living" "$ubd" del --all
nothing_left "nothing is left behind by the dead"

"$ubd" add null -n 1 >/dev/null
cp -r "$UBD_RUN_DIR" saved
"$ubd" del 1
cp saved/* "$UBD_RUN_DIR/"
same "a state file without a device is cleared away" "$("$ubd" del 1 2>&1)" \
	"ubd: del: device 1 was gone already; removed what its server had left"
"$ubd" add mem --size 8M -n 1 >/dev/null
cp saved/1.json "$UBD_RUN_DIR/"
same "a state file of another server is not believed" "$("$ubd" list -n -o target)" "ubd"
matches "del --all leaves another's device alone and says so" "$("$ubd" del --all 2>&1; echo $?)" \
	"^ubd: del: left alone /dev/ublkb1, served by ubd \(process [0-9]+\).*0$"
check "named, it is deleted" "$ubd" del 1
rm -f "$UBD_RUN_DIR"/*
echo '{ "id": 1, broken' >"$UBD_RUN_DIR/1.json"
refused "a broken state file is none" 1 "no device 1" "$ubd" del 1
rm "$UBD_RUN_DIR/1.json"

# ---- Recovery ----------------------------------------------------------------

# killed N: its server dies, and the driver has noticed.
killed() {
	kill -9 "$(server_of "$1")"
	within 10 sh -c "$ubd list -n -o dev,state | grep -Eq '/dev/ublkb$1 +(quiesced|fail-io)'"
}

truncate -s 32M disk.img
head -c 32M /dev/urandom >data
for mode in queue reissue; do
	"$ubd" add loop disk.img -n 1 --queues 2 -d 32 --recovery $mode >/dev/null
	old=$(server_of 1)
	check "killed, recovery $mode: noticed" killed 1
	# Meets a disk without a server, and waits.
	dd if=data of=/dev/ublkb1 bs=256k oflag=direct conv=fsync 2>/dev/null &
	writer=$!
	sleep 0.5
	same "recover prints the path" "$("$ubd" recover 1)" /dev/ublkb1
	wait $writer
	same "the I/O that waited is done" $? 0
	check "and is in the file" cmp data disk.img
	same "another process serves it" "$([ "$(server_of 1)" != "$old" ] && "$ubd" list -n -o state)" live
	same "queues and depth are what they were" "$("$ubd" list -n -o queues,depth | xargs)" "2 32"
	refused "what has a server is not recovered" 1 "has its server, .*nothing to recover" "$ubd" recover 1
	check "recovered, it is deleted" "$ubd" del 1
done
# Under load, more than once; reissue loses nothing.
"$ubd" add loop disk.img -n 1 --queues 2 --recovery reissue >/dev/null
head -c 32M /dev/urandom >data
dd if=data of=/dev/ublkb1 bs=4k oflag=direct conv=fsync 2>/dev/null &
writer=$!
for round in 1 2 3; do
	sleep 0.3
	check "under load: killed ($round)" killed 1
	same "under load: recovered ($round)" "$("$ubd" recover 1)" /dev/ublkb1
done
kill -9 "$(server_of 1)"
same "under load: recovered before anybody has noticed" "$("$ubd" recover 1)" /dev/ublkb1
wait $writer
same "the writer noticed nothing" $? 0
check "all it wrote is in the file" cmp data disk.img
# A recovery that cannot be leaves the disk as it is.
killed 1
mv disk.img away.img
refused "recover without the file" 1 "cannot open .*disk.img" "$ubd" recover 1
truncate -s 16M disk.img
refused "recover with a file of another size" 1 "has 65536 sectors .* now 32768" "$ubd" recover 1
same "the disk goes on waiting" "$("$ubd" list -n -o state)" quiesced
mv away.img disk.img
same "with the right file it is recovered" "$("$ubd" recover 1)" /dev/ublkb1
check "and reads what was written" cmp -n $((32 << 20)) /dev/ublkb1 data
check "it is deleted as well" "$ubd" del 1
for mode in queue reissue; do
	"$ubd" add zoned zones.img --format --size 64M --zone-size 8M -n 1 --recovery $mode >/dev/null
	dd if=data of=/dev/ublkb1 bs=64k count=1 oflag=direct conv=fsync 2>/dev/null
	killed 1
	case $mode in
	queue)
		same "a zoned disk is recovered" "$("$ubd" recover 1)" /dev/ublkb1
		check "and not formatted again" cmp -n 65536 data /dev/ublkb1
		;;
	*) refused "a zoned disk with recovery reissue is not" 1 "is a zoned disk" "$ubd" recover 1 ;;
	esac
	"$ubd" del 1
	rm zones.img
done
truncate -s 16M leg.a leg.b
"$ubd" add mirror leg.a leg.b --create -n 1 --recovery reissue >/dev/null
dd if=data of=/dev/ublkb1 bs=64k count=16 oflag=direct conv=fsync 2>/dev/null
killed 1
same "a mirror is recovered" "$("$ubd" recover 1)" /dev/ublkb1
check "and not created again" cmp -n 1048576 data /dev/ublkb1
"$ubd" del 1
rm leg.a leg.b
"$ubd" add mem --size 8M -n 1 --recovery queue >/dev/null
killed 1
refused "what was in memory is not recovered" 1 "died with its server" "$ubd" recover 1
"$ubd" del 1
cp "$slow" plugin.so
"$ubd" add -n 1 --recovery queue ./plugin.so >/dev/null 2>&1
killed 1
same "a plugin is found again where it was" "$("$ubd" recover 1 2>/dev/null)" /dev/ublkb1
killed 1
rm plugin.so
refused "recover without the plugin" 2 "plugin.so" "$ubd" recover 1
"$ubd" del 1
"$ubd" add null -n 1 >/dev/null
kill -9 "$(server_of 1)"
within 5 sh -c "[ \"\$($ubd list -n -o state)\" = 'server gone' ]"
refused "recover of what was added without --recovery" 1 "without --recovery.*ubd del 1" "$ubd" recover 1
"$ubd" del 1
refused "recover of no device" 1 "no device 1" "$ubd" recover 1
nothing_left "nothing is left behind by the recovered"

# ---- Stuck servers -----------------------------------------------------------

"$ubd" add null -n 2 >/dev/null
pid=$(server_of 2)
kill -STOP "$pid"
refused "a suspended server is named, with what to do" 1 \
	"process $pid\) is stopped, .*kill -CONT $pid.*del --force 2" timeout 10 "$ubd" del 2
same "info says so too" "$("$ubd" info 2 --json | json 'd["server"]["suspended"]')" True
kill -CONT "$pid"
check "continued, it is deleted" "$ubd" del 2
"$ubd" add null -n 2 >/dev/null
kill -STOP "$(server_of 2)"
check "del --force kills a suspended server" timeout 20 "$ubd" del --force 2
check "and the device is gone" gone 2

"$ubd" add "$slow" -n 2 --io-ms 600000 >/dev/null 2>&1
dd if=/dev/ublkb2 of=/dev/null bs=4k skip=8192 count=1 iflag=direct 2>/dev/null &
reader=$!
sleep 1
SECONDS=0
"$ubd" del --force --wait 3 2 2>err
same "del --force ends a server that does not answer I/O" "$?" 0
check "within its time" test $SECONDS -lt 12
matches "and says what it waits for" "$(cat err)" "ubd: waiting for "
check "it is gone" gone 2
wait $reader
nothing_left "nothing is left behind by the stuck"

"$ubd" add "$slow" -n 2 --close-ms 3000 >/dev/null 2>&1
same "del waits for a server that is slow to end and says so" "$("$ubd" del 2 2>&1 | grep -c '^ubd: waiting for ')" 1
check "it is gone as well" gone 2

# ---- Interruptions -----------------------------------------------------------

# ready_for_signals PID: it has made its server, or in the foreground its threads.
ready_for_signals() {
	within 20 sh -c "pgrep -P $1 || [ \$(ls /proc/$1/task | wc -l) -gt 1 ]"
}

# interrupt SIGNAL ARGUMENT...: sends it to `ubd add` while that waits.
interrupt() {
	local sig=$1
	shift
	"$ubd" add "$@" >out 2>err &
	local pid=$!
	ready_for_signals $pid
	kill -"$sig" $pid
	wait $pid
	echo "$? $(cat out) $(grep -v 'slow target is open' err)"
}
for sig in INT TERM HUP; do
	matches "SIG$sig while the target opens" "$(interrupt $sig "$slow" --open-ms 20000)" \
		"^1  ubd: add: interrupted; nothing was added$"
	nothing_left "SIG$sig leaves nothing behind"
done
matches "SIGINT while the target opens, in the foreground" "$(interrupt INT -f "$slow" --open-ms 20000)" \
	"^1  ubd: interrupted .*nothing was added$"
# Opening goes on for less than the server gives it: the device is made, and taken back.
"$ubd" add "$slow" --open-ms 1500 >out 2>err &
pid=$!
until pgrep -P $pid >/dev/null || ! kill -0 $pid; do :; done
if kill -INT $pid 2>/dev/null; then
	wait $pid
	status=$?
	if [ $status -eq 0 ]; then
		skip "SIGINT just before it is ready" "this machine was too slow to interrupt it in time"
		"$ubd" del "$(cat out)"
	else
		matches "SIGINT just before it is ready" "$status $(cat out) $(tail -n 1 err)" \
			"^1  ubd: add: interrupted; nothing was added$"
	fi
else
	skip "SIGINT just before it is ready" "this machine was too slow to interrupt it in time"
	"$ubd" del --all
fi
nothing_left "no interruption left anything behind"
# Whatever moment the interruption meets: a device that was reported, or none.
for mode in "" -f; do
	odd=
	for ms in 02 05 08 11 14 17 20 25 30 35 40 50 60 80; do
		# shellcheck disable=SC2086
		timeout --foreground -s INT 0.0$ms "$ubd" add $mode null >out 2>err
		within 5 sh -c "! pgrep -x ubd" && [ -z "$(find /dev -name 'ublkb*'; ls "$UBD_RUN_DIR")" ] && continue
		[ -z "$mode" ] && [ -s out ] && "$ubd" del "$(cat out)" && continue
		odd+=" $ms: $(cat out err)"
		"$ubd" del --all --force
	done
	same "interrupted at any moment${mode:+ in the foreground}: a device that was told of, or none" "$odd" ""
done
"$ubd" add "$slow" --open-ms 6000 >out 2>err &
pid=$!
check "a long wait is announced" within 10 grep -q "waiting for the server (process [0-9]*)" err
kill -9 $pid
within 40 sh -c "! pgrep -x ubd"
nothing_left "a killed adder leaves nothing behind"
"$ubd" add "$slow" --open-ms 20000 >out 2>err &
pid=$!
ready_for_signals $pid
kill -9 "$(pgrep -P $pid)"
wait $pid
matches "a server killed while starting is reported" "$? $(grep -v '^ubd: waiting for ' err)" "^1 ubd: add: the server was killed by signal 9"

# ---- Races -------------------------------------------------------------------

pids=()
for n in 1 2 3 4; do
	"$ubd" add null -n 3 >"race.$n" 2>&1 &
	pids+=($!)
done
codes=
for pid in "${pids[@]}"; do
	wait "$pid"
	codes+=$?
done
same "of racing adds for one number one wins" "$(grep -o . <<<"$codes" | sort | xargs)" "0 1 1 1"
same "and the others say why" "$(grep -c 'number 3 is already in use' race.* | cut -d: -f2 | sort | xargs)" "0 1 1 1"
same "the winner is live" "$("$ubd" list -n -o dev,state)" "/dev/ublkb3  live"
for n in 1 2 3; do "$ubd" del 3 >"race.$n" 2>&1 & done
wait
check "racing dels: the device is gone" gone 3
# On a slow machine they also say, to stderr, what they wait for.
for n in 1 2 3 4; do "$ubd" add null >"race.$n" & done
wait
same "racing adds for any number all get one" "$(sort race.[1-4] | xargs)" \
	"/dev/ublkb0 /dev/ublkb1 /dev/ublkb2 /dev/ublkb3"
for round in 1 2 3 4 5; do
	"$ubd" del 0 &
	"$ubd" add null >"again.$round"
	wait $!
	check "an add that meets a del is left alone ($round)" \
		"$ubd" info "$(cat "again.$round")"
	"$ubd" del "$(cat "again.$round")"
	"$ubd" add null -n 0 >/dev/null 2>&1
done
check "del --all of what is left" "$ubd" del --all
nothing_left "nothing is left behind by races"
finish
