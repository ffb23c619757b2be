//! Cron and systemd on an installed machine, and what they do when something is amiss.

use super::machine::{ETC, LOG, Machine, NOBODY};
use super::{checker, messages, tool};
use crate::prelude::*;
use std::thread;

const NAME: &str = "refresh_baoming_tokens";
const PROGRAM: &str = "/usr/local/bin/refresh_baoming_tokens";
const STATE: &str = "/var/lib/refresh_baoming_tokens";

/// Tokens used lately, not so lately and not for long; the last one gets no answer.
fn three_ages(db: &TestDb) -> [mongodb::bson::oid::ObjectId; 3] {
    [("recent", 1.0), ("idle", 10.0), ("busy", 41.0)].map(|(label, days)| db.add_used(label, days))
}

/// Runs this on a machine on which that was spoiled before, and mends it. What is posted is one message with all these
/// parts, or none.
#[track_caller]
fn assert_posted(machine: &Machine, spoil: &str, parts: &[&str], run: impl FnOnce()) {
    let count = messages(&machine.chat).len();
    machine.must(&format!("cp -a {ETC} /root/etc; cp {PROGRAM} /root/bin"));
    machine.must(&format!("ETC={ETC} STATE={STATE} LOG={LOG} PROGRAM={PROGRAM}; {spoil}"));
    run();
    machine.must(&format!("rm -r {ETC}; mv /root/etc {ETC}; mkdir -p {STATE}; mv /root/bin {PROGRAM}"));
    let new = messages(&machine.chat).split_off(count);
    assert_eq!(new.len(), usize::from(!parts.is_empty()), "{spoil}: {new:?}");
    assert!(parts.iter().all(|part| new[0].contains(part)), "{spoil}: {new:?}");
}

#[test]
fn each_schedule_does_its_job() {
    let Some(machine) = Machine::installed() else { return };
    let db = &machine.db;
    let ids = three_ages(db);
    machine.must(&format!("sed -i 's/^#\\([0-9]\\)/\\1/' /etc/cron.d/{NAME}"));
    let status = machine.sh("baoming status").go().expect(3).stdout;
    assert_eq!(status.matches("(missing)").count(), 3, "those switched on: {status}");
    let last_used = |id| db.token(id).map(|token| token.get_datetime("last_used").copied().expect("a date"));
    let failed = "[all] ⚠️ 退出码 3: 部分 Token 失败，已保留\n总计 3, 成功 2, 失败 1\n原因: ";
    for (schedule, code, refreshed, parts) in
        [("active", 0, 1, &[][..]), ("all", 3, 2, &[failed]), ("cleanup", 3, 2, &["清理 1\n"])]
    {
        let dates = ids.map(last_used);
        assert_posted(&machine, "true", parts, || {
            let outcome = machine.sh(&format!("baoming run {schedule}")).go().expect(code);
            assert_eq!(outcome.log(), "", "{schedule}: cron would mail it");
        });
        let moved =
            ids.iter().zip(dates).filter(|&(&id, date)| last_used(id).is_some_and(|now| Some(now) > date));
        assert_eq!(moved.count(), refreshed, "{schedule}");
        assert!(machine.read(LOG).contains("🎉 刷新完成"), "{schedule}");
    }
    assert!(db.token(ids[2]).is_none());
    db.assert_none_lost();
}

/// An HTTP server of the machine, and what it says to a GET.
fn get(port: u16, page: &str) -> String {
    let url = format!("http://127.0.0.1:{port}{page}");
    tool("curl").args(["-s", &url]).go().stdout
}

