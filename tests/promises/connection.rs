//! Flags, environment and the way to the database: every mistake is one clear line that names what
//! is wrong and connects to nothing; every failed connection names its true cause.

use crate::support::{
    Certificate, Mongod, ReplicaSet, Reply, Run, Seed, Stub, Total, await_true, count, dead, file,
    scratch_dir, tls, unique_token,
};
use mongodb::bson::{Document, doc};
use socket2::{Domain, Socket, Type};
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// What every mistake must be over in.
const PROMPT: Duration = Duration::from_secs(25);

// ---------------------------------------------------------------- usage errors: exit code 2

/// A database and an API that are up, and take note of any connection.
struct Untouched {
    database: TcpListener,
    api: Stub,
}

impl Untouched {
    fn new() -> Self {
        let database = TcpListener::bind("127.0.0.1:0").expect("a free port");
        database.set_nonblocking(true).expect("no waiting");
        Self { database, api: Stub::always(Reply::valid()) }
    }

    fn address(&self) -> SocketAddr {
        self.database.local_addr().expect("address")
    }

    fn run(&self) -> Run {
        let run = Run::bare().env("MONGODB_URI", format!("mongodb://user:hunter2@{}/", self.address()));
        run.env("BAOMING_API_BASE", self.api.base()).env("TZ", "Asia/Shanghai").secret("hunter2")
    }

    /// The run is to end with code 2 and one line that holds `named`, in Chinese and in English,
    /// before it has connected to anything or made its log file.
    #[track_caller]
    fn refuses(&self, run: Run, what: &str, named: &str) {
        count(Total::Faults, 1);
        let log = scratch_dir().join("log");
        let outcome = run.arg("--log-file").arg(&log).limit(PROMPT).go();
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{what}: {outcome:?}");
        let line =
            outcome.stderr.strip_prefix("refresh_baoming_tokens: ").and_then(|it| it.strip_suffix('\n'));
        assert!(line.is_some_and(|line| line.contains(named) && !line.contains('\n')), "{what}: {outcome:?}");
        let is_chinese = |c: char| ('\u{4e00}'..'\u{9fff}').contains(&c);
        let (chinese, english) = line.and_then(|line| line.split_once('(')).expect("both languages");
        assert!(chinese.contains(is_chinese) && english.contains(char::is_alphabetic), "{what}: {outcome:?}");
        let connection = self.database.accept().map_err(|error| error.kind());
        assert_eq!(connection.map(drop), Err(ErrorKind::WouldBlock), "{what}");
        assert_eq!(self.api.connections(), 0, "{what}");
        assert!(!log.exists(), "{what}");
    }
}

#[test]
fn bad_flags_name_the_flag_and_connect_to_nothing() {
    let table = [
        ("--dry-rum --cleanup-days 30", "--dry-rum"),
        ("--crad 1111", "--crad"),
        ("--dry-run --dry-run", "--dry-run"),
        ("--dry-run=no", "--dry-run"),
        ("--max-age-days", "--max-age-days"),
        ("--restore-hours --dry-run 24", "--restore-hours"),
        ("--card --dry-run", "--card"),
        ("--max-age-days seven", "--max-age-days"),
        ("--cleanup-days 0", "--cleanup-days"),
        ("--cleanup-days=-1", "--cleanup-days"),
        ("--restore-hours=99999999999999999999", "--restore-hours"),
        ("--max-delete 101%", "--max-delete"),
        ("--shard 3/2", "--shard"),
        ("--eid=", "--eid"),
        ("--eid a&b", "--eid"),
        ("--interval 2", "--interval"),
        ("-q -v", "--quiet"),
        ("--self-test --scheduler", "--self-test"),
        ("--scheduler --json", "--json"),
        ("--card 1111 --cleanup-days 3", "--card"),
        ("--metrics-file no/such/folder/metrics.prom", "--metrics-file"),
        ("--metrics-file /dev/null", "--metrics-file"),
        ("--mongodb-uri=mongodb://user:hunter2@host/", "--mongodb-uri"),
        ("mongodb://user:hunter2@host/", "argument"),
    ];
    let untouched = Untouched::new();
    for (flags, named) in table {
        untouched.refuses(untouched.run().args(flags.split(' ')), flags, named);
    }
}

