#!/bin/sh
# Puts refresh_baoming_tokens and what operators need around it in place, or takes it away again.
set -eu

usage='usage: [DESTDIR=TREE] install.sh [BINARY]
       [DESTDIR=TREE] install.sh --uninstall

Installs the binary (default: beside this script, else target/static of its
repository), scripts, systemd units, cron and logrotate file, and empty secret
files. Asks nothing and starts nothing; may be run again at any time, also to
upgrade. A secret is never touched, a configuration file that was changed is kept.
Uninstalling leaves secrets, changed configuration, logs and state behind.
DESTDIR is put before every path, for packagers.'

fail() {
    echo "install.sh: $1" >&2
    exit "${2-1}"
}

name=refresh_baoming_tokens
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR-}
lib=/usr/local/lib/$name
# What was installed last, to tell a changed configuration file from an outdated one.
shipped=/usr/local/share/$name
etc=/etc/$name
# Made for the runs, which write there.
state="/var/lib/$name /var/log/$name"
secrets="$etc/mongodb_uri $etc/webhook_url"
tools='monitor_refresh.sh notify.sh refresh_sharded.sh'
# One per line: file of this repository, where it goes.
configs="
cron/$name /etc/cron.d/$name
logrotate/$name /etc/logrotate.d/$name
systemd/$name@.service /etc/systemd/system/$name@.service
systemd/$name@active.timer /etc/systemd/system/$name@active.timer
systemd/$name@all.timer /etc/systemd/system/$name@all.timer
systemd/$name@cleanup.timer /etc/systemd/system/$name@cleanup.timer
systemd/settings.conf $etc/settings.conf
systemd/active.conf $etc/active.conf
systemd/all.conf $etc/all.conf
systemd/cleanup.conf $etc/cleanup.conf
"

say() { printf '%-10s %s\n' "$1" "$root$2"; }

# The new file appears under its name at once and whole, also over a running binary.
put() { # FILE PATH MODE
    if cmp -s "$1" "$root$2"; then
        say unchanged "$2"
    else
        mkdir -p "$(dirname "$root$2")"
        cp "$1" "$root$2.tmp.$$"
        chmod "$3" "$root$2.tmp.$$"
        mv "$root$2.tmp.$$" "$root$2"
        say installed "$2"
    fi
}

install_config() { # FILE PATH
    if [ ! -e "$root$2" ] && [ -e "$root$shipped/$1" ]; then
        say kept "$2 (removed here; the new one: $root$shipped/$1)"
    elif [ -e "$root$2" ] && ! cmp -s "$here/$1" "$root$2" && ! cmp -s "$root$shipped/$1" "$root$2"; then
        say kept "$2 (changed here; the new one: $root$shipped/$1)"
    else
        put "$here/$1" "$2" 644
    fi
    mkdir -p "$(dirname "$root$shipped/$1")"
    cp "$here/$1" "$root$shipped/$1"
    chmod 644 "$root$shipped/$1"
}

uninstall_config() { # FILE PATH
    if [ ! -e "$root$2" ]; then
        :
    elif cmp -s "$root$shipped/$1" "$root$2"; then
        rm "$root$2"
        say removed "$2"
    else
        say kept "$2 (changed here; remove it by hand)"
    fi
}

each_config() { # COMMAND
    printf '%s' "$configs" | while read -r file path; do
        [ -z "$file" ] || "$1" "$file" "$path"
    done
}

remove() {
    [ ! -e "$root$1" ] || { rm -rf "$root${1:?}" && say removed "$1"; }
}

install_all() {
    binary=${1-}
    if [ -z "$binary" ]; then
        for binary in "$here/$name" "$here/../target/static/$name"; do
            [ ! -f "$binary" ] || break
        done
    fi
    [ -f "$binary" ] || fail "no binary at $binary; build it with scripts/build-static.sh or name it"

    put "$binary" "/usr/local/bin/$name" 755
    for tool in $tools; do put "$here/$tool" "$lib/$tool" 755; done
    each_config install_config
    for secret in $secrets; do
        if [ -e "$root$secret" ]; then
            say kept "$secret"
        else
            (umask 077 && : >"$root$secret")
            say created "$secret (empty, mode 0600)"
        fi
    done
    for dir in $state; do
        # Under DynamicUser= these are links to folders that only systemd may open.
        if [ ! -d "$root$dir" ] && [ ! -L "$root$dir" ]; then
            mkdir -p "$root$dir"
            chmod 700 "$root$dir"
            say created "$dir"
        fi
    done
    cat <<EOT

Left to do:
1. Put the connection string into $root$etc/mongodb_uri,
   and the address of a chat robot, if you have one, into $root$etc/webhook_url.
2. Check TZ in $root$etc/settings.conf and $root/etc/cron.d/$name.
3. Try it:  MONGODB_URI_FILE=$root$etc/mongodb_uri TZ=Asia/Shanghai $root/usr/local/bin/$name --self-test
4. Switch on one of
   systemd    systemctl daemon-reload
              systemctl enable --now $name@active.timer $name@all.timer $name@cleanup.timer
   cron       take away the # before the three schedules in $root/etc/cron.d/$name
   built-in   $name --scheduler (see --help), kept running by what you have
EOT
}

uninstall_all() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl disable --now "$name@active.timer" "$name@all.timer" "$name@cleanup.timer" || :
    fi
    each_config uninstall_config
    remove "/usr/local/bin/$name"
    remove "$lib"
    remove "$shipped"
    for secret in $secrets; do
        if [ -s "$root$secret" ]; then say kept "$secret"; else remove "$secret"; fi
    done
    for dir in $state; do
        [ -e "$root$dir" ] || continue
        if rmdir "$root$dir" 2>/dev/null; then say removed "$dir"; else say kept "$dir"; fi
    done
    rmdir "$root$etc" 2>/dev/null || :
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
}

case ${1-} in
-h | --help)
    printf '%s\n' "$usage"
    exit 0
    ;;
--uninstall) action=uninstall_all ;;
-*) fail 'unknown flag; see --help' 2 ;;
*) action=install_all ;;
esac
if [ $# -gt 1 ]; then fail 'too many arguments; see --help' 2; fi
if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then fail 'must be root; or set DESTDIR'; fi
umask 022
if [ "$action" = uninstall_all ]; then shift; fi
$action "$@"
