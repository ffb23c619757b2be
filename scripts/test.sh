#!/usr/bin/env bash
# All checks: format, lints, shell scripts, and every test on a real MongoDB. Needs what the demo
# needs. In CI (CI=true) nothing is skipped; elsewhere it is said what was.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/prepare.sh

# missing TOOL HOW-TO-GET-IT
missing() {
    if [[ ${CI:-} == true ]]; then
        echo "scripts/test.sh: no $1: $2" >&2
        exit 1
    fi
    echo "scripts/test.sh: skipped: no $1 ($2)" >&2
}

if cargo fmt --version >/dev/null 2>&1; then
    cargo fmt --check
else
    missing rustfmt 'rustup component add rustfmt'
fi

if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy --quiet --all-targets --locked -- -D warnings
else
    missing clippy 'rustup component add clippy'
fi

# Checkers of the files around the binary, and other shells and awks to run the scripts in. The tests
# that need one say so when it is missing, and fail in CI.
for tool in shellcheck systemd-analyze promtool logrotate busybox gawk mawk original-awk curl; do
    if [[ ${CI:-} == true && $(id -u) == 0 ]] && ! command -v "$tool" >/dev/null; then
        { apt-get update && apt-get install -y --no-install-recommends \
            shellcheck systemd prometheus logrotate busybox gawk mawk original-awk curl; } >/dev/null
        break
    fi
done
if command -v shellcheck >/dev/null; then
    # Whatever starts as a shell script is one, by any name.
    find . \( -path ./target -o -path ./.git \) -prune -o -type f -print0 |
        xargs -0 grep -lEZ '^#!.*[/ ](ba|da)?sh$' | xargs -0 shellcheck -S style
else
    missing shellcheck 'on Debian: apt-get install shellcheck'
fi

mkdir -p target
TEST_TOTALS=$(mktemp -p "$PWD/target" totals.XXXXXX)
export TEST_TOTALS
trap 'rm -f "$TEST_TOTALS"' EXIT
cargo test --quiet --locked "$@"

echo 'Over all tests:'
awk '{ n = $1; $1 = ""; sum[$0] += n; bad += n * /tokens lost|secrets leaked/ }
    END { for (name in sum) printf "%8d%s\n", sum[name], name; exit bad > 0 }' "$TEST_TOTALS"
