//! The stub's misbehaviours are really on the wire, and the rest of the support does what it
//! says: tests that build on them would prove nothing otherwise.

use crate::support::{Certificate, Mongod, Outcome, Proxy, ReplicaSet, Reply, Run, Signal, Stub};
use crate::support::{await_true, command, mongod, tls};
use mongodb::bson::{Document, doc};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What a client saw of one reply: all bytes until the end of the connection, how that ended, and
/// how long it took. The client closes its side after a second without a byte.
struct Seen {
    text: String,
    end: End,
    took: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The stub keeps the connection open and is silent.
    Open,
    Closed,
    Reset,
    /// More than a megabyte came.
    TooMuch,
}

fn seen(reply: Reply) -> Seen {
    let stub = Stub::always(reply);
    let mut tcp = TcpStream::connect(stub.address()).expect("connection");
    tcp.set_read_timeout(Some(Duration::from_millis(500))).expect("time limit");
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: stub\r\n\r\n").expect("request");
    let (start, mut bytes) = (Instant::now(), Vec::new());
    let mut buffer = [0; 4096];
    let mut took = Duration::ZERO;
    let end = loop {
        match tcp.read(&mut buffer) {
            Ok(0) => break End::Closed,
            Ok(_) if bytes.len() > 1 << 20 => break End::TooMuch,
            Ok(n) => bytes.extend(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break End::Open,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break End::Reset,
            Err(error) => panic!("{error}"),
        }
        took = start.elapsed();
    };
    drop(tcp);
    stub.await_all_closed();
    Seen { text: String::from_utf8_lossy(&bytes).into_owned(), end, took }
}

#[test]
fn every_kind_of_reply_is_on_the_wire() {
    const LENGTH: &str = "Content-Length: 35";
    let ok = || Reply::json(200, r#"{"sta":0,"msg":"","data":{"id":12}}"#);
    let pause = Duration::from_millis(200);
    let cases: [(&str, Reply, End, &[&str], &str); 17] = [
        ("plain", ok(), End::Open, &["HTTP/1.1 200 ", LENGTH, "12}}"], "Connection:"),
        ("status", Reply::json(503, "{}"), End::Open, &["HTTP/1.1 503 ", "{}"], "sta"),
        ("header", ok().header("Retry-After", "7"), End::Open, &["200 Stub\r\nRetry-After: 7\r\n"], "503"),
        (
            "redirect",
            Reply::redirect("http://a.example/"),
            End::Open,
            &["302", "Location: http://a.example/"],
            "sta",
        ),
        (
            "chunked",
            Reply::chunked(&["{\"sta\"", ":0}"]),
            End::Open,
            &["chunked", "6\r\n{\"sta\"\r\n3\r\n:0}\r\n0\r\n\r\n"],
            "Length",
        ),
        ("late", ok().after(pause), End::Open, &["12}}"], "Connection:"),
        ("closing", ok().closing(), End::Closed, &["Connection: close", "12}}"], "503"),
        ("closes unsaid", ok().then_close(), End::Closed, &["12}}"], "Connection:"),
        ("resets after", ok().then_reset(), End::Reset, &["12}}"], "Connection:"),
        ("truncated", ok().truncated(4), End::Closed, &[LENGTH, "{\"id\":"], "12}}"),
        ("drips", ok().dripping(Duration::from_millis(1)), End::Open, &["12}}"], "Connection:"),
        ("endless", Reply::endless(), End::TooMuch, &["200", "chunked"], "\r\n0\r\n"),
        ("stalls", Reply::stall(), End::Open, &[""], "H"),
        ("closes", Reply::close(), End::Closed, &[""], "H"),
        ("resets", Reply::reset(), End::Reset, &[""], "H"),
        ("garbage", Reply::garbage(), End::Closed, &["not HTTP"], "200"),
        ("huge header", Reply::huge_header(100_000), End::Open, &["hhhh", "info_id"], "503"),
    ];
    for (name, reply, end, wanted, unwanted) in cases {
        let seen = seen(reply);
        // What a reset leaves of the bytes before it is the kernel's choice.
        let complete = end == End::Reset || wanted.iter().all(|text| seen.text.contains(text));
        assert!(complete && !seen.text.contains(unwanted), "{name}: {:.300}", seen.text);
        assert_eq!(seen.end, end, "{name}");
        let least = match name {
            "late" => pause,
            "drips" => Duration::from_millis(100),
            _ => Duration::ZERO,
        };
        assert!(seen.took >= least, "{name}: {:?}", seen.took);
        assert!(name != "huge header" || seen.text.len() > 100_000, "{name}");
    }
}

/// A client that trusts the test authority only, and goes through this proxy.
fn agent(proxy: Option<&Proxy>) -> ureq::Agent {
    let ca = std::fs::read(tls::ca_file()).expect("CA file");
    let ca = ureq::tls::Certificate::from_pem(&ca).expect("CA certificate");
    let roots = ureq::tls::RootCerts::new_with_certs(&[ca]);
    let tls = ureq::tls::TlsConfig::builder().root_certs(roots).build();
    let proxy = proxy.map(|proxy| ureq::Proxy::new(&proxy.uri()).expect("proxy"));
    ureq::Agent::config_builder().tls_config(tls).proxy(proxy).build().into()
}

fn get(agent: &ureq::Agent, url: &str) -> Result<String, ureq::Error> {
    agent.get(url).call()?.body_mut().read_to_string()
}

#[test]
fn requests_are_recorded_on_one_connection() {
    let stub = Stub::start(|request| match request.nth {
        1 => Reply::valid(),
        _ => Reply::invalid(),
    });
    let agent = agent(None);
    for (token, answer) in [("a%2Bb", "\"sta\":0"), ("c", "\"sta\":0"), ("c", "\"sta\":-1")] {
        let url = format!("{}/v3/detail?eid=1&access_token={token}", stub.base());
        assert!(get(&agent, &url).expect("reply").contains(answer), "{token}");
    }
    let third = stub.await_request(3);
    assert_eq!((third.path.as_str(), third.param("eid"), third.token()), ("/xcx/v3/detail", Some("1"), "c"));
    assert_eq!((third.nth, third.number, third.connection), (2, 3, 1));
    assert!(third.header("user-agent").is_some_and(|agent| agent.contains("ureq")));
    assert_eq!((stub.recorded()[0].token(), stub.requests(), stub.connections()), ("a+b", 3, 1));
}

#[test]
fn only_the_good_certificate_is_accepted() {
    for certificate in
        [Certificate::Good, Certificate::SelfSigned, Certificate::Expired, Certificate::WrongHost]
    {
        let stub = Stub::start_tls(certificate, |_| Reply::valid());
        let reply = get(&agent(None), &stub.base());
        assert_eq!(reply.is_ok(), certificate == Certificate::Good, "{certificate:?}: {reply:?}");
        assert_eq!(stub.requests(), usize::from(reply.is_ok()));
    }
}

#[test]
fn the_proxy_tunnels_and_counts() {
    let (plain, encrypted) =
        (Stub::always(Reply::valid()), Stub::start_tls(Certificate::Good, |_| Reply::valid()));
    let proxy = Proxy::start();
    for stub in [&plain, &encrypted] {
        get(&agent(Some(&proxy)), &stub.base()).expect("reply");
    }
    let anywhere = Proxy::start_to(plain.address());
    get(&agent(Some(&anywhere)), "http://api.example/xcx").expect("reply");
    assert_eq!(proxy.targets(), [&plain, &encrypted].map(|stub| stub.address().to_string()));
    assert_eq!(anywhere.targets(), ["api.example:80"]);
    assert_eq!((plain.requests(), encrypted.requests()), (2, 1));
}

#[test]
fn mongod_keeps_its_data_when_killed_and_answers_nothing_when_frozen() {
    let server = Mongod::start();
    let db = server.fresh_db();
    db.add_tokens("valid", 3);
    let before = db.snapshot();
    server.admin(doc! { "fsync": 1 });
    server.kill();
    assert!(TcpStream::connect(server.host()).is_err());
    server.restart();
    assert_eq!(db.snapshot(), before);
    db.assert_none_lost();

    server.freeze();
    let (sender, answer) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| sender.send(server.admin(doc! { "ping": 1 })).expect("a listener"));
        let frozen = answer.recv_timeout(Duration::from_millis(300));
        server.thaw();
        assert!(frozen.is_err());
        answer.recv().expect("an answer after the thaw");
    });
}

