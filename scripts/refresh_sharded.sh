#!/bin/sh
# Runs refresh_baoming_tokens as N processes at once, each on its own part of the tokens.
set -eu

usage='usage: refresh_sharded.sh N [FLAGS of refresh_baoming_tokens]

Runs N processes of refresh_baoming_tokens (from PATH) on this host, with
--shard 1/N to N/N. Log lines carry "(K/N)"; at the end come the statistics of
all, and with --json one object, as from a single run. --delay-ms, --max-delete
and the other flags hold for each process by itself.

Not with --scheduler, --shard, --metrics-file or --log-file (append the output
to a file instead: >> LOG, or 2>> LOG with --json).

Ctrl-C or SIGTERM stops all and waits for them; a second one ends them at once.
Exit code: the gravest one, in the order signal, 1, 2, 25, 5, 3, 0.'

fail() {
    echo "refresh_sharded.sh: $1" >&2
    exit 2
}

case ${1-} in
-h | --help)
    printf '%s\n' "$usage"
    exit 0
    ;;
'' | 0* | *[!0-9]* | ????*) fail 'expects a number of processes from 1 to 999; see --help' ;;
esac
n=$1
shift
json=0 quiet=0
for arg in "$@"; do # rotates the arguments, less --json
    shift
    case $arg in
    --json)
        json=$((json + 1))
        continue
        ;;
    -q | --quiet) quiet=1 ;;
    -h | --help) fail 'expects N first; see --help' ;;
    --scheduler | --shard | --shard=* | --metrics-file | --metrics-file=* | --log-file | --log-file=*)
        fail "${arg%%=*} does not go with several processes; see --help"
        ;;
    esac
    set -- "$@" "$arg"
done
[ "$json" -le 1 ] || fail '--json was given more than once'
command -v refresh_baoming_tokens >/dev/null || fail 'refresh_baoming_tokens is not on PATH'
# Flags are checked even with --version: what is wrong with them is said once, not N times.
refresh_baoming_tokens --version --json --shard "1/$n" "$@" >/dev/null || exit

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
pids='' signal='' started='' told=''
tell() {
    told=1
    # shellcheck disable=SC2086 # a list
    kill -TERM $pids 2>/dev/null || :
}
# shellcheck disable=SC2317 # called by trap
stop() {
    signal=$1
    [ -z "$started" ] || tell
}
trap 'stop 130' INT
trap 'stop 143' TERM HUP
trap '' PIPE # a reader that goes away stops nothing

if [ "$json" = 1 ]; then exec 3>&2; else exec 3>&1; fi
log() { # LEVEL TEXT
    [ "$1$quiet" = INFO1 ] || printf '%s [%s] %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$1" "$2" >&3 2>/dev/null || :
}
line='============================================================'

# Passes on the log of one process, line by line; what is no log line (no URI, say) is the same for
# all and kept for the end.
label() {
    while IFS= read -r text || [ -n "$text" ]; do
        case $text in
        [0-9][0-9][0-9][0-9]-*' ['*'] '*) printf '%s] (%s) %s\n' "${text%%]*}" "$1" "${text#*] }" >&3 2>/dev/null || : ;;
        *) printf '%s\n' "$text" >>"$tmp/other" ;;
        esac
    done
}

log INFO "$line"
log INFO '🚀 开始刷新报名工具 Token'
log INFO "📊 分为 $n 个进程同时运行"
log INFO "$line"
labels=
k=1
while [ "$k" -le "$n" ] && [ -z "$signal" ]; do
    mkfifo "$tmp/$k.log"
    # These two lists see the end of the log by themselves; a signal to the terminal's group must
    # not cut it short. setsid: the terminal's Ctrl-C reaches this script only, which hands it on
    # once; the program takes a second signal for impatience.
    (trap '' INT TERM HUP; label "$k/$n") <"$tmp/$k.log" &
    labels="$labels $!"
    setsid refresh_baoming_tokens --json --shard "$k/$n" "$@" >"$tmp/$k.json" 2>"$tmp/$k.log" &
    pids="$pids $!"
    k=$((k + 1))
done
started=1
if [ -n "$signal" ] && [ -z "$told" ]; then tell; fi

