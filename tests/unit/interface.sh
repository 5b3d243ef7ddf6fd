#!/bin/sh
# SPDX-License-Identifier: MIT
# The public interface as others meet it: every header compiles alone, in C and C++, and the
# library exports exactly the functions that the headers declare. And what is installed is all that a
# target and its users need.
top=$(cd "$(dirname "$0")/../.." && pwd)
. "$top/tests/lib/tap.sh"

lib=$("$top/tests/lib/build" gcc)/lib/libubd.so || exit 1

compiles() { # COMPILER LANGUAGE OPTIONS HEADER
	printf '#include <ubd/%s>\n#include <ubd/%s>\n' "$4" "$4" |
		"$1" -x "$2" $3 -Wall -Wextra -Wpedantic -Werror -I"$top/include" -fsyntax-only -
}

for header in $(cd "$top/include/ubd" && ls); do
	for cc in gcc clang; do
		if command -v $cc >/dev/null; then
			check "$cc: ubd/$header compiles alone, and twice" compiles $cc c -std=c17 "$header"
		else
			skip "$cc: ubd/$header compiles alone, and twice" "$cc is not installed"
		fi
	done
	if command -v g++ >/dev/null; then
		check "g++: ubd/$header compiles in C++" compiles g++ c++ -std=c++17 "$header"
	else
		skip "g++: ubd/$header compiles in C++" "g++ is not installed"
	fi
done

exported() {
	nm -D --defined-only "$lib" | awk '$2 ~ /[TDBRW]/ {sub("@.*", "", $3); print $3}' | grep -v '^UBD_' | sort -u
}

# What a compiler sees as declared with an ubd_ name and no body, in all headers together.
declared() {
	echo '#include <ubd/ubd.h>' | gcc -x c -E -P -I"$top/include" - | tr '\n' ' ' |
		sed 's/__attribute__((\([^()]*([^()]*)\)*[^()]*))//g' | tr ';' '\n' |
		grep -v 'typedef' | sed -n 's/^[^(={]*[ *]\(ubd_[a-z0-9_]*\) *(.*/\1/p' | sort -u
}

only_ours() {
	! exported | grep -v '^ubd_'
}

same_set() {
	exported >"$tap_dir/exported"
	declared >"$tap_dir/declared"
	[ "$(wc -l <"$tap_dir/declared")" -gt 50 ]
	echo "only in the headers (<) or only in the library (>):"
	diff "$tap_dir/declared" "$tap_dir/exported"
}

extern_c() {
	echo '#include <ubd/ubd.h>
void *all[] = {' >"$tap_dir/x.cc"
	declared | sed 's/.*/(void *)&,/' >>"$tap_dir/x.cc"
	echo '}; int main() { return all[0] == nullptr; }' >>"$tap_dir/x.cc"
	g++ -std=c++17 -I"$top/include" -o "$tap_dir/x" "$tap_dir/x.cc" "$lib"
}

no_needless_libraries() {
	# Plugins bring their own: nobody pays for what they do not use.
	objdump -p "$lib" | sed -n 's/ *NEEDED *//p'
	! objdump -p "$lib" | grep NEEDED | grep -E 'librbd|libiscsi|libnfs|libsystemd'
}

# The page's target, as its reader would build it.
installed() {
	root=$tap_dir/root
	DESTDIR=$root meson install --quiet --no-rebuild -C "${lib%/lib/libubd.so}"
	"$top/tests/lib/example" >"$tap_dir/hello.c"
	pc=$(find "$root" -name libubd.pc)
	flags=$(PKG_CONFIG_SYSROOT_DIR=$root PKG_CONFIG_PATH=${pc%/*} pkg-config --cflags --libs libubd)
	# shellcheck disable=SC2086 # a list
	gcc -shared -fPIC -Wall -Werror -o "$tap_dir/hello.so" "$tap_dir/hello.c" $flags
	LD_LIBRARY_PATH=${pc%/pkgconfig/*} "$root/usr/bin/ubd" targets "$tap_dir/hello.so"
	for verb in $("$root/usr/bin/ubd" help | sed -n 's/^  \([a-z]\+\)  .*/\1/p'); do
		[ -e "$root/usr/share/man/man8/ubd-$verb.8" ] || { echo "no man page of $verb"; return 1; }
	done
	[ -x "$root$(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$root/usr/lib/systemd/system/ubd@.service")" ]
}

check "the library exports names that begin with ubd_ and no others" only_ours
check "every declared function is exported, and the other way round" same_set
check "the library drags in no optional one" no_needless_libraries
check "what is installed builds the target of docs/writing-a-target.md and runs it" installed
if command -v g++ >/dev/null; then
	check "a C++ program links with every function" extern_c
else
	skip "a C++ program links with every function" "g++ is not installed"
fi
finish
