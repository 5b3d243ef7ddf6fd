# SPDX-License-Identifier: MIT
# Shared by the shell scripts in this folder: where the cache is, how Debian's
# archive is read without touching this machine's own apt configuration, and
# how a series such as 6.12 becomes a package name.
# shellcheck shell=bash

UBD_CACHE=${UBD_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ubd}
UBD_MIRROR=${UBD_MIRROR:-http://deb.debian.org/debian}
UBD_SECURITY_MIRROR=${UBD_SECURITY_MIRROR:-http://deb.debian.org/debian-security}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# shellcheck disable=SC2034  # read by the scripts that source this file
KNOWN_SERIES="6.1 6.12 7.0 7.1 7.2 7.3"

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

say() {
	echo "${0##*/}: $*" >&2
}

known_series() {
	case " $KNOWN_SERIES " in
	*" $1 "*) ;;
	*) die "kernel '$1' is not one of: $KNOWN_SERIES" ;;
	esac
}

# The suites to look in for a series, one group per try, best first. A group
# has a list directory of its own so that groups never evict one another.
suite_groups() {
	case $1 in
	6.*) echo bookworm ;;
	7.*) echo "trixie-backports sid experimental" ;;
	esac
}

# suite_sources GROUP: its sources.list
suite_sources() {
	local opt="[signed-by=$KEYRING]"

	case $1 in
	bookworm)
		echo "deb $opt $UBD_MIRROR bookworm main"
		echo "deb $opt $UBD_MIRROR bookworm-updates main"
		echo "deb $opt $UBD_SECURITY_MIRROR bookworm-security main"
		;;
	*)
		echo "deb $opt $UBD_MIRROR $1 main"
		;;
	esac
}

# apt_use GROUP: aim apt at that group's lists, for the rest of this process. Others who need them
# (a kernel and its headers are fetched side by side) wait until it ends.
apt_use() {
	local dir=$UBD_CACHE/apt/$1

	mkdir -p "$dir/lists/partial" "$dir/archives/partial" "$dir/dpkg"
	exec 8>"$dir/lock"
	flock 8
	: >>"$dir/dpkg/status"
	suite_sources "$1" >"$dir/sources.list"
	cat >"$dir/apt.conf" <<-CONF
		Dir::Etc::sourcelist "$dir/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferences "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
		Dir::State::lists "$dir/lists";
		Dir::State::status "$dir/dpkg/status";
		Dir::Cache "$dir";
		Dir::Cache::archives "$dir/archives";
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; };
		APT::Sandbox::User "root";
		APT::Get::AllowUnauthenticated "false";
		Acquire::Languages "none";
		Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
		Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
		Acquire::Retries "3";
	CONF
	export APT_CONFIG=$dir/apt.conf
}

# The lists are read again at most once per process and group.
apt_update() {
	local dir=$UBD_CACHE/apt/$1

	[ "${APT_FRESH-}" = "$1" ] && return
	say "reading Debian's package lists ($1)"
	apt-get -qq update >"$dir/update.log" 2>&1 || {
		tail -n 5 "$dir/update.log" >&2
		die "apt-get update failed for $1 (whole log: $dir/update.log)"
	}
	APT_FRESH=$1
}

# The kernel packages that can be downloaded (pkgnames would also list those
# that others merely refer to).
packages() {
	apt-cache search --names-only '^linux-(image|binary|modules|base|headers)-[0-9]' | cut -d' ' -f1
}

# newest REGEX: the package whose name matches and sorts last as a version; other flavours than
# the plain one are not meant.
newest() {
	packages | grep -E "^$1\$" | grep -vE -e '-(rt|cloud)-' | sort -V | tail -n 1
}

available() {
	packages | grep -xF "$1" >/dev/null # not -q, whose early end would kill packages
}

# series_of KIND...: the series whose packages of these kinds are all there.
series_of() {
	local kind

	for kind; do
		packages | sed -nE "s/^linux-$kind-([0-9]+\.[0-9]+)([.~].*)?-amd64\$/\1/p" | sort -u
	done | sort -V | uniq -c | awk -v n=$# '$1 == n { printf "%s%s", sep, $2; sep = " " }'
}

# unpack DIR PACKAGE...: download the packages and lay their files out in DIR.
unpack() {
	local dir=$1 debs
	shift

	debs=$(mktemp -d "$UBD_CACHE/tmp.XXXXXX")
	if ! (cd "$debs" && apt-get -qq download "$@" >apt.log 2>&1); then
		tail -n 5 "$debs/apt.log" >&2
		rm -rf "$debs"
		die "cannot download $*"
	fi
	mkdir -p "$dir"
	for deb in "$debs"/*.deb; do
		dpkg-deb -x "$deb" "$dir" || {
			rm -rf "$debs"
			die "cannot unpack ${deb##*/}"
		}
	done
	rm -rf "$debs"
}

# lock NAME: one process at a time does this job; held until this one exits.
lock() {
	mkdir -p "$UBD_CACHE"
	exec 9>"$UBD_CACHE/$1.lock"
	flock -n 9 && return
	say "waiting for another process that is preparing $1"
	flock 9
}
