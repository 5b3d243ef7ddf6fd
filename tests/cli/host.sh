#!/bin/bash
# SPDX-License-Identifier: MIT
# The command where it needs no driver: arguments, help, JSON, man pages, completion, and what it
# says on a kernel without ublk.
# shellcheck source=tests/cli/common.sh
. "$(dirname "$0")/common.sh"
begin

# ---- Verbs and help ----------------------------------------------------------

check "ubd help works" "$ubd" help
matches "ubd --help lists every verb" "$("$ubd" --help)" \
	"add .*del .*list .*info .*features .*targets .*help .*version"
"$ubd" >/dev/null
same "ubd alone shows the help and exits with 2" $? 2
for verb in $("$ubd" help --plain); do
	matches "ubd $verb --help explains it" "$("$ubd" "$verb" --help)" "^Usage: ubd $verb"
	same "ubd help $verb says the same" "$("$ubd" help "$verb")" "$("$ubd" "$verb" -h)"
	refused "ubd $verb refuses an unknown option" 2 "unknown option '--surely-not'" \
		"$ubd" "$verb" --surely-not
done
refused "an unknown verb is refused" 2 "unknown verb 'frobnicate' \(see ubd help\)$" "$ubd" frobnicate
refused "a near verb is suggested" 2 "did you mean ubd list" "$ubd" lsit
refused "a verb cut short is suggested" 2 "did you mean ubd features" "$ubd" feat
refused "an option before the verb is explained" 2 "comes after a verb" "$ubd" --json
matches "ubd version" "$("$ubd" version)" '^ubd [0-9]+\.[0-9]+\.[0-9]+$'
same "ubd version --json agrees" "ubd $("$ubd" version --json | json 'd["version"]')" "$("$ubd" --version)"
"$ubd" help >/dev/full 2>"$work/err"
same "a full disk under the output is a failure" "$? $(grep -c '^ubd: cannot write' "$work/err")" "1 1"

# ---- Targets -----------------------------------------------------------------

for target in null mem loop; do
	matches "ubd targets lists $target" "$("$ubd" targets)" "(^|"$'\n'")$target "
	same "ubd targets $target --json names it" "$("$ubd" targets $target --json | json 'd["name"]')" $target
	same "ubd add $target --help is ubd targets $target" "$("$ubd" add $target --help)" "$("$ubd" targets $target)"
	same "ubd help add $target is the same" "$("$ubd" help add $target)" "$("$ubd" targets $target)"
done
same "ubd targets --json has as many as the list" \
	"$("$ubd" targets --json | json 'len(d["targets"])')" "$("$ubd" targets | wc -l)"
same "an option's JSON has the documented keys" \
	"$("$ubd" targets loop --json | json '" ".join(sorted(d["options"][0]))')" \
	"default help letter name positional required type"
refused "an unknown target is refused" 2 "there is no target \"flubber\"" "$ubd" add flubber
refused "a near target is suggested" 2 "did you mean null\?" "$ubd" add nul
refused "a plugin that is not there is refused" 2 "nowhere.so" "$ubd" add /nowhere.so
refused "ubd targets refuses an unknown one" 2 "there is no target" "$ubd" targets flubber

# ---- The arguments of add ----------------------------------------------------

