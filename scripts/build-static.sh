#!/usr/bin/env bash
# Builds one Linux file per architecture that needs nothing on the server it is copied to:
# target/static/refresh_baoming_tokens-ARCH, and for this machine also target/static/refresh_baoming_tokens.
# Usage: scripts/build-static.sh [x86_64] [aarch64]
# Needs rustup, which adds the musl target, and pip, as zig, the C compiler and linker, comes as a wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
name=refresh_baoming_tokens tools=$PWD/target/tools/zig-0.17.1 build=target/static-build

fail() {
    echo "build-static.sh: $1" >&2
    exit "${2:-1}"
}

(($#)) || set -- "$(uname -m)"
for arch; do
    [[ $arch =~ ^(x86_64|aarch64)$ ]] || fail "未知参数 $arch (unknown argument; [x86_64] [aarch64])" 2
    target=$arch-unknown-linux-musl # a toolchain without rustup may have it all the same
    [[ -d $(rustc --print target-libdir --target "$target") ]] || rustup target add "$target" ||
        fail "缺少 Rust 目标 $target (target missing; install Rust with rustup)"
done
if [[ ! -d $tools ]]; then
    python3 -m pip install --quiet --root-user-action=ignore --target "$tools.new" ziglang==0.17.1 cargo-zigbuild==0.24.1 ||
        fail '无法用 pip 安装 zig (pip failed; on Debian: apt-get install python3-pip)'
    mv "$tools.new" "$tools"
fi
export PATH=$tools/bin:$PATH CARGO_ZIGBUILD_ZIG_PATH=$tools/ziglang/zig

# The file depends on source and compiler, not on the caller's settings nor on where anything lies.
unset CARGO_INCREMENTAL RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER CFLAGS "${!CFLAGS_@}"
unset "${!CARGO_BUILD_@}" "${!CARGO_PROFILE_@}" "${!CARGO_TARGET_@}"
mkdir -p "$build"
# Nothing unwinds (panic = "abort"), so the tables for it, a twelfth of the file, go.
echo 'SECTIONS { /DISCARD/ : { *(.eh_frame .gcc_except_table*) } } INSERT AFTER .rodata;' >$build/no-unwinding.ld
flags=(-Crelocation-model=static "-Clink-arg=-Wl,-T,$build/no-unwinding.ld" -Cllvm-args=-inline-threshold=10
    "--remap-path-prefix=$PWD=/source")
cargo fetch --quiet --locked
for crates in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do # each says its own path some hundred times
    flags+=("--remap-path-prefix=$crates=")
done
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS

for arch; do
    target=$arch-unknown-linux-musl result=target/static/$name-$arch
    cargo zigbuild --release --locked --target "$target" --target-dir $build
    install -D -m 755 "$build/$target/release/$name" "$result"
    [[ $arch != "$(uname -m)" ]] || install -m 755 "$result" target/static/$name
    crates=$(cargo tree --locked --target "$target" --edges normal,no-proc-macro --prefix none --no-dedupe | sort -u | wc -l)
    echo "$result: $(stat -c %s "$result") bytes, $crates crates, SHA-256 $(sha256sum <"$result" | cut -d ' ' -f 1)"
done
