//! The index of a local store: which manifests a folder holds, and under which names
//! (OCI image-spec, image-layout.md).
//!
//! Tools name a manifest in different ways:
//!
//! | tool | `org.opencontainers.image.ref.name` | `io.containerd.image.name` |
//! | --- | --- | --- |
//! | skopeo, oras, kit's layouts | the text behind the folder: a tag or a whole reference | |
//! | docker save, BuildKit, nerdctl, ctr | the tag | the whole reference |
//!
//! So a manifest is found by its tag and by its whole reference, in either annotation. Pure: bytes in, values out.
//! Malformed digests are refused here, so that file names of entries have hexadecimal digits only.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{MANIFEST_LIMIT_BYTES, SourceError};
use crate::oci::{Digest, Index, Reference, Selector};

/// The annotation that names a manifest in `index.json` (image-spec, annotations.md).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation in which containerd's tools write the whole reference.
pub(super) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The largest `index.json` that is read: the limit of a manifest. It has room for about 15,000 entries; the
/// largest known store of kit has a few hundred.
pub(super) const INDEX_LIMIT_BYTES: u64 = MANIFEST_LIMIT_BYTES;

/// Names that a message lists: enough to see a pattern, few enough for one line.
const MOST_SHOWN: usize = 10;

/// The manifests of a store, in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageIndex {
    /// One entry for each line of the index; a digest may occur with several names.
    pub entries: Vec<StoredEntry>,
}

/// One manifest of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its names; a name may come twice, in two forms.
    pub names: Vec<RefName>,
}

/// A name of a manifest: its tag, and its repository where the store has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RefName {
    /// The repository with its host: `ghcr.io/org/model`.
    pub repository: Option<String>,
    /// The tag.
    pub tag: String,
}

/// Why a name leads to no manifest of a store, in words that follow the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unnamed {
    /// No manifest has the name; the words list the existing names.
    Absent(String),
    /// Several repositories have the tag; the words list them.
    Ambiguous(String),
}

/// A descriptor in kit's `-tags.json`.
#[derive(Deserialize)]
struct WireTagged {
    digest: Digest,
}

impl ImageIndex {
    /// Decodes an image index. `place` is the file, for the message.
    ///
    /// # Errors
    /// [`SourceError::Protocol`] where it is not JSON or a digest is malformed.
    pub fn decode(json: &[u8], place: &str) -> Result<Self, SourceError> {
        let index = Index::decode(json).map_err(|error| malformed(place, &error))?;
        let entries = index.entries.into_iter().map(|entry| {
            let annotations = &entry.descriptor.annotations;
            let names = [REF_NAME, CONTAINERD_NAME];
            let names = names.iter().filter_map(|key| RefName::parse(annotations.get(*key)?));
            StoredEntry { digest: entry.descriptor.digest, names: names.collect() }
        });
        Ok(Self { entries: entries.collect() })
    }

    /// Decodes kit's `-tags.json`, a map from tags to descriptors (modelkit-spec 5.4).
    ///
    /// # Errors
    /// [`SourceError::Protocol`] where it is not JSON or a digest is malformed.
    pub fn decode_tags(json: &[u8], place: &str) -> Result<Self, SourceError> {
        let wire: Option<BTreeMap<String, WireTagged>> =
            serde_json::from_slice(json).map_err(|error| malformed(place, &error))?;
        let entry = |(tag, wire): (String, WireTagged)| StoredEntry {
            digest: wire.digest,
            names: vec![RefName { repository: None, tag }],
        };
        Ok(Self { entries: wire.unwrap_or_default().into_iter().map(entry).collect() })
    }

    /// The manifest with a tag, of `repository` where one is given.
    ///
    /// Without a repository, an entry with the bare tag as its name comes before entries whose whole reference ends
    /// in the tag. Of two equal names the last one counts, because tools append.
    pub(super) fn named(&self, repository: Option<&str>, tag: &str) -> Result<Digest, Unnamed> {
        // One pass over the entries, because an index may have thousands of repositories.
        let mut tagged: BTreeMap<Option<&str>, Digest> = BTreeMap::new();
        for entry in &self.entries {
            for name in entry.names.iter().filter(|name| name.tag == tag) {
                tagged.insert(name.repository.as_deref(), entry.digest);
            }
        }
        if let Some(digest) = tagged.get(&repository) {
            return Ok(*digest);
        }
        let digests: BTreeSet<_> = tagged.values().filter(|_| repository.is_none()).collect();
        match (digests.first(), digests.len()) {
            (Some(digest), 1) => Ok(**digest),
            (None, _) => Err(Unnamed::Absent(self.names_in_words())),
            (Some(_), _) => {
                let names = self.names().into_iter().filter(|name| name.tag == tag).collect();
                Err(Unnamed::Ambiguous(in_words(&names)))
            }
        }
    }

