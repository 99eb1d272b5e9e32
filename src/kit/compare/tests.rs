//! Comparisons against maps of paths, and hostile lists of digests.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::super::tree::TreeLayer;
use super::super::{FileDigest, Placement};
use super::*;
use crate::layer::{Member, MemberKind, Mtime, StreamOffset, Toc};

/// A file of a model: its content, its mode, and the layer that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    content: Vec<u8>,
    mode: u32,
    layer: usize,
}

/// A version as a map, and the layers whose packer has listed digests.
#[derive(Clone, Debug, Default)]
struct Model {
    files: BTreeMap<&'static str, File>,
    listed: Vec<bool>,
}

/// A version as kitfs knows it.
struct Built {
    tree: Tree,
    layers: Vec<LayerFiles>,
}

impl Built {
    fn version(&self) -> Version<'_> {
        Version { tree: &self.tree, layers: &self.layers }
    }
}

const LAYERS: usize = 3;
const TAR: Placement = Placement::Tar { below: None };

fn path(text: &str) -> MemberPath {
    MemberPath::parse(text.as_bytes()).unwrap()
}

fn build(model: &Model) -> Built {
    let mut tocs = Vec::new();
    let mut layers = Vec::new();
    for number in 0..LAYERS {
        let files = model.files.iter().filter(|(_, file)| file.layer == number);
        let (mut members, mut blob, mut claims) = (Vec::new(), Vec::new(), Vec::new());
        for (name, file) in files {
            let bytes = file.content.len() as u64;
            let extents = Extents::contiguous(StreamOffset(blob.len() as u64).range(bytes));
            blob.extend(format!("{name} {:o} {:?};", file.mode, file.content).into_bytes());
            let (path, mode) = (path(name), file.mode);
            let digest = Digest::of(&file.content);
            claims.push(FileDigest { path: path.clone(), size: bytes, digest });
            let kind = MemberKind::File(extents);
            members.push(Member { path: Some(path), kind, mode, mtime: None, is_replaced: false });
        }
        let is_listed = model.listed.get(number).copied().unwrap_or(false);
        let encoding = Encoding { format: crate::oci::Format::Tar, ..Encoding::RAW };
        let claims = is_listed.then(|| FileDigests::new(claims));
        layers.push(LayerFiles { digest: Digest::of(&blob), encoding, claims });
        tocs.push(Toc { members, stream_bytes: 1 << 40, warnings: Vec::new() });
    }
    let merged = tocs.iter().zip(&layers).enumerate();
    let merged = merged.map(|(index, (toc, layer))| TreeLayer {
        index: index as u32,
        digest: layer.digest,
        name: "layer",
        placement: &TAR,
        toc,
        mtime: Mtime::EARLIEST,
    });
    let merged: Vec<_> = merged.collect();
    let tree = Tree::merge(&merged, None::<Bytes>, Mtime::EARLIEST, 0).unwrap();
    assert_eq!(LayerFiles::check(&mut layers, &tree), []);
    Built { tree, layers }
}

fn all(before: &Built, after: &Built) -> Compared {
    compare(before.version(), after.version(), (Some(Tree::ROOT), Some(Tree::ROOT)))
}

/// A change with paths: those of files only.
type Named = (ChangeKind, Option<String>, Option<String>);

fn named(compared: &Compared, before: &Built, after: &Built) -> Vec<Named> {
    let name = |tree: &Tree, node| String::from_utf8(tree.path(node)).unwrap();
    let changes = compared.changes.iter().map(|change| {
        let old = change.before.map(|node| name(&before.tree, node));
        (change.kind, old, change.after.map(|node| name(&after.tree, node)))
    });
    changes.collect()
}

fn model() -> impl Strategy<Value = Model> {
    // `a` and `a/b` make one a file and the other a directory in some pairs of versions.
    let names = ["a", "a/b", "c", "d/a", "d/c", "d/e/a", "f/g"];
    let file = ("[xy]{0,2}", prop::sample::select(vec![0o644, 0o755]), 0..LAYERS);
    let files = prop::collection::btree_map(prop::sample::select(names.to_vec()), file, 0..7);
    (files, prop::collection::vec(any::<bool>(), LAYERS)).prop_map(|(files, listed)| {
        let files = files.into_iter().map(|(name, (content, mode, layer))| {
            (name, File { content: content.into_bytes(), mode, layer })
        });
        let mut files: BTreeMap<_, _> = files.collect();
        if files.contains_key("a/b") {
            files.remove("a");
        }
        Model { files, listed }
    })
}

