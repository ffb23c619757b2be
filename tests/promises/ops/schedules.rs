//! Cron and systemd on an installed machine, and what they do when something is amiss; and what
//! systemd itself says of the units.

use super::install::install_binary;
use super::machine::{ETC, LOG, Machine};
use super::support::{Reply, Run, Seed, Stub, TestDb, await_true, scratch_dir, unique_token};
use super::{checker, must_pass, script, world};
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

const NAME: &str = "refresh_baoming_tokens";
const SCHEDULES: [&str; 3] = ["active", "all", "cleanup"];

/// The texts that the robot got so far.
fn messages(chat: &Stub) -> Vec<String> {
    let text = |body: &[u8]| {
        let payload: serde_json::Value = serde_json::from_slice(body).expect("a JSON payload");
        payload["text"].as_str().expect("a text").to_owned()
    };
    chat.recorded().iter().map(|request| text(&request.body)).collect()
}

fn silent() -> Stub {
    Stub::always(Reply::json(200, ""))
}

/// Tokens used lately, not so lately and not for long; the last one gets no answer.
fn three_ages(db: &TestDb) -> [mongodb::bson::oid::ObjectId; 3] {
    [("recent", 1.0), ("idle", 10.0), ("busy", 41.0)]
        .map(|(label, days)| db.add(Seed::new(&unique_token(label)).last_used_days_ago(days)))
}

#[test]
fn each_schedule_does_its_job_and_is_judged_by_itself() {
    let (db, api) = world();
    let chat = silent();
    let Some(machine) = Machine::installed(&db, &api, &chat) else { return };
    let ids = three_ages(&db);
    let last_used = |id| db.token(id).map(|token| token.get_datetime("last_used").copied().expect("a date"));
    for (schedule, code, refreshed, posted) in [
        ("active", 0, 1, None),
        ("all", 3, 2, Some("[all] ⚠️ 退出码 3: 部分 Token 失败，已保留\n总计 3, 成功 2, 失败 1\n原因: ")),
        ("cleanup", 3, 2, Some("清理 1\n")),
    ] {
        let before = (ids.map(last_used), messages(&chat).len());
        let outcome = machine.sh(&format!("baoming run {schedule}")).go().expect(code);
        assert_eq!(outcome.log(), "", "{schedule}: cron would mail it");
        let moved =
            ids.iter().zip(before.0).filter(|&(&id, date)| last_used(id).is_some_and(|now| Some(now) > date));
        assert_eq!(moved.count(), refreshed, "{schedule}");
        let new = messages(&chat).split_off(before.1);
        assert_eq!(new.len(), usize::from(posted.is_some()), "{schedule}: {new:?}");
        assert!(new.iter().all(|text| text.contains(posted.unwrap_or_default())), "{schedule}: {new:?}");
        assert!(machine.read(LOG).contains("🎉 刷新完成"), "{schedule}");
    }
    assert!(db.token(ids[2]).is_none());
    db.assert_none_lost();

    // One fails for good: the others' success doesn't hide it, and it doesn't hide theirs.
    db.tokens().delete_many(mongodb::bson::doc! {}).run().expect("removal");
    machine.must("baoming run active; baoming run cleanup");
    machine.write("/etc/refresh_baoming_tokens/settings.conf", "TZ=Asia/Shanghai\n");
    machine.write("/etc/refresh_baoming_tokens/mongodb_uri", "mongodb://127.0.0.1:1/\n");
    machine.sh("baoming run all").go().expect(1);
    let status =
        machine.sh("setpriv --reuid=65534 --regid=65534 --clear-groups baoming status").go().expect(2);
    for line in ["OK 正常: active ", "CRITICAL 严重: all 失败: 退出码 1 ", "OK 正常: cleanup "] {
        assert_eq!(status.stdout.matches(line).count(), 1, "{line}: {status:?}");
    }
    // A collector reads all three at once, by the links that the README makes.
    machine.must("mkdir -p /var/lib/prometheus/node-exporter; ln -sf /var/lib/refresh_baoming_tokens/*.prom /var/lib/prometheus/node-exporter/");
    if let Some(mut promtool) = checker("promtool") {
        for schedule in SCHEDULES {
            let file =
                fs::File::open(machine.path(&format!("/var/lib/refresh_baoming_tokens/{schedule}.prom")));
            must_pass(promtool.args(["check", "metrics"]).stdin(file.expect("metrics")));
            promtool = checker("promtool").expect("as above");
        }
    }
    if checker("prometheus-node-exporter").is_some() {
        let port = super::support::free_port();
        let collector = machine.sh(&format!(
            "exec prometheus-node-exporter --collector.disable-defaults --collector.textfile \
             --collector.textfile.directory=/var/lib/prometheus/node-exporter --web.listen-address=127.0.0.1:{port}"
        ));
        let _collector = collector.start();
        let page = || {
            Run::bare()
                .program("curl")
                .env("PATH", super::path())
                .args(["-s", &format!("http://127.0.0.1:{port}/metrics")])
                .go()
        };
        await_true("the collector answers", || page().code == Some(0));
        let page = page().stdout;
        assert!(page.contains("node_textfile_scrape_error 0"), "{page}");
        for schedule in SCHEDULES {
            assert!(
                page.contains(&format!("baoming_refresh_exit_code{{schedule=\"{schedule}\"}} ")),
                "{page}"
            );
        }
    }
}

