//! A socket of datagrams with descriptors (unix(7), `SOCK_SEQPACKET`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::Held;
use super::message::{BYTES, DESCRIPTORS, MOST_DESCRIPTORS, Message};

/// A received datagram.
#[derive(Debug)]
pub(super) enum Received {
    /// A mount.
    Held(Held),
    /// [`Message::Replacing`] with the program of the next keeper and worker.
    Program(OwnedFd),
    /// Another message.
    Message(Message),
    /// A datagram that this version does not know.
    Unknown,
    /// The other process is gone.
    End,
    /// There is no datagram now.
    Nothing,
}

/// A pair of connected sockets. Neither survives exec.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Limits how long [`send`] waits. It fails with `AGAIN` then.
pub(super) fn limit_sends(socket: impl AsFd, timeout: Duration) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_timeout(socket, Timeout::Send, Some(timeout))?)
}

/// Sends a message with its descriptors.
pub(super) fn send(
    socket: impl AsFd,
    message: Message,
    descriptors: &[BorrowedFd<'_>],
    may_wait: bool,
) -> rustix::io::Result<()> {
    let bytes = message.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL;
    let flags = if may_wait { flags } else { flags | SendFlags::DONTWAIT };
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Receives a datagram.
pub(super) fn receive(socket: impl AsFd, may_wait: bool) -> rustix::io::Result<Received> {
    // One byte more, so that a longer datagram shows.
    let mut bytes = [0; BYTES + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let flags = if may_wait { flags } else { flags | RecvFlags::DONTWAIT };
    let received = loop {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&socket, &mut buffers, &mut control, flags) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(Errno::CONNRESET) => return Ok(Received::End),
            Err(error) => return Err(error),
        }
    };
    let mut descriptors = Vec::with_capacity(MOST_DESCRIPTORS);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            descriptors.extend(sent);
        }
    }
    if received.bytes == 0 {
        return Ok(Received::End);
    }
    // Descriptors were lost when this process has no numbers left for them.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MFILE);
    }
    Ok(match (Message::decode(&bytes[..received.bytes]), descriptors.len()) {
        (Some(Message::Hold { number, connection }), DESCRIPTORS..=MOST_DESCRIPTORS) => {
            let owner = descriptors.drain(DESCRIPTORS..).next();
            let [device, record, opens] =
                <[OwnedFd; DESCRIPTORS]>::try_from(descriptors).expect("they were counted");
            Received::Held(Held { number, connection, device, record: record.into(), opens, owner })
        }
        (Some(Message::Replacing), 1) => {
            Received::Program(descriptors.pop().expect("it was counted"))
        }
        (Some(Message::Hold { .. }) | None, _) => Received::Unknown,
        (Some(message), _) => Received::Message(message),
    })
}

impl Held {
    /// Its descriptors, the owner last if there is one.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let files = [self.device.as_fd(), self.record.as_fd(), self.opens.as_fd()];
        files.into_iter().chain(self.owner.as_ref().map(AsFd::as_fd))
    }

    /// Sends the mount.
    pub(super) fn send(&self, socket: impl AsFd, may_wait: bool) -> rustix::io::Result<()> {
        let [device, record, opens] =
            [self.device.as_fd(), self.record.as_fd(), self.opens.as_fd()];
        let message = Message::Hold { number: self.number, connection: self.connection };
        match &self.owner {
            None => send(socket, message, &[device, record, opens], may_wait),
            Some(owner) => send(socket, message, &[device, record, opens, owner.as_fd()], may_wait),
        }
    }
}
