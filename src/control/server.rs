//! The daemon's end of the control socket.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::activity::Activity;
use super::api::{Failure, FailureKind};
use super::caller::{Caller, Handle, Kept, Peer, Said};
use super::frames::{self, Kind, REQUEST_LIMIT_BYTES, Reader};
use super::{Operation, Service, VERSION, dispatch};
use crate::process::running_time;

/// How long a command may take to send its request. It sends everything at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after a failure to accept. Descriptors may be freed meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most connections of a user other than root. 256: a command has one for each running request and for each
/// open kit. A hundred commands stay below.
const MOST_OF_A_USER: usize = 256;

/// Decides which users may connect.
pub type Admission = Arc<dyn Fn(Peer) -> bool + Send + Sync>;

/// The first frame of a command.
#[derive(Deserialize)]
struct Received {
    version: String,
    operation: String,
    request: Box<RawValue>,
}

/// A request that waits for its answer.
pub(super) struct Call {
    received: Received,
    peer: Peer,
    reader: Reader,
    writer: OwnedWriteHalf,
    draining: CancellationToken,
}

/// Answers the requests of commands until `draining`, and then finishes the running ones. `activity` counts
/// commands.
pub async fn serve<S: Service>(
    listener: UnixListener,
    service: Arc<S>,
    admits: Admission,
    activity: Arc<Activity>,
    draining: CancellationToken,
) {
    let connections = TaskTracker::new();
    let counts = Arc::<Mutex<HashMap<u32, usize>>>::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = draining.cancelled() => break,
        };
        match accepted.and_then(|(stream, _)| Ok((peer(&stream)?, stream))) {
            Ok((peer, stream)) if admits(peer) => {
                // The daemon is about to end.
                let Some(answering) = activity.begin() else { continue };
                let Some(counted) = Counted::new(&counts, peer.uid) else {
                    tracing::warn!(uid = peer.uid, "a user has too many control connections");
                    continue;
                };
                let (service, draining) = (service.clone(), draining.clone());
                connections.spawn(async move {
                    let _counted = counted;
                    let _answering = answering;
                    if let Err(error) = answer(stream, peer, &service, draining).await {
                        tracing::debug!(%error, "a control connection broke");
                    }
                });
            }
            Ok((peer, _)) => {
                tracing::warn!(uid = peer.uid, "refused a control connection of another user");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// A connection of a user, for as long as the value lives.
struct Counted {
    counts: Arc<Mutex<HashMap<u32, usize>>>,
    uid: u32,
}

impl Counted {
    /// `None` where the user has the most connections already.
    fn new(counts: &Arc<Mutex<HashMap<u32, usize>>>, uid: u32) -> Option<Self> {
        let mut table = counts.lock();
        let count = table.entry(uid).or_default();
        if uid != 0 && *count >= MOST_OF_A_USER {
            return None;
        }
        *count += 1;
        drop(table);
        Some(Self { counts: counts.clone(), uid })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut table = self.counts.lock();
        if let Some(count) = table.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.uid);
            }
        }
    }
}

fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid != 0);
    Ok(Peer { uid: credentials.uid(), gid: credentials.gid(), pid })
}

async fn answer<S: Service>(
    stream: UnixStream,
    peer: Peer,
    service: &Arc<S>,
    draining: CancellationToken,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = Reader::new(reader);
    let request = async {
        if let Err(first) = reader.preamble().await? {
            return Ok(Err(first));
        }
        reader.next(REQUEST_LIMIT_BYTES).await.map(Ok)
    };
    let frame = match running_time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(frame) => frame?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let frame = match frame {
        Ok(Some(frame)) if frame.kind == Kind::Request => frame,
        // A command that only checks whether the daemon listens.
        Ok(None) => return Ok(()),
        Ok(Some(_)) => return Err(io::Error::other("a command sent no request")),
        Err(_) => {
            let message = format!(
                "the running daemon is kitfs {VERSION}, which speaks another protocol than this command"
            );
            return fail(&mut writer, &Failure::new(FailureKind::Daemon, message)).await;
        }
    };
    match serde_json::from_slice::<Received>(&frame.body) {
        Ok(received) => {
            dispatch(service, Call { received, peer, reader, writer, draining }).await;
            Ok(())
        }
        Err(error) => {
            let failure = Failure::new(FailureKind::Usage, format!("malformed request: {error}"));
            fail(&mut writer, &failure).await
        }
    }
}