#[test]
fn a_bad_environment_names_the_variable_and_connects_to_nothing() {
    const URI: &str = "mongodb://user:hunter2@127.0.0.1:1/";
    let path = |path: PathBuf| path.into_os_string();
    let no_file = || path(scratch_dir().join("none"));
    let secret = |text: &str| path(file("uri", text, 0o600));
    let text = OsString::from;
    let (uri, uri_file) = ("MONGODB_URI", "MONGODB_URI_FILE");
    // Variable, value, what the line says.
    let with_the_rest: Vec<(&str, OsString, &str)> = vec![
        (uri_file, secret(URI), uri_file),
        ("MONGODB_DB_NAME", text("a/b"), "MONGODB_DB_NAME"),
        ("MONGODB_DB_NAME", "x".repeat(64).into(), "MONGODB_DB_NAME"),
        ("TZ", text("Mars/Olympus_Mons"), "TZ"),
        ("TZ", text("Asia/Shanghia"), "TZ"),
        ("TZ", text("CST8:"), "TZ"),
        ("BAOMING_API_BASE", text("http://api.example/xcx"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("http://127.0.0.1.example/xcx"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("http://127.0.0.1@api.example/"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("https://user:hunter2@api.example:443/"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("https://api.example/?a=hunter2"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("https://api.example:99999/"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("ftp://127.0.0.1/xcx"), "BAOMING_API_BASE"),
        ("BAOMING_API_BASE", text("api.example"), "BAOMING_API_BASE"),
        // Longer than any library takes without a panic.
        (
            "BAOMING_API_BASE",
            format!("https://api.example/{}", "x".repeat(65_530)).into(),
            "BAOMING_API_BASE",
        ),
        ("SSL_CERT_FILE", no_file(), "SSL_CERT_FILE"),
        ("SSL_CERT_FILE", path(scratch_dir()), "SSL_CERT_FILE"),
        ("SSL_CERT_FILE", path(file("pem", "no certificate", 0o644)), "SSL_CERT_FILE"),
    ];
    let instead_of_uri: Vec<(&str, OsString, &str)> = vec![
        ("TZ", text("UTC"), uri),
        (uri_file, no_file(), "系统错误 2 (os error 2)"),
        (uri_file, path(scratch_dir()), "系统错误 21 (os error 21)"),
        (uri_file, secret("\n"), uri_file),
        (uri_file, secret("\u{feff}"), uri_file),
        (uri_file, secret(&format!("\"{URI}\"")), "引号"),
        (uri_file, secret(&format!("{URI}\n{URI}\n")), "一行"),
        (uri_file, secret("mongodb://:hunter2"), "host"),
        (uri_file, path(file("uri", URI, 0o640)), "chmod 600"),
        (uri_file, path(file("uri", URI, 0o604)), "chmod 600"),
        ("CREDENTIALS_DIRECTORY", path(scratch_dir()), "mongodb_uri"),
    ];
    let untouched = Untouched::new();
    for (name, value, named) in with_the_rest {
        let what = format!("{name}={}", value.display());
        untouched.refuses(untouched.run().env(name, value), &what, named);
    }
    for (name, value, named) in instead_of_uri {
        let what = format!("{name}={} without {uri}", value.display());
        untouched.refuses(untouched.run().env_remove(uri).env(name, value), &what, named);
    }
    for (name, value) in
        [("HTTPS_PROXY", "http://user:hunter2@:0:"), ("ALL_PROXY", "socks5://user:hunter2@127.0.0.1:1")]
    {
        let run = untouched.run().env("BAOMING_API_BASE", "https://api.example/xcx").env(name, value);
        untouched.refuses(run, name, name);
    }
}

/// What is wrong with a connection string, as users write it. `HOST` is a living server that must
/// not be asked. More of them, without a process for each, are in `src/uri.rs`.
const MISTAKES: [(&str, &str); 30] = [
    ("\"mongodb://HOST/\"", "引号"),
    ("'mongodb://HOST/'", "quotes"),
    ("MONGODB_URI=mongodb://HOST/", "MONGODB_URI="),
    ("hunter2", "mongodb://"),
    ("http://HOST/", "mongodb://"),
    ("mongodb://", "host"),
    ("mongodb://user:hunter2@127.0.0.1:99999/", "port"),
    ("mongodb:///tmp/mongodb-27017.sock", "percent-encode"),
    ("mongodb+srv://user:hunter2@127.0.0.1/", "mongodb+srv"),
    ("mongodb+srv://user:hunter2@HOST/", "mongodb+srv"),
    ("mongodb://ops:hunter2@ss@HOST/", "percent-encode"),
    ("mongodb://ops:hunter2/ss@HOST/", "percent-encode"),
    ("mongodb://ops:hunter2?ss@HOST/", "percent-encode"),
    ("mongodb://ops:hunter2%zz@HOST/", "percent-encode"),
    ("mongodb://hunter2:@HOST/", "password"),
    ("mongodb://HOST/?replSet=hunter2", "replicaSet"),
    ("mongodb://HOST/?tls=yes", "tls"),
    ("mongodb://HOST/?tlsInsecure=true&tlsAllowInvalidCertificates=true", "tlsInsecure"),
    ("mongodb://HOST/?tls=false&tlsCAFile=hunter2", "tlsCAFile"),
    ("mongodb://HOST/?tls=true&tlsCAFile=/no/such.pem", "tlsCAFile"),
    ("mongodb://HOST/?tls=true&tlsCAFile=EMPTY", "tlsCAFile"),
    ("mongodb://HOST/?tls=true&tlsCAFile=Cargo.toml", "tlsCAFile"),
    ("mongodb://HOST/?tlsCertificateKeyFile=CA", "tlsCertificateKeyFile"),
    ("mongodb://HOST,HOST/?directConnection=true", "directConnection"),
    ("mongodb://HOST/?loadBalanced=true&replicaSet=rs0", "loadBalanced"),
    ("mongodb://HOST/?authMechanism=MONGODB-AWS", "authMechanism"),
    ("mongodb://HOST/?authMechanism=MONGODB-CR", "authMechanism"),
    ("mongodb://HOST/?readPreference=hunter2", "readPreference"),
    ("mongodb://HOST/?connectTimeoutMS=hunter2", "connectTimeoutMS"),
    ("mongodb://HOST/?timeoutMS=-1", "timeoutMS"),
];

#[test]
fn a_bad_connection_string_names_the_option_and_connects_to_nothing() {
    let untouched = Untouched::new();
    let empty = file("empty.pem", "", 0o644);
    let fill = |uri: &str| {
        let uri = uri.replace("HOST", &untouched.address().to_string());
        uri.replace("EMPTY", &empty.display().to_string())
            .replace("=CA", &format!("={}", tls::ca_file().display()))
    };
    for (uri, named) in MISTAKES {
        untouched.refuses(untouched.run().env("MONGODB_URI", fill(uri)), uri, named);
    }
    let not_text = std::os::unix::ffi::OsStringExt::from_vec(b"mongodb://u:hunter2\xff@h/".to_vec());
    untouched.refuses(
        untouched.run().env("MONGODB_URI", OsString::clone(&not_text)),
        "no UTF-8",
        "MONGODB_URI",
    );
}

#[test]
fn what_other_programs_need_in_a_connection_string_is_taken() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::always(Reply::valid());
    let options = [
        "compressors=zstd",
        "uuidRepresentation=standard&tz_aware=true&connect=false",
        "socketTimeoutMS=20000",
        "timeoutMS=20000&connectTimeoutMS=0&maxPoolSize=0",
        "authsource=admin&readPreference=secondaryPreferred",
        "w=5&readConcernLevel=majority",
        "w=0&journal=true",
        "retryWrites=true&appName=%E5%88%B7%E6%96%B0&",
    ];
    for options in options {
        let run = Run::new(&db, &api).env("MONGODB_URI", format!("{}?{options}", db.uri)).arg("-v");
        let outcome = run.go().expect(0);
        assert_eq!(outcome.stat("成功"), 1, "{options}");
    }
    let left_out = Run::new(&db, &api).env("MONGODB_URI", format!("{}?tz_aware=true", db.uri)).arg("-v");
    assert!(left_out.go().expect(0).stdout.contains("tz_aware"), "a DEBUG line names what is left out");
}

#[test]
fn the_connection_string_may_come_from_a_file() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let api = Stub::always(Reply::valid());
    let secret = |mode| file("mongodb_uri", format!("\u{feff} {} \r\n\n", db.uri), mode);
    let folder = |file: &Path| file.parent().expect("folder").to_path_buf();
    let credential = secret(0o440);
    let table: [&[(&str, PathBuf)]; 5] = [
        &[("MONGODB_URI_FILE", secret(0o600))],
        &[("MONGODB_URI_FILE", secret(0o400))],
        &[("CREDENTIALS_DIRECTORY", folder(&credential))],
        // Others may read it, but it is where systemd keeps its secrets.
        &[("MONGODB_URI_FILE", credential.clone()), ("CREDENTIALS_DIRECTORY", folder(&credential))],
        &[("MONGODB_URI_FILE", secret(0o600)), ("CREDENTIALS_DIRECTORY", scratch_dir())],
    ];
    for variables in table {
        let mut run = Run::new(&db, &api).env_remove("MONGODB_URI");
        for (name, path) in variables {
            run = run.env(name, path);
        }
        assert_eq!(run.go().expect(0).stat("成功"), 1, "{variables:?}");
    }
}

#[test]
fn the_database_is_the_variable_s_or_the_uri_s_or_the_default() {
    let server = Mongod::start();
    let (one, two) = (server.fresh_db(), server.fresh_db());
    one.add_tokens("valid", 1);
    two.add_tokens("valid", 2);
    let default = server.client().database("auto-form-db").collection("baoming_tokens");
    let tokens: Vec<_> = (0..3).map(|_| Seed::new(&unique_token("valid")).0).collect();
    default.insert_many(tokens).run().expect("tokens");
    let api = Stub::always(Reply::valid());
    for (path, variable, database, total) in [
        ("", Some(&one.name), &one.name, 1),
        (&two.name, Some(&one.name), &one.name, 1),
        (&two.name, None, &two.name, 2),
        (&two.name, Some(&String::new()), &two.name, 2),
        ("", None, &"auto-form-db".to_owned(), 3),
    ] {
        let mut run = Run::new(&one, &api).env("MONGODB_URI", format!("{}{path}", server.uri()));
        run = run.env_remove("MONGODB_DB_NAME");
        if let Some(name) = variable {
            run = run.env("MONGODB_DB_NAME", name);
        }
        let json = run.arg("--json").go().expect(0).json();
        assert_eq!((json["database"].as_str(), json["success"].as_u64()), (Some(&**database), Some(total)));
    }
}

// ------------------------------------------------------- failed connections: exit code 1

/// An address whose packets are dropped: its queue of connections is full.
fn dropped() -> (Socket, Vec<Socket>, String) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    listener.bind(&any.into()).expect("a free port");
    listener.listen(0).expect("a queue of none");
    let address = listener.local_addr().expect("address");
    let fill = (0..4).map(|_| {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        client.set_nonblocking(true).expect("no waiting");
        // Those that the queue does not hold wait, as the program will.
        let _ = client.connect(&address);
        client
    });
    let fill = fill.collect();
    let address = address.as_socket().expect("an address").to_string();
    (listener, fill, address)
}

/// Serves each connection to a free port in a thread; these end with the test process.
fn serve(each: impl Fn(TcpStream) -> std::io::Result<()> + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("address").to_string();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let each = each.clone();
            thread::spawn(move || each(client));
        }
    });
    address
}

