#!/usr/bin/env bash
# Does the main job with each file that scripts/build-static.sh made, in a folder that holds nothing else, and with the
# image, against a real database and a stub of the API.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/prepare.sh
[[ -x target/static/refresh_baoming_tokens ]] || scripts/build-static.sh
cargo build --quiet --locked --example peak
exec cargo test --quiet --locked --test smoke -- --ignored --nocapture