refused "no target" 2 "no target given" "$ubd" add
refused "a near option of the target is suggested" 2 "did you mean --size\?" "$ubd" add null --sise 1G
refused "a near option of add is suggested" 2 "did you mean --queues\?" "$ubd" add null --queus 2
refused "target options before the target are explained" 2 "come after its name" "$ubd" add --untouched null
refused "NAME=VALUE with an unknown name" 2 "has no option 'sise'; did you mean size\?" "$ubd" add null sise=1G
refused "a word that the target does not take" 2 "takes no argument 'spare'" "$ubd" add null spare
refused "a second word for loop" 2 "takes no argument 'b'" "$ubd" add loop a b
refused "a required option" 2 "needs the option file" "$ubd" add loop
refused "an option without its value" 2 "option --size needs a value" "$ubd" add null --size
refused "a letter without its value" 2 "option -q needs a value" "$ubd" add null -q
refused "a value where none belongs" 2 "takes no value" "$ubd" add null --read-only=yes
refused "an unknown letter" 2 "option '-Z'" "$ubd" add null -Z
refused "two targets" 2 "one target at a time" "$ubd" add -t null -t mem
refused "a bad size" 2 "size" "$ubd" add null --size lots
refused "a bad yes or no" 2 "neither yes nor no" "$ubd" add null --untouched=perhaps
refused "a bad choice" 2 "not one of auto" "$ubd" add loop f --direct perhaps
refused "an option given twice" 2 "twice" "$ubd" add null --size 1G size=2G
for wrong in 0 4097 -1 two 1.5 99999999999999999999 ''; do
	refused "--queues '$wrong' is refused with the range" 2 "from 1 to 4096, not '$wrong'" "$ubd" add null --queues "$wrong"
	refused "--depth '$wrong' is refused with the range" 2 "from 1 to 4096, not '$wrong'" "$ubd" add null --depth "$wrong"
done
for wrong in 1000 256 8K 64K x ''; do
	refused "--block-size '$wrong' is refused with the range" 2 "from 512 to 4K" "$ubd" add null --block-size "$wrong"
done
for wrong in 1000 1K 64M x; do
	refused "--max-io '$wrong' is refused with the range" 2 "from 4K to 32M" "$ubd" add null --max-io "$wrong"
done
refused "--id out of range" 2 "from 0 to 1048575" "$ubd" add null --id 1048576
refused "--zero-copy lists the ways" 2 "one of auto, off, .*, auto-buf.*, not 'warp'" "$ubd" add null --zero-copy=warp
refused "--zero-copy suggests the near one" 2 "did you mean auto-buf" "$ubd" add null --zero-copy=auto-buff
refused "--recovery lists the modes" 2 "none, queue, reissue, fail" "$ubd" add null --recovery=maybe
refused "--deadline out of range" 2 "from 1 to 86400" "$ubd" add null --deadline 0

# ---- The arguments of the others ---------------------------------------------

refused "del alone is no deletion" 2 "--all" "$ubd" del
refused "del of no device name" 2 "'sda' names no device" "$ubd" del sda
refused "del --all with a device" 2 "not both" "$ubd" del --all 0
refused "del --wait out of range" 2 "from 1 to" "$ubd" del --wait 0 1
refused "info alone" 2 "name a device" "$ubd" info
refused "info of two" 2 "one device at a time" "$ubd" info 1 2
refused "list with a word" 2 "takes no argument" "$ubd" list 3
refused "list of an unknown column" 2 "did you mean size" "$ubd" list -o dev,sise
refused "snapshot alone" 2 "name a device or image" "$ubd" snapshot
refused "snapshot of an unknown kind" 2 "no 'lits'; did you mean list" "$ubd" snapshot 0 lits
refused "snapshot create without a name" 2 "create needs one name" "$ubd" snapshot 0 create
refused "snapshot list with a name" 2 "list takes no name" "$ubd" snapshot 0 list x
refused "snapshot --json with create" 2 "goes with list" "$ubd" snapshot 0 create x --json
refused "snapshot of an image that is not there" 1 "cannot open .*nowhere" "$ubd" snapshot nowhere list
refused "snapshot of a device without a server" 1 "has no server of ubd" "$ubd" snapshot 1048575 list
refused "recover without a device" 2 "name the device" "$ubd" recover
refused "recover of two" 2 "not also '1'" "$ubd" recover 0 1
refused "recover of no device" 2 "'x' names no device" "$ubd" recover x
refused "resize without a size" 2 "its new size" "$ubd" resize 0
refused "resize to what is no size" 2 "not a size in whole sectors" "$ubd" resize 0 1000
refused "resize of two" 2 "not also 'x'" "$ubd" resize 0 1G x
refused "features with a word" 2 "takes no argument" "$ubd" features x

