//! The command lines of cron file and systemd unit, run as written on a tree that `install.sh` made;
//! and what systemd itself says of the units.

use super::install::install_binary;
use super::support::{
    Live, PATIENCE, Reply, Request, Run, Seed, Stub, TestDb, await_true, scratch_dir, unique_token,
};
use super::{checker, must_pass, run_script, script, world};
use rustix::process::{Signal, kill_process_group};
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const NAME: &str = "refresh_baoming_tokens";
const KEY: &str = "5ecretKey";
/// Instances of the unit, in the order of the lines of the cron file.
const SCHEDULES: [&str; 3] = ["active", "all", "cleanup"];

/// An installed tree, with its secrets filled in.
pub struct Server {
    pub root: PathBuf,
}

impl Server {
    pub fn new(db: &TestDb) -> Self {
        let root = scratch_dir();
        install_binary(&root).expect(0);
        let server = Self { root };
        fs::write(server.path("/etc/refresh_baoming_tokens/mongodb_uri"), &db.uri).expect("secret");
        let webhook = format!("http://chat.example/{KEY}\n");
        fs::write(server.path("/etc/refresh_baoming_tokens/webhook_url"), webhook).expect("secret");
        server
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn log(&self) -> String {
        self.read("/var/log/refresh_baoming_tokens/refresh.log")
    }

    pub fn metrics(&self) -> PathBuf {
        self.path("/var/lib/refresh_baoming_tokens/refresh.prom")
    }

    /// A text of an installed file, with the paths that this tree has on the machine at hand.
    pub fn here(&self, text: &str) -> String {
        let root = self.root.to_str().expect("UTF-8");
        ["/usr/local/", "/etc/refresh_baoming_tokens/", "/var/"]
            .iter()
            .fold(text.to_owned(), |text, path| text.replace(path, &format!("{root}{path}")))
    }

    /// A shell command in nothing but the given environment, this API and this chat robot.
    fn run(&self, db: &TestDb, api: &Stub, chat: &Stub, shell_command: &str) -> Run {
        let run = run_script("-", db, api).program("/bin/sh").args(["-c", &self.here(shell_command)]);
        run.env_remove("MONGODB_URI")
            .env_remove("TZ")
            .secret(KEY)
            .secret(&db.uri)
            .env("http_proxy", format!("http://{}", chat.address()))
            .env("NO_PROXY", "127.0.0.1")
    }

    /// What cron would run for the n-th schedule.
    fn cron(&self, n: usize, db: &TestDb, api: &Stub, chat: &Stub) -> Run {
        let file = self.read("/etc/cron.d/refresh_baoming_tokens");
        let lines: Vec<&str> = file
            .lines()
            .filter_map(|line| line.strip_prefix('#')?.split_once("  root  "))
            .map(|l| l.1)
            .collect();
        assert_eq!(lines.len(), SCHEDULES.len());
        let variables =
            file.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        variables
            .fold(self.run(db, api, chat, lines[n]), |run, (name, value)| run.env(name, self.here(value)))
    }

    /// What systemd would run for the n-th schedule.
    fn unit(&self, n: usize, db: &TestDb, api: &Stub, chat: &Stub) -> Run {
        let run = self.run(db, api, chat, &self.unit_command("ExecStart=/bin/sh -c '"));
        let run = run.env("CREDENTIALS_DIRECTORY", self.path("/etc/refresh_baoming_tokens"));
        let settings = [format!("{}.conf", SCHEDULES[n]), "settings.conf".to_owned()]
            .map(|file| self.read(&format!("/etc/refresh_baoming_tokens/{file}")));
        let lines = settings.iter().flat_map(|file| file.lines()).filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split_once('=')).fold(run, |run, (name, value)| run.env(name, value))
    }

    /// The shell command behind this start of a line of the unit.
    pub fn unit_command(&self, start: &str) -> String {
        let unit = self.read("/etc/systemd/system/refresh_baoming_tokens@.service").replace("\\\n", " ");
        let command = unit.lines().find_map(|line| line.strip_prefix(start)?.strip_suffix('\''));
        command.expect("a command").to_owned()
    }
}

