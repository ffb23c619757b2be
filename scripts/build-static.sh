#!/usr/bin/env bash
# Builds target/static/refresh_baoming_tokens: one x86_64 Linux file that needs nothing on the server it is copied to.
# Prints the crates in it, its size and its SHA-256. The same source and compiler give the same file, in any directory.
#
#   scripts/build-static.sh                       # some minutes the first time, seconds when nothing changed
#   scripts/build-static.sh --check-reproducible  # builds a copy elsewhere too, and compares the two files
#
# Uses the toolchain's own musl target where that is installed; else, on Debian, the compiler packaged there, which
# builds the standard library for musl from its source.
set -euo pipefail
cd "$(dirname "$0")/.."

name=refresh_baoming_tokens
target=x86_64-unknown-linux-musl
result=target/static/$name
build_dir=$PWD/target/static-build # cargo's; target/static holds nothing but the finished file

fail() {
    echo "build-static.sh: $1" >&2
    exit 1
}

# Installs the missing ones of these Debian packages; $1 is what else would do.
need_packages() {
    local instead=$1 package missing=()
    shift
    for package; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || fail "$instead (without Debian's packages there is no other way here)"
    ((EUID == 0)) || fail "run \`apt-get install ${missing[*]}\` as root, or $instead"
    echo "Installing Debian packages: ${missing[*]}"
    local log=$build_dir/apt.log
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -q update && apt-get -qy -o DPkg::Lock::Timeout=300 install "${missing[@]}"; } >"$log" 2>&1 </dev/null ||
        fail "\`apt-get install ${missing[*]}\` failed (see $log); $instead"
}

case "$#:${1-}" in
0:) check_reproducible=false ;;
1:--check-reproducible) check_reproducible=true ;;
*) fail "the only argument is --check-reproducible" ;;
esac
[[ $(uname -sm) == 'Linux x86_64' ]] || fail "builds on x86_64 Linux only, this is $(uname -sm)"
mkdir -p "$build_dir"

# The file shall depend on source and compiler, not on the caller's settings.
unset CARGO_INCREMENTAL RUSTC RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER RUSTFLAGS CFLAGS CPPFLAGS TARGET_CC TARGET_CFLAGS
unset "${!CARGO_BUILD_@}" "${!CARGO_PROFILE_@}" "${!CARGO_TARGET_@}" "${!CC_@}" "${!CFLAGS_@}"

cargo=cargo
rustc=rustc
build_std=()
# Without `relocation-model=static` the file would ask for an interpreter. Nothing unwinds (panic = "abort"), and the
# tables for it would add a tenth to the file.
flags=(-C target-feature=+crt-static -C relocation-model=static -C force-unwind-tables=no)

if compgen -G "$(rustc --print target-libdir --target $target 2>/dev/null)/libstd-*.rlib" >/dev/null; then
    command -v musl-gcc >/dev/null || need_packages "install musl-gcc" musl-tools
else
    need_packages "install Rust's musl target (rustup target add $target)" \
        rustc-web cargo-web rust-web-src musl-tools libunwind-14-dev
    cargo=/usr/bin/cargo
    rustc=/usr/bin/rustc
    # No features: a backtrace of a stripped file tells nothing, and what prints it is 0.18 MB.
    build_std=('-Zbuild-std=std,panic_abort' '-Zbuild-std-features=')
    # LLVM's unwinder, as GCC's does not link; alone in a folder, so that nothing else of the host's is found.
    mkdir -p "$build_dir/native"
    ln -sf /usr/lib/llvm-14/lib/libunwind.a "$build_dir/native/"
    flags+=(-C link-self-contained=no -L "native=$build_dir/native")
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=musl-gcc
    export RUSTC_BOOTSTRAP=1 # lets a stable cargo build the standard library
fi
export RUSTC=$rustc

# No path of this machine in the file. The last rule that fits counts.
flags+=(
    "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    "--remap-path-prefix=$("$rustc" --print sysroot)/lib/rustlib/src/rust=/rust"
    "--remap-path-prefix=$PWD=/source"
)
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS

"$cargo" build --release --locked --target $target --target-dir "$build_dir" "${build_std[@]}"
install -D -m 755 "$build_dir/$target/release/$name" "$result"

echo "Crates in $result:"
echo "  std, from $("$rustc" --version)"
"$cargo" tree --locked --target $target --edges normal,no-proc-macro --prefix none --format '{p}' |
    sed -E 's/ \(.*//; s/^/  /' | sort -u
echo "Size: $(stat -c %s "$result") bytes"
echo "SHA-256: $(sha256sum "$result" | cut -d ' ' -f 1)"

# What was compared once need not be again: the second build takes as long as the first.
compared=$build_dir/reproduced.sha256
if $check_reproducible && ! sha256sum --status --check "$compared" 2>/dev/null; then
    elsewhere=$(mktemp -d)
    trap 'rm -rf "$elsewhere"' EXIT
    tar --create --exclude=./target . | tar --extract --directory "$elsewhere"
    "$elsewhere/scripts/build-static.sh"
    cmp "$result" "$elsewhere/$result" || fail "not reproducible: a copy of the source, built in $elsewhere, gave another file"
    echo "Reproducible: a copy of the source, built in $elsewhere, gave the same file"
    sha256sum "$result" >"$compared"
fi
