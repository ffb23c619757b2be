//! Flags, environment and the way to the database: every mistake is one clear line that names what
//! is wrong and connects to nothing; every failed connection names its true cause.

use crate::prelude::*;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::ffi::OsStringExt;

pub const PROMPT: Duration = Duration::from_secs(25);
const SECRET_URI: &str = "mongodb://user:hunter2@127.0.0.1:1/";

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

    fn with(&self, name: &str, value: impl Into<OsString>) -> Run {
        self.run().env(name, value)
    }

    /// The same without a connection string in its own variable.
    fn instead(&self, name: &str, value: impl Into<OsString>) -> Run {
        self.with(name, value).env_remove("MONGODB_URI")
    }

    /// The run is to end with code 2 and one line that holds `named`, in Chinese and in English,
    /// before it has connected to anything or made its log file.
    #[track_caller]
    fn refuses(&self, run: Run, named: &str) {
        count(Total::FAULTS, 1);
        let log = scratch_dir().join("log");
        let outcome = run.arg("--log-file").arg(&log).limit(PROMPT).go();
        let what = format!("{named}: {outcome:?}");
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{what}");
        let line = outcome.stderr.strip_prefix("refresh_baoming_tokens: ").expect(&what);
        assert!(line.contains(named) && line.lines().count() == 1 && line.ends_with('\n'), "{what}");
        let is_chinese = |c: char| ('\u{4e00}'..='\u{9fff}').contains(&c);
        let (chinese, english) = line.split_once('(').expect("both languages");
        assert!(chinese.contains(is_chinese) && english.contains(char::is_alphabetic), "{what}");
        let connection = self.database.accept().map_err(|error| error.kind());
        assert_eq!(connection.map(drop), Err(ErrorKind::WouldBlock), "{what}");
        assert_eq!(self.api.connections(), 0, "{what}");
        assert!(!log.exists(), "{what}");
    }
}

