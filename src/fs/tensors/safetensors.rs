//! Headers of safetensors files.
//!
//! ```text
//! | n: u64, little endian | JSON, n bytes | tensors …
//!                         {"name": {"dtype": …, "shape": […], "data_offsets": [start, end]}, …}
//! ```
//!
//! Offsets count from the end of the JSON (<https://github.com/huggingface/safetensors>). The parser
//! streams the JSON and keeps only the offsets. `safetensors::SafeTensors::read_metadata` would hold
//! the whole header in memory, and keep every name and shape.

use std::io::Read;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{HeaderError, TensorMap};
use crate::layer::layout::CHUNK_BYTES;

/// The longest header that the reference implementation accepts.
const MOST_LEGAL_BYTES: u64 = 100_000_000;

/// The size of the length field.
const LENGTH_BYTES: u64 = 8;

/// See [`super::Format::parse`].
pub fn parse(
    mut prefix: impl Read,
    prefix_bytes: u64,
    file_bytes: u64,
) -> Result<TensorMap, HeaderError> {
    if prefix_bytes < LENGTH_BYTES {
        return Err(HeaderError::Ended { needed: LENGTH_BYTES });
    }
    let mut length = [0; LENGTH_BYTES as usize];
    prefix.read_exact(&mut length)?;
    let json_bytes = u64::from_le_bytes(length);
    if json_bytes > MOST_LEGAL_BYTES || json_bytes > file_bytes {
        return Err(HeaderError::malformed(format!("{json_bytes} bytes long")));
    }
    let base = LENGTH_BYTES + json_bytes;
    if prefix_bytes < base {
        return Err(HeaderError::Ended { needed: base });
    }
    let json = prefix.take(json_bytes);
    let Offsets(offsets) =
        serde_json::from_reader(json).map_err(|error| match error.io_error_kind() {
            Some(_) => HeaderError::Unreadable(error.to_string()),
            None => HeaderError::malformed(error.to_string()),
        })?;
    let in_file = |(start, end): (u64, u64)| -> Option<Range<u64>> {
        Some(base.checked_add(start)?..base.checked_add(end)?)
    };
    Ok(TensorMap::new(offsets.into_iter().filter_map(in_file), file_bytes))
}

/// The offsets of all tensors that are a chunk long or longer.
struct Offsets(Vec<(u64, u64)>);

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Key {
    #[serde(rename = "__metadata__")]
    Metadata,
    #[serde(other)]
    Tensor,
}

#[derive(Deserialize)]
struct Tensor {
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OffsetsVisitor)
    }
}

struct OffsetsVisitor;

impl<'de> Visitor<'de> for OffsetsVisitor {
    type Value = Offsets;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Offsets, A::Error> {
        let mut offsets = Vec::new();
        while let Some(key) = map.next_key()? {
            match key {
                Key::Metadata => drop(map.next_value::<IgnoredAny>()?),
                Key::Tensor => {
                    let (start, end) = map.next_value::<Tensor>()?.data_offsets;
                    if end.saturating_sub(start) >= CHUNK_BYTES {
                        offsets.push((start, end));
                    }
                }
            }
        }
        Ok(Offsets(offsets))
    }
}
