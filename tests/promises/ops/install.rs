//! `install.sh` into an empty tree: again and again, over changes, and away.

use super::{path, script, tool};
use crate::prelude::*;

const CRON: &str = "etc/cron.d/refresh_baoming_tokens";
const KEPT_CRON: &str = "etc/refresh_baoming_tokens/kept/cron.d-refresh_baoming_tokens";
const KEPT_LOGROTATE: &str = "etc/refresh_baoming_tokens/kept/logrotate.d-refresh_baoming_tokens";
const SECRET: &str = "etc/refresh_baoming_tokens/mongodb_uri";
const SETTINGS: &str = "etc/refresh_baoming_tokens/settings.conf";
const LOGROTATE: &str = "etc/logrotate.d/refresh_baoming_tokens";

fn install(root: &Path, arg: &Path) -> String {
    let run = Run::bare().program(script("install.sh")).env("PATH", path()).env("DESTDIR", root);
    run.arg(arg).go().expect(0).stdout
}

pub fn installed() -> (PathBuf, String) {
    let root = scratch_dir();
    let said = install(&root, &binary());
    (root, said)
}

fn tree(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let names = tool("find").arg(root).args(["-type", "f", "-printf", "%P\\n"]).go().expect(0).log();
    let file = |path: &Path| (mode(path), fs::read(path).expect("content"));
    names.lines().map(|name| (name.to_owned(), file(&root.join(name)))).collect()
}

#[track_caller]
fn assert_told(said: &str, action: &str, file: &str) {
    let told = said.lines().any(|line| line.contains(action) && line.contains(&format!("/{file}")));
    assert!(told, "no {action:?} for {file} in\n{said}");
}

#[test]
fn everything_is_in_place_and_installing_again_changes_nothing() {
    let (root, first) = installed();
    let files = tree(&root);
    for (folder, mode, names) in [
        ("usr/local/bin/", 0o755, "refresh_baoming_tokens baoming"),
        ("usr/local/lib/refresh_baoming_tokens/", 0o755, "monitor_refresh.sh notify.sh refresh_sharded.sh"),
        ("etc/cron.d/", 0o644, "refresh_baoming_tokens"),
        ("etc/logrotate.d/", 0o644, "refresh_baoming_tokens"),
        ("etc/sysusers.d/", 0o644, "refresh_baoming_tokens.conf"),
        ("etc/systemd/system/refresh_baoming_tokens", 0o644, "@.service -failed@.service"),
        ("etc/systemd/system/refresh_baoming_tokens@", 0o644, "active.timer all.timer cleanup.timer"),
        ("usr/local/share/refresh_baoming_tokens/prometheus/", 0o644, "refresh_baoming_tokens.rules.yml"),
        ("etc/refresh_baoming_tokens/", 0o644, "settings.conf active.conf all.conf cleanup.conf"),
        ("etc/refresh_baoming_tokens/", 0o600, "mongodb_uri webhook_url"),
    ] {
        for file in names.split(' ').map(|name| format!("{folder}{name}")) {
            assert_eq!(files.get(&file).map(|(mode, _)| *mode), Some(mode), "{file}");
            assert_told(&first, "installed", &file);
        }
    }
    assert!(files[SECRET].1.is_empty() && first.contains("还要做 (left to do):"), "{first}");
    // No schedule runs before somebody switches it on.
    let cron = String::from_utf8_lossy(&files[CRON].1);
    assert!(!cron.lines().any(|line| !line.starts_with('#') && line.contains(" root ")), "{cron}");

    let second = install(&root, &binary());
    assert!(tree(&root) == files, "{second}");
    assert!(second.starts_with("已是 refresh_baoming_tokens ") && !second.contains("installed "), "{second}");
}

