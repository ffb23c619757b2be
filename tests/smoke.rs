//! The static file does the main job in a folder that holds nothing else: no libc, no
//! certificates, no zoneinfo, no resolv.conf, no /etc/passwd. `scripts/smoke.sh` runs this.

mod support;

use mongodb::bson::{DateTime, RawDocumentBuf, doc};
use rustix::process::geteuid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::compare::{assert_refreshed, date};
use support::{
    Certificate, Mongod, Reply, Run, Seed, Stub, TestDb, command, scratch_dir, tls, unique_token, wall_clock,
};

const MAX_BYTES: u64 = 5_000_000;
const MAX_PEAK_KB: u64 = 6_000;

fn static_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/static/refresh_baoming_tokens")
}

/// A folder with the file and nothing else.
fn empty_root() -> PathBuf {
    let root = scratch_dir();
    fs::copy(static_file(), root.join("refresh")).expect("the static file");
    root
}

/// The names in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("folder").map(|entry| entry.expect("entry").file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().expect("a name")).collect();
    names.sort();
    names
}

/// The program in this folder as its root directory; arguments for it may be added. The peak of
/// its memory goes to `peak`, below another folder.
fn rooted(root: &Path, peak: &Path, db: &TestDb, api: &Stub) -> Run {
    let launcher = support::binary().with_file_name("examples").join("peak");
    let mut args = vec![peak.into(), "unshare".into()];
    if !geteuid().is_root() {
        args.push("--map-root-user".into());
    }
    args.extend(["--root".into(), root.to_owned(), "--wd=/".into(), "/refresh".into()]);
    Run::new(db, api).no_args().program(launcher).args(args).args(["--delay-ms", "0"])
}

/// What `readelf` says about the static file.
fn readelf(option: &str) -> String {
    let output = command("readelf").args([option, "--wide"]).arg(static_file()).output().expect("readelf");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
#[ignore = "needs the static file: scripts/smoke.sh"]
fn file_is_small_and_asks_for_no_other() {
    let size = fs::metadata(static_file()).expect("the static file").len();
    assert!(size <= MAX_BYTES, "{size} bytes");
    let headers = readelf("--program-headers");
    assert!(headers.contains("LOAD") && !headers.contains("INTERP"), "{headers}");
    let dynamic = readelf("--dynamic");
    assert!(!dynamic.contains("NEEDED"), "{dynamic}");
}

#[test]
#[ignore = "needs the static file: scripts/smoke.sh"]
fn version_names_the_commit() {
    let output = Run::bare().program(static_file()).arg("--version").go().expect(0).stdout;
    let commit = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().expect("git").stdout;
    let commit = String::from_utf8(commit).expect("text");
    let expected = format!("refresh_baoming_tokens {} ({}", env!("CARGO_PKG_VERSION"), commit.trim());
    assert!(output.starts_with(&expected), "{output:?} is not of {expected:?}");
}

#[test]
#[ignore = "needs the static file: scripts/smoke.sh"]
fn main_job_in_an_empty_root() {
    let (db, api) = (Mongod::shared().fresh_db(), Stub::by_label());
    let valid = db.add_tokens("valid", 200);
    let (invalid, busy) = (db.add_token("invalid"), db.add_token("busy"));
    let unused = db.add(Seed::new(&unique_token("busy")).last_used_days_ago(50.0));
    let (root, peak) = (empty_root(), scratch_dir().join("peak"));
    let before = db.snapshot();

    let started = wall_clock();
    let outcome = rooted(&root, &peak, &db, &api).args(["-v", "--cleanup-days", "30"]).go().expect(3);
    let ended = wall_clock();

    for (name, count) in [("总计", 203), ("成功", 200), ("失败", 2), ("删除", 1)] {
        assert_eq!(outcome.stat(name), count, "{name}\n{}", outcome.log());
    }
    // Seconds are all that the log shows.
    let started = DateTime::from_millis(started.timestamp_millis() / 1000 * 1000);
    let shown = outcome.stdout.split_once("运行时间: ").expect("the time of the run").1;
    let shown = date(shown.lines().next().expect("a line"));
    assert!(started <= shown && shown <= ended, "shown {shown}, but it was {started} to {ended}");

    for document in &before.tokens {
        let id = document.get_object_id("_id").expect("_id");
        let after = db.tokens().clone_with_type::<RawDocumentBuf>().find_one(doc! { "_id": id }).run();
        let after = after.expect("the token's document");
        if valid.contains(&id) {
            let used = assert_refreshed(document, &after.expect("the token"));
            assert!(started <= used && used <= ended, "stored {used}, but it was {started} to {ended}");
        } else {
            assert_eq!(after.as_ref(), (id == busy).then_some(document));
        }
    }
    let bin = db.bin().distinct("token._id", doc! {}).run().expect("bin");
    assert_eq!(bin.len(), 2, "{bin:?}");
    assert!(bin.contains(&invalid.into()) && bin.contains(&unused.into()), "{bin:?}");
    db.assert_none_lost();

    assert_eq!(names(&root), ["refresh"]);
    let peak: u64 = fs::read_to_string(peak).expect("peak").parse().expect("a number");
    println!("Peak memory of a run with 203 tokens: {peak} kB");
    assert!((500..=MAX_PEAK_KB).contains(&peak), "{peak} kB");
}

#[test]
#[ignore = "needs the static file: scripts/smoke.sh"]
fn tls_trusts_the_built_in_roots_and_those_it_is_given() {
    let db = Mongod::shared().fresh_db();
    let api = Stub::start_tls(Certificate::Good, |_| Reply::valid());
    let token = db.add_token("valid");
    let (root, peak) = (empty_root(), scratch_dir().join("peak"));
    let before = db.snapshot();

    rooted(&root, &peak, &db, &api).args(["--retries", "0"]).go().expect(5);
    assert_eq!(api.requests(), 0);
    assert_eq!(db.snapshot(), before);

    fs::copy(tls::ca_file(), root.join("ca.pem")).expect("CA file");
    rooted(&root, &peak, &db, &api).env("SSL_CERT_FILE", "/ca.pem").go().expect(0);
    assert_eq!(api.requests(), 1);
    let after = db.token(token).expect("the token");
    assert!(after.get_datetime("last_used").ok() > before.tokens[0].get_datetime("last_used").ok().as_ref());
}
