//! A real logrotate on the log of a live scheduler.

use super::install::install_binary;
use super::support::{PATIENCE, Reply, Signal, Stub, scratch_dir};
use super::{checker, must_pass, run_script, world};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

const ROTATIONS: usize = 5;
const TOKENS: u32 = 600;

fn unpacked(file: &Path) -> String {
    let mut text = String::new();
    if file.extension().is_some_and(|extension| extension == "gz") {
        let gzip = Command::new("gzip").arg("-dc").arg(file).stdout(Stdio::piped()).spawn();
        let mut gzip = gzip.expect("gzip");
        gzip.stdout.take().expect("stdout").read_to_string(&mut text).expect("text");
        assert!(gzip.wait().expect("gzip").success());
    } else {
        fs::File::open(file).expect("log").read_to_string(&mut text).expect("text");
    }
    text
}

#[test]
fn no_line_of_a_live_scheduler_is_lost() {
    let Some(_) = checker("logrotate") else { return };
    let (db, _) = world();
    let root = scratch_dir();
    install_binary(&root).expect(0);
    db.add_tokens("good", TOKENS);
    // A rotation begins here and there in the run, which goes on meanwhile.
    let (due, rotations) = mpsc::channel();
    let due = Mutex::new(due);
    let api = Stub::start(move |request| {
        if request.number % (TOKENS as usize / (ROTATIONS + 1)) == 0 {
            let _ = due.lock().expect("lock").send(());
        }
        Reply::valid().after(Duration::from_millis(1))
    });
    let log = root.join("var/log/refresh_baoming_tokens/refresh.log");
    let config = root.join("logrotate.conf");
    let shipped = fs::read_to_string(root.join("etc/logrotate.d/refresh_baoming_tokens")).expect("file");
    // A server's own defaults do not get in the way.
    fs::write(
        &config,
        format!(
            "create\ndateext\ncompress\n{}",
            shipped.replace("/var/", &format!("{}/var/", root.display()))
        ),
    )
    .expect("config");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).expect("mode");

    let scheduler = run_script("-", &db, &api)
        .program(super::support::binary())
        .args(["--delay-ms", "0", "--scheduler", "--run-immediately", "--interval", "6", "--log-file"])
        .arg(&log)
        .start();
    for _ in 0..ROTATIONS {
        rotations.recv_timeout(PATIENCE).expect("requests");
        let mut logrotate = checker("logrotate").expect("as above");
        let state = root.join("logrotate.state");
        must_pass(logrotate.arg("--force").arg("--state").arg(state).arg(&config));
    }
    scheduler.await_line("🎉 刷新完成");
    scheduler.signal(Signal::TERM);
    let outcome = scheduler.wait().expect(0);

    let folder = log.parent().expect("a folder");
    assert_eq!(fs::read_dir(folder).expect("logs").count(), ROTATIONS + 1);
    let older = (1..=ROTATIONS).rev().map(|n| match n {
        1 => log.with_extension("log.1"),
        _ => log.with_extension(format!("log.{n}.gz")),
    });
    let files: Vec<String> = older.chain([log.clone()]).map(|file| unpacked(&file)).collect();
    assert!(files.iter().all(|text| !text.is_empty()), "a rotation found nothing new");
    // Standard output carries the same lines and is never rotated.
    assert!(files.concat() == outcome.stdout, "lines were lost, doubled or moved by the rotation");
    assert_eq!(fs::metadata(&log).expect("log").permissions().mode() & 0o777, 0o600);
}
