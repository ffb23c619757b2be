//! SIGINT and SIGTERM as a flag. Neither a sleep nor an HTTP call ends by a
//! signal, so the program asks between its steps and sleeps in slices.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

/// How long a sleep or wait goes on after a signal, at most.
pub const SLICE: Duration = Duration::from_millis(50);

static RECEIVED: AtomicUsize = AtomicUsize::new(0);
static TOO_LARGE: AtomicBool = AtomicBool::new(false);
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Takes over SIGINT and SIGTERM: the first asks to stop, the second ends the process at once.
pub fn register() -> io::Result<()> {
    for (signal, number) in [(SIGINT, 2), (SIGTERM, 15)] {
        // The order matters: the first signal must find the flag still unset.
        flag::register_conditional_shutdown(signal, 128 + signal, &STOPPING)?;
        flag::register(signal, &STOPPING)?;
        flag::register_usize(signal, &RECEIVED, number)?;
    }
    // A file that may not grow any more (`ulimit -f`) is a write error, not the program's end.
    flag::register(SIGXFSZ, &TOO_LARGE)?;
    Ok(())
}

/// The number of the signal that asks the program to stop.
pub fn requested() -> Option<u8> {
    u8::try_from(RECEIVED.load(Ordering::SeqCst)).ok().filter(|&signal| signal != 0)
}

/// Sleeps until `end`, or until a signal comes.
pub fn sleep_until(end: Instant) {
    while requested().is_none() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(SLICE));
    }
}
