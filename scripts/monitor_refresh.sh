#!/bin/sh
# Tells from the metrics files how the schedules of refresh_baoming_tokens went; for Nagios and the like.
set -eu

usage='用法 / usage: monitor_refresh.sh [FILE [MAX_AGE_HOURS]]
每个计划一行 / a line per schedule (all of /var/lib/refresh_baoming_tokens/*.prom); 12 hours for active, 48 for all, 336 for cleanup.
  0 正常 ok   1 警告 warning: some failed, held back, stopped   2 严重 critical: 过期 stale, 失败 failed, 全部失败 all failed
  3 未知 unknown: 不存在 missing, 无法读取 unreadable, 不是指标文件 something else'

case ${1-} in -h | --help) printf '%s\n' "$usage" && exit ;; esac
limit=${2-}
if [ $# = 0 ]; then
    state=/var/lib/refresh_baoming_tokens
    set -- "$state"/*.prom
    # Those that are switched on and have not run yet, too.
    for schedule in $({
        sed -n 's/^[^#].*baoming run \([A-Za-z0-9_-]*\).*/\1/p' /etc/cron.d/refresh_baoming_tokens
        find /etc/systemd/system/*.wants -name 'refresh_baoming_tokens@*.timer' | sed 's/.*@\(.*\)[.]timer/\1/'
    } 2>/dev/null); do
        [ -e "$state/$schedule.prom" ] || set -- "$@" "$state/$schedule.prom"
    done
    [ -e "$1" ] || [ $# = 1 ] || shift # the pattern, where nothing has run yet
else
    set -- "$1"
fi
result=0
for file in "$@"; do
    schedule=${file##*/}
    schedule=${schedule%.prom}
    case $schedule in all) usual=48 ;; cleanup) usual=336 ;; *) usual=12 ;; esac
    metrics=/dev/null code=0
    if [ ! -e "$file" ]; then
        trouble="指标文件 $file 不存在，尚未运行过 (missing)"
    elif ! { [ -f "$file" ] && [ -r "$file" ]; }; then
        trouble="无法读取 $file (unreadable)"
    else
        trouble='' metrics=$file
    fi
    FILE=$file TROUBLE=$trouble SCHEDULE=$schedule LC_ALL=C awk -v limit="${limit:-$usual}" -v now="$(date +%s)" '
        function say(code, text) {
            split("OK 正常,WARNING 警告,CRITICAL 严重,UNKNOWN 未知", word, ",")
            print word[code + 1] ": " ENVIRON["SCHEDULE"] " " text
            exit code
        }
        /^baoming_refresh_/ && $NF ~ /^[0-9]/ {
            name = $1
            sub(/[{].*/, "", name)
            if (match($0, /result="[a-z]*"/)) name = substr($0, RSTART + 8, RLENGTH - 9)
            value[name] = $NF
        }
        END {
            ended = "baoming_refresh_last_completion_timestamp_seconds"
            code = value["baoming_refresh_exit_code"]
            age = (now - value[ended]) / 3600
            counts = sprintf("%.1f 小时前: 成功 %d, 失败 %d, 删除 %d, 保留 %d, 未处理 %d", age, value["success"], value["failed"],
                value["deleted"], value["withheld"], value["unprocessed"])
            if (limit !~ /^[0-9]+([.][0-9]+)?$/ || limit + 0 == 0) say(3, "MAX_AGE_HOURS 是大于 0 的数 (expects a number above 0)")
            if (ENVIRON["TROUBLE"] != "") say(3, ENVIRON["TROUBLE"])
            if (value[ended] == "" || code == "") say(3, ENVIRON["FILE"] " 不是指标文件 (no metrics in it)")
            if (age > limit + 0) say(2, "过期: " limit " 小时内没有运行结束 (stale); " counts)
            if (age < -1) say(3, "指标来自未来，检查时钟 (from the future); " counts)
            if (code == 3 && value["failed"] > 0 && value["success"] + value["deleted"] + value["withheld"] == 0) say(2, "全部失败 (all failed); " counts)
            if (code == 3) say(1, "部分失败 (some failed); " counts)
            if (code == 25) say(1, "删除被保留，等待决定 (deletions held back); " counts)
            if (code == 130 || code == 143) say(1, "被信号停止 (stopped); " counts)
            if (code > 1 && code != 5) counts = "上一次 (the one before) " counts # it left no report
            if (code > 0) say(2, "失败: 退出码 " code " (failed); " counts)
            say(0, counts)
        }' <"$metrics" || code=$?
    case $result$code in 0? | 1[23] | 32) result=$code ;; esac # the order of gravity is 2, 3, 1, 0
done
exit "$result"
