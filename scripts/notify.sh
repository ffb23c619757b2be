#!/bin/sh
# Runs a command and posts to a chat group how it ended, when that needs attention.
set -eu

usage='用法 / usage: notify.sh [-a] [-s] WEBHOOK COMMAND [ARGUMENTS]

运行 COMMAND（另加 --json），按它的 JSON、退出码和最后一行错误决定是否发消息，并以同样的退出码结束。
Runs COMMAND with --json added; posts when a token failed, was held back or deleted, when the exit
code is not 0, or when no report came; ends with the exit code of COMMAND.
  -a       总是发送 / always post
  -s       不转发 COMMAND 的 stderr / keep the stderr of COMMAND to itself (cron would mail it)
  WEBHOOK  存放机器人地址的文件，权限 0600；空文件：消息输出到 stderr / a file (mode 0600) that holds
           the address of a DingTalk, WeCom, Feishu or other robot; empty: to stderr instead
钉钉机器人的关键词 / keyword for DingTalk: 报名工具'

fail() {
    echo "notify.sh: $1" >&2
    exit 2
}

always=0 shown=2
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
url='' trouble=''
if ! [ -f "$1" ] || ! url=$(tr -d '[:space:]' <"$1" 2>/dev/null); then
    trouble="无法读取 $1 (cannot read the webhook file)"
elif [ "${1%/*}" != "${CREDENTIALS_DIRECTORY-}" ] && [ -n "$(find -L "$1" -perm /077)" ]; then
    trouble="$1 可被他人读取，应为 0600 (webhook file must have mode 0600)" url=
else
    case $url in
    '') ;;
    *[!a-zA-Z0-9:/?\&=%._~+,\;@#\$\!\'\(\)\*-]*) trouble="$1 含有地址中不会有的字符 (not an address)" url='' ;;
    http://?* | https://?*) ;;
    *) trouble="$1 中没有 http(s) 地址 (no address in the webhook file)" url='' ;;
    esac
fi
shift

tmp=$(mktemp -d) || exec "$@" --json
trap 'rm -rf "$tmp"' EXIT
mkfifo "$tmp/log" "$tmp/kept"
exec 3>/dev/null
# Both see the end of the log by themselves; no signal may cut it short.
(trap '' INT TERM HUP; exec tee "$tmp/kept" <"$tmp/log" >&"$shown" 2>&3) &
(trap '' INT TERM HUP; LC_ALL=C exec awk '/\[ERROR\]/ { error = $0 } !/^20..-..-.. / && NF { other = $0 }
    END { print substr(other != "" ? other : error, 1, 600) }' <"$tmp/kept" >"$tmp/last") &
reader=$!
# setsid: a signal reaches the command once, from here; its second one means impatience there.
setsid sh -c 'exec "$@"' sh "$@" --json >"$tmp/json" 2>"$tmp/log" 3>&- &
pid=$!
trap 'kill -TERM "$pid" 2>/dev/null || :' INT TERM HUP
code=0
wait "$pid" || code=$?
while [ "$code" -gt 128 ]; do # perhaps it was `wait` that a signal ended
    again=0
    wait "$pid" || again=$?
    if [ "$again" = 127 ] || { [ "$again" = "$code" ] && ! kill -0 "$pid" 2>/dev/null; }; then break; fi
    code=$again
done
trap '' INT TERM HUP
wait "$reader" || :
last=$(iconv -c -f UTF-8 -t UTF-8 "$tmp/last" 2>/dev/null) || :

wanted=1
if ! command -v jq >/dev/null; then
    details='没有安装 jq，无法读取结果'
elif details=$(jq -rs --argjson code "$code" '
    def n(key): .[key] | if type == "number" then . else error("not a report") end;
    def part(word; key): if n(key) > 0 then ", \(word) \(n(key))" else "" end;
    if length == 1 then .[0] else error("not one report") end
    | $code + n("failed") + n("withheld") + n("deleted") + n("cleaned") + n("exit_code"),
      "总计 \(n("total")), 成功 \(n("success"))" + part("失败"; "failed") + part("保留"; "withheld")
        + part("删除"; "deleted") + part("清理"; "cleaned") + part("未处理"; "unprocessed")
        + if .dry_run then " (试运行)" else "" end,
      (.failure_reason // empty | "原因: \(.)"),
      "数据库 \(.database), 开始 \(.started_at), 用时 \(n("duration_seconds") * 10 | round / 10) 秒"
    ' "$tmp/json" 2>/dev/null) && [ -n "$details" ]; then
    wanted=${details%%
*}
    details=${details#*
}
else
    details='没有收到运行结果'
fi
log=/var/log/refresh_baoming_tokens/refresh.log
case $code in
0) outcome='✅ 完成' next='' ;;
1) outcome='❌ 退出码 1: 数据库或文件故障，未能完成' next="sudo baoming --self-test；日志 $log" ;;
2) outcome='❌ 退出码 2: 参数或配置错误，没有运行' next='按上面的错误修改设置，再 sudo baoming --self-test' ;;
3) outcome='⚠️ 退出码 3: 部分 Token 失败，已保留' next="下次自动重试；总是失败的见 $log" ;;
5) outcome='❌ 退出码 5: API 无响应' next='检查网络、代理和 API；下次运行从其余 Token 继续' ;;
25) outcome='🛑 退出码 25: 删除数量超过上限，一个也没删' next='确认确实失效后 sudo baoming --max-delete 数量' ;;
126 | 127) outcome="❌ 退出码 $code: 程序没能运行" next='按上面的错误处理，或重新运行 install.sh' ;;
130 | 143) outcome="⏹️ 退出码 $code: 被信号停止" next='下次运行从其余 Token 继续' ;;
*) outcome="❌ 退出码 $code: 异常结束$([ "$code" -le 128 ] || echo "，被信号 $((code - 128)) 杀死")" next="日志 $log" ;;
esac
if [ "$code" = 0 ] && [ "$wanted" != 0 ]; then
    outcome='⚠️ 完成，有删除' next='误删可找回: sudo baoming --restore-hours 24 --dry-run'
    case $details in 没有*) outcome='❌ 没有结果' next='手动运行一次: sudo baoming' ;; esac
