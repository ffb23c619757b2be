#!/bin/sh
# Runs a command and posts to a chat group how it ended, when that needs attention.
set -eu

usage='用法 / usage: notify.sh [-a] [-s] WEBHOOK COMMAND [ARGUMENTS]
运行 COMMAND --json，需要注意时发消息（-a 总是发送，-s 不转发 stderr），退出码不变。WEBHOOK: 存放机器人地址的文件，权限 0600，空则输出到 stderr。
Runs COMMAND --json; posts (-a: always) when a token failed, was held back or deleted, the exit code is not 0, or no report
came; -s keeps its stderr back. WEBHOOK: a file (mode 0600) with the address of a DingTalk (keyword 关键词: 报名工具), WeCom,
Feishu or other robot; empty: to stderr.'

fail() {
    echo "notify.sh: $1" >&2
    exit 2
}

always='' shown=2
while [ $# -gt 0 ]; do
    case $1 in
    -a) always=1 ;;
    -s) shown=3 ;;
    -h | --help) printf '%s\n' "$usage" && exit ;;
    -*) fail '未知参数 (unknown flag; see --help)' ;;
    *) break ;;
    esac
    shift
done
[ $# -ge 2 ] || fail '需要 WEBHOOK 和 COMMAND (expects WEBHOOK and COMMAND; see --help)'
case $1 in *://*) fail 'WEBHOOK 必须是文件，命令行上的地址人人可见 (must be a file; ps shows an address)' ;; esac

# A robot that cannot be used is said, but stops no run.
file=$1 url='' trouble=''
shift
if ! { [ -f "$file" ] && url=$(tr -d '[:space:]' 2>/dev/null <"$file"); }; then
    trouble="无法读取 $file (cannot read the webhook file)"
elif [ "${file%/*}" != "${CREDENTIALS_DIRECTORY-}" ] && [ -n "$(find -L "$file" -perm /077)" ]; then
    trouble="$file 可被他人读取，应为 0600 (webhook file must have mode 0600)"
elif ! printf '%s\n' "$url" | grep -Eqx '(https?://[^"\]+)?'; then
    trouble="$file 中没有 http(s) 地址 (no address in the webhook file)"
fi

# shellcheck disable=SC3045 # every sh at hand has it; a core dump would hold tokens
ulimit -c 0 2>/dev/null || :
tmp=$({ mktemp -d || mktemp -d -p /dev/shm || mktemp -d -p /var/tmp; } 2>/dev/null) || exec "$@" --json
trap 'rm -rf "$tmp"' EXIT
exec 3>/dev/null
: >"$tmp/log"
# setsid: a signal reaches the command once, from here; its second one means impatience there.
setsid "$@" --json >"$tmp/json" 2>>"$tmp/log" 3>&- &
pid=$!
trap 'kill -TERM "$pid" 2>/dev/null || :' INT TERM HUP
# By a file, as a pipe would be held open by what the command left behind.
(trap '' INT TERM HUP && exec tail --pid="$pid" -s 0.1 -n +1 -f "$tmp/log" >&"$shown" 2>&3) &
shower=$!
while # a signal to this script ends `wait`, but not the command
    code=0
    wait "$pid" || code=$?
    [ "$code" -gt 128 ] && kill -0 "$pid" 2>/dev/null
do :; done
trap '' INT TERM HUP
wait "$shower" || :
# Its last error, or better the last line that is none of a log.
last=$({ sed -n '/\[ERROR\]/p' "$tmp/log" && sed '/^20..-..-.. /d; /^$/d' "$tmp/log"; } | tail -n 1 | head -c 600 |
    iconv -c -f UTF-8 -t UTF-8 2>/dev/null) || :

# They read only this file, and a run that left no report must not look like the one before.
tell_monitors() {
    prom=/var/lib/refresh_baoming_tokens/${SCHEDULE-}.prom
    [ -e "$prom" ] || [ -e "/etc/refresh_baoming_tokens/${SCHEDULE-}.conf" ] || return
    new=$(mktemp "$prom.XXXXXX") || return
    failed=$code
    [ "$code" != 0 ] || failed=1 # whatever it did, it was no run
    if [ -e "$prom" ]; then
        sed "s/^\(baoming_refresh_exit_code{.*} \).*/\1$failed/" "$prom" >"$new"
    else
        printf 'baoming_refresh_%s{schedule="%s"} %s\n' exit_code "$SCHEDULE" "$failed" \
            last_completion_timestamp_seconds "$SCHEDULE" "$(date +%s)" >"$new"
    fi
    chmod 644 "$new" && mv "$new" "$prom"
}

if ! command -v jq >/dev/null; then
    details='没有安装 jq，无法读取结果'
elif ! details=$(jq -rs '
    def n(key): .[key] | if type == "number" then . else error("not a report") end;
    def part(word; key): if n(key) > 0 then ", \(word) \(n(key))" else "" end;
    if length == 1 then .[0] else error("not one report") end
    | (if .dry_run then "试运行，预计: " else "" end) + "总计 \(n("total")), 成功 \(n("success"))" + part("失败"; "failed")
        + part("保留"; "withheld") + part("删除"; "deleted") + part("清理"; "cleaned") + part("未处理"; "unprocessed"),
      (.failure_reason // empty | "原因: \(.)"),
      "数据库 \(.database), 开始 \(.started_at), 用时 \(n("duration_seconds") * 10 | round / 10) 秒"
    ' "$tmp/json" 2>/dev/null); then
    details='没有收到运行结果'
    tell_monitors 2>/dev/null || :
fi
log=/var/log/refresh_baoming_tokens/refresh.log
clean='' next=''
case $code:${details%%
*} in
0:没有*) outcome='❌ 没有结果' next='手动运行一次: sudo baoming' ;;
0:试运行*删除* | 0:试运行*清理*) outcome='⚠️ 试运行: 将会删除，数据库未改动' next='如果正确，实际运行: sudo baoming' ;;
0:*删除* | 0:*清理*) outcome='⚠️ 完成，有删除' next='误删可找回: sudo baoming --restore-hours 24 --dry-run' ;;
0:*失败* | 0:*保留*) outcome='⚠️ 完成，有失败' next="日志 $log" ;;
0:*) outcome='✅ 完成' clean=1 ;;
1:*) outcome='❌ 退出码 1: 数据库或文件故障，未能完成' next="sudo baoming --self-test；日志 $log" ;;
2:*) outcome='❌ 退出码 2: 参数或配置错误，没有运行' next="按上面的错误修改 /etc/refresh_baoming_tokens 中的设置，再 sudo baoming ${SCHEDULE:+run $SCHEDULE}" ;;
3:*删除* | 3:*清理*) outcome='⚠️ 退出码 3: 部分 Token 失败，已保留；另有删除' next='误删可找回: sudo baoming --restore-hours 24 --dry-run' ;;
3:*成功\ 0*保留*) outcome='⚠️ 退出码 3: 部分 Token 失败，已保留' next="日志 $log" ;;
3:*成功\ 0*) outcome='❌ 退出码 3: 没有一个 Token 刷新成功，都已保留' next="按日志最后一行检查: $log" ;;
3:*) outcome='⚠️ 退出码 3: 部分 Token 失败，已保留' next="下次自动重试；总是失败的见 $log" ;;
5:*) outcome='❌ 退出码 5: API 无响应' next='检查网络、代理和 API；下次运行从其余 Token 继续' ;;
25:*) outcome='🛑 退出码 25: 删除数量超过上限，一个也没删' next="确认确实失效后: sudo baoming 加该计划的 OPTIONS 和 --max-delete 数量（日志中有 in the log: $log）" ;;
126:* | 127:*) outcome="❌ 退出码 $code: 程序没能运行" next='检查密钥文件 mongodb_uri 和程序，再重新运行 install.sh' ;;
130:* | 143:*) outcome="⏹️ 退出码 $code: 被信号停止" next='下次运行从其余 Token 继续' ;;
*) outcome="❌ 退出码 $code: 异常结束$([ "$code" -le 128 ] || [ "$code" -gt 192 ] || echo "，被信号 $((code - 128)) 杀死")" next="日志 $log" ;;
esac
ending=$code
if [ -n "$trouble" ]; then
    echo "notify.sh: $trouble" >&2
    [ "$code" != 0 ] || ending=2