    /// The manifest with a tag, if only one repository has the tag.
    pub fn tagged(&self, tag: &str) -> Option<Digest> {
        self.named(None, tag).ok()
    }

    /// The digest of the only manifest of an index. One digest under several names is one manifest.
    pub(super) fn only(&self) -> Option<Digest> {
        let (first, rest) = self.entries.split_first()?;
        rest.iter().all(|entry| entry.digest == first.digest).then_some(first.digest)
    }

    /// Every tag once, sorted.
    pub fn tags(&self) -> Vec<String> {
        let tags = self.names().into_iter().map(|name| name.tag);
        tags.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Every name once, sorted.
    pub fn names(&self) -> BTreeSet<RefName> {
        self.entries.iter().flat_map(|entry| entry.names.iter().cloned()).collect()
    }

    /// The names for a message: the first ten, and the number of the others.
    pub(super) fn names_in_words(&self) -> String {
        let names = self.names();
        match names.is_empty() {
            true => "it has no tags, so name a digest".to_owned(),
            false => format!("its tags are {}", in_words(&names)),
        }
    }
}

impl RefName {
    /// Parses the text of an annotation; `None` for a text that is no reference.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if Selector::tag(text).is_ok() {
            return Some(Self { repository: None, tag: text.to_owned() });
        }
        let reference = Reference::parse(text).ok()?;
        let Selector::Tag(tag) = reference.selector() else { return None };
        let (repository, _) = text.rsplit_once(':').unwrap_or((text, ""));
        Some(Self { repository: Some(repository.to_owned()), tag: tag.clone() })
    }
}

impl std::fmt::Display for RefName {
    /// Writes the tag, or the whole reference.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.repository {
            Some(repository) => write!(f, "{repository}:{}", self.tag),
            None => f.write_str(&self.tag),
        }
    }
}

fn in_words(names: &BTreeSet<RefName>) -> String {
    let shown: Vec<_> = names.iter().take(MOST_SHOWN).map(ToString::to_string).collect();
    match names.len() {
        count if count <= MOST_SHOWN => shown.join(", "),
        count => format!("{} and {} more", shown.join(", "), count - MOST_SHOWN),
    }
}

