//! Tags in the order of time, and what changed between neighbours. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde::Serialize;

use super::FileCounts;
use crate::control::api::{LayerInfo, TagInfo};

/// A version: a manifest, and the tags that point to it. `kitfs log --json` prints a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Version {
    /// The repository, where a folder has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    pub tags: Vec<String>,
    pub digest: String,
    /// Seconds since 1970; `null` without a date in the manifest.
    pub created_seconds: Option<i64>,
    /// The sum of its layers' blobs in bytes.
    pub blob_bytes: u64,
    /// The name in its Kitfile.
    pub name: Option<String>,
    /// Of an index: how many kits can be chosen from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index_entries: Option<u64>,
    /// The differences from the version before it. The first version and indexes have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
    #[serde(skip)]
    layers: Vec<LayerInfo>,
}

/// The differences between two versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Changes {
    /// The digest of the version before.
    pub since: String,
    pub layers: Vec<ChangedLayer>,
    /// The sum of the blobs that the version before does not have, in bytes.
    pub new_bytes: u64,
    /// The files, with `--files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<FileCounts>,
}

/// A layer that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct ChangedLayer {
    pub kind: LayerKind,
    pub role: String,
    pub path: Option<String>,
    pub digest: String,
    pub blob_bytes: u64,
}

/// How a layer differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum LayerKind {
    Added,
    Removed,
    /// Another blob for the same entry of the Kitfile.
    Changed,
}

/// The versions, the newest first, each repository by itself, and the problems of tags that are no kits.
/// Versions without a date come last, in the reverse order of `kits`.
pub(super) fn history(kits: Vec<TagInfo>) -> (Vec<Version>, Vec<String>) {
    let mut problems = Vec::new();
    let mut versions: Vec<Version> = Vec::new();
    let mut known: HashMap<(Option<String>, String), usize> = HashMap::new();
    for kit in kits {
        if let Some(problem) = kit.problem {
            let tag = kit.tag.as_deref().unwrap_or("<none>");
            problems.push(format!("{tag}: {problem}"));
            continue;
        }
        let key = (kit.repository.clone(), kit.digest.clone());
        let position = *known.entry(key).or_insert_with(|| {
            versions.push(Version {
                repository: kit.repository,
                tags: Vec::new(),
                digest: kit.digest,
                created_seconds: kit.created_seconds,
                blob_bytes: kit.blob_bytes,
                name: kit.name,
                index_entries: kit.index_entries,
                changes: None,
                layers: kit.layers,
            });
            versions.len() - 1
        });
        versions[position].tags.extend(kit.tag);
    }
    versions.reverse();
    // Stable: the order of tags decides among equals.
    versions.sort_by_key(|version| (version.repository.clone(), Reverse(version.created_seconds)));
    for newer in 0..versions.len() {
        let is_before = |older: &&Version| {
            older.index_entries.is_none() && older.repository == versions[newer].repository
        };
        let older = versions[newer + 1..].iter().find(is_before);
        if let (Some(older), None) = (older, versions[newer].index_entries) {
            let changes = Changes::between(older, &versions[newer]);
            versions[newer].changes = Some(changes);
        }
    }
    (versions, problems)
}