/// A server that says what one before 4.2 says of itself.
fn too_old() -> String {
    serve(|mut client| {
        loop {
            let mut head = [0; 16];
            client.read_exact(&mut head)?;
            let number = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
            let mut rest = vec![0; usize::try_from(number(0)).expect("a length") - 16];
            client.read_exact(&mut rest)?;
            let hello: Document = doc! {
                "ismaster": true, "minWireVersion": 0, "maxWireVersion": 7, "ok": 1,
                "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
            };
            // OP_QUERY is answered by OP_REPLY, OP_MSG by its like.
            let (opcode, before) = if number(12) == 2004 {
                let mut before = vec![0; 20];
                before[16] = 1;
                (1_i32, before)
            } else {
                (2013, vec![0; 5])
            };
            let body = [before, hello.to_vec().expect("BSON")].concat();
            let length = i32::try_from(16 + body.len()).expect("short");
            let head = [length, 1, number(4), opcode].map(i32::to_le_bytes).concat();
            client.write_all(&[head, body].concat())?;
        }
    })
}

/// A way to `server` on which its own name becomes one that nobody resolves.
fn renamed(server: String, name: &'static str) -> String {
    assert_eq!(server.len(), name.len(), "lengths must not change");
    serve(move |mut client| {
        let mut upstream = TcpStream::connect(&server)?;
        let (mut from_client, mut to_server) = (client.try_clone()?, upstream.try_clone()?);
        thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
        let mut buffer = vec![0; 65_536];
        loop {
            let n = upstream.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            for at in 0..n.saturating_sub(server.len() - 1) {
                if buffer[at..].starts_with(server.as_bytes()) {
                    buffer[at..at + name.len()].copy_from_slice(name.as_bytes());
                }
            }
            client.write_all(&buffer[..n])?;
        }
    })
}

