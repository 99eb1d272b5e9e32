//! The worker's end of the socket between keeper and worker.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::Held;
use super::message::Message;
use super::socket::{self, Received};

/// How long a message may wait for a keeper that reads none. It reads at once, unless it is stopped
/// (SIGSTOP); the socket takes some 200 messages before.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The worker's end. Its methods block for a second at most, and may be called from any thread.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// How the worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The worker ends its mounts first. Another worker does so if this one is killed before.
    End,
    /// Another worker goes on with the mounts.
    Replace,
}

impl Channel {
    /// The channel that the keeper gave this process as its standard input, and the mounts of its
    /// predecessor.
    ///
    /// # Errors
    /// When the standard input is no such socket, or the keeper is gone.
    pub fn from_keeper(standard_input: OwnedFd) -> io::Result<(Self, Vec<Held>)> {
        let mut held = Vec::new();
        loop {
            match socket::receive(&standard_input, true)? {
                Received::Held(mount) => held.push(mount),
                Received::Message(Message::Complete) => break,
                Received::End => return Err(io::Error::other("the keeper is gone")),
                Received::Program(_)
                | Received::Message(_)
                | Received::Unknown
                | Received::Nothing => {
                    return Err(io::Error::other("the keeper speaks another protocol"));
                }
            }
        }
        Ok((Self::over(standard_input)?, held))
    }

    /// A channel for a worker that starts a keeper itself, and the end for that keeper.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socket::pair()?;
        Ok((Self::over(ours)?, theirs))
    }

    fn over(socket: OwnedFd) -> io::Result<Self> {
        socket::limit_sends(&socket, SEND_TIMEOUT)?;
        Ok(Self { socket })
    }

    /// Has the keeper hold the descriptors of a mount from now on. `connection` is the number of its FUSE
    /// connection.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn hold(&self, mount: &Held) -> io::Result<()> {
        Ok(mount.send(&self.socket, true)?)
    }

    /// The mount has ended.
    pub fn release(&self, number: u64) -> io::Result<()> {
        self.send(Message::Release(number), &[])
    }

    /// This worker answers commands.
    pub fn serving(&self) -> io::Result<()> {
        self.send(Message::Serving, &[])
    }

    /// This worker is about to end.
    pub fn ending(&self, order: Order) -> io::Result<()> {
        let message = match order {
            Order::End => Message::Ending,
            Order::Replace => Message::Replacing,
        };
        self.send(message, &[])
    }

    /// This worker is about to end, and keeper and next worker are to be of the program whose path is in the
    /// file `program`.
    pub fn upgrading(&self, program: impl AsFd) -> io::Result<()> {
        self.send(Message::Replacing, &[program.as_fd()])
    }

    /// All mounts of this worker have ended.
    pub fn ended(&self) -> io::Result<()> {
        self.send(Message::Ended, &[])
    }

    fn send(&self, message: Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        Ok(socket::send(&self.socket, message, descriptors, true)?)
    }
}

impl AsFd for Channel {
    /// Readable once the keeper is gone: a keeper sends nothing after its mounts.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