fn malformed(place: &str, error: &impl std::fmt::Display) -> SourceError {
    SourceError::Protocol {
        place: place.to_owned(),
        detail: format!("not an image index: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn entry(content: u8, names: &[&str]) -> StoredEntry {
        let names = names.iter().map(|name| RefName::parse(name).unwrap()).collect();
        StoredEntry { digest: Digest::of(&[content]), names }
    }

    fn index(entries: Vec<StoredEntry>) -> ImageIndex {
        ImageIndex { entries }
    }

    #[test]
    fn an_index_without_manifests_is_empty() {
        for json in [r#"{}"#, r#"{"manifests":null}"#, r#"{"manifests":[]}"#] {
            assert_eq!(ImageIndex::decode(json.as_bytes(), "x").unwrap(), ImageIndex::default());
        }
    }

    #[test]
    fn one_digest_with_two_tags_is_still_the_only_manifest() {
        let two = index(vec![entry(1, &["a"]), entry(1, &["b"])]);
        assert_eq!(two.only(), Some(Digest::of(&[1])));
        assert_eq!(index(vec![entry(1, &["a"]), entry(2, &[])]).only(), None);
    }

    #[test]
    fn the_last_of_two_equal_names_counts() {
        for name in ["a", "ghcr.io/x:a"] {
            let two = index(vec![entry(1, &[name]), entry(2, &[name])]);
            assert_eq!(two.tagged("a"), Some(Digest::of(&[2])));
            assert_eq!(two.tags(), ["a"]);
        }
    }

    #[test]
    fn each_tools_names_are_found_by_tag_and_by_whole_reference() {
        let skopeo = json!({REF_NAME: "ghcr.io/org/x:v1"});
        let docker = json!({REF_NAME: "v1", CONTAINERD_NAME: "ghcr.io/org/x:v1"});
        let containerd = json!({CONTAINERD_NAME: "ghcr.io/org/x:v1"});
        let null = json!({REF_NAME: null, CONTAINERD_NAME: "ghcr.io/org/x:v1"});
        for annotations in [skopeo, docker, containerd, null] {
            let json = json!({"manifests": [
                {"digest": Digest::of(&[7]), "annotations": annotations},
                {"digest": Digest::of(&[8]), "annotations": {REF_NAME: "v2"}},
            ]});
            let index = ImageIndex::decode(json.to_string().as_bytes(), "x").unwrap();
            assert_eq!(index.named(None, "v1"), Ok(Digest::of(&[7])), "{json}");
            assert_eq!(index.named(Some("ghcr.io/org/x"), "v1"), Ok(Digest::of(&[7])), "{json}");
            assert!(index.named(Some("ghcr.io/org/y"), "v1").is_err(), "{json}");
            assert!(index.named(Some("ghcr.io/org/x"), "v2").is_err(), "{json}");
        }
    }

    #[test]
    fn a_bare_tag_goes_first_and_else_a_tag_must_be_of_one_kit() {
        let (x, y) = (entry(1, &["ghcr.io/x:v1"]), entry(2, &["ghcr.io/y:v1"]));
        let bare = entry(3, &["v1"]);
        assert_eq!(index(vec![bare, x.clone(), y.clone()]).tagged("v1"), Some(Digest::of(&[3])));
        let same = entry(1, &["docker.io/z:v1"]);
        assert_eq!(index(vec![x.clone(), same]).tagged("v1"), Some(Digest::of(&[1])));
        let Err(Unnamed::Ambiguous(words)) = index(vec![x, y]).named(None, "v1") else {
            panic!("two kits")
        };
        assert_eq!(words, "ghcr.io/x:v1, ghcr.io/y:v1");
    }

    #[test]
    fn names_that_nobody_could_type_are_left_out() {
        for name in ["", "a b", "../x", "\u{1b}[2J", "ghcr.io/X:v1"] {
            assert_eq!(RefName::parse(name), None, "{name}");
        }
        let port = RefName::parse("localhost:5000/x:v1").unwrap();
        assert_eq!(port.repository.as_deref(), Some("localhost:5000/x"));
        assert_eq!(RefName::parse("ghcr.io/org/x").unwrap().to_string(), "ghcr.io/org/x:latest");
    }

    #[test]
    fn a_damaged_index_is_refused_with_the_file() {
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

        /// In a folder with any names, the name that the index displays finds its manifest.
        #[test]
        fn every_name_leads_to_its_manifest(
            names in proptest::collection::vec("([ab]\\.io(:5000)?/[xy]{1,2}(/z)?:)?v[12]", 1..8)
        ) {
            let annotated = |(content, name): (usize, &String)| json!({
                "digest": Digest::of(&[content as u8]), "annotations": {REF_NAME: name},
            });
            let entries: Vec<Value> = names.iter().enumerate().map(annotated).collect();
            let json = json!({"manifests": entries}).to_string();
            let index = ImageIndex::decode(json.as_bytes(), "x").unwrap();
            for (content, text) in names.iter().enumerate() {
                let name = RefName::parse(text).unwrap();
                prop_assert_eq!(&name.to_string(), text);
                let last = names.iter().rposition(|other| other == text).unwrap();
                let found = index.named(name.repository.as_deref(), &name.tag);
                prop_assert_eq!(found, Ok(Digest::of(&[last as u8])), "{} {}", content, text);
            }
        }

        #[test]
        fn tags_survive_the_way_through_json(
            tags in proptest::collection::btree_map("[a-z][a-z0-9._-]{0,8}", any::<u8>(), 0..20)
        ) {
            let wire: BTreeMap<_, _> = tags
                .iter()
                .map(|(tag, content)| (tag, json!({"digest": Digest::of(&[*content])})))
                .collect();
            let index = ImageIndex::decode_tags(&serde_json::to_vec(&wire).unwrap(), "x").unwrap();
            prop_assert_eq!(index.tags(), tags.keys().cloned().collect::<Vec<_>>());
            for (tag, content) in tags {
                prop_assert_eq!(index.tagged(&tag), Some(Digest::of(&[content])));
            }
        }
    }
}