#[test]
fn secrets_and_changed_files_outlive_upgrade_and_uninstall() {
    let (root, _) = installed();
    let cron = fs::read_to_string(root.join(CRON)).expect("cron file") + "# mine\n";
    fs::write(root.join(CRON), &cron).expect("change");
    fs::write(root.join(SECRET), "mongodb://mine\n").expect("secret");
    fs::remove_file(root.join(LOGROTATE)).expect("removal");
    // As if an earlier version had installed other files, and nobody had touched its settings.
    let shipped =
        ["systemd/settings.conf", "cron/refresh_baoming_tokens", "logrotate/refresh_baoming_tokens"]
            .map(|file| format!("usr/local/share/refresh_baoming_tokens/{file}"));
    for file in [SETTINGS].into_iter().chain(shipped.iter().map(String::as_str)) {
        fs::write(root.join(file), "TZ=UTC\n").expect("older file");
    }
    let upgrade = install(&root, &binary());
    assert_eq!(fs::read_to_string(root.join(SECRET)).expect("secret"), "mongodb://mine\n");
    assert_eq!(fs::read(root.join(SETTINGS)).ok(), fs::read(script("systemd/settings.conf")).ok());
    assert!(!root.join(LOGROTATE).exists());
    for (action, file) in [("kept", CRON), ("kept", LOGROTATE), ("installed", SETTINGS)] {
        assert_told(&upgrade, action, file);
    }
    let again = install(&root, &binary());
    assert!(!again.contains("kept"), "nothing new is in them: {again}");
    let uninstall = || install(&root, Path::new("--uninstall"));
    let removal = uninstall();
    assert_told(&removal, "switched off", CRON);
    assert_told(&removal, "kept", SECRET);
    let mut kept = vec![(KEPT_CRON.to_owned(), cron)];
    // What is switched off later takes the place of nothing.
    for (file, content, place) in
        [(LOGROTATE, "daily\n", KEPT_LOGROTATE.to_owned()), (CRON, "# another\n", format!("{KEPT_CRON}~"))]
    {
        fs::create_dir_all(root.join(file).parent().expect("folder")).expect("folder");
        fs::write(root.join(file), content).expect("file");
        kept.push((place, content.to_owned()));
        uninstall();
        let left = tree(&root);
        assert_eq!(left.len(), kept.len() + 1, "{left:?}");
        assert!(left.contains_key(SECRET));
        for (place, content) in &kept {
            assert_eq!(left[place].1, content.as_bytes(), "{place}");
        }
    }
}

#[test]
fn an_upgrade_from_0_1_keeps_what_was_switched_on_and_takes_the_metrics_without_a_label() {
    let (root, _) = installed();
    let old = "SHELL=/bin/sh\nTZ=Asia/Shanghai\nRUN=flock -w 21600 /var/lib/x refresh_baoming_tokens --json\nNOTIFY=notify.sh /etc/x\n\n\
               0 */6 * * *  root  $RUN --max-age-days 7 2>/dev/null | $NOTIFY\n\
               #0 2   * * *  root  $RUN 2>/dev/null | $NOTIFY\n\
               30 3   * * 6  root  $RUN --cleanup-days 30 2>/dev/null | $NOTIFY\n";
    fs::write(root.join(CRON), old).expect("cron file");
    let program = root.join("usr/local/bin/refresh_baoming_tokens");
    fs::write(&program, "#!/bin/sh\necho refresh_baoming_tokens 0.1.0\n").expect("older program");
    let metrics = root.join("var/lib/refresh_baoming_tokens/refresh.prom");
    fs::write(&metrics, "").expect("metrics");
    let said = install(&root, &binary());
    assert!(said.contains("(upgraded from 0.1.0 to ") && !said.contains("switch on"), "{said}");
    assert_told(&said, "removed", "var/lib/refresh_baoming_tokens/refresh.prom");
    assert!(!metrics.exists());
    let cron = fs::read_to_string(root.join(CRON)).expect("cron file");
    let lines: Vec<&str> = cron.lines().filter(|line| line.contains(" root ")).collect();
    let expected = "0 */6 * * *  root  baoming run active\n#0 2   * * *  root  baoming run all\n30 3   * * 6  root  baoming run cleanup";
    assert_eq!(lines.join("\n"), expected);
}
