#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# One command from a fresh Debian or Ubuntu machine to a running program, or to
# passed tests. As root, from the top of a checkout:
#
#	sudo tools/bootstrap.sh run [PROGRAM [OPTION ...]]	(sockex3 by default)
#	sudo tools/bootstrap.sh test [PYTEST OPTION ...]
#	sudo tools/bootstrap.sh browser [PYTEST OPTION ...]	(the notebooks in JupyterLab)
#	sudo tools/bootstrap.sh check				(format, lint, types and layers only)
#	sudo tools/bootstrap.sh vm-kernel [DIR]			(a kernel for bpfkit.lirc: tools/vm.md)
#
# Installs what is missing from the distribution's packages and nothing else;
# ruff, mypy, clang-format and import-linter, of one version each, go into .venv/,
# JupyterLab into .venv-lab/; a kernel for the tests in a VM is unpacked into .vm/.
set -eu

RUFF=0.17.6
MYPY=2.4.1
CLANG_FORMAT=14.0.6
IMPORT_LINTER=2.17
JUPYTERLAB=4.6.6

top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"

RUN_PACKAGES="python3 python3-bpfcc python3-pyroute2 python3-rich linux-libc-dev"
TEST_PACKAGES="$RUN_PACKAGES python3-pytest python3-pytest-xdist python3-hypothesis python3-scapy
	python3-numpy python3-nbclient python3-nbformat python3-ipykernel python3-matplotlib
	python3-pandas python3-sphinx python3-myst-parser
	python3-venv python3-pip python3-hatchling python3-argcomplete
	gcc libc6-dev libbpf-dev clang llvm make
	tshark wireshark-common tcpdump iperf3 nginx-light curl openssl redis-server redis-tools
	iproute2 iputils-ping
	ethtool procps util-linux bpftool nftables nmap tmux
	redis-server dnsmasq-base bind9-dnsutils strace sslsplit openssl
	qemu-system-x86 busybox-static kmod cpio"
BROWSER_PACKAGES="chromium chromium-driver python3-selenium"
KERNEL_PACKAGES="make gcc libc6-dev binutils flex bison bc libelf-dev dwarves xz-utils bzip2 kmod"

say()
{
	echo "bootstrap: $*" >&2
}

installed()
{
	dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

need()
{
	missing=
	for package in "$@"; do
		installed "$package" || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || { say "needs root to install:$missing"; exit 77; }
	command -v apt-get >/dev/null || { say "no apt-get here; install:$missing"; exit 77; }
	say "installing:$missing"
	apt-get update -qq
	available=
	for package in $missing; do
		# Ubuntu has bpftool inside linux-tools; tests that want it say so.
		if apt-cache show "$package" >/dev/null 2>&1; then
			available="$available $package"
		else
			say "no package $package here"
		fi
	done
	# A server that a test starts itself must not be started by its package.
	DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get install -y -qq --no-install-recommends $available >/dev/null
}

# A stock kernel for the tests that run in a VM: unpacked into .vm/, never installed. Where no
# kernel package is available, these tests are skipped with that reason.
kernel()
{
	[ "$(uname -m)" = x86_64 ] && command -v apt-get >/dev/null || return 0
	for dep in /lib/modules/*/modules.dep .vm/lib/modules/*/modules.dep; do
		[ ! -e "$dep" ] || return 0
	done
	packages=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts \
		--no-breaks --no-replaces --no-enhances linux-image-amd64 linux-image-generic \
		2>/dev/null | grep -Ex 'linux-(image|modules)-[0-9].*(amd64|generic)' | sort -u) || true
	[ -n "$packages" ] || { say "no kernel package here for the tests in a VM"; return 0; }
	say "unpacking a kernel for the tests in a VM:" $packages
	rm -rf .vm/boot .vm/lib .vm/usr	# and not the kernels that were built or fetched
	mkdir -p .vm
	if ! unpack_kernel $packages; then
		rm -rf .vm/boot .vm/lib .vm/usr
		say "that failed; the tests in a VM are skipped"
	fi
}

unpack_kernel()
(
	cd .vm && apt-get download -qq "$@" >/dev/null 2>&1 || exit 1
	for package in *.deb; do
		dpkg -x "$package" . && rm "$package" || exit 1
	done
	[ -d lib ] || ln -s usr/lib lib
	for release in lib/modules/*; do
		depmod -b . "${release##*/}" || exit 1
	done
)

# Two more for the matrix's test, the oldest that most people run and the newest.
kernels()
{
	[ "$(uname -m)" = x86_64 ] && command -v apt-get >/dev/null || return 0
	/usr/bin/python3 tools/vm_kernels.py 6.1 newest >/dev/null ||
		say "the kernels' matrix is tested on those in .vm/kernels, if there are any"
}

tools()
{
	have=$(.venv/bin/pip freeze 2>/dev/null) || have=
	for tool in "ruff==$RUFF" "mypy==$MYPY" "clang-format==$CLANG_FORMAT" \
		"import-linter==$IMPORT_LINTER"; do
		if ! echo "$have" | grep -qx "$tool"; then
			say "installing ruff, mypy, clang-format and import-linter into .venv"
			/usr/bin/python3 -m venv .venv
			.venv/bin/pip install -q "mypy==$MYPY" "clang-format==$CLANG_FORMAT" \
				"ruff==$RUFF" "import-linter==$IMPORT_LINTER"
			return
		fi
	done
}

# The notebooks' server. Their kernel is /usr/bin/python3, not this environment's Python.
jupyterlab()
{
	have=$(.venv-lab/bin/pip freeze 2>/dev/null) || have=
	echo "$have" | grep -qx "jupyterlab==$JUPYTERLAB" && return
	say "installing JupyterLab into .venv-lab"
	/usr/bin/python3 -m venv .venv-lab
	.venv-lab/bin/pip install -q "jupyterlab==$JUPYTERLAB"
}

check()
{
	tools
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	PYTHONPATH=. .venv/bin/lint-imports --no-cache --no-logo
	find bpf_c tools \( -name '*.c' -o -name '*.h' \) -print0 |
		xargs -0 .venv/bin/clang-format --dry-run --Werror
	say "format, lint, types and layers are clean"
}

what=${1:-run}
[ $# -eq 0 ] || shift
case $what in
run)
	need $RUN_PACKAGES
	/usr/bin/python3 -m compileall -q bpfkit || true	# as pip install does: starts stay short
	program=${1:-sockex3}
	[ $# -eq 0 ] || shift
	exec /usr/bin/python3 -m "bpfkit.$program" "$@"
	;;
test)
	need $TEST_PACKAGES
	kernel
	kernels
	check
	# BPFKIT_TEST_WORKERS=2: the live tests in one process, all others beside them. The processes have
	# to find the same tests in the same order, so they hash alike.
	if [ "${BPFKIT_TEST_WORKERS:-1}" -gt 1 ] && /usr/bin/python3 -c 'import xdist' 2>/dev/null; then
		export PYTHONHASHSEED=0
		set -- -n "$BPFKIT_TEST_WORKERS" "$@"
	fi
	exec /usr/bin/python3 -m pytest "$@"
	;;
browser)
	need $TEST_PACKAGES $BROWSER_PACKAGES
	jupyterlab
	exec /usr/bin/python3 -m pytest tests/live/test_notebooks_browser.py "$@"
	;;
check)
	need $TEST_PACKAGES
	check
	;;
vm-kernel)
	need $KERNEL_PACKAGES
	exec tools/vm_kernel.sh "$@"
	;;
*)
	say "the first argument must be run, test, browser, check or vm-kernel"
	exit 2
	;;
esac
