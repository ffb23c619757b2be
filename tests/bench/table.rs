//! The table of targets: what was measured, and whether that is good enough.

#[derive(Clone, Copy)]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// Every sample is as much as this, with so much to either side.
    About(f64, f64),
    None,
}

/// The table so far, told line by line: the whole takes minutes.
pub struct Table {
    pub missed: usize,
}

impl Table {
    pub fn new() -> Self {
        print(["what", "target", "median", "min", "max", "n", ""]);
        println!("|{0:-<62}|{0:->10}:|{0:->9}:|{0:->9}:|{0:->9}:|{0:->4}:|{0:-<8}|", "");
        Self { missed: 0 }
    }

    pub fn add(&mut self, what: &str, limit: Limit, samples: impl IntoIterator<Item = f64>) {
        let mut samples: Vec<f64> = samples.into_iter().collect();
        samples.sort_by(f64::total_cmp);
        let n = samples.len();
        let (min, max) = (samples[0], samples[n - 1]);
        let median = f64::midpoint(samples[n / 2], samples[n - 1 - n / 2]);
        let (target, is_met) = match limit {
            Limit::AtMost(limit) => (format!("≤ {}", number(limit)), median <= limit),
            Limit::AtLeast(limit) => (format!("≥ {}", number(limit)), median >= limit),
            Limit::About(middle, margin) => {
                let is_met = min >= middle - margin && max <= middle + margin;
                (format!("{} ± {}", number(middle), number(margin)), is_met)
            }
            Limit::None => (String::new(), true),
        };
        self.missed += usize::from(!is_met);
        let verdict = match limit {
            Limit::None => "",
            _ if is_met => "met",
            _ => "MISSED",
        };
        let [median, min, max] = [median, min, max].map(number);
        print([what, &target, &median, &min, &max, &n.to_string(), verdict]);
    }
}

fn print([what, limit, median, min, max, n, verdict]: [&str; 7]) {
    println!("| {what:<60} | {limit:>9} | {median:>8} | {min:>8} | {max:>8} | {n:>3} | {verdict:<6} |");
}

/// Two decimals, unless there are none.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