/// More flags, without a process for each, are in `src/args.rs`.
#[test]
fn a_bad_flag_or_variable_is_named_and_connects_to_nothing() {
    let secret = |text: &str| file("uri", text, 0o600);
    let untouched = Untouched::new();
    let api_base = |value: &str| untouched.with("BAOMING_API_BASE", value);
    // Longer than any library takes without a panic.
    let long = format!("https://api.example/{}", "x".repeat(65_530));
    let flags = |flags: &str| untouched.run().args(flags.split(' '));
    let with_proxy = |name, value: &str| api_base("https://api.example/xcx").env(name, value);
    let table = [
        (flags("--dry-rum --cleanup-days 30"), "--dry-rum"),
        (flags("--crad 1111"), "--crad"),
        (flags("--dry-run --dry-run"), "--dry-run"),
        (flags("--restore-hours --dry-run 24"), "--restore-hours"),
        (flags("--max-age-days seven"), "--max-age-days"),
        (flags("--cleanup-days 0"), "--cleanup-days"),
        (flags("--eid a&b"), "--eid"),
        (flags("-q -v"), "--quiet"),
        (flags("--scheduler --json"), "--json"),
        (flags("--card 1111 --cleanup-days 3"), "--card"),
        (flags("--metrics-file no/such/folder/metrics.prom"), "--metrics-file"),
        (flags("--mongodb-uri=mongodb://user:hunter2@host/"), "--mongodb-uri"),
        (flags("mongodb://user:hunter2@host/"), "argument"),
        (untouched.with("MONGODB_URI_FILE", secret(SECRET_URI)), "MONGODB_URI_FILE"),
        (untouched.with("MONGODB_DB_NAME", "a/b"), "MONGODB_DB_NAME"),
        (untouched.with("MONGODB_DB_NAME", "x".repeat(64)), "MONGODB_DB_NAME"),
        (untouched.with("TZ", "Mars/Olympus_Mons"), "TZ"),
        (untouched.with("TZ", "Asia/Shanghia"), "TZ"),
        (untouched.with("TZ", "CST8:"), "TZ"),
        (api_base("http://hunter2.example/xcx"), "BAOMING_API_BASE"),
        (api_base("http://127.0.0.1.example/xcx"), "BAOMING_API_BASE"),
        (api_base("http://127.0.0.1@api.example/"), "BAOMING_API_BASE"),
        (api_base("https://user:hunter2@api.example:443/"), "BAOMING_API_BASE"),
        (api_base("https://api.example/?a=hunter2"), "BAOMING_API_BASE"),
        (api_base("https://api.example:99999/"), "BAOMING_API_BASE"),
        (api_base("ftp://127.0.0.1/xcx"), "BAOMING_API_BASE"),
        (api_base("api.example"), "BAOMING_API_BASE"),
        (api_base(&long), "BAOMING_API_BASE"),
        (untouched.with("SSL_CERT_FILE", scratch_dir().join("none")), "SSL_CERT_FILE"),
        (untouched.with("SSL_CERT_FILE", scratch_dir()), "SSL_CERT_FILE"),
        (untouched.with("SSL_CERT_FILE", file("pem", "no certificate", 0o644)), "SSL_CERT_FILE"),
        (untouched.instead("TZ", "UTC"), "MONGODB_URI"),
        (untouched.instead("MONGODB_URI_FILE", scratch_dir().join("none")), "系统错误 2 (os error 2)"),
        (untouched.instead("MONGODB_URI_FILE", scratch_dir()), "系统错误 21 (os error 21)"),
        (untouched.instead("MONGODB_URI_FILE", secret("\n")), "MONGODB_URI_FILE"),
        (untouched.instead("MONGODB_URI_FILE", secret("\u{feff}")), "MONGODB_URI_FILE"),
        (untouched.instead("MONGODB_URI_FILE", secret(&format!("{SECRET_URI}\n{SECRET_URI}\n"))), "一行"),
        (untouched.instead("MONGODB_URI_FILE", file("uri", SECRET_URI, 0o640)), "chmod 600"),
        (untouched.instead("MONGODB_URI_FILE", file("uri", SECRET_URI, 0o604)), "chmod 600"),
        (untouched.instead("CREDENTIALS_DIRECTORY", scratch_dir()), "mongodb_uri"),
        (with_proxy("HTTPS_PROXY", "http://user:hunter2@:0:"), "HTTPS_PROXY"),
        (with_proxy("HTTPS_PROXY", "http://user:hunter2@[:::"), "HTTPS_PROXY"),
        (with_proxy("ALL_PROXY", "socks5://user:hunter2@127.0.0.1:1"), "ALL_PROXY"),
    ];
    for (run, named) in table {
        untouched.refuses(run, named);
    }
}

/// What is wrong with a connection string, as users write it. `HOST` is a living server that must
/// not be asked. More of them, without a process for each, are in `src/uri.rs`.
const MISTAKES: [(&str, &str); 19] = [
    ("\"mongodb://HOST/\"", "引号"),
    ("MONGODB_URI=mongodb://HOST/", "MONGODB_URI="),
    ("hunter2", "mongodb://"),
    ("mongodb://:hunter2", "host"),
    ("mongodb://user:hunter2@127.0.0.1:99999/", "port"),
    ("mongodb+srv://user:hunter2@HOST/", "mongodb+srv"),
    ("mongodb://ops:hunter2@ss@HOST/", "percent-encode"),
    ("mongodb://ops:hunter2%zz@HOST/", "percent-encode"),
    // What looks like an option is a part of the password.
    ("mongodb://ops:ss?hunter2=1&w@HOST/?tls=true", "percent-encode"),
    ("mongodb://hunter2:@HOST/", "password"),
    ("mongodb://HOST/?replSet=hunter2", "replicaSet"),
    ("mongodb://HOST/?tls=hunter2", "tls"),
    ("mongodb://HOST/?tls=true&tlsCAFile=/no/hunter2.pem", "tlsCAFile"),
    ("mongodb://HOST/?tls=true&tlsCAFile=EMPTY", "tlsCAFile"),
    ("mongodb://HOST/?tlsCertificateKeyFile=CA", "tlsCertificateKeyFile"),
    ("mongodb://HOST,HOST/?directConnection=true", "directConnection"),
    ("mongodb://HOST/?authMechanism=hunter2", "authMechanism"),
    ("mongodb://HOST/?readPreference=hunter2", "readPreference"),
    ("mongodb://HOST/?connectTimeoutMS=hunter2", "connectTimeoutMS"),
];