#[test]
fn a_failed_connection_names_its_cause() {
    let db = Mongod::shared().fresh_db();
    db.add_token("valid");
    let before = db.snapshot();
    let api = Stub::always(Reply::valid());
    let plain = Mongod::shared().host();
    let (_listener, _fill, dropped) = dropped();
    let [good, self_signed, wrong_host, ca_as_server] =
        [Certificate::Good, Certificate::SelfSigned, Certificate::WrongHost, Certificate::CaAsServer]
            .map(|certificate| Mongod::start_with_certificate(certificate, false));
    let mutual = Mongod::start_with_certificate(Certificate::Good, true);
    // A mongod does not start with a certificate that is over.
    let expired = Stub::start_tls(Certificate::Expired, |_| Reply::valid());
    let auth = Mongod::start_with_auth();
    let cards_only = auth.add_user("cards_only", &db.name, &[("cards", &["find"])]);
    let uninitiated = Mongod::start_uninitiated();
    let (single, three) = (ReplicaSet::start_of(1, false, 1000), ReplicaSet::start_of(3, false, 1000));
    let hosts = three.nodes.iter().map(Mongod::host).collect::<Vec<_>>().join(",");
    for node in &three.nodes[1..] {
        node.kill();
    }
    await_true("a set without a primary", || {
        let hello = three.nodes[0].admin(doc! { "hello": 1 });
        hello.get_bool("isWritablePrimary").is_ok_and(|is_primary| !is_primary)
    });
    let (old, closed) = (too_old(), dead());
    let junk = serve(|mut client| client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    let [silent, unanswered] = [(), ()].map(|()| {
        serve(|client| {
            thread::sleep(Duration::from_secs(60));
            drop(client);
            Ok(())
        })
    });
    let member = renamed(single.nodes[0].host(), "no.invalid:1234");
    let ca = format!("tlsCAFile={}", tls::ca_file().display());
    // The hosts, as they are shown too; options; cause; what else the line says; seconds at most.
    let set = |name: &str| format!("replicaSet={name}");
    #[rustfmt::skip]
    let mut table: Vec<(String, String, &str, &str, u64)> = vec![
        (closed.clone(), String::new(), "连接被拒绝", "mongod", 2),
        (format!("{closed},{}", dead()), set("rs0"), "连接被拒绝", "mongod", 2),
        (dropped, String::new(), "超时", "安全组", 7),
        (silent, String::new(), "超时", "防火墙", 7),
        ("no-such.invalid".into(), String::new(), "域名无法解析", "DNS", 7),
        ("%2Fno%2Fsuch.sock".into(), String::new(), "套接字文件不存在", "mongod", 7),
        (good.host(), "tls=true".into(), "证书不可信 (UnknownIssuer)", "tlsCAFile", 7),
        (self_signed.host(), ca.clone(), "证书不可信 (UnknownIssuer)", "tlsCAFile", 7),
        (wrong_host.host(), ca.clone(), "证书不可信 (NotValidForName)", "主机名", 7),
        (ca_as_server.host(), ca.clone(), "证书不可信 (CaUsedAsEndEntity)", "CA 证书", 7),
        (expired.address().to_string(), ca.clone(), "证书不可信 (Expired)", "过期", 7),
        (mutual.host(), ca, "TLS 连接被服务器断开", "tlsCertificateKeyFile", 7),
        (plain.clone(), "tls=true".into(), "服务器不使用 TLS", "tls=true", 7),
        (good.host(), String::new(), "服务器要求 TLS", "tls=true", 7),
        (plain.clone(), set("rs9"), "副本集名称不符", "rs9", 7),
        (plain, set("rs9&directConnection=true"), "副本集名称不符", "replicaSet", 7),
        (single.nodes[0].host(), set("rs9"), "副本集名称不符", "rs9", 7),
        (hosts, set("rs0"), "副本集 rs0 没有主节点", "rs.status()", 7),
        (uninitiated.host(), String::new(), "副本集尚未初始化", "rs.initiate()", 7),
        (member, set("rs0"), "副本集成员 no.invalid:1234 无法连接", "directConnection=true", 7),
        (old, String::new(), "服务器版本过旧", "4.2", 7),
        (junk, String::new(), "对方不是 MongoDB 服务器", "端口", 7),
    ];
    for (hosts, options, ..) in &mut table {
        *options = format!("mongodb://user:hunter2@{hosts}/?serverSelectionTimeoutMS=4000&{options}");
    }
    // Whole connection strings, the first of them without a limit of its own.
    let secondary = three.nodes[0].host();
    let direct = format!("mongodb://{secondary}/?directConnection=true");
    table.extend([
        (unanswered.clone(), format!("mongodb://user:hunter2@{unanswered}/"), "超时", "防火墙", 13),
        (
            "no.such.invalid".into(),
            "mongodb+srv://user:hunter2@no.such.invalid/".into(),
            "域名无法解析",
            "SRV",
            13,
        ),
        (secondary, direct, "不是主节点", "replicaSet", 7),
        (auth.host(), auth.uri_for("admin", "hunter2"), "认证失败", "authSource", 7),
        (auth.host(), auth.uri_for("hunter2", "hunter2"), "认证失败", "authSource", 7),
        (auth.host(), cards_only, "无权限", "readWrite", 7),
        (auth.host(), format!("mongodb://{}/", auth.host()), "无权限", "没有用户和密码", 7),
    ]);
    thread::scope(|scope| {
        for (hosts, uri, cause, more, seconds) in &table {
            let run = Run::new(&db, &api).no_args().env("MONGODB_URI", uri).secret("hunter2").limit(PROMPT);
            scope.spawn(move || {
                count(Total::Faults, 1);
                let outcome = run.go();
                let lines: Vec<&str> = outcome.stdout.lines().collect();
                let [_, line] = lines[..] else { panic!("{uri}: {outcome:?}") };
                let head = format!("[ERROR] ❌ 数据库 {hosts}");
                let parts = [&head, " 连接失败: ", cause, "；", more];
                assert!(parts.iter().all(|part| line.contains(part)), "{uri}: {line}");
                assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), ""), "{uri}");
                // Many run at once here; what is promised is 2 seconds more exact than this.
                let limit = Duration::from_secs(seconds + 3);
                assert!(outcome.elapsed < limit, "{uri} took {:?}: {line}", outcome.elapsed);
            });
        }
    });
    assert_eq!((api.requests(), db.snapshot()), (0, before));
}

