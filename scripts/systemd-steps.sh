# The steps of scripts/test-systemd.sh, in the booted system, as root.
set -eu
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin

step() { echo "    $*"; }
die() {
    echo "error: $*"
    journalctl --no-pager -n 40 -u kitfs 2>/dev/null || true
    systemctl --no-pager status kitfs || true
    exit 1
}
# until_true WORDS COMMAND…: waits until the command succeeds.
until_true() {
    local words=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || die "$words did not come about within 30 s"
        sleep 0.1
    done
}
property() { systemctl show --value -p "$2" "$1"; }
worker() { kitfs daemon status --system --json | sed -n 's/.*"worker_pid": \([0-9]*\).*/\1/p'; }
reads() { cmp -s "$1/big.bin" /srv/big/big.bin; }
# Drop-ins for the service: change NAME LINE…
change() {
    local name=$1
    shift
    mkdir -p /run/systemd/system/kitfs.service.d
    { echo '[Service]' && printf '%s\n' "$@"; } >"/run/systemd/system/kitfs.service.d/$name.conf"
    systemctl daemon-reload
}

step "units: $(systemctl --version | sed -n 1p)"
verified=$(systemd-analyze --man=no verify /usr/lib/systemd/system/kitfs.service 2>&1) || die "$verified"
[ -z "$verified" ] || die "systemd-analyze verify: $verified"
verified=$(systemd-analyze --user --man=no verify /usr/lib/systemd/user/kitfs.service 2>&1 | grep -i kitfs || true)
[ -z "$verified" ] || die "systemd-analyze --user --man=no verify: $verified"
systemd-analyze security --no-pager kitfs.service 2>&1 | sed -n 's/.*Overall exposure/    exposure/p'
systemctl is-active --quiet kitfs && die "the package starts its service by itself"

step "a kit, and a registry with it"
mkdir -p /srv/big
head -c 8M /dev/urandom >/srv/big/big.bin
echo small >/srv/big/small.txt
printf 'manifestVersion: "1.0"\npackage: {name: big}\ndatasets: [{name: d, path: .}]\n' >/srv/big/Kitfile
kitfs pack /srv/big -t localhost/big:v1 >/dev/null
kitfs copy localhost/big:v1 oci:/srv/layout:v1 >/dev/null
systemd-run --quiet --unit registry -p StandardOutput=file:/run/serve.log kitfs serve oci:/srv/layout --listen 127.0.0.1:5000
until_true "the registry" grep -q 127.0.0.1:5000/ /run/serve.log
reference=$(grep -om1 '127\.0\.0\.1:5000/[^ ]*' /run/serve.log)
useradd --create-home --groups kitfs ada
mkdir /a /b

step "start"
systemctl start kitfs || die "the service does not start"
keeper=$(property kitfs MainPID)
[ "$(stat -c '%U %G %a' /run/kitfs/control.sock)" = "root kitfs 660" ] || die "$(ls -l /run/kitfs)"
[ "$(readlink "/proc/$keeper/ns/mnt")" = "$(readlink /proc/1/ns/mnt)" ] || die "the daemon has a mount namespace of its own"
[ "$(readlink "/proc/$(worker)/ns/mnt")" = "$(readlink /proc/1/ns/mnt)" ] || die "the worker has a mount namespace of its own"

step "mounts of root and of a member of the group"
kitfs mount "$reference" /a || die "root cannot mount"
reads /a || die "root reads other bytes"
runuser -u ada -- sh -c "mkdir ~/m && kitfs mount $reference ~/m && cmp ~/m/big.bin /srv/big/big.bin" || die "a member cannot mount"
kitfs warm "$reference" >/dev/null || die "warm"
cat /a/big.bin >/dev/null
kitfs status --json | grep -q '"passthrough"' || die "$(kitfs status --json)"
kitfs status | sed 's/^/        /'

step "a busy mount names its programs, those of other users too"
setpriv --reuid ada --regid ada --clear-groups sleep 300 </a/big.bin &
sleeper=$!
until_true "a program that uses the mount" sh -c 'kitfs umount /a 2>&1 | grep -q sleep'
kill $sleeper
wait $sleeper || true

step "replace, a mount in another namespace, a writable view"
kitfs mount --replace "$reference" /a || die "replace"
reads /a || die "other bytes after a replacement"
unshare --mount sh -c "kitfs mount $reference /b && cmp /b/big.bin /srv/big/big.bin && kitfs umount /b" || die "another namespace"
kitfs mount --overlay=/srv/upper "$reference" /b || die "a writable view"
echo changed >/b/small.txt
kitfs umount /b || die "the end of a writable view"

