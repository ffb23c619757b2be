//! A real logrotate on the log of a live scheduler.

use super::install::installed;
use super::{checker, must_pass, run_script};
use crate::prelude::*;
use std::os::unix::fs::{MetadataExt, chown};
use std::sync::{Mutex, mpsc};

const ROTATIONS: usize = 5;
const TOKENS: u32 = 600;

#[test]
fn no_line_of_a_live_scheduler_is_lost() {
    let Some(_) = checker("logrotate") else { return };
    let (db, _) = world();
    let (root, _) = installed();
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
    let folder = root.join("var/log/refresh_baoming_tokens");
    let log = folder.join("refresh.log");
    let shipped = fs::read_to_string(root.join("etc/logrotate.d/refresh_baoming_tokens")).expect("file");
    let shipped = shipped.replace("/var/", &format!("{}/var/", root.display()));
    // A server's own defaults do not get in the way.
    let config = file("logrotate.conf", format!("create\ndateext\ncompress\n{shipped}"), 0o644);

    // What root makes belongs to whom the folder belongs.
    let _ = chown(&folder, Some(65_534), Some(65_534));
    let owner = fs::metadata(&folder).expect("folder").uid();

    let scheduler = run_script("-", &db, &api).program(binary()).args(["--delay-ms", "0", "--scheduler"]);
    let scheduler = scheduler.args(["--run-immediately", "--interval", "6", "--log-file"]).arg(&log).start();
    for _ in 0..ROTATIONS {
        rotations.recv_timeout(PATIENCE).expect("requests");
        let mut logrotate = checker("logrotate").expect("as above");
        let state = root.join("logrotate.state");
        must_pass(logrotate.arg("--force").arg("--state").arg(state).arg(&config));
    }
    scheduler.await_line("🎉 刷新完成");
    scheduler.signal(Signal::TERM);
    let outcome = scheduler.wait().expect(0);

    assert_eq!(fs::read_dir(&folder).expect("logs").count(), ROTATIONS + 1);
    let older = (1..=ROTATIONS).rev().map(|n| match n {
        1 => log.with_extension("log.1"),
        _ => log.with_extension(format!("log.{n}.gz")),
    });
    let texts = older.chain([log.clone()]).map(|file| must_pass(command("gzip").arg("-dcf").arg(file)));
    let texts: Vec<String> = texts.collect();
    assert!(texts.iter().all(|text| !text.is_empty()), "a rotation found nothing new");
    // Standard output carries the same lines and is never rotated.
    assert!(texts.concat() == outcome.stdout, "lines were lost, doubled or moved by the rotation");
    assert_eq!(mode(&log), 0o600);
    assert_eq!(fs::metadata(&log).expect("log").uid(), owner);
}
