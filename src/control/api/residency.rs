//! The parts of a kit's files that are in the cache: `kitfs map`, the page and `/v1/residency`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{KitHandle, RawPath};
use crate::control::{NoEvent, Operation};

/// A kit that a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A kit that the command has open.
    Kit(KitHandle),
    /// The kit of a mount. In a mount of kits by path, the request's path begins with that of the kit.
    Mount {
        /// The mountpoint, absolute.
        mountpoint: PathBuf,
        /// The part of the file tree that the command sees ([`crate::process::view`]); that of the daemon where
        /// it is missing.
        #[serde(default)]
        view: Option<String>,
    },
}

/// Asks which parts of files are in the cache. Fetches nothing, and waits for no transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidencyRequest {
    /// The kit.
    pub subject: Subject,
    /// A file or a directory, from the kit's root; empty for the whole kit. Symlinks are followed.
    #[serde(default)]
    pub path: RawPath,
    /// The rows of the answer.
    #[serde(default)]
    pub rows: ResidencyRows,
    /// The number of rows to pass over, for the next part of an answer. Only the first part has totals.
    #[serde(default)]
    pub skip: u32,
    /// The most rows. The answer may have fewer: it is bounded, and says how many it leaves out.
    pub most_rows: u32,
    /// The number of equal parts of a file for which the answer has a [`Cell`] each; at most 512.
    #[serde(default)]
    pub cells: u16,
    /// The most ranges of all files together; at most 50,000.
    #[serde(default)]
    pub most_ranges: u32,
}

/// The rows of a [`Residency`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ResidencyRows {
    /// The files, the largest first.
    #[default]
    Largest,
    /// The files, in the order of the tree.
    InOrder,
    /// The content of the directory, each subdirectory as one row.
    Children,
}

impl Operation for ResidencyRequest {
    const NAME: &'static str = "residency";
    type Event = NoEvent;
    type Answer = Residency;
}

/// The answer to a [`ResidencyRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Residency {
    /// The reference of the kit, with the digest of its manifest.
    pub reference: String,
    /// The path of the file or directory from the kit's root, percent-encoded; symlinks are followed.
    pub path: RawPath,
    /// The sums over all files at `path`, those too that have no row. None in a later part of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<ResidencyTotal>,
    /// The rows.
    pub rows: Vec<ResidencyRow>,
    /// The number of rows behind the last one that the answer leaves out.
    pub left_out: u64,
}

/// Sums over files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ResidencyTotal {
    /// The number of files.
    pub files: u64,
    /// The sizes of the files in bytes, holes included.
    pub bytes: u64,
    /// The bytes that layers store, without holes: the most that can be in the cache.
    pub stored_bytes: u64,
    /// The stored bytes that are in the cache.
    pub resident_bytes: u64,
    /// The resident bytes of layers whose digest was computed and is right.
    pub verified_bytes: u64,
    /// The bytes that are on their way.
    pub fetching_bytes: u64,
    /// The bytes of layers whose digest is wrong: they cannot be read.
    pub bad_bytes: u64,
}

/// A file, or a directory with all files below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ResidencyRow {
    /// The path from the kit's root, percent-encoded.
    pub path: RawPath,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// The sums.
    #[serde(flatten)]
    pub total: ResidencyTotal,
    /// The states of the equal parts of a file, as many as the request asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cells: Vec<Cell>,
    /// The ranges of a file that have a state; the rest is absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<ResidentRange>,
    /// Whether the answer leaves out ranges behind the last one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ranges_are_cut: bool,
    /// Why its content cannot be had: it belongs to a data set that lies elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// The state of one of the equal parts of a file, in percent of its stored bytes. A share between none and one
/// percent is 1, and only a complete part has 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cell {
    /// In the cache.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resident: u8,
    /// In the cache, of a layer whose digest is right.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub verified: u8,
    /// On its way.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fetching: u8,
    /// Of a layer whose digest is wrong.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bad: u8,
    /// Whether the part is a hole: zeros that no layer stores.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hole: bool,
}

fn is_zero(share: &u8) -> bool {
    *share == 0
}

/// A range of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ResidentRange {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
    /// Its state.
    pub state: RangeState,
}

/// The state of a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RangeState {
    /// On its way to the cache.
    Fetching,
    /// In the cache; the digest of its layer is not known before the layer is complete.
    Resident,
    /// In the cache, and the digest of its layer is right.
    Verified,
    /// The digest of its layer is wrong: reads fail.
    Bad,
    /// Zeros that no layer stores.
    Hole,
}
