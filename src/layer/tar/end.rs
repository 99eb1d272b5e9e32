//! Where an archive ends, and what lies behind that.
//!
//! Zero blocks end an archive, and padding follows them. `cat a.tar b.tar` puts another archive behind
//! it, which GNU tar reads with `--ignore-zeros` only. A user learns what lies behind the first end.

use super::header::BLOCK_BYTES;
use crate::layer::StreamOffset;

/// Zero blocks in a row behind which nothing is looked for: the largest record that tapes and GNU tar
/// (`--blocking-factor`) usually have. The padding of a record is shorter.
pub(super) const ZEROS_LIMIT_BYTES: u64 = 1024 * 1024;

/// The zero blocks of an archive.
#[derive(Default)]
pub(super) struct End {
    /// Where the zero blocks before the next header start.
    zeros: Option<StreamOffset>,
    /// Where the first zero blocks start that something lies behind, and what.
    first: Option<(StreamOffset, Behind)>,
}

/// What lies behind the first zero blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    /// Further archives, which were read.
    Archives,
    /// Bytes that are no archive, from this offset on.
    Garbage(StreamOffset),
    /// Bytes from this offset on that nobody looked at.
    Unread(StreamOffset),
}

impl End {
    /// Takes note of a zero block; says whether there are so many that nothing more is looked for.
    pub(super) fn zero_block(&mut self, at: StreamOffset) -> bool {
        let zeros = *self.zeros.get_or_insert(at);
        let next = at + BLOCK_BYTES as u64;
        let are_too_many = next - zeros >= ZEROS_LIMIT_BYTES;
        if are_too_many {
            self.first.get_or_insert((zeros, Behind::Unread(next)));
        }
        are_too_many
    }

    /// Takes note of a header; says whether an archive begins with it behind another one.
    pub(super) fn header(&mut self) -> bool {
        let Some(zeros) = self.zeros.take() else { return false };
        self.first.get_or_insert((zeros, Behind::Archives));
        true
    }

    /// Takes note of bytes that are no header; says whether they lie behind zero blocks.
    pub(super) fn garbage(&mut self, at: StreamOffset) -> bool {
        let Some(zeros) = self.zeros else { return false };
        self.first.get_or_insert((zeros, Behind::Garbage(at)));
        true
    }

    /// Whether zero blocks were the last that was seen.
    pub(super) fn is_behind_zeros(&self) -> bool {
        self.zeros.is_some()
    }

    /// What a user should know about a stream of that many bytes.
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
