//! The README's commands for a server, taken out of it and run as written on an installed machine.

use super::machine::{Machine, NOBODY};
use crate::papers::read;
use crate::prelude::*;

/// The chapters of a person at a server.
const CHAPTERS: [&str; 5] = [
    "## On a server",
    "### Log, messages, monitor",
    "### How to get a token back",
    "### 部署到服务器",
    "### 常用命令",
];

/// The commands of the `sh` blocks in these chapters; one that goes on in the next line is one.
fn commands() -> Vec<String> {
    let readme = read("README.md").replace("|\n ", "| ");
    let (mut chapter, mut inside, mut commands) = ("", false, Vec::new());
    for line in readme.lines() {
        if line.starts_with("```") {
            inside = line == "```sh" && CHAPTERS.contains(&chapter);
        } else if inside && !line.trim().is_empty() && !line.starts_with('#') {
            commands.push(line.to_owned());
        } else if !inside && line.starts_with('#') {
            chapter = line;
        }
    }
    commands
}

#[test]
fn each_command_for_a_server_works_as_written() {
    let Some(machine) = Machine::new() else { return };
    let db = &machine.db;
    let card = db.add_card("名片名");
    db.add(Seed::new(&unique_token("good")).card(card));
    db.add_tokens("good", 2);
    let deleted = db.add(Seed::new(&unique_token("invalid")).set("_id", ObjectId::new()));
    let ours = || machine.must("find /etc /usr/local /var -name '*baoming*' | sort").stdout;
    let before = ours();

    let commands = commands();
    for needed in "install.sh --self-test --dry-run --card --cleanup-days --restore-hours status".split(' ') {
        assert!(commands.iter().any(|command| command.contains(needed)), "no {needed} among {commands:#?}");
    }
    for command in &commands {
        let outcome = machine.sh(&format!("cd /root/src\n{command}")).go();
        assert_eq!(outcome.code, Some(0), "{command}\n{outcome:?}");
        let restores_all = command.contains("--restore-hours") && !command.contains(" --dry-run");
        if restores_all && !command.contains("--card") {
            assert!(db.token(deleted).is_some(), "taken by the schedule, not brought back by {command}");
        }
        if command.contains("--self-test") {
            // Day two begins when the schedules have run.
            machine.must("baoming run active && baoming run all && baoming run cleanup");
            let status = machine.must(&format!("{NOBODY} baoming status"));
            assert_eq!(status.stdout.matches("OK 正常: ").count(), 3, "{status:?}");
        }
    }
    db.assert_none_lost();
    // What was installed is gone again, but for what its operator entered and the log.
    machine.must("/root/src/scripts/install.sh --uninstall; cd /etc/refresh_baoming_tokens; rm mongodb_uri webhook_url settings.conf");
    machine.must("rm -r /etc/refresh_baoming_tokens /var/log/refresh_baoming_tokens");
    assert_eq!(ours(), before);
}
