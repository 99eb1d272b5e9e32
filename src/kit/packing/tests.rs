//! Plans against a slow model that walks as kit does, and kit's quirks one by one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TAR: PackForm = PackForm {
    is_model_pack: false,
    encoding: Encoding { format: Format::Tar, compression: Compression::None },
};

/// A folder of these files, with their parent directories. A name with `@` at its end is a link.
fn folder<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<FolderEntry> {
    let mut entries: BTreeMap<Vec<u8>, FolderEntryKind> = BTreeMap::new();
    for path in paths {
        let (path, kind) = match path.strip_suffix('@') {
            Some(path) => (path, FolderEntryKind::Symlink),
            None => (path, FolderEntryKind::File(1)),
        };
        for (at, _) in path.bytes().enumerate().filter(|(_, byte)| *byte == b'/') {
            entries.insert(path.as_bytes()[..at].to_vec(), FolderEntryKind::Directory);
        }
        entries.entry(path.as_bytes().to_vec()).or_insert(kind);
    }
    let entry = |(path, kind): (Vec<u8>, FolderEntryKind)| FolderEntry {
        path: MemberPath::parse(&path).unwrap(),
        kind,
        mode: 0o644,
    };
    let mut entries: Vec<_> = entries.into_iter().map(entry).collect();
    entries.sort_by(|a, b| tree_order(a.path.as_bytes(), b.path.as_bytes()));
    // Nothing lies below a file or a link.
    let mut last: Option<Vec<u8>> = None;
    entries.retain(|entry| {
        if last.as_ref().is_some_and(|last| is_below(entry.path.as_bytes(), last)) {
            return false;
        }
        if entry.kind != FolderEntryKind::Directory {
            last = Some(entry.path.as_bytes().to_vec());
        }
        true
    });
    entries
}

fn kitfile(yaml: &str) -> AuthoredKitfile {
    AuthoredKitfile::parse(yaml.as_bytes()).unwrap()
}

fn planned(yaml: &str, ignore: &str, files: &[&str]) -> (Vec<Vec<String>>, PackPlan) {
    let entries = folder(files.iter().copied());
    let rules = IgnoreRules::parse(ignore.as_bytes()).unwrap();
    let plan = plan(&kitfile(yaml), &[], &rules, &entries, TAR).unwrap();
    let names = |layer: &PlannedLayer| {
        layer.members.iter().map(|&member| entries[member].path.to_string()).collect()
    };
    (plan.layers.iter().map(names).collect(), plan)
}

fn reasons(plan: &PackPlan) -> Vec<LeftOutReason> {
    plan.left_out.iter().map(|left_out| left_out.reason.clone()).collect()
}

#[test]
fn layers_hold_their_path_its_parents_and_all_below() {
    let yaml = "model: {path: models/m.bin, parts: [{path: models/sub}]}\ncode: [{path: src/}]";
    let files = ["README", "models/m.bin", "models/sub/a", "models/x", "src/.hidden", "src/a.py"];
    let (layers, plan) = planned(yaml, "", &files);
    assert_eq!(layers[0], ["models", "models/m.bin"]);
    assert_eq!(layers[1], ["models", "models/sub", "models/sub/a"]);
    assert_eq!(layers[2], ["src", "src/.hidden", "src/a.py"]);
    assert_eq!(reasons(&plan), [LeftOutReason::NotListed, LeftOutReason::NotListed]);
    let types: Vec<_> = plan.layers.iter().map(|layer| layer.media_type.as_str()).collect();
    assert_eq!(types[1], "application/vnd.kitops.modelkit.modelpart.v1.tar");
}

#[test]
fn a_file_whose_path_begins_with_another_entrys_text_is_reported() {
    let yaml = "model: {path: model}\ncode: [{path: .}]";
    let (layers, plan) = planned(yaml, "", &["model/w", "model_utils.py", "a.py"]);
    assert_eq!(layers, [vec!["model", "model/w"], vec!["a.py"]]);
    assert_eq!(reasons(&plan), [LeftOutReason::LooksLike("model".into())]);
}

#[test]
fn a_name_with_two_dots_is_reported() {
    let (layers, plan) = planned("code: [{path: .}]", "", &["a..b", "c/d..e/f", "g"]);
    assert_eq!(layers, [vec!["c", "g"]]);
    assert_eq!(reasons(&plan), [LeftOutReason::Dots, LeftOutReason::Dots]);
    // Its own path may have them, at the root only.
    assert_eq!(planned("code: [{path: a..b}]", "", &["a..b"]).0, [vec!["a..b"]]);
    assert_eq!(planned("code: [{path: x/a..b}]", "", &["x/a..b"]).0, [Vec::<String>::new()]);
}

#[test]
fn files_taken_back_come_without_their_ignored_directory() {
    let (layers, _) = planned(
        "code: [{path: code}]",
        "code/dir\n!code/dir/keep",
        &["code/dir/keep", "code/dir/x"],
    );
    assert_eq!(layers, [vec!["code", "code/dir/keep"]]);
}

#[test]
fn links_are_reported_and_a_path_through_one_makes_an_empty_layer() {
    let (layers, plan) = planned("code: [{path: src}]", "", &["src/link@", "src/a"]);
    assert_eq!(layers, [vec!["src", "src/a"]]);
    assert_eq!(reasons(&plan), [LeftOutReason::Symlink]);
    for path in ["link", "link/below"] {
        let (layers, plan) = planned(&format!("code: [{{path: {path}}}]"), "", &["link@"]);
        assert_eq!(layers, [Vec::<String>::new()]);
        assert!(plan.warnings[0].contains("symbolic link"), "{:?}", plan.warnings);
    }
}

