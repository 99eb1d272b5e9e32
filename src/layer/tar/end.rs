//! The end of an archive, and the bytes behind it.
//!
//! Zero blocks end an archive, and padding follows them. `cat a.tar b.tar` puts another archive
//! behind that, which GNU tar reads with `--ignore-zeros` only. A warning says what lies behind the
//! first end.

use super::header::BLOCK_BYTES;
use crate::layer::StreamOffset;

/// The scanner stops after this many zero blocks in a row. It is the largest record that tapes and
/// GNU tar (`--blocking-factor`) usually have, and the padding of a record is shorter.
pub(super) const ZEROS_LIMIT_BYTES: u64 = 1024 * 1024;

/// The zero blocks of an archive.
#[derive(Default)]
pub(super) struct End {
    /// The start of the zero blocks before the next header.
    zeros: Option<StreamOffset>,
    /// The start of the first zero blocks that do not end the stream, and what follows these blocks.
    first: Option<(StreamOffset, Behind)>,
}

/// The bytes behind the first zero blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    /// Further archives, which were read.
    Archives,
    /// Bytes that are no archive, from this offset on.
    Garbage(StreamOffset),
    /// Unread bytes, from this offset on.
    Unread(StreamOffset),
}

impl End {
    /// Takes note of a zero block; returns whether the scanner stops here.
    pub(super) fn zero_block(&mut self, at: StreamOffset) -> bool {
        let zeros = *self.zeros.get_or_insert(at);
        let next = at + BLOCK_BYTES as u64;
        let are_too_many = next - zeros >= ZEROS_LIMIT_BYTES;
        if are_too_many {
            self.first.get_or_insert((zeros, Behind::Unread(next)));
        }
        are_too_many
    }

    /// Takes note of a header; returns whether another archive begins with it.
    pub(super) fn header(&mut self) -> bool {
        let Some(zeros) = self.zeros.take() else { return false };
        self.first.get_or_insert((zeros, Behind::Archives));
        true
    }

    /// Takes note of bytes that are no header; returns whether they lie behind zero blocks.
    pub(super) fn garbage(&mut self, at: StreamOffset) -> bool {
        let Some(zeros) = self.zeros else { return false };
        self.first.get_or_insert((zeros, Behind::Garbage(at)));
        true
    }

    /// Whether the last block was a zero block.
    pub(super) fn is_behind_zeros(&self) -> bool {
        self.zeros.is_some()
    }

    /// The warning for a stream of that many bytes, where one is due.
    pub(super) fn warning(&self, stream_bytes: u64) -> Option<String> {
        let (end, behind) = self.first?;
        let end = end.get();
        let bytes = |from: u64| stream_bytes.saturating_sub(from);
        match behind {
            Behind::Archives => Some(format!(
                "the archive ends at byte {end}, and another one follows: the {} bytes behind the end \
                 are read too, which GNU tar does with --ignore-zeros only",
                bytes(end)
            )),
            Behind::Garbage(from) => Some(format!(
                "{} bytes behind the end of the archive, from byte {} on, are no archive and left out",
                bytes(from.get()),
                from.get()
            )),
            Behind::Unread(from) if bytes(from.get()) == 0 => None,
            Behind::Unread(from) => Some(format!(
                "the archive ends at byte {end}: the last {} bytes lie behind more zeros than any tape \
                 has, and are not looked at",
                bytes(from.get())
            )),
        }
    }
}
