//! The order of a model's files, from its index.
//!
//! ```text
//! model.safetensors.index.json   {"weight_map": {"layer.0": "model-00001-of-00002.safetensors", …}}
//! ```
//!
//! The names of shards have numbers, and programs read shards in the order of their names.

use std::collections::BTreeSet;
use std::io::Read;
use std::ops::Bound;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The end of the name of every index.
pub const INDEX_SUFFIX: &[u8] = b".safetensors.index.json";

/// The longest index that is fetched for hints. The largest open model has 91,000 tensors and an
/// index of 9 MB.
pub const MOST_INDEX_BYTES: u64 = 16 * 1024 * 1024;

/// The most shards of an accepted index. The largest open models have some 200.
const MOST_SHARDS: usize = 4096;

/// The longest name of a file (`NAME_MAX`).
const MOST_NAME_BYTES: usize = 255;

/// The names of the shards in an index, in the order in which programs read them.
///
/// # Errors
/// When the JSON is not an index, or names a file in another folder.
pub fn parse(index: impl Read) -> Result<BTreeSet<String>, serde_json::Error> {
    let Index { weight_map: Shards(shards) } = serde_json::from_reader(index)?;
    Ok(shards)
}

/// The shard after `name`; `None` for the last shard, and for a name that is not in the index.
pub fn after<'a>(shards: &'a BTreeSet<String>, name: &str) -> Option<&'a str> {
    let mut following = shards.range::<str, _>((Bound::Included(name), Bound::Unbounded));
    (following.next()? == name).then_some(())?;
    following.next().map(String::as_str)
}

#[derive(Deserialize)]
struct Index {
    weight_map: Shards,
}

struct Shards(BTreeSet<String>);

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ShardsVisitor)
    }
}

struct ShardsVisitor;

impl<'de> Visitor<'de> for ShardsVisitor {
    type Value = Shards;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a map from tensors to files")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shards, A::Error> {
        let mut shards = BTreeSet::new();
        while let Some((_, name)) = map.next_entry::<IgnoredAny, String>()? {
            if name.contains('/') || name.len() > MOST_NAME_BYTES {
                return Err(A::Error::custom("a shard that is not in the folder of its index"));
            }
            shards.insert(name);
            if shards.len() > MOST_SHARDS {
                return Err(A::Error::custom("too many shards"));
            }
        }
        Ok(Shards(shards))
    }
}