fi
if [ -n "$trouble" ]; then echo "notify.sh: $trouble" >&2; fi
if [ -n "$trouble" ] && [ "$code" = 0 ]; then ending=2; else ending=$code; fi
if [ "$wanted" = 0 ] && [ "$always" = 0 ]; then exit "$ending"; fi
if [ "$code" = 0 ]; then last=; fi
text=$(printf '%s\n' "报名工具 Token 刷新${SCHEDULE:+ [$SCHEDULE]} $outcome" "$details" "${last:+最后错误: $last}" \
    "${next:+下一步: $next}" "主机 $(uname -n)" | tr '\t' ' ' | LC_ALL=C tr -d '\000-\011\013-\037\177' | sed '/^$/d')
if [ -z "$url" ]; then
    printf '%s\n' "$text" >&2
    exit "$ending"
fi

host=${url#*://}
host=${host%%[/?#]*}
host=${host##*@}
host=$(printf %s "${host%%:*}" | tr '[:upper:]' '[:lower:]')
quoted=$(printf '%s\n' "$text" | sed 's/[\\"]/\\&/g' | LC_ALL=C awk '{ printf "%s%s", (NR > 1 ? "\\n" : ""), $0 }')
accepted=
case $host in
oapi.dingtalk.com | qyapi.weixin.qq.com) payload='{"msgtype":"text","text":{"content":"'$quoted'"}}' accepted='"errcode" *: *0[,} ]' ;;
open.feishu.cn | open.larksuite.com) payload='{"msg_type":"text","content":{"text":"'$quoted'"}}' accepted='"(code|StatusCode)" *: *0[,} ]' ;;
*) payload='{"text":"'$quoted'"}' ;;
esac
# Address and payload go to curl by a config on stdin, where ps does not see them; its own messages
# are dropped, as the address may be in them.
quote() { printf '%s' "$1" | sed 's/[\\"]/\\&/g'; }
status=0
answer=$(
    curl --silent --config - --connect-timeout 5 --max-time 10 --retry 3 --retry-connrefused \
        --retry-max-time 60 --max-filesize 65536 --write-out '\n%{http_code}' 2>/dev/null <<EOC
url = "$(quote "$url")"
header = "Content-Type: application/json; charset=utf-8"
data = "$(quote "$payload")"
EOC
) || status=$?
http=$(printf '%s\n' "$answer" | tail -n 1)
case $status:$http in
# The chat services say 200 also when they refuse a message.
0:2??) if [ -z "$accepted" ] || printf '%s' "$answer" | grep -Eq "$accepted"; then exit "$ending"; fi ;;
esac
errcode=$(printf '%s' "$answer" | sed -En 's/.*"(errcode|code|StatusCode)" *: *(-?[0-9]{1,9}).*/\2/p' | head -n 1)
echo "notify.sh: 无法发送到 $host: curl $status, HTTP ${http:-000}${errcode:+, errcode $errcode} (could not post); 消息:" >&2
printf '%s\n' "$text" >&2
exit "$ending"
