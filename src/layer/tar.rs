//! A push scanner for tar archives: finds the members from the headers alone.
#![allow(unused_variables, dead_code)]

use super::{Member, StreamOffset, Toc};

/// What is wrong with an archive; names the entry and the stream offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TarError(String);

/// Finds the members of an archive whose bytes it is shown in order, member content left out at will.
pub struct Scanner {}

impl Scanner {
    /// A scanner at the start of an archive.
    pub fn new() -> Self {
        todo!()
    }

    /// Shows bytes of the stream that start at `at`, which is at most [`Self::next_offset`]. What
    /// lies before `next_offset` is passed over, so overlaps and member content do no harm.
    pub fn feed(&mut self, at: StreamOffset, bytes: &[u8]) -> Result<(), TarError> {
        todo!()
    }

    /// The first byte of the stream that the scanner needs to go on: behind what it has
    /// buffered of a header, or the next header behind a member's content.
    pub fn next_offset(&self) -> StreamOffset {
        todo!()
    }

    /// The members found so far; only ever grows.
    pub fn members(&self) -> &[Member] {
        todo!()
    }

    /// Whether the end marker was seen: nothing more is needed.
    pub fn is_finished(&self) -> bool {
        todo!()
    }

    /// The table of contents of an archive whose stream has `stream_bytes` bytes.
    ///
    /// # Errors
    /// When the archive ends inside a header or a member's content.
    pub fn finish(self, stream_bytes: u64) -> Result<Toc, TarError> {
        todo!()
    }
}