#[test]
fn users_may_do_what_they_were_granted() {
    let server = Mongod::start_with_auth();
    let db = server.fresh_db();
    db.add_token("valid");
    let reader = server.add_user("reader", &db.name, &[("baoming_tokens", &["find"])]);
    let as_reader = mongod::connect(&reader).database(&db.name);
    let tokens = as_reader.collection::<Document>("baoming_tokens");
    assert!(tokens.find_one(doc! {}).run().expect("read").is_some());
    assert!(tokens.delete_one(doc! {}).run().is_err());
    let stranger = mongod::connect(&server.uri_for("reader", "wrong")).database(&db.name);
    assert!(stranger.list_collection_names().run().is_err());
}

#[test]
fn mongod_speaks_tls() {
    let server = Mongod::start_with_tls();
    server.admin(doc! { "ping": 1 });
    let plain = mongod::connect(&format!("mongodb://{}/", server.host()));
    assert!(plain.database("admin").run_command(doc! { "ping": 1 }).run().is_err());
}

#[test]
fn a_replica_set_gets_another_primary() {
    let set = ReplicaSet::start();
    let db = set.fresh_db("test");
    let id = db.add_token("valid");
    let first = set.primary().host();
    set.step_down();
    assert_ne!(set.primary().host(), first);
    let second = set.primary();
    second.kill();
    assert_ne!(set.primary().host(), second.host());
    assert!(db.token(id).is_some());
    second.restart();
    set.await_healthy();
}

