//! The tensors of a model file: their places, and the tensors that a reader is in. Pure.
//!
//! ```text
//! safetensors   | n | header: n bytes of JSON | tensor | tensor | …
//! GGUF          | magic, counts | keys and values | tensor infos | pad | tensor | tensor | …
//! ```
//!
//! - [`safetensors`], [`gguf`]: parse headers into a [`TensorMap`].
//! - [`shards`]: the order of a model's files.
//! - [`reading`]: the ranges to fetch of the tensors that a file's streams are in.
//!
//! A header is hostile until it is checked. Tensors outside of the file are left out, lengths and
//! counts are bounded, and the map is small. No read needs a header, so a malformed header fails no
//! read.
//!
//! A parser reads the resident start of a file. A parser that needs more bytes returns their number
//! ([`HeaderError::Ended`]); the caller fetches them and parses again from the start. So a parser
//! streams the header and never holds all of it in memory. A long header is usual: the vocabulary
//! of a GGUF file comes before its tensors and takes megabytes.

pub mod gguf;
pub mod reading;
pub mod safetensors;
pub mod shards;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::ops::Range;

use crate::layer::layout::CHUNK_BYTES;

/// The most tensors kept of a file, the first ones: 1 MiB of memory. Usual files have some thousand.
const MOST_TENSORS: usize = 65_536;

/// The longest header that is fetched for hints. A safetensors header has some 100 bytes a tensor.
/// A GGUF header holds a vocabulary of up to 256,000 words, about 10 MiB.
pub const MOST_HEADER_BYTES: u64 = 16 * 1024 * 1024;

/// A file format with a header that tells the places of the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `*.safetensors`
    Safetensors,
    /// `*.gguf`
    Gguf,
}

impl Format {
    /// The format of a file, by its name.
    pub fn of(name: &[u8]) -> Option<Self> {
        if name.ends_with(b".safetensors") {
            Some(Self::Safetensors)
        } else if name.ends_with(b".gguf") {
            Some(Self::Gguf)
        } else {
            None
        }
    }

    /// Parses the header of a file of `file_bytes`. `prefix` yields the file's first `prefix_bytes`.
    ///
    /// # Errors
    /// [`HeaderError::Ended`] when the header is longer than `prefix_bytes`.
    pub fn parse(
        self,
        prefix: impl Read,
        prefix_bytes: u64,
        file_bytes: u64,
    ) -> Result<TensorMap, HeaderError> {
        match self {
            Self::Safetensors => safetensors::parse(prefix, prefix_bytes, file_bytes),
            Self::Gguf => gguf::parse(prefix, prefix_bytes, file_bytes),
        }
    }
}

/// The reason why a header gives no tensors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The header is longer than the given prefix.
    #[error("the header needs {needed} bytes")]
    Ended {
        /// The least prefix with which to parse again, in bytes.
        needed: u64,
    },
    /// The ledger does not pay for this many bytes now, and no reader has fetched them so far.
    #[error("the header needs {needed} bytes, more than a guess may cost now")]
    Dear {
        /// The least prefix with which to parse again, in bytes.
        needed: u64,
    },
    /// The header breaks the rules of its format.
    #[error("the header is malformed: {0}")]
    Malformed(String),
    /// The file's bytes could not be read.
    #[error("the header cannot be read: {0}")]
    Unreadable(String),
}

impl HeaderError {
    fn malformed(detail: impl Into<String>) -> Self {
        Self::Malformed(detail.into())
    }
}

impl From<std::io::Error> for HeaderError {
    fn from(error: std::io::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// The places of a file's tensors, in order, without overlaps.
///
/// Tensors smaller than a chunk are left out: any read fetches whole chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorMap(Box<[(u64, u64)]>);

impl TensorMap {
    /// A map of ranges of a file of `file_bytes`, given in any order.
    ///
    /// Leaves out ranges beyond the end of the file and ranges that begin inside another one. Only a
    /// wrong header has such ranges.
    pub fn new(ranges: impl IntoIterator<Item = Range<u64>>, file_bytes: u64) -> Self {
        let fits = |range: &Range<u64>| range.end <= file_bytes;
        let is_large = |range: &Range<u64>| range.end.saturating_sub(range.start) >= CHUNK_BYTES;
        let good = ranges.into_iter().filter(|range| fits(range) && is_large(range));
        let mut sorted: Vec<(u64, u64)> = good.map(|range| (range.start, range.end)).collect();
        sorted.sort_unstable();
        let mut end = 0;
        sorted.retain(|tensor| {
            let is_apart = tensor.0 >= end;
            end = end.max(tensor.1);
            is_apart
        });
        sorted.truncate(MOST_TENSORS);
        Self(sorted.into_boxed_slice())
    }

    /// The tensor that holds the byte at `offset`.
    pub fn at(&self, offset: u64) -> Option<Range<u64>> {
        let after = self.0.partition_point(|&(start, _)| start <= offset);
        let &(start, end) = self.0.get(after.checked_sub(1)?)?;
        (offset < end).then_some(start..end)
    }

    /// The tensors, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|&(start, end)| start..end)
    }
}
