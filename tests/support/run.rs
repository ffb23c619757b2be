//! Runs of the real binary in a clean environment. Every finished run is searched for secrets.

use super::seed::TestDb;
use super::{MARK, PATIENCE, Stub, Total, Watched, binary, command, count};
use rustix::process::{Pid, kill_process, kill_process_group};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};

pub use rustix::process::Signal;

/// A run to be: the program, its arguments and its whole environment.
pub struct Run {
    program: PathBuf,
    args: Vec<OsString>,
    env: BTreeMap<String, OsString>,
    secrets: Vec<String>,
    limit: Duration,
}

impl Run {
    /// On this database and API, in Shanghai, without a pause between tokens.
    pub fn new(db: &TestDb, api: &Stub) -> Self {
        let mut run = Self::bare().arg("--delay-ms").arg("0");
        run = run.env("MONGODB_URI", &db.uri).env("MONGODB_DB_NAME", &db.name);
        run.secrets.extend(db.secrets());
        run.env("BAOMING_API_BASE", api.base()).env("TZ", "Asia/Shanghai")
    }

    /// No arguments, and no environment but what makes other programs say more than they should.
    pub fn bare() -> Self {
        let (args, env, secrets) = (Vec::new(), BTreeMap::new(), Vec::new());
        let run = Self { program: binary(), args, env, secrets, limit: PATIENCE };
        run.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1")
    }

    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Drops the arguments so far, that is `--delay-ms 0`.
    pub fn no_args(mut self) -> Self {
        self.args.clear();
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    pub fn envs<'a, V: Into<OsString>>(self, vars: impl IntoIterator<Item = (&'a str, V)>) -> Self {
        vars.into_iter().fold(self, |run, (name, value)| run.env(name, value))
    }

    pub fn env_remove(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// One more text that must not show in the output.
    pub fn secret(mut self, secret: &str) -> Self {
        self.secrets.push(secret.to_owned());
        self
    }

    /// The time after which the run has failed the test; [`PATIENCE`] until told otherwise.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The bare command, for what this type does not offer (other files as standard output, say).
    /// Its output is then not searched for secrets.
    pub fn command(&self) -> Command {
        let mut command = command(&self.program);
        let mark = command.get_envs().find_map(|(_, mark)| mark).expect("a mark").to_owned();
        command.env_clear().env(MARK, mark).envs(&self.env).args(&self.args).stdin(Stdio::null());
        command
    }

    pub fn go(self) -> Outcome {
        self.start().wait()
    }

    pub fn start(self) -> Live {
        count(Total::RUNS, 1);
        let mut command = self.command();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        let output = Arc::new(Watched::default());
        read_along(child.stdout.take().expect("stdout"), &output, 0);
        read_along(child.stderr.take().expect("stderr"), &output, 1);
        Live { child, output, started: Instant::now(), run: self }
    }

    /// The secrets that show in an output, or in a file that the program was told to write: those
    /// of the database, and the connection string with its password; as they are and percent-encoded.
    pub fn leaked(&self, outcome: &Outcome) -> Vec<String> {
        let mut shown = outcome.log();
        for pair in self.args.windows(2) {
            // A pipe would be waited for.
            let is_file = || fs::metadata(&pair[1]).is_ok_and(|file| file.is_file());
            if (pair[0] == "--log-file" || pair[0] == "--metrics-file") && is_file() {
                shown += &String::from_utf8_lossy(&fs::read(&pair[1]).unwrap_or_default());
            }
        }
        let mut secrets = self.secrets.clone();
        if let Some(uri) = self.env.get("MONGODB_URI").and_then(|uri| uri.to_str()) {
            let password = || uri.split_once("://")?.1.rsplit_once('@')?.0.split_once(':').map(|(_, it)| it);
            secrets.extend(password().into_iter().chain([uri]).map(str::to_owned));
        }
        let encode = |secret: &String| form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let encoded: Vec<String> = secrets.iter().map(encode).collect();
        let all: BTreeSet<String> = secrets.into_iter().chain(encoded).collect();
        // What is no longer than a masked token hides nothing.
        all.into_iter().filter(|secret| secret.chars().count() > 4 && shown.contains(secret)).collect()
    }
}