#[test]
fn a_bad_connection_string_names_the_option_and_connects_to_nothing() {
    let untouched = Untouched::new();
    let (host, empty) = (untouched.address().to_string(), file("empty.pem", "", 0o644));
    let certificate = format!("={}", tls::ca_file().display());
    for (uri, named) in MISTAKES {
        let uri = uri.replace("HOST", &host).replace("EMPTY", &empty.display().to_string());
        let uri = uri.replace("=CA", &certificate);
        let from_file = untouched.instead("MONGODB_URI_FILE", file("uri", &uri, 0o600));
        untouched.refuses(from_file.secret(&uri), named);
        untouched.refuses(untouched.with("MONGODB_URI", uri), named);
    }
    let not_text = OsString::from_vec(b"mongodb://u:hunter2\xff@h/".to_vec());
    untouched.refuses(untouched.with("MONGODB_URI", not_text), "MONGODB_URI");
}

#[test]
fn a_connection_string_is_taken_from_either_place_and_with_what_other_programs_need_in_it() {
    let (db, api) = valid_tokens(1);
    let secret = |mode| file("mongodb_uri", format!("\u{feff} {} \r\n\n", db.uri), mode);
    let credential = secret(0o440);
    let folder = credential.parent().expect("folder");
    let with = |options| vec![("MONGODB_URI", PathBuf::from(format!("{}?{options}", db.uri)))];
    let table = [
        with(
            "compressors=zstd&authsource=admin&readPreference=secondaryPreferred&w=5&readConcernLevel=majority",
        ),
        with(
            "uuidRepresentation=standard&tz_aware=true&connect=false&socketTimeoutMS=20000&w=0&journal=true",
        ),
        with("timeoutMS=20000&connectTimeoutMS=0&maxPoolSize=0&retryWrites=true&appName=%E5%88%B7%E6%96%B0&"),
        vec![("MONGODB_URI_FILE", secret(0o600))],
        vec![("MONGODB_URI_FILE", secret(0o400))],
        vec![("CREDENTIALS_DIRECTORY", folder.into())],
        // Others may read it, but it is where systemd keeps its secrets.
        vec![("MONGODB_URI_FILE", credential.clone()), ("CREDENTIALS_DIRECTORY", folder.into())],
        vec![("MONGODB_URI_FILE", secret(0o600)), ("CREDENTIALS_DIRECTORY", scratch_dir())],
    ];
    for variables in table {
        // A DEBUG line names what is left out.
        let is_left_out = format!("{variables:?}").contains("tz_aware");
        let outcome = Run::new(&db, &api).env_remove("MONGODB_URI").envs(variables).arg("-v").go().expect(0);
        assert_eq!((outcome.stat("成功"), outcome.stdout.contains("tz_aware")), (1, is_left_out));
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
        ("", Some(&*one.name), &*one.name, 1),
        (&two.name, Some(&one.name), &one.name, 1),
        (&two.name, None, &two.name, 2),
        (&two.name, Some(""), &two.name, 2),
        ("", None, "auto-form-db", 3),
    ] {
        let run = Run::new(&one, &api).env("MONGODB_URI", format!("{}{path}", server.uri())).arg("--json");
        let run = run.env_remove("MONGODB_DB_NAME").envs(variable.map(|name| ("MONGODB_DB_NAME", name)));
        let json = run.go().expect(0).json();
        assert_eq!((json["database"].as_str(), json["success"].as_u64()), (Some(database), Some(total)));
    }
}

/// Hosts as they are shown; connection string; the cause; what else the line says.
type Failure = (String, String, &'static str, &'static str);

