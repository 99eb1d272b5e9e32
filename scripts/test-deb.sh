#!/usr/bin/env bash
# Installs, upgrades, removes and purges the Debian package in fresh systems, and says what was left.
#
#   scripts/test-deb.sh [SUITE]…     [default: bookworm trixie]
#
# Needs root, debootstrap and a Debian mirror. KITFS_BINARY=FILE packages a program that was built before; it must run on
# every suite, so it should be the static one (scripts/build-static.sh, which runs without the variable).
# The fresh systems stay in target/debootstrap for the next run.
set -euo pipefail

case "${1:-}" in
-h | --help)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

cd "$(dirname "$0")/.."
. scripts/common.sh

[ "$(id -u)" -eq 0 ] || fail "only root can make fresh systems: run this script as root"
need_build_tools
need_fuse || fail "$FUSE_PROBLEM"
need_package debootstrap debootstrap || fail "debootstrap makes the fresh systems"

suites=("$@")
[ $# -gt 0 ] || suites=(bookworm trixie)
target=$(target_folder)
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

program=${KITFS_BINARY:-}
if [ -z "$program" ]; then
    program=$target/static/kitfs
    scripts/build-static.sh "$program"
fi

# Another version: the same program, which says so.
version=$("$program" --version | cut -d' ' -f2)
next=${version%?}$(((${version: -1} + 1) % 10))
LC_ALL=C sed "s/${version//./\\.}/$next/g" "$program" >"$work/next"
chmod 755 "$work/next"
[ "$("$work/next" --version)" = "kitfs $next" ] || fail "the program of version $next says another version"

say "packages of $version and $next"
KITFS_BINARY=$work/next scripts/build-deb.sh --fast --deb-version "$next-1" -o "$work/next.deb"
KITFS_BINARY=$program scripts/build-deb.sh --fast --deb-version "$version-1" -o "$work/first.deb"

mirror=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | sed -n 1p)

# In the fresh system. $1 and $2 are the versions.
cat >"$work/steps" <<'STEPS'
set -eu
version=$1 next=$2
export DEBIAN_FRONTEND=noninteractive HOME=/root
step() { echo "    $*"; }
die() { echo "error: $*" >&2; exit 1; }
install() { apt-get install -y -q --no-install-recommends "$@" >/apt.log 2>&1 || { cat /apt.log; die "apt-get install $*"; }; }
field() { local name=$1; shift; kitfs daemon status "$@" --json | sed -n "s/.*\"$name\": \"\{0,1\}\([^\",]*\).*/\1/p"; }
# Whether a process runs a file that is no longer there: the program of the old version.
is_old() { case "$(readlink "/proc/$1/exe")" in *deleted*) ;; *) return 1 ;; esac; }
mounted() { grep -q " $1 fuse.kitfs " /proc/self/mounts; }

apt-get update -q >/apt.log 2>&1 || { cat /apt.log; die "apt-get update"; }
# Its dependencies stay, so the purge is compared with the system that has them.
install fuse3 passwd
find / -xdev -not -path '/proc/*' | sort >/before

step "install $version"
install /packages/first.deb
[ "$(kitfs --version)" = "kitfs $version" ] || die "another version"
[ -z "$(dpkg --verify kitfs)" ] || die "dpkg --verify: $(dpkg --verify kitfs)"
[ "$(readlink -f /usr/sbin/mount.fuse.kitfs)" = /usr/bin/kitfs ] || die "the link for mount(8)"
dpkg-query -W -f '${Conffiles}' kitfs | grep -q /etc/kitfs/config.toml || die "the configuration is no conffile"
getent group kitfs >/dev/null || die "no group"
kitfs config check >/dev/null || die "the configuration of the package"
# The lines that an administrator would switch on.
sed 's/^#\([a-z[]\)/\1/' /etc/kitfs/config.toml >/switched-on.toml
KITFS_CONFIG=/switched-on.toml kitfs config check || die "the examples in the configuration"
rm /switched-on.toml
bash -c '. /usr/share/bash-completion/completions/kitfs && complete -p kitfs >/dev/null' || die "the completion script"

step "a mount of the daemon for all users, and one of root's own daemon"
kitfs serve oci:/packages/article --listen 127.0.0.1:0 >/serve.log 2>&1 &
serve=$!
until reference=$(grep -som1 '127\.0\.0\.1:[1-9][0-9]*/article:v1' /serve.log); do
    kill -0 "$serve" || die "$(cat /serve.log)"
    sleep 0.05
