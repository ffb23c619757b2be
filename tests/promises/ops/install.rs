//! `install.sh` into an empty tree: again and again, over changes, and away.

use super::support::{Outcome, Run, binary, command, scratch_dir};
use super::{checker, must_pass, path, script};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fs};

const CRON: &str = "etc/cron.d/refresh_baoming_tokens";
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
        ("usr/local/lib/refresh_baoming_tokens/monitor_refresh.sh", 0o755),
        ("usr/local/lib/refresh_baoming_tokens/notify.sh", 0o755),
        ("usr/local/lib/refresh_baoming_tokens/refresh_sharded.sh", 0o755),
        (CRON, 0o644),
        (LOGROTATE, 0o644),
        ("etc/systemd/system/refresh_baoming_tokens@.service", 0o644),
        ("etc/systemd/system/refresh_baoming_tokens@active.timer", 0o644),
        ("etc/systemd/system/refresh_baoming_tokens@all.timer", 0o644),
        ("etc/systemd/system/refresh_baoming_tokens@cleanup.timer", 0o644),
        (SETTINGS, 0o644),
        (SECRET, 0o600),
        ("etc/refresh_baoming_tokens/webhook_url", 0o600),
    ] {
        let (found, _) = files.get(Path::new(file)).unwrap_or_else(|| panic!("{file} is missing"));
        assert_eq!(*found, mode, "mode of {file}");
        assert!(first.stdout.contains(&format!("/{file}")), "not told of {file}:\n{}", first.stdout);
    }
    assert!(files[Path::new(SECRET)].1.is_empty());
    assert!(first.stdout.contains("Left to do:"));

    let second = install_binary(&root).expect(0);
    let after = tree(&root);
    assert_eq!(after.keys().collect::<Vec<_>>(), files.keys().collect::<Vec<_>>());
    let changed: Vec<_> = files.iter().filter(|(path, file)| after[*path] != **file).collect();
    assert!(changed.is_empty(), "{:?}", changed.iter().map(|(path, _)| path).collect::<Vec<_>>());
    let done: Vec<&str> = second.stdout.lines().take_while(|line| !line.is_empty()).collect();
    let is_untouched = |line: &&&str| line.starts_with("unchanged ") || line.starts_with("kept ");
    assert_eq!(done.iter().filter(is_untouched).count(), done.len(), "{done:#?}");
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
    for (action, file) in [("kept", CRON), ("kept", SECRET), ("kept", LOGROTATE), ("installed", SETTINGS)] {
        let told = |line: &str| line.starts_with(action) && line.contains(file);
        assert!(upgrade.lines().any(told), "no {action} {file}:\n{upgrade}");
    }

    let removal = install(&root, &["--uninstall"]).expect(0).stdout;
    assert_eq!(names(&root), [CRON, SECRET]);
    for file in [CRON, SECRET] {
        let told = |line: &str| line.starts_with("kept") && line.contains(file);
        assert!(removal.lines().any(told), "not told of {file}:\n{removal}");
    }
    install(&root, &["--uninstall"]).expect(0);
    assert_eq!(names(&root), [CRON, SECRET]);
    install_binary(&root).expect(0);
    assert_eq!(fs::read_to_string(root.join(CRON)).expect("cron file"), cron);
}

#[test]
fn what_cannot_be_installed_is_one_clear_line_and_touches_nothing() {
    for (args, code, line) in [
        (&["/nonexistent/binary"][..], 1, "install.sh: no binary at /nonexistent/binary"),
        (&["--purge"], 2, "install.sh: unknown flag"),
        (&["a", "b"], 2, "install.sh: too many arguments"),
    ] {
        let root = scratch_dir();
        let outcome = install(&root, args).expect(code);
        assert!(outcome.stderr.starts_with(line) && outcome.stderr.lines().count() == 1, "{outcome:?}");
        assert!(names(&root).is_empty(), "{args:?}");
    }
}

#[test]
fn without_destdir_it_is_the_machine_itself() {
    // Whose place a folder takes, with nothing in it but busybox.
    let Some(_) = checker("busybox") else { return };
    let root = scratch_dir();
    let busybox = env::split_paths(&path()).map(|dir| dir.join("busybox")).find(|file| file.is_file());
    let busybox = busybox.expect("the checker's path").canonicalize().expect("busybox");
    let libraries = must_pass(command("ldd").arg(&busybox).env("PATH", path()));
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    for file in libraries.chain([busybox.as_path(), binary().as_path()]) {
        let copy = root.join(file.strip_prefix("/").expect("an absolute path"));
        fs::create_dir_all(copy.parent().expect("a folder")).expect("folder");
        fs::copy(file, copy).expect("copy");
    }
    fs::create_dir_all(root.join("bin")).expect("folder");
    must_pass(command(&busybox).args(["--install", "-s"]).arg(root.join("bin")));
    must_pass(command("cp").arg("-r").arg(script("")).arg(root.join("scripts")));
    let before = names(&root);

    let inside = |args: &[&str]| {
        let mut chroot = command("unshare");
        chroot.args(["--user", "--map-root-user", "chroot"]).arg(&root).args(["sh", "/scripts/install.sh"]);
        must_pass(chroot.args(args).env_remove("DESTDIR").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
    };
    inside(&[binary().to_str().expect("UTF-8")]);
    assert!(root.join("usr/local/bin/refresh_baoming_tokens").exists() && root.join(SECRET).exists());
    inside(&["--uninstall"]);
    assert_eq!(names(&root), before);
}
