#!/bin/sh
# Puts refresh_baoming_tokens and what operators need around it in place, or takes it away again.
set -eu
umask 022

usage='用法 / usage: [DESTDIR=TREE] install.sh BINARY | --uninstall
安装、升级或卸载，不启动任何东西；密钥、改过的配置和日志保留，改过的定时任务停用后移到 /etc/refresh_baoming_tokens/kept。
Installs, upgrades or takes away, also during a run; starts nothing. Secrets, changed files and logs stay; a changed schedule
is switched off by --uninstall and kept in /etc/refresh_baoming_tokens/kept. DESTDIR (路径前缀) is for packagers.'

fail() {
    echo "install.sh: $1" >&2
    exit "${2-1}"
}

name=refresh_baoming_tokens
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR-}
bin=/usr/local/bin lib=/usr/local/lib/$name etc=/etc/$name units=/etc/systemd/system
state=/var/lib/$name log=/var/log/$name exporter=/var/lib/prometheus/node-exporter
# What was installed last, to tell a changed configuration file from an outdated one.
shipped=/usr/local/share/$name
cron=$root/etc/cron.d/$name

say() { printf '%s %s\n' "$1" "$root$2"; }
# With DESTDIR, and where systemd does not run, there is nothing to tell it.
systemd() { [ -n "$root" ] || [ ! -d /run/systemd/system ] || "$@" || :; }
# Where a file of ours goes.
place() { echo "$1" | sed "s|^systemd/\(.*\.conf\)|$etc/\1|; s|^systemd|$units|; s|^\([a-z][a-z]*\)/|/etc/\1.d/|"; }
# The new file appears under its name at once and whole, also over a running program.
put() { # FILE PATH MODE
    if cmp -s "$1" "$root$2"; then return; fi
    install -D -m "$3" "$1" "$root$2.new"
    mv "$root$2.new" "$root$2"
    say '已安装 installed' "$2"
}
remove() { # PATH…
    for path in "$@"; do
        if [ -e "$root$path" ] || [ -L "$root$path" ]; then
            rm -rf "$root${path:?}"
            say '已删除 removed' "$path"
        fi
    done
}

install_all() {
    command -v jq >/dev/null || fail '没有安装 jq，请先安装，例如 apt-get install jq (jq is not installed)'
    new=$("$(realpath "$1" 2>/dev/null)" --version 2>/dev/null) || new=
    case $new in
    "$name "*) ;;
    *) fail "程序 $1 不存在，不是 $name，或在这台机器上无法运行 (its --version fails; is it built for this machine?)" ;;
    esac
    old=$("$root$bin/$name" --version 2>/dev/null) || old=
    work=$(mktemp)
    trap 'rm -f "$work"' EXIT

    # 0.1's cron lines piped into a notify.sh of other arguments: the same times, with the new command.
    if grep -q '^[^#].*[$]RUN' "$cron" 2>/dev/null; then
        install -D -m 644 "$cron" "$root$etc/kept/cron-0.1"
        sed '/^RUN=/d; /^NOTIFY=/d; /^TZ=/d; /^MONGODB_URI_FILE=/d; s/[$]RUN --max-age-days 7 2>.*/baoming run active/
            s/[$]RUN --cleanup-days 30 2>.*/baoming run cleanup/; s/[$]RUN 2>.*/baoming run all/' "$cron" >"$work"
        put "$work" "/etc/cron.d/$name" 644
        ! grep '[$]RUN' "$cron" || say '以上各行请改为 baoming run … (change these lines by hand)' "/etc/cron.d/$name"
    fi

    settings=$root$etc/settings.conf
    [ -e "$settings" ] || settings=$here/systemd/settings.conf
    zone=$(sed -n 's/^TZ=:\{0,1\}//p' "$settings" | tr -d "\"' ")
    if [ -n "$zone" ] && [ ! -e "/usr/share/zoneinfo/$zone" ]; then
        echo "TZ=$zone 不是 systemd 认识的时区，定时器用服务器的时区 (timers follow the server's zone)"
        zone=
    fi
    put "$1" "$bin/$name" 755
    put "$here/baoming" "$bin/baoming" 755
    for tool in monitor_refresh.sh notify.sh refresh_sharded.sh; do put "$here/$tool" "$lib/$tool" 755; done
    put "$here/prometheus/$name.rules.yml" "$shipped/prometheus/$name.rules.yml" 644
    for file in $(cd "$here" && find cron logrotate systemd sysusers -type f); do
        path=$(place "$file") before=$root$shipped/$file
        case $file in
        *.timer) sed "s|^OnCalendar=.*|&${zone:+ $zone}|" "$here/$file" >"$work" ;;
        *) cp "$here/$file" "$work" ;;
        esac
        if { [ -e "$before" ] || [ -e "$root$path" ]; } && ! cmp -s "$root$path" "$before" && ! cmp -s "$root$path" "$work"; then
            cmp -s "$work" "$before" || # nothing new in it
                say '保留 kept' "$path (改过或删除了 changed or removed here; 新文件 the new one: $before)"
        else
            put "$work" "$path" 644
        fi
        install -D -m 644 "$work" "$before"
    done
    for secret in mongodb_uri webhook_url; do
        [ -e "$root$etc/$secret" ] || put /dev/null "$etc/$secret" 600
    done
    # Under 0.1's DynamicUser= these were links, which systemd turns back.
    [ -L "$root$state" ] || install -d -m 755 "$root$state"
    [ -L "$root$log" ] || install -d -m 700 "$root$log"
    # Without the label of a schedule these of 0.1 would ring for ever.
    remove "$state/refresh.prom" "$exporter/$name.prom"
    systemd systemd-sysusers "/etc/sysusers.d/$name.conf"
    systemd systemctl daemon-reload

    case $old in
    '') echo "已安装 $new (installed)" ;;
    "$new") echo "已是 $new (unchanged)" ;;
    *) echo "已从 ${old#* } 升级到 ${new#* } (upgraded from ${old#* } to ${new#* })" ;;
    esac
    left=$(
        [ -s "$root$etc/mongodb_uri" ] || echo "  - sudoedit $root$etc/mongodb_uri     数据库连接字符串 (connection string); 然后 then: sudo baoming --self-test"
        [ -s "$root$etc/webhook_url" ] || echo "  - sudoedit $root$etc/webhook_url     可选：机器人地址 (optional: a chat robot)"
        [ -n "$old" ] || echo "  - sudoedit $root$etc/settings.conf   TZ"
        grep -q '^[^#].*baoming run' "$cron" 2>/dev/null || [ -n "$(find "$root$units" -name "$name@*.timer" -type l)" ] ||
            echo "  - 启用 switch on: systemctl enable --now $name@active.timer $name@all.timer $name@cleanup.timer
    或 or: 去掉 take away # in $cron"
    )
    printf '%s\n' "${left:+还要做 (left to do):}" "${left:-没有待办 (nothing left to do)}" | sed '/^$/d'
}

