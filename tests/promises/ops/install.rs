//! `install.sh` into an empty tree: again and again, over changes, and away.

use super::machine::Machine;
use super::support::{Outcome, Run, binary, scratch_dir};
use super::{path, script};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fs};

const CRON: &str = "etc/cron.d/refresh_baoming_tokens";
const KEPT_CRON: &str = "etc/refresh_baoming_tokens/kept/refresh_baoming_tokens";
const SECRET: &str = "etc/refresh_baoming_tokens/mongodb_uri";
const SETTINGS: &str = "etc/refresh_baoming_tokens/settings.conf";
const LOGROTATE: &str = "etc/logrotate.d/refresh_baoming_tokens";

pub fn install(root: &Path, args: &[&str]) -> Outcome {
    Run::bare().program(script("install.sh")).env("PATH", path()).env("DESTDIR", root).args(args).go()
}

pub fn install_binary(root: &Path) -> Outcome {
    install(root, &[binary().to_str().expect("UTF-8")])
}

/// All files below a folder: mode and content.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry")) {
            if entry.file_type().expect("type").is_dir() {
                folders.push(entry.path());
                continue;
            }
            let path = entry.path();
            let mode = entry.metadata().expect("mode").permissions().mode() & 0o777;
            let content = fs::read(&path).expect("content");
            files.insert(path.strip_prefix(root).expect("below the root").to_owned(), (mode, content));
        }
    }
    files
}

fn names(root: &Path) -> Vec<String> {
    tree(root).into_keys().map(|path| path.to_str().expect("UTF-8").to_owned()).collect()
}

#[test]
fn everything_is_in_place_and_installing_again_changes_nothing() {
    let root = scratch_dir();
    let first = install_binary(&root).expect(0);
    let files = tree(&root);
    for (file, mode) in [
        ("usr/local/bin/refresh_baoming_tokens", 0o755),
        ("usr/local/bin/baoming", 0o755),
        ("usr/local/lib/refresh_baoming_tokens/monitor_refresh.sh", 0o755),
        ("usr/local/lib/refresh_baoming_tokens/notify.sh", 0o755),
        ("usr/local/lib/refresh_baoming_tokens/refresh_sharded.sh", 0o755),
        (CRON, 0o644),
        (LOGROTATE, 0o644),
        ("etc/systemd/system/refresh_baoming_tokens@.service", 0o644),
        ("etc/systemd/system/refresh_baoming_tokens@active.timer", 0o644),
        ("etc/systemd/system/refresh_baoming_tokens@all.timer", 0o644),
        ("etc/systemd/system/refresh_baoming_tokens@cleanup.timer", 0o644),
        ("etc/systemd/system/refresh_baoming_tokens-failed@.service", 0o644),
        ("usr/local/share/refresh_baoming_tokens/prometheus/refresh_baoming_tokens.rules.yml", 0o644),
        (SETTINGS, 0o644),
        (SECRET, 0o600),
        ("etc/refresh_baoming_tokens/webhook_url", 0o600),
    ] {
        let (found, _) = files.get(Path::new(file)).unwrap_or_else(|| panic!("{file} is missing"));
        assert_eq!(*found, mode, "mode of {file}");
        assert!(first.stdout.contains(&format!("/{file}")), "not told of {file}:\n{}", first.stdout);
    }
    assert!(files[Path::new(SECRET)].1.is_empty());
    assert!(first.stdout.contains("还要做 (left to do):"));

    let second = install_binary(&root).expect(0);
    let after = tree(&root);
    assert_eq!(after.keys().collect::<Vec<_>>(), files.keys().collect::<Vec<_>>());
    let changed: Vec<_> = files.iter().filter(|(path, file)| after[*path] != **file).collect();
    assert!(changed.is_empty(), "{:?}", changed.iter().map(|(path, _)| path).collect::<Vec<_>>());
    assert!(
        second.stdout.starts_with("已是 refresh_baoming_tokens ") && !second.stdout.contains("installed "),
        "{second:?}"
    );
    // No schedule runs before somebody switches it on.
    let active = |line: &&str| !line.starts_with('#') && line.contains(" root ");
    let cron = String::from_utf8_lossy(&files[Path::new(CRON)].1).into_owned();
    assert_eq!(cron.lines().filter(active).count(), 0);
}

