//! `index.json` of local stores: which manifests a folder holds, and under which tags
//! (OCI image-spec, image-index.md and image-layout.md).
//!
//! Pure: bytes in, values out. Malformed digests are refused here, so that whoever makes a file
//! name from an entry makes it from hexadecimal digits only.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{MANIFEST_LIMIT_BYTES, SourceError};
use crate::oci::Digest;

/// The annotation that tags a manifest in `index.json` (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Media types of a list of manifests.
const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The largest `index.json` that is read: what a manifest may have. It holds about 15,000
/// entries, and the largest store of kit seen has a few hundred.
pub(super) const INDEX_LIMIT_BYTES: u64 = MANIFEST_LIMIT_BYTES;

/// The manifests of a store, in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageIndex {
    /// One entry for each line of the index; a digest may occur with several tags.
    pub entries: Vec<IndexEntry>,
}

/// One manifest of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its media type; empty where none is written.
    pub media_type: String,
    /// Its tag, where it has one.
    pub tag: Option<String>,
}

/// An image index as written.
#[derive(Deserialize)]
struct WireIndex {
    manifests: Option<Vec<WireEntry>>,
}

/// A descriptor as written; kit's `-tags.json` holds the same.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEntry {
    digest: Digest,
    #[serde(default)]
    media_type: String,
    annotations: Option<BTreeMap<String, String>>,
}

impl ImageIndex {
    /// Decodes an image index. `place` is the file, for the message.
    ///
    /// # Errors
    /// [`SourceError::Protocol`] where it is not JSON or a digest is malformed.
    pub fn decode(json: &[u8], place: &str) -> Result<Self, SourceError> {
        let wire: WireIndex = serde_json::from_slice(json).map_err(|e| malformed(place, &e))?;
        let entry = |wire: WireEntry| IndexEntry {
            digest: wire.digest,
            media_type: wire.media_type,
            tag: wire.annotations.and_then(|mut annotations| annotations.remove(REF_NAME)),
        };
        Ok(Self { entries: wire.manifests.unwrap_or_default().into_iter().map(entry).collect() })
    }

    /// Decodes kit's `-tags.json`, a map from tags to descriptors (modelkit-spec 5.4).
    ///
    /// # Errors
    /// [`SourceError::Protocol`] where it is not JSON or a digest is malformed.
    pub fn decode_tags(json: &[u8], place: &str) -> Result<Self, SourceError> {
        let wire: Option<BTreeMap<String, WireEntry>> =
            serde_json::from_slice(json).map_err(|e| malformed(place, &e))?;
        let entry = |(tag, wire): (String, WireEntry)| IndexEntry {
            digest: wire.digest,
            media_type: wire.media_type,
            tag: Some(tag),
        };
        Ok(Self { entries: wire.unwrap_or_default().into_iter().map(entry).collect() })
    }

    /// The manifest tagged `tag`. Where a tag occurs twice the last one counts, as later tools
    /// append.
    pub fn tagged(&self, tag: &str) -> Option<&IndexEntry> {
        self.entries.iter().rev().find(|entry| entry.tag.as_deref() == Some(tag))
    }

    /// The one manifest of an index that holds no other; the same digest under several tags is
    /// still one.
    pub fn only(&self) -> Option<&IndexEntry> {
        let (first, rest) = self.entries.split_first()?;
        rest.iter().all(|entry| entry.digest == first.digest).then_some(first)
    }

    /// Every tag once, sorted.
    pub fn tags(&self) -> Vec<String> {
        let mut tags: Vec<_> = self.entries.iter().filter_map(|entry| entry.tag.clone()).collect();
        tags.sort();
        tags.dedup();
        tags
    }

    /// The tags as a message lists them: the first ten, and how many more.
    pub fn tags_in_words(&self) -> String {
        const SHOWN: usize = 10; // Enough to see a pattern, few enough for one line.
        let tags = self.tags();
        match tags.len() {
            0 => "it has no tags, so name a digest".to_owned(),
            count if count <= SHOWN => format!("its tags are {}", tags.join(", ")),
            count => {
                format!("its tags are {} and {} more", tags[..SHOWN].join(", "), count - SHOWN)
            }
        }
    }
}

impl IndexEntry {
    /// Whether the entry is itself a list of manifests.
    pub fn is_index(&self) -> bool {
        INDEX_TYPES.contains(&self.media_type.as_str())
    }
}

fn malformed(place: &str, error: &serde_json::Error) -> SourceError {
    SourceError::Protocol {
        place: place.to_owned(),
        detail: format!("not an image index: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(content: u8, tag: Option<&str>) -> IndexEntry {
        IndexEntry {
            digest: Digest::of(&[content]),
            media_type: String::new(),
            tag: tag.map(str::to_owned),
        }
    }

    #[test]
    fn an_index_without_manifests_is_empty() {
        for json in [r#"{}"#, r#"{"manifests":null}"#, r#"{"manifests":[]}"#] {
            assert_eq!(ImageIndex::decode(json.as_bytes(), "x").unwrap(), ImageIndex::default());
        }
    }

    #[test]
    fn one_digest_with_two_tags_is_still_the_only_manifest() {
        let index = ImageIndex { entries: vec![entry(1, Some("a")), entry(1, Some("b"))] };
        assert_eq!(index.only(), Some(&entry(1, Some("a"))));
        let index = ImageIndex { entries: vec![entry(1, Some("a")), entry(2, None)] };
        assert_eq!(index.only(), None);
    }

    #[test]
    fn the_last_of_two_equal_tags_counts() {
        let index = ImageIndex { entries: vec![entry(1, Some("a")), entry(2, Some("a"))] };
        assert_eq!(index.tagged("a").unwrap().digest, Digest::of(&[2]));
        assert_eq!(index.tags(), ["a"]);
    }

    #[test]
    fn digests_that_are_paths_are_refused_with_the_file() {
        let json = br#"{"manifests":[{"digest":"sha256:../../etc/passwd","size":1}]}"#;
        let error = ImageIndex::decode(json, "/srv/kit/index.json").unwrap_err();
        assert!(error.to_string().contains("/srv/kit/index.json"), "{error}");
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ImageIndex::decode(&bytes, "x");
            let _ = ImageIndex::decode_tags(&bytes, "x");
        }

        #[test]
        fn tags_survive_the_way_through_json(
            tags in proptest::collection::btree_map("[a-z][a-z0-9._-]{0,8}", any::<u8>(), 0..20)
        ) {
            let wire: BTreeMap<_, _> = tags
                .iter()
                .map(|(tag, content)| (tag, serde_json::json!({"digest": Digest::of(&[*content])})))
                .collect();
            let index = ImageIndex::decode_tags(&serde_json::to_vec(&wire).unwrap(), "x").unwrap();
            prop_assert_eq!(index.tags(), tags.keys().cloned().collect::<Vec<_>>());
            for (tag, content) in tags {
                prop_assert_eq!(index.tagged(&tag).unwrap().digest, Digest::of(&[content]));
            }
        }
    }
}
