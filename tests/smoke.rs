//! The static files do the main job in a folder that holds nothing else: no libc, no certificates, no zoneinfo, no
//! resolv.conf, no /etc/passwd; the other architecture's under qemu. So does the image. `scripts/smoke.sh` runs this.

mod support;

use rustix::process::geteuid;
use std::env::consts::ARCH;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use support::compare::assert_refreshed;
use support::{Certificate, Mongod, Reply, Run, Stub, TestDb, command, scratch_dir, tls};

const STATIC_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/static/refresh_baoming_tokens");
const MAX_BYTES: u64 = 5_500_000;
/// The thread that waits for the database, and its stack, are a part of it.
const MAX_PEAK_KB: u64 = 6_500;

/// A folder with a static file and nothing else; a foreign file has qemu beside it.
struct Root {
    arch: &'static str,
    file: PathBuf,
    dir: PathBuf,
    peak: PathBuf,
}

impl Root {
    fn all() -> impl Iterator<Item = Self> {
        let built = ["x86_64", "aarch64"].map(|arch| (arch, PathBuf::from(format!("{STATIC_FILE}-{arch}"))));
        assert!(built.iter().any(|(_, file)| file.exists()), "no static file was built");
        built.into_iter().filter(|(_, file)| file.exists()).map(|(arch, file)| {
            let (dir, peak) = (scratch_dir(), scratch_dir().join("peak"));
            fs::copy(&file, dir.join("refresh")).expect("a copy of the static file");
            if arch != ARCH {
                let qemu = format!("/usr/bin/qemu-{arch}-static"); // Debian: qemu-user-static
                fs::copy(&qemu, dir.join("qemu")).unwrap_or_else(|error| panic!("{qemu}: {error}"));
            }
            Self { arch, file, dir, peak }
        })
    }

    /// The program with this folder as its root directory, as process 1, as in a container.
    fn run(&self, db: &TestDb, api: &Stub) -> Run {
        let launcher = support::binary().with_file_name("examples").join("peak");
        let run = Run::new(db, api).no_args().program(launcher).arg(&self.peak).arg("unshare");
        let run = if geteuid().is_root() { run } else { run.arg("--map-root-user") };
        let run = run.args(["--pid", "--fork", "--wd=/", "--root"]).arg(&self.dir);
        run.args((self.arch != ARCH).then_some("/qemu")).args(["/refresh", "--delay-ms", "0"])
    }
}

fn printed(program: &str, args: &[&str]) -> String {
    let output = command(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

#[test]
#[ignore = "needs the static files: scripts/smoke.sh"]
fn main_job_in_an_empty_root() {
    for root in Root::all() {
        let size = fs::metadata(&root.file).expect("the static file").len();
        assert!(size <= MAX_BYTES, "{size} bytes");
        let file = root.file.to_str().expect("text");
        let headers = printed("readelf", &["--program-headers", "--dynamic", "--wide", file]);
        assert!(headers.contains("LOAD"), "{headers}");
        assert!(!headers.contains("INTERP") && !headers.contains("NEEDED"), "{headers}");

        let (db, api) = (Mongod::shared().fresh_db(), Stub::by_label());
        let version = root.run(&db, &api).arg("--version").go().expect(0).stdout;
        let commit = printed("git", &["rev-parse", "--short=12", "HEAD"]);
        assert!(version.contains(&format!(" {} ({commit}", env!("CARGO_PKG_VERSION"))), "{version}");

        db.add_tokens("valid", 200);
        let valid = db.snapshot().tokens;
        db.add_token("busy");
        db.add_token("invalid");
        db.add_used("busy", 50.0);
        let outcome = root.run(&db, &api).args(["--cleanup-days", "30", "--retries", "0"]).go().expect(3);
        for (name, count) in [("总计", 203), ("成功", 200), ("失败", 2), ("删除", 1)] {
            assert_eq!(outcome.stat(name), count, "{name}\n{}", outcome.log());
        }
        let after = db.snapshot();
        assert_eq!((after.tokens.len(), after.bin.len()), (201, 2));
        valid.iter().zip(&after.tokens).for_each(|(before, after)| assert_refreshed(before, after));
        db.assert_none_lost();

        let there = fs::read_dir(&root.dir).expect("folder").count();
        assert_eq!(there, if root.arch == ARCH { 1 } else { 2 }, "the run left something in its root");
        let peak: u64 = fs::read_to_string(&root.peak).expect("peak").parse().expect("a number");
        println!("{}: {size} bytes, 203 tokens, peak memory {peak} kB", root.arch);
        assert!(peak >= 500 && (peak <= MAX_PEAK_KB || root.arch != ARCH), "{peak} kB");

        // TLS trusts the built-in roots, and those it is given.
        let tls_api = Stub::always_tls(Certificate::Good, Reply::valid());
        root.run(&db, &tls_api).args(["--retries", "0"]).go().expect(5);
        assert_eq!(tls_api.requests(), 0);
        fs::copy(tls::ca_file(), root.dir.join("ca.pem")).expect("CA file");
        root.run(&db, &tls_api).env("SSL_CERT_FILE", "/ca.pem").go().expect(0);
        assert_eq!(tls_api.requests(), after.tokens.len());
    }
}

/// Goes away with the test.
struct Folder(String);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The secret is a file of root's that the image's user may read by its group or as anybody, laid out as Kubernetes
/// does it.
#[test]
#[ignore = "needs the static files: scripts/smoke.sh"]
fn image_does_the_main_job_as_its_user() {
    let can = geteuid().is_root() && Path::new("/usr/bin/podman").exists();
    if !can && std::env::var("CI").is_err() {
        return println!("Image: skipped, needs root and podman");
    }
    let (db, api, secrets) = (Mongod::shared().fresh_db(), Stub::by_label(), scratch_dir());
    // Podman wants a path of at most 50 characters for what it keeps of a run.
    let folder = Folder(format!("/tmp/smoke-{}", std::process::id()));
    let store = folder.0.as_str();
    fs::create_dir(store).expect("folder");
    // runc and small limits: what also starts on a machine with old control groups and without all capabilities.
    let global = ["--storage-driver=vfs", "--runtime=runc", "--root", store, "--runroot", store];
    let build = ["build", "--quiet", "--file=scripts/Containerfile", "target/static"];
    let image = printed("podman", &[&global[..], &build].concat());

    fs::create_dir(secrets.join("..data")).expect("folder");
    let secret = secrets.join("..data/mongodb_uri");
    fs::write(&secret, &db.uri).expect("secret");
    symlink("..data/mongodb_uri", secrets.join("mongodb_uri")).expect("link");
    let volume = format!("--volume={}:/run/secrets:ro", secrets.display());
    let run = "run --rm --network=host --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024 --read-only --cap-drop=all \
        --env=TZ --env=BAOMING_API_BASE --env=MONGODB_DB_NAME";
    for (mode, group, code) in [(0o440, 65532, 0), (0o444, 0, 0), (0o400, 0, 2)] {
        db.add_token("valid");
        chown(&secret, Some(0), Some(group)).expect("group");
        fs::set_permissions(&secret, Permissions::from_mode(mode)).expect("mode");
        let podman =
            Run::new(&db, &api).no_args().program("podman").env_remove("MONGODB_URI").env("HOME", store);
        let podman = podman.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(global);
        podman.args(run.split_whitespace()).args([&volume, &image, "--delay-ms=0"]).go().expect(code);
    }
    assert_eq!(api.requests(), 3, "one token, then two; none of them without the secret");
    println!("Image: built and run by podman, as user 65532");
}