#[test]
fn a_lost_token_and_a_leak_are_noticed() {
    let db = Mongod::shared().fresh_db();
    let id = db.add_token("gone");
    db.add_token("kept");
    assert!(db.lost().is_empty());
    let token = db.token(id).expect("token");
    db.tokens().delete_one(doc! { "_id": id }).run().expect("delete");
    assert_eq!(db.lost(), std::slice::from_ref(&token));
    db.bin().insert_one(doc! { "token": &token }).run().expect("bin");
    assert!(db.lost().is_empty());

    let run = Run::new(&db, &Stub::always(Reply::valid())).env("MONGODB_URI", "mongodb://me:p%40ssw@host/");
    let mut outcome = Outcome {
        code: None,
        signal: None,
        stdout: String::new(),
        stderr: String::new(),
        elapsed: Duration::ZERO,
    };
    let shown = token.get_str("access_token").expect("token");
    for (text, leaks) in
        [(&shown[..4], 0), (&shown[..5], 1), (shown, 1), ("p%40ssw", 1), ("mongodb://me:p%40ssw@host/", 2)]
    {
        outcome.stdout = format!("before {text} after");
        assert_eq!(run.leaked(&outcome).len(), leaks, "{text}");
    }
}

#[test]
fn a_live_run_is_read_signalled_and_killed() {
    let sh = |script: &str| Run::bare().program("/bin/sh").args(["-c", script]);
    let mut live = sh("trap 'echo bye >&2; exit 7' TERM; echo up; while :; do sleep 0.05; done").start();
    assert_eq!(live.await_line("u"), "up");
    assert!(live.is_running());
    live.signal(Signal::TERM);
    assert_eq!(live.await_line("bye"), "bye");
    let outcome = live.wait().expect(7);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("up\n", "bye\n"));
    assert_eq!(sh("sleep 60 & wait").start().kill().signal, Some(9));
    let slow = sh("exec sleep 60").limit(Duration::from_millis(100));
    assert!(panic::catch_unwind(AssertUnwindSafe(|| slow.go())).is_err());
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
