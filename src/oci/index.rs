//! Image indexes (OCI image-spec, image-index.md): documents that name several manifests, and the
//! choice of one of them.
//!
//! ```text
//! entries --without attestations, each digest once--> candidates --labels--> the chosen entry
//! ```
//!
//! Labels choose from a ModelKit index (kit 1.17, modelkit-spec 9.1), as in kit. From any other index only a single
//! candidate is taken: platforms mean nothing to a kit.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::descriptor::{WireAnnotations, carried};
use super::text::escaped;
use super::{ArtifactType, BlobId, Descriptor, Digest, LabelSelector, Labels};

/// The tag by which kit added an entry to a ModelKit index.
const ORIGINAL_TAG: &str = "ml.kitops.modelkit.original-tag";
/// The annotation that marks the attestations of Docker's builder: entries beside an image that are no images.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Entries that a message lists: a screen of them.
const MOST_SHOWN: usize = 20;
/// Characters of a tag, label or platform that a message shows: enough to tell entries apart.
const MOST_SHOWN_CHARACTERS: usize = 200;

/// An image index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// `artifactType`, where the producer wrote one.
    pub artifact_type: Option<String>,
    /// The entries, in the order of the document.
    pub entries: Vec<IndexEntry>,
}

/// The entry of one manifest in an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The manifest, or another index.
    pub descriptor: Descriptor,
    /// `artifactType`, where the producer wrote one.
    pub artifact_type: Option<String>,
    /// The platform, as `OS/ARCHITECTURE[/VARIANT]`.
    pub platform: Option<String>,
    /// The labels of a ModelKit index (`modelMetadata`).
    pub labels: Labels,
}

/// The error where no entry of an index can be taken. The message lists the entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// No entry can be chosen.
    #[error("it is an image index that names no manifest: push the kit again")]
    Empty,
    /// No entry has the labels that were asked for.
    #[error("no ModelKit of the index has {wanted}. The index has:\n{entries}")]
    NoMatch {
        /// The labels that were asked for.
        wanted: LabelSelector,
        /// The entries, a line each.
        entries: String,
    },
    /// Several entries are left.
    #[error("{what}: {how}. {}:\n{entries}", if *.is_narrowed { "They are" } else { "The index has" })]
    Several {
        /// The subject of the message, with the number of entries.
        what: String,
        /// The advice to choose one.
        how: &'static str,
        /// Whether labels have already removed others.
        is_narrowed: bool,
        /// The entries, a line each.
        entries: String,
    },
    /// Labels were given for an index that has none.
    #[error(
        "it is an image index of another kind, and labels choose from ModelKit indexes only: \
         leave --label out, or name a manifest by its digest (REPOSITORY@sha256:…). The index has:\n{0}"
    )]
    NoLabels(String),
    /// Labels were given for a document that is no index.
    #[error("it is a single kit, and labels choose from an index: leave --label out")]
    NotAnIndex,
    /// An index in an index in an index …
    #[error("it has more than {0} image indexes inside one another: name a manifest by its digest")]
    TooDeep(usize),
}

const BY_DIGEST: &str = "name the one to use by its digest (REPOSITORY@sha256:…)";
const BY_LABEL: &str =
    "choose one with --label KEY=VALUE, or name it by its digest (REPOSITORY@sha256:…)";
const BY_MORE_LABELS: &str =
    "add labels until one is left, or name it by its digest (REPOSITORY@sha256:…)";

impl Index {
    /// Whether it is a ModelKit index, as `kit index` makes it.
    pub fn is_of_modelkits(&self) -> bool {
        self.artifact_type.as_deref().and_then(ArtifactType::parse)
            == Some(ArtifactType::ModelKitIndex)
    }

    /// The entries that can be chosen: each digest once, without attestations.
    pub fn candidates(&self) -> Vec<&IndexEntry> {
        let mut seen = HashSet::new();
        let entries = self.entries.iter().filter(|entry| !entry.is_attestation());
        entries.filter(|entry| seen.insert(entry.descriptor.digest)).collect()
    }

