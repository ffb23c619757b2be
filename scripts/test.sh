#!/usr/bin/env bash
# All checks: format, lints, shell scripts, and every test on a real MongoDB. Needs what the demo needs. In CI (CI=true)
# nothing is skipped; elsewhere it is said what was. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/prepare.sh

# has HOW-TO-GET-IT COMMAND…: whether the command works here; fails in CI when it doesn't.
has() {
    "${@:2}" >/dev/null 2>&1 && return
    echo "test.sh: 跳过 ${*:2:2} (skipped; $1)" >&2
    [[ ${CI-} != true ]] || exit 1
    return 1
}

if has 'rustup component add rustfmt' cargo fmt --version; then
    cargo fmt --check
fi
if has 'rustup component add clippy' cargo clippy --version; then
    cargo clippy --quiet --all-targets --locked -- -D warnings
fi
if has 'on Debian: apt-get install shellcheck' shellcheck --version; then
    # Whatever starts as a shell script is one, by any name.
    find . \( -path ./target -o -path ./.git \) -prune -o -type f -print0 |
        xargs -0 grep -lEZ '^#!.*[/ ](ba|da)?sh$' | xargs -0 shellcheck -S style
fi

mkdir -p target
TEST_TOTALS=$(mktemp -p "$PWD/target" totals.XXXXXX)
export TEST_TOTALS
trap 'rm -f "$TEST_TOTALS"' EXIT
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-4} # they wait more than they work
cargo test --quiet --locked "$@"

echo 'Over all tests:'
awk '{ n = $1; $1 = ""; sum[$0] += n; bad += n * /tokens lost|secrets leaked/ }
    END { for (name in sum) printf "%8d%s\n", sum[name], name; exit bad > 0 }' "$TEST_TOTALS"
