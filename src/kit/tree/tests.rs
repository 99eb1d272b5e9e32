//! Trees against a map of paths, and refused ones.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::layer::{Member, MemberKind, MemberPath, StreamOffset, replaced};

const ROOT_OF_TAR: Placement = Placement::Tar { below: None };

fn path(text: &str) -> MemberPath {
    MemberPath::parse(text.as_bytes()).unwrap()
}

/// The second of that number in 2023.
fn time(second: i64) -> Mtime {
    Mtime::new(1_700_000_000 + second, 0).unwrap()
}

fn stored(start: u64, bytes: u64) -> MemberKind {
    MemberKind::File(Extents::contiguous(StreamOffset(start).range(bytes)))
}

fn member(name: &str, kind: MemberKind, mode: u32) -> Member {
    Member { path: Some(path(name)), kind, mode, mtime: None, is_replaced: false }
}

fn file(name: &str, start: u64) -> Member {
    member(name, stored(start, 3), 0o666)
}

fn directory(name: &str, mode: u32) -> Member {
    member(name, MemberKind::Directory, mode)
}

fn toc(mut members: Vec<Member>) -> Toc {
    let warnings = replaced::mark(&mut members);
    Toc { members, stream_bytes: 1 << 40, warnings }
}

fn layer<'a>(index: u32, placement: &'a Placement, toc: &'a Toc) -> TreeLayer<'a> {
    let digest = Digest::of(&index.to_le_bytes());
    let mtime = time(index.into()).or_fraction_of(&digest);
    let name = ["code `one`", "code `two`", "code `three`", "code `four`"][index as usize % 4];
    TreeLayer { index, digest, name, placement, toc, mtime }
}

/// Merges tars whose digests differ.
fn merge(tocs: &[Toc], kitfile: Option<&'static [u8]>) -> Result<Tree, TreeError> {
    let layers = (0..).zip(tocs).map(|(index, toc)| layer(index, &ROOT_OF_TAR, toc));
    let layers: Vec<_> = layers.collect();
    Tree::merge(&layers, kitfile.map(Bytes::from_static), time(-9), 0o022)
}

fn inline(bytes: &'static [u8]) -> NodeKind {
    NodeKind::File(Content::Inline(Arc::new(Bytes::from_static(bytes))))
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
    assert_eq!(tree.kind(NodeId(2)), &inline(b"k"));
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
}

#[test]
fn files_at_one_path_collide_unless_they_are_the_same_bytes() {
    let one = toc(vec![file("f", 0)]);
    let same = [layer(0, &ROOT_OF_TAR, &one), layer(0, &ROOT_OF_TAR, &one)];
    let tree = Tree::merge(&same, None, time(0), 0).unwrap();
    assert_eq!(paths(&tree), ["", "f"]);
    let moved = Placement::Tar { below: Some(path("x")) };
    let below = toc(vec![file("f", 0)]);
    let twice = toc(vec![file("x/f", 512)]);
    let layers = [layer(0, &ROOT_OF_TAR, &twice), layer(0, &moved, &below)];
    let error = Tree::merge(&layers, None, time(0), 0).err().unwrap();
    assert!(matches!(&error, TreeError::Collision(text) if text.contains("twice")), "{error}");
    let error = merge(&[toc(vec![file("f", 0)]), toc(vec![file("f", 0)])], None).err().unwrap();
    assert!(
        error.to_string().starts_with("`f` is a file in code `one` and in code `two`;"),
        "{error}"
    );
}

#[test]
fn a_member_that_is_replaced_in_its_layer_is_not_there() {
    let history = toc(vec![file("f", 0), file("d/x", 512), file("f", 1024), file("d", 1536)]);
    let tree = merge(&[history], None).unwrap();
    assert_eq!(paths(&tree), ["", "d", "f"]);
    let NodeKind::File(Content::Stored { extents, .. }) = tree.kind(NodeId(2)) else { panic!() };
    assert_eq!(extents.stored().start, StreamOffset(1024));
}

#[test]
fn holes_count_for_a_files_size_and_not_for_what_is_stored() {
    let extents = Extents::sparse(StreamOffset(0).range(3), 1 << 50, [7..9, 9..10]).unwrap();
    let tocs = [toc(vec![member("f", MemberKind::File(extents), 0o644), file("g", 512)])];
    let tree = merge(&tocs, None).unwrap();
    assert_eq!((tree.size(NodeId(1)), tree.size(NodeId(2))), (1 << 50, 3));
    assert_eq!(tree.file_bytes(), 6);
    assert!(tree.has_holes());
    assert!(!merge(&[toc(vec![file("g", 512)])], None).unwrap().has_holes());
    let error =
        merge(&[toc(vec![member("Kitfile", tocs[0].members[0].kind.clone(), 0)])], Some(b"k"));
    assert!(matches!(error.err(), Some(TreeError::Collision(_))));
}