#[test]
fn what_keeps_a_schedule_from_running_is_posted_with_its_cause() {
    let (db, api) = world();
    db.add_token("good");
    let chat = silent();
    let Some(machine) = Machine::installed(&db, &api, &chat) else { return };
    for (spoil, code, texts) in [
        ("echo OPTIONS=--crad >$ETC/all.conf", 2, ["[all] ❌ 退出码 2", "--crad"]),
        ("rm $ETC/all.conf", 2, ["[all] ❌ 退出码 2", "all.conf"]),
        ("chmod 644 $ETC/mongodb_uri", 2, ["[all] ❌ 退出码 2", "MONGODB_URI_FILE"]),
        ("echo nonsense >>$ETC/settings.conf", 2, ["[all] ❌ 退出码 2", "settings.conf"]),
        ("echo MONGODB_URI=mongodb://x >>$ETC/settings.conf", 2, ["[all] ❌ 退出码 2", "任何人可读"]),
        ("rm /usr/local/bin/refresh_baoming_tokens", 127, ["[all] ❌ 退出码 127", "not found"]),
        (
            "printf 'kill -9 $$' >/usr/local/bin/refresh_baoming_tokens",
            137,
            ["[all] ❌ 退出码 137", "被信号 9 杀死"],
        ),
        (
            "rm -r /var/lib/refresh_baoming_tokens",
            2,
            ["[all] ❌ 退出码 2", "/var/lib/refresh_baoming_tokens"],
        ),
    ] {
        let count = messages(&chat).len();
        machine.must(
            "cp -a /etc/refresh_baoming_tokens /root/etc; cp /usr/local/bin/refresh_baoming_tokens /root/bin",
        );
        machine.must(&spoil.replace("$ETC", ETC));
        machine.sh("baoming run all").go().expect(code);
        let new = messages(&chat).split_off(count);
        assert!(new.len() == 1 && texts.iter().all(|text| new[0].contains(text)), "{spoil}: {new:?}");
        machine.must(&format!("rm -r {ETC}; mv /root/etc {ETC}; mkdir -p /var/lib/refresh_baoming_tokens"));
        machine.must("mv /root/bin /usr/local/bin/refresh_baoming_tokens");
    }
    machine.must("baoming run all");
}

#[test]
fn no_two_schedules_overlap() {
    let (db, _) = world();
    db.add_token("good");
    let api = Stub::start(|_| Reply::valid().after(Duration::from_millis(300)));
    let chat = silent();
    let Some(machine) = Machine::installed(&db, &api, &chat) else { return };
    let runs: Vec<_> =
        (0..4).map(|n| machine.sh(&format!("baoming run {}", SCHEDULES[n % 3])).start()).collect();
    for run in runs {
        run.wait().expect(0);
    }
    let log = machine.read(LOG);
    let marks: Vec<char> = log.chars().filter(|c| "🚀🎉".contains(*c)).collect();
    assert_eq!(marks, ['🚀', '🎉'].repeat(4), "{log}");
}

