//! The table of targets: what was measured, and whether that is good enough.

use std::fmt;

/// What a target asks for.
#[derive(Clone, Copy)]
pub enum Limit {
    /// The median is no more than this.
    AtMost(f64),
    /// The median is no less than this.
    AtLeast(f64),
    /// Every sample is as much as this, with so much to either side.
    About(f64, f64),
    /// No target, for information.
    None,
}

/// One line of the table.
struct Row {
    what: String,
    limit: Limit,
    /// In ascending order.
    samples: Vec<f64>,
}

/// The table so far.
#[derive(Default)]
pub struct Table(Vec<Row>);

impl Table {
    /// Adds what was measured, and tells it at once: the whole takes minutes.
    pub fn add(&mut self, what: &str, limit: Limit, samples: impl IntoIterator<Item = f64>) {
        let mut samples: Vec<f64> = samples.into_iter().collect();
        assert!(!samples.is_empty(), "nothing measured: {what}");
        samples.sort_by(f64::total_cmp);
        let row = Row { what: what.to_owned(), limit, samples };
        eprintln!("{row}");
        self.0.push(row);
    }

    /// How many targets are missed.
    pub fn missed(&self) -> usize {
        self.0.iter().filter(|row| row.is_met() == Some(false)).count()
    }
}

impl Row {
    fn median(&self) -> f64 {
        let middle = self.samples.len() / 2;
        if self.samples.len() % 2 == 1 {
            self.samples[middle]
        } else {
            f64::midpoint(self.samples[middle - 1], self.samples[middle])
        }
    }

    fn min_max(&self) -> (f64, f64) {
        (self.samples[0], self.samples[self.samples.len() - 1])
    }

    fn is_met(&self) -> Option<bool> {
        let (min, max) = self.min_max();
        match self.limit {
            Limit::AtMost(limit) => Some(self.median() <= limit),
            Limit::AtLeast(limit) => Some(self.median() >= limit),
            Limit::About(middle, margin) => Some(min >= middle - margin && max <= middle + margin),
            Limit::None => None,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (min, max) = self.min_max();
        let [median, min, max] = [self.median(), min, max].map(number);
        let verdict = self.is_met().map_or("", |is_met| if is_met { "met" } else { "MISSED" });
        f.write_str(&line([
            &self.what,
            &self.limit.to_string(),
            &median,
            &min,
            &max,
            &self.samples.len().to_string(),
            verdict,
        ]))
    }
}

fn line([what, limit, median, min, max, n, verdict]: [&str; 7]) -> String {
    format!("| {what:<60} | {limit:>9} | {median:>8} | {min:>8} | {max:>8} | {n:>3} | {verdict:<6} |")
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AtMost(limit) => write!(f, "≤ {}", number(limit)),
            Self::AtLeast(limit) => write!(f, "≥ {}", number(limit)),
            Self::About(middle, 0.0) => write!(f, "= {}", number(middle)),
            Self::About(middle, margin) => write!(f, "{} ± {}", number(middle), number(margin)),
            Self::None => Ok(()),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", line(["what", "target", "median", "min", "max", "n", ""]))?;
        writeln!(f, "|{0:-<62}|{0:->10}:|{0:->9}:|{0:->9}:|{0:->9}:|{0:->4}:|{0:-<8}|", "")?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// Two decimals, unless there are none.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
