#!/bin/sh
# Tells from the metrics files how the schedules of refresh_baoming_tokens went; for Nagios and the like.
set -eu

usage='用法 / usage: monitor_refresh.sh [FILE [MAX_AGE_HOURS]]

每个计划一行；不给 FILE 时检查所有计划 / a line per schedule; without FILE all of
/var/lib/refresh_baoming_tokens/*.prom. MAX_AGE_HOURS: 12 for active, 48 for all, 336 for cleanup, else 12.
  0 正常 ok        1 警告 warning: some failed, held back, stopped
  2 严重 critical: 过期 (no run ended in time), 失败 (the last one failed), 全部失败 (no token succeeded)
  3 未知 unknown: 不存在 (missing), 无法读取 (unreadable), 不是指标文件 (something else)'

result=0
say() { # EXIT_CODE TEXT; the order of gravity is 2, 3, 1, 0
    case $1 in 0) word='OK 正常' ;; 1) word='WARNING 警告' ;; 2) word='CRITICAL 严重' ;; *) word='UNKNOWN 未知' ;; esac
    printf '%s: %s\n' "$word" "$2"
    case $result$1 in 0? | 1[23] | 32) result=$1 ;; esac
}
judge() { # FILE MAX_AGE_HOURS
    schedule=${1##*/}
    schedule=${schedule%.prom}
    [ -e "$1" ] || { say 3 "$schedule 指标文件 $1 不存在，尚未运行过 (missing)" && return; }
    { [ -f "$1" ] && [ -r "$1" ]; } || { say 3 "$schedule 无法读取 $1 (unreadable)" && return; }
    # shellcheck disable=SC2046 # an exit code and a text
    verdict=$(LC_ALL=C awk -v limit="$2" -v now="$(date +%s)" -v schedule="$schedule" '
        function say(code, text) { print code; print schedule " " text; exit }
        /^baoming_refresh_/ && $NF ~ /^[0-9]/ {
            name = $1
            sub(/[{].*/, "", name)
            if (match($0, /result="[a-z]*"/)) name = substr($0, RSTART + 8, RLENGTH - 9)
            value[name] = $NF
        }
        END {
            ended = "baoming_refresh_last_completion_timestamp_seconds"
            if (!(ended in value) || !("baoming_refresh_exit_code" in value)) say(3, FILENAME " 不是指标文件 (no metrics in it)")
            code = value["baoming_refresh_exit_code"] + 0
            age = (now - value[ended]) / 3600
            counts = sprintf("%.1f 小时前: 成功 %d, 失败 %d, 删除 %d, 保留 %d, 未处理 %d", age, value["success"], value["failed"], \
                value["deleted"], value["withheld"], value["unprocessed"])
            if (age > limit) say(2, "过期: " limit " 小时内没有运行结束 (stale); " counts)
            if (age < -1) say(3, "指标来自未来，检查时钟 (from the future); " counts)
            if (code == 3 && value["success"] == 0) say(2, "全部失败 (all failed); " counts)
            if (code == 3) say(1, "部分失败 (some failed); " counts)
            if (code == 25) say(1, "删除被保留，等待决定 (deletions held back); " counts)
            if (code == 130 || code == 143) say(1, "被信号停止 (stopped); " counts)
            if (code > 0) say(2, "失败: 退出码 " code " (failed); " counts)
            say(0, counts)
        }' "$1")
    say "${verdict%%
*}" "${verdict#*
}"
}

case ${1-} in -h | --help) printf '%s\n' "$usage" && exit ;; esac
limit=${2-}
case $# in
0) set -- /var/lib/refresh_baoming_tokens/*.prom ;;
1 | 2)
    [ -n "$1" ] || set -- /
    [ $# = 1 ] || case $limit in
    *[!0-9.]* | *.*.* | .* | *. | '') limit=bad ;;
    *[1-9]*) ;;
    *) limit=bad ;;
    esac
    case $1 in /*) set -- "$1" ;; *) set -- "./$1" ;; esac # a name with '=' would be a variable to awk
    ;;
*) limit=bad ;;
esac
if [ "$limit" = bad ]; then say 3 '参数错误，MAX_AGE_HOURS 是大于 0 的数 (bad arguments; see --help)' && exit 3; fi
for file in "$@"; do
    case ${file##*/} in all.prom) usual=48 ;; cleanup.prom) usual=336 ;; *) usual=12 ;; esac
    judge "$file" "${limit:-$usual}"
done
exit "$result"
