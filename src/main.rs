//! Checks and refreshes the login tokens of the 报名工具 service: flags and environment
//! to a connected store, to a verb, to a report and an exit code.

mod api;
mod args;
mod cause;
mod cleanup;
mod clock;
mod db_error;
mod delete;
mod import;
mod logging;
mod reads;
mod refresh;
mod report;
mod restore;
mod scheduler;
mod select;
mod self_test;
mod settings;
mod stop;
mod store;
mod summary;
mod text;
mod uri;
mod verdict;
mod worker;
mod writes;

use std::process::ExitCode;
use std::{env, fs};

use jiff::tz::TimeZone;
use log::{debug, error, info};

use crate::api::Api;
use crate::args::{Action, Args, USAGE};
use crate::clock::{Clock, zone_from_env};
use crate::report::{complain, print};
use crate::settings::Settings;
use crate::store::Store;
use crate::summary::{Stop, Summary};
use crate::text::{escape, os_error};

/// Why nothing more can be done: exit code 2 for flags and environment, 1 for
/// the system, and a line that says what is wrong.
struct Failure(u8, String);

impl From<String> for Failure {
    fn from(usage_error: String) -> Self {
        Self(2, usage_error)
    }
}

fn main() -> ExitCode {
    // No memory in a core dump, which would hold tokens; where that cannot be said, the scripts allow none.
    let _ = fs::write("/proc/self/coredump_filter", "0");
    let code = act().unwrap_or_else(|Failure(code, error)| {
        complain(&error);
        code
    });
    ExitCode::from(code)
}

fn act() -> Result<u8, Failure> {
    let args = args::parse(env::args_os().skip(1).collect())?;
    match &args.action {
        Action::Help => say(USAGE),
        Action::Version => {
            let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("BUILD_COMMIT"));
            say(&format!("refresh_baoming_tokens {version} ({commit})\n"))
        }
        Action::Refresh => Program::start(&args)?.once(|store, api| refresh::run(store, api, &args)),
        Action::SelfTest => Program::start(&args)?.once(|store, api| self_test::run(store, api, &args)),
        Action::Restore { hours } => {
            Program::start(&args)?.once(|store, _| restore::run(store, *hours, args.dry_run))
        }
        Action::Import { file } => {
            let program = Program::start(&args)?;
            match import::read(file) {
                Some(entries) => program.once(|store, _| import::run(store, file, entries)),
                None => Ok(program.report(&program.clock(), Summary::stopped_by(Stop::Broken))),
            }
        }
        Action::Schedule { interval, run_immediately } => {
            let mut program = Program::start(&args)?;
            scheduler::run(*interval, *run_immediately, || program.again());
            Ok(0)
        }
    }
}

fn say(text: &str) -> Result<u8, Failure> {
    print(text).map_err(|error| Failure(1, format!("无法输出: {} (cannot write)", os_error(&error))))?;
    Ok(0)
}

/// The checked input of all runs of the process.
struct Program<'a> {
    args: &'a Args,
    settings: Settings,
    zone: TimeZone,
}

impl<'a> Program<'a> {
    /// Checks all input, takes over the signals, and starts the log.
    fn start(args: &'a Args) -> Result<Self, Failure> {
        if let Some(path) = &args.metrics_file {
            report::check_metrics_target(path)?;
        }
        let program = Self { args, settings: Settings::from_env()?, zone: zone_from_env()? };
        stop::register()
            .map_err(|error| Failure(1, format!("无法处理信号: {} (no signals)", os_error(&error))))?;
        if let Err(error) = logging::start(args, program.zone.clone()) {
            program.report(&program.clock(), Summary::stopped_by(Stop::Broken));
            let error = os_error(&error);
            return Err(Failure(1, format!("无法打开 --log-file: {error} (cannot open the log file)")));
        }
        Ok(program)
    }

    fn clock(&self) -> Clock {
        Clock::start(self.zone.clone())
    }

    /// Connects, does one thing, and reports.
    fn once(&self, verb: impl FnOnce(&Store, &Api) -> Summary) -> Result<u8, Failure> {
        let clock = self.clock();
        let summary = match self.connect(clock.clone())? {
            Some(store) => verb(&store, &Api::new(&self.settings, self.args)),
            None => self.without_database(),
        };
        Ok(self.report(&clock, summary))
    }

    /// One scheduled run, with the secret as it is now.
    fn again(&mut self) {
        match Settings::from_env() {
            Ok(settings) => {
                self.settings = settings;
                // Its exit code is in the metrics; a usage error needs `--card`, which no scheduler takes.
                let _ = self.once(|store, api| refresh::run(store, api, self.args));
            }
            Err(reason) => {
                error!("❌ 本次不运行: {reason}");
                self.report(&self.clock(), Summary::stopped_by(Stop::Broken));
            }
        }
    }

    /// Connects to the database and finds the chosen card. `None`: the database
    /// is out of order, and it was said why.
    fn connect(&self, clock: Clock) -> Result<Option<Store>, Failure> {
        let Settings { connection, database, .. } = &self.settings;
        if !self.args.changed.is_empty() {
            info!("⚙️ 选项: {}", self.args.changed);
        }
        info!("🔧 正在连接数据库...");
        if !connection.left_out.is_empty() {
            debug!("  连接字符串中的这些选项不起作用: {}", connection.left_out.join(", "));
        }
        let mut store = match Store::connect(connection, database, clock, self.args.dry_run) {
            Ok(store) => store,
            Err(reason) => {
                error!("❌ 数据库 {} 连接失败: {reason}", connection.hosts);
                return Ok(None);
            }
        };
        info!("✅ MongoDB 连接成功！数据库: {}", escape(database));
        info!("✅ 数据库连接成功");
        let Some(name) = &self.args.card else { return Ok(Some(store)) };
        match store.cards_called(name).as_deref() {
            Ok([id]) => store.card = Some(*id),
            Ok([]) => return Err("--card 没有这个名片 (no such card)".to_owned().into()),
            Ok(ids) => {
                let ids = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(format!("--card 有多个同名名片，请改用 ID (use an id): {ids}").into());
            }
            Err(error) => {
                error!("❌ 数据库不可用: {error}");
                return Ok(None);
            }
        }
        Ok(Some(store))
    }

    /// A run that ended before its verb.
    fn without_database(&self) -> Summary {
        let mut summary = Summary::default();
        summary.lose_database(stop::requested());
        if self.args.action == Action::SelfTest {
            self_test::report([false; 4], &mut summary);
        }
        summary
    }

    /// Tells how a run ended. Returns the exit code.
    fn report(&self, clock: &Clock, mut summary: Summary) -> u8 {
        report::finish(self.args, &self.settings.database, clock, &mut summary);
        summary.exit_code()
    }
}
