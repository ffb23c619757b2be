//! What tests, demo and benchmark share: a real `mongod`, a stub of the enroll API that can
//! misbehave in every way, seeded documents, and runs of the real binary.
//!
//! Nothing outlives the process: every child carries [`MARK`] in its environment, and a janitor
//! kills what carries it, and removes the scratch folder, as soon as this process is gone,
//! however it went.

// Each test binary, the example and the benchmark use a part of this.
#![allow(dead_code, unused_imports)]

pub mod compare;
pub mod mongod;
pub mod proxy;
pub mod run;
pub mod seed;
pub mod stub;
pub mod tls;
pub mod totals;
pub mod wire;

pub use mongod::{Mongod, ReplicaSet};
pub use proxy::Proxy;
pub use run::{Live, Outcome, Run, Signal, binary};
pub use seed::{Seed, Snapshot, TestDb, unique_token, wall_clock, wall_clock_days_ago};
pub use stub::{Reply, Request, Stub};
pub use tls::Certificate;
pub use totals::{Total, count};
pub use wire::{Act, Wire};

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use std::{env, fs, process};

/// Name of the variable by which the janitor knows the children of this process.
pub const MARK: &str = "TEST_SUPPORT_OWNER";

/// How long to wait for something that must happen before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A command that is killed when this process ends; its own children too, as long as they
/// inherit its environment. Not in the terminal's foreground group: Ctrl-C reaches this process
/// only.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    mark(&mut command);
    command
}

fn mark(command: &mut Command) {
    scratch_root();
    command.env(MARK, owner()).process_group(0);
}

/// A new, empty folder that goes away with this process.
pub fn scratch_dir() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = scratch_root().join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
    fs::create_dir(&dir).expect("scratch folder");
    dir
}

fn owner() -> &'static str {
    static OWNER: OnceLock<String> = OnceLock::new();
    OWNER.get_or_init(|| {
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed();
        format!("{}-{}", process::id(), started.expect("a clock after 1970").as_micros())
    })
}

fn scratch_root() -> &'static Path {
    // The janitor's pipe stays open as long as this process lives.
    static ROOT: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (root, _) = ROOT.get_or_init(|| {
        let root = target_tmp().join(owner());
        fs::create_dir_all(&root).expect("scratch folder under target");
        let janitor = start_janitor(&root);
        (root, janitor)
    });
    root
}

/// `target/tmp`: cargo names it for tests and benchmarks; an example finds it from its own place.
fn target_tmp() -> PathBuf {
    option_env!("CARGO_TARGET_TMPDIR").map_or_else(
        || {
            let exe = env::current_exe().expect("own path");
            exe.ancestors().nth(3).expect("target/debug/examples/…").join("tmp")
        },
        PathBuf::from,
    )
}

fn start_janitor(root: &Path) -> Child {
    // Its standard input ends when the last process that holds the other end, this one, does.
    // `grep` because children and grandchildren alike carry the mark, and nobody else does.
    const JANITOR: &str = r#"
        cat >/dev/null
        while :; do
            pids=$(grep -lszxF "$1" /proc/[0-9]*/environ | cut -d/ -f3)
            [ -n "$pids" ] || break
            kill -9 $pids 2>/dev/null
            sleep 0.05
        done
        rm -rf "$2""#;
    Command::new("sh")
        .args(["-c", JANITOR, "janitor", &format!("{MARK}={}", owner())])
        .arg(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("sh")
}

/// A loopback port that nobody listens on. From below the range that the kernel hands out by
/// itself, so that it stays free until it is used, or for good.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = process::id().wrapping_mul(97);
    (0..20_000)
        .map(|_| start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000 + 11_000)
        .map(|port| u16::try_from(port).expect("a port"))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port")
}

/// Where a connection is refused.
pub fn dead() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A file with this content and mode in a folder of its own.
pub fn file(name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
    let path = scratch_dir().join(name);
    fs::write(&path, content).expect("file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
    path
}

/// A value that threads change and others await.
#[derive(Default)]
pub(crate) struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    /// Also after a panic of another thread, so that one failure does not hide behind others.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until `wanted` gives something; `None` when the time is over.
    pub fn wait<R>(&self, limit: Duration, mut wanted: impl FnMut(&mut T) -> Option<R>) -> Option<R> {
        let end = Instant::now() + limit;
        let mut value = self.lock();
        loop {
            if let Some(found) = wanted(&mut value) {
                return Some(found);
            }
            let left = end.checked_duration_since(Instant::now())?;
            let woken = self.changed.wait_timeout(value, left);
            value = woken.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

/// Polls for a condition outside this process; panics with `what` when it does not come true.
pub fn await_true(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
