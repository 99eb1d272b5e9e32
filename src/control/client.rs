//! The command's end of the control socket.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::net::unix::OwnedWriteHalf;

use super::api::{AliveRequest, Failure, FailureKind};
use super::connection::ByteStream;
use super::frames::{self, FRAME_LIMIT_BYTES, Frame, Kind, PREAMBLE, REQUEST_LIMIT_BYTES, Reader};
use super::socket::SocketPath;
use super::{Operation, VERSION, gone};
use crate::process::running_time;

/// How long a daemon may take for a quick answer ([`Operation::IS_QUICK`]). 20 s: it needs milliseconds, but much
/// longer on a machine that is short of memory.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The most bytes of an answer: the listing of some millions of files.
const ANSWER_LIMIT_BYTES: usize = 1024 * 1024 * 1024;

/// The state of a daemon, by its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It answers.
    Answers,
    /// It accepts connections and closes them, because it is about to end.
    Ends,
    /// It speaks another protocol.
    Foreign(Failure),
    /// No answer came in time.
    Silent,
}

/// A running daemon. Each request has a connection of its own.
pub struct Client {
    // The open folder of the socket. A path that is too long for a socket address leads through it.
    socket: SocketPath,
}

/// A request, as it is sent.
#[derive(Serialize)]
struct Sent<'a, O> {
    version: &'a str,
    operation: &'a str,
    request: &'a O,
}

/// A connection with a request under way.
pub(super) struct Exchange {
    reader: Reader,
    /// Open until the command is done: the daemon ends the work when this connection closes.
    _writer: OwnedWriteHalf,
    answer: BytesMut,
}

/// A message of a daemon.
enum Heard {
    Event(Bytes),
    Bytes(Bytes),
    Answer(Bytes),
}

impl Client {
    /// The daemon that listens at `socket`.
    pub fn new(socket: SocketPath) -> Self {
        Self { socket }
    }

    /// Its socket.
    pub fn socket(&self) -> &SocketPath {
        &self.socket
    }

    /// Whether the daemon answers at all.
    pub async fn liveness(&self) -> Liveness {
        let answer = async {
            let mut exchange = self.send(&AliveRequest {}, &[]).await?;
            exchange.next().await
        };
        match running_time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(_)) => Liveness::Answers,
            Ok(Err(failure)) if failure == other_protocol() => Liveness::Foreign(failure),
            Ok(Err(_)) => Liveness::Ends,
            Err(_) => Liveness::Silent,
        }
    }

    /// Sends a request, and waits for its answer.
    ///
    /// # Errors
    /// The daemon's failure, or that it does not answer.
    pub(super) async fn call<O: Operation>(
        &self,
        request: &O,
        descriptors: &[BorrowedFd<'_>],
        on_event: &mut (dyn FnMut(O::Event) + Send),
    ) -> Result<(O::Answer, Exchange), Failure> {
        let answer = async {
            let mut exchange = self.send(request, descriptors).await?;
            loop {
                match exchange.next().await? {
                    Heard::Event(event) => on_event(decode(&event)?),
                    Heard::Bytes(_) => {}
                    Heard::Answer(answer) => return Ok((decode(&answer)?, exchange)),
                }
            }
        };
        match O::IS_QUICK {
            true => match running_time::timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answer) => answer,
                Err(_) => Err(silence()),
            },
            false => answer.await,
        }
    }

    /// Sends a request whose answer is bytes. Returns when the first bytes, or the end, are there.
    pub(super) async fn stream<O: Operation>(&self, request: &O) -> Result<ByteStream, Failure> {
        let mut exchange = self.send(request, &[]).await?;
        let first = loop {
            match exchange.next().await? {
                Heard::Event(_) => {}
                Heard::Bytes(bytes) => break Some(bytes),
                Heard::Answer(_) => break None,
            }
        };
        let Some(first) = first else { return Ok(stream::empty().boxed()) };
        let rest = stream::unfold(Some(exchange), |exchange| async {
            let mut exchange = exchange?;
            loop {
                match exchange.next().await {
                    Ok(Heard::Event(_)) => {}
                    Ok(Heard::Bytes(bytes)) => return Some((Ok(bytes), Some(exchange))),
                    Ok(Heard::Answer(_)) => return None,
                    Err(failure) => return Some((Err(failure), None)),
                }
            }
        });
        Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
    }

    async fn send<O: Operation>(
        &self,
        request: &O,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Exchange, Failure> {
        let sent = Sent { version: VERSION, operation: O::NAME, request };
        let body = serde_json::to_vec(&sent)
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        if body.len() > REQUEST_LIMIT_BYTES {
            let message = "the request is longer than 1 MiB: give fewer paths or filters at once";
            return Err(Failure::new(FailureKind::Usage, message));
        }
        let stream = tokio::net::UnixStream::connect(self.socket.as_path()).await;
        let (reader, mut writer) = stream.map_err(|error| gone(&error.to_string()))?.into_split();
        let bytes = [&PREAMBLE[..], &frames::encode(Kind::Request, &body)].concat();
        // A daemon that refuses the request may close its end before it has read the whole request. Its message
        // counts.
        let sent = frames::send(&mut writer, &bytes, descriptors).await;
        let exchange =
            Exchange { reader: Reader::new(reader), _writer: writer, answer: BytesMut::new() };
        match sent {
            Ok(()) => Ok(exchange),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(exchange),
            Err(error) => Err(gone(&error.to_string())),
        }
    }
}

impl Exchange {
    /// The next message. A failure in the place of the answer is an error.
    async fn next(&mut self) -> Result<Heard, Failure> {
        loop {
            let frame = match self.reader.next(FRAME_LIMIT_BYTES).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Err(gone("the connection ended before the answer")),
                // An earlier version speaks HTTP.
                Err(_) if self.reader.rest().starts_with(b"HTTP/") => return Err(other_protocol()),
                Err(error) => return Err(gone(&error.to_string())),
            };
            let Frame { kind, body } = frame;
            match kind {
                Kind::Event => return Ok(Heard::Event(body)),
                Kind::Bytes => return Ok(Heard::Bytes(body)),
                Kind::Part | Kind::Answer => {
                    if self.answer.len() + body.len() > ANSWER_LIMIT_BYTES {
                        return Err(gone("it sent an endless answer"));
                    }
                    self.answer.extend_from_slice(&body);
                    if kind == Kind::Answer {
                        return Ok(Heard::Answer(self.answer.split().freeze()));
                    }
                }
                Kind::Failure => return Err(decode(&body)?),
                Kind::Request => return Err(gone("it sent a request")),
            }
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!(
            "the kitfs daemon sent a malformed answer ({error}). It may be of another version: run \
             `kitfs daemon restart`, and try again"
        );
        Failure::new(FailureKind::Daemon, message)
    })
}

/// The failure of a quick request without an answer in time.
pub fn silence() -> Failure {
    gone(&format!("no answer for {} s", ANSWER_TIMEOUT.as_secs()))
}

fn other_protocol() -> Failure {
    let message = "the running daemon is of an earlier version of kitfs, which this command cannot talk to: \
                   end it with the old `kitfs daemon stop`, or with `kill PID`, and try again";
    Failure::new(FailureKind::Daemon, message)
}
