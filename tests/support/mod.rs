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
pub mod run;
pub mod seed;
pub mod stub;
pub mod tls;
pub mod totals;
pub mod wire;

pub use mongod::{Mongod, ReplicaSet};
pub use run::{Live, Outcome, Run, Signal};
pub use seed::{Seed, Snapshot, TestDb, unique_token, valid_tokens, wall_clock, wall_clock_days_ago};
pub use stub::{Reply, Request, Stub};
pub use tls::Certificate;
pub use totals::{Total, count};
pub use wire::{Act, Wire};

use socket2::{Domain, Socket, Type};
use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

/// Name of the variable by which the janitor knows the children of this process.
pub const MARK: &str = "TEST_SUPPORT_OWNER";

/// How long to wait for something that must happen before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A command that is killed when this process ends; its own children too, as long as they inherit
/// its environment. Ctrl-C in a terminal does not reach it.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    scratch_root();
    let mut command = Command::new(program);
    command.env(MARK, owner()).process_group(0);
    command
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
    // The janitor's standard input ends when this process does. `grep`, because children and
    // grandchildren alike carry the mark, and nobody else does.
    const JANITOR: &str = r#"
        cat >/dev/null
        while :; do
            pids=$(grep -lszxF "$1" /proc/[0-9]*/environ | cut -d/ -f3)
            [ -n "$pids" ] || break
            kill -9 $pids 2>/dev/null
            sleep 0.05
        done
        rm -rf "$2""#;
    static ROOT: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (root, _) = ROOT.get_or_init(|| {
        let root = built().with_file_name("tmp").join(owner());
        fs::create_dir_all(&root).expect("scratch folder under target");
        let mut janitor = Command::new("sh");
        janitor.args(["-c", JANITOR, "janitor", &format!("{MARK}={}", owner())]).arg(&root);
        janitor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        (root, janitor.spawn().expect("sh"))
    });
    root
}

/// `target/debug` or its like: tests, benchmarks and examples lie one folder below.
fn built() -> PathBuf {
    let exe = env::current_exe().expect("own path");
    exe.ancestors().nth(2).expect("target/debug/deps/…").to_owned()
}

pub fn binary() -> PathBuf {
    built().join("refresh_baoming_tokens")
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

/// An address that takes no connection and refuses none: its queue is full.
pub fn unresponsive() -> (Vec<Socket>, String) {
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    let listener = socket();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    listener.listen(0).expect("a queue");
    let address = listener.local_addr().expect("address");
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let client = socket();
        client.set_nonblocking(true).expect("no waiting");
        // Those that the queue does not hold wait, as the program will.
        let _ = client.connect(&address);
        sockets.push(client);
    }
    (sockets, address.as_socket().expect("an address").to_string())
}

pub fn dead() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// Serves each connection to a free port in a thread of its own. Dropped, it takes no more; those
/// that there are end with their clients.
pub struct Server {
    pub address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl Server {
    pub fn start(each: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let server = Self { address: listener.local_addr().expect("address"), is_over: Arc::default() };
        let (each, is_over) = (Arc::new(each), Arc::clone(&server.is_over));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let each = Arc::clone(&each);
                thread::spawn(move || each(client));
            }
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for the next one.
        let _ = TcpStream::connect(self.address);
    }
}

/// A file with this content and mode in a folder of its own.
pub fn file(name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
    let path = scratch_dir().join(name);
    fs::write(&path, content).expect("file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
    path
}

/// A pipe with a name, which nobody reads or writes yet.
pub fn fifo() -> PathBuf {
    let path = scratch_dir().join("fifo");
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&path).status().expect("mkfifo").success());
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
        thread::sleep(Duration::from_millis(10));
    }
}