#[test]
fn references_and_remote_data_have_no_layer() {
    let yaml = "model: {path: 'ghcr.io/org/parent:v1', parts: [{path: lora}]}\n\
        datasets: [{path: d, remotePath: 's3://b/k', remoteHash: x}]";
    let (layers, plan) = planned(yaml, "", &["lora"]);
    assert_eq!(layers, [vec!["lora"]]);
    assert_eq!(plan.layers[0].entry, 1);
}

#[test]
fn paths_that_cannot_be_packed_are_named() {
    let fails = |yaml: &str, form: PackForm| {
        let rules = IgnoreRules::parse(b"").unwrap();
        plan(&kitfile(yaml), &[], &rules, &folder(["dir/a", "l@"]), form).unwrap_err().to_string()
    };
    let raw = PackForm { encoding: Encoding::RAW, ..TAR };
    assert!(fails("code: [{path: nix}]", TAR).contains("code `nix`: the folder has no `nix`"));
    assert!(fails("code: [{path: dir/a/b}]", TAR).contains("has no `dir/a/b`"));
    assert!(fails("code: [{path: dir}]", raw).contains("is a directory"));
    assert!(fails("code: [{path: .}]", raw).contains("is a directory"));
    assert!(fails("code: [{path: l}]", raw).contains("is a symbolic link"));
    let model_pack = PackForm { is_model_pack: true, ..TAR };
    assert!(fails("mcpServers: [{name: a, path: a.mcpb}]", model_pack).contains("mcpServers"));
    let compressed = Encoding { compression: Compression::Gzip, ..Encoding::RAW };
    let form = PackForm { is_model_pack: true, encoding: compressed };
    assert!(fails("code: [{path: dir/a}]", form).contains("not compressed"));
}

#[test]
fn the_files_of_a_parent_kit_are_not_packed_again() {
    let entries = folder(["base.bin", "own.py"]);
    let rules = IgnoreRules::parse(b"").unwrap();
    let parent = ["base.bin".to_owned()];
    let plan = plan(&kitfile("code: [{path: .}]"), &parent, &rules, &entries, TAR).unwrap();
    assert_eq!(plan.layers[0].members, [1]);
}

/// kit's walk for one layer, step by step over the whole folder.
fn walked_slowly(
    entries: &[FolderEntry],
    base: &str,
    others: &[String],
    rules: &IgnoreRules,
) -> Vec<usize> {
    let components = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| *part != ".").map(str::to_owned).collect()
    };
    let way = |from: &str, to: &str| {
        let (from, to) = (components(from), components(to));
        let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
        let mut way = vec!["..".to_owned(); from.len() - common];
        way.extend_from_slice(&to[common..]);
        way.join("/")
    };
    let mut members = Vec::new();
    let mut skipped: Option<String> = None;
    for (index, entry) in entries.iter().enumerate() {
        let path = entry.path.to_string();
        if skipped.as_ref().is_some_and(|skipped| path.starts_with(&format!("{skipped}/"))) {
            continue;
        }
        if !matches!(entry.kind, FolderEntryKind::File(_) | FolderEntryKind::Directory) {
            continue;
        }
        if way(base, &path).contains("..") && way(&path, base).contains("..") {
            skipped = Some(path);
            continue;
        }
        let is_other =
            others.iter().any(|other| !base.starts_with(other) && path.starts_with(other));
        if rules.ignores(path.as_bytes()) || is_other {
            if !rules.has_exclusions() {
                skipped = Some(path);
            }
            continue;
        }
        members.push(index);
    }
    members
}

proptest! {
    #[test]
    fn a_plan_is_kits_walk(
        files in prop::collection::vec("[ab]{1,2}(/[ab.]{0,2}[ab](\\.\\.[ab])?){0,2}@?", 1..12),
        picked in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        ignore in "(!?[ab*]{1,2}(/[ab]{1,2})?\n){0,2}",
        with_root in any::<bool>(),
    ) {
        let entries = folder(files.iter().map(String::as_str));
        let mut paths: BTreeSet<_> = picked
            .iter()
            .map(|index| &entries[index.index(entries.len())])
            .filter(|entry| entry.kind != FolderEntryKind::Symlink)
            .map(|entry| entry.path.to_string())
            .collect();
        if with_root {
            paths.insert(".".to_owned());
        }
        let paths: Vec<String> = paths.into_iter().collect();
        let lines: Vec<_> = paths.iter().map(|path| format!("  - path: {path}\n")).collect();
        prop_assume!(!lines.is_empty());
        let kitfile = kitfile(&format!("code:\n{}", lines.concat()));
        let Ok(rules) = IgnoreRules::parse(ignore.as_bytes()) else { return Ok(()) };
        let plan = plan(&kitfile, &[], &rules, &entries, TAR).unwrap();
        for (layer, path) in plan.layers.iter().zip(&paths) {
            prop_assert_eq!(&layer.members, &walked_slowly(&entries, path, &paths, &rules), "{}", path);
        }
        // Every file is in a layer or has a reason.
        let packed: BTreeSet<_> = plan.layers.iter().flat_map(|layer| layer.members.clone()).collect();
        for (index, entry) in entries.iter().enumerate() {
            let is_left_out = plan.left_out.iter().any(|left_out| left_out.index == index);
            prop_assert_eq!(
                is_left_out,
                entry.kind != FolderEntryKind::Directory && !packed.contains(&index)
            );
        }
    }
}
