//! Kept layers against a full pack: random folders, packed, changed, and packed again.

use proptest::prelude::*;

use super::super::{IgnoreRules, PackForm, plan};
use super::*;
use crate::kit::AuthoredKitfile;
use crate::layer::MemberPath;
use crate::layer::member_path::tree_order;
use crate::oci::{Encoding, Format};

const TAR: PackForm = PackForm {
    is_model_pack: false,
    encoding: Encoding { format: Format::Tar, compression: Compression::None },
};

/// A folder: the content of each file, by path.
type Files = BTreeMap<String, u8>;

fn entries(files: &Files) -> Vec<FolderEntry> {
    let mut kinds = BTreeMap::new();
    for (path, content) in files {
        for (at, _) in path.bytes().enumerate().filter(|(_, byte)| *byte == b'/') {
            kinds.insert(path[..at].to_owned(), FolderEntryKind::Directory);
        }
        kinds.insert(path.clone(), FolderEntryKind::File(u64::from(*content % 2)));
    }
    let entry = |(path, kind): (String, FolderEntryKind)| FolderEntry {
        path: MemberPath::parse(path.as_bytes()).unwrap(),
        kind,
        mode: if kind == FolderEntryKind::Directory { 0o755 } else { 0o644 },
    };
    let mut entries: Vec<_> = kinds.into_iter().map(entry).collect();
    entries.sort_by(|a, b| tree_order(a.path.as_bytes(), b.path.as_bytes()));
    entries
}

/// The bytes that a full pack would write, as good as: paths, kinds, modes and contents in order.
fn bytes(layer: &PlannedLayer, entries: &[FolderEntry], files: &Files) -> String {
    let member = |&member: &usize| {
        let FolderEntry { path, kind, mode } = &entries[member];
        format!("{path} {kind:?} {mode} {:?}\n", files.get(&path.to_string()))
    };
    layer.members.iter().map(member).collect()
}

fn planned(kitfile: &str, ignore: &str, files: &Files) -> Option<(Vec<FolderEntry>, PackPlan)> {
    let kitfile = AuthoredKitfile::parse(kitfile.as_bytes()).unwrap();
    let rules = IgnoreRules::parse(ignore.as_bytes()).unwrap();
    let entries = entries(files);
    let plan = plan(&kitfile, &[], &rules, &entries, TAR).ok()?;
    Some((entries, plan))
}

/// The kit as a mount shows it.
fn base(entries: &[FolderEntry], plan: &PackPlan, files: &Files) -> (Base, Files) {
    let mut base = Base::default();
    let mut shown = Files::new();
    for layer in &plan.layers {
        let content = bytes(layer, entries, files);
        let digest = Digest::of(content.as_bytes());
        let blob = BlobId { digest, size: content.len() as u64 };
        base.archived.entry(digest).or_default();
        base.layers.push(BaseLayer {
            blob,
            diff_id: DiffId(digest),
            annotations: BTreeMap::new(),
            role: layer.role,
            path: layer.path.clone().into_bytes(),
            media_type: layer.media_type.clone(),
        });
        for &member in &layer.members {
            let FolderEntry { path, kind, mode } = &entries[member];
            match kind {
                FolderEntryKind::File(size) => {
                    *base.archived.entry(digest).or_default() += 1;
                    base.files.insert(path.as_bytes().to_vec(), (*size, digest));
                    shown.insert(path.to_string(), files[&path.to_string()]);
                }
                _ => drop(base.directories.insert(path.as_bytes().to_vec(), *mode)),
            }
        }
    }
    (base, shown)
}

const KITFILES: [&str; 4] = [
    "code: [{path: a}, {path: b}]",
    "code: [{path: .}]\nmodel: {path: a}",
    "docs: [{path: a/b}]\ncode: [{path: a}]",
    "model: {path: b}\ncode: [{path: .}]",
];
const IGNORES: [&str; 4] = ["", "a/b", "*/c", "a/b\n!a/b/a"];