    /// The one entry that has all of `labels`; a single entry needs none.
    ///
    /// # Errors
    /// Fails where none or several are left, or labels are given for an index without labels.
    pub fn choose(&self, labels: &LabelSelector) -> Result<&IndexEntry, ChoiceError> {
        let candidates = self.candidates();
        if candidates.is_empty() {
            return Err(ChoiceError::Empty);
        }
        if !labels.is_empty() && !self.is_of_modelkits() {
            return Err(ChoiceError::NoLabels(listed(&candidates)));
        }
        let is_match = |entry: &&&IndexEntry| labels.matches(&entry.labels);
        let matching: Vec<_> = candidates.iter().filter(is_match).copied().collect();
        match matching.as_slice() {
            [one] => Ok(one),
            [] => {
                let (wanted, entries) = (labels.clone(), listed(&candidates));
                Err(ChoiceError::NoMatch { wanted, entries })
            }
            several => Err(self.several(several, labels)),
        }
    }

    fn several(&self, entries: &[&IndexEntry], labels: &LabelSelector) -> ChoiceError {
        let (count, is_narrowed) = (entries.len(), !labels.is_empty());
        let (what, how) = match (self.is_of_modelkits(), is_narrowed) {
            (false, _) => (format!("it is an image index of {count} manifests"), BY_DIGEST),
            (true, false) => (format!("it is an index of {count} ModelKits"), BY_LABEL),
            (true, true) => {
                (format!("{count} ModelKits of the index have {labels}"), BY_MORE_LABELS)
            }
        };
        ChoiceError::Several { what, how, is_narrowed, entries: listed(entries) }
    }
}

impl IndexEntry {
    /// The tag by which kit added the ModelKit to the index.
    pub fn original_tag(&self) -> Option<&str> {
        self.descriptor.annotations.get(ORIGINAL_TAG).map(String::as_str)
    }

    /// Whether the entry is an attestation: BuildKit puts these beside an image.
    fn is_attestation(&self) -> bool {
        let kind = self.descriptor.annotations.get(REFERENCE_TYPE);
        kind.is_some_and(|kind| kind == "attestation-manifest")
            || self.platform.as_deref() == Some("unknown/unknown")
    }
}

/// Entries as a message lists them: a line for each, with the whole digest, which can be pasted.
fn listed(entries: &[&IndexEntry]) -> String {
    let mut lines: Vec<_> =
        entries.iter().take(MOST_SHOWN).map(|entry| format!("  {entry}")).collect();
    if entries.len() > MOST_SHOWN {
        lines.push(format!("  and {} more", entries.len() - MOST_SHOWN));
    }
    lines.join("\n")
}

impl fmt::Display for IndexEntry {
    /// Writes the digest and what tells the entry from others: its tag, platform, type, labels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| escaped(text, MOST_SHOWN_CHARACTERS);
        write!(f, "{}", self.descriptor.digest)?;
        let labels = (!self.labels.is_empty()).then(|| self.labels.to_string());
        let artifact_type = self.artifact_type.as_deref().filter(|_| labels.is_none());
        let facts =
            [self.original_tag(), self.platform.as_deref(), artifact_type, labels.as_deref()];
        facts.into_iter().flatten().try_for_each(|fact| write!(f, "  {}", shown(fact)))
    }
}

/// An entry as it is on the wire.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a descriptor")]
pub(super) struct WireEntry {
    media_type: Option<String>,
    digest: Digest,
    #[serde(default)]
    size: u64,
    annotations: Option<WireAnnotations>,
    data: Option<Value>,
    artifact_type: Option<String>,
    platform: Option<Value>,
    #[serde(default)]
    model_metadata: Labels,
}

impl From<WireEntry> for IndexEntry {
    fn from(wire: WireEntry) -> Self {
        let blob = BlobId { digest: wire.digest, size: wire.size };
        Self {
            descriptor: Descriptor {
                media_type: wire.media_type.unwrap_or_default(),
                digest: wire.digest,
                size: wire.size,
                annotations: wire.annotations.unwrap_or_default().0,
                data: carried(wire.data.as_ref(), blob),
            },
            artifact_type: wire.artifact_type.filter(|artifact_type| !artifact_type.is_empty()),
            platform: wire.platform.as_ref().and_then(platform),
            labels: wire.model_metadata,
        }
    }
}

