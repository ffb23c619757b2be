#!/bin/sh
# Runs several processes of refresh_baoming_tokens on this host, which look like one run.
set -eu

usage='用法 / usage: refresh_sharded.sh N [FLAGS of refresh_baoming_tokens]

N 个进程同时运行，各用 --shard K/N；日志行带 "(K/N)"，最后是总统计；--json 和 --metrics-file 给出总结果。
N processes with --shard 1/N to N/N; log lines carry "(K/N)", at the end come the statistics of all;
--json and --metrics-file tell of all. The other flags hold for each process by itself.
不支持 / not with --scheduler, --shard, --log-file (use >> LOG, or 2>> LOG with --json)
Ctrl-C, SIGTERM: 全部停止并等待 / stops all and waits for them; a second one ends them at once.
退出码 / exit code: the gravest one, in the order signal, 1, 2, 25, 5, 3, 0.'

fail() {
    echo "refresh_sharded.sh: $1" >&2
    exit 2
}

case ${1-} in
-h | --help) printf '%s\n' "$usage" && exit ;;
'' | 0* | *[!0-9]* | ????*) fail '需要进程数 1 到 999 (expects a number of processes; see --help)' ;;
esac
n=$1
shift
json=0 quiet=0 metrics='' next=''
for arg in "$@"; do # rotates the arguments, less --json and --metrics-file
    shift
    if [ -n "$next" ]; then metrics=$arg next='' && continue; fi
    case $arg in
    --json) json=$((json + 1)) && continue ;;
    --metrics-file) next=1 && continue ;;
    --metrics-file=*) metrics=${arg#*=} && continue ;;
    -q | --quiet) quiet=1 ;;
    --scheduler | --shard | --shard=* | --log-file | --log-file=* | --card | --card=* | -h | --help)
        fail "${arg%%=*} 不能用于多个进程 (does not go with several processes; see --help)"
        ;;
    esac
    set -- "$@" "$arg"
done
[ "$json" -le 1 ] || fail '--json 重复 (given more than once)'
[ -z "$next" ] || fail '--metrics-file 缺少值 (value missing)'
command -v jq >/dev/null || fail '没有安装 jq (jq is not installed)'
command -v refresh_baoming_tokens >/dev/null || fail '找不到 refresh_baoming_tokens (not on PATH)'
# Flags are checked even with --version: what is wrong with them is said once, not N times.
refresh_baoming_tokens --version --json --shard "1/$n" ${metrics:+--metrics-file "$metrics"} "$@" >/dev/null || exit

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
pids='' signal='' started=''
tell() {
    # shellcheck disable=SC2086 # a list
    [ -z "$started" ] || kill -TERM $pids 2>/dev/null || :
}
trap 'signal=130; tell' INT
trap 'signal=143; tell' TERM HUP
trap '' PIPE # a reader that goes away stops nothing
exec 3>&$((json + 1))
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
log INFO "🚀 开始刷新报名工具 Token (分为 $n 个进程同时运行)"
log INFO "$line"
labels='' k=1
while [ "$k" -le "$n" ] && [ -z "$signal" ]; do
    mkfifo "$tmp/$k.log"
    # Sees the end of the log by itself; a signal to the terminal's group must not cut it short.
    (trap '' INT TERM HUP && label "$k/$n") <"$tmp/$k.log" &
    labels="$labels $!"
    # setsid: the terminal's Ctrl-C reaches this script only, which hands it on once; the program
    # takes a second signal for impatience.
    setsid refresh_baoming_tokens --json --shard "$k/$n" "$@" >"$tmp/$k.json" 2>"$tmp/$k.log" &
    pids="$pids $!"
    k=$((k + 1))
done
started=1
[ -z "$signal" ] || tell

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
# Gravest first. A killed process and an unknown code count as 1.
code=0 early=0 k=1
for pid in $pids; do
    await "$pid"
    : <>"$tmp/$k.log" # ends the log also where the process was stopped before it opened it
    case $status in 0 | 2 | 3 | 25) ;; *) early=1 ;; esac
    if [ ! -s "$tmp/$k.json" ] && [ "$status" != 2 ] && [ -z "$signal" ]; then
        log ERROR "❌ 进程 $k/$n 没有报告结果 (退出码 $status)"
    fi
    case $status in 0 | 2 | 3 | 5 | 25 | 130 | 143) ;; *) status=1 ;; esac
    for grave in 143 130 1 2 25 5 3; do
        [ "$code" != "$grave" ] || break
        [ "$status" != "$grave" ] || { code=$status && break; }
    done
    k=$((k + 1))