#[test]
fn files_have_the_time_of_the_archive_or_of_their_layer() {
    let with = |name, mtime| Member { mtime, ..file(name, 0) };
    let exact = Mtime::new(1_600_000_000, 5).unwrap();
    let tocs =
        [toc(vec![with("old", None), with("own", Some(time(77))), with("exact", Some(exact))])];
    let tree = merge(&tocs, Some(b"k")).unwrap();
    let mtime = |path: &[u8]| tree.mtime(tree.resolve(path).unwrap());
    let layer = layer(0, &ROOT_OF_TAR, &tocs[0]);
    assert_eq!(mtime(b"old"), layer.mtime);
    assert_eq!(mtime(b"own"), time(77).or_fraction_of(&layer.digest));
    assert_eq!(mtime(b"exact"), exact);
    assert_eq!(mtime(b"Kitfile"), time(-9));
    // A time that all files have may be a constant: the layer's stands for it.
    let constant = [toc(vec![with("a", Some(time(77))), with("b", Some(time(77)))])];
    let tree = merge(&constant, None).unwrap();
    assert_eq!(tree.mtime(NodeId(1)), layer.mtime);
    let placement = Placement::Raw { path: path("f"), mode: 0o644, mtime: None, size: None };
    let raw = Toc::raw(5);
    let raw = TreeLayer { mtime: exact, ..self::layer(0, &placement, &raw) };
    let tree = Tree::merge(&[raw], None, time(0), 0).unwrap();
    assert_eq!(tree.mtime(NodeId(1)), exact);
}

#[test]
fn directories_have_the_newest_time_below_them_and_another_one_for_other_content() {
    let empty = || Member { mtime: Some(time(500)), ..directory("own", 0o755) };
    let version = |last: u32| {
        let layers = [
            toc(vec![directory("a", 0o755), file("a/x", 0), empty(), file("own/x", 512)]),
            toc(vec![file("a/y", 0)]),
            toc(vec![file("b/c/z", 0)]),
        ];
        let indexes = [0, 1, last];
        let layers = layers.iter().zip(indexes).map(|(toc, index)| layer(index, &ROOT_OF_TAR, toc));
        Tree::merge(&layers.collect::<Vec<_>>(), None, time(0), 0).unwrap()
    };
    let (first, second) = (version(2), version(3));
    let of = |tree: &Tree, path: &[u8]| tree.mtime(tree.resolve(path).unwrap());
    for path in [&b"a"[..], b"own", b"a/x", b"a/y"] {
        assert_eq!(of(&first, path), of(&second, path), "{}", String::from_utf8_lossy(path));
    }
    let seconds = |path: &[u8]| i64::from(of(&first, path).seconds()) - 1_700_000_000;
    assert_eq!((seconds(b"a"), seconds(b"b"), seconds(b"own"), seconds(b"")), (1, 2, 500, 500));
    for path in [&b"b"[..], b"b/c", b"b/c/z", b""] {
        assert_ne!(of(&first, path), of(&second, path), "{}", String::from_utf8_lossy(path));
    }
    // Within one second, the nanoseconds differ.
    assert_eq!(of(&first, b"").seconds(), of(&second, b"").seconds());
    let fewer = merge(&[toc(vec![directory("a", 0o755), file("a/x", 0)])], None).unwrap();
    assert_ne!(of(&fewer, b"a"), of(&first, b"a"));
}

#[test]
fn a_kitfile_in_a_layer_must_be_able_to_be_the_kits_own() {
    let tocs = [toc(vec![file("Kitfile", 0)])];
    let tree = merge(&tocs, Some(b"abc")).unwrap();
    let node = tree.resolve(b"Kitfile").unwrap();
    assert_eq!(tree.kind(node), &inline(b"abc"));
    let error = merge(&tocs, Some(b"abcd")).err().unwrap();
    assert!(
        matches!(&error, TreeError::Collision(text) if text.contains("the kit's config")),
        "{error}"
    );
}

#[test]
fn messages_show_names_as_people_write_them_and_no_control_characters() {
    let name = "caf\u{e9}/\u{1b}[2J";
    let tocs = [toc(vec![file(name, 0)]), toc(vec![file(name, 512)])];
    let error = merge(&tocs, None).err().unwrap().to_string();
    assert!(error.starts_with("`caf\u{e9}/\\u{1b}[2J` is a file in code `one`"), "{error}");
}

#[test]
fn a_layer_that_many_entries_name_counts_for_each() {
    let members = 64 * 1024;
    let toc = toc((0..members).map(|_| directory("d", 0o755)).collect());
    let layer = layer(0, &ROOT_OF_TAR, &toc);
    let too_many = crate::layer::MEMBERS_LIMIT / members + 1;
    let error = Tree::merge(&vec![layer; too_many], None, time(0), 0).err().unwrap();
    assert!(matches!(&error, TreeError::TooLarge(text) if text.contains("--filter")), "{error}");
}

