#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# PID 1 in the initramfs (busybox): loads drivers, mounts the shared root under
# an overlay and the file systems that a running system has, and goes there.
# On the status port: "up", later "fail REASON" or "rc STATUS".
export PATH=/bin
die() { echo "vm: $*" >/dev/console; [ -z "$status" ] || echo "fail $*" >$status; poweroff -f; }
m() { mount -t "$@" || die "cannot mount $*"; }
p9() { m 9p -o "$1,trans=virtio,version=9p2000.L,msize=512000" "$2" "$3"; }
port() { p=$(grep -lx "vm.$1" /sys/class/virtio-ports/*/name 2>/dev/null) || return 1
         p=${p%/name}; p=/dev/${p##*/}; [ -c "$p" ]; }
m proc proc /proc; m sysfs sysfs /sys; m devtmpfs dev /dev
for f in /mods/*.ko; do [ ! -e "$f" ] || insmod "$f" || die "cannot load ${f#/mods/}"; done
n=0
until port status && s=$p && port out && out=$p && port err && err=$p; do
	n=$((n+1)); [ $n -lt 1000 ] || die "no virtio ports"; usleep 10000; done
status=$s
echo up >$status
. /vm/conf
p9 ro,cache=loose,noxattr root /lower
m tmpfs -o "size=$TMPFS" rw /rw; mkdir /rw/upper /rw/work
m overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /new
for d in proc sys dev; do mount --move /$d /new/$d || die "cannot move /$d"; done
mkdir -p /new/dev/pts /new/dev/shm
m devpts -o mode=620,ptmxmode=666,gid=5 devpts /new/dev/pts
m tmpfs -o mode=1777 shm /new/dev/shm
m tmpfs -o mode=755 run /new/run
m cgroup2 cgroup2 /new/sys/fs/cgroup
for t in bpf:fs/bpf debugfs:kernel/debug tracefs:kernel/tracing; do
	mount -t ${t%%:*} ${t%%:*} /new/sys/${t#*:} || echo "vm: no ${t%%:*}" >/dev/console; done
for l in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
	ln -s ${l#*:} /new/dev/${l%%:*}; done
shares
hostname vm; ip link set lo up
echo 5 >/new/proc/sys/kernel/printk	# a WARNING must reach the console
mkdir -p /new/run/lock /new/run/vm; cp /vm/* /bin/busybox /new/run/vm/
echo "out=$out; err=$err; status=$status" >>/new/run/vm/conf
exec switch_root /new /bin/sh /run/vm/main