step "reload: the worker is replaced, open files go on"
exec 3</a/big.bin
before=$(worker)
systemctl reload kitfs || die "reload"
until_true "another worker" sh -c "[ \"\$(kitfs daemon status --system --json | sed -n 's/.*\"worker_pid\": \([0-9]*\).*/\1/p')\" != $before ]"
cmp -s - /srv/big/big.bin <&3 || die "an open file does not go on"
exec 3<&-
[ "$(property kitfs MainPID)" = "$keeper" ] || die "another main process"

step "the worker is killed: mounts go on"
kill -9 "$(worker)"
until_true "reads after the worker died" cmp -s /a/big.bin /srv/big/big.bin
systemctl is-active --quiet kitfs || die "the service ended with a worker"

step "the keeper is killed: systemd starts the service again, with root's mounts"
kill -9 "$keeper"
until_true "another main process" sh -c "[ \"\$(systemctl show --value -p MainPID kitfs)\" != $keeper ] && systemctl is-active --quiet kitfs"
reads /a || die "the mount is not made again"
[ "$(property kitfs NRestarts)" = 1 ] || die "NRestarts=$(property kitfs NRestarts)"

step "stop and start: root's mounts are made again"
systemctl stop kitfs
! grep -q ' /a fuse.kitfs' /proc/self/mounts || die "a mount is left"
systemctl start kitfs
reads /a || die "the mount is not made again"

step "mounts in closed folders, and writable views, are made again with all that root may do"
install -d -o ada -m 700 /home/ada/closed
mkdir /home/ada/closed/kit
kitfs mount "$reference" /home/ada/closed/kit >/dev/null || die "a mount in a closed folder"
kitfs mount --overlay=/srv/view "$reference" /b >/dev/null || die "a writable view"
systemctl restart kitfs
reads /home/ada/closed/kit || die "the mount in a closed folder is not made again"
reads /b || die "the writable view is not made again"
rm /b/small.txt && [ ! -e /b/small.txt ] || die "a file of a view cannot be removed"
chown ada /b/Kitfile && chmod 4755 /b/Kitfile || die "the owner of a file in a view"
[ "$(stat -c '%U %a' /b/Kitfile)" = "ada 4755" ] || die "$(stat /b/Kitfile)"
mkdir /b/new && mknod /b/new/null c 1 3 && echo more >>/b/new/file || die "new entries in a view"
kitfs umount /b /home/ada/closed/kit || die "the end of the mounts"

step "fstab: at boot, and on demand"
mkdir /fstab /demand
cat >>/etc/fstab <<FSTAB
$reference /fstab fuse.kitfs ro,_netdev,plain-http,x-systemd.requires=kitfs.service 0 0
$reference /demand fuse.kitfs ro,noauto,plain-http,x-systemd.requires=kitfs.service,x-systemd.automount 0 0
FSTAB
systemctl daemon-reload
systemctl start fstab.mount || die "$(systemctl --no-pager status fstab.mount)"
reads /fstab || die "a mount of fstab reads other bytes"
systemctl is-active --quiet remote-fs.target || systemctl start remote-fs.target
systemctl stop fstab.mount || die "the end of a mount of fstab"
! grep -q ' /fstab fuse.kitfs' /proc/self/mounts || die "a mount of fstab is left"
systemctl start demand.automount || die "$(systemctl --no-pager status demand.automount)"
! grep -q ' /demand fuse.kitfs' /proc/self/mounts || die "mounted before a program looked"
timeout 60 cmp -s /demand/big.bin /srv/big/big.bin || die "$(systemctl --no-pager status demand.mount)"
systemctl stop demand.automount demand.mount

step "a daemon that hangs is restarted by the watchdog"
change watchdog WatchdogSec=3
systemctl restart kitfs
reads /a || die "the mount is not made again"
# It pings, so it lives longer than the limit.
restarts=$(property kitfs NRestarts)
sleep 7
[ "$(property kitfs NRestarts)" = "$restarts" ] || die "a daemon that works was restarted"
keeper=$(property kitfs MainPID)
kill -STOP "$(worker)"
until_true "another main process" sh -c "[ \"\$(systemctl show --value -p MainPID kitfs)\" != $keeper ] && systemctl is-active --quiet kitfs"
reads /a || die "the mount is not made again"
kitfs umount /a || die "the end of a mount"
systemctl stop kitfs

