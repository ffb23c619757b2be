//! Real MongoDB servers on free loopback ports.

use super::seed::TestDb;
use super::tls::{self, Certificate};
use super::{Total, await_true, command, count, free_port, scratch_dir};
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{ClientOptions, ReadConcern};
use mongodb::sync::Client;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use std::{fs, thread};

/// Password of the administrator of a server with authentication. Full of what an URI must
/// escape, and unlike anything that a log says by itself.
pub const PASSWORD: &str = "P%ssw0rd:/@x";
const ADMIN: &str = "admin";

/// The commands by which a server is read from.
pub const READS: [&str; 5] = ["find", "getMore", "aggregate", "count", "distinct"];

/// A `mongod` process. Killed, and its data removed, when it is dropped.
pub struct Mongod {
    port: u16,
    dir: PathBuf,
    /// Beside its port and folder.
    args: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Mongod {
    pub fn start() -> Self {
        Self::launch(&[])
    }

    /// A server that asks for a password; [`Mongod::uri`] is the administrator's.
    pub fn start_with_auth() -> Self {
        let server = Self::launch(&["--auth"]);
        // Only possible while there is no user at all, and only from localhost.
        let open = connect(&format!("mongodb://{}/?directConnection=true", server.host()));
        let create = doc! { "createUser": ADMIN, "pwd": PASSWORD, "roles": ["root"] };
        open.database("admin").run_command(create).run().expect("administrator");
        server
    }

    /// A server that takes TLS connections only, with any certificate that a `mongod` takes (no
    /// expired one), maybe only from clients that show one, too.
    pub fn start_with_certificate(certificate: Certificate, mutual_tls: bool) -> Self {
        let pem = tls::pem_file(certificate);
        let [pem, ca] = [&pem, tls::ca_file()].map(|file| file.to_str().expect("a path"));
        let mut args = vec!["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", pem, "--tlsCAFile", ca];
        if !mutual_tls {
            args.push("--tlsAllowConnectionsWithoutCertificates");
        }
        Self::launch(&args)
    }

    /// A member of a replica set that was never initiated; it takes test commands: failpoints.
    pub fn start_uninitiated() -> Self {
        Self::launch(&["--replSet", "rs0", "--setParameter", "enableTestCommands=1"])
    }

    /// One plain server for all tests of this test binary; each takes its [`Mongod::fresh_db`].
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Mongod> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn launch(args: &[&str]) -> Self {
        // Another process may take the port first: then this mongod ends, and the next port is tried.
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let server =
            || Self { port: free_port(), dir: scratch_dir(), args: args.clone(), child: Mutex::default() };
        (0..5).map(|_| server()).find(Self::run).expect("a mongod that starts")
    }

    /// Starts the process and waits until it takes connections; false when it ended instead.
    fn run(&self) -> bool {
        let data = self.dir.join("data");
        fs::create_dir_all(&data).expect("data folder");
        let mut mongod = command(program());
        mongod.arg("--dbpath").arg(&data).args(["--bind_ip", "127.0.0.1", "--port", &self.port.to_string()]);
        mongod.args(["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]);
        mongod.args(["--setParameter", "diagnosticDataCollectionEnabled=false"]);
        mongod.args(&self.args).stdin(Stdio::null()).stderr(Stdio::null());
        mongod.stdout(fs::File::create(self.log()).expect("log of mongod"));
        let mut child = mongod.spawn().expect("mongod");
        let mut up = false;
        await_true("a mongod that takes connections", || {
            // Its own log rather than the port, which might be another server's.
            up = fs::read_to_string(self.log()).is_ok_and(|log| log.contains("Waiting for connections"));
            up || child.try_wait().expect("state of mongod").is_some()
        });
        if up {
            *self.child() = Some(child);
        }
        up
    }

    fn has(&self, arg: &str) -> bool {
        self.args.iter().any(|it| it == arg)
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Connection string, with the administrator's password where there is one.
    pub fn uri(&self) -> String {
        if self.has("--auth") { self.uri_for(ADMIN, PASSWORD) } else { format!("mongodb://{}/", self.host()) }
    }

    pub fn uri_for(&self, user: &str, password: &str) -> String {
        let password: String = form_urlencoded::byte_serialize(password.as_bytes()).collect();
        format!("mongodb://{user}:{password}@{}/?authSource=admin", self.host())
    }

    pub fn client(&self) -> Client {
        connect(&if self.has("--replSet") { self.uri() + "?directConnection=true" } else { self.uri() })
    }

    pub fn admin(&self, command: Document) -> Document {
        self.client().database("admin").run_command(command).run().expect("command on admin")
    }

    pub fn commands(&self, kinds: &[&str]) -> i64 {
        let status = self.admin(doc! { "serverStatus": 1 });
        let counters = status.get_document("metrics").and_then(|metrics| metrics.get_document("commands"));
        let counters = counters.expect("the server's counters");
        let total =
            |kind: &&str| counters.get_document(kind).map_or(0, |it| it.get_i64("total").expect("total"));
        kinds.iter().map(total).sum()
    }

    /// Creates a user (password [`PASSWORD`]) who has exactly these privileges, each
    /// `(collection, actions)` in `db`; gives the connection string.
    pub fn add_user(&self, name: &str, db: &str, privileges: &[(&str, &[&str])]) -> String {
        let privilege = |&(collection, actions): &(&str, &[&str])| {
            Bson::from(doc! { "resource": { "db": db, "collection": collection }, "actions": actions })
        };
        let privileges: Vec<Bson> = privileges.iter().map(privilege).collect();
        self.admin(doc! { "createRole": name, "privileges": privileges, "roles": [] });
        self.admin(doc! { "createUser": name, "pwd": PASSWORD, "roles": [name] });
        self.uri_for(name, PASSWORD)
    }

    pub fn fresh_db(&self) -> TestDb {
        let db = TestDb::new(&self.client(), &self.uri());
        if self.has("--auth") {
            db.add_secret(PASSWORD);
        }
        db
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().expect("no panic of another user")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child().as_ref().expect("a running mongod"))
    }

    pub fn kill(&self) {
        count(Total::KILLS, 1);
        self.end();
    }

    fn end(&self) {
        if let Some(mut child) = self.child().take() {
            child.kill().expect("SIGKILL");
            child.wait().expect("end of mongod");
        }
    }

    /// Starts again, after [`Mongod::kill`], on the same port and data.
    pub fn restart(&self) {
        assert!(self.run(), "mongod does not start again");
    }

    /// Stops the process without ending it (SIGSTOP): connections stay, nothing is answered.
    pub fn freeze(&self) {
        count(Total::FAULTS, 1);
        kill_process(self.pid(), Signal::STOP).expect("SIGSTOP");
        // The signal takes effect a moment later; this waits for all threads.
        waitpid(Some(self.pid()), WaitOptions::UNTRACED).expect("a stopped process");
    }

    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).expect("SIGCONT");
    }

    /// As for a backup: writes wait, reads do not.
    pub fn lock(&self) {
        count(Total::FAULTS, 1);
        self.admin(doc! { "fsync": 1, "lock": true });
    }

    pub fn unlock(&self) {
        self.admin(doc! { "fsyncUnlock": 1 });
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        self.end();
        // What is left, if anything, goes with the scratch folder.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The mongod that `scripts/mongod.sh` finds or fetches.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/mongod.sh");
        let found = Command::new(script).stderr(Stdio::inherit()).output().expect("scripts/mongod.sh");
        assert!(found.status.success(), "no mongod");
        let path = String::from_utf8(found.stdout).expect("a path in UTF-8");
        path.trim_end().into()
    })
}