done
for pid in $labels; do await "$pid"; done
if [ -e "$tmp/other" ]; then awk '!seen[$0]++' "$tmp/other" >&2; fi
[ "$code" -le 128 ] || code=${signal:-$code}
[ "$code" != 2 ] || exit 2

# One object of all objects; the reason is that of the process with the most failures.
jq -cs --argjson code "$code" '
    def sums: ["total", "success", "failed", "deleted", "skipped", "withheld", "unprocessed", "cleaned"] as $keys
        | reduce ($keys[] as $key | {($key): (map(.[$key]) | add // 0)}) as $sum ({}; . + $sum);
    {version: .[0].version, database: .[0].database, started_at: (map(.started_at) | min),
        duration_seconds: (map(.duration_seconds) | max // 0)} + sums
    + {failure_reason: (map(select(.failure_reason)) | max_by(.failed) | .failure_reason), dry_run: (.[0].dry_run // false),
        stopped: (if $code > 128 then "signal" elif $code == 1 then (map(.stopped | select(. == "database")) | .[0])
            else {"5": "api_unreachable", "25": "delete_limit"}["\($code)"] end), exit_code: $code}' "$tmp"/*.json >"$tmp/all"
log INFO "$(printf %s "$line" | tr '=' -)"
log INFO '📊 刷新统计:'
jq -r '. as $all
    | (["📝 总计", "total"], ["✅ 成功", "success"], ["❌ 失败", "failed"], ["🗑️ 删除", "deleted"], ["⏭️ 跳过", "skipped"],
        ["🛑 保留", "withheld"], ["⏸️ 未处理", "unprocessed"]
        | select($all[.[1]] > 0 or (.[1] | IN("total", "success", "failed", "deleted"))) | "  \(.[0]): \($all[.[1]]) 个"),
      (.failure_reason // empty | "  ❗ 原因: \(.)"),
      if .dry_run then "  🔍 试运行: 以上为预计结果，数据库未改动"
      elif .cleaned > 0 then "  ✅ 已清理 \(.cleaned) 个过期 Token" else empty end' "$tmp/all" |
    while IFS= read -r text; do log INFO "$text"; done
log INFO "$line"
if [ "$early" = 0 ]; then
    log INFO '🎉 刷新完成'
elif [ "$code" -ge 128 ]; then
    log WARNING '⏹️ 刷新提前结束: 收到停止信号，其余 Token 下次继续'
else
    log ERROR '⏹️ 刷新提前结束: 有进程未完成，原因见上'
fi
log INFO "$line"
if [ -n "$metrics" ] && [ "$(jq .dry_run "$tmp/all")" = false ]; then
    now=$(date +%s)
    success=$(sed -n 's/^baoming_refresh_last_success_timestamp_seconds[^ ]* //p' "$metrics" 2>/dev/null) || :
    [ "$code" != 0 ] || success=$now
    schedule=${metrics##*/}
    # The same text as the program's own.
    if ! { jq -r --arg schedule "${schedule%.prom}" --arg now "$now" --arg success "${success:-0}" '
        def head(name; help): "# HELP \(name) \(help)\n# TYPE \(name) gauge";
        def one(name; help; value): head("baoming_refresh_" + name; help),
            "baoming_refresh_\(name){schedule=\($schedule | tojson)} \(value)";
        head("baoming_refresh_tokens"; "Tokens of the last run by result."),
        (("success", "failed", "deleted", "skipped", "withheld", "unprocessed", "cleaned") as $result
            | "baoming_refresh_tokens{result=\"\($result)\",schedule=\($schedule | tojson)} \(.[$result])"),
        one("last_completion_timestamp_seconds"; "Unix time at which the last run ended."; $now),
        one("last_success_timestamp_seconds"; "Unix time at which the last run with exit code 0 ended; 0 = never."; $success),
        one("duration_seconds"; "Duration of the last run in seconds."; .duration_seconds),
        one("exit_code"; "Exit code of the last run."; .exit_code)' "$tmp/all" >"$metrics.tmp.$$" &&
        chmod 644 "$metrics.tmp.$$" && mv "$metrics.tmp.$$" "$metrics"; }; then
        log ERROR "❌ 无法写入指标文件 $metrics"
        [ "$code" -gt 128 ] || code=1
    fi
fi
[ "$json" = 0 ] || jq -c --argjson code "$code" '.exit_code = $code' "$tmp/all" 2>/dev/null || :
exit "$code"