async fn fail(writer: &mut OwnedWriteHalf, failure: &Failure) -> io::Result<()> {
    write(writer, Kind::Failure, failure).await
}

async fn write(writer: &mut OwnedWriteHalf, kind: Kind, body: &impl Serialize) -> io::Result<()> {
    writer.write_all(&frames::encode(kind, &serde_json::to_vec(body)?)).await
}

impl Call {
    /// The name of the operation.
    pub(super) fn operation(&self) -> &str {
        &self.received.operation
    }

    /// Answers that there is no such operation.
    pub(super) async fn refuse(mut self) {
        let failure = Failure::new(
            FailureKind::Daemon,
            format!(
                "the running daemon is kitfs {VERSION} and has no operation `{}`: replace it with \
                 `kitfs daemon restart`, and try again",
                self.received.operation.escape_debug()
            ),
        );
        let _ = fail(&mut self.writer, &failure).await;
    }

    /// Does the work of an operation, and answers. The work ends when the command closes the connection, so
    /// an interrupted command mounts nothing.
    pub(super) async fn answer<O: Operation, S: Handle<O> + Send + Sync + 'static>(
        self,
        service: &Arc<S>,
    ) {
        if let Err(error) = self.try_answer(service).await {
            tracing::debug!(%error, operation = O::NAME, "a command did not hear its answer");
        }
    }

    async fn try_answer<O: Operation, S: Handle<O> + Send + Sync + 'static>(
        self,
        service: &Arc<S>,
    ) -> io::Result<()> {
        let Self { received, peer, mut reader, mut writer, draining } = self;
        let request = match parse::<O>(&received) {
            Ok(request) => request,
            Err(failure) => return fail(&mut writer, &failure).await,
        };
        let kept = Kept::default();
        let (caller, mut said) = Caller::new(peer, reader.take_descriptors(), kept.clone());
        let service = service.clone();
        let work = tokio::spawn(async move { service.handle(request, &caller).await });
        let work = AbortOnDropHandle::new(work);
        let mut closed = std::pin::pin!(reader.closed());
        loop {
            let said = tokio::select! {
                said = said.recv() => said,
                () = &mut closed => return Err(io::Error::other("the command is gone")),
            };
            match said {
                Some(Said::Event(event)) => write(&mut writer, Kind::Event, &event).await?,
                Some(Said::Bytes(bytes)) => {
                    for piece in bytes.chunks(frames::FRAME_LIMIT_BYTES) {
                        writer.write_all(&frames::encode(Kind::Bytes, piece)).await?;
                    }
                }
                // The caller is gone with the work.
                None => break,
            }
        }
        let answer = work.await.unwrap_or_else(|error| {
            let message = format!("the daemon's task failed: {error}; see daemon.log");
            Err(Failure::new(FailureKind::Internal, message))
        });
        match answer {
            Ok(answer) => {
                for frame in frames::encode_answer(&serde_json::to_vec(&answer)?) {
                    writer.write_all(&frame).await?;
                }
            }
            Err(failure) => return fail(&mut writer, &failure).await,
        }
        if kept.lock().is_some() {
            tokio::select! {
                () = closed => {}
                () = draining.cancelled() => {}
            }
        }
        Ok(())
    }
}

/// Checks the version, because another version may give the fields another meaning, and parses the request.
fn parse<O: Operation>(received: &Received) -> Result<O, Failure> {
    let version = &received.version;
    if !O::IS_FOR_ALL_VERSIONS && version != VERSION {
        let message = format!(
            "the running daemon is kitfs {VERSION} and this command is kitfs {}: replace it with \
             `kitfs daemon restart` (its mounts go on), or end it and its mounts with `kitfs daemon stop`, \
             and try again",
            version.escape_debug()
        );
        return Err(Failure::new(FailureKind::Daemon, message));
    }
    serde_json::from_str(received.request.get())
        .map_err(|error| Failure::new(FailureKind::Usage, format!("malformed request: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_holds_a_bounded_number_of_connections_and_takes_none_from_others() {
        let counts = Arc::default();
        let mut held: Vec<_> = (0..).map_while(|_| Counted::new(&counts, 7)).collect();
        assert_eq!(held.len(), MOST_OF_A_USER);
        assert!(Counted::new(&counts, 8).is_some() && Counted::new(&counts, 0).is_some());
        held.pop();
        assert!(Counted::new(&counts, 7).is_some());
        drop(held);
        assert!(counts.lock().is_empty());
    }
}
