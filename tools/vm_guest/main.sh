#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# PID 1 on the shared root: runs the command and reports its status. A port can
# be opened only once, /dev/stdout must open again and again: so the command
# gets FIFOs. A daemon that the command left behind is not waited for.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
. /run/vm/conf
b=/run/vm/busybox
fail() { echo "fail $*" >$status; $b poweroff -f; }
[ -z "$MODULES" ] || { mkdir -p /lib/modules && ln -sfn "$MODULES" "/lib/modules/$RELEASE"; } ||
	fail "cannot link $MODULES"
[ -z "$BUILD" ] || ln -sfn "$BUILD" "/lib/modules/$RELEASE/build"
for x in $MODPROBE; do why=$(modprobe "$x" 2>&1) || fail "modprobe $x: $why"; done
$b mkfifo /run/vm/o /run/vm/e
copy() { $b cat /run/vm/$1 >$2; : >/run/vm/$1.end; }
copy o $out &
if [ -n "$MERGED" ]; then
	/bin/sh /run/vm/command </dev/null >/run/vm/o 2>&1; rc=$?; ends=o
else
	copy e $err &
	/bin/sh /run/vm/command </dev/null >/run/vm/o 2>/run/vm/e; rc=$?; ends="o e"
fi
n=0
for f in $ends; do
	until [ -e /run/vm/$f.end ] || [ $n -ge 100 ]; do n=$((n+1)); $b usleep 20000; done; done
echo "rc $rc" >$status
$b poweroff -f
