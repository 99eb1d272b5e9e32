//! The tensors of a model file: their places, and those that a reader is in. Pure.
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
//! counts are bounded, and the map is small. No read needs a header, so a header that cannot be
//! understood fails no read.
//!
//! A parser reads from the file's start, and gets as many bytes as are there. If it needs more, it
//! says how many, and is called again. So it holds none of the header in memory, however long the
//! header is (the vocabulary of a GGUF file comes before its tensors and takes megabytes).

pub mod gguf;
pub mod reading;
pub mod safetensors;
pub mod shards;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::ops::Range;

use crate::layer::layout::CHUNK_BYTES;

/// The first tensors of a file, which are kept: 1 MiB of memory. Models have some thousand a file.
const MOST_TENSORS: usize = 65_536;

/// The longest header that is read for a hint. A safetensors header has some 100 bytes a tensor; a
/// GGUF header holds a vocabulary of up to 256,000 words, about 10 MiB.
pub const MOST_HEADER_BYTES: u64 = 16 * 1024 * 1024;

/// A format whose header has the places of the tensors.
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

    /// Reads the header of a file of `file_bytes` bytes, of which `prefix` yields the first
    /// `prefix_bytes`.
    ///
    /// # Errors
    /// [`HeaderError::Ended`] when the header is longer than that.
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
    /// The header is longer than the bytes that were there.
    #[error("the header needs {needed} bytes")]
    Ended {
        /// The first bytes of the file that are needed at least.
        needed: u64,
    },
    /// The ledger does not pay for a guess of so many bytes, and no reader has read them so far.
    #[error("the header needs {needed} bytes, more than a guess may cost now")]
    Dear {
        /// The first bytes of the file that are needed at least.
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

/// The places of a file's tensors, in order and apart from each other.
///
/// Tensors smaller than a chunk are left out: they come with their chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorMap(Box<[(u64, u64)]>);

impl TensorMap {
    /// Takes ranges of a file of `file_bytes` bytes, in any order. Ranges outside of the file are left
    /// out, and ranges that begin within another one: a header that has them is wrong.
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
