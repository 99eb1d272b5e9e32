#!/usr/bin/env bash
# Boots a Debian with systemd and the package, and tries the units: start, watchdog, upgrade, crash, each directive that
# hardens, mounts by fstab with and without automount.
#
#   scripts/test-systemd.sh [--each] DEB [SUITE]     [SUITE: bookworm]
#
# --each also says what fails without each capability of the unit, and with further directives.
#
# Needs root, debootstrap, a Debian mirror and cgroup2. The fresh system stays in target/debootstrap for the next run.
# systemd runs as the first process of namespaces, without a virtual machine.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh

each=
if [ "${1:-}" = --each ]; then
    each=1
    shift
fi
[ $# -ge 1 ] || fail "usage: scripts/test-systemd.sh [--each] DEB [SUITE]"
deb=$1 suite=${2:-bookworm}
[ "$(id -u)" -eq 0 ] || fail "only root can boot a system: run this script as root"
need_fuse || fail "$FUSE_PROBLEM"
need_package debootstrap debootstrap || fail "debootstrap makes the fresh system"

target=$(target_folder)
fresh=$target/debootstrap/$suite-systemd
if [ ! -e "$fresh/.complete" ]; then
    say "a fresh $suite with systemd"
    rm -rf --one-file-system "$fresh"
    mkdir -p "$fresh"
    mirror=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | sed -n 1p)
    packages=ca-certificates,systemd,systemd-sysv,dbus,libpam-systemd,fuse3,fuse-overlayfs,procps,passwd,mount,python3-minimal
    debootstrap --variant=minbase --include="$packages" "$suite" "$fresh" ${mirror:+"$mirror"} >"$fresh.log" 2>&1 ||
        fail "debootstrap $suite: $(tail -n 3 "$fresh.log")"
    touch "$fresh/.complete"
fi

work=$(mktemp -d)
# The group of processes of the booted system, in the hierarchy that systemd uses.
hierarchy=$(sed -n 's/^cgroup2 \([^ ]*\) cgroup2 .*/\1/p' /proc/self/mounts | sed -n 1p)
[ -n "$hierarchy" ] || fail "no cgroup2 is mounted here, and systemd needs one"
group=$hierarchy/kitfs-test-$$
clean_up() {
    cat "$work/log" 2>/dev/null || true
    echo 1 >"$group/cgroup.kill" || true
    for _ in $(seq 100); do
        find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
        [ -e "$group" ] || break
        sleep 0.05
    done
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT
mkdir "$group"

cp scripts/systemd-steps.sh "$work/steps"
[ -z "$each" ] || touch "$work/each"
cp "$deb" "$work/kitfs.deb"
cp -r tests/golden/article "$work/kit"
cat >"$work/kitfs-test.service" <<'UNIT'
[Unit]
Description=the test
After=basic.target dbus.socket
[Service]
Type=oneshot
TimeoutStartSec=600
StandardOutput=file:/packages/log
StandardError=file:/packages/log
# The system ends with the exit code of the steps.
ExecStart=/bin/sh -c 'bash /packages/steps; systemctl exit $$?'
UNIT

say "booting $suite"
(
    sh -c 'echo $PPID' >"$group/cgroup.procs"
    exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup bash -euc '
        fresh=$1 work=$2
        mount --make-rprivate /
        mount -t tmpfs -o mode=755 tmpfs /mnt
        mkdir /mnt/upper /mnt/work /mnt/root /mnt/cache
        mount -t overlay -o "lowerdir=$fresh,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
        cd /mnt/root
        mkdir packages
        mount --bind "$work" packages
        # Passthrough takes files of the cache only from a real file system.
        mkdir -p var/cache/kitfs
        mount --bind /mnt/cache var/cache/kitfs
        mount -t proc proc proc
        mount -t sysfs sysfs sys
        mount -t tmpfs -o mode=755 tmpfs dev
        node() { mknod -m 666 "dev/$1" c "$2" "$3"; }
        node null 1 3; node zero 1 5; node full 1 7; node random 1 8; node urandom 1 9; node tty 5 0; node fuse 10 229; node autofs 10 235
        mkdir dev/pts dev/shm
        mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
        ln -s pts/ptmx dev/ptmx
        ln -s /proc/self/fd dev/fd
        mount -t tmpfs tmpfs run
        mount -t cgroup2 cgroup2 sys/fs/cgroup
        chroot . dpkg --force-confnew -i /packages/kitfs.deb >packages/log 2>&1 || { cat packages/log; exit 1; }
        cp packages/kitfs-test.service etc/systemd/system/
        mkdir -p etc/systemd/system/multi-user.target.wants
        ln -s ../kitfs-test.service etc/systemd/system/multi-user.target.wants/
        mkdir old
        pivot_root . old
        cd /
        umount -l old
        exec env -i container=kitfs-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
            /lib/systemd/systemd --system --log-target=console --show-status=no --unit=multi-user.target
    ' bash "$fresh" "$work"
) </dev/null >"$work/console" 2>&1 && status=0 || status=$?

if [ "$status" -ne 0 ]; then
    tail -n 30 "$work/console" >&2
    fail "the units do not work on $suite (exit code $status)"
fi
say "the units work on $suite"
