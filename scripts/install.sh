#!/bin/sh
# Puts refresh_baoming_tokens and what operators need around it in place, or takes it away again.
set -eu

usage='用法 / usage: [DESTDIR=TREE] install.sh [BINARY]
              [DESTDIR=TREE] install.sh --uninstall

安装或升级程序、脚本、systemd 单元、cron 和 logrotate 文件，不启动任何东西；密钥和改过的配置保留。
Installs or upgrades the binary (default: beside this script, else target/static of its repository),
scripts, systemd units, cron and logrotate file, and empty secret files. Asks nothing, starts nothing;
may be run at any time, also during a run. A secret is never touched, a changed configuration kept.
卸载：停用并删除定时任务，保留密钥、改过的配置和日志 / --uninstall switches off and removes schedules,
also changed ones (kept in /etc/refresh_baoming_tokens/kept); secrets, changed settings and logs stay.
DESTDIR: 打包用的路径前缀 / put before every path, for packagers.'

fail() {
    echo "install.sh: $1" >&2
    exit "${2-1}"
}

name=refresh_baoming_tokens
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR-}
bin=/usr/local/bin lib=/usr/local/lib/$name etc=/etc/$name units=/etc/systemd/system
state=/var/lib/$name log=/var/log/$name
# What was installed last, to tell a changed configuration file from an outdated one.
shipped=/usr/local/share/$name
exporter=/var/lib/prometheus/node-exporter
# One per line: file of this repository, where it goes. What is below $etc stays when changed.
configs="
cron/$name /etc/cron.d/$name
logrotate/$name /etc/logrotate.d/$name
systemd/$name.sysusers /etc/sysusers.d/$name.conf
systemd/$name@.service $units/$name@.service
systemd/$name-failed@.service $units/$name-failed@.service
systemd/$name@active.timer $units/$name@active.timer
systemd/$name@all.timer $units/$name@all.timer
systemd/$name@cleanup.timer $units/$name@cleanup.timer
systemd/settings.conf $etc/settings.conf
systemd/active.conf $etc/active.conf
systemd/all.conf $etc/all.conf
systemd/cleanup.conf $etc/cleanup.conf
"
has_systemd() { [ -z "$root" ] && [ -d /run/systemd/system ]; }
say() { printf '%s %s\n' "$1" "$root$2"; }