# ---- A machine without ublk --------------------------------------------------

if [ -e /dev/ublk-control ] || modprobe -n -q ublk_drv 2>/dev/null; then
	skip "what to do without a driver" "this kernel has ublk"
else
	touch disk.img
	for words in "add null" "add loop disk.img" "add -t loop -f disk.img -q 2 -d 128 -z" \
		"add null --size=1G -q2 -d 64" "add null size=1G --queues 2" "add -rz null --zero-copy" \
		"add loop file=disk.img --direct=off --" "list" "list --json" "info 0" "del 0" \
		"del /dev/ublkb0 ublkc1 2" "del --all --force --wait 5" "features"; do
		# shellcheck disable=SC2086
		refused "ubd $words says what to install" 1 \
			"has no ublk driver: .*linux-image-6.12-amd64 .*vm/run" "$ubd" $words
	done
	same "nothing is left behind by them" "$(pgrep -x ubd; ls "$UBD_RUN_DIR" 2>/dev/null)" ""
fi

# ---- Man pages and completion ------------------------------------------------

for page in ubd $("$ubd" help --plain | sed 's/^/ubd-/') ubd-target-null ubd-target-mem ubd-target-loop; do
	file=$top/docs/man/$page.8
	if ! [ -f "$file" ]; then
		flunk "man page $page" "$file is missing"
		continue
	fi
	if ! command -v man >/dev/null; then
		skip "man page $page has no errors" "man is not installed (package man-db)"
		continue
	fi
	same "man page $page has no errors" \
		"$(MANWIDTH=100 man -E UTF-8 -l --warnings=w "$file" 2>&1 >/dev/null)" ""
done
for verb in $("$ubd" help --plain); do
	missing=
	for option in $("$ubd" help --plain "$verb" | sed -n 's/^\(--[^=]*\).*/\1/p' | sort -u); do
		[ "$option" = --help ] || grep -qF -- "${option//-/\\-}" "$top/docs/man/ubd-$verb.8" || missing+=" $option"
	done
	same "man page ubd-$verb has every option" "$missing" ""
done
for target in null mem loop; do
	missing=
	for option in $("$ubd" targets $target --plain | sed -n 's/^--\([^=]*\).*/\1/p' | sort -u); do
		tr -d '\\-' <"$top/docs/man/ubd-target-$target.8" | grep -qw "$option" || missing+=" $option"
	done
	same "man page ubd-target-$target has every option" "$missing" ""
done

# complete WORD...: what the completion offers for the last word.
complete_words() {
	PATH=$(dirname "$ubd"):$PATH bash -c '
		. "$0"
		COMP_WORDS=(ubd "$@") COMP_CWORD=$# COMPREPLY=()
		COMP_LINE="${COMP_WORDS[*]}" COMP_POINT=${#COMP_LINE}
		_ubd
		printf "%s\n" "${COMPREPLY[@]}"' "$top/packaging/completion/ubd" "$@" | xargs
}
same "completion of a verb" "$(complete_words fe)" "features"
same "completion of targets" "$(complete_words add '')" "$("$ubd" targets --plain | xargs)"
same "completion of an option of add" "$(complete_words add --que)" "--queues="
same "completion of an option of the target" "$(complete_words add null --unt)" "--untouched"
same "completion of general options after the target" "$(complete_words add null --que)" "--queues="
same "completion of ways" "$(complete_words add --zero-copy = au)" "auto auto-buf"
same "completion of modes" "$(complete_words add --recovery re)" "reissue"
same "completion of a choice" "$(complete_words add loop --direct = '')" "auto on off"
same "completion of snapshot jobs" "$(complete_words snapshot 0 '')" "list create delete apply"
same "completion of columns" "$(complete_words list -o q)" "queues"
same "completion of files for loop" "$(touch disk.img && complete_words add loop dis)" "disk.img"

finish
