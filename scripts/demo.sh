#!/usr/bin/env bash
# Shows the program at work: a real MongoDB, a stub of the enroll API, a token of every kind, one
# run, and the database before and after. Leaves nothing behind but target/.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/prepare.sh
echo '正在编译，首次需要几分钟 (building; the first time takes a few minutes)' >&2
cargo build --quiet --locked --bin refresh_baoming_tokens --example testbed
exec cargo run --quiet --locked --example testbed -- demo