#[test]
fn nothing_lies_below_a_file_or_symlink() {
    let link = member("a", MemberKind::Symlink(b"/etc"[..].into()), 0o777);
    for first in [link, file("a", 0)] {
        let error =
            merge(&[toc(vec![first.clone()]), toc(vec![file("a/b/c", 0)])], None).err().unwrap();
        assert!(matches!(&error, TreeError::Conflict(text) if text.contains("`a/b/c`")), "{error}");
        let tocs = [toc(vec![first]), toc(vec![directory("a", 0o755)])];
        let error = merge(&tocs, None).err().unwrap();
        assert!(matches!(error, TreeError::Conflict(_)), "{error}");
    }
}

#[test]
fn a_symlink_keeps_its_target_and_the_root_of_a_legacy_layer_is_its_directory() {
    let toc = toc(vec![member("l", MemberKind::Symlink(b"t/u"[..].into()), 0o777)]);
    let placement = Placement::Tar { below: Some(path("models/deep")) };
    let tree = Tree::merge(&[layer(4, &placement, &toc)], None, time(0), 0).unwrap();
    let node = tree.resolve(b"/models//deep/./l").unwrap();
    assert_eq!(tree.kind(node), &NodeKind::Symlink(b"t/u"[..].into()));
    assert_eq!(tree.size(node), 3);
    assert_eq!(tree.resolve(b"models/deep/l/x"), None);
}

#[test]
fn a_raw_layer_whose_size_is_not_what_its_manifest_says_is_refused() {
    let placement = Placement::Raw { path: path("f"), mode: 0o640, mtime: None, size: Some(10) };
    let merge = |bytes| {
        let toc = Toc::raw(bytes);
        Tree::merge(&[layer(0, &placement, &toc)], None, time(0), 0o022)
    };
    assert_eq!(merge(10).unwrap().mode(NodeId(1)), 0o640);
    assert!(matches!(merge(11), Err(TreeError::Mismatch(_))));
}

#[test]
fn a_path_that_becomes_too_long_below_its_directory_is_refused() {
    let long = ["d"; 2000].join("/");
    let toc = toc(vec![file(&long, 0)]);
    let placement = Placement::Tar { below: Some(path(&long)) };
    let layer = layer(0, &placement, &toc);
    assert!(matches!(Tree::merge(&[layer], None, time(0), 0), Err(TreeError::TooLarge(_))));
}

#[test]
fn missing_data_has_a_node_with_its_reason() {
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
    let layers = [layer(0, &ROOT_OF_TAR, &toc)];
    let tree = Tree::merge(&layers, additions.clone(), time(0), 0).unwrap();
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
    let empty = member("data/object.bin", stored(0, 0), 0o644);
    let toc = self::toc(vec![empty]);
    let layers = [layer(0, &ROOT_OF_TAR, &toc)];
    let error = Tree::merge(&layers, additions, time(0), 0).err().unwrap();
    assert!(matches!(error, TreeError::Collision(_)), "{error}");
}

/// The model's entry of a path: `None` for a directory, else layer and start.
type Model = BTreeMap<Vec<u8>, Option<(u32, u64)>>;

/// The same rules, one member at a time: in a layer the last one counts, between layers two files
/// collide. `None` when the layers make no tree.
fn model(layers: &[Vec<(Vec<u8>, bool)>]) -> Option<Model> {
    let mut model = Model::new();
    for (index, members) in layers.iter().enumerate() {
        let mut layer = Model::new();
        for (number, (name, is_file)) in members.iter().enumerate() {
            let cuts = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
            for cut in cuts {
                layer.insert(name[..cut].to_vec(), None);
            }
            if *is_file {
                let below = [name, &b"/"[..]].concat();
                layer.retain(|path, _| !path.starts_with(&below));
            }
            layer.insert(name.clone(), is_file.then_some((index as u32, number as u64 * 512)));
        }
        for (path, what) in layer {
            let was = model.insert(path, what);
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
                    true => stored(number as u64 * 512, number as u64),
                    false => MemberKind::Directory,
                },
                mode: 0o755,
                mtime: None,
                is_replaced: false,
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
                (NodeKind::File(Content::Stored { layer, extents }), Some((index, start))) => {
                    prop_assert_eq!((*layer, extents.stored().start.get()), (*index, *start));
                    bytes += tree.size(node);
                }
                (kind, expected) => prop_assert!(false, "{kind:?} {expected:?}"),
            }
        }
        prop_assert_eq!(tree.file_bytes(), bytes);
    }
}
