# Functions that the scripts beside this file share; to be sourced. They install missing packages where that is allowed,
# and name them where it is not.

# The oldest cargo that builds kitfs (rust-version in Cargo.toml).
CARGO_NEEDED=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)

say() { printf '\n==> %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Runs a command as root: directly, or by sudo where that asks for no password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

# need_package COMMAND PACKAGE: makes sure that COMMAND is there; returns 1 where it cannot be.
need_package() {
    command -v "$1" >/dev/null && return 0
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null && return 0
    install_package "$1" "$2"
}

# install_package WHAT PACKAGE: installs the package that has WHAT; returns 1 where it cannot be.
install_package() {
    if ! command -v apt-get >/dev/null; then
        echo "$1 is missing and there is no apt-get here: install it with your package manager" >&2
        return 1
    fi
    say "installing $2, for $1"
    if [ -z "${APT_UPDATED:-}" ]; then
        as_root apt-get update -qq || true
        APT_UPDATED=1
    fi
    if ! as_root sh -c "$INSTALL_WITHOUT_SERVICES" install "$2"; then
        echo "$1 is missing and cannot be installed from here; run: sudo apt-get install $2" >&2
        return 1
    fi
    hash -r
}

# Installs the package $1, and leaves no service of it running or enabled. Debian starts the services
# of a package and of its dependencies when it is installed; docker-registry's listens on every
# interface. `policy-rc.d` answers 101 ("forbidden") while packages are configured. A policy that the
# machine has already stays in force. Services that were enabled before are left alone.
INSTALL_WITHOUT_SERVICES='
policy=/usr/sbin/policy-rc.d
work=$(mktemp -d) || exit 1
if [ -e "$policy" ]; then
    trap "rm -rf $work" EXIT
else
    trap "rm -rf $policy $work" EXIT
    printf "#!/bin/sh\nexit 101\n" >"$policy"
    chmod 755 "$policy"
fi
trap "exit 1" INT TERM
enabled() {
    for link in /etc/systemd/system/*.wants/*.service /etc/rc[2-5].d/S*; do
        name=${link##*/}
        case $link in
        *\*) ;;
        *.service) echo "${name%.service}" ;;
        *) echo "${name#S??}" ;;
        esac
    done | sort -u
}
enabled >"$work/before"
# dpkg prints a line for each package, which matters only if it fails.
if ! env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >"$work/log" 2>&1; then
    cat "$work/log" >&2
    exit 1
fi
enabled >"$work/after"
comm -13 "$work/before" "$work/after" | while read -r name; do
    if command -v systemctl >/dev/null; then
        systemctl --quiet disable --now "$name" 2>/dev/null || systemctl --quiet disable "$name"
    else
        service "$name" stop >/dev/null 2>&1
        update-rc.d "$name" disable >/dev/null
    fi
done
exit 0
'

# The tools that build Rust and the C parts of two crates.
need_build_tools() {
    if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    command -v cargo >/dev/null ||
        fail "cargo is missing: install Rust $CARGO_NEEDED or newer from https://rustup.rs"
    local version
    version=$(cargo --version | cut -d' ' -f2)
    if [ "$(printf '%s\n' "$CARGO_NEEDED" "${version%%-*}" | sort -V | head -n1)" != "$CARGO_NEEDED" ]; then
        fail "cargo is $version and kitfs needs $CARGO_NEEDED or newer: run \`rustup update stable\`"
    fi
    need_package cc build-essential || fail "a C compiler is needed to build zstd and aws-lc"
}

# Whether kits can be mounted here; makes /dev/fuse usable where that is allowed.
# Sets FUSE_PROBLEM to the reason where they cannot.
need_fuse() {
    FUSE_PROBLEM=
    if ! need_package fusermount3 fuse3; then
        FUSE_PROBLEM="fusermount3 is missing (package fuse3)"
        return 1
    fi
    if [ ! -e /dev/fuse ]; then
        as_root modprobe fuse 2>/dev/null || true
    fi
    if [ ! -e /dev/fuse ]; then
        # Containers have no udev that makes the node.
        as_root mknod -m 0666 /dev/fuse c 10 229 2>/dev/null || true
    fi
    if [ ! -e /dev/fuse ]; then
        FUSE_PROBLEM="there is no /dev/fuse: load the module with \`sudo modprobe fuse\`; in a container pass --device /dev/fuse --cap-add SYS_ADMIN"
        return 1
    fi
    if [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then
        as_root chmod 0666 /dev/fuse 2>/dev/null || true
    fi
    # Only opening the device tells: the device rules of a container may forbid what the mode allows.
    if ! (exec 3<>/dev/fuse) 2>/dev/null; then
        FUSE_PROBLEM="/dev/fuse cannot be opened by $(id -un): in a container pass --device /dev/fuse --cap-add SYS_ADMIN, else \`sudo chmod 0666 /dev/fuse\`"
        return 1
    fi
}

# The folder that cargo builds into.
target_folder() {
    cargo metadata --format-version 1 --no-deps --offline |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}