fi
[ -z "$clean" ] || [ -n "$always" ] || exit "$ending"
[ "$code" != 0 ] || last=
text=$(printf '%s\n' "报名工具 Token 刷新${SCHEDULE:+ [$SCHEDULE]} $outcome" "$details" "${last:+最后错误: $last}" \
    "${next:+下一步: $next}" "主机 $(uname -n)" | tr '\t' ' ' | LC_ALL=C tr -d '\000-\011\013-\037\177' | sed '/^$/d')
if [ -n "$trouble" ] || [ -z "$url" ]; then
    printf '%s\n' "$text" >&2
    exit "$ending"
fi

quoted=$(printf '%s\n' "$text" | sed 's/[\\"]/\\&/g; $!s/$/\\n/' | tr -d '\n')
host=$(printf '%s\n' "$url" | sed -E 's|^[^:]*://([^/?#]*@)?([^/:?#]*).*|\2|' | tr '[:upper:]' '[:lower:]')
strict=1
case $host in
oapi.dingtalk.com | qyapi.weixin.qq.com) payload='{"msgtype":"text","text":{"content":"'$quoted'"}}' ;;
open.feishu.cn | open.larksuite.com) payload='{"msg_type":"text","content":{"text":"'$quoted'"}}' ;;
*) payload='{"text":"'$quoted'"}' strict='' ;;
esac
printf '%s' "$payload" >"$tmp/payload"
# The address goes to curl on stdin, where ps does not see it; its own messages are dropped, as the
# address may be in them.
status=0
answer=$(printf 'url = "%s"\n' "$url" | curl --silent --config - --header 'Content-Type: application/json; charset=utf-8' \
    --data-binary "@$tmp/payload" --connect-timeout 5 --max-time 10 --retry 3 --retry-connrefused \
    --retry-max-time 60 --max-filesize 65536 --write-out '\n%{http_code}' 2>/dev/null) || status=$?
http=$(printf '%s\n' "$answer" | tail -n 1)
errcode=$(printf '%s\n' "$answer" | sed -En 's/.*"(errcode|code|StatusCode)" *: *(-?[0-9]{1,9}).*/\2/p' | head -n 1)
# The chat services say 200 also when they refuse a message.
case $status:$http:${strict:+errcode$errcode} in 0:2??: | 0:2??:errcode0) exit "$ending" ;; esac
echo "notify.sh: 无法发送到 $host: curl $status, HTTP ${http:-000}${errcode:+, errcode $errcode} (could not post); 消息:" >&2
printf '%s\n' "$text" >&2
exit "$ending"
