//! Trees against a map of paths, and what is refused.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::layer::{Member, MemberKind, MemberPath};

const ROOT_OF_TAR: Placement = Placement::Tar { below: None };

fn path(text: &str) -> MemberPath {
    MemberPath::parse(text.as_bytes()).unwrap()
}

fn range(start: u64, bytes: u64) -> Range<StreamOffset> {
    StreamOffset(start)..StreamOffset(start + bytes)
}

fn member(name: &str, kind: MemberKind, mode: u32) -> Member {
    Member { path: Some(path(name)), kind, mode, mtime_seconds: 7 }
}

fn file(name: &str, start: u64) -> Member {
    member(name, MemberKind::File(range(start, 3)), 0o666)
}

fn directory(name: &str, mode: u32) -> Member {
    member(name, MemberKind::Directory, mode)
}

fn toc(members: Vec<Member>) -> Toc {
    Toc { members, stream_bytes: 1 << 40, warnings: Vec::new() }
}

/// Merges tars whose digests differ.
fn merge(tocs: &[Toc], kitfile: Option<&'static [u8]>) -> Result<Tree, TreeError> {
    let layer = |(index, toc)| TreeLayer {
        index: index as u32,
        digest: Digest::of(&[index as u8]),
        placement: &ROOT_OF_TAR,
        toc,
    };
    let layers: Vec<_> = tocs.iter().enumerate().map(layer).collect();
    Tree::merge(&layers, kitfile.map(Bytes::from_static), 0o022)
}

fn paths(tree: &Tree) -> Vec<String> {
    (0..tree.len()).map(|node| String::from_utf8(tree.path(NodeId(node))).unwrap()).collect()
}

#[test]
fn an_empty_kit_is_a_root() {
    let tree = merge(&[], None).unwrap();
    assert_eq!((tree.len(), tree.mode(Tree::ROOT), tree.children(Tree::ROOT)), (1, 0o755, 1..1));
    assert_eq!(tree.parent(Tree::ROOT), Tree::ROOT);
    assert_eq!(tree.name(Tree::ROOT), b"");
    assert_eq!(tree.resolve(b"./"), Some(Tree::ROOT));
}

#[test]
fn nodes_are_breadth_first_and_siblings_sorted_by_bytes() {
    let tocs = [toc(vec![
        file("b/x", 0),
        file("a.b", 9),
        file("a/z/1", 18),
        file("a/y", 27),
        file("B", 36),
    ])];
    let tree = merge(&tocs, Some(b"k")).unwrap();
    let expected = ["", "B", "Kitfile", "a", "a.b", "b", "a/y", "a/z", "b/x", "a/z/1"];
    assert_eq!(paths(&tree), expected);
    assert_eq!(tree.subdirectories(Tree::ROOT), 2);
    assert_eq!(tree.file_bytes(), 16);
    assert_eq!(tree.kind(NodeId(2)), &NodeKind::File(Content::Inline(Bytes::from_static(b"k"))));
    assert_eq!(tree.mode(NodeId(2)), 0o644);
}

#[test]
fn missing_parents_are_made_and_the_first_mode_of_a_directory_stays() {
    let tocs = [
        toc(vec![directory("a", 0o700), file("a/b/c", 0)]),
        toc(vec![directory("a", 0o777), directory("a/b", 0o777), file("a/b/d", 0)]),
    ];
    let tree = merge(&tocs, None).unwrap();
    let mode = |path: &[u8]| tree.mode(tree.resolve(path).unwrap());
    assert_eq!(mode(b"a"), 0o700);
    assert_eq!(mode(b"a/b"), 0o755);
    assert_eq!(mode(b"a/b/c"), 0o644);
    assert_eq!(tree.mtime_seconds(tree.resolve(b"a/b/c").unwrap()), 7);
}

#[test]
fn files_at_one_path_collide_unless_they_are_the_same_bytes() {
    let same = toc(vec![file("f", 0), file("f", 0)]);
    assert_eq!(paths(&merge(&[same], None).unwrap()), ["", "f"]);
    let twice = toc(vec![file("f", 0), file("f", 512)]);
    let error = merge(&[twice], None).err().unwrap();
    assert!(matches!(&error, TreeError::Collision(text) if text.contains("twice")), "{error}");
    let error = merge(&[toc(vec![file("f", 0)]), toc(vec![file("f", 0)])], None).err().unwrap();
    let (first, second) = (Digest::of(&[0]).short(), Digest::of(&[1]).short());
    assert!(
        matches!(&error, TreeError::Collision(text)
        if text.contains("`f`") && text.contains(&first) && text.contains(&second)),
        "{error}"
    );
}