proptest! {
    #[test]
    fn kept_layers_are_those_of_a_full_pack(
        files in prop::collection::btree_map("[abc]{1,2}(/[abc]){0,2}", any::<u8>(), 1..10),
        edits in prop::collection::vec((any::<prop::sample::Index>(), "[abc]{1,2}(/[abc]){0,2}", 0u8..3), 0..3),
        (kitfile, next_kitfile) in (0usize..4, 0usize..4), (ignore, next_ignore) in (0usize..4, 0usize..4),
        is_same in any::<bool>(),
    ) {
        let is_file = |path: &String| !files.keys().any(|other| other.starts_with(&format!("{path}/")));
        let files: Files = files.clone().into_iter().filter(|(path, _)| is_file(path)).collect();
        let Some((before, first)) = planned(KITFILES[kitfile], IGNORES[ignore], &files) else { return Ok(()) };
        let (base, mut shown) = base(&before, &first, &files);
        // A kit with a path in two layers is not mounted as it was packed.
        let packed: Vec<_> = first.layers.iter().flat_map(|layer| &layer.members)
            .filter(|member| before[**member].kind != FolderEntryKind::Directory).collect();
        prop_assume!(packed.iter().collect::<BTreeSet<_>>().len() == packed.len());
        let mut changed = Changed::new();
        for (index, path, kind) in edits {
            let known = shown.keys().nth(index.index(shown.len().max(1))).cloned();
            match (kind, known) {
                (0, Some(known)) => {
                    shown.remove(&known);
                }
                (1, Some(known)) => {
                    *shown.get_mut(&known).unwrap() ^= 4;
                    changed.insert(known.into_bytes());
                }
                _ => {
                    let fits = |other: &String| {
                        !other.starts_with(&format!("{path}/")) && !path.starts_with(&format!("{other}/"))
                    };
                    if shown.keys().all(fits) && !base.directories.contains_key(path.as_bytes()) {
                        shown.insert(path.clone(), 1);
                        changed.insert(path.into_bytes());
                    }
                }
            }
        }
        let (next_kitfile, next_ignore) = match is_same {
            true => (kitfile, ignore),
            false => (next_kitfile, next_ignore),
        };
        let Some((after, second)) = planned(KITFILES[next_kitfile], IGNORES[next_ignore], &shown) else { return Ok(()) };
        let kept = kept_layers(&second, &after, &base, &changed);
        for (layer, kept) in second.layers.iter().zip(&kept) {
            let full = Digest::of(bytes(layer, &after, &shown).as_bytes());
            if let Some(kept) = kept {
                prop_assert_eq!(kept.blob.digest, full, "{:?} {:?}", layer, shown);
            }
        }
        // Without changes everything is kept, but for layers that lose empty directories.
        if is_same && changed.is_empty() && shown.len() == base.files.len() && IGNORES[ignore].is_empty() {
            prop_assert!(kept.iter().all(Option::is_some), "{:?} {:?}", second, shown);
        }
    }
}

#[test]
fn a_changed_mode_of_a_directory_packs_its_layer_anew() {
    let files = Files::from([("a/x".to_owned(), 0), ("b/y".to_owned(), 0)]);
    let (before, plan) = planned(KITFILES[0], "", &files).unwrap();
    let (base, _) = base(&before, &plan, &files);
    let mut after = before.clone();
    after[0].mode = 0o700;
    let kept = kept_layers(&plan, &after, &base, &Changed::new());
    assert!(kept[0].is_none() && kept[1].is_some());
    // The owner's right to write is the view's, and rights of others may be the umask's.
    after[0].mode = 0o777;
    assert!(kept_layers(&plan, &after, &base, &Changed::new())[0].is_some());
}

#[test]
fn a_layer_that_may_hold_a_link_is_packed_anew() {
    let files = Files::from([("a/x".to_owned(), 0), ("b/y".to_owned(), 0)]);
    let (entries, plan) = planned(KITFILES[0], "", &files).unwrap();
    let (mut base, _) = base(&entries, &plan, &files);
    base.symlinks.push(b"a/link".to_vec());
    let kept = kept_layers(&plan, &entries, &base, &Changed::new());
    assert!(kept[0].is_none() && kept[1].is_some());
}

/// A packer may have put a Kitfile into the archive. The mount shows the kit's own Kitfile instead.
#[test]
fn a_layer_with_a_file_that_the_tree_does_not_show_is_packed_anew() {
    let files = Files::from([("a/x".to_owned(), 0), ("b/y".to_owned(), 0)]);
    let (entries, plan) = planned(KITFILES[0], "", &files).unwrap();
    let (mut base, _) = base(&entries, &plan, &files);
    let kept = |base: &Base| {
        let kept = kept_layers(&plan, &entries, base, &Changed::new());
        kept.iter().map(Option::is_some).collect::<Vec<_>>()
    };
    assert_eq!(kept(&base), [true, true]);
    let first = base.layers[0].blob.digest;
    *base.archived.get_mut(&first).unwrap() += 1;
    assert_eq!(kept(&base), [false, true]);
    base.archived.remove(&first);
    assert_eq!(kept(&base), [false, true], "a daemon of an earlier version does not tell");
}

#[test]
fn another_form_role_or_path_keeps_nothing() {
    let files = Files::from([("a".to_owned(), 0)]);
    let (entries, first) = planned("code: [{path: a}]", "", &files).unwrap();
    let (base, _) = base(&entries, &first, &files);
    let changed = Changed::new();
    assert!(kept_layers(&first, &entries, &base, &changed)[0].is_some());
    let (entries, docs) = planned("docs: [{path: a}]", "", &files).unwrap();
    assert!(kept_layers(&docs, &entries, &base, &changed)[0].is_none());
    let kitfile = AuthoredKitfile::parse(b"code: [{path: a}]").unwrap();
    let rules = IgnoreRules::parse(b"").unwrap();
    let form = PackForm { encoding: Encoding::RAW, ..TAR };
    let raw = plan(&kitfile, &[], &rules, &entries, form).unwrap();
    assert!(kept_layers(&raw, &entries, &base, &changed)[0].is_none());
}

#[test]
fn diff_ids_are_those_of_the_entries() {
    let digests: Vec<_> = (0..4u8).map(|it| Digest::of(&[it]).to_string()).collect();
    let config = serde_json::json!({
        "model": {
            "digest": digests[0], "diffId": digests[1],
            "parameters": {"digest": digests[0], "diffId": digests[3]},
            "parts": [{"digest": digests[2], "diffId": digests[3]}],
        },
    });
    let found = diff_ids(config.to_string().as_bytes());
    assert_eq!(found[&Digest::of(&[0])], Digest::of(&[1]));
    assert_eq!(found[&Digest::of(&[2])], Digest::of(&[3]));
    assert!(diff_ids(b"not JSON").is_empty());
}
