//! A limit on every database operation. The driver has none that holds in all
//! cases: a write behind `fsyncLock`, or a reply that never comes, blocks its
//! call for ever. So one thread makes the calls, and the run waits for it in
//! slices, looking at the clock and at signals.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, error};

use crate::db_error::{DbError, Result, is_passing};
use crate::stop;

/// How long after a signal the database may still answer, all waits together.
const GRACE: Duration = Duration::from_millis(1500);
/// The least time an operation gets, so that a healthy server can always answer.
const LEAST: Duration = Duration::from_millis(200);
/// Before a lost connection is tried again; then longer.
pub const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Why nobody waits any longer, after a signal.
pub const STOPPED: &str = "收到停止信号，不再等待";
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

type Job = Box<dyn FnOnce() + Send>;

/// The thread that talks to the driver, and how many documents it got in operations of several commands.
pub struct Worker {
    thread: RefCell<(Sender<Job>, Arc<AtomicUsize>)>,
    limit: Duration,
    /// When a signal was first noticed while waiting.
    noticed: Cell<Option<Instant>>,
}

impl Worker {
    /// A thread whose operations take at most `limit` each, repeats included, or from one answer to the next.
    pub fn start(limit: Duration) -> Self {
        Self { thread: RefCell::new(new_thread()), limit, noticed: Cell::new(None) }
    }

    /// Waits for a job until `limit`; `None` when it was given up. It may still be carried out.
    pub fn wait_for<T: Send + 'static>(
        &self,
        mut limit: Instant,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, answer) = mpsc::sync_channel(1);
        let least = Instant::now() + LEAST;
        let job = Box::new(move || {
            let _ = done.send(job()); // nobody waits for a job that was given up
        });
        let documents = self.documents();
        let mut seen = documents.load(Ordering::Relaxed);
        self.thread.borrow().0.send(job).ok()?;
        loop {
            let counted = documents.load(Ordering::Relaxed);
            if counted != seen {
                (seen, limit) = (counted, limit.max(Instant::now() + self.limit));
            }
            let mut end = limit;
            if stop::requested().is_some() {
                let noticed = self.noticed.get().unwrap_or_else(Instant::now);
                self.noticed.set(Some(noticed));
                end = end.min(noticed + GRACE);
            }
            let left = end.max(least).saturating_duration_since(Instant::now());
            match answer.recv_timeout(left.min(stop::SLICE)) {
                Ok(value) => return Some(value),
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(_) => break,
            }
        }
        // The thread is stuck in the driver: it is left behind.
        *self.thread.borrow_mut() = new_thread();
        None
    }

    /// What an operation of several commands counts its documents with: the limit is for each of them.
    pub fn documents(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.thread.borrow().1)
    }

    /// Runs an operation that may be sent twice, again after passing errors with
    /// growing pauses, within the limit. The number of tries comes back with the result.
    pub fn repeat<T: Send + 'static>(
        &self,
        operation: impl Fn() -> mongodb::error::Result<T> + Send + Sync + 'static,
    ) -> (u32, Result<T>) {
        let operation = Arc::new(operation);
        let end = Instant::now() + self.limit;
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            let this = Arc::clone(&operation);
            let error = match self.wait_for(end, move || this()) {
                Some(Ok(value)) => return (tries, Ok(value)),
                Some(Err(error)) => error,
                None => return (tries, Err(self.no_answer())),
            };
            let is_last = !is_passing(&error) || Instant::now() + pause >= end;
            let error = DbError::from(error);
            if !is_last && stop::requested().is_none() {
                debug!("  {error}，稍后重试");
                stop::sleep_until(Instant::now() + pause);
            }
            if is_last || stop::requested().is_some() {
                return (tries, Err(error));
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            tries += 1;
        }
    }

    /// The error of an operation that was given up.
    fn no_answer(&self) -> DbError {
        if stop::requested().is_some() {
            return DbError::Lost(STOPPED.to_owned());
        }
        DbError::no_answer(self.limit)
    }
}

/// Where the system has no thread left, no job is taken.
fn new_thread() -> (Sender<Job>, Arc<AtomicUsize>) {
    let (jobs, inbox) = mpsc::channel::<Job>();
    if thread::Builder::new().spawn(move || inbox.into_iter().for_each(|job| job())).is_err() {
        error!("❌ 系统无法创建线程；请检查进程数上限 (ulimit -u, pids)");
    }
    (jobs, Arc::default())
}
