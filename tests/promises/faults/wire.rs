//! The wire between the program and its database, in the test's hands: every command of the
//! program stops here, and may be lost before the server sees it or after it was carried out.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use mongodb::bson::raw::RawDocument;

use super::support::{Total, count};

/// A command of the program. Greetings, heartbeats and farewells are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Which of all commands this is, from 1.
    pub number: usize,
    /// Which of those of its kind, from 1.
    pub nth: usize,
    /// `find`, `update`, `insert`, `delete` and so on, with the collection: `insert cards`.
    pub what: String,
    /// False before the server has seen it, true once it was carried out, before the answer.
    pub answered: bool,
}

/// A wire to a server. Its threads end with the test process.
pub struct Wire {
    address: SocketAddr,
    /// How many of each kind came.
    commands: Arc<Mutex<HashMap<String, usize>>>,
}

type Hook = dyn Fn(&Command) -> bool + Send + Sync;

impl Wire {
    /// To the server at this `host:port`. The closure says of each command, and then of its answer,
    /// whether it passes; if not, the connection breaks. It may do anything before: change the
    /// database, kill the server or the program, or block.
    pub fn to(server: String, hook: impl Fn(&Command) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let wire = Self { address: listener.local_addr().expect("address"), commands: Arc::default() };
        let (commands, hook): (_, Arc<Hook>) = (Arc::clone(&wire.commands), Arc::new(hook));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (server, commands, hook) = (server.clone(), Arc::clone(&commands), Arc::clone(&hook));
                thread::spawn(move || {
                    // A client or a server that goes away ends its connections.
                    let Ok(mut server) = TcpStream::connect(server) else { return };
                    let mut client = client;
                    let _ = carry(&mut client, &mut server, &commands, &*hook);
                    for end in [client, server] {
                        let _ = end.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        wire
    }

    /// Connection string.
    pub fn uri(&self) -> String {
        format!("mongodb://{}/", self.address)
    }

    /// How many commands came.
    pub fn commands(&self) -> usize {
        self.commands.lock().expect("commands").values().sum()
    }
}

const MORE_TO_COME: u8 = 2;

fn carry(
    client: &mut TcpStream,
    server: &mut TcpStream,
    commands: &Mutex<HashMap<String, usize>>,
    hook: &Hook,
) -> io::Result<()> {
    loop {
        let request = message(client)?;
        let mut command = what(&request).map(|what| {
            let mut commands = commands.lock().expect("commands");
            *commands.entry(what.clone()).or_default() += 1;
            Command { number: commands.values().sum(), nth: commands[&what], what, answered: false }
        });
        let passes = |command: &Option<Command>| {
            let passes = command.as_ref().is_none_or(hook);
            count(Total::Faults, usize::from(!passes));
            passes
        };
        if !passes(&command) {
            return Ok(());
        }
        server.write_all(&request)?;
        // A heartbeat is answered again and again.
        loop {
            let reply = message(server)?;
            if let Some(command) = &mut command {
                command.answered = true;
            }
            if !passes(&command) {
                return Ok(());
            }
            client.write_all(&reply)?;
            if reply[16] & MORE_TO_COME == 0 {
                break;
            }
        }
    }
}

/// One message of the wire protocol: its length, three more numbers, flags, and so on.
fn message(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 4];
    from.read_exact(&mut message)?;
    let length = u32::from_le_bytes(message[..4].try_into().expect("4 bytes"));
    from.take(u64::from(length) - 4).read_to_end(&mut message)?;
    if message.len() < 21 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

/// The command of a message: a document after header, flags and the kind of its first section.
fn what(message: &[u8]) -> Option<String> {
    let length = u32::from_le_bytes(message.get(21..25)?.try_into().ok()?);
    let document = message.get(21..21 + usize::try_from(length).ok()?)?;
    let (name, value) = RawDocument::from_bytes(document).ok()?.iter().next()?.ok()?;
    let name = name.as_str();
    let is_idle_talk = ["hello", "ismaster", "endsessions"].contains(&name.to_lowercase().as_str());
    (!is_idle_talk).then(|| format!("{name} {}", value.as_str().unwrap_or_default()))
}