#[test]
fn one_of_three_schedules_fails_and_monitor_and_live_alerts_name_it() {
    let Some(machine) = Machine::installed() else { return };
    machine.db.add_token("good");
    machine.must("baoming run active && baoming run all && baoming run cleanup");
    // Its last success was three days ago; that it fails since then is for a real run to write.
    let success = "s/\\(_success_timestamp_seconds{.*} \\).*/\\1";
    let days_ago = "$(date -d '3 days ago' +%s)";
    machine.must(&format!("sed -i \"{success}{days_ago}/\" {STATE}/all.prom"));
    machine.write(&format!("{ETC}/mongodb_uri"), &format!("mongodb://{}/\n", dead()));
    machine.sh("baoming run all").go().expect(1);
    let status = machine.sh(&format!("{NOBODY} baoming status")).go().expect(2);
    for line in ["OK 正常: active ", "CRITICAL 严重: all 失败: 退出码 1 ", "OK 正常: cleanup "] {
        assert_eq!(status.stdout.matches(line).count(), 1, "{line}: {status:?}");
    }
    // A collector reads all three at once, by the links that the README makes; Prometheus judges.
    if checker("prometheus").is_none() || checker("prometheus-node-exporter").is_none() {
        return;
    }
    let links = "/var/lib/prometheus/node-exporter";
    machine.must(&format!("mkdir -p {links}; ln -sf {STATE}/*.prom {links}/"));
    let [exporter_port, port] = [super::support::free_port(), super::support::free_port()];
    let exporter = format!(
        "exec prometheus-node-exporter --collector.disable-defaults --collector.textfile \
         --collector.textfile.directory={links} --web.listen-address=127.0.0.1:{exporter_port}"
    );
    let _exporter = machine.sh(&exporter).start();
    let config = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
         rule_files: [/usr/local/share/{NAME}/prometheus/{NAME}.rules.yml]\n\
         scrape_configs: [{{ job_name: node, static_configs: [{{ targets: ['127.0.0.1:{exporter_port}'] }}] }}]\n"
    );
    machine.write("/root/prometheus.yml", &config);
    let prometheus = format!(
        "exec prometheus --config.file=/root/prometheus.yml --storage.tsdb.path=/root/tsdb \
         --web.listen-address=127.0.0.1:{port}"
    );
    let _prometheus = machine.sh(&prometheus).start();
    let firing = || {
        let alerts = serde_json::from_str(&get(port, "/api/v1/alerts")).unwrap_or(serde_json::Value::Null);
        let alerts = alerts["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let names =
            firing.map(|alert| format!("{} {}", alert["labels"]["alertname"], alert["labels"]["schedule"]));
        names.collect::<Vec<_>>()
    };
    await_true("an alert", || !firing().is_empty());
    assert_eq!(firing(), [r#""BaomingNoSuccess" "all""#]);
    let page = get(exporter_port, "/metrics");
    assert!(page.contains("node_textfile_scrape_error 0"), "{page}");
    for sample in ["{schedule=\"active\"} 0", "{schedule=\"all\"} 1", "{schedule=\"cleanup\"} 0"] {
        assert!(page.contains(&format!("baoming_refresh_exit_code{sample}\n")), "{page}");
    }
}

#[test]
fn what_keeps_a_schedule_from_running_is_posted_with_its_cause() {
    let Some(machine) = Machine::installed() else { return };
    machine.db.add_token("good");
    for (spoil, code, cause) in [
        ("echo OPTIONS=--crad >$ETC/all.conf", 2, "--crad"),
        ("rm $ETC/all.conf", 2, "all.conf"),
        ("chmod 644 $ETC/mongodb_uri", 2, "MONGODB_URI_FILE"),
        ("echo 'OPTIONS = --dry-run' >$ETC/all.conf", 2, "OPTIONS="),
        ("echo nonsense >>$ETC/settings.conf", 2, "settings.conf"),
        ("echo PATH=/nowhere >>$ETC/settings.conf", 2, "PATH"),
        ("echo MONGODB_URI=mongodb://x >>$ETC/settings.conf", 2, "任何人可读"),
        ("echo HTTPS_PROXY=http://u:pw@h >>$ETC/settings.conf", 2, "代理密码"),
        ("rm $PROGRAM", 127, NAME),
        ("printf 'exit 0' >$PROGRAM", 0, "没有结果"),
        ("printf 'kill -9 $$' >$PROGRAM", 137, "被信号 9 杀死"),
        ("rm -r $STATE", 2, STATE),
    ] {
        let start = if code == 0 { "[all] ❌ ".to_owned() } else { format!("[all] ❌ 退出码 {code}") };
        assert_posted(&machine, spoil, &[&start, cause], || {
            machine.sh("baoming run all").go().expect(code);
            let status = machine.sh("baoming status").go().stdout;
            let is_told = status.contains(&format!("all 失败: 退出码 {} ", code.max(1)));
            assert!(is_told || spoil == "rm -r $STATE", "{spoil}: {status}");
        });
    }
    // A Windows editor's line ends; a password that only the service's group can read.
    machine.must(&format!(
        "sed -i 's/$/\\r/' {ETC}/settings.conf {ETC}/all.conf; chmod 640 {ETC}/settings.conf
         echo HTTP_PROXY=http://u:pw@h >>{ETC}/settings.conf; baoming run all"
    ));
    assert_posted(&machine, "true", &["[all] ❌ 退出码 137", "被信号 9 杀死"], || {
        let failed = "MONITOR_SERVICE_RESULT=signal MONITOR_EXIT_STATUS=KILL baoming failed all";
        machine.sh(failed).go().expect(137);
    });
}

#[test]
fn no_two_schedules_overlap() {
    let Some(machine) = Machine::installed() else { return };
    machine.db.add_token("slow");
    let start = |schedule| machine.sh(&format!("baoming run {schedule}")).start();
    for run in ["active", "all", "cleanup", "active"].map(start) {
        run.wait().expect(0);
    }
    let log = machine.read(LOG);
    let marks: Vec<char> = log.chars().filter(|c| "🚀🎉".contains(*c)).collect();
    assert_eq!(marks, ['🚀', '🎉'].repeat(4), "{log}");
}

/// Uninstalls what fires at least once a minute; then nothing fires for two.
fn assert_silent_after_uninstall(machine: &Machine, edited: &str) {
    let said = machine.must("/root/src/scripts/install.sh --uninstall").stdout;
    assert!(said.contains(&format!("已停用 switched off {edited}")), "{said}");
    let state = || (machine.read(LOG), machine.chat.requests(), machine.api.requests());
    let before = state();
    thread::sleep(Duration::from_secs(122));
    assert_eq!(state(), before, "something still fires");
}

#[test]
fn a_real_cron_runs_the_lines_and_nothing_after_the_uninstall() {
    let Some(_) = checker("cron") else { return };
    let Some(machine) = Machine::installed() else { return };
    machine.db.add_tokens("good", 2);
    // Switched on and edited: every minute, and one that cannot run.
    let file = format!("/etc/cron.d/{NAME}");
    let edited =
        machine.read(&file).replace("#0 2   * * *", "* * * * *").replace("#0 */6 * * *", "* * * * *");
    machine.write(&file, &edited);
    machine.write(&format!("{ETC}/active.conf"), "OPTIONS=--crad\n");
    // None of the host's own jobs.
    machine.must(&format!(
        "rm -f /etc/crontab /var/run/crond.pid; find /etc/cron.d -type f ! -name {NAME} -delete"
    ));
    let cron = machine.sh("exec cron -f").limit(Duration::from_secs(400)).start();
    let began = Instant::now();
    while !(machine.read(LOG).contains("🎉 刷新完成") && machine.chat.requests() > 0) {
        assert!(began.elapsed() < Duration::from_secs(150), "cron ran nothing: {:?}", machine.read(LOG));
        thread::sleep(Duration::from_millis(200));
    }
    for text in messages(&machine.chat) {
        assert!(text.contains("[active] ❌ 退出码 2") && text.contains("--crad"), "{text}");
    }
    assert_silent_after_uninstall(&machine, &file);
    assert!(machine.read(&format!("{ETC}/kept/cron.d-{NAME}")) == edited);
    cron.signal(Signal::TERM);
}

#[test]
fn a_booted_systemd_runs_the_units_and_nothing_after_the_uninstall() {
    let Some(mut machine) = Machine::new() else { return };
    three_ages(&machine.db);
    if !machine.boot() {
        return;
    }
    machine.install();
    machine
        .must(&format!("systemctl enable --now {NAME}@active.timer {NAME}@all.timer {NAME}@cleanup.timer"));
    for (spoil, schedule, parts) in [
        ("true", "active", &[][..]),
        ("true", "all", &["[all] ⚠️ 退出码 3", "失败 1"]),
        ("echo OPTIONS=--crad >$ETC/all.conf", "all", &["[all] ❌ 退出码 2", "--crad"]),
        // What never started is told by OnFailure=, and only that: one fault is one message.
        ("rm $ETC/mongodb_uri", "cleanup", &["[cleanup] ❌ 退出码 126", "exit-code 243"]),
        ("rm $ETC/settings.conf", "active", &["[active] ❌ 退出码 2", "settings.conf"]),
        // A robot is optional; what root did by hand, with no log there, keeps no unit from writing.
        ("rm $ETC/webhook_url", "active", &[]),
        ("rm $LOG; baoming run active", "active", &[]),
    ] {
        let (count, fails) = (messages(&machine.chat).len(), !parts.is_empty());
        assert_posted(&machine, spoil, parts, || {
            let started = machine.sh(&format!("systemctl start {NAME}@{schedule}")).go();
            assert_eq!(started.code == Some(0), !fails, "{spoil}: {started:?}");
            // Whatever OnFailure= started has ended.
            await_true("the failure is told", || {
                let state = machine.sh(&format!("systemctl is-active {NAME}-failed@{schedule}")).go().stdout;
                state == "inactive\n" && (!fails || messages(&machine.chat).len() > count)
            });
        });
    }
    // Any user can read how it went; the log stays private.
    // What never got as far as a report does not look like the run before.
    let status = machine.sh(&format!("{NOBODY} baoming status")).go().expect(2).stdout;
    for line in
        ["OK 正常: active ", "CRITICAL 严重: all 失败: 退出码 2 ", "CRITICAL 严重: cleanup 失败: 退出码 126 "]
    {
        assert!(status.contains(line), "{status}");
    }
    machine.must(&format!("test $(stat -c %U:%a {LOG}) = {NAME}:600"));
    let journal = machine.must(&format!("journalctl -u {NAME}@all --no-pager -o cat")).stdout;
    assert!(journal.contains("🎉 刷新完成"), "{journal}");

    // A timer that was edited goes too.
    let timer = format!("/etc/systemd/system/{NAME}@all.timer");
    machine.must(&format!(
        "sed -i 's/^OnCalendar=.*/OnCalendar=*:*:0\\/10\\nAccuracySec=1s/; /^Randomized/d' {timer}
         systemctl daemon-reload; systemctl restart {NAME}@all.timer"
    ));
    let before = machine.api.requests();
    await_true("the timer fires", || machine.api.requests() > before);
    assert_silent_after_uninstall(&machine, &timer);
    let left = format!("systemctl list-units --all --no-pager '{NAME}*'; find /etc/systemd -name '{NAME}*'");
    let left = machine.must(&left).stdout;
    assert!(!left.contains(&format!("{NAME}@")), "{left}");
    assert!(machine.read(&format!("{ETC}/kept/system-{NAME}@all.timer")).contains("0/10"));
}
