//! An HTTP proxy that tunnels (CONNECT, which ureq uses for plain HTTP too) and keeps count.

use super::stub::read_line;
use super::{Server, Watched};
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;

/// The running proxy, for `HTTPS_PROXY` and the like.
pub struct Proxy {
    server: Server,
    targets: Arc<Watched<Vec<String>>>,
}

impl Proxy {
    /// Connects to this address, or to nothing, whatever it is asked for.
    pub fn start(upstream: Option<SocketAddr>) -> Self {
        let targets = Arc::<Watched<_>>::default();
        let seen = Arc::clone(&targets);
        let server = Server::start(move |client| drop(tunnel(client, upstream, &seen)));
        Self { server, targets }
    }

    pub fn uri(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// The `host:port` of each tunnel asked for, or the whole request line of anything else.
    pub fn targets(&self) -> Vec<String> {
        self.targets.lock().clone()
    }
}

fn tunnel(client: TcpStream, upstream: Option<SocketAddr>, seen: &Watched<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client);
    let line = read_line(&mut reader)?.unwrap_or_default();
    while read_line(&mut reader)?.is_some_and(|header| !header.is_empty()) {}
    let target = line.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    seen.change(|seen| seen.push(target.unwrap_or(&line).to_owned()));
    let mut client = reader.into_inner();
    let Some(Ok(server)) = target.and(upstream).map(TcpStream::connect) else {
        return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    };
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || pipe(from, to));
    pipe(server, client);
    Ok(())
}

fn pipe(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
