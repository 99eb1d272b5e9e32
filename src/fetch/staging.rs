//! Where the bytes of a layer belong while its table of contents is still growing.
//!
//! The final layout is a function of the whole table, but where a byte lies is known as soon as
//! the header before it is: big members have files of their own, everything else is in `stream`.
//! So bytes are written once, at their final place.

use std::ops::Range;

use crate::cache::{CacheError, Stage};
use crate::layer::layout::BIG_MEMBER_BYTES;
use crate::layer::{CacheFile, Member, MemberKind, RangeSet, StreamOffset};

/// A [`Stage`] that knows the big members so far, and which bytes it was given.
pub(super) struct Staging {
    stage: Stage,
    big: Vec<(Range<StreamOffset>, u32)>,
    members_seen: usize,
    covered: RangeSet,
}

impl Staging {
    pub(super) fn new(stage: Stage) -> Self {
        Self { stage, big: Vec::new(), members_seen: 0, covered: RangeSet::new() }
    }

    /// Takes note of members that were found since the last call.
    pub(super) fn learn(&mut self, members: &[Member]) {
        for (index, member) in members.iter().enumerate().skip(self.members_seen) {
            let MemberKind::File(range) = &member.kind else { continue };
            let is_new = self.big.last().is_none_or(|(last, _)| range.start >= last.end);
            if is_new && range.end - range.start >= BIG_MEMBER_BYTES {
                self.big.push((range.clone(), index as u32));
            }
        }
        self.members_seen = members.len();
    }

    /// Writes bytes of the stream to their files. All headers before `at + bytes.len()` that are
    /// complete must have been learnt.
    pub(super) fn write(&mut self, at: StreamOffset, bytes: &[u8]) -> Result<(), CacheError> {
        let end = at + bytes.len() as u64;
        let mut from = at;
        while from < end {
            let (file, file_offset, to) = self.place(from, end);
            let piece = &bytes[(from - at) as usize..(to - at) as usize];
            self.stage.write(file, file_offset, piece)?;
            from = to;
        }
        self.covered.insert(at.get()..end.get());
        Ok(())
    }

    /// The file for the byte at `from`, its offset there, and where the next file starts.
    fn place(&self, from: StreamOffset, end: StreamOffset) -> (CacheFile, u64, StreamOffset) {
        let next = self.big.partition_point(|(range, _)| range.end <= from);
        match self.big.get(next) {
            Some((range, index)) if range.start <= from => {
                (CacheFile::Member(*index), from - range.start, end.min(range.end))
            }
            Some((range, _)) => (CacheFile::Stream, from.get(), end.min(range.start)),
            None => (CacheFile::Stream, from.get(), end),
        }
    }

    /// Forgets all that was staged, the compressed bytes too.
    pub(super) fn restart(&mut self) -> Result<(), CacheError> {
        self.stage.restart()?;
        self.big.clear();
        self.members_seen = 0;
        self.covered = RangeSet::new();
        Ok(())
    }

    pub(super) fn stage(&mut self) -> &mut Stage {
        &mut self.stage
    }

    pub(super) fn into_parts(self) -> (Stage, RangeSet) {
        (self.stage, self.covered)
    }
}
