#!/bin/sh
# Posts the outcome of a run of refresh_baoming_tokens to a chat group when it needs attention.
set -eu

usage='usage: refresh_baoming_tokens --json [FLAGS] | notify.sh [-a] WEBHOOK_URL

Reads the JSON object of --json from stdin and, when a token failed, was held
back or deleted, or the exit code is not 0, posts a short text to the webhook:
DingTalk, WeCom and Feishu/Lark in their own form, {"text": "..."} to any other.
  -a           always post
  WEBHOOK_URL  http(s) address; or a file (mode 0600) that holds it, so that ps
               does not show the key. Empty file: the text goes to stderr.

Exits with the exit code of the run, so that a chain goes on as if this were not
there; a message that cannot be delivered is a warning on stderr. No JSON, or a
broken one, is an alarm too, and exit code 1. Usage errors are exit 2.
A DingTalk robot that asks for a keyword: use 报名工具.'

fail() {
    echo "notify.sh: $1" >&2
    exit 2
}

# A stop of the whole chain (Ctrl-C, systemctl stop) reaches this too: the report is still to come.
trap '' INT TERM

always=0
while [ $# -gt 0 ]; do
    case $1 in
    -a) always=1 ;;
    -h | --help)
        printf '%s\n' "$usage"
        exit 0
        ;;
    -*) fail "unknown flag; usage: notify.sh [-a] WEBHOOK_URL" ;;
    *) break ;;
    esac
    shift
done
[ $# = 1 ] || fail 'expects one WEBHOOK_URL; see --help'
case $1 in
http://* | https://*) url=$1 ;;
*)
    { [ -f "$1" ] && [ -r "$1" ]; } || fail 'WEBHOOK_URL is neither an http(s) address nor a readable file'
    url=$(tr -d '[:space:]' <"$1")
    ;;
esac
case $url in
'') ;;
*[!a-zA-Z0-9:/?\&=%._~+,\;@#\$\!\'\(\)\*-]*) fail 'WEBHOOK_URL holds a character that no address has' ;;
http://?* | https://?*) ;;
*) fail 'the webhook file holds no http(s) address' ;;
esac

# Prints three lines: the exit code, whether to post, and the text, in the escaping of JSON strings
# (so that it can be put into the payload as it is). The JSON is flat; anything else is broken.
report=$(LC_ALL=C awk -v host="$(uname -n)" '
function plain(text) { gsub(/[^A-Za-z0-9._-]/, "?", text); return text }
function count(key) { if (value[key] !~ /^[0-9]+$/) broken = 1; return value[key] + 0 }
function part(label, key) { return count(key) > 0 ? ", " label " " count(key) : "" }
function unquoted(key,    text) {
    text = value[key]
    if (text !~ /^"/) { broken = broken || text == ""; return text }
    return substr(text, 2, length(text) - 2)
}
{ rest = rest $0 " " }
END {
    blank = "[ \t\r]*"
    quoted = "\"([^\"\\\\\001-\037]|\\\\[\"\\\\/bfnrtu])*\""
    atom = "(" quoted "|-?[0-9][-+.0-9eE]*|true|false|null)"
    started = sub("^" blank "{" blank, "", rest)
    while (match(rest, "^" quoted blank ":" blank atom blank "[,}]" blank)) {
        pair = substr(rest, 1, RLENGTH)
        rest = substr(rest, RLENGTH + 1)
        closed = sub("}" blank "$", "", pair)
        sub("," blank "$", "", pair)
        match(pair, "^" quoted)
        key = substr(pair, 2, RLENGTH - 2)
        pair = substr(pair, RLENGTH + 1)
        sub("^" blank ":" blank, "", pair)
        sub(blank "$", "", pair)
        value[key] = pair
        if (closed) break
    }
    broken = !started || !closed || rest != ""
    code = count("exit_code")
    broken = broken || code > 255
    text = part("失败", "failed") part("保留", "withheld") part("删除", "deleted") \
        part("清理", "cleaned") part("未处理", "unprocessed")
    wanted = code > 0 || count("failed") + count("withheld") + count("deleted") + count("cleaned") > 0
    stopped = unquoted("stopped")
    dry = unquoted("dry_run") == "true" ? " (试运行)" : ""
    details = "总计 " count("total") ", 成功 " count("success") text "\\n" \
        "数据库 " unquoted("database") ", 开始 " unquoted("started_at") ", 用时 " sprintf("%.1f", unquoted("duration_seconds")) " 秒"
    if (broken) {
        code = 1
        wanted = 1
        outcome = "❌ 没有收到运行结果"
        details = "程序未能启动或被中断；请手动运行一次查看原因"
    } else if (code > 0) {
        outcome = "❌ 退出码 " code
        if (stopped == "database") outcome = outcome "，数据库不可用"
        if (stopped == "api_unreachable") outcome = outcome "，API 无法访问"
        if (stopped == "delete_limit") outcome = outcome "，删除数量超过上限，已保留"
        if (stopped == "signal") outcome = outcome "，被信号中止"
    } else outcome = wanted ? "⚠️ 完成，有删除" : "✅ 完成"
    print code
    print wanted + 0
    print "报名工具 Token 刷新" dry ": " outcome "\\n" details "\\n主机 " plain(host)
}')
code=${report%%
*}
report=${report#*
}
wanted=${report%%
*}
text=${report#*
}
if [ "$wanted" = 0 ] && [ "$always" = 0 ]; then
    exit "$code"
fi
if [ -z "$url" ]; then
    printf '%s\n' "$text" | awk '{ gsub(/\\n/, "\n"); print }' >&2
    exit "$code"
fi

host=${url#*://}
host=${host%%[/?#]*}
host=${host##*@}
host=$(printf %s "${host%%:*}" | tr '[:upper:]' '[:lower:]')
case $host in
oapi.dingtalk.com | qyapi.weixin.qq.com)
    payload='{"msgtype":"text","text":{"content":"'$text'"}}'
    accepted='"errcode" *: *0[,} ]'
    ;;
open.feishu.cn | open.larksuite.com)
    payload='{"msg_type":"text","content":{"text":"'$text'"}}'
    accepted='"(code|StatusCode)" *: *0[,} ]'
    ;;
*)
    payload='{"text":"'$text'"}'
    accepted=
    ;;
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
case $http in
2??)
    # The chat services say 200 also when they refuse a message.
    if [ "$status" = 0 ] && { [ -z "$accepted" ] || printf '%s' "$answer" | grep -Eq "$accepted"; }; then
        exit "$code"
    fi
    ;;
esac
errcode=$(printf '%s' "$answer" | sed -En 's/.*"(errcode|code|StatusCode)" *: *(-?[0-9]{1,9}).*/\2/p' | head -n 1)
echo "notify.sh: could not post to $host (curl $status, HTTP ${http:-none}${errcode:+, errcode $errcode}); the message was:" >&2
printf '%s\n' "$text" | awk '{ gsub(/\\n/, "\n"); print }' >&2
exit "$code"
