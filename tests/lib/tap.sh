# SPDX-License-Identifier: MIT
# A test script in sh, reported as TAP. Source it, then:
#
#   check NAME COMMAND...   a case: passes when COMMAND succeeds; its output is shown when not
#   fails COMMAND...        in a case: COMMAND must fail
#   skip NAME REASON        a case that cannot run here
#   within SECONDS COMMAND...  waits until COMMAND succeeds; a busy machine gets thrice SECONDS
#   say TEXT                a note in the output
#   finish                  the plan; ends the script
#
# A case may be a function: it runs in a subshell with -e, so that its first failing command ends it.
# shellcheck shell=sh

tap_count=0
tap_failures=0
tap_dir=$(mktemp -d "${TMPDIR:-/tmp}/ubd-tap.XXXXXX") || exit 99
trap 'rm -rf "$tap_dir"' EXIT
trap 'exit 130' INT TERM HUP

say() {
	printf '# %s\n' "$*"
}

check() {
	tap_name=$1
	shift
	tap_count=$((tap_count + 1))
	read -r tap_start _ </proc/uptime
	# Not in a condition: that would switch -e off inside.
	set +e
	(set -e; "$@") >"$tap_dir/out" 2>&1 </dev/null
	tap_status=$?
	read -r tap_end _ </proc/uptime
	echo "# $((${tap_end%.*} - ${tap_start%.*})) s"
	if [ $tap_status -eq 0 ]; then
		echo "ok $tap_count - $tap_name"
		return 0
	fi
	tap_failures=$((tap_failures + 1))
	echo "not ok $tap_count - $tap_name"
	echo "# exit status $tap_status, output:"
	tail -n 40 "$tap_dir/out" | sed 's/^/#   /'
	tap_clean_up
	return 1
}

# For cases: COMMAND must fail. (-e takes no notice of a "! COMMAND".)
fails() {
	if "$@"; then
		echo "this should have failed: $*"
		return 1
	fi
}

# Waits until COMMAND succeeds, by the clock: a busy machine may not get to try often. SECONDS are
# more than enough on a machine of its own; one shared with others gets three times as long.
within() {
	read -r tap_now _ </proc/uptime
	tap_limit=$((${tap_now%.*} + 3 * $1 + 1))
	shift
	until "$@" >/dev/null 2>&1; do
		read -r tap_now _ </proc/uptime
		[ ${tap_now%.*} -le $tap_limit ] || { echo "in vain: $*"; return 1; }
		sleep 0.05
	done
}

# After a failed case; a script may have its own.
tap_clean_up() {
	:
}

skip() {
	tap_count=$((tap_count + 1))
	echo "ok $tap_count - $1 # SKIP $2"
}

finish() {
	echo "1..$tap_count"
	[ $tap_failures -eq 0 ]
	exit
}
