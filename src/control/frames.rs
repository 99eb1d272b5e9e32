//! The frames on the control socket, and the descriptors that come with them (docs/format/control.md).

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use bytes::{Buf, Bytes, BytesMut};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The first bytes of a command. The last of them is the number of the protocol.
pub(super) const PREAMBLE: [u8; 8] = *b"kitfs\0\0\x02";

/// The longest request, in bytes. 1 MiB: the longest fields are lists of filters and paths, which people type.
pub(super) const REQUEST_LIMIT_BYTES: usize = 1024 * 1024;
/// The longest other frame, in bytes. The longest answer has every layer of a kit: a manifest of at most
/// 4 MiB names some ten thousand layers. A listing of a million files is sent in several frames (`Part`).
pub(super) const FRAME_LIMIT_BYTES: usize = 16 * 1024 * 1024;
/// The most descriptors with a request.
pub(super) const MOST_DESCRIPTORS: usize = 4;
/// The bytes that one system call reads.
const READ_BYTES: usize = 64 * 1024;
/// A kind and a length.
const HEADER_BYTES: usize = 5;

/// The meaning of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A request, with its operation and version.
    Request = 1,
    /// A message before the answer.
    Event = 2,
    /// Bytes of a file or of a trace.
    Bytes = 3,
    /// A part of an answer that is longer than a frame.
    Part = 4,
    /// The answer, or its last part.
    Answer = 5,
    /// The failure in the answer's place.
    Failure = 6,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Request, Self::Event, Self::Bytes, Self::Part, Self::Answer, Self::Failure];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) body: Bytes,
}

/// Encodes a frame.
pub(super) fn encode(kind: Kind, body: &[u8]) -> Bytes {
    debug_assert!(body.len() <= FRAME_LIMIT_BYTES, "longer bodies are cut before");
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + body.len());
    frame.extend_from_slice(&[kind as u8]);
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(body);
    frame.freeze()
}

/// Encodes an answer as one frame, or as parts and a last frame.
pub(super) fn encode_answer(body: &[u8]) -> Vec<Bytes> {
    let mut pieces = body.chunks(FRAME_LIMIT_BYTES);
    let last = pieces.next_back().unwrap_or_default();
    let parts = pieces.map(|piece| encode(Kind::Part, piece));
    parts.chain([encode(Kind::Answer, last)]).collect()
}

/// Takes the first frame from the received bytes; `None` for an incomplete frame. Pure.
///
/// # Errors
/// When the bytes are no frame, or a frame that is longer than `limit_bytes`.
pub(super) fn decode(
    buffer: &mut BytesMut,
    limit_bytes: usize,
) -> Result<Option<Frame>, Malformed> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let kind = Kind::from_byte(header[0]).ok_or(Malformed)?;
    let [_, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    if length > limit_bytes {
        return Err(Malformed);
    }
    if buffer.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    Ok(Some(Frame { kind, body: buffer.split_to(length).freeze() }))
}

/// Bytes that are no frame of this protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it sent bytes that are no frame of this protocol")]
pub(super) struct Malformed;

/// Reads frames from a socket.
pub(super) struct Reader {
    socket: OwnedReadHalf,
    buffer: BytesMut,
    descriptors: Vec<OwnedFd>,
}

impl Reader {
    pub(super) fn new(socket: OwnedReadHalf) -> Self {
        Self { socket, buffer: BytesMut::new(), descriptors: Vec::new() }
    }

