//! The stub's misbehaviours are really on the wire, a loss and a leak are noticed, nothing outlives a
//! test: what builds on these would prove nothing otherwise.

use crate::support::{Mongod, Outcome, Reply, Run, Stub, await_true, command};
use mongodb::bson::doc;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// What a client saw of one reply, half a second of silence at most, and how the connection ended.
fn seen(reply: Reply) -> (String, &'static str) {
    let stub = Stub::always(reply);
    let mut tcp = TcpStream::connect(stub.address()).expect("connection");
    tcp.set_read_timeout(Some(Duration::from_millis(500))).expect("time limit");
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: stub\r\n\r\n").expect("request");
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let end = loop {
        match tcp.read(&mut buffer) {
            Ok(0) => break "closed",
            Ok(_) if bytes.len() > 1 << 20 => break "endless",
            Ok(n) => bytes.extend(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break "open",
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break "reset",
            Err(error) => panic!("{error}"),
        }
    };
    (String::from_utf8_lossy(&bytes).into_owned(), end)
}

#[test]
fn every_kind_of_reply_is_on_the_wire() {
    let ok = || Reply::json(200, r#"{"sta":0,"msg":"","data":{"id":12}}"#);
    let cases: [(Reply, &str, &[&str], &str); 12] = [
        (ok(), "open", &["HTTP/1.1 200 ", "Content-Length: 35", "12}}"], "Connection:"),
        (ok().header("Retry-After", "7"), "open", &["200 Stub\r\nRetry-After: 7\r\n"], "503"),
        (Reply::chunked(&["{\"sta\"", ":0}"]), "open", &["6\r\n{\"sta\"\r\n3\r\n:0}\r\n0\r\n\r\n"], "Length"),
        (ok().then_close(), "closed", &["12}}"], "Connection:"),
        (ok().then_reset(), "reset", &[], "Connection:"),
        (ok().truncated(4), "closed", &["Content-Length: 35", "{\"id\":"], "12}}"),
        (ok().dripping(Duration::from_millis(1)).and(Reply::invalid()), "open", &["12}}", "-500"], "503"),
        (Reply::endless(), "endless", &["200", "chunked"], "\r\n0\r\n"),
        (Reply::stall(), "open", &[], "H"),
        (Reply::close(), "closed", &[], "H"),
        (Reply::reset(), "reset", &[], "H"),
        (Reply::garbage(), "closed", &["not HTTP"], "200"),
    ];
    for (reply, end, wanted, unwanted) in cases {
        let what = format!("{reply:.100?}");
        let (text, ended) = seen(reply);
        assert_eq!(ended, end, "{what}");
        assert!(wanted.iter().all(|part| text.contains(part)) && !text.contains(unwanted), "{what}: {text}");
    }
}

#[test]
fn a_lost_token_and_a_leak_are_noticed() {
    let db = Mongod::shared().fresh_db();
    let id = db.add_token("gone");
    let token = db.token(id).expect("token");
    db.tokens().delete_one(doc! { "_id": id }).run().expect("delete");
    assert_eq!(db.lost(), std::slice::from_ref(&token));
    db.bin().insert_one(doc! { "token": &token }).run().expect("bin");
    assert!(db.lost().is_empty());

    let run = Run::new(&db, &Stub::always(Reply::valid())).env("MONGODB_URI", "mongodb://me:p%40ssw@host/");
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
    let mut words = line.split(' ').skip_while(|word| !word.ends_with("server")).skip(1);
    let (pid, log) = (words.next().expect("pid"), words.next().expect("log"));
    let process = Path::new("/proc").join(pid);
    assert!(process.exists() && Path::new(log).exists());
    child.kill().expect("SIGKILL");
    child.wait().expect("end");
    await_true("the end of the server and its files", || !process.exists() && !Path::new(log).exists());
}