done
mkdir /a /b
kitfs daemon start --system
kitfs mount "$reference" /a
kitfs mount oci:/packages/article:v1 /b
exec 3</a/data/dataset.csv 4</b/data/dataset.csv
head -c 5 <&3 >/dev/null
echo '# A change of the administrator.' >>/etc/kitfs/config.toml

step "upgrade to $next"
install /packages/next.deb
[ "$(kitfs --version)" = "kitfs $next" ] || die "the old version"
! is_old "$(field pid --system)" && ! is_old "$(field worker_pid --system)" ||
    die "the daemon for all users still runs the old program"
grep -q administrator /etc/kitfs/config.toml || die "the change of the configuration is lost"
mounted /a && mounted /b || die "a mount is gone"
cmp /a/data/dataset.csv /b/data/dataset.csv
cat <&3 >/dev/null
is_old "$(field pid)" || die "root's own daemon was replaced without being asked"
# An optimised program also has its version in its code, where sed does not find it.
if [ "$(field version --system)" = "$next" ]; then
    kitfs ls oci:/packages/article:v1 >/ls.log 2>&1 && die "a daemon of the old version is not refused"
    grep -q 'kitfs daemon restart' /ls.log || die "no advice about the daemon of the old version: $(cat /ls.log)"
else
    step "left out: the refusal of a daemon of the old version (the program is optimised)"
fi
# As the message says.
kitfs daemon restart
! is_old "$(field pid)" && ! is_old "$(field worker_pid)" || die "root's own daemon still runs the old program"
cat <&4 >/dev/null
mounted /a && mounted /b || die "a mount is gone"
exec 3<&- 4<&-

step "remove"
apt-get remove -y -q kitfs >/apt.log 2>&1 || { cat /apt.log; die "apt-get remove"; }
[ ! -e /usr/bin/kitfs ] || die "the program stays"
[ -e /etc/kitfs/config.toml ] || die "the configuration is gone before a purge"
! mounted /a || die "the daemon for all users goes on"
cat /b/data/dataset.csv >/dev/null || die "root's own mount has ended with the package"
umount /b
kill "$serve"

step "purge"
apt-get purge -y -q kitfs >/apt.log 2>&1 || { cat /apt.log; die "apt-get purge"; }
! getent group kitfs >/dev/null || die "the group stays"
rm -rf /a /b /before.log /serve.log /ls.log /apt.log
find / -xdev -not -path '/proc/*' | sort >/after
left=$(comm -13 /before /after | grep -v -E '^/(after|before|etc/g(roup|shadow)-|root/.cache(/kitfs.*)?|var/(cache|lib|log)/(apt|dpkg|ldconfig)/?.*|var/lib/systemd/.*|tmp/.*)$' || true)
[ -z "$left" ] || die "files are left: $left"
STEPS

for suite in "${suites[@]}"; do
    fresh=$target/debootstrap/$suite
    if [ ! -e "$fresh/.complete" ]; then
        say "a fresh $suite"
        rm -rf --one-file-system "$fresh"
        mkdir -p "$fresh"
        debootstrap --variant=minbase --include=ca-certificates "$suite" "$fresh" ${mirror:+"$mirror"} >"$work/log" 2>&1 ||
            fail "debootstrap $suite: $(tail -n 3 "$work/log")"
        touch "$fresh/.complete"
    fi
    say "$suite"
    # All mounts end with the namespace, and all processes with the namespace of processes.
    unshare --mount --pid --fork --kill-child bash -euc '
        fresh=$1 work=$2 kit=$3
        mount -t tmpfs -o mode=755 tmpfs /mnt
        mkdir /mnt/upper /mnt/work /mnt/root
        mount -t overlay -o "lowerdir=$fresh,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
        cd /mnt/root
        mkdir packages
        cp "$work"/*.deb "$work/steps" packages/
        cp -r "$kit" packages/article
        cp -L /etc/resolv.conf etc/resolv.conf
        mount -t proc proc proc
        mount --rbind /sys sys
        mount --bind /dev dev
        exec chroot . bash /packages/steps "$4" "$5"
    ' bash "$fresh" "$work" "$PWD/tests/golden/article" "$version" "$next"
done
say "the package was installed, upgraded, removed and purged on: ${suites[*]}"
