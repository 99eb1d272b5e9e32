//! The tree of an open kit.

use serde::{Deserialize, Serialize};

use super::KitHandle;
use crate::control::{NoEvent, Operation};
use crate::fs::{percent_decoded, percent_encoded};

impl Operation for ListRequest {
    const NAME: &'static str = "list";
    type Event = NoEvent;
    type Answer = Listing;
}

impl Operation for StatRequest {
    const NAME: &'static str = "stat";
    type Event = NoEvent;
    type Answer = FileStat;
}

impl Operation for ReadRequest {
    const NAME: &'static str = "read";
    type Event = NoEvent;
    type Answer = ();
}

impl Operation for CloneRequest {
    const NAME: &'static str = "clone";
    type Event = NoEvent;
    type Answer = Option<Cloned>;
}

/// Bytes of a path or name that need not be UTF-8; percent-encoded on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(transparent))]
pub struct RawPath(#[cfg_attr(test, schemars(with = "String"))] pub Vec<u8>);

/// The kind of an entry of a kit's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link and its target.
    Symlink(RawPath),
}

/// One entry of a kit's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Entry {
    /// The path from the kit's root, without a leading slash; empty for the root itself.
    pub path: RawPath,
    /// Its kind.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of a file; 0 for others.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime_seconds: i64,
    /// Of a file: the layer that has its bytes, as [`Listing::layers`] numbers them. Files with the same
    /// number are verified together; no number is that of bytes which no digest of a layer covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Of a file: the digest of its content, where the request asks for it and it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Whether the packer has listed the digest, and kitfs has not computed it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub digest_claimed: bool,
    /// Why its content is missing: it belongs to a data set that lies elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Lists entries: those of a directory, or the one that `path` names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// The kit.
    pub kit: KitHandle,
    /// The directory or file, from the kit's root.
    pub path: RawPath,
    /// Everything below it, not only its children.
    #[serde(default)]
    pub recursive: bool,
    /// With the digests of files, where they are known.
    #[serde(default)]
    pub digests: bool,
}

/// The answer to a [`ListRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Listing {
    /// The entry that was asked for.
    pub entry: Entry,
    /// Its children, or all below it, parents before children, siblings by name.
    pub below: Vec<Entry>,
    /// The layers of the kit.
    #[serde(default)]
    pub layers: Vec<ListedLayer>,
    /// Warnings about parts that were passed over.
    pub warnings: Vec<String>,
}

/// A layer of a listed kit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ListedLayer {
    /// Its digest.
    pub digest: String,
    /// `tar`, `raw`, `tar+gzip`, … With the digest, it says which bytes the layer's files have.
    pub encoding: String,
    /// The size of its uncompressed content in bytes.
    pub stream_bytes: u64,
    /// The number of files in its archive, also of those that the kit's tree does not show.
    #[serde(default)]
    pub files: Option<u64>,
}

/// Reads files. Their bytes follow one another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadRequest {
    /// The kit.
    pub kit: KitHandle,
    /// The files, from the kit's root.
    pub paths: Vec<RawPath>,
    /// Of one file: only this part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<FilePart>,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FilePart {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last one: at most [`FilePart::LIMIT_BYTES`] behind the first.
    pub end: u64,
    /// The end of the bytes that the reader wants next: those behind this part come to the cache meanwhile.
    pub ahead_end: u64,
    /// Of the last part of a file that is read as a whole: [`FileStat::replacements`] before its first part. The bytes come
    /// once the digest of the layer is computed, if the layer is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<u64>,
}

impl FilePart {
    /// The longest part, which lies in memory as a whole.
    pub const LIMIT_BYTES: u64 = 4 * 1024 * 1024;
}

/// Looks at one file or directory. Symlinks are followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatRequest {
    /// The kit.
    pub kit: KitHandle,
    /// The path from the kit's root.
    pub path: RawPath,
}

/// The answer to a [`StatRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FileStat {
    /// The entry. Its digest is left out.
    pub entry: Entry,
    /// Of a file: a text that stands for its bytes. It is `sha256:…` where that is the digest of the file by the manifest of
    /// the kit, else the place of the bytes in their layer. Files with the same text have the same bytes.
    pub content_id: Option<String>,
    /// Of a file: how often wrong bytes of its layer were replaced so far.
    pub replacements: u64,
}

/// Has the daemon copy a file of a confirmed layer from its cache into the empty file whose descriptor comes
/// with the request. The answer is `None` where the daemon cannot or must not do so: read the file then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {
    /// The kit.
    pub kit: KitHandle,
    /// The file, from the kit's root.
    pub path: RawPath,
}

/// How a file was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Cloned {
    /// It shares its blocks with the cache (a reflink).
    Shared,
    /// The kernel copied its bytes.
    Copied,
}

impl Serialize for RawPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&percent_encoded(&self.0))
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = percent_decoded(&text);
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("malformed percent-encoding"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_survive_the_wire(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let path = RawPath(bytes);
            let text = serde_json::to_string(&path).unwrap();
            prop_assert_eq!(serde_json::from_str::<RawPath>(&text).unwrap(), path);
        }
    }
}