#[test]
fn each_schedule_does_its_job_and_reports() {
    for (n, schedule) in SCHEDULES.iter().enumerate() {
        for by_cron in [true, false] {
            let context = format!("{schedule}, by cron: {by_cron}");
            let (db, api) = world();
            let chat = Stub::always(Reply::json(200, ""));
            let server = Server::new(&db);
            let recent = db.add(Seed::new(&unique_token("recent")).last_used_days_ago(1.0));
            let idle = db.add(Seed::new(&unique_token("idle")).last_used_days_ago(10.0));
            let unused = db.add(Seed::new(&unique_token("busy")).last_used_days_ago(41.0));
            let last_used = |id| {
                db.token(id).and_then(|token| token.get_datetime("last_used").ok().copied()).expect("a date")
            };
            let before = [recent, idle].map(last_used);
            let run =
                if by_cron { server.cron(n, &db, &api, &chat) } else { server.unit(n, &db, &api, &chat) };
            let outcome = run.go();
            let is_active = *schedule == "active";
            assert_eq!(outcome.code, Some(if is_active { 0 } else { 3 }), "{context}: {outcome:?}");
            // systemd keeps the log that comes on stderr; cron would mail it.
            assert_eq!((outcome.stdout.as_str(), outcome.stderr.is_empty()), ("", by_cron), "{context}");
            assert!(server.log().contains("🎉 刷新完成"), "{context}");
            assert!(
                fs::read_to_string(server.metrics()).expect("metrics").contains("_exit_code"),
                "{context}"
            );

            assert_ne!(last_used(recent), before[0], "{context}");
            assert_eq!(last_used(idle) != before[1], !is_active, "{context}");
            assert_eq!(db.token(unused).is_none(), *schedule == "cleanup", "{context}");
            db.assert_none_lost();
            let posted: Vec<String> = chat
                .recorded()
                .iter()
                .map(|request: &std::sync::Arc<Request>| String::from_utf8_lossy(&request.body).into_owned())
                .collect();
            let expected = match *schedule {
                "active" => None,
                "all" => Some("失败 1"),
                _ => Some("清理 1"),
            };
            assert_eq!(posted.len(), usize::from(expected.is_some()), "{context}: {posted:?}");
            assert!(
                posted.iter().all(|text| text.contains(expected.unwrap_or_default())),
                "{context}: {posted:?}"
            );
        }
    }
}

/// How many processes wait for the lock on a folder.
fn waiting(dir: &Path) -> usize {
    let inode = format!(":{} ", fs::metadata(dir).expect("folder").st_ino());
    let locks = fs::read_to_string("/proc/locks").expect("locks");
    locks.lines().filter(|line| line.contains("-> FLOCK") && line.contains(&inode)).count()
}

#[test]
fn no_two_schedules_overlap() {
    let (db, _) = world();
    let server = Server::new(&db);
    db.add_token("good");
    let chat = Stub::always(Reply::json(200, ""));
    let state = server.path("/var/lib/refresh_baoming_tokens");
    let lock = state.clone();
    // The first run is not answered before all others wait for it.
    let api = Stub::start(move |request| {
        if request.number == 1 {
            await_true("five runs wait for the first", || waiting(&lock) == 5);
        }
        Reply::valid()
    });
    let by_cron = (0..3).map(|n| server.cron(n, &db, &api, &chat).start());
    let by_systemd = (0..3).map(|n| server.unit(n, &db, &api, &chat).start());
    let runs: Vec<Live> = by_cron.chain(by_systemd).collect();
    for run in runs {
        run.wait().expect(0);
    }
    let log = server.log();
    let marks: Vec<char> = log.chars().filter(|c| "🚀🎉".contains(*c)).collect();
    assert_eq!(marks, ['🚀', '🎉'].repeat(6), "{log}");
}

#[test]
fn a_stop_by_systemd_ends_the_run_and_is_reported() {
    let (db, _) = world();
    let server = Server::new(&db);
    db.add_tokens("good", 2);
    let chat = Stub::always(Reply::json(200, ""));
    let (stopped, gate) = std::sync::mpsc::channel();
    let gate = std::sync::Mutex::new(gate);
    let api = Stub::start(move |_| {
        gate.lock().expect("lock").recv_timeout(PATIENCE).expect("the signal");
        Reply::valid()
    });
    let run = server.unit(1, &db, &api, &chat).start();
    api.await_request(1);
    // One that still waits for its turn has nothing to report.
    let queued = server.unit(2, &db, &api, &chat).start();
    let state = server.path("/var/lib/refresh_baoming_tokens");
    await_true("the second run waits for the first", || waiting(&state) == 1);
    kill_process_group(queued.pid(), Signal::TERM).expect("signal");
    queued.wait().expect(143);
    assert_eq!(chat.requests(), 0);
    // To all processes of the unit.
    kill_process_group(run.pid(), Signal::TERM).expect("signal");
    stopped.send(()).expect("a waiting stub");
    let outcome = run.wait().expect(143);
    assert!(outcome.stderr.contains("⏹️ 刷新提前结束"), "{outcome:?}");
    let message = String::from_utf8_lossy(&chat.await_request(1).body).into_owned();
    assert!(message.contains("被信号中止") && message.contains("未处理 1"), "{message}");
    db.assert_none_lost();
}

