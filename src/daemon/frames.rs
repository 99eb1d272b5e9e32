//! The body of the answer to a read: file bytes in frames, and at the end how it went.
//!
//! ```text
//! length u32 BE (not 0) | that many bytes     repeated
//! 0 u32                 | JSON: null, or the failure that broke the reading off
//! ```
//!
//! A plain HTTP body has no place for an error after its first byte; a command would know only
//! that something went wrong, and could not choose its exit code.

use bytes::{Buf, Bytes, BytesMut};

use super::api::Failure;

/// The longest frame a reader accepts; writers cut their pieces well below.
pub(super) const FRAME_LIMIT_BYTES: usize = 16 * 1024 * 1024;
/// The longest end a reader accepts: a failure's words.
const END_LIMIT_BYTES: usize = 64 * 1024;

/// A frame of file bytes; none for an empty piece, whose length would mean the end.
pub(super) fn frame(piece: &Bytes) -> Bytes {
    debug_assert!(piece.len() <= FRAME_LIMIT_BYTES, "pieces are cut below the limit");
    if piece.is_empty() {
        return Bytes::new();
    }
    let mut frame = BytesMut::with_capacity(4 + piece.len());
    frame.extend_from_slice(&(piece.len() as u32).to_be_bytes());
    frame.extend_from_slice(piece);
    frame.freeze()
}

/// The end of the body.
pub(super) fn end(failure: Option<&Failure>) -> Bytes {
    let mut end = vec![0; 4];
    serde_json::to_writer(&mut end, &failure).expect("a failure has string keys only");
    end.into()
}

/// A reader's next find.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// File bytes.
    Bytes(Bytes),
    /// Nothing yet: more of the body is needed.
    More,
    /// The end of the body: all bytes came, or why not.
    End(Option<Failure>),
}

/// Takes a body apart as it arrives. Pure.
#[derive(Debug, Default)]
pub(super) struct Reader {
    buffer: BytesMut,
    /// Bytes of the current frame that have not been handed out.
    left: usize,
    is_at_end: bool,
}

/// A body that is not made of frames, or ends too early.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is cut off or malformed")]
pub(super) struct FramesError;

impl Reader {
    /// Takes more of the body.
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next thing in the bytes that were pushed; `is_complete` when these are the whole body.
    pub(super) fn next(&mut self, is_complete: bool) -> Result<Next, FramesError> {
        if self.left == 0 && !self.is_at_end && self.buffer.len() >= 4 {
            self.left = self.buffer.get_u32() as usize;
            self.is_at_end = self.left == 0;
        }
        if self.left > FRAME_LIMIT_BYTES || (self.is_at_end && self.buffer.len() > END_LIMIT_BYTES)
        {
            return Err(FramesError);
        }
        if self.left > 0 && !self.buffer.is_empty() {
            let bytes = self.buffer.split_to(self.left.min(self.buffer.len()));
            self.left -= bytes.len();
            return Ok(Next::Bytes(bytes.freeze()));
        }
        match (is_complete, self.is_at_end) {
            (false, _) => Ok(Next::More),
            (true, false) => Err(FramesError),
            (true, true) => {
                serde_json::from_slice(&self.buffer).map(Next::End).map_err(|_| FramesError)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::api::FailureKind;
    use super::*;

    fn read(body: &[u8], cut: usize) -> Result<(Vec<u8>, Option<Failure>), FramesError> {
        let mut reader = Reader::default();
        let mut bytes = Vec::new();
        let mut pieces = body.chunks(cut.max(1));
        let mut is_complete = false;
        loop {
            match reader.next(is_complete)? {
                Next::Bytes(piece) => bytes.extend_from_slice(&piece),
                Next::End(failure) => return Ok((bytes, failure)),
                Next::More => match pieces.next() {
                    Some(piece) => reader.push(piece),
                    None => is_complete = true,
                },
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_framed_is_read_however_it_is_cut(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8),
            failed in any::<bool>(), cut in 1..60usize,
        ) {
            let failure = failed.then(|| Failure::new(FailureKind::BadContent, "poisoned"));
            let mut body = Vec::new();
            for piece in &pieces {
                body.extend_from_slice(&frame(&Bytes::copy_from_slice(piece)));
            }
            body.extend_from_slice(&end(failure.as_ref()));
            prop_assert_eq!(read(&body, cut), Ok((pieces.concat(), failure)));
            for short in 0..body.len() {
                prop_assert_eq!(read(&body[..short], cut), Err(FramesError));
            }
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body, 7);
        }
    }
}
