#!/bin/sh
# Runs several processes of refresh_baoming_tokens on this host, which look like one run.
set -eu

usage='用法 / usage: refresh_sharded.sh N [FLAGS of refresh_baoming_tokens]
N 个进程同时运行，各用 --shard K/N，日志行带 "(K/N)"，最后是总统计；--json 给出总结果；退出码取最严重的。
N processes with --shard 1/N to N/N; log lines carry "(K/N)", at the end come the statistics of all; --json tells of all.
Exit code: the gravest one, in the order signal, 1, 2, 25, 5, 3, 0. Ctrl-C stops all; a second one ends them at once.'

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
case " $* " in *' -h '* | *' --help '*) printf '%s\n' "$usage" && exit ;; esac
command -v jq >/dev/null || fail '没有安装 jq (jq is not installed)'
command -v refresh_baoming_tokens >/dev/null || fail '找不到 refresh_baoming_tokens (not on PATH)'
# Flags are checked even with --version: what is wrong with them is said once, not N times.
refresh_baoming_tokens --version --shard "1/$n" "$@" >/dev/null || exit
case " $*" in
*' --scheduler'* | *' --card'* | *' --log-file'* | *' --metrics-file'*)
    fail '--scheduler、--card、--log-file 和 --metrics-file 不能用于多个进程 (these do not go with several processes)'
    ;;
esac
json=0 quiet=0
case " $* " in *' -q '* | *' --quiet '*) quiet=1 ;; esac
case " $* " in *' --json '*) json=1 ;; *) set -- "$@" --json ;; esac

# shellcheck disable=SC3045 # every sh at hand has it; a core dump would hold tokens
ulimit -c 0 2>/dev/null || :
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
labels='' k=1
while [ "$k" -le "$n" ] && [ -z "$signal" ]; do
    mkfifo "$tmp/$k.log"
    # Passes the log on with its label; what is no log line (no URI, say) is the same for all and kept for the end.
    # It sees the end of the log by itself; a signal to the terminal's group must not cut it short.
    (trap '' INT TERM HUP && exec sed -un "s|^\(20[^]]*\]\) |\1 ($k/$n) |p; t; w $tmp/other$k" <"$tmp/$k.log" >&3 2>/dev/null) &
    labels="$labels $!"
    # setsid: the terminal's Ctrl-C reaches this script only, which hands it on once; the program
    # takes a second signal for impatience.
    setsid refresh_baoming_tokens --shard "$k/$n" "$@" >"$tmp/$k.json" 2>"$tmp/$k.log" &
    pids="$pids $!"
    k=$((k + 1))
done
started=1
[ -z "$signal" ] || tell

await() { # PID: a signal to this script ends `wait`, but not the process
    while
        status=0
        wait "$1" || status=$?
        [ "$status" -gt 128 ] && kill -0 "$1" 2>/dev/null
    do :; done
}
codes='' k=1
for pid in $pids; do
    await "$pid"
    : <>"$tmp/$k.log" # ends the log also where the process was stopped before it opened it
    if [ ! -s "$tmp/$k.json" ] && [ "$status" != 2 ] && [ -z "$signal" ]; then
        log ERROR "❌ 进程 $k/$n 没有报告结果 (退出码 $status)"
    fi
    case $status in 0 | 2 | 3 | 5 | 25 | 130 | 143) ;; *) status=1 ;; esac # killed, or unknown
    codes="$codes $status "
    k=$((k + 1))
done
for pid in $labels; do await "$pid"; done
cat "$tmp"/other* 2>/dev/null | awk '!seen[$0]++' >&2
for code in 143 130 1 2 25 5 3 0; do
    case $codes in *" $code "*) break ;; esac
done
[ "$code" -le 128 ] || code=${signal:-$code}
[ "$code" != 2 ] || exit 2

# One object of all objects; the reason is that of the process with the most failures.
jq -cs --argjson code "$code" '
    . as $all | .[0] + {started_at: (map(.started_at) | min), duration_seconds: (map(.duration_seconds) | max)}
    + (["total", "success", "failed", "deleted", "skipped", "withheld", "unprocessed", "cleaned"]
        | map(. as $key | {($key): ($all | map(.[$key]) | add // 0)}) | add)
    + {failure_reason: ($all | map(select(.failure_reason)) | max_by(.failed) | .failure_reason), exit_code: $code,
        stopped: (if $code > 128 then "signal" else [$all[] | select(.exit_code == $code).stopped | values][0] end)}
    ' "$tmp"/*.json >"$tmp/all"
case $codes in
*' 143 '* | *' 130 '*) level=WARNING last='⏹️ 刷新提前结束: 收到停止信号，其余 Token 下次继续' ;;
*' 1 '* | *' 5 '*) level=ERROR last='⏹️ 刷新提前结束: 有进程未完成，原因见上' ;;
*) level=INFO last='🎉 刷新完成' ;;
esac
jq -r --arg last "$last" '. as $all | ("-" * 60, "📊 刷新统计:"),
      (["📝 总计", "total"], ["✅ 成功", "success"], ["❌ 失败", "failed"], ["🗑️ 删除", "deleted"], ["⏭️ 跳过", "skipped"],
        ["🛑 保留", "withheld"], ["⏸️ 未处理", "unprocessed"]
        | select($all[.[1]] > 0 or (.[1] | IN("total", "success", "failed", "deleted"))) | "  \(.[0]): \($all[.[1]]) 个"),
      (.failure_reason // empty | "  ❗ 原因: \(.)"),
      if .dry_run then "  🔍 试运行: 以上为预计结果，数据库未改动"
      elif .cleaned > 0 then "  ✅ 已清理 \(.cleaned) 个过期 Token" else empty end,
      ("=" * 60, $last, "=" * 60)' "$tmp/all" |
    while IFS= read -r text; do
        if [ "$text" = "$last" ]; then log "$level" "$text"; else log INFO "$text"; fi
    done
if [ "$json" = 1 ] && ! cat "$tmp/all" 2>/dev/null && [ "$code" -le 128 ]; then code=1; fi
exit "$code"
