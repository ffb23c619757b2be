#!/usr/bin/env bash
# What demo, tests and smoke test need on a machine; called by each. One line on stderr and exit 1 for the first thing
# that is missing. In CI (CI=true, root, Debian) it is installed, also what single tests would else pass over.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "prepare.sh: $1" >&2
    exit 1
}

if [[ ${CI-} == true && $EUID == 0 ]] && command -v apt-get >/dev/null; then
    packages=(binutils busybox cron curl faketime gawk gcc git jq libc6-dev logrotate mawk original-awk
        podman prometheus prometheus-node-exporter python3-pip qemu-user-static runc shellcheck systemd
        systemd-container)
    export DEBIAN_FRONTEND=noninteractive
    mkdir -p target
    dpkg --status "${packages[@]}" >/dev/null 2>&1 ||
        { apt-get -q update && apt-get -qy -o DPkg::Lock::Timeout=300 install --no-install-recommends "${packages[@]}"; } \
            >target/apt.log 2>&1 </dev/null || fail '软件包安装失败 (apt-get failed; see target/apt.log)'
fi

command -v cargo >/dev/null || fail '缺少 cargo (install Rust, with rustup for instance)' # it says itself when it is too old
command -v cc >/dev/null || fail '缺少 C 编译器 cc (no C compiler; on Debian: apt-get install gcc libc6-dev)'
scripts/mongod.sh >/dev/null # has its own word for what it misses
