//! Where the tensors of a model file lie, and which of them a reader wants. Pure.
//!
//! ```text
//! safetensors   | n | header: n bytes of JSON | tensor | tensor | …
//! GGUF          | magic, counts | keys and values | tensor infos | pad | tensor | tensor | …
//! ```
//!
//! - [`safetensors`], [`gguf`]: headers, into a [`TensorMap`].
//! - [`shards`]: which file of a model comes after another one.
//! - [`reading`]: what to fetch of the tensors that a file's streams are in.
//!
//! A header is hostile until it is checked: what does not lie in the file is left out, lengths and
//! counts are bounded, and what is kept is small. Nothing here is needed to read a file, so a
//! header that cannot be understood is no error of anybody's read.
//!
//! Parsers read from the file's start, and are given as much of it as is there; one that needs
//! more says how much and is called again. So they hold none of the header in memory, however
//! long it is (the vocabulary of a GGUF file comes before its tensors and takes megabytes).

pub mod gguf;
pub mod reading;
pub mod safetensors;
pub mod shards;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::ops::Range;

use crate::layer::layout::CHUNK_BYTES;

/// Tensors kept of one file, the first ones: 1 MiB of memory. Models have some thousand a file.
const MOST_TENSORS: usize = 65_536;

/// The longest header that is read for a hint. Headers of safetensors take some 100 bytes a
/// tensor; those of GGUF hold a vocabulary of up to 256,000 words, about 10 MiB.
pub const MOST_HEADER_BYTES: u64 = 16 * 1024 * 1024;

/// A format whose header says where tensors lie.
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

/// Why a header says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It goes on behind what was there.
    #[error("the header needs {needed} bytes")]
    Ended {
        /// The first bytes of the file that are needed at least.
        needed: u64,
    },
    /// It is long, and nobody has read it so far: to fetch it for a guess would cost too much.
    #[error("the header needs {needed} bytes, more than a guess may cost now")]
    Dear {
        /// The first bytes of the file that are needed at least.
        needed: u64,
    },
    /// It is not what its format says.
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

/// Where the tensors of a file lie, in order and apart from each other.
///
/// Those smaller than a chunk are left out: they come with their chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorMap(Box<[(u64, u64)]>);

impl TensorMap {
    /// From ranges of a file of `file_bytes` bytes in any order. What does not lie in the file is
    /// left out, and so is what begins within another one: a header that says so is wrong.
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