# Waits for one process. A signal to this script ends `wait`, but not the process, so it may take
# several; 127 says that the one before had told its status already.
await() {
    status=0
    wait "$1" || status=$?
    while [ "$status" -gt 128 ]; do
        again=0
        wait "$1" || again=$?
        if [ "$again" = 127 ] || { [ "$again" = "$status" ] && ! kill -0 "$1" 2>/dev/null; }; then return; fi
        status=$again
    done
}
rank() {
    case $1 in
    130 | 143) echo 6 ;;
    2) echo 4 ;;
    25) echo 3 ;;
    5) echo 2 ;;
    3) echo 1 ;;
    0) echo 0 ;;
    *) echo 5 ;;
    esac
}
code=0
early=0
k=1
for pid in $pids; do
    await "$pid"
    : <>"$tmp/$k.log" # ends the log also where the process was stopped before it opened it
    case $status in
    0 | 2 | 3 | 25) ;;
    *) early=1 ;;
    esac
    if [ ! -s "$tmp/$k.json" ] && [ "$status" != 2 ] && [ -z "$signal" ]; then
        log ERROR "❌ 进程 $k/$n 没有报告结果 (退出码 $status)"
    fi
    [ "$(rank "$status")" -le "$(rank "$code")" ] || code=$status
    k=$((k + 1))
done
for pid in $labels; do await "$pid"; done
if [ -e "$tmp/other" ]; then awk '!seen[$0]++' "$tmp/other" >&2; fi
case $code in
2) exit 2 ;;
130 | 143) code=${signal:-$code} ;;
0 | 3 | 5 | 25) ;;
*) code=1 ;;
esac

# From the objects of all: the first line is the object of all, then the statistics.
summary=$(cat "$tmp"/*.json 2>/dev/null | awk -v code="$code" '
function raw(key) { # a number, or a string with its quotes
    if (!match($0, "\"" key "\":(\"[^\"]*\"|[^,}]*)")) return ""
    return substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3)
}
function stat(label, key) { if (sum[key] || key ~ /total|success|failed|deleted/) print "  " label ": " sum[key] " 个" }
BEGIN { keys = split("total success failed deleted skipped withheld unprocessed cleaned", key, " ") }
{
    if (NR == 1 || raw("started_at") < started) started = raw("started_at")
    if (NR == 1 || raw("duration_seconds") + 0 > duration + 0) duration = raw("duration_seconds")
    version = raw("version")
    database = raw("database")
    dry = raw("dry_run")
    for (i = 1; i <= keys; i++) sum[key[i]] += raw(key[i])
}
END {
    if (!NR) { version = database = started = "null"; duration = 0; dry = "false" }
    stopped = code >= 128 ? "\"signal\"" : code == 1 ? "\"database\"" : code == 5 ? "\"api_unreachable\"" : \
        code == 25 ? "\"delete_limit\"" : "null"
    printf "{\"version\":%s,\"database\":%s,\"started_at\":%s,\"duration_seconds\":%s", version, database, started, duration
    for (i = 1; i <= keys; i++) printf ",\"%s\":%d", key[i], sum[key[i]]
    printf ",\"dry_run\":%s,\"stopped\":%s,\"exit_code\":%d}\n", dry, stopped, code
    stat("📝 总计", "total")
    stat("✅ 成功", "success")
    stat("❌ 失败", "failed")
    stat("🗑️ 删除", "deleted")
    stat("⏭️ 跳过", "skipped")
    stat("🛑 保留", "withheld")
    stat("⏸️ 未处理", "unprocessed")
    if (dry == "true") print "  🔍 试运行: 以上为预计结果，数据库未改动"
    if (sum["cleaned"] && dry != "true") print "  ✅ 已清理 " sum["cleaned"] " 个过期 Token"
}')
log INFO "$(printf %s "$line" | tr '=' -)"
log INFO '📊 刷新统计:'
printf '%s\n' "$summary" | sed 1d | while IFS= read -r text; do log INFO "$text"; done
log INFO "$line"
if [ "$early" = 0 ]; then
    log INFO '🎉 刷新完成'
elif [ "$code" -ge 128 ]; then
    log WARNING '⏹️ 刷新提前结束: 收到停止信号，其余 Token 下次继续'
else
    log ERROR '⏹️ 刷新提前结束: 有进程未完成，原因见上'
fi
log INFO "$line"
[ "$json" = 0 ] || printf '%s\n' "${summary%%
*}" 2>/dev/null || :
exit "$code"
