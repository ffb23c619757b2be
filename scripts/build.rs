//! Tells the program which commit it is built from, `BUILD_COMMIT` for `--version`, and what its flags are:
//! `usage.txt` for `--help`, which is the README's block of plain text.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What the binary is made of. Other files may differ from the commit without making it "dirty".
const INPUTS: [&str; 5] = ["Cargo.lock", "Cargo.toml", "README.md", "scripts/build.rs", "src"];

fn main() {
    for input in INPUTS {
        println!("cargo::rerun-if-changed={input}");
    }
    let commit = commit().unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=BUILD_COMMIT={commit}");
    let readme = fs::read_to_string("README.md").expect("README.md");
    let block = readme.split("```text\n").nth(1).and_then(|rest| rest.split("```").next());
    let file = Path::new(&env::var_os("OUT_DIR").expect("OUT_DIR")).join("usage.txt");
    fs::write(file, block.expect("the list of flags in README.md")).expect("a file in OUT_DIR");
}

/// The commit and, when the inputs differ from it, `-dirty`; `None` outside git, as in an unpacked tarball.
fn commit() -> Option<String> {
    // A tarball unpacked somewhere below another project's work tree is not that project's commit.
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // A commit, a checkout and a new branch each change one of these, also in a linked work tree. (Cargo takes a
    // path that does not exist as changed, each time.)
    for name in ["HEAD", "refs/heads", "packed-refs", "reftable"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    // A fixed length: git's own choice depends on how many objects the clone holds.
    let mut commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let status = ["--no-optional-locks", "status", "--porcelain", "-unormal", "--"];
    if !git(&[&status[..], &INPUTS[..]].concat())?.is_empty() {
        commit += "-dirty";
    }
    Some(commit)
}

/// What git prints, without the end of the line; `None` when there is no git or it fails.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}
