//! Streaming decompression of gzip (RFC 1952, any number of members) and zstd (RFC 8878, any
//! number of frames).
#![allow(unused_variables, dead_code)]

use crate::oci::Compression;

/// Why compressed bytes cannot be decoded; names the format and the blob offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not what the format allows.
    #[error("malformed {format} data at byte {offset}: {detail}")]
    Malformed {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Compressed bytes taken in before the fault.
        offset: u64,
        /// The decoder's words.
        detail: String,
    },
    /// The compressed bytes end inside a member or frame.
    #[error("the {format} data ends too early, after {offset} bytes")]
    Truncated {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Compressed bytes taken in.
        offset: u64,
    },
}

/// A decompressor that is fed pieces of any size.
pub struct Decoder {}

impl Decoder {
    /// A decoder at the start of a blob. `Compression::None` copies.
    pub fn new(compression: Compression) -> Self {
        todo!()
    }

    /// Takes bytes from the front of `compressed`, writes decoded bytes to the front of `output`
    /// and returns how many. To be called until it returns 0 with `compressed` empty: then it
    /// needs more input.
    pub fn decode(
        &mut self,
        compressed: &mut &[u8],
        output: &mut [u8],
    ) -> Result<usize, DecodeError> {
        todo!()
    }

    /// Says that no more bytes come.
    ///
    /// # Errors
    /// When they end inside a member or frame (or, for gzip and zstd, there were none at all).
    pub fn finish(&mut self) -> Result<(), DecodeError> {
        todo!()
    }
}