#[test]
fn an_account_that_may_read_but_not_write_changes_nothing() {
    let server = Mongod::start_with_auth();
    let read: &[&str] = &["find", "listCollections"];
    let write: &[&str] = &["find", "insert", "update", "remove"];
    // What the account may, on tokens and on the bin; what the API says of the token.
    for (name, tokens, bin, reply) in [
        ("no_update", read, write, Reply::valid()),
        ("no_bin", write, read, Reply::invalid()),
        ("no_delete", &["find", "insert", "update"][..], write, Reply::invalid()),
    ] {
        count(Total::Faults, 1);
        let db = server.fresh_db();
        db.add_token("token");
        let before = db.snapshot();
        let privileges: [(&str, &[&str]); 3] =
            [("baoming_tokens", tokens), ("baoming_tokens_deleted", bin), ("cards", read)];
        let uri = server.add_user(name, &db.name, &privileges);
        let api = Stub::always(reply);
        let outcome = Run::new(&db, &api).env("MONGODB_URI", uri).go().expect(1);
        assert!(outcome.stdout.contains("权限"), "{name}: {outcome:?}");
        assert_eq!((outcome.stat("成功"), outcome.stat("删除")), (0, 0), "{name}");
        assert_eq!(db.snapshot(), before, "{name}");
        db.assert_none_lost();
    }
}

