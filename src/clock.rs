//! The wall-clock convention of the data: the desktop application stores the
//! local wall clock as if it were UTC, so 18:50:13 in Shanghai is stored as
//! `…T18:50:13Z`. All ages and limits are computed in that convention.

use std::path::Path;
use std::{env, fs};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

const MILLIS_PER_DAY: i64 = 86_400_000;

/// A local wall clock reading in milliseconds since 1970-01-01T00:00 on that clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub i64);

impl WallTime {
    /// The reading `days` earlier.
    pub fn minus_days(self, days: u32) -> Self {
        Self(self.0.saturating_sub(i64::from(days) * MILLIS_PER_DAY))
    }

    /// Whole days from `earlier` to here.
    pub fn days_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0) / MILLIS_PER_DAY
    }
}

impl std::fmt::Display for WallTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{}", at.strftime("%Y-%m-%d %H:%M:%S")),
            Err(_) => f.write_str("时间超出范围"),
        }
    }
}

/// The zone whose wall clock is used, found out once at the start.
#[derive(Clone)]
pub struct Clock {
    zone: TimeZone,
}

impl Clock {
    /// The zone that `TZ` names, else the system's.
    ///
    /// # Errors
    /// A zone that cannot be resolved: one line that says what to do.
    pub fn from_env() -> Result<Self, String> {
        if let Some(zone) = zone_file() {
            return Ok(Self { zone });
        }
        match TimeZone::try_system() {
            Ok(zone) if !zone.is_unknown() => Ok(Self { zone }),
            _ if env::var_os("TZ").is_some() => {
                Err("TZ names an unknown time zone; use a name like Asia/Shanghai".to_owned())
            }
            _ => Err("the system's time zone is unknown; set TZ, e.g. TZ=Asia/Shanghai".to_owned()),
        }
    }

    /// The wall clock at an instant.
    pub fn wall(&self, at: Timestamp) -> WallTime {
        let offset = i64::from(self.zone.to_offset(at).seconds());
        WallTime(at.as_millisecond() + offset * 1000)
    }

    /// The wall clock now.
    pub fn wall_now(&self) -> WallTime {
        self.wall(Timestamp::now())
    }

    /// An instant in RFC 3339 with this zone's offset, to the second.
    pub fn rfc3339(&self, at: Timestamp) -> String {
        let zoned = at.to_zoned_datetime(self.zone.clone());
        zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    }
}

/// The file of the zone that `TZ` names, which is what jiff would find as well;
/// but jiff first reads the names of all zones, more than a thousand files. What
/// is no plain name, or has no file, is left to it.
fn zone_file() -> Option<TimeZone> {
    let name = env::var("TZ").ok().filter(|name| !name.starts_with('/') && !name.contains(".."))?;
    let bytes = fs::read(Path::new("/usr/share/zoneinfo").join(&name)).ok()?;
    TimeZone::tzif(&name, &bytes).ok()
}

/// Seconds to wait for a `Retry-After` header: a number of seconds, or a date.
pub fn retry_after_secs(header: &str, now: Timestamp) -> Option<u64> {
    if let Ok(secs) = header.trim().parse() {
        return Some(secs);
    }
    let date = jiff::fmt::rfc2822::parse(header.trim()).ok()?.timestamp();
    let wait: SignedDuration = date.duration_since(now);
    Some(u64::try_from(wait.as_secs()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(zone: &str) -> Clock {
        Clock { zone: TimeZone::get(zone).expect("a zone of the bundled database") }
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
    }

    #[test]
    fn rfc3339_carries_the_offset() {
        let at: Timestamp = "2026-02-12T10:50:13Z".parse().expect("a timestamp");
        assert_eq!(clock("Asia/Shanghai").rfc3339(at), "2026-02-12T18:50:13+08:00");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-02-12T10:50:13Z".parse().expect("a timestamp");
        let table = [
            ("7", Some(7)),
            ("Thu, 12 Feb 2026 10:50:43 GMT", Some(30)),
            ("Thu, 12 Feb 2026 10:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ];
        for (header, expected) in table {
            assert_eq!(retry_after_secs(header, now), expected, "{header}");
        }
    }
}
