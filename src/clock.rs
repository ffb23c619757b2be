//! The wall-clock convention of the data: the desktop application stores the
//! local wall clock as if it were UTC, so 18:50:13 in Shanghai is stored as
//! `…T18:50:13Z`. All ages and limits are computed in that convention.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fmt, fs};

use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

const MILLIS_PER_HOUR: i64 = 3_600_000;
const MILLIS_PER_DAY: i64 = 24 * MILLIS_PER_HOUR;

/// A local wall clock reading in milliseconds since 1970-01-01T00:00 on that clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub i64);

impl WallTime {
    pub fn minus_days(self, days: u32) -> Self {
        Self(self.0.saturating_sub(i64::from(days) * MILLIS_PER_DAY))
    }

    pub fn days_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0) / MILLIS_PER_DAY
    }

    /// Whether this is more than an hour after `now`: no clock of the same zone writes that.
    pub fn is_ahead_of(self, now: Self) -> bool {
        self.0.saturating_sub(now.0) > MILLIS_PER_HOUR
    }
}

/// `2026-02-12 18:50:13`
const PRINTER: DateTimePrinter = DateTimePrinter::new().separator(b' ').precision(Some(0));

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_millisecond(self.0) {
            Ok(at) => f.write_str(&PRINTER.datetime_to_string(&TimeZone::UTC.to_datetime(at))),
            Err(_) => f.write_str("时间超出范围"),
        }
    }
}

/// The zone whose wall clock is used: the one that `TZ` names, else the system's; as this machine knows
/// it, else as the bundled database does. jiff's own search for files reads the names of all zones first.
pub fn zone_from_env() -> Result<TimeZone, String> {
    const UNKNOWN: &str = "TZ 不是已知的时区，例如 TZ=Asia/Shanghai (unknown time zone in TZ)";
    const UNSET: &str =
        "无法确定系统时区，请设置 TZ，例如 TZ=Asia/Shanghai (system time zone unknown; set TZ)";
    let name = env::var_os("TZ").unwrap_or_default();
    let name = name.to_str().ok_or(UNKNOWN)?.trim_start_matches(':');
    let file = if name.is_empty() { "/etc/localtime" } else { name };
    let of_file = fs::read(Path::new("/usr/share/zoneinfo").join(file));
    let zone = of_file.ok().and_then(|bytes| TimeZone::tzif(name, &bytes).ok());
    // jiff would take an empty name for UTC.
    let bundled = || TimeZone::try_system().ok().filter(|zone| !name.is_empty() && !zone.is_unknown());
    zone.or_else(bundled).ok_or_else(|| if name.is_empty() { UNSET } else { UNKNOWN }.to_owned())
}

/// An instant on a zone's wall clock.
pub fn wall(zone: &TimeZone, at: Timestamp) -> WallTime {
    let offset = i64::from(zone.to_offset(at).seconds());
    WallTime(at.as_millisecond().saturating_add(offset * 1000))
}

/// The clock of one run: read once, then carried on by the monotonic clock, so
/// that a clock that is set meanwhile changes no stored or compared instant.
#[derive(Clone)]
pub struct Clock {
    zone: TimeZone,
    pub started: Timestamp,
    running: Instant,
}

impl Clock {
    pub fn start(zone: TimeZone) -> Self {
        Self { zone, started: Timestamp::now(), running: Instant::now() }
    }

    pub fn elapsed(&self) -> Duration {
        self.running.elapsed()
    }

    pub fn now(&self) -> Timestamp {
        self.started.saturating_add(self.running.elapsed()).unwrap_or(self.started)
    }

    pub fn hours_ago(&self, hours: u32) -> Timestamp {
        let ago = SignedDuration::from_hours(hours.into());
        self.now().saturating_sub(ago).unwrap_or(Timestamp::MIN)
    }

    pub fn wall(&self, at: Timestamp) -> WallTime {
        wall(&self.zone, at)
    }

    pub fn wall_now(&self) -> WallTime {
        self.wall(self.now())
    }

    /// An instant in RFC 3339 with this zone's offset, to the second.
    pub fn rfc3339(&self, at: Timestamp) -> String {
        let zoned = at.to_zoned_datetime(self.zone.clone());
        zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(zone: &str) -> Clock {
        Clock::start(TimeZone::get(zone).expect("a zone of the bundled database"))
    }

    #[test]
    fn the_wall_clock_is_taken_as_if_it_were_utc() {
        let table = [
            ("2026-02-12T10:50:13Z", "Asia/Shanghai", "2026-02-12 18:50:13"),
            ("2026-02-12T10:50:13Z", "UTC", "2026-02-12 10:50:13"),
            ("2026-01-15T12:00:00Z", "America/New_York", "2026-01-15 07:00:00"),
            ("2026-07-15T12:00:00Z", "America/New_York", "2026-07-15 08:00:00"),
        ];
        for (at, zone, expected) in table {
            let at: Timestamp = at.parse().expect("a timestamp");
            assert_eq!(clock(zone).wall(at).to_string(), expected, "{zone}");
        }
    }

    #[test]
    fn ages_are_whole_days_and_do_not_overflow() {
        let now = WallTime(100 * MILLIS_PER_DAY);
        assert_eq!(now.days_since(now.minus_days(41)), 41);
        assert_eq!(now.days_since(WallTime(now.0 - 2 * MILLIS_PER_DAY + 1)), 1);
        assert_eq!(now.days_since(WallTime(i64::MIN)), i64::MAX / MILLIS_PER_DAY);
        assert_eq!(WallTime(i64::MIN).minus_days(7), WallTime(i64::MIN));
        assert_eq!(WallTime(i64::MAX).to_string(), "时间超出范围");
        assert!(WallTime(i64::MAX).is_ahead_of(WallTime(i64::MIN)));
        assert!(!WallTime(now.0 + MILLIS_PER_HOUR).is_ahead_of(now));
    }

    #[test]
    fn rfc3339_carries_the_offset() {
        let at: Timestamp = "2026-02-12T10:50:13Z".parse().expect("a timestamp");
        assert_eq!(clock("Asia/Shanghai").rfc3339(at), "2026-02-12T18:50:13+08:00");
    }
}