#[test]
fn secrets_and_changed_files_outlive_upgrade_and_uninstall() {
    let root = scratch_dir();
    install_binary(&root).expect(0);
    let shipped = root.join("usr/local/share/refresh_baoming_tokens");
    let cron = fs::read_to_string(root.join(CRON)).expect("cron file") + "# mine\n";
    fs::write(root.join(CRON), &cron).expect("change");
    fs::write(root.join(SECRET), "mongodb://mine\n").expect("secret");
    fs::remove_file(root.join(LOGROTATE)).expect("removal");
    // As if an earlier version had installed other settings, and nobody had touched them.
    for file in [root.join(SETTINGS), shipped.join("systemd/settings.conf")] {
        fs::write(file, "TZ=UTC\n").expect("older file");
    }

    let upgrade = install_binary(&root).expect(0).stdout;
    assert_eq!(fs::read_to_string(root.join(CRON)).expect("cron file"), cron);
    assert_eq!(fs::read_to_string(root.join(SECRET)).expect("secret"), "mongodb://mine\n");
    assert!(!root.join(LOGROTATE).exists());
    assert_eq!(fs::read(root.join(SETTINGS)).ok(), fs::read(script("systemd/settings.conf")).ok());
    for (action, file) in [("kept", CRON), ("kept away", LOGROTATE), ("installed", SETTINGS)] {
        let told = |line: &str| line.contains(action) && line.contains(file);
        assert!(upgrade.lines().any(told), "no {action} {file}:\n{upgrade}");
    }

    let removal = install(&root, &["--uninstall"]).expect(0).stdout;
    assert_eq!(names(&root), [KEPT_CRON, SECRET]);
    for file in [CRON, SECRET] {
        let told =
            |line: &str| (line.contains("kept") || line.contains("switched off")) && line.contains(file);
        assert!(removal.lines().any(told), "not told of {file}:\n{removal}");
    }
    install(&root, &["--uninstall"]).expect(0);
    assert_eq!(names(&root), [KEPT_CRON, SECRET]);
    assert_eq!(fs::read_to_string(root.join(KEPT_CRON)).expect("cron file"), cron);
}

#[test]
fn an_upgrade_from_0_1_keeps_what_was_switched_on_and_takes_the_metrics_without_a_label() {
    let root = scratch_dir();
    install_binary(&root).expect(0);
    let old = "SHELL=/bin/sh\nTZ=Asia/Shanghai\nRUN=flock -w 21600 /var/lib/x refresh_baoming_tokens --json\nNOTIFY=notify.sh /etc/x\n\n\
               0 */6 * * *  root  $RUN --max-age-days 7 2>/dev/null | $NOTIFY\n\
               #0 2   * * *  root  $RUN 2>/dev/null | $NOTIFY\n\
               30 3   * * 6  root  $RUN --cleanup-days 30 2>/dev/null | $NOTIFY\n";
    fs::write(root.join(CRON), old).expect("cron file");
    let program = root.join("usr/local/bin/refresh_baoming_tokens");
    fs::write(&program, "#!/bin/sh\necho refresh_baoming_tokens 0.1.0\n").expect("older program");
    let left = [
        "var/lib/refresh_baoming_tokens/refresh.prom",
        "var/lib/prometheus/node-exporter/refresh_baoming_tokens.prom",
    ];
    fs::create_dir_all(root.join("var/lib/prometheus/node-exporter")).expect("folder");
    for file in &left {
        fs::write(root.join(file), "").expect("metrics");
    }
    let said = install_binary(&root).expect(0).stdout;
    assert!(said.contains("(upgraded from 0.1.0 to "), "{said}");
    assert!(left.iter().all(|file| said.contains(file) && !root.join(file).exists()), "{said}");
    let cron = fs::read_to_string(root.join(CRON)).expect("cron file");
    let lines: Vec<&str> = cron.lines().filter(|line| line.contains(" root ")).collect();
    assert_eq!(
        lines,
        [
            "0 */6 * * *  root  baoming run active",
            "#0 2   * * *  root  baoming run all",
            "30 3   * * 6  root  baoming run cleanup"
        ]
    );
    assert!(!said.contains("启用 switch on"), "{said}");
}

#[test]
fn what_cannot_be_installed_is_one_clear_line_and_touches_nothing() {
    let foreign = scratch_dir().join("foreign");
    fs::write(&foreign, "no program of this machine").expect("file");
    let bare = scratch_dir();
    for tool in ["sh", "dirname", "id"] {
        let found = env::split_paths(&path()).map(|dir| dir.join(tool)).find(|file| file.is_file());
        std::os::unix::fs::symlink(found.expect(tool), bare.join(tool)).expect("tool");
    }
    for (args, code, line) in [
        (&["/nonexistent/binary"][..], 1, "install.sh: 找不到程序 /nonexistent/binary"),
        (&[foreign.to_str().expect("UTF-8")], 1, "install.sh: 程序 "),
        (&["--purge"], 2, "install.sh: 未知参数"),
        (&["a", "b"], 2, "install.sh: 参数过多"),
        (&[], 1, "install.sh: 没有安装 jq"),
    ] {
        let root = scratch_dir();
        let run = Run::bare().program(script("install.sh")).env("DESTDIR", &root).args(args.iter().copied());
        let outcome =
            run.env("PATH", if args.is_empty() { bare.clone().into() } else { path() }).go().expect(code);
        assert!(outcome.stderr.starts_with(line) && outcome.stderr.lines().count() == 1, "{outcome:?}");
        assert!(names(&root).is_empty(), "{args:?}");
    }
}

#[test]
fn without_destdir_it_is_the_machine_itself() {
    let Some(machine) = Machine::new() else { return };
    let list = |machine: &Machine| machine.must("find /etc /usr/local /var -name '*baoming*' | sort").stdout;
    let before = list(&machine);
    machine.must("cd /root/src && scripts/install.sh");
    machine.must(&format!("test -x /usr/local/bin/refresh_baoming_tokens -a -e /{SECRET}"));
    machine.must("/root/src/scripts/install.sh --uninstall");
    assert_eq!(list(&machine), before);
}
