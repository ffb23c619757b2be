//! The wire between the program and its database, in the test's hands: every command of the
//! program stops here, and then what the test says happens to it or to its answer.

use super::{Server, Total, Watched, count};
use mongodb::bson::raw::RawDocumentBuf;
use mongodb::bson::{Document, doc};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

/// A command of the program. Greetings, heartbeats and farewells are none.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub number: usize,
    /// `find`, `update`, `insert`, `delete` and so on, with the collection: `insert cards`.
    pub what: String,
    /// False before the server has seen it, true once it was carried out, before the answer.
    pub answered: bool,
    /// The command itself, without what it is to insert, update or delete.
    pub body: RawDocumentBuf,
}

impl Command {
    pub fn is_write(&self) -> bool {
        ["insert ", "update ", "delete "].iter().any(|kind| self.what.starts_with(kind))
    }
}

/// What happens to a command, or to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Pass,
    Cut,
    /// It never arrives, and the connection stays.
    Hold,
    /// An error with this code is answered; what was not yet carried out is not.
    Fail(i32),
    /// The answer says that the write is not confirmed, with this code. Only for an answer.
    Doubt(i32),
}

/// A wire to a server.
pub struct Wire {
    server: Server,
    seen: Arc<Watched<Vec<Command>>>,
}

impl Wire {
    /// To the server at this `host:port`. The first closure says of each command, and then of its
    /// answer, what happens. It may do anything before: change the database, kill the program, or
    /// block. The second one changes what the server says of itself.
    pub fn start(
        server: String,
        command: impl Fn(&Command) -> Act + Send + Sync + 'static,
        greeting: fn(&mut Document),
    ) -> Self {
        let seen = Arc::<Watched<_>>::default();
        let log = Arc::clone(&seen);
        let server = Server::start(move |mut client| {
            // A client or a server that goes away ends its connections.
            let Ok(mut server) = TcpStream::connect(&server) else { return };
            let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
            let _ = carry(&mut client, &mut server, &log, &command, greeting);
            for end in [client, server] {
                let _ = end.shutdown(Shutdown::Both);
            }
        });
        Self { server, seen }
    }

    /// Nothing happens to the commands.
    pub fn greeting(server: String, greeting: fn(&mut Document)) -> Self {
        Self::start(server, |_| Act::Pass, greeting)
    }

    pub fn address(&self) -> String {
        self.server.address.to_string()
    }

    pub fn commands(&self) -> Vec<Command> {
        self.seen.lock().clone()
    }
}

const HEADER: usize = 16;
const OP_MSG: i32 = 2013;
/// Header, flags and the kind of the first section: then comes a document.
const BODY: usize = HEADER + 4 + 1;
const MORE_TO_COME: u8 = 2;

fn carry(
    client: &mut TcpStream,
    server: &mut TcpStream,
    seen: &Watched<Vec<Command>>,
    act_on: &impl Fn(&Command) -> Act,
    greeting: fn(&mut Document),
) -> io::Result<()> {
    loop {
        let request = message(client)?;
        let Some((what, body)) = what(&request) else {
            server.write_all(&request)?;
            // A heartbeat is answered again and again.
            while {
                let reply = message(server)?;
                client.write_all(&edited(&reply, greeting)?)?;
                is_message(&reply) && reply[HEADER] & MORE_TO_COME != 0
            } {}
            continue;
        };
        let mut command = seen.change(|seen| {
            seen.push(Command { number: seen.len() + 1, what, answered: false, body });
            seen[seen.len() - 1].clone()
        });
        let mut reply = Vec::new();
        for answered in [false, true] {
            command.answered = answered;
            let act = act_on(&command);
            count(Total::FAULTS, usize::from(act != Act::Pass));
            let injected = |code: i32| doc! { "code": code, "codeName": "Injected", "errmsg": "injected" };
            match act {
                Act::Pass | Act::Doubt(_) if !answered => {
                    server.write_all(&request)?;
                    reply = message(server)?;
                }
                Act::Pass => {}
                Act::Cut => return Ok(()),
                // Until the client goes away.
                Act::Hold => return io::copy(client, &mut io::sink()).map(drop),
                Act::Fail(code) => {
                    let mut failure = doc! { "ok": 0.0 };
                    failure.extend(injected(code));
                    let request_id = &request[4..8];
                    let head = [&[0; 8][..], request_id, &OP_MSG.to_le_bytes(), &[0; 5]].concat();
                    reply = whole(&head, &failure)?;
                    break;
                }
                Act::Doubt(code) => {
                    reply = edited(&reply, |reply| drop(reply.insert("writeConcernError", injected(code))))?;
                }
            }
        }
        client.write_all(&reply)?;
    }
}

/// One message of the wire protocol: its length, three more numbers, flags, and so on.
fn message(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 4];
    from.read_exact(&mut message)?;
    let length = u32::from_le_bytes(message[..4].try_into().expect("4 bytes"));
    from.take(u64::from(length).saturating_sub(4)).read_to_end(&mut message)?;
    if message.len() < BODY {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

fn is_message(message: &[u8]) -> bool {
    message[12..HEADER] == OP_MSG.to_le_bytes()
}

/// A message with its one document changed.
fn edited(message: &[u8], edit: impl Fn(&mut Document)) -> io::Result<Vec<u8>> {
    // The first greeting may come in the old form, with 20 bytes before it.
    let head = if is_message(message) { BODY } else { HEADER + 20 };
    let mut document = Document::try_from(document(message, head)?).map_err(io::Error::other)?;
    edit(&mut document);
    whole(&message[..head], &document)
}

/// A message of its head, in which the length is yet to be set, and its document.
fn whole(head: &[u8], document: &Document) -> io::Result<Vec<u8>> {
    let mut message = [head, &document.to_vec().map_err(io::Error::other)?].concat();
    let length = i32::try_from(message.len()).expect("a small message");
    message[..4].copy_from_slice(&length.to_le_bytes());
    Ok(message)
}

fn document(message: &[u8], start: usize) -> io::Result<RawDocumentBuf> {
    let mut rest = message.get(start..).unwrap_or_default();
    RawDocumentBuf::from_reader(&mut rest).map_err(io::Error::other)
}

/// The command of a message, unless it is idle talk.
fn what(message: &[u8]) -> Option<(String, RawDocumentBuf)> {
    let body = document(message, BODY).ok().filter(|_| is_message(message))?;
    let (name, value) = body.iter().next()?.ok()?;
    let name = name.as_str();
    let is_idle_talk = ["hello", "ismaster", "endsessions"].contains(&name.to_lowercase().as_str());
    let what = format!("{name} {}", value.as_str().unwrap_or_default());
    (!is_idle_talk).then(|| (what.trim_end().to_owned(), body.clone()))
}
