//! Headers of GGUF files, versions 2 and 3.
//!
//! ```text
//! | "GGUF" | version: u32 | tensors: u64 | pairs: u64 |
//! | pairs:   key: string, type: u32, value |
//! | tensors: name: string, dimensions: u32, that many u64, type: u32, offset: u64 |
//! | padding to the alignment | tensors at their offsets from here |
//! ```
//!
//! Numbers are little endian. A string is a u64 and that many bytes
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). The parser uses one pair,
//! `general.alignment`, and skips all others.
//!
//! The parser takes the start of the next tensor for the end of a tensor, and ignores types. So new
//! quantisations, which come every few months, need no change here. The error is the padding between
//! two tensors, a few bytes.
//!
//! Two kinds of files give no tensors: version 1, which had 32-bit counts for some weeks in 2023, and
//! big-endian files, which kitfs's platforms do not use.

use std::io::Read;

use super::{HeaderError, TensorMap};

const MAGIC: &[u8; 4] = b"GGUF";

/// The alignment of a file whose header has none.
const USUAL_ALIGNMENT: u64 = 32;

/// The largest accepted alignment: a page of 2 MiB. 32 bytes to 16 KiB are usual.
const MOST_ALIGNMENT: u64 = 2 * 1024 * 1024;

/// The most accepted dimensions of a tensor. ggml uses up to four.
const MOST_DIMENSIONS: u32 = 8;

/// The deepest nesting of arrays. The format allows any depth; files use one.
const MOST_DEPTH: u32 = 4;

const ALIGNMENT_KEY: &[u8; 17] = b"general.alignment";

/// See [`super::Format::parse`].
pub fn parse(
    prefix: impl Read,
    prefix_bytes: u64,
    file_bytes: u64,
) -> Result<TensorMap, HeaderError> {
    let mut header = Header { prefix, at: 0, prefix_bytes };
    if header.bytes::<4>()? != *MAGIC {
        return Err(HeaderError::malformed("no GGUF"));
    }
    let version = header.u32()?;
    if !(2..=3).contains(&version) {
        return Err(HeaderError::malformed(format!("GGUF version {version}")));
    }
    let (tensors, pairs) = (header.u64()?, header.u64()?);
    let mut alignment = USUAL_ALIGNMENT;
    for _ in 0..pairs {
        let is_alignment = header.string_is(ALIGNMENT_KEY)?;
        match header.u32()? {
            kind::U32 if is_alignment => alignment = header.u32()?.into(),
            value => header.skip_value(value, 0)?,
        }
    }
    if !alignment.is_power_of_two() || alignment > MOST_ALIGNMENT {
        return Err(HeaderError::malformed(format!("an alignment of {alignment}")));
    }
    let mut offsets = Vec::new();
    for _ in 0..tensors {
        header.skip_string()?;
        let dimensions = header.u32()?;
        if dimensions > MOST_DIMENSIONS {
            return Err(HeaderError::malformed(format!("{dimensions} dimensions")));
        }
        header.skip(u64::from(dimensions) * 8 + 4)?;
        offsets.push(header.u64()?);
    }
    let base = header.at.next_multiple_of(alignment);
    let mut starts: Vec<u64> =
        offsets.into_iter().filter_map(|offset| base.checked_add(offset)).collect();
    starts.sort_unstable();
    let ends = starts.iter().skip(1).copied().chain([file_bytes]);
    Ok(TensorMap::new(starts.iter().zip(ends).map(|(&start, end)| start..end), file_bytes))
}

/// The types of values.
mod kind {
    pub const U32: u32 = 4;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
}

/// A reader of the first bytes of a file. `at` never passes `prefix_bytes`, and each step consumes
/// some bytes. So a count or length that is too large ends the parse, and takes no memory.
struct Header<R> {
    prefix: R,
    at: u64,
    prefix_bytes: u64,
}

impl<R: Read> Header<R> {
    /// Moves `at` on by `bytes`; fails if the prefix is shorter.
    fn advance(&mut self, bytes: u64) -> Result<(), HeaderError> {
        let end = self.at.saturating_add(bytes);
        if end > self.prefix_bytes {
            return Err(HeaderError::Ended { needed: end });
        }
        self.at = end;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.prefix.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), HeaderError> {
        self.advance(bytes)?;
        let passed = std::io::copy(&mut self.prefix.by_ref().take(bytes), &mut std::io::sink())?;
        if passed == bytes { Ok(()) } else { Err(HeaderError::Unreadable("cut off".into())) }
    }

    fn skip_string(&mut self) -> Result<(), HeaderError> {
        let bytes = self.u64()?;
        self.skip(bytes)
    }

    fn string_is(&mut self, expected: &[u8; 17]) -> Result<bool, HeaderError> {
        let bytes = self.u64()?;
        if bytes != ALIGNMENT_KEY.len() as u64 {
            return self.skip(bytes).map(|()| false);
        }
        Ok(self.bytes()? == *expected)
    }

    fn skip_value(&mut self, value: u32, depth: u32) -> Result<(), HeaderError> {
        match value {
            kind::STRING => self.skip_string(),
            kind::ARRAY if depth < MOST_DEPTH => {
                let (element, count) = (self.u32()?, self.u64()?);
                match scalar_bytes(element) {
                    Some(bytes) => self.skip(count.saturating_mul(bytes)),
                    None => (0..count).try_for_each(|_| self.skip_value(element, depth + 1)),
                }
            }
            _ => match scalar_bytes(value) {
                Some(bytes) => self.skip(bytes),
                None => Err(HeaderError::malformed(format!("a value of type {value}"))),
            },
        }
    }
}

/// The size of a value of a type with a fixed size; `None` for strings, arrays and unknown types.
fn scalar_bytes(value: u32) -> Option<u64> {
    match value {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