/// A client that gives up after seconds, not half a minute.
pub fn connect(uri: &str) -> Client {
    let mut options = ClientOptions::parse(uri).run().expect("a valid URI");
    options.server_selection_timeout = Some(Duration::from_secs(5));
    // What the primary has, whatever defaults a test sets for the cluster.
    options.read_concern = Some(ReadConcern::local());
    Client::with_options(options).expect("client")
}

/// Nodes on loopback that elect a new primary within a second or two.
pub struct ReplicaSet {
    pub nodes: Vec<Mongod>,
}

impl ReplicaSet {
    /// Starts so many nodes, the last one maybe an arbiter, and waits until one is primary and the
    /// others follow it. A primary that is silent for `election_ms` is replaced: on a busy machine
    /// that is soon.
    pub fn start_of(members: usize, has_arbiter: bool, election_ms: i32) -> Self {
        let nodes: Vec<Mongod> = thread::scope(|scope| {
            let starting: Vec<_> = (0..members).map(|_| scope.spawn(Mongod::start_uninitiated)).collect();
            starting.into_iter().map(|node| node.join().expect("node")).collect()
        });
        let last = i32::try_from(members).expect("few") - 1;
        let member = |(id, node): (i32, &Mongod)| {
            let is_arbiter = has_arbiter && id == last;
            doc! { "_id": id, "host": node.host(), "arbiterOnly": is_arbiter }.into()
        };
        let members: Vec<Bson> = (0..).zip(&nodes).map(member).collect();
        let settings = doc! { "electionTimeoutMillis": election_ms, "heartbeatIntervalMillis": 200 };
        let config = doc! { "_id": "rs0", "members": members, "settings": settings };
        nodes[0].admin(doc! { "replSetInitiate": config });
        let set = Self { nodes };
        set.await_healthy();
        set
    }

    pub fn uri(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(Mongod::host).collect();
        format!("mongodb://{}/?replicaSet=rs0", hosts.join(","))
    }

    pub fn fresh_db(&self) -> TestDb {
        TestDb::new(&connect(&self.uri()), &self.uri())
    }

    pub fn primary(&self) -> &Mongod {
        let mut found = None;
        await_true("a primary", || {
            found = self.nodes.iter().find(|node| state(node) == Some(1));
            found.is_some()
        });
        found.expect("a primary")
    }

    /// Makes the primary hand over; returns once another one is in charge.
    pub fn step_down(&self) {
        count(Total::FAULTS, 1);
        let old = self.primary();
        old.admin(doc! { "replSetStepDown": 30, "secondaryCatchUpPeriodSecs": 10 });
        await_true("another primary", || {
            self.nodes.iter().any(|node| node.port != old.port && state(node) == Some(1))
        });
    }

    /// Waits until one member is primary and all others, if alive, are secondaries.
    pub fn await_healthy(&self) {
        await_true("a healthy replica set", || {
            let states: Vec<_> = self.nodes.iter().filter_map(state).collect();
            states.contains(&1) && states.iter().all(|state| [1, 2, 7].contains(state))
        });
    }
}

/// Member state: 1 primary, 2 secondary, 7 arbiter; `None` when the node is down.
fn state(node: &Mongod) -> Option<i32> {
    node.child().as_ref()?;
    let status = node.client().database("admin").run_command(doc! { "replSetGetStatus": 1 }).run();
    status.ok()?.get_i32("myState").ok()
}
