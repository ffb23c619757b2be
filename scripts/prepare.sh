#!/usr/bin/env bash
# What demo and tests need on a machine; called by both. One line on stderr and exit 1 for the
# first thing that is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "scripts/prepare.sh: $1" >&2
    exit 1
}

command -v cargo >/dev/null || fail 'no cargo on PATH: install Rust, with rustup for instance'
needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
found=$(cargo --version | cut -d ' ' -f 2)
[[ $(printf '%s\n' "$needed" "$found" | sort -V | head -n 1) == "$needed" ]] ||
    fail "cargo $found is too old: install Rust $needed or later, with rustup for instance"
command -v cc >/dev/null || fail 'no C compiler (cc) on PATH: install one, on Debian with apt-get install gcc libc6-dev'
scripts/mongod.sh >/dev/null # has its own word for what it misses