#[test]
fn a_real_cron_runs_the_lines_and_nothing_after_the_uninstall() {
    let Some(_) = checker("cron") else { return };
    let (db, api) = world();
    db.add_tokens("good", 2);
    let chat = silent();
    let Some(machine) = Machine::installed(&db, &api, &chat) else { return };
    // Switched on and edited: every minute, and one that cannot run.
    let shipped = machine.read("/etc/cron.d/refresh_baoming_tokens");
    let lines: Vec<&str> =
        shipped.lines().filter(|line| line.starts_with('#') && line.contains("  root  ")).collect();
    assert_eq!(lines.len(), SCHEDULES.len());
    let edited = shipped.replace("#0 2   * * *", "* * * * *").replace("#0 */6 * * *", "* * * * *");
    machine.write("/etc/cron.d/refresh_baoming_tokens", &edited);
    machine.write("/etc/refresh_baoming_tokens/active.conf", "OPTIONS=--crad\n");
    // None of the host's own jobs.
    machine.must("rm -f /etc/crontab /var/run/crond.pid; find /etc/cron.d -type f ! -name refresh_baoming_tokens -delete");
    let cron = machine.sh("exec cron -f").limit(Duration::from_secs(400)).start();
    let began = Instant::now();
    while !(machine.read(LOG).contains("🎉 刷新完成") && chat.requests() > 0) {
        assert!(began.elapsed() < Duration::from_secs(150), "cron ran nothing: {:?}", machine.read(LOG));
        thread::sleep(Duration::from_millis(200));
    }
    let told = messages(&chat);
    assert!(told[0].contains("[active] ❌ 退出码 2") && told[0].contains("--crad"), "{told:?}");
    assert!(told.iter().all(|text| !text.contains("[all]")), "{told:?}");

    let said = machine.must("/root/src/scripts/install.sh --uninstall");
    assert!(said.stdout.contains("已停用 switched off /etc/cron.d/refresh_baoming_tokens"), "{said:?}");
    assert!(machine.read("/etc/refresh_baoming_tokens/kept/refresh_baoming_tokens") == edited);
    thread::sleep(Duration::from_secs(2));
    let state = || (machine.read(LOG), chat.requests(), api.requests());
    let before = state();
    thread::sleep(Duration::from_secs(122));
    assert_eq!(state(), before, "something still fires");
    cron.signal(super::support::Signal::TERM);
}

#[test]
fn a_booted_systemd_runs_the_units_and_tells_what_never_started() {
    let (db, api) = world();
    three_ages(&db);
    let chat = silent();
    let Some(mut machine) = Machine::new() else { return };
    machine.answers(&db, &api, &chat);
    if !machine.boot() {
        return;
    }
    machine.must("cd /root/src && scripts/install.sh target/static/refresh_baoming_tokens");
    for file in ["mongodb_uri", "webhook_url", "settings.conf"] {
        machine.must(&format!("sudoedit {ETC}/{file}"));
    }
    machine
        .must(&format!("systemctl enable --now {NAME}@active.timer {NAME}@all.timer {NAME}@cleanup.timer"));
    let timers = machine.must("systemctl list-timers --no-pager").stdout;
    assert_eq!(timers.matches(".timer").count(), timers.matches(".service").count(), "{timers}");
    for (spoil, schedule, texts) in [
        ("true", "active", None),
        ("true", "all", Some(["[all] ⚠️ 退出码 3", "失败 1"])),
        ("echo OPTIONS=--crad >$ETC/all.conf", "all", Some(["[all] ❌ 退出码 2", "--crad"])),
        ("rm $ETC/mongodb_uri", "cleanup", Some(["[cleanup] ❌ 退出码 126", "exit-code 243"])),
        ("rm $ETC/settings.conf", "active", Some(["[active] ❌ 退出码 2", "settings.conf"])),
    ] {
        let count = messages(&chat).len();
        machine.must("cp -a /etc/refresh_baoming_tokens /root/etc");
        machine.must(&spoil.replace("$ETC", ETC));
        let started = machine.sh(&format!("systemctl start {NAME}@{schedule}")).go();
        assert_eq!(started.code == Some(0), texts.is_none(), "{spoil}: {started:?}");
        // Whatever OnFailure= started has ended.
        await_true("the failure is told", || {
            let state = machine.sh(&format!("systemctl is-active {NAME}-failed@{schedule}")).go().stdout;
            state == "inactive\n" && (texts.is_none() || messages(&chat).len() > count)
        });
        let new = messages(&chat).split_off(count);
        assert_eq!(new.len(), usize::from(texts.is_some()), "{spoil}: one fault is one message: {new:?}");
        assert!(texts.iter().flatten().all(|text| new[0].contains(text)), "{spoil}: {new:?}");
        machine.must(&format!("rm -r {ETC}; mv /root/etc {ETC}"));
    }
    // Any user can read how it went; the log stays private.
    machine.sh("setpriv --reuid=65534 --regid=65534 --clear-groups baoming status").go().expect(1);
    machine.must(&format!("test $(stat -c %U:%a {LOG}) = {NAME}:600"));
    let journal = machine.must(&format!("journalctl -u {NAME}@all --no-pager -o cat")).stdout;
    assert!(journal.contains("🎉 刷新完成"), "{journal}");

    // Also a timer that was edited goes.
    machine.must(&format!(
        "sed -i s/02:00/02:30/ /etc/systemd/system/{NAME}@all.timer; systemctl daemon-reload"
    ));
    machine.must("/root/src/scripts/install.sh --uninstall");
    let left = machine
        .must(&format!("systemctl list-units --all --no-pager '{NAME}*'; find /etc/systemd -name '{NAME}*'"));
    assert!(!left.stdout.contains(&format!("{NAME}@")), "{left:?}");
    assert!(machine.read(&format!("{ETC}/kept/{NAME}@all.timer")).contains("02:30"));
}

