#!/usr/bin/env bash
# Does the main job with each file that scripts/build-static.sh made, in a folder that holds nothing else, and with the
# image, against a real database and a stub of the API. The last line says which check failed, if one did.
set -euo pipefail
cd "$(dirname "$0")/.."

[[ -x target/static/refresh_baoming_tokens ]] || {
    echo 'smoke.sh: 没有静态程序，请先运行 scripts/build-static.sh (no static file yet; build it first)' >&2
    exit 1
}
scripts/prepare.sh
cargo build --quiet --locked --example peak

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! cargo test --quiet --locked --test smoke -- --ignored --nocapture 2>&1 | tee "$log"; then
    echo "smoke.sh: failed:$(sed -n "s/^thread '\([^']*\)'.* panicked at .*/ \1/p" "$log" | tr '\n' ',')" >&2
    exit 1
fi
