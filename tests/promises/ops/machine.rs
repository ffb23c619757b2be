//! A whole machine of a test's own: this one's files beneath, and what is written on top of them in
//! a scratch folder. Commands, cron and a booted systemd run in it as on a server.

use super::{chat, tool};
use crate::prelude::*;

pub const ETC: &str = "/etc/refresh_baoming_tokens";
pub const LOG: &str = "/var/log/refresh_baoming_tokens/refresh.log";
/// Put before a command: any user.
pub const NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";
const KEY: &str = "5ecretKey";

pub struct Machine {
    pub db: TestDb,
    pub api: Stub,
    pub chat: Stub,
    /// Holds the mounts; they go with it.
    holder: Live,
    /// The machine's root as its holder sees it.
    mount: PathBuf,
    /// The container's first process, once it was booted.
    booted: Option<(Live, String)>,
}

/// A source tree with the static file built, and the tools of a person at a server, included.
const MOUNT: &str = r#"
    set -e
    mkdir "$1/up" "$1/work" "$1/root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
    mount --rbind /proc "$1/root/proc"
    mount --rbind /dev "$1/root/dev"
    cd "$1/root"
    rm -rf etc/machine-id etc/cron.d/refresh_baoming_tokens
    : >etc/machine-id
    mkdir -p root/src/target/static root/answers
    cp -r "$2" root/src/
    cp "$3" root/src/target/static/refresh_baoming_tokens
    printf '#!/bin/sh\nexec "$@"\n' >usr/local/bin/sudo
    printf '#!/bin/sh\ncat "/root/answers/${1##*/}" >"$1"\n' >usr/local/bin/sudoedit
    chmod 755 usr/local/bin/sudo usr/local/bin/sudoedit
    touch "$1/ready"
    exec sleep 100000"#;

impl Machine {
    /// With what its operator is to enter at hand: a database, an API that answers by label, a robot.
    /// `None`, said on the terminal, where such mounts are not permitted; in continuous integration
    /// they must be.
    pub fn new() -> Option<Self> {
        let dir = scratch_dir();
        let holder = tool("unshare").args(["--mount", "sh", "-c", MOUNT, "sh"]);
        let mut holder = holder.arg(&dir).arg(super::script("")).arg(binary()).start();
        await_true("mounts", || dir.join("ready").exists() || !holder.is_running());
        if !holder.is_running() {
            assert!(std::env::var_os("CI").is_none(), "no mounts of its own");
            let _ = writeln!(io::stderr(), "SKIPPED: a machine of its own, which needs root");
            return None;
        }
        let ((db, api), chat) = (world(), chat());
        let machine = Self { db, api, chat, holder, mount: dir.join("root"), booted: None };
        machine.write("/root/answers/mongodb_uri", &machine.db.uri);
        machine.write("/root/answers/webhook_url", &format!("http://{}/{KEY}\n", machine.chat.address()));
        let settings = format!("# 设置\nTZ=\"Asia/Shanghai\"\nMONGODB_DB_NAME={}\n", machine.db.name);
        let api_base = format!("BAOMING_API_BASE={}\n", machine.api.base());
        machine.write("/root/answers/settings.conf", &(settings + &api_base));
        Some(machine)
    }

    /// As the README says.
    pub fn install(&self) {
        self.must("cd /root/src && scripts/install.sh target/static/refresh_baoming_tokens");
        self.must(&format!(
            "for file in mongodb_uri webhook_url settings.conf; do sudoedit {ETC}/$file; done"
        ));
    }

    pub fn installed() -> Option<Self> {
        Self::new().inspect(Self::install)
    }

    /// A file of the machine, as this process reaches it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}{path}", self.holder.pid(), self.mount.display()))
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    pub fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// A shell command as root's, in nothing but an administrator's search path.
    pub fn sh(&self, shell_command: &str) -> Run {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let run = self.enter().env("PATH", path).secret(KEY);
        let run = match &self.booted {
            Some((_, first)) => run.no_args().args(["-t", first, "-m", "-p", "-u", "-i", "-r", "-w"]),
            None => run.arg("chroot").arg(&self.mount),
        };
        run.args(["/bin/sh", "-c", shell_command])
    }

    fn enter(&self) -> Run {
        tool("/usr/bin/nsenter").arg(format!("--mount=/proc/{}/ns/mnt", self.holder.pid()))
    }

    #[track_caller]
    pub fn must(&self, shell_command: &str) -> Outcome {
        self.sh(shell_command).go().expect(0)
    }

    /// Boots its systemd in a container; `false`, said on the terminal, where that cannot be had.
    pub fn boot(&mut self) -> bool {
        // It mounts its own of these.
        let boot = r#"umount -l "$0/proc" "$0/dev"
            exec systemd-nspawn -q --setenv="TEST_SUPPORT_OWNER=$TEST_SUPPORT_OWNER" --register=no --keep-unit --boot -D "$0" systemd.unit=basic.target"#;
        let container = self.enter().args(["sh", "-c", boot]).arg(&self.mount).limit(PATIENCE * 8);
        let mut container = container.start();
        let mut first = String::new();
        await_true("a container", || {
            // nsenter became nspawn; its child is the container's first process once that runs systemd.
            let parent = container.pid().to_string();
            let children = tool("pgrep").args(["-x", "systemd", "-P", &parent]).go().stdout;
            children.trim().clone_into(&mut first);
            !first.is_empty() || !container.is_running()
        });
        if first.is_empty() {
            let _ = writeln!(io::stderr(), "SKIPPED: a booted container, which cannot be had here");
            return false;
        }
        self.booted = Some((container, first));
        await_true("systemd is up", || {
            let state = self.sh("systemctl is-system-running").go().stdout;
            ["running\n", "degraded\n"].contains(&state.as_str())
        });
        true
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((container, first)) = self.booted.take() {
            // Killing nspawn alone leaves the container.
            let _ = command("kill").args(["-9", &first]).status();
            drop(container);
        }
    }
}