fn at(hosts: impl Into<String>, options: &str, cause: &'static str, more: &'static str) -> Failure {
    let hosts = hosts.into();
    let uri = format!("mongodb://user:hunter2@{hosts}/?serverSelectionTimeoutMS=4000&{options}");
    (hosts, uri, cause, more)
}

#[track_caller]
fn assert_failures(rows: &[Failure]) {
    let (db, api) = valid_tokens(1);
    let before = db.snapshot();
    each(rows, |(hosts, uri, cause, more)| {
        count(Total::FAULTS, 1);
        let run = Run::new(&db, &api).args(["-v", "--json"]).env("MONGODB_URI", uri).secret("hunter2");
        let outcome = run.go();
        assert_report(&outcome, &report(&db, 1, Some("database"), &[]));
        let mut lines = outcome.stderr.lines().filter(|line| !line.contains("[DEBUG]")).skip(2);
        let line = lines.next().expect("an error");
        let head = format!("[ERROR] ❌ 数据库 {hosts}");
        let parts = [&head, " 连接失败: ", cause, "；", more];
        assert!(parts.iter().all(|part| line.contains(part)) && lines.next().is_none(), "{line}");
        // Without a limit of its own in the string, it is 10 s.
        let limit = match uri {
            _ if *cause == "连接被拒绝" => 2,
            uri if uri.contains("serverSelectionTimeoutMS") => 7,
            _ => 13,
        };
        // Many run at once here; what is promised is 2 seconds more exact than this.
        assert!(outcome.elapsed < Duration::from_secs(limit + 3), "took {:?}: {line}", outcome.elapsed);
    });
    assert_eq!((api.requests(), db.snapshot()), (0, before));
}

