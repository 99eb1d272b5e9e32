//! A command that waits for an answer, as the code sees it that does the work.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Operation;
use super::api::{Failure, FailureKind};

/// The number of events that may wait for a slow command. Further events are dropped.
const EVENTS: usize = 16;

/// The work of an operation.
pub trait Handle<O: Operation> {
    /// Does the work, and returns the answer. The future is dropped when the command is gone.
    fn handle(
        self: &Arc<Self>,
        request: O,
        caller: &Caller<O>,
    ) -> impl Future<Output = Result<O::Answer, Failure>> + Send;
}

/// The user and process at the other end of a connection, as the kernel knows them (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
    /// The process; `None` where it lies outside of this process's pid namespace.
    pub pid: Option<u32>,
}

impl Peer {
    /// This process.
    pub fn own() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: Some(std::process::id()),
        }
    }
}

/// A message before the answer.
#[derive(Debug)]
pub(super) enum Said<E> {
    Event(E),
    Bytes(Bytes),
}

/// A value that a handler keeps until its command is gone.
pub(super) type Kept = Arc<Mutex<Option<Box<dyn Any + Send>>>>;

/// The command that waits for the answer.
#[derive(Debug)]
pub struct Caller<O: Operation> {
    peer: Peer,
    said: mpsc::Sender<Said<O::Event>>,
    descriptors: Mutex<Vec<OwnedFd>>,
    kept: Kept,
}

impl<O: Operation> Caller<O> {
    /// A caller, and the other end of its messages.
    pub(super) fn new(
        peer: Peer,
        descriptors: Vec<OwnedFd>,
        kept: Kept,
    ) -> (Self, mpsc::Receiver<Said<O::Event>>) {
        let (said, heard) = mpsc::channel(EVENTS);
        (Self { peer, said, descriptors: Mutex::new(descriptors), kept }, heard)
    }

    /// The user and process of the command.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Sends an event with the progress. A command that is slow to read misses it.
    pub fn tell(&self, event: O::Event) {
        let _ = self.said.try_send(Said::Event(event));
    }

    /// Sends bytes, and waits until the command has taken most of those before.
    ///
    /// # Errors
    /// When the command is gone.
    pub async fn send(&self, bytes: Bytes) -> Result<(), Failure> {
        self.said.send(Said::Bytes(bytes)).await.map_err(|_| {
            Failure::new(FailureKind::Internal, "the command is gone before it had all bytes")
        })
    }

    /// Takes the descriptors that came with the request.
    pub fn take_descriptors(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors.lock())
    }

    /// Keeps a value until the command closes its connection, also after the answer.
    pub fn keep(&self, value: impl Any + Send) {
        *self.kept.lock() = Some(Box::new(value));
    }
}