# The new file appears under its name at once and whole, also over a running program.
put() { # FILE PATH MODE
    if cmp -s "$1" "$root$2"; then return; fi
    mkdir -p "$(dirname "$root$2")"
    cp "$1" "$root$2.tmp.$$"
    chmod "$3" "$root$2.tmp.$$"
    mv "$root$2.tmp.$$" "$root$2"
    say '已安装 installed' "$2"
}
# A file as it is installed: timers follow the zone of the settings.
render() { # FILE
    case $1 in
    *.timer) sed "s|^OnCalendar=.*|&${zone:+ $zone}|" "$here/$1" ;;
    *) cat "$here/$1" ;;
    esac
}
install_config() { # FILE PATH
    render "$1" >"$work"
    if [ ! -e "$root$2" ] && [ -e "$root$shipped/$1" ]; then
        say '保持删除 kept away' "$2 (新文件 the new one: $root$shipped/$1)"
    elif [ -e "$root$2" ] && ! cmp -s "$work" "$root$2" && ! cmp -s "$root$shipped/$1" "$root$2"; then
        say '保留 kept' "$2 (改过 changed here; 新文件 the new one: $root$shipped/$1)"
    else
        put "$work" "$2" 644
    fi
    mkdir -p "$(dirname "$root$shipped/$1")"
    cp "$work" "$root$shipped/$1"
    chmod 644 "$root$shipped/$1"
}
uninstall_config() { # FILE PATH
    [ -e "$root$2" ] || return 0
    if cmp -s "$root$shipped/$1" "$root$2"; then
        rm "$root$2"
        say '已删除 removed' "$2"
    else
        case $2 in
        "$etc"/*) say '保留 kept' "$2 (改过 changed here)" ;;
        *) put_aside "$2" ;;
        esac
    fi
}
put_aside() { # PATH: no longer live, but not lost
    mkdir -p "$root$etc/kept"
    mv "$root$1" "$root$etc/kept/"
    say '已停用 switched off' "$1 (移到 moved to $root$etc/kept)"
}
each_config() { # COMMAND
    printf '%s' "$configs" | while read -r file path; do
        [ -z "$file" ] || "$1" "$file" "$path"
    done
}
remove() { # PATH…
    for path in "$@"; do
        { [ -e "$root$path" ] || [ -L "$root$path" ]; } && rm -rf "$root${path:?}" && say '已删除 removed' "$path"
    done || :
}

install_all() {
    command -v jq >/dev/null || fail '没有安装 jq，请先安装，例如 apt-get install jq (jq is not installed)'
    binary=${1-}
    if [ -z "$binary" ]; then
        for binary in "$here/$name" "$here/../target/static/$name"; do [ ! -f "$binary" ] || break; done
    fi
    [ -f "$binary" ] || fail "找不到程序 $binary，先用 scripts/build-static.sh 编译或给出路径 (no binary)"
    new=$("$(realpath "$binary")" --version 2>/dev/null) || fail "程序 $binary 在这台机器上无法运行 (its --version fails; is it built for this machine?)"
    old=$("$root$bin/$name" --version 2>/dev/null) || old=
    work=$(mktemp)
    trap 'rm -f "$work"' EXIT

    # 0.1's cron lines piped into a notify.sh of other arguments: the same times, with the new command.
    cron=$root/etc/cron.d/$name
    if grep -q '^RUN=flock' "$cron" 2>/dev/null; then
        mkdir -p "$root$etc/kept"
        cp "$cron" "$root$etc/kept/cron-0.1"
        sed '/^RUN=/d; /^NOTIFY=/d; /^TZ=/d; /^MONGODB_URI_FILE=/d; s/[$]RUN --max-age-days 7 2>.*/baoming run active/
            s/[$]RUN --cleanup-days 30 2>.*/baoming run cleanup/; s/[$]RUN 2>.*/baoming run all/' "$cron" >"$work"
        put "$work" "/etc/cron.d/$name" 644
        # Nothing was switched on: the new file is as good.
        grep -q '^[^#].* root ' "$cron" || rm -f "$cron" "$root$shipped/cron/$name"
        ! grep -s '[$]RUN' "$cron" || say '以上各行请改为 baoming run … (change these lines by hand)' "/etc/cron.d/$name"
    fi
    settings=$root$etc/settings.conf
    [ -e "$settings" ] || settings=$here/systemd/settings.conf
    zone=$(sed -n 's/^TZ=:\{0,1\}//p' "$settings" | tr -d "\"' ")
    if [ -n "$zone" ] && [ ! -e "/usr/share/zoneinfo/$zone" ]; then
        echo "TZ=$zone 不是 systemd 认识的时区，定时器用服务器的时区 (timers follow the server's zone)"
        zone=
    fi
    put "$binary" "$bin/$name" 755
    put "$here/baoming" "$bin/baoming" 755
    for tool in monitor_refresh.sh notify.sh refresh_sharded.sh; do put "$here/$tool" "$lib/$tool" 755; done
    put "$here/prometheus/$name.rules.yml" "$shipped/prometheus/$name.rules.yml" 644
    each_config install_config
    for secret in mongodb_uri webhook_url; do
        [ -e "$root$etc/$secret" ] || { (umask 077 && : >"$root$etc/$secret") && say '已创建 created' "$etc/$secret (0600)"; }
    done
    mkdir -p "$root$state" "$root$log"
    # Under 0.1's DynamicUser= these were links, which systemd turns back.
    [ -L "$root$state" ] || chmod 755 "$root$state"
    [ -L "$root$log" ] || chmod 700 "$root$log"
    # Without the label of a schedule these of 0.1 would ring for ever.
    remove "$state/refresh.prom" "$exporter/$name.prom"
    if has_systemd; then
        systemd-sysusers "/etc/sysusers.d/$name.conf" || :
        systemctl daemon-reload
    fi
    if [ -z "$old" ]; then
        echo "已安装 $new (installed)"
    elif [ "$old" = "$new" ]; then
        echo "已是 $new (unchanged)"
    else
        echo "已从 ${old#* } 升级到 ${new#* } (upgraded from ${old#* } to ${new#* })"
    fi
    left=
    todo() { left="$left
  - $1"; }
    [ -s "$root$etc/mongodb_uri" ] || todo "sudoedit $root$etc/mongodb_uri     数据库连接字符串 (connection string); 然后 then: sudo baoming --self-test"
    [ -s "$root$etc/webhook_url" ] || todo "sudoedit $root$etc/webhook_url     可选：机器人地址 (optional: a chat robot)"
    [ -n "$old" ] || todo "sudoedit $root$etc/settings.conf   TZ"
    if ! grep -q '^[^#].*baoming run' "$cron" 2>/dev/null && [ -z "$(find "$root$units" -name "$name@*.timer" -type l 2>/dev/null)" ]; then
        todo "启用 switch on: systemctl enable --now $name@active.timer $name@all.timer $name@cleanup.timer
    或 or: 去掉 take away # in $root/etc/cron.d/$name"
    fi
    echo "${left:+还要做 (left to do):}${left:-没有待办 (nothing left to do)}"
}

uninstall_all() {
    timers=$(cd "$root$units" 2>/dev/null && find . -name "$name@*.timer" | sed 's|.*/||' | sort -u)
    if has_systemd; then
        # shellcheck disable=SC2086 # a list
        [ -z "$timers" ] || systemctl disable --now $timers || :
        systemctl stop "$name@*.service" || :
        systemctl reset-failed "$name*" || :
    fi
    find "$root$units" -name "$name@*.timer" -type l -exec rm {} + 2>/dev/null || :
    each_config uninstall_config
    # Schedules and drop-ins that somebody added.
    for file in "$root$units/$name"* "$root/etc/cron.d/$name"*; do
        [ ! -e "$file" ] || put_aside "${file#"$root"}"
    done
    for link in "$root$exporter"/*.prom; do
        case $(readlink "$link" || :) in "$state"/*) rm "$link" && say '已删除 removed' "${link#"$root"}" ;; esac
    done
    for file in "$root$state"/*.prom; do remove "${file#"$root"}"; done
    remove "$bin/$name" "$bin/baoming" "$lib" "$shipped" "$exporter/$name.prom"
    for secret in mongodb_uri webhook_url; do
        if [ -s "$root$etc/$secret" ]; then say '保留 kept' "$etc/$secret (密钥 a secret)"; else remove "$etc/$secret"; fi
    done
    for dir in "$state" "$log" "$etc"; do
        [ -d "$root$dir" ] || continue
        if rmdir "$root$dir" 2>/dev/null; then say '已删除 removed' "$dir"; else say '保留 kept' "$dir"; fi
    done
    if has_systemd; then systemctl daemon-reload; fi
    [ -n "$root" ] || ! id "$name" >/dev/null 2>&1 || echo "保留 kept 系统用户 (system user) $name"
    ! grep -ls "baoming" "$root"/var/spool/cron/crontabs/* 2>/dev/null || echo '以上个人 crontab 提到 baoming，请手动删除 (these crontabs name it; edit them by hand)'
}

action=install_all
case ${1-} in
-h | --help) printf '%s\n' "$usage" && exit ;;
--uninstall) action=uninstall_all && shift ;;
-*) fail '未知参数 (unknown flag; see --help)' 2 ;;
esac
[ $# -le 1 ] || fail '参数过多 (too many arguments; see --help)' 2
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail '需要 root，或设置 DESTDIR (must be root; or set DESTDIR)'
umask 022
$action "$@"