/// A platform as Docker's tools write it; `None` for an object that names none.
fn platform(wire: &Value) -> Option<String> {
    let part = |key: &str| wire.get(key).and_then(Value::as_str).filter(|part| !part.is_empty());
    let (os, architecture) = (part("os")?, part("architecture")?);
    Some(match part("variant") {
        Some(variant) => format!("{os}/{architecture}/{variant}"),
        None => format!("{os}/{architecture}"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const KIT_INDEX: &str = "application/vnd.kitops.modelkit.index.v1+json";

    fn index(artifact_type: Option<&str>, entries: Value) -> Index {
        let wire = json!({"schemaVersion": 2, "artifactType": artifact_type, "manifests": entries});
        Index::decode(wire.to_string().as_bytes()).unwrap()
    }

    fn entry(content: &str, extra: Value) -> Value {
        let mut wire = json!({"mediaType": "a/b", "digest": Digest::of(content.as_bytes())});
        for (key, value) in extra.as_object().unwrap() {
            wire[key] = value.clone();
        }
        wire
    }

    fn selector(texts: &[&str]) -> LabelSelector {
        LabelSelector::parse(texts).unwrap()
    }

    fn of_kits() -> Index {
        let labelled = |name: &str, labels: Value| {
            let tag = json!({ORIGINAL_TAG: name});
            entry(name, json!({"annotations": tag, "modelMetadata": labels}))
        };
        index(
            Some(KIT_INDEX),
            json!([
                labelled("q4_0", json!({"quantization": "q4_0", "vram": 6, "archs": ["a", "b"]})),
                labelled("q8_0", json!({"quantization": "q8_0", "vram": 6})),
            ]),
        )
    }

    #[test]
    fn a_modelkit_is_chosen_by_its_labels() {
        let index = of_kits();
        for (labels, tag) in [
            (vec!["quantization=q8_0"], "q8_0"),
            (vec!["vram=6", "quantization=q4_0"], "q4_0"),
            (vec![r#"archs=["a","b"]"#], "q4_0"),
        ] {
            let chosen = index.choose(&selector(&labels)).unwrap();
            assert_eq!(chosen.original_tag(), Some(tag), "{labels:?}");
        }
    }

    #[test]
    fn none_or_several_are_an_error_that_lists_what_there_is() {
        let index = of_kits();
        for (labels, words) in [
            (vec![], vec!["index of 2 ModelKits", "--label", "@sha256:", "q4_0", "q8_0"]),
            (vec!["vram=6"], vec!["2 ModelKits of the index have vram=6", "add labels", "q8_0"]),
            (vec!["vram=7"], vec!["no ModelKit of the index has vram=7", "quantization=q4_0"]),
        ] {
            let error = index.choose(&selector(&labels)).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{word}: {error}");
            }
            let digest = Digest::of(b"q4_0").to_string();
            assert!(error.contains(&digest), "a digest that can be pasted: {error}");
        }
        assert_eq!(index_of_nothing().choose(&selector(&[])), Err(ChoiceError::Empty));
    }

    fn index_of_nothing() -> Index {
        index(Some(KIT_INDEX), Value::Null)
    }

    #[test]
    fn a_single_entry_needs_no_label_in_any_index() {
        for kind in [Some(KIT_INDEX), None, Some("other/type")] {
            let index = index(kind, json!([entry("a", json!({})), entry("a", json!({}))]));
            let chosen = index.choose(&selector(&[])).unwrap();
            assert_eq!(chosen.descriptor.digest, Digest::of(b"a"));
        }
    }

    #[test]
    fn labels_choose_from_modelkit_indexes_only() {
        let index = index(None, json!([entry("a", json!({"modelMetadata": {"x": "1"}}))]));
        let error = index.choose(&selector(&["x=1"])).unwrap_err();
        assert!(matches!(error, ChoiceError::NoLabels(_)), "{error}");
    }

    #[test]
    fn statements_about_an_image_are_no_candidates() {
        let unknown = json!({"os": "unknown", "architecture": "unknown"});
        let marked = json!({"annotations": {REFERENCE_TYPE: "attestation-manifest"}});
        let index = index(
            None,
            json!([
                entry("kit", json!({"platform": {"os": "linux", "architecture": "amd64"}})),
                entry("attestation", json!({"platform": unknown})),
                entry("attestation 2", marked),
            ]),
        );
        let chosen = index.choose(&selector(&[])).unwrap();
        assert_eq!(chosen.descriptor.digest, Digest::of(b"kit"));
        assert_eq!(chosen.platform.as_deref(), Some("linux/amd64"));
    }

    #[test]
    fn other_indexes_list_digests_and_platforms() {
        let arm = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
        let index = index(
            None,
            json!([
                entry("a", json!({"platform": arm, "artifactType": "x/y"})),
                entry("b", json!({"platform": {"architecture": "no os"}})),
            ]),
        );
        let error = index.choose(&selector(&[])).unwrap_err().to_string();
        let line = format!("{}  linux/arm64/v8  x/y", Digest::of(b"a"));
        assert!(error.contains(&line) && error.contains("by its digest"), "{error}");
        assert!(!error.contains("--label"), "advice that cannot help: {error}");
    }

    #[test]
    fn long_indexes_and_hostile_texts_make_short_and_harmless_messages() {
        let entries: Vec<_> = (0..1000)
            .map(|n| entry(&n.to_string(), json!({"artifactType": "\u{1b}[2J".repeat(1000)})))
            .collect();
        let error = index(None, json!(entries)).choose(&selector(&[])).unwrap_err().to_string();
        assert!(error.contains("and 980 more") && error.len() < 30_000, "{}", error.len());
        assert!(!error.contains('\u{1b}'));
    }

    #[test]
    fn a_manifest_that_an_entry_carries_is_taken_if_it_is_the_one() {
        let carried = |data: &str, size: usize| {
            let index = index(None, json!([entry("{}", json!({"data": data, "size": size}))]));
            index.entries[0].descriptor.data.clone()
        };
        assert_eq!(carried("e30=", 2).as_deref(), Some(b"{}".as_slice()));
        assert_eq!([carried("e30=", 3), carried("e31=", 2), carried("%", 2)], [None, None, None]);
    }

    #[test]
    fn digests_that_are_paths_are_refused() {
        let json = br#"{"manifests":[{"digest":"sha256:../../etc/passwd","size":1}]}"#;
        assert!(Index::decode(json).is_err());
    }

    proptest! {
        /// The chosen entry has all labels, and no other entry has them.
        #[test]
        fn a_choice_is_the_only_match(
            kits in prop::collection::vec((0u8..3, 0u8..3), 0..6),
            a in prop::option::of(0u8..3), b in prop::option::of(0u8..3),
        ) {
            let entries: Vec<_> = kits.iter().enumerate().map(|(n, (a, b))| {
                entry(&n.to_string(), json!({"modelMetadata": {"a": a, "b": b}}))
            }).collect();
            let wanted: Vec<_> =
                [a.map(|a| format!("a={a}")), b.map(|b| format!("b={b}"))].into_iter().flatten().collect();
            let matches: Vec<_> = kits.iter().enumerate()
                .filter(|(_, kit)| a.is_none_or(|a| a == kit.0) && b.is_none_or(|b| b == kit.1))
                .collect();
            let index = index(Some(KIT_INDEX), json!(entries));
            let chosen = index.choose(&LabelSelector::parse(&wanted).unwrap());
            match (matches.as_slice(), chosen) {
                ([(n, _)], Ok(entry)) => {
                    prop_assert_eq!(entry.descriptor.digest, Digest::of(n.to_string().as_bytes()));
                }
                (_, Ok(entry)) => prop_assert!(false, "{entry} of {}", matches.len()),
                (matches, Err(_)) => prop_assert_ne!(matches.len(), 1),
            }
        }
    }
}