step "a user's own unit"
uid=$(id -u ada)
systemctl start "user@$uid" || die "the manager of the user"
as_ada() { runuser -u ada -- env XDG_RUNTIME_DIR="/run/user/$uid" DBUS_SESSION_BUS_ADDRESS="unix:path=/run/user/$uid/bus" "$@"; }
as_ada sh -c 'fusermount3 -uzq ~/m; mkdir -p ~/m'
as_ada systemctl --user start kitfs || die "$(as_ada systemctl --user --no-pager status kitfs)"
as_ada sh -c "kitfs mount $reference ~/m && cmp ~/m/big.bin /srv/big/big.bin" || die "the user cannot mount"
as_ada sh -c '[ "$(systemctl --user show --value -p MainPID kitfs)" = "$(kitfs daemon status --json | sed -n "s/.*\"pid\": \([0-9]*\).*/\1/p")" ]' || die "another daemon serves"
as_ada systemctl --user restart kitfs || die "restart"
as_ada sh -c 'cmp ~/m/big.bin /srv/big/big.bin' || die "the user's mount is not made again"
as_ada systemctl --user stop kitfs
systemctl stop registry

# With --each: which feature fails without a capability, or with one more directive.
[ -e /packages/each ] || exit 0
systemd-run --quiet --unit registry2 -p StandardOutput=file:/run/serve2.log kitfs serve oci:/srv/layout --listen 127.0.0.1:5000
until_true "the registry" grep -q 127.0.0.1:5000/ /run/serve2.log
clean() {
    umount -l /a /b ~ada/m >/dev/null 2>&1 || true
    kitfs daemon stop --system >/dev/null 2>&1 || true
    systemctl stop kitfs >/dev/null 2>&1 || true
    umount -l /a /b ~ada/m >/dev/null 2>&1 || true
    kitfs cache clear --cache-dir /var/cache/kitfs >/dev/null 2>&1 || true
    rm -rf /var/cache/kitfs/mounts
    systemctl reset-failed kitfs 2>/dev/null || true
}
try() { # WORDS LINE…
    local words=$1 broken=
    shift
    clean
    change each "$@"
    if systemctl start kitfs >/dev/null 2>&1; then
        kitfs mount "$reference" /a >/dev/null 2>&1 && reads /a || broken="$broken mount"
        kitfs warm "$reference" >/dev/null 2>&1 || broken="$broken warm"
        cat /a/big.bin >/dev/null 2>&1 || broken="$broken read"
        kitfs status | grep -q ' on (' || broken="$broken passthrough"
        setpriv --reuid ada --regid ada --clear-groups sleep 300 </a/big.bin 2>/dev/null &
        local sleeper=$!
        sleep 0.2
        timeout 20 kitfs umount /a 2>&1 | grep -q sleep || broken="$broken holders"
        kill $sleeper 2>/dev/null; wait $sleeper 2>/dev/null || true
        timeout 20 kitfs mount --replace "$reference" /a >/dev/null 2>&1 && reads /a || broken="$broken replace"
        setpriv --reuid ada --regid ada --init-groups env HOME=/home/ada sh -c "mkdir -p ~/m && timeout 20 kitfs mount $reference ~/m && cmp ~/m/big.bin /srv/big/big.bin" >/dev/null 2>&1 || broken="$broken member"
        timeout 20 kitfs mount --overlay=/srv/upper "$reference" /b >/dev/null 2>&1 && timeout 20 kitfs umount /b >/dev/null 2>&1 || broken="$broken view"
        unshare --mount sh -c "timeout 20 kitfs mount $reference /b && cmp /b/big.bin /srv/big/big.bin" >/dev/null 2>&1 || broken="$broken namespace"
        systemctl restart kitfs >/dev/null 2>&1 || broken="$broken restart"
        reads /a || broken="$broken restore"
        timeout 20 kitfs daemon stop --system >/dev/null 2>&1 || broken="$broken stop"
    else
        broken=" start"
    fi
    printf '    %-60s %s\n' "$words" "${broken:-works}"
}
step "each directive"
all=$(sed -n 's/^CapabilityBoundingSet=//p' /usr/lib/systemd/system/kitfs.service)
try "the unit as it is" ""
for capability in $all; do
    try "without $capability" "CapabilityBoundingSet=~$capability"
done
for line in NoNewPrivileges=no ProtectClock=yes ProtectKernelLogs=yes ProtectKernelModules=yes ProtectKernelTunables=yes ProtectControlGroups=yes ProtectSystem=full ProtectHome=read-only PrivateTmp=yes PrivateDevices=yes RestrictNamespaces=yes SystemCallFilter=~@privileged SystemCallFilter=~@resources SystemCallFilter=~@mount "RestrictAddressFamilies=~AF_NETLINK" DevicePolicy=strict ProtectProc=invisible; do
    try "with $line" "$line"
done
