#!/bin/sh
# Tells from its log how the last run of refresh_baoming_tokens went; for cron, Nagios and the like.
set -eu

usage='usage: monitor_refresh.sh LOG [MAX_AGE_HOURS]

Prints one line and exits with
  0  the last run finished within MAX_AGE_HOURS (default 8) and had no failure
  1  the last run had failures, or something was held back
  2  no run finished within MAX_AGE_HOURS, or the last one ended in an error
  3  LOG is missing or unreadable, or the question makes no sense

A run in progress is judged by the one before it. LOG.1, if there is one, is read
first, so that a rotation goes unnoticed. The log holds local times: run this with
the TZ of the program. A log written with -q says too little.'

unknown() {
    echo "UNKNOWN: $1"
    exit 3
}

case ${1-} in
-h | --help)
    printf '%s\n' "$usage"
    exit 0
    ;;
esac
if [ $# -lt 1 ] || [ $# -gt 2 ] || [ -z "$1" ]; then
    printf '%s\n' "$usage" >&2
    unknown 'bad arguments; usage: monitor_refresh.sh LOG [MAX_AGE_HOURS]'
fi
log=$1
limit=${2-8}
case $limit in
*[!0-9.]* | *.*.* | .* | *. | '') limit=0 ;;
esac
case $limit in
*[1-9]*) ;;
*) unknown 'MAX_AGE_HOURS must be a number greater than 0, such as 8 or 0.5' ;;
esac

# Relative names that begin with a dash or hold a '=' would be something else to awk.
case $log in
/*) ;;
*) log=./$log ;;
esac
[ -e "$log" ] || [ -e "$log.1" ] || unknown "$1 is missing"
set --
for file in "$log.1" "$log"; do
    [ -e "$file" ] || continue
    { [ -f "$file" ] && [ -r "$file" ]; } || unknown "$file is not a readable file"
    set -- "$@" "$file"
done

# Bytes, not characters: a broken one must not stop awk.
cat -- "$@" | LC_ALL=C awk -v now="$(date '+%Y-%m-%d %H:%M:%S')" -v limit="$limit" '
# Seconds since a fixed day; only differences matter.
function seconds(stamp,    y, m, d) {
    y = substr(stamp, 1, 4) + 0
    m = substr(stamp, 6, 2) + 0
    d = substr(stamp, 9, 2) + 0
    if (m < 3) { y--; m += 12 }
    d += 365 * y + int(y / 4) - int(y / 100) + int(y / 400) + int((153 * m - 457) / 5)
    return d * 86400 + substr(stamp, 12, 2) * 3600 + substr(stamp, 15, 2) * 60 + substr(stamp, 18, 2)
}
function age(stamp) { return (seconds(now) - seconds(stamp)) / 3600 }
function starts(prefix) { return index(text, prefix) == 1 }
function number(    digits) { digits = text; gsub(/[^0-9]/, "", digits); return digits + 0 }
function say(code, word, message) { print word ": " message; exit code }

/^[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9] \[[A-Z]+\] / {
    stamp = last = substr($0, 1, 19)
    level = substr($0, 22, index($0, "]") - 22)
    text = substr($0, index($0, "]") + 2)

    if (starts("🚀 开始刷新")) { running = 1; dry = 0; held = 0 }
    else if (starts("🔍 试运行")) dry = 1
    else if (starts("  📝 总计:")) total = number()
    else if (starts("  ✅ 成功:")) good = number()
    else if (starts("  ❌ 失败:")) failed = number()
    else if (starts("  🗑️ 删除:")) deleted = number()
    else if (starts("  🛑 保留:")) held = number()
    else if (text == "🎉 刷新完成") {
        running = 0
        broken = ""
        if (!dry) {
            finished = stamp
            counts = sprintf("%d tokens, %d refreshed, %d failed, %d deleted, %d held back", \
                total, good, failed, deleted, held)
            flawed = failed + held
        }
    }
    else if (starts("⏹️ 刷新提前结束")) { running = 0; if (level == "ERROR") broken = stamp }
    else if (running) next
    # Between two runs: the cleanup of the one before, or no database for the next.
    else if (starts("  🛑 保留") || starts("  ⚠️ 清理失败")) { flawed = 1; counts = counts ", cleanup incomplete" }
    else if (level == "ERROR") broken = stamp
}

END {
    if (!last) say(2, "CRITICAL", "no finished run in the log")
    if (age(last) < -1.1) say(3, "UNKNOWN", "the log is ahead of this clock (" last "); set TZ as for the program")
    if (broken) say(2, "CRITICAL", "the last run ended in an error at " broken "; see the log")
    # A live run writes at least every few minutes, also while it waits for retries.
    alive = running && age(last) < 0.25
    if (!finished && alive) say(0, "OK", "the first run is in progress")
    if (!finished) say(2, "CRITICAL", "no finished run in the log")
    if (age(finished) > limit && !alive)
        say(2, "CRITICAL", sprintf("no run finished in the last %s h; the last one at %s", limit, finished))
    if (flawed) say(1, "WARNING", counts " (" finished ")")
    say(0, "OK", counts " (" finished ")")
}'