#[test]
fn a_failed_connection_names_its_cause() {
    const NOBODY: &str = "no.invalid:1234";
    let plain = Mongod::shared().host();
    let (_sockets, dropped) = unresponsive();
    let auth = Mongod::start_with_auth();
    let cards_only = auth.add_user("cards_only", "elsewhere", &[("cards", &["find"])]);
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
    let old = Wire::greeting(plain.clone(), |hello| drop(hello.insert("maxWireVersion", 7)));
    let member = Wire::greeting(single.nodes[0].host(), |hello| {
        hello.extend(doc! { "hosts": [NOBODY], "me": NOBODY, "primary": NOBODY });
    });
    // Connections that nobody takes; those that something else takes.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent_at = silent.local_addr().expect("address").to_string();
    let junk = Server::start(|mut client| drop(client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")));
    let whole = |hosts: &str, uri: String, cause, more| (hosts.to_owned(), uri, cause, more);
    let unlimited = format!("mongodb://user:hunter2@{silent_at}/");
    let srv = "mongodb+srv://user:hunter2@no.such.invalid/".to_owned();
    let elsewhere = auth.uri().replace("authSource=admin", "authSource=elsewhere");
    let (host, secondary) = (auth.host(), three.nodes[0].host());
    let direct = format!("mongodb://{secondary}/?directConnection=true");
    let unreachable = "副本集成员 no.invalid:1234 无法连接";
    assert_failures(&[
        at(dead(), "", "连接被拒绝", "mongod"),
        at(format!("{},{}", dead(), dead()), "replicaSet=rs0", "连接被拒绝", "mongod"),
        at(dropped, "", "超时", "安全组"),
        at(silent_at.clone(), "", "超时", "防火墙"),
        at("no-such.invalid", "", "域名无法解析", "DNS"),
        at("%2Fno%2Fsuch.sock", "", "套接字文件不存在", "mongod"),
        at(plain.clone(), "tls=true", "服务器不使用 TLS", "tls=true"),
        at(plain.clone(), "replicaSet=rs9", "副本集名称不符", "rs9"),
        at(plain, "replicaSet=rs9&directConnection=true", "副本集名称不符", "replicaSet"),
        at(single.nodes[0].host(), "replicaSet=rs9", "副本集名称不符", "rs9"),
        at(hosts, "replicaSet=rs0", "副本集 rs0 没有主节点", "rs.status()"),
        at(uninitiated.host(), "", "副本集尚未初始化", "rs.initiate()"),
        at(member.address(), "replicaSet=rs0", unreachable, "directConnection=true"),
        at(old.address(), "", "服务器版本过旧", "4.2"),
        at(junk.address.to_string(), "", "对方不是 MongoDB 服务器", "端口"),
        whole(&silent_at, unlimited, "超时", "防火墙"),
        whole(&secondary, direct, "不是主节点", "replicaSet"),
        whole("no.such.invalid", srv, "域名无法解析", "SRV"),
        whole(&host, auth.uri_for("admin", "hunter2"), "认证失败", "authSource"),
        whole(&host, auth.uri_for("hunter2", "hunter2"), "认证失败", "authSource"),
        whole(&host, elsewhere, "认证失败", "authSource"),
        whole(&host, cards_only, "无权限", "readWrite"),
        whole(&host, format!("mongodb://{host}/"), "无权限", "没有用户和密码"),
    ]);
}

#[test]
fn a_signal_while_connecting_is_told_as_such() {
    let ((db, api), (_sockets, address)) = (world(), unresponsive());
    let live = Run::new(&db, &api).env("MONGODB_URI", format!("mongodb://{address}/")).start();
    live.await_line("正在连接数据库");
    live.signal(Signal::TERM);
    let log = live.wait().expect(143).log();
    assert!(log.contains("连接失败: 收到停止信号") && !log.contains("防火墙"), "{log}");
}

#[test]
fn certificates_are_verified_and_those_that_fit_are_used() {
    use Certificate::{CaAsServer, Expired, Good, SelfSigned, WrongHost};
    let [good, self_signed, wrong_host, ca_as_server] = [Good, SelfSigned, WrongHost, CaAsServer]
        .map(|certificate| Mongod::start_with_certificate(certificate, false));
    let mutual = Mongod::start_with_certificate(Good, true);
    // A mongod does not start with a certificate that is over.
    let expired = Stub::always_tls(Expired, Reply::valid());
    let ca = format!("tlsCAFile={}", tls::ca_file().display());
    assert_failures(&[
        at(good.host(), "tls=true", "证书不可信 (UnknownIssuer)", "tlsCAFile"),
        at(self_signed.host(), &ca, "证书不可信 (UnknownIssuer)", "tlsCAFile"),
        at(wrong_host.host(), &ca, "证书不可信 (NotValidForName)", "主机名"),
        at(ca_as_server.host(), &ca, "证书不可信 (CaUsedAsEndEntity)", "CA 证书"),
        at(expired.address().to_string(), &ca, "证书不可信 (Expired)", "过期"),
        at(mutual.host(), &ca, "TLS 连接被服务器断开", "tlsCertificateKeyFile"),
        at(good.host(), "", "服务器要求 TLS", "tls=true"),
    ]);
    let (db, api) = (Mongod::shared().fresh_db(), Stub::always(Reply::valid()));
    let client = format!("{ca}&tlsCertificateKeyFile={}", tls::pem_file(Good).display());
    for (server, options) in [(good, ca), (mutual, client)] {
        let uri = format!("mongodb://{}/?{}", server.host(), options.replace('/', "%2F"));
        Run::new(&db, &api).env("MONGODB_URI", uri).go().expect(0);
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
        count(Total::FAULTS, 1);
        let run = Run::new(&db, &api).no_args().program("unshare").args(["--mount", "sh", "-c", inside]);
        let run = run.arg(&resolver).arg(env!("CARGO_BIN_EXE_refresh_baoming_tokens"));
        let outcome = run.env("MONGODB_URI", format!("{scheme}://db.example/")).go();
        assert!(outcome.stdout.contains("数据库 db.example 连接失败: 域名解析超时；"), "{outcome:?}");
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.elapsed < Duration::from_secs(13), "{outcome:?}");
    }
}