#[test]
fn a_kitfile_in_a_layer_must_be_able_to_be_the_kits_own() {
    let tocs = [toc(vec![file("Kitfile", 0)])];
    let tree = merge(&tocs, Some(b"abc")).unwrap();
    let node = tree.resolve(b"Kitfile").unwrap();
    assert_eq!(tree.kind(node), &NodeKind::File(Content::Inline(Bytes::from_static(b"abc"))));
    let error = merge(&tocs, Some(b"abcd")).err().unwrap();
    assert!(
        matches!(&error, TreeError::Collision(text) if text.contains("the kit's config")),
        "{error}"
    );
}

#[test]
fn messages_show_names_as_people_write_them_and_no_control_characters() {
    let name = "caf\u{e9}/\u{1b}[2J";
    let twice = toc(vec![file(name, 0), file(name, 512)]);
    let error = merge(&[twice], None).err().unwrap().to_string();
    assert!(error.starts_with("`caf\u{e9}/\\u{1b}[2J` is a file twice in layer"), "{error}");
}

#[test]
fn a_layer_that_many_entries_name_counts_for_each() {
    let members = 64 * 1024;
    let toc = toc((0..members).map(|_| directory("d", 0o755)).collect());
    let layer = TreeLayer { index: 0, digest: Digest::of(b""), placement: &ROOT_OF_TAR, toc: &toc };
    let too_many = crate::layer::MEMBERS_LIMIT / members + 1;
    let error = Tree::merge(&vec![layer; too_many], None, 0).err().unwrap();
    assert!(matches!(&error, TreeError::TooLarge(text) if text.contains("--filter")), "{error}");
}

#[test]
fn nothing_lies_below_a_file_or_symlink() {
    let link = member("a", MemberKind::Symlink(b"/etc"[..].into()), 0o777);
    for first in [link, file("a", 0)] {
        let error =
            merge(&[toc(vec![first.clone()]), toc(vec![file("a/b/c", 0)])], None).err().unwrap();
        assert!(matches!(&error, TreeError::Conflict(text) if text.contains("`a/b/c`")), "{error}");
        let error = merge(&[toc(vec![first, directory("a", 0o755)])], None).err().unwrap();
        assert!(matches!(error, TreeError::Conflict(_)), "{error}");
    }
}

#[test]
fn a_symlink_keeps_its_target_and_the_root_of_a_legacy_layer_is_its_directory() {
    let toc = toc(vec![member("l", MemberKind::Symlink(b"t/u"[..].into()), 0o777)]);
    let placement = Placement::Tar { below: Some(path("models/deep")) };
    let layer = TreeLayer { index: 4, digest: Digest::of(b""), placement: &placement, toc: &toc };
    let tree = Tree::merge(&[layer], None, 0).unwrap();
    let node = tree.resolve(b"/models//deep/./l").unwrap();
    assert_eq!(tree.kind(node), &NodeKind::Symlink(b"t/u"[..].into()));
    assert_eq!(tree.size(node), 3);
    assert_eq!(tree.resolve(b"models/deep/l/x"), None);
}

#[test]
fn a_raw_layer_whose_size_is_not_what_its_manifest_says_is_refused() {
    let placement =
        Placement::Raw { path: path("f"), mode: 0o640, mtime_seconds: 9, size: Some(10) };
    let merge = |bytes| {
        let toc = Toc::raw(bytes);
        let layer =
            TreeLayer { index: 0, digest: Digest::of(b""), placement: &placement, toc: &toc };
        Tree::merge(&[layer], None, 0o022)
    };
    let tree = merge(10).unwrap();
    assert_eq!((tree.mode(NodeId(1)), tree.mtime_seconds(NodeId(1))), (0o640, 9));
    assert!(matches!(merge(11), Err(TreeError::Mismatch(_))));
}

#[test]
fn a_path_that_becomes_too_long_below_its_directory_is_refused() {
    let long = ["d"; 2000].join("/");
    let toc = toc(vec![file(&long, 0)]);
    let placement = Placement::Tar { below: Some(path(&long)) };
    let layer = TreeLayer { index: 0, digest: Digest::of(b""), placement: &placement, toc: &toc };
    assert!(matches!(Tree::merge(&[layer], None, 0), Err(TreeError::TooLarge(_))));
}