uninstall_all() {
    systemd systemctl stop "$name*"
    systemd systemctl reset-failed "$name*"
    find "$root$units" -name "$name@*.timer" -type l -delete 2>/dev/null || :
    for file in $({ cd "$root$shipped" && find cron logrotate systemd sysusers -type f; } 2>/dev/null); do
        path=$(place "$file")
        ! cmp -s "$root$shipped/$file" "$root$path" || remove "$path"
    done
    # Changed ones, and those that somebody added, are no longer live, but not lost.
    for file in "$root$units/$name"* "$cron"* "$root/etc/logrotate.d/$name" "$root/etc/sysusers.d/$name.conf"; do
        [ -e "$file" ] || continue
        mkdir -p "$root$etc/kept"
        # By its folder too: a cron file and a logrotate file have the same name.
        kept=$root$etc/kept/$(basename "${file%/*}")-${file##*/}
        while [ -e "$kept" ]; do kept=$kept~; done
        mv "$file" "$kept"
        say '已停用 switched off' "${file#"$root"} (移到 moved to $kept)"
    done
    for file in "$root$state"/*.prom $(find "$root$exporter" -lname "$state/*" 2>/dev/null); do remove "${file#"$root"}"; done
    remove "$bin/$name" "$bin/baoming" "$lib" "$shipped" "$exporter/$name.prom"
    find "$root$state" "$root$log" "$root$etc" -depth -empty -delete 2>/dev/null || :
    find -H "$root$state" "$root$log" "$root$etc" -type f 2>/dev/null | sed 's/^/保留 kept /'
    systemd systemctl daemon-reload
    [ -n "$root" ] || ! id "$name" >/dev/null 2>&1 || echo "保留 kept 系统用户 (system user) $name"
    [ -n "$root" ] || ! pgrep -af "^([^ ]*/)?$name( |\$)" || echo '以上进程仍在运行，请停止 (still running; stop them)'
    ! grep -ls baoming "$root"/var/spool/cron/crontabs/* || echo '以上个人 crontab 提到 baoming，请手动删除 (these crontabs name it; edit them by hand)'
}

[ $# = 1 ] || fail '需要程序文件或 --uninstall (expects the binary, or --uninstall; see --help)' 2
action=install_all
case $1 in
-h | --help) printf '%s\n' "$usage" && exit ;;
--uninstall) action=uninstall_all ;;
-*) fail '未知参数 (unknown flag; see --help)' 2 ;;
esac
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail '需要 root，或设置 DESTDIR (must be root; or set DESTDIR)'
$action "$1"
