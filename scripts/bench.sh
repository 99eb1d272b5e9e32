#!/usr/bin/env bash
# Measures kitfs: cold and cached, on loopback and on a shaped link, beside curl, ext4 and peers.
#
#   sudo scripts/bench.sh --quick                 a first look, a few minutes
#   sudo scripts/bench.sh                         every case, five rounds
#   sudo scripts/bench.sh --case slices random-4k some cases
#   sudo scripts/bench.sh --kitfs FILE …          another binary than the one that would be built
#   sudo scripts/bench.sh --profile               where the daemon's processor time goes
#   scripts/bench.sh --help                       all options
#
# docs/performance.md explains the output. The script installs missing packages from Debian and PyPI.
# Kits, tools and scratch files are in `bench` below cargo's target folder (20 GB, 6 more for torch).
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh

case " $* " in
*" --help "* | *" -h "*)
    exec python3 -B scripts/bench/main.py --help
    ;;
esac

# Under sudo the caller builds: theirs is the cargo, and theirs the target folder.
if [ "$(id -u)" -eq 0 ] && [ "${SUDO_USER:-root}" != root ]; then
    their_home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    cargo() {
        runuser -u "$SUDO_USER" -- env HOME="$their_home" PATH="$their_home/.cargo/bin:$PATH" \
            cargo "$@"
    }
    cargo --version >/dev/null ||
        fail "$SUDO_USER has no cargo: install Rust $CARGO_NEEDED or newer from https://rustup.rs"
fi
need_build_tools
need_fuse || fail "$FUSE_PROBLEM"
for tool in docker-registry skopeo curl:curl nginx:nginx-light rclone python3; do
    need_package "${tool%%:*}" "${tool##*:}" || fail "${tool%%:*} is needed to measure"
done
case " $* " in
*" --profile "*) need_package perf linux-perf || fail "perf is needed to take a profile" ;;
esac
# ensurepip puts pip into a virtual environment; Debian has it in a package of its own.
python3 -c 'import ensurepip' 2>/dev/null || install_package "Python's ensurepip" python3-venv ||
    fail "Python's ensurepip is needed to measure"

build=(--example shaped-link)
target=$(target_folder)
case " $* " in
*" --kitfs"*) kitfs=() ;;
*)
    build+=(--bin kitfs)
    kitfs=(--kitfs "$target/release/kitfs")
    ;;
esac
say "building (profile release)"
cargo build --locked --release "${build[@]}"

exec python3 -B scripts/bench/main.py "${kitfs[@]}" --link "$target/release/examples/shaped-link" \
    --home "$target/bench" "$@"