#[test]
fn what_cannot_be_had_is_there_with_its_reason() {
    let missing = |name: &str, is_directory, reason: &str| Missing {
        path: path(name),
        is_directory,
        reason: reason.to_owned(),
    };
    let additions = Additions {
        kitfile: Some(Bytes::from_static(b"k")),
        directories: vec![path("data")],
        missing: vec![
            missing("data/gone", true, "no network"),
            missing("data/object.bin", false, "no rights"),
        ],
    };
    let toc = toc(vec![directory("data", 0o700), file("data/gone/here", 0), file("z", 512)]);
    let layer = TreeLayer { index: 0, digest: Digest::of(b""), placement: &ROOT_OF_TAR, toc: &toc };
    let tree = Tree::merge(&[layer], additions.clone(), 0).unwrap();
    let node = |name: &str| tree.resolve(name.as_bytes()).unwrap();
    assert_eq!(tree.missing(node("data/gone")), Some("no network"));
    assert_eq!(tree.missing(node("data/object.bin")), Some("no rights"));
    assert_eq!(
        (tree.size(node("data/object.bin")), tree.mode(node("data/object.bin"))),
        (0, 0o644)
    );
    assert_eq!(tree.all_missing().count(), 2);
    assert_eq!(tree.missing(node("z")).or(tree.missing(node("data"))), None);
    assert_eq!(tree.mode(node("data")), 0o755, "what is added comes first");
    assert!(tree.resolve(b"data/gone/here").is_some());
    // A file of a layer in the place of one that cannot be had is a collision, even an empty one.
    let empty = member("data/object.bin", MemberKind::File(range(0, 0)), 0o644);
    let toc = Toc { members: vec![empty], stream_bytes: 1 << 40, warnings: Vec::new() };
    let layer = TreeLayer { index: 0, digest: Digest::of(b""), placement: &ROOT_OF_TAR, toc: &toc };
    let error = Tree::merge(&[layer], additions, 0).err().unwrap();
    assert!(matches!(error, TreeError::Collision(_)), "{error}");
}

/// What the model knows of a path: `None` for a directory, else layer and start.
type Model = BTreeMap<Vec<u8>, Option<(u32, u64)>>;

/// The same rules, one member at a time; `None` when the layers make no tree.
fn model(layers: &[Vec<(Vec<u8>, bool)>]) -> Option<Model> {
    let mut model = Model::new();
    for (index, members) in layers.iter().enumerate() {
        for (number, (name, is_file)) in members.iter().enumerate() {
            let cuts = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
            for cut in cuts {
                if model.entry(name[..cut].to_vec()).or_insert(None).is_some() {
                    return None;
                }
            }
            let what = is_file.then_some((index as u32, number as u64 * 512));
            let was = model.insert(name.clone(), what);
            if was.is_some_and(|was| was.is_some() || what.is_some()) {
                return None;
            }
        }
    }
    Some(model)
}

proptest! {
    #[test]
    fn a_tree_is_what_unpacking_one_by_one_gives(
        layers in prop::collection::vec(
            prop::collection::vec(("[a-c.]{0,1}[ab](/[ab-]{1,2}){0,3}", prop::bool::weighted(0.6)), 0..6), 0..4,
        ),
    ) {
        let layers: Vec<Vec<_>> = layers
            .into_iter()
            .map(|layer| layer.into_iter().map(|(name, is_file)| (name.into_bytes(), is_file)).collect())
            .collect();
        let to_toc = |members: &Vec<(Vec<u8>, bool)>| {
            let member = |(number, (name, is_file)): (usize, &(Vec<u8>, bool))| Member {
                path: Some(MemberPath::parse(name).unwrap()),
                kind: match is_file {
                    true => MemberKind::File(range(number as u64 * 512, number as u64)),
                    false => MemberKind::Directory,
                },
                mode: 0o755,
                mtime_seconds: 0,
            };
            toc(members.iter().enumerate().map(member).collect())
        };
        let tocs: Vec<_> = layers.iter().map(to_toc).collect();
        let expected = model(&layers);
        let tree = merge(&tocs, None);
        prop_assert_eq!(tree.is_ok(), expected.is_some());
        let (Ok(tree), Some(expected)) = (tree, expected) else { return Ok(()) };
        prop_assert_eq!(tree.len() as usize, expected.len() + 1);
        let mut bytes = 0;
        for number in 0..tree.len() {
            let node = NodeId(number);
            let path = tree.path(node);
            prop_assert_eq!(tree.resolve(&path), Some(node));
            let children = tree.children(node);
            let names: Vec<_> = children.clone().map(|child| tree.name(NodeId(child))).collect();
            prop_assert!(names.is_sorted_by(|a, b| a < b));
            for child in children.clone() {
                prop_assert_eq!(tree.parent(NodeId(child)), node);
                prop_assert_eq!(tree.lookup(node, tree.name(NodeId(child))), Some(NodeId(child)));
            }
            let is_directory = |child: &u32| *tree.kind(NodeId(*child)) == NodeKind::Directory;
            prop_assert_eq!(tree.subdirectories(node) as usize, children.filter(is_directory).count());
            prop_assert_eq!(tree.lookup(node, b"not there"), None);
            let expected = if node == Tree::ROOT { &None } else { &expected[&path] };
            match (tree.kind(node), expected) {
                (NodeKind::Directory, None) => {}
                (NodeKind::File(Content::Extent { layer, range }), Some((index, start))) => {
                    prop_assert_eq!((*layer, range.start.get()), (*index, *start));
                    bytes += tree.size(node);
                }
                (kind, expected) => prop_assert!(false, "{kind:?} {expected:?}"),
            }
        }
        prop_assert_eq!(tree.file_bytes(), bytes);
    }
}
