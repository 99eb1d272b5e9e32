//! Two versions of a kit, compared: `kitfs diff`.

use serde::{Deserialize, Serialize};

use super::{EntryKind, KitRequest, OpenProgress, PassProgress, RawPath};
use crate::control::Operation;

/// Compares two kits. Without `content`, only the bytes that open the kits are fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareRequest {
    /// The earlier version.
    pub before: KitRequest,
    /// The later version.
    pub after: KitRequest,
    /// The file or directory to compare; empty for the whole kits.
    #[serde(default)]
    pub path: RawPath,
    /// Compare the bytes of files whose digests are not known.
    #[serde(default)]
    pub content: bool,
}

impl Operation for CompareRequest {
    const NAME: &'static str = "compare";
    type Event = CompareEvent;
    type Answer = Comparison;

    fn has_paths(&self) -> bool {
        self.before.has_paths() || self.after.has_paths()
    }
}

/// The progress of a comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompareEvent {
    /// A kit is being opened.
    Opening(OpenProgress),
    /// Bytes of files are being compared.
    Comparing(PassProgress),
}

/// The outcome of a comparison. `kitfs diff --json` prints it: fields may be added, and none changes its
/// meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Comparison {
    /// The earlier version.
    pub before: ComparedVersion,
    /// The later version.
    pub after: ComparedVersion,
    /// The files that differ, in the order of their paths.
    pub changes: Vec<FileChange>,
    /// The number of files and symlinks that are the same.
    pub same_files: u64,
    /// The number of them that are the same only by digests which the packer has listed.
    pub claimed_same_files: u64,
    /// The layers of both versions: those of the later one in its order, then those that are gone.
    pub layers: Vec<LayerChange>,
    /// The bytes of a switch from the earlier to the later version.
    pub switch: Switch,
    /// Warnings about the kits.
    pub warnings: Vec<String>,
    /// Files and directories that could not be compared, because their data cannot be fetched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<RawPath>,
}

/// One of the versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ComparedVersion {
    /// The reference as the user typed it.
    pub reference: String,
    /// The digest of the manifest.
    pub digest: String,
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileChangeKind {
    /// Only the later version has it.
    Added,
    /// Only the earlier version has it.
    Removed,
    /// The content differs, or one is a file and the other a symlink.
    Changed,
    /// The same content at another path.
    Renamed,
    /// The same content with other permission bits.
    Mode,
    /// The content may differ: no digest decides.
    Maybe,
}

/// A file that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FileChange {
    /// The kind.
    pub kind: FileChangeKind,
    /// The path: that in the later version, where it is there.
    pub path: RawPath,
    /// The path in the earlier version, of a renamed file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<RawPath>,
    /// The file in the earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<ComparedFile>,
    /// The file in the later version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ComparedFile>,
    /// Whether the verdict rests on a digest that the packer has listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claimed: bool,
}

/// A file of one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ComparedFile {
    /// `file`, `directory` or a symlink.
    pub kind: EntryKind,
    /// Its size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// The modification time, in seconds since 1970.
    pub mtime_seconds: i64,
    /// The digest of the content, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Whether the packer has listed the digest, and kitfs has not computed it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub digest_claimed: bool,
}

/// Which of the versions has a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LayerChangeKind {
    /// Both.
    Same,
    /// The later one.
    Added,
    /// The earlier one.
    Removed,
}

/// A layer of the versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LayerChange {
    /// Which versions have it.
    pub kind: LayerChangeKind,
    /// Its digest.
    pub digest: String,
    /// Its name in messages.
    pub name: String,
    /// The size of the blob in bytes.
    pub blob_bytes: u64,
    /// The bytes of it that the cache lacked when the command began; 0 for a removed layer.
    pub missing_bytes: u64,
}

/// The bytes of a switch from one version to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Switch {
    /// The size of the layers that the earlier version does not have: the most bytes that a switch fetches
    /// where all of the earlier version is cached.
    pub new_bytes: u64,
    /// The bytes of the later version that the cache lacked when the command began.
    pub missing_bytes: u64,
    /// The part of them that the comparison itself has fetched.
    pub fetched_bytes: u64,
}
