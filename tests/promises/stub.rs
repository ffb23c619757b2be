//! A reset is one, a loss and a leak are noticed, nothing outlives a test: what builds on these would
//! prove nothing otherwise. All else that the stub can do shows in what `faults` makes of it.

use crate::prelude::*;
use std::net::TcpStream;

#[test]
fn a_reset_is_no_mere_end() {
    for (reply, end) in [(Reply::reset(), Err(ErrorKind::ConnectionReset)), (Reply::close(), Ok(0))] {
        let stub = Stub::always(reply);
        let mut tcp = TcpStream::connect(stub.address()).expect("connection");
        tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("request");
        assert_eq!(tcp.read(&mut [0]).map_err(|error| error.kind()), end);
    }
}

#[test]
fn a_lost_token_and_a_leak_are_noticed() {
    let (db, api) = valid_tokens(1);
    let id = db.add_token("gone");
    let token = db.token(id).expect("token");
    db.tokens().delete_one(doc! { "_id": id }).run().expect("delete");
    assert_eq!(db.lost(), std::slice::from_ref(&token));
    db.bin().insert_one(doc! { "token": &token }).run().expect("bin");
    assert!(db.lost().is_empty());

    let run = Run::new(&db, &api).env("MONGODB_URI", "mongodb://me:p%40ssw@host/");
    let shown = token.get_str("access_token").expect("token");
    for (text, leaks) in [(&shown[..4], 0), (&shown[..5], 1), (shown, 1), ("p%40ssw", 1)] {
        let outcome = Outcome { stdout: format!("before {text} after"), ..Outcome::default() };
        assert_eq!(run.leaked(&outcome).len(), leaks, "{text}");
    }
}

/// Run by the test below, in a process of its own: a server, and then nothing but waiting.
#[test]
#[ignore = "waits to be killed"]
fn waits_with_a_server() {
    let server = Mongod::start();
    println!("server {} {}", server.pid().as_raw_nonzero(), server.log().display());
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn nothing_outlives_a_killed_test() {
    let own = std::env::current_exe().expect("own path");
    let test = ["--ignored", "--exact", "--nocapture", "stub::waits_with_a_server"];
    let mut child =
        command(own).args(test).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("itself");
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let line = lines.map_while(Result::ok).find(|line| line.contains("server ")).expect("a server");
    let (pid, log) =
        line.rsplit("server ").next().and_then(|rest| rest.split_once(' ')).expect("pid and log");
    let process = Path::new("/proc").join(pid);
    assert!(process.exists() && Path::new(log).exists());
    child.kill().expect("SIGKILL");
    child.wait().expect("end");
    await_true("the end of the server and its files", || !process.exists() && !Path::new(log).exists());
}