    /// Reads the preamble. Returns the first bytes of a peer with another protocol.
    pub(super) async fn preamble(&mut self) -> io::Result<Result<(), Bytes>> {
        loop {
            let length = self.buffer.len().min(PREAMBLE.len());
            if self.buffer[..length] != PREAMBLE[..length] {
                return Ok(Err(self.buffer.split().freeze()));
            }
            if length == PREAMBLE.len() {
                self.buffer.advance(length);
                return Ok(Ok(()));
            }
            if !self.fill().await? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next frame; `None` when the peer has closed the connection. Safe to drop and call again.
    pub(super) async fn next(&mut self, limit_bytes: usize) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = decode(&mut self.buffer, limit_bytes).map_err(io::Error::other)? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    /// The descriptors that came so far.
    pub(super) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// Waits until the peer closes the connection. Ignores everything that it sends.
    pub(super) async fn closed(&mut self) {
        while let Ok(true) = self.fill().await {
            self.buffer.clear();
            self.descriptors.clear();
        }
    }

    /// The received bytes of an incomplete frame.
    pub(super) fn rest(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads once. Returns false at the end.
    async fn fill(&mut self) -> io::Result<bool> {
        loop {
            self.socket.readable().await?;
            let (buffer, descriptors) = (&mut self.buffer, &mut self.descriptors);
            let socket: &tokio::net::UnixStream = self.socket.as_ref();
            match socket.try_io(Interest::READABLE, || receive(socket, buffer, descriptors)) {
                Ok(bytes) => return Ok(bytes > 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn receive(
    socket: &tokio::net::UnixStream,
    buffer: &mut BytesMut,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let start = buffer.len();
    buffer.resize(start + READ_BYTES, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        let mut buffers = [IoSliceMut::new(&mut buffer[start..])];
        match rustix::net::recvmsg(socket, &mut buffers, &mut control, flags) {
            Err(Errno::INTR) => {}
            received => break received,
        }
    };
    buffer.truncate(start + received.as_ref().map_or(0, |received| received.bytes));
    let received = received?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            descriptors.extend(sent);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MOST_DESCRIPTORS {
        descriptors.clear();
        return Err(io::Error::other(
            "descriptors were lost: too many came, or this process has too many",
        ));
    }
    Ok(received.bytes)
}

/// Sends bytes, with descriptors beside the first of them.
pub(super) async fn send(
    socket: &mut OwnedWriteHalf,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut sent = 0;
    while sent == 0 && !descriptors.is_empty() {
        socket.writable().await?;
        let stream: &tokio::net::UnixStream = socket.as_ref();
        match stream.try_io(Interest::WRITABLE, || send_once(stream, bytes, descriptors)) {
            Ok(bytes) => sent = bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    socket.write_all(&bytes[sent..]).await
}

fn send_once(
    socket: &tokio::net::UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one request"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        prop::sample::select(Kind::ALL.to_vec())
    }

    /// Decodes bytes that arrive `cut` bytes at a time.
    fn decoded(bytes: &[u8], cut: usize) -> Result<Vec<Frame>, Malformed> {
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(cut) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = decode(&mut buffer, 64)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn frames_are_read_however_they_are_cut(
            frames in prop::collection::vec((kinds(), prop::collection::vec(any::<u8>(), 0..64)), 0..8),
            cut in 1..80usize,
        ) {
            let encoded: Vec<u8> = frames.iter().flat_map(|(kind, body)| encode(*kind, body)).collect();
            let expected: Vec<_> =
                frames.into_iter().map(|(kind, body)| Frame { kind, body: body.into() }).collect();
            prop_assert_eq!(decoded(&encoded, cut), Ok(expected));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1..80usize) {
            let _ = decoded(&bytes, cut);
        }
    }

    #[test]
    fn a_long_answer_is_cut_into_parts() {
        let body = vec![7; FRAME_LIMIT_BYTES + 1];
        let frames = encode_answer(&body);
        assert_eq!(frames.len(), 2);
        let mut together = BytesMut::new();
        let mut kinds = Vec::new();
        for frame in frames {
            let mut bytes = BytesMut::from(&frame[..]);
            let frame = decode(&mut bytes, FRAME_LIMIT_BYTES).unwrap().unwrap();
            together.extend_from_slice(&frame.body);
            kinds.push(frame.kind);
        }
        assert_eq!(kinds, [Kind::Part, Kind::Answer]);
        assert_eq!(together, body);
        assert_eq!(encode_answer(b"").len(), 1);
    }

    #[tokio::test]
    async fn descriptors_come_with_their_frame() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let (mut pipe, input) = std::io::pipe().unwrap();
        let (_, mut output) = ours.into_split();
        let bytes = [&PREAMBLE[..], &encode(Kind::Request, &vec![1; 300_000])].concat();
        let sending = async { send(&mut output, &bytes, &[input.as_fd()]).await.unwrap() };
        let receiving = async {
            let mut reader = Reader::new(theirs.into_split().0);
            reader.preamble().await.unwrap().unwrap();
            let frame = reader.next(REQUEST_LIMIT_BYTES).await.unwrap().unwrap();
            assert_eq!((frame.kind, frame.body.len()), (Kind::Request, 300_000));
            let descriptors = reader.take_descriptors();
            <[OwnedFd; 1]>::try_from(descriptors).unwrap()
        };
        let ((), [received]) = tokio::join!(sending, receiving);
        drop(input);
        std::fs::File::from(received).write_all(b"x").unwrap();
        let mut read = Vec::new();
        pipe.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"x");
    }
}