#[test]
fn tls_sockets_and_certificates_that_fit_are_used() {
    let api = Stub::always(Reply::valid());
    let client = format!("tlsCertificateKeyFile={}", tls::pem_file(Certificate::Good).display());
    for (is_mutual, more) in [(false, ""), (true, client.as_str())] {
        let server = Mongod::start_with_certificate(Certificate::Good, is_mutual);
        let ca = tls::ca_file().display().to_string().replace('/', "%2F");
        let uri = format!("mongodb://{}/?tlsCAFile={ca}&{more}", server.host());
        let db = Mongod::shared().fresh_db();
        let outcome = Run::new(&db, &api).env("MONGODB_URI", uri).arg("--json").go().expect(0);
        assert_eq!(outcome.json()["total"], 0);
    }
}

/// A name server of the program's own, which never answers; only root may be one.
#[test]
fn a_silent_name_server_is_the_cause() {
    let Ok(_silent) = UdpSocket::bind("127.0.0.77:53") else {
        assert!(std::env::var_os("CI").is_none(), "nothing may be skipped in CI");
        return println!("Silent name server: skipped, needs root");
    };
    let (db, api) = (Mongod::shared().fresh_db(), Stub::always(Reply::valid()));
    let resolver = file("resolv.conf", "nameserver 127.0.0.77\n", 0o644);
    let inside = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    for scheme in ["mongodb", "mongodb+srv"] {
        count(Total::Faults, 1);
        let run = Run::new(&db, &api).no_args().program("unshare").args(["--mount", "sh", "-c", inside]);
        let run = run.arg(&resolver).arg(env!("CARGO_BIN_EXE_refresh_baoming_tokens"));
        let outcome = run.env("MONGODB_URI", format!("{scheme}://db.example/")).limit(PROMPT).go();
        assert!(outcome.stdout.contains("数据库 db.example 连接失败: 域名解析超时；"), "{outcome:?}");
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.elapsed < Duration::from_secs(13), "{outcome:?}");
    }
}