/// Both streams so far: standard output, standard error.
#[derive(Default)]
struct Output {
    bytes: [Vec<u8>; 2],
    ended: [bool; 2],
}

fn read_along(mut stream: impl Read + Send + 'static, output: &Arc<Watched<Output>>, which: usize) {
    let output = Arc::clone(output);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            output.change(|output| output.bytes[which].extend(&buffer[..n]));
        }
        output.change(|output| output.ended[which] = true);
    });
}

/// A run that is going on. Killed when dropped.
pub struct Live {
    child: Child,
    output: Arc<Watched<Output>>,
    started: Instant,
    run: Run,
}

impl Live {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a live process");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("state of the run").is_none()
    }

    pub fn kill(self) -> Outcome {
        count(Total::KILLS, 1);
        self.kill_all();
        self.wait()
    }

    fn kill_all(&self) {
        // Fails when all of them have ended by themselves.
        let _ = kill_process_group(self.pid(), Signal::KILL);
    }

    pub fn await_line(&self, text: &str) -> String {
        let found = self.output.wait(self.run.limit, |output| {
            let texts = output.texts();
            let mut whole =
                texts.iter().flat_map(|text| text.split_inclusive('\n')).filter(|it| it.ends_with('\n'));
            let found = whole.find(|line| line.contains(text)).map(str::to_owned);
            (found.is_some() || output.ended == [true, true]).then_some(found)
        });
        found.flatten().unwrap_or_else(|| panic!("no line with {text:?} in {:?}", self.output.lock().texts()))
    }

    /// Waits for its end; kills it, and fails the test, when the time is over.
    pub fn wait(mut self) -> Outcome {
        let left = self.run.limit.saturating_sub(self.started.elapsed());
        let ended = self.output.wait(left, |output| (output.ended == [true, true]).then_some(()));
        if ended.is_none() {
            self.kill_all();
            panic!("not over within {:?}: {:?}", self.run.limit, self.output.lock().texts());
        }
        let status = self.child.wait().expect("exit status");
        let elapsed = self.started.elapsed();
        let [stdout, stderr] = self.output.lock().texts();
        let outcome = Outcome { code: status.code(), signal: status.signal(), stdout, stderr, elapsed };
        let leaked = self.run.leaked(&outcome);
        count(Total::LEAKED, leaked.len());
        assert!(leaked.is_empty(), "secrets in the output: {leaked:?}\n{outcome:?}");
        outcome
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Otherwise `wait` has been here, and the process id may be somebody else's by now.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.kill_all();
            let _ = self.child.wait();
        }
    }
}

impl Output {
    fn texts(&self) -> [String; 2] {
        [0, 1].map(|which| String::from_utf8_lossy(&self.bytes[which]).into_owned())
    }
}

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub elapsed: Duration,
}

impl Outcome {
    /// Panics, and shows the output, when the exit code is another one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code\n{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The log, on whichever stream it is.
    pub fn log(&self) -> String {
        self.stdout.clone() + &self.stderr
    }

    /// A count of the statistics block (`成功`, `失败`, …); 0 when it has no such line.
    #[track_caller]
    pub fn stat(&self, name: &str) -> u64 {
        let log = self.log();
        let block = log.rsplit_once("刷新统计:").and_then(|(_, block)| block.split("====").next());
        let block = block.unwrap_or_else(|| panic!("no statistics in\n{log}"));
        let count = block.split_once(&format!("{name}: ")).map(|(_, rest)| rest.split(' ').next());
        count.map_or(0, |count| count.and_then(|n| n.parse().ok()).expect("a number"))
    }

    /// Standard output as the one JSON object that it must be.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let parsed = serde_json::from_str(&self.stdout);
        parsed.unwrap_or_else(|error| panic!("not one JSON object ({error}): {:?}", self.stdout))
    }
}
