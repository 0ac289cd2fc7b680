#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Builds the small kernel for tools/vm.py: what tools/vm_kernel.config names, and nothing else, from
# the distribution's source package, which is downloaded and unpacked, never installed.
#
#	tools/vm_kernel.sh [DIR]		(.vm/small by default)
#	tools/vm.py --kernel DIR -- COMMAND
#
# JOBS=N: compilers at a time. KERNEL_SOURCE=DIR: an unpacked tree instead of the package.
# Exit status: 77 if something that the build needs is missing here (stderr says what).
set -eu
unset MAKEFLAGS MAKELEVEL 2>/dev/null || true

top=$(cd "$(dirname "$0")/.." && pwd)
config=$top/tools/vm_kernel.config
case ${1:-$top/.vm/small} in
/*) dir=${1:-$top/.vm/small} ;;
*) dir=$PWD/$1 ;;
esac
build=$dir.build
log=$build/log
out=$build/tree	# a source of yours is not written to: see fetch()

say()
{
	echo "vm-kernel: $*" >&2
}

cannot()
{
	say "$*"
	exit 77
}

# What the config must not lose, whatever the version of the source.
ESSENTIAL="BPF_LIRC_MODE2 RC_LOOPBACK INPUT_EVDEV DEBUG_INFO_BTF CGROUP_BPF PVH VIRTIO_CONSOLE \
	NET_9P_VIRTIO 9P_FS OVERLAY_FS"
ROOM_MB=4500	# the package, 1.5 GB of source, objects with debug information

check_tools()
{
	[ "$(uname -m)" = x86_64 ] || cannot "builds for x86-64 only, this is $(uname -m)"
	missing=
	for tool in make:make gcc:gcc ld:binutils flex:flex bison:bison bc:bc pahole:dwarves \
		tar:tar xz:xz-utils depmod:kmod; do
		PATH=$PATH:/usr/sbin:/sbin command -v "${tool%:*}" >/dev/null || missing="$missing ${tool#*:}"
	done
	echo '#include <gelf.h>' | gcc -E - >/dev/null 2>&1 || missing="$missing libelf-dev"
	[ -z "$missing" ] || cannot "missing build tools; apt-get install$missing"
	free=$(df -Pm "$build" | awk 'NR == 2 { print $4 }')
	[ -e "$build/tree" ] || [ "$free" -ge $ROOM_MB ] ||
		cannot "$build needs $ROOM_MB MB while it builds; $free MB are free"
}

# Sets source: the name and version of what is built.
find_source()
{
	if [ -n "${KERNEL_SOURCE:-}" ]; then
		[ -e "$KERNEL_SOURCE/Kconfig" ] || cannot "$KERNEL_SOURCE is no kernel source"
		source=$KERNEL_SOURCE
		return
	fi
	command -v apt-get >/dev/null || cannot "no apt-get here: give an unpacked KERNEL_SOURCE=DIR"
	package=$(apt-cache depends linux-source 2>/dev/null |
		sed -n 's/^ *Depends: *\(linux-source-[0-9.]*\)$/\1/p' | head -n 1)
	[ -n "$package" ] || cannot "no package linux-source here: apt-get update, or KERNEL_SOURCE=DIR"
	version=$(apt-cache show "$package" | sed -n 's/^Version: //p' | head -n 1)
	source=$package=$version
}

# Unpacks the source into $build/tree.
fetch()
{
	if [ -n "${KERNEL_SOURCE:-}" ]; then
		out=$build/out
		ln -sfn "$(cd "$KERNEL_SOURCE" && pwd)" "$build/tree"
		mkdir -p "$out"
		return
	fi
	[ ! -e "$build/tree" ] || return 0
	say "downloading $source"
	rm -rf "$build/package" "$build/new"
	mkdir "$build/package" "$build/new"
	(cd "$build/package" && apt-get download -qq "$source") >"$log" 2>&1 ||
		failed "$source cannot be downloaded"
	dpkg -x "$build"/package/*.deb "$build/package" || exit 1
	say "unpacking"
	tar -xf "$build"/package/usr/src/*/linux-source-*.tar.* -C "$build/new" 2>/dev/null ||
		tar -xf "$build"/package/usr/src/linux-source-*.tar.* -C "$build/new" || exit 1
	rm -rf "$build/package"
	mv "$build"/new/* "$build/tree"
	rmdir "$build/new"
}

failed()
{
	say "$*:"
	tail -n 15 "$log" | sed 's/^/    /' >&2
	say "the whole log is $log"
	exit 1
}

run_make()
{
	make -C "$build/tree" O="$out" "$@"
}

configure()
{
	run_make KCONFIG_ALLCONFIG="$config" allnoconfig >"$log" 2>&1 || failed "no configuration"
	for option in $ESSENTIAL; do
		grep -qx "CONFIG_$option=y" "$out/.config" ||
			cannot "CONFIG_$option is missing from the configuration of $source"
	done
}

compile()
{
	jobs=${JOBS:-$(nproc)}
	say "building with $jobs compilers at a time: about 20 minutes of one CPU"
	run_make "-j$jobs" bzImage modules >"$log" 2>&1 &
	make=$!
	trap 'kill $make 2>/dev/null; exit 130' INT TERM
	while [ -t 2 ] && kill -0 $make 2>/dev/null; do
		printf '\rvm-kernel: %s files ' "$(grep -c '^  CC' "$log")" >&2
		sleep 1
	done
	wait $make || failed "the build failed"
	trap - INT TERM
	[ ! -t 2 ] || echo >&2
}

# As in a distribution's package, for tools/vm.py and for modprobe in the guest.
install()
{
	release=$(cat "$out/include/config/kernel.release")
	modules=$build/result/lib/modules/$release
	rm -rf "$build/result"
	mkdir -p "$modules"
	cp "$out/arch/x86/boot/bzImage" "$modules/vmlinuz"
	cp "$out/.config" "$modules/config"
	for file in modules.builtin modules.builtin.modinfo modules.order; do
		[ ! -e "$out/$file" ] || cp "$out/$file" "$modules"
	done
	PATH=$PATH:/usr/sbin:/sbin depmod -b "$build/result" "$release"
	echo "$stamp" >"$build/result/stamp"
	rm -rf "$dir"
	mv "$build/result" "$dir"
	rm -rf "$build"
	say "built Linux $release from $source"
	say "tools/vm.py --kernel $dir -- COMMAND"
}

find_source
stamp="$source $(cksum <"$config")"
if [ "$(cat "$dir/stamp" 2>/dev/null)" = "$stamp" ]; then
	say "$dir is up to date ($source)"
	exit 0
fi
mkdir -p "$build" || exit 1
check_tools
fetch
configure
compile
install
