//! A stub of the enroll API: real HTTP (or HTTPS) on a free loopback port, written by hand on the
//! socket so that it can misbehave in every way. What it answers is a closure's choice.

use super::tls::{self, Certificate};
use super::{PATIENCE, Server, Total, Watched, count};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;
use socket2::SockRef;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Request {
    /// The request line, raw: `GET /xcx/… HTTP/1.1`.
    pub line: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Which request of this access token this is, from 1.
    pub nth: usize,
    /// Which request of all this is, from 1.
    pub number: usize,
    pub connection: usize,
    pub at: Instant,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The access token that is asked about; empty when there is none.
    pub fn token(&self) -> &str {
        self.query.iter().find(|(key, _)| key == "access_token").map_or("", |(_, value)| value)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    Endless(Vec<u8>),
    Tunnel(SocketAddr),
    Stall,
    Close,
    Reset,
}

/// What the stub does on a request: bytes to send, pauses, and what becomes of the connection.
#[derive(Clone, Debug)]
pub struct Reply {
    steps: Vec<Step>,
    proper: bool,
}

impl Reply {
    pub fn valid() -> Self {
        Self::json(200, r#"{"sta":0,"msg":"","data":{"info_id":"698add7c7068f814935d6804","title":"报名"}}"#)
    }

    pub fn never_enrolled() -> Self {
        Self::json(200, r#"{"sta":0,"msg":"","data":null}"#)
    }

    pub fn invalid() -> Self {
        Self::json(200, r#"{"msg":"invalid access_token","sta":-500}"#)
    }

    pub fn refusal(message: &str) -> Self {
        Self::json(200, json!({ "sta": -1, "msg": message, "data": null }).to_string())
    }

    /// What it says when it cannot say.
    pub fn busy() -> Self {
        Self::refusal("系统繁忙，请稍后再试")
    }

    /// What the label of a token asks for, wherever between its hyphens that is; valid without any.
    pub fn by_label(token: &str) -> Self {
        let of = |label: &str| {
            Some(match label {
                "never_enrolled" => Self::never_enrolled(),
                "invalid" => Self::invalid(),
                "unclear" => Self::refusal("data not found"),
                "busy" => Self::busy(),
                "slow" => Self::valid().after(Duration::from_secs(1)),
                "error" => Self::http(503, &[], "down for maintenance"),
                "down" => Self::close(),
                _ => return None,
            })
        };
        token.split('-').find_map(of).unwrap_or_else(Self::valid)
    }

    pub fn json(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self::http(status, &[("Content-Type", "application/json; charset=utf-8")], body)
    }

    /// Any complete reply, with a `Content-Length`.
    pub fn http(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let mut bytes = format!("HTTP/1.1 {status} Stub\r\nContent-Length: {}\r\n", body.len()).into_bytes();
        for (name, value) in headers {
            bytes.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        bytes.extend(b"\r\n");
        bytes.extend(body);
        Self { proper: status == 200, ..Self::raw(bytes) }
    }

    pub fn redirect(location: &str) -> Self {
        Self::http(302, &[("Location", location)], "")
    }

    /// These bytes as they are, HTTP or not; the connection is kept.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::fault(vec![Step::Send(bytes.into())])
    }

    /// Status 200 and this body in `Transfer-Encoding: chunked`, one chunk for each part.
    pub fn chunked(parts: &[&str]) -> Self {
        let chunk = |part: &&str| format!("{:x}\r\n{part}\r\n", part.len());
        let body: String = parts.iter().filter(|part| !part.is_empty()).map(chunk).collect();
        let head = "HTTP/1.1 200 Stub\r\nTransfer-Encoding: chunked\r\n\r\n";
        Self { proper: true, ..Self::raw(format!("{head}{body}0\r\n\r\n")) }
    }

    /// Status 200 and a JSON string without end, as fast as it is read.
    pub fn endless() -> Self {
        let head = b"HTTP/1.1 200 Stub\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = format!("{:x}\r\n{}\r\n", 8192, " ".repeat(8192));
        Self::fault(vec![Step::Send(head.to_vec()), Step::Endless(chunk.into())])
    }

    /// A proxy's: whatever it was asked for (CONNECT, which ureq uses for plain HTTP too), all that
    /// follows goes to this address.
    pub fn tunnel(to: SocketAddr) -> Self {
        let steps = vec![Step::Send(b"HTTP/1.1 200 Stub\r\n\r\n".to_vec()), Step::Tunnel(to)];
        Self { steps, proper: true }
    }

    /// Takes the request and never answers, until the client goes away.
    pub fn stall() -> Self {
        Self::fault(vec![Step::Stall])
    }

    pub fn close() -> Self {
        Self::fault(vec![Step::Close])
    }

    pub fn reset() -> Self {
        Self::fault(vec![Step::Reset])
    }

    pub fn garbage() -> Self {
        Self::raw(b"\x00\x16\x03\x01 this is not HTTP\xff\xfe\r\n\r\n".to_vec()).then_close()
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Some(Step::Send(bytes)) = self.steps.first_mut() {
            let status_line = bytes.windows(2).position(|end| end == b"\r\n").expect("a status line") + 2;
            bytes.splice(status_line..status_line, format!("{name}: {value}\r\n").into_bytes());
        }
        self
    }

    pub fn after(mut self, pause: Duration) -> Self {
        self.steps.insert(0, Step::Wait(pause));
        self
    }

    /// Sends byte by byte, with this pause between them.
    pub fn dripping(self, pause: Duration) -> Self {
        let drip = |step| match step {
            Step::Send(bytes) => {
                bytes.iter().flat_map(|&byte| [Step::Send(vec![byte]), Step::Wait(pause)]).collect()
            }
            other => vec![other],
        };
        Self::fault(self.steps.into_iter().flat_map(drip).collect())
    }

    /// Leaves the last `n` bytes out, and then closes the connection.
    pub fn truncated(mut self, n: usize) -> Self {
        if let Some(Step::Send(bytes)) = self.steps.last_mut() {
            bytes.truncate(bytes.len().saturating_sub(n));
        }
        Self { proper: false, ..self }.then_close()
    }

    /// Then this one, too, although nobody asks for it.
    pub fn and(mut self, other: Self) -> Self {
        self.steps.extend(other.steps);
        Self { proper: false, ..self }
    }

    /// Closes after the answer without having said so.
    pub fn then_close(mut self) -> Self {
        self.steps.push(Step::Close);
        self
    }

    fn fault(steps: Vec<Step>) -> Self {
        Self { steps, proper: false }
    }
}

/// The running stub.
pub struct Stub {
    server: Server,
    scheme: &'static str,
    log: Arc<Watched<Log>>,
}

#[derive(Default)]
struct Log {
    requests: Vec<Arc<Request>>,
    per_token: HashMap<String, usize>,
    connections: usize,
    open: usize,
}

impl Stub {
    /// The closure may do anything before it returns its reply: change the database, or block.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::launch(None, handler)
    }

    pub fn always(reply: Reply) -> Self {
        Self::start(move |_| reply.clone())
    }

    pub fn by_label() -> Self {
        Self::start(|request| Reply::by_label(request.token()))
    }

    pub fn always_tls(certificate: Certificate, reply: Reply) -> Self {
        Self::launch(Some(tls::server_config(certificate)), move |_| reply.clone())
    }

    fn launch(
        tls: Option<Arc<ServerConfig>>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let log = Arc::<Watched<Log>>::default();
        let seen = Arc::clone(&log);
        let server = Server::start(move |tcp| {
            let number = seen.change(|log| {
                log.connections += 1;
                log.open += 1;
                log.connections
            });
            // A connection that breaks is what the clients under test do.
            let _ = answer(tcp, number, tls.as_ref(), &seen, &handler);
            seen.change(|log| log.open -= 1);
        });
        Self { server, scheme, log }
    }

    pub fn base(&self) -> String {
        format!("{}://{}/xcx", self.scheme, self.server.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub fn requests(&self) -> usize {
        self.log.lock().requests.len()
    }

    pub fn connections(&self) -> usize {
        self.log.lock().connections
    }

    pub fn recorded(&self) -> Vec<Arc<Request>> {
        self.log.lock().requests.clone()
    }

    /// What each request asks for: of a tunnel, `host:port`.
    pub fn paths(&self) -> Vec<String> {
        self.recorded().iter().map(|request| request.path.clone()).collect()
    }

    /// Waits until `n` requests came in; gives the n-th.
    pub fn await_request(&self, n: usize) -> Arc<Request> {
        let found = self.log.wait(PATIENCE, |log| log.requests.get(n - 1).cloned());
        found.unwrap_or_else(|| panic!("only {} of {n} requests came", self.requests()))
    }

    pub fn await_all_closed(&self) {
        let closed = self.log.wait(PATIENCE, |log| (log.open == 0).then_some(()));
        closed.expect("all connections closed");
    }
}

/// Answers the requests of a connection until it is to end.
fn answer(
    tcp: TcpStream,
    connection: usize,
    tls: Option<&Arc<ServerConfig>>,
    log: &Watched<Log>,
    handler: &impl Fn(&Request) -> Reply,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = tcp.try_clone()?;
    let wire: Box<dyn Wire> = match tls {
        None => Box::new(tcp),
        Some(config) => {
            let tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
            Box::new(StreamOwned::new(tls, tcp))
        }
    };
    let mut wire = BufReader::new(wire);
    while let Some(mut request) = read_request(&mut wire, connection)? {
        let request = log.change(|log| {
            let nth = log.per_token.entry(request.token().to_owned()).or_default();
            *nth += 1;
            request.nth = *nth;
            request.number = log.requests.len() + 1;
            let request = Arc::new(request);
            log.requests.push(Arc::clone(&request));
            request
        });
        let reply = handler(&request);
        count(Total::FAULTS, usize::from(!reply.proper));
        for step in reply.steps {
            match step {
                Step::Wait(pause) => thread::sleep(pause),
                Step::Send(bytes) => send(&mut wire, &bytes)?,
                Step::Endless(bytes) => loop {
                    send(&mut wire, &bytes)?;
                },
                Step::Tunnel(to) => {
                    let server = TcpStream::connect(to)?;
                    let (from, to) = (server.try_clone()?, socket);
                    thread::spawn(move || pipe(from, to));
                    return pipe(wire, server);
                }
                // Until the client goes away.
                Step::Stall => return io::copy(&mut wire, &mut io::sink()).map(drop),
                Step::Close => return Ok(()),
                Step::Reset => return SockRef::from(&socket).set_linger(Some(Duration::ZERO)),
            }
        }
    }
    Ok(())
}

fn pipe(mut from: impl Read, mut to: TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

fn send(wire: &mut BufReader<Box<dyn Wire>>, bytes: &[u8]) -> io::Result<()> {
    wire.get_mut().write_all(bytes)?;
    wire.get_mut().flush()
}

/// The next request, or `None` when the client closed the connection.
fn read_request(wire: &mut impl BufRead, connection: usize) -> io::Result<Option<Request>> {
    let Some(line) = read_line(wire)? else {
        return Ok(None);
    };
    let mut headers = Vec::new();
    while let Some(header) = read_line(wire)?.filter(|header| !header.is_empty()) {
        let (name, value) = header.split_once(':').unwrap_or((&header, ""));
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let target = line.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        path: path.to_owned(),
        query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        line,
        headers,
        body: Vec::new(),
        nth: 0,
        number: 0,
        connection,
        at: Instant::now(),
    };
    let length = request.header("Content-Length").and_then(|length| length.parse().ok());
    wire.take(length.unwrap_or(0)).read_to_end(&mut request.body)?;
    Ok(Some(request))
}

fn read_line(wire: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if wire.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}