fn unit_files() -> Vec<PathBuf> {
    let root = scratch_dir();
    install_binary(&root).expect(0);
    let files = fs::read_dir(root.join("etc/systemd/system"))
        .expect("folder")
        .map(|entry| entry.expect("entry").path());
    files.filter(|file| file.extension().is_some_and(|e| e == "service" || e == "timer")).collect()
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let Some(mut verify) = checker("systemd-analyze") else { return };
    let files = unit_files();
    for file in &files {
        let unit = fs::read_to_string(file).expect("unit");
        let here = script("baoming").to_str().expect("UTF-8").to_owned();
        fs::write(file, unit.replace("/usr/local/bin/baoming", &here)).expect("unit");
    }
    assert_eq!(must_pass(verify.arg("verify").args(files)), "");
    // It would say so: the same with a misspelt setting.
    let unit = fs::read_to_string(script("systemd/refresh_baoming_tokens@.service")).expect("unit");
    let file = scratch_dir().join("refresh_baoming_tokens@.service");
    fs::write(&file, unit.replacen("LimitCORE=", "LimitCORES=", 1)).expect("unit");
    let output =
        checker("systemd-analyze").expect("as above").arg("verify").arg(file).output().expect("verdict");
    assert!(String::from_utf8_lossy(&output.stderr).contains("LimitCORES"), "not noticed");
    let mut security = checker("systemd-analyze").expect("as above");
    let service = script("systemd/refresh_baoming_tokens@.service");
    must_pass(security.args(["security", "--offline=true", "--threshold=20"]).arg(service));
}

#[test]
fn timers_follow_the_zone_of_the_settings_and_cron_lines_mean_the_same_times() {
    let cron = fs::read_to_string(script("cron/refresh_baoming_tokens")).expect("cron file");
    let units = unit_files();
    for (schedule, cron_times, first) in [
        ("active", "#0 */6 * * *", "2026-02-12 16:00:00 UTC"),
        ("all", "#0 2 * * *", "2026-02-12 18:00:00 UTC"),
        ("cleanup", "#0 3 * * 0", "2026-02-14 19:00:00 UTC"),
    ] {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        let line = format!("{cron_times} root baoming run {schedule}");
        assert!(cron.lines().any(|l| words(l) == line), "{line}");
        let timer =
            units.iter().find(|file| file.ends_with(format!("{NAME}@{schedule}.timer"))).expect("timer");
        let timer = fs::read_to_string(timer).expect("timer");
        let expression = timer.lines().find_map(|line| line.strip_prefix("OnCalendar=")).expect("OnCalendar");
        assert!(expression.ends_with(" Asia/Shanghai"), "{expression}");
        assert!(
            timer.contains("\nPersistent=true\n") && timer.contains("\nRandomizedDelaySec="),
            "{schedule}"
        );
        let Some(mut calendar) = checker("systemd-analyze") else { continue };
        calendar.args(["calendar", "--base-time=2026-02-12 13:00:00 UTC", expression]);
        let said = must_pass(calendar.env("TZ", "UTC"));
        assert!(said.contains(first), "{schedule}: no {first} in\n{said}");
    }
}