#[test]
fn node_exporter_gets_a_readable_copy_of_the_metrics() {
    let (db, api) = world();
    let server = Server::new(&db);
    let chat = Stub::always(Reply::json(200, ""));
    server.unit(0, &db, &api, &chat).go().expect(0);
    let copy = server.unit_command("ExecStopPost=-+/bin/sh -c '");
    let folder = server.path("/var/lib/prometheus/node-exporter");
    // Where there is no node_exporter, nothing happens.
    assert_eq!(server.run(&db, &api, &chat, &copy).go().expect(0).log(), "");
    assert!(!folder.exists());
    fs::create_dir_all(&folder).expect("folder");
    for _ in 0..2 {
        server.run(&db, &api, &chat, &copy).go().expect(0);
        let entries: Vec<_> =
            fs::read_dir(&folder).expect("folder").map(|e| e.expect("entry").path()).collect();
        assert_eq!(entries, [folder.join("refresh_baoming_tokens.prom")]);
        assert_eq!(fs::read(&entries[0]).ok(), fs::read(server.metrics()).ok());
        assert_eq!(fs::metadata(&entries[0]).expect("mode").permissions().mode() & 0o777, 0o644);
    }
}

fn unit_files() -> Vec<PathBuf> {
    let files = fs::read_dir(script("systemd")).expect("folder").map(|entry| entry.expect("entry").path());
    files.filter(|file| file.extension().is_some_and(|e| e == "service" || e == "timer")).collect()
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let Some(mut verify) = checker("systemd-analyze") else { return };
    assert_eq!(must_pass(verify.arg("verify").args(unit_files())), "");
    // It would say so: the same with a misspelt setting, and with a program that is not there.
    let unit = fs::read_to_string(script("systemd/refresh_baoming_tokens@.service")).expect("unit");
    for (good, bad) in [("LimitCORE=", "LimitCORES="), ("/bin/sh -c", "/bin/missing -c")] {
        let file = scratch_dir().join("refresh_baoming_tokens@.service");
        fs::write(&file, unit.replacen(good, bad, 1)).expect("unit");
        let output = checker("systemd-analyze").expect("as above").arg("verify").arg(file).output();
        assert!(!output.expect("verdict").stderr.is_empty(), "{bad} is not noticed");
    }
    let mut security = checker("systemd-analyze").expect("as above");
    let service = script("systemd/refresh_baoming_tokens@.service");
    must_pass(security.args(["security", "--offline=true", "--threshold=20"]).arg(service));
}

#[test]
fn timers_and_cron_lines_mean_the_same_times() {
    let cron = fs::read_to_string(script("cron/refresh_baoming_tokens")).expect("cron file");
    for (schedule, cron_times, first, second) in [
        ("active", "0 */6 * * *", "Thu 2026-02-12 18:00:00", "Fri 2026-02-13 00:00:00"),
        ("all", "0 2 * * *", "Fri 2026-02-13 02:00:00", "Sat 2026-02-14 02:00:00"),
        ("cleanup", "0 3 * * 0", "Sun 2026-02-15 03:00:00", "Sun 2026-02-22 03:00:00"),
    ] {
        let schedule_of = |line: &str| {
            line.strip_prefix('#')?
                .split_once("root")?
                .0
                .split_whitespace()
                .map(str::to_owned)
                .reduce(|a, b| a + " " + &b)
        };
        assert!(cron.lines().any(|line| schedule_of(line).as_deref() == Some(cron_times)), "{cron_times}");
        let Some(mut calendar) = checker("systemd-analyze") else { continue };
        let timer = fs::read_to_string(script(&format!("systemd/{NAME}@{schedule}.timer"))).expect("timer");
        let expression = timer.lines().find_map(|line| line.strip_prefix("OnCalendar=")).expect("OnCalendar");
        calendar.args(["calendar", "--iterations=2", "--base-time=2026-02-12 13:00:00", expression]);
        let said = must_pass(calendar.env("TZ", "UTC"));
        for time in [first, second] {
            assert!(said.contains(time), "{schedule}: no {time} in\n{said}");
        }
        assert!(
            timer.contains("\nPersistent=true\n") && timer.contains("\nRandomizedDelaySec="),
            "{schedule}"
        );
    }
}

#[test]
fn what_units_cron_file_and_readme_name_is_installed() {
    let root = scratch_dir();
    install_binary(&root).expect(0);
    let others = [script("cron/refresh_baoming_tokens"), script("../README.md")];
    let files = unit_files().into_iter().chain(others);
    let texts: String = files.map(|file| fs::read_to_string(file).expect("file")).collect();
    let is_end = |c: char| c.is_whitespace() || "'\"`:,;)".contains(c);
    let mut paths: Vec<&str> = texts
        .split(is_end)
        .flat_map(|word| word.split('='))
        .filter(|word| word.starts_with("/usr/local/") || word.starts_with("/etc/refresh_baoming_tokens/"))
        .filter(|word| *word != "/usr/local/bin" && !word.contains("INSTANCE"))
        .collect();
    paths.sort_unstable();
    paths.dedup();
    assert!(paths.len() > 5, "{paths:?}");
    for path in paths {
        for schedule in SCHEDULES {
            let path = path.replace("%i", schedule);
            assert!(root.join(path.trim_start_matches('/')).exists(), "{path}");
        }
    }
}