impl Changes {
    fn between(older: &Version, newer: &Version) -> Self {
        let has = |version: &Version, layer: &LayerInfo| {
            version.layers.iter().any(|other| other.digest == layer.digest)
        };
        let changed = |kind, layer: &LayerInfo| ChangedLayer {
            kind,
            role: layer.role.clone(),
            path: layer.path.clone(),
            digest: layer.digest.clone(),
            blob_bytes: layer.blob_bytes,
        };
        // Layers of the version before that are gone, and have no successor yet.
        let gone = older.layers.iter().filter(|layer| !has(newer, layer));
        let mut gone: Vec<&LayerInfo> = gone.collect();
        let mut layers = Vec::new();
        let mut new_bytes = 0u64;
        for layer in newer.layers.iter().filter(|layer| !has(older, layer)) {
            new_bytes = new_bytes.saturating_add(layer.blob_bytes);
            let is_entry = |old: &&LayerInfo| {
                old.path.is_some() && (&old.role, &old.path) == (&layer.role, &layer.path)
            };
            match gone.iter().position(is_entry) {
                Some(position) => {
                    gone.remove(position);
                    layers.push(changed(LayerKind::Changed, layer));
                }
                None => layers.push(changed(LayerKind::Added, layer)),
            }
        }
        layers.extend(gone.into_iter().map(|layer| changed(LayerKind::Removed, layer)));
        Self { since: older.digest.clone(), layers, new_bytes, files: None }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn kit(tag: &str, number: u8, created_seconds: Option<i64>, layers: &[u8]) -> TagInfo {
        let layers = layers.iter().map(|layer| LayerInfo {
            role: "dataset".to_owned(),
            media_type: String::new(),
            digest: format!("sha256:{layer}"),
            blob_bytes: u64::from(*layer),
            path: Some(format!("data/{}", layer % 3)),
        });
        TagInfo {
            repository: None,
            tag: Some(tag.to_owned()),
            digest: format!("sha256:m{number}"),
            blob_bytes: 1,
            name: None,
            author: None,
            created_seconds,
            layers: layers.collect(),
            index_entries: None,
            problem: None,
        }
    }

    #[test]
    fn tags_of_one_digest_are_one_version_and_the_newest_comes_first() {
        let kits = vec![
            kit("a", 1, None, &[1]),
            kit("latest", 3, Some(30), &[1, 5]),
            kit("v1", 2, Some(20), &[1, 2]),
            kit("v3", 3, Some(30), &[1, 5]),
            kit("z", 4, None, &[]),
        ];
        let (versions, problems) = history(kits);
        let tags: Vec<_> = versions.iter().map(|version| version.tags.join(" ")).collect();
        assert_eq!(tags, ["latest v3", "v1", "z", "a"]);
        assert!(problems.is_empty());
        let newest = versions[0].changes.as_ref().unwrap();
        // 2 and 5 are blobs of one entry.
        assert_eq!((newest.since.as_str(), newest.new_bytes), ("sha256:m2", 5));
        assert_eq!(newest.layers.len(), 1);
        assert_eq!(newest.layers[0].kind, LayerKind::Changed);
        assert_eq!(versions[3].changes, None);
    }

    proptest! {
        #[test]
        fn every_tag_stands_once_and_layers_add_up(
            kits in prop::collection::vec((0..6u8, prop::option::of(0..4i64)), 0..9),
            layers in prop::collection::vec(prop::collection::btree_set(0..9u8, 0..4), 6),
        ) {
            let dates: Vec<_> = kits.iter().map(|(number, date)| (*number, *date)).collect();
            // A manifest has one date.
            let date = |number: u8| dates.iter().find(|it| it.0 == number).and_then(|it| it.1);
            let layers: Vec<Vec<u8>> = layers.into_iter().map(|it| it.into_iter().collect()).collect();
            let tags = kits.iter().enumerate().map(|(at, (number, _))| {
                kit(&format!("t{at}"), *number, date(*number), &layers[*number as usize])
            });
            let (versions, _) = history(tags.collect());
            let told: BTreeSet<_> = versions.iter().flat_map(|version| version.tags.clone()).collect();
            prop_assert_eq!(told.len(), kits.len());
            prop_assert_eq!(versions.iter().map(|it| it.tags.len()).sum::<usize>(), kits.len());
            for pair in versions.windows(2) {
                prop_assert!(pair[0].created_seconds >= pair[1].created_seconds);
                let changes = pair[0].changes.as_ref().unwrap();
                prop_assert_eq!(&changes.since, &pair[1].digest);
                let count = |kind| changes.layers.iter().filter(|it| it.kind == kind).count();
                let (come, gone) = (count(LayerKind::Added), count(LayerKind::Removed));
                prop_assert_eq!(pair[1].layers.len() + come, pair[0].layers.len() + gone);
                let old: BTreeSet<_> = pair[1].layers.iter().map(|it| &it.digest).collect();
                let new = pair[0].layers.iter().filter(|it| !old.contains(&it.digest));
                prop_assert_eq!(changes.new_bytes, new.map(|it| it.blob_bytes).sum::<u64>());
            }
        }
    }
}