proptest! {
    #[test]
    fn a_comparison_agrees_with_two_maps_of_paths(before in model(), after in model()) {
        let (old, new) = (build(&before), build(&after));
        let compared = all(&old, &new);
        let changes = named(&compared, &old, &new);
        let content = |model: &Model, path: &str| model.files[path].content.clone();
        let mut told_before = BTreeSet::new();
        let mut told_after = BTreeSet::new();
        for (kind, from, to) in &changes {
            if let Some(path) = from {
                prop_assert!(told_before.insert(path.clone()), "{path} twice");
            }
            if let Some(path) = to {
                prop_assert!(told_after.insert(path.clone()), "{path} twice");
            }
            match (kind, from, to) {
                (ChangeKind::Added, None, Some(path)) => {
                    prop_assert!(!before.files.contains_key(path.as_str()));
                }
                (ChangeKind::Removed, Some(path), None) => {
                    prop_assert!(!after.files.contains_key(path.as_str()));
                }
                (ChangeKind::Renamed, Some(from), Some(to)) => {
                    prop_assert_eq!(content(&before, from), content(&after, to));
                    prop_assert!(!after.files.contains_key(from.as_str()));
                    prop_assert!(!before.files.contains_key(to.as_str()));
                }
                (ChangeKind::Changed, Some(from), Some(to)) => {
                    prop_assert_eq!(from, to);
                    prop_assert_ne!(content(&before, from), content(&after, to));
                }
                (ChangeKind::Mode, Some(from), Some(to)) => {
                    prop_assert_eq!(from, to);
                    prop_assert_eq!(content(&before, from), content(&after, to));
                }
                (ChangeKind::Maybe, Some(from), Some(to)) => {
                    prop_assert_eq!(from, to);
                    let (old, new) = (content(&before, from), content(&after, to));
                    prop_assert_eq!(old.len(), new.len());
                    let is_listed = |model: &Model, path: &str| model.listed[model.files[path].layer];
                    prop_assert!(!is_listed(&before, from) || !is_listed(&after, to));
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        // A path that no change names is the same in both.
        let mut same = 0;
        for (path, file) in &before.files {
            if !told_before.contains(*path) {
                let other = after.files.get(path);
                prop_assert!(other.is_some_and(|other| {
                    other.content == file.content && other.mode == file.mode
                }), "{path} is not told");
                same += 1;
            }
        }
        for path in after.files.keys() {
            prop_assert!(told_after.contains(*path) || before.files.contains_key(path));
        }
        prop_assert_eq!(compared.same, same);
    }

    #[test]
    fn with_all_digests_listed_nothing_is_left_open(before in model(), after in model()) {
        let listed = vec![true; LAYERS];
        let (before, after) = (Model { listed: listed.clone(), ..before }, Model { listed, ..after });
        let (old, new) = (build(&before), build(&after));
        let changes = named(&all(&old, &new), &old, &new);
        let mut gone = BTreeSet::new();
        let mut come = BTreeSet::new();
        for (kind, from, to) in changes {
            prop_assert_ne!(kind, ChangeKind::Maybe);
            match (kind, from, to) {
                (ChangeKind::Removed, Some(path), _) => {
                    gone.insert(before.files[path.as_str()].content.clone());
                }
                (ChangeKind::Added, _, Some(path)) => {
                    come.insert(after.files[path.as_str()].content.clone());
                }
                _ => {}
            }
        }
        // A file that went and came with the same content is one rename.
        gone.remove(&Vec::new());
        prop_assert!(gone.is_disjoint(&come));
    }

    #[test]
    fn a_comparison_is_the_mirror_of_the_other_direction(before in model(), after in model()) {
        let (old, new) = (build(&before), build(&after));
        let there: BTreeSet<_> = named(&all(&old, &new), &old, &new).into_iter().collect();
        let back = named(&all(&new, &old), &new, &old).into_iter();
        let back = back.map(|(kind, from, to)| match kind {
            ChangeKind::Added => (ChangeKind::Removed, to, from),
            ChangeKind::Removed => (ChangeKind::Added, to, from),
            kind => (kind, to, from),
        });
        prop_assert_eq!(there, back.collect());
    }

    #[test]
    fn a_kit_does_not_differ_from_itself(model in model()) {
        let (one, other) = (build(&model), build(&model));
        let compared = all(&one, &other);
        prop_assert_eq!(compared.changes, []);
        prop_assert_eq!(compared.same, model.files.len() as u64);
        prop_assert_eq!(compared.claimed_same, 0);
    }

    #[test]
    fn a_list_of_digests_that_contradicts_its_layer_is_dropped(
        model in model(),
        which in any::<prop::sample::Index>(),
        fault in 0..3,
    ) {
        prop_assume!(!model.files.is_empty());
        let mut built = build(&Model { listed: vec![true; LAYERS], ..model.clone() });
        let (name, file) = which.get(&model.files.iter().collect::<Vec<_>>()).to_owned();
        let number = file.layer;
        let claims: Vec<_> = built.layers[number].claims.iter().flat_map(FileDigests::iter).cloned().collect();
        let digest = Digest::of(b"");
        let wrong = claims.into_iter().filter_map(|claim| match (claim.path == path(name), fault) {
            (false, _) => Some(claim),
            (true, 0) => None,
            (true, 1) => Some(FileDigest { size: claim.size + 1, ..claim }),
            (true, _) => Some(FileDigest { path: path("elsewhere"), ..claim }),
        });
        let wrong: Vec<_> = wrong.chain((fault == 2).then(|| FileDigest { path: path("z"), size: 1, digest })).collect();
        built.layers[number].claims = Some(FileDigests::new(wrong));
        let told = LayerFiles::check(&mut built.layers, &built.tree);
        prop_assert_eq!(told.len(), 1);
        prop_assert_eq!(told[0].0, number);
        for (other, layer) in built.layers.iter().enumerate() {
            prop_assert_eq!(layer.claims.is_some(), other != number);
        }
    }
}

#[test]
fn a_file_in_the_place_of_a_directory_is_added_and_the_directory_removed() {
    let file = |content: &[u8]| File { content: content.to_vec(), mode: 0o644, layer: 0 };
    let with = |name, content| Model {
        files: BTreeMap::from([(name, file(content))]),
        listed: vec![false; LAYERS],
    };
    let (old, new) = (build(&with("a/b", b"x")), build(&with("a", b"y")));
    let changes = named(&all(&old, &new), &old, &new);
    let expected = [
        (ChangeKind::Removed, Some("a/b".to_owned()), None),
        (ChangeKind::Added, None, Some("a".to_owned())),
    ];
    assert_eq!(changes, expected);
}

#[test]
fn a_file_that_is_a_layer_of_its_own_is_known_by_the_layers_digest() {
    let raw = Placement::Raw { path: path("m"), mode: 0o644, mtime: None, size: None };
    let version = |content: &[u8]| {
        let extents = Extents::contiguous(StreamOffset(0).range(content.len() as u64));
        let kind = MemberKind::File(extents);
        let member = Member { path: None, kind, mode: 0o644, mtime: None, is_replaced: false };
        let toc = Toc { members: vec![member], stream_bytes: 3, warnings: Vec::new() };
        let digest = Digest::of(content);
        let layer = TreeLayer {
            index: 0,
            digest,
            name: "layer",
            placement: &raw,
            toc: &toc,
            mtime: Mtime::EARLIEST,
        };
        let tree = Tree::merge(&[layer], None::<Bytes>, Mtime::EARLIEST, 0).unwrap();
        let layers = vec![LayerFiles { digest, encoding: Encoding::RAW, claims: None }];
        Built { tree, layers }
    };
    let (one, two) = (version(b"one"), version(b"two"));
    let known = KnownDigest { digest: Digest::of(b"one"), is_claimed: false };
    assert_eq!(one.version().digest(NodeId(1)), Some(known));
    let compared = all(&one, &two);
    assert_eq!(compared.changes.len(), 1);
    assert_eq!(compared.changes[0].kind, ChangeKind::Changed);
    assert!(!compared.changes[0].is_claimed);
}
