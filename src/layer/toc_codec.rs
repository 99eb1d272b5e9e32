//! The table of contents as a file (docs/format/toc.md).
#![allow(unused_variables, dead_code)]

use super::Toc;

/// Why a file is not a table of contents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a usable table of contents: {0}")]
pub struct TocCodecError(String);

/// The bytes of a toc file: magic, version, lengths, checksum.
pub fn encode(toc: &Toc) -> Vec<u8> {
    todo!()
}

/// The table of contents in the bytes of a toc file; every length and offset is checked.
pub fn decode(bytes: &[u8]) -> Result<Toc, TocCodecError> {
    todo!()
}
