//! The differences between a base and its view, pure.
//!
//! ```text
//! upper/, as a file system keeps it --.
//!                                      >-- view: path --> source of its bytes --> list of changes
//! the base's paths -------------------'
//! ```
//!
//! The list is short: it leaves out the entries in removed and renamed folders.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The largest view. A kit has at most 16,777,216 entries; a hostile UPPER could show each folder many times.
const MOST_ENTRIES: usize = 1 << 25;

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A device, a socket or a pipe. No kit has one.
    Other,
}

/// An entry of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseEntry {
    /// Its kind.
    pub kind: Kind,
    /// Its permission bits, as the view shows them.
    pub mode: u32,
}

/// The base's entries by path, relative to its root. The root itself is not there.
pub type Base = BTreeMap<PathBuf, BaseEntry>;

/// The path of a folder or file of the base, from an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// From the root of the base.
    Absolute(PathBuf),
    /// A name in the base's folder below the parent.
    Sibling(OsString),
}

impl Redirect {
    /// Reads the value of `trusted.overlay.redirect`. `None` for a path that leaves the base.
    pub fn parse(value: &[u8]) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt;
        let text = std::ffi::OsStr::from_bytes(value);
        let is_plain = |path: &Path| {
            path.components().all(|part| matches!(part, std::path::Component::Normal(_)))
        };
        match value.strip_prefix(b"/") {
            Some(rest) => {
                let path = Path::new(std::ffi::OsStr::from_bytes(rest));
                (is_plain(path) && !rest.is_empty()).then(|| Self::Absolute(path.to_owned()))
            }
            None if value.is_empty() || value.contains(&b'/') || !is_plain(Path::new(text)) => None,
            None => Some(Self::Sibling(text.to_owned())),
        }
    }
}

/// An entry of `upper/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// The name is not in the view.
    Whiteout,
    /// A directory. The entries of the base below its path are in the view, too, unless it is opaque.
    Directory {
        /// Nothing of the base is below it.
        is_opaque: bool,
        /// The base's folder is another one.
        redirect: Option<Redirect>,
        /// Permission bits.
        mode: u32,
    },
    /// A file whose bytes are those of the base, while mode, owner or dates are its own (`metacopy`).
    Metadata {
        /// The base's file is another one.
        redirect: Option<Redirect>,
    },
    /// The whole entry is in `upper/`.
    Whole(Kind),
}

/// The place of an entry's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// All of it is the base's entry at this path.
    Base(PathBuf),
    /// The bytes are those of the base's file at this path. Mode, owner and dates are in `upper/`.
    Metadata(PathBuf),
    /// It is in `upper/`.
    Upper,
    /// A directory of `upper/`, and the base's directory that is below it.
    Directory {
        /// The base's directory.
        base: Option<PathBuf>,
        /// Permission bits.
        mode: u32,
    },
}

/// The entries of a view.
pub type View = BTreeMap<PathBuf, (Kind, Source)>;

/// A difference between the base and the view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Change {
    /// The path in the view; in the base, for what is removed.
    pub path: PathBuf,
    /// The difference.
    #[serde(flatten)]
    pub what: What,
    /// The kind of the entry.
    pub kind: Kind,
}

/// A kind of difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum What {
    /// The path is new. The base may have an entry there which the view shows elsewhere.
    Added,
    /// The file was written. Its bytes may still equal the base's.
    Changed,
    /// Its mode, owner or dates were set; its bytes are the base's.
    Metadata,
    /// The view has neither the entry nor the entries in it.
    Removed,
    /// The base has the entry at another path. The list leaves out the entries in it.
    Renamed {
        /// The path in the base.
        from: PathBuf,
    },
}

/// The view is larger than any kit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the view has more than {MOST_ENTRIES} entries")]
pub struct TooLarge;

/// The entries of the view of `upper` over `base`.
///
/// # Errors
/// When there are too many.
pub fn view(base: &Base, upper: &BTreeMap<PathBuf, Upper>) -> Result<View, TooLarge> {
    let (in_base, in_upper) = (children(base.keys()), children(upper.keys()));
    let none = BTreeSet::new();
    let mut view = View::new();
    // A directory of the view, whether it is in upper/ too, and the base's directory below it.
    let root = Some(PathBuf::new());
    let mut open = vec![(PathBuf::new(), true, root)];
    while let Some((directory, is_upper, below)) = open.pop() {
        let own = if is_upper { in_upper.get(directory.as_path()) } else { None };
        let own = own.unwrap_or(&none);
        let of_base = below.as_deref().and_then(|below| in_base.get(below)).unwrap_or(&none);
        for name in own.union(of_base) {
            let path = directory.join(name);
            let base_path = below.as_deref().map(|below| below.join(name));
            let of_base = |path: &PathBuf| base.get(path).map(|entry| entry.kind);
            let redirected = |redirect: &Option<Redirect>| match redirect {
                None => base_path.clone(),
                Some(Redirect::Absolute(path)) => Some(path.clone()),
                Some(Redirect::Sibling(name)) => below.as_deref().map(|below| below.join(name)),
            };
            let entry = match upper.get(&path).filter(|_| own.contains(name)) {
                Some(Upper::Whiteout) => continue,
                Some(Upper::Whole(kind)) => (*kind, Source::Upper),
                Some(Upper::Metadata { redirect }) => {
                    let from =
                        redirected(redirect).filter(|from| of_base(from) == Some(Kind::File));
                    (Kind::File, from.map_or(Source::Upper, Source::Metadata))
                }
                Some(Upper::Directory { is_opaque, redirect, mode }) => {
                    let is_directory = |path: &PathBuf| of_base(path) == Some(Kind::Directory);
                    let from = redirected(redirect).filter(is_directory).filter(|_| !is_opaque);
                    open.push((path.clone(), true, from.clone()));
                    (Kind::Directory, Source::Directory { base: from, mode: *mode })
                }
                None => {
                    let Some(from) = base_path else { continue };
                    let Some(kind) = of_base(&from) else { continue };
                    if kind == Kind::Directory {
                        open.push((path.clone(), false, Some(from.clone())));
                    }
                    (kind, Source::Base(from))
                }
            };
            view.insert(path, entry);
            if view.len() > MOST_ENTRIES {
                return Err(TooLarge);
            }
        }
    }
    Ok(view)
}

/// The differences between a base and a view, by path. The view shows every other entry of the base unchanged; in a
/// renamed folder, at its new place.
pub fn changes(base: &Base, view: &View) -> Vec<Change> {
    let moved: BTreeSet<&Path> =
        view.iter().filter_map(|(path, (_, it))| moved_from(view, path, it)).collect();
    let mut changes = Vec::new();
    for (path, (kind, source)) in view {
        // The base's entry of this path may be elsewhere now. Then the entry here replaces none.
        let replaces = base.contains_key(path) && !moved.contains(path.as_path());
        let what = match (moved_from(view, path, source), source) {
            (Some(from), _) if is_implied(view, path, from) => match source {
                Source::Metadata(_) => Some(What::Metadata),
                Source::Directory { mode, .. } if !has_mode(base, from, *mode) => {
                    Some(What::Metadata)
                }
                _ => None,
            },
            (Some(from), _) => Some(What::Renamed { from: from.to_owned() }),
            (None, _) if !replaces => Some(What::Added),
            // Two places of the view show one entry of the base.
            (None, _) if source_path(source).is_some_and(|from| from != path) => {
                Some(What::Changed)
            }
            (None, Source::Base(_)) => None,
            (None, Source::Metadata(_)) => Some(What::Metadata),
            (None, Source::Directory { base: Some(_), mode }) => {
                (!has_mode(base, path, *mode)).then_some(What::Metadata)
            }
            (None, Source::Upper | Source::Directory { base: None, .. }) => Some(What::Changed),
        };
        changes.extend(what.map(|what| Change { path: path.clone(), what, kind: *kind }));
    }
    let is_removed = |path: &Path| !view.contains_key(path) && !moved.contains(path);
    for (path, entry) in base {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if is_removed(path) && !parent.is_some_and(is_removed) {
            changes.push(Change { path: path.clone(), what: What::Removed, kind: entry.kind });
        }
    }
    changes.sort();
    changes
}

/// The base's path of an entry that the view has at `path`, and not at its old place.
fn moved_from<'a>(view: &View, path: &Path, source: &'a Source) -> Option<&'a Path> {
    source_path(source).filter(|from| *from != path && !stays(view, from))
}

/// Whether an entry of the base is in the view at its own place.
fn stays(view: &View, path: &Path) -> bool {
    view.get(path).is_some_and(|(_, source)| source_path(source) == Some(path))
}

/// The base's entry that an entry of the view is, or whose bytes it has.
fn source_path(source: &Source) -> Option<&Path> {
    match source {
        Source::Base(path)
        | Source::Metadata(path)
        | Source::Directory { base: Some(path), .. } => Some(path),
        Source::Upper | Source::Directory { base: None, .. } => None,
    }
}

/// Whether the folder of `path` is the renamed folder of `from`, so that the rename of the folder implies this one.
fn is_implied(view: &View, path: &Path, from: &Path) -> bool {
    let parent = path.parent().and_then(|parent| view.get(parent));
    let below = parent.and_then(|(_, source)| source_path(source));
    let is_renamed = |below: &Path| Some(below) == from.parent() && !stays(view, below);
    path.file_name() == from.file_name() && below.is_some_and(is_renamed)
}

fn has_mode(base: &Base, path: &Path, mode: u32) -> bool {
    base.get(path).is_some_and(|entry| entry.mode == mode)
}

/// The names in each directory.
fn children<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> HashMap<&'a Path, BTreeSet<OsString>> {
    let mut children: HashMap<&Path, BTreeSet<OsString>> = HashMap::new();
    for path in paths {
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            children.entry(parent).or_default().insert(name.to_owned());
        }
    }
    children
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base() -> Base {
        let directory = BaseEntry { kind: Kind::Directory, mode: 0o755 };
        let file = BaseEntry { kind: Kind::File, mode: 0o644 };
        let entries = [
            ("a", directory),
            ("a/one", file),
            ("a/two", file),
            ("b", directory),
            ("b/deep", directory),
            ("b/deep/three", file),
            ("top", file),
        ];
        entries.map(|(path, entry)| (PathBuf::from(path), entry)).into()
    }

    fn directory() -> Upper {
        Upper::Directory { is_opaque: false, redirect: None, mode: 0o755 }
    }

    fn from(redirect: &str) -> Option<Redirect> {
        Some(Redirect::parse(redirect.as_bytes()).unwrap())
    }

    #[track_caller]
    fn assert_changes(upper: &[(&str, Upper)], expected: &[(&str, What)]) {
        let upper =
            upper.iter().map(|(path, entry)| (PathBuf::from(path), entry.clone())).collect();
        let found = changes(&base(), &view(&base(), &upper).unwrap());
        let found: Vec<_> = found.into_iter().map(|change| (change.path, change.what)).collect();
        let expected: Vec<_> =
            expected.iter().map(|(path, what)| (PathBuf::from(path), what.clone())).collect();
        assert_eq!(found, expected);
    }

    fn renamed(from: &str) -> What {
        What::Renamed { from: PathBuf::from(from) }
    }

    #[test]
    fn nothing_changed_is_no_change() {
        assert_changes(&[], &[]);
        // A copy-up of the folder alone.
        assert_changes(&[("b", directory()), ("b/deep", directory())], &[]);
    }

    #[test]
    fn files_are_added_changed_and_removed() {
        let whole = || Upper::Whole(Kind::File);
        assert_changes(
            &[
                ("a", directory()),
                ("a/one", whole()),
                ("a/two", Upper::Whiteout),
                ("a/new", whole()),
                ("top", Upper::Metadata { redirect: None }),
            ],
            &[
                ("a/new", What::Added),
                ("a/one", What::Changed),
                ("a/two", What::Removed),
                ("top", What::Metadata),
            ],
        );
    }

    #[test]
    fn a_folder_that_is_removed_or_replaced_hides_what_it_had() {
        assert_changes(&[("b", Upper::Whiteout)], &[("b", What::Removed)]);
        let opaque = Upper::Directory { is_opaque: true, redirect: None, mode: 0o755 };
        assert_changes(
            &[("b", opaque), ("b/new", Upper::Whole(Kind::File))],
            &[("b", What::Changed), ("b/deep", What::Removed), ("b/new", What::Added)],
        );
        // A file in the place of a folder, and the reverse.
        assert_changes(
            &[("b", Upper::Whole(Kind::File)), ("top", directory())],
            &[("b", What::Changed), ("b/deep", What::Removed), ("top", What::Changed)],
        );
    }

    #[test]
    fn a_renamed_folder_is_one_change() {
        let moved = |redirect| Upper::Directory { is_opaque: false, redirect, mode: 0o755 };
        assert_changes(&[("b", Upper::Whiteout), ("c", moved(from("b")))], &[("c", renamed("b"))]);
        // Into another folder, with a change in it; and a rename inside a renamed folder.
        assert_changes(
            &[
                ("b", Upper::Whiteout),
                ("a", directory()),
                ("a/c", moved(from("/b"))),
                ("a/c/deep", Upper::Whiteout),
                ("a/c/flat", moved(from("/b/deep"))),
                ("a/c/flat/three", Upper::Whole(Kind::File)),
            ],
            &[
                ("a/c", renamed("b")),
                ("a/c/flat", renamed("b/deep")),
                ("a/c/flat/three", What::Added),
                ("b/deep/three", What::Removed),
            ],
        );
    }

    #[test]
    fn a_renamed_file_keeps_its_bytes() {
        assert_changes(
            &[("top", Upper::Whiteout), ("end", Upper::Metadata { redirect: from("/top") })],
            &[("end", renamed("top"))],
        );
        // Another file has its name by now.
        assert_changes(
            &[
                ("top", Upper::Whole(Kind::File)),
                ("end", Upper::Metadata { redirect: from("top") }),
            ],
            &[("end", renamed("top")), ("top", What::Added)],
        );
    }

    #[test]
    fn redirects_stay_in_the_base() {
        for bad in ["", "/", "/..", "/a/../b", "..", ".", "a/b", "a/"] {
            assert_eq!(Redirect::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(from("/a/b"), Some(Redirect::Absolute("a/b".into())));
        assert_eq!(from("b"), Some(Redirect::Sibling("b".into())));
    }

    fn any_upper() -> impl Strategy<Value = BTreeMap<PathBuf, Upper>> {
        let path = prop::sample::select(vec![
            "a",
            "a/one",
            "a/two",
            "a/new",
            "b",
            "b/deep",
            "b/deep/three",
            "c",
            "c/deep",
            "top",
            "top/x",
        ]);
        let redirect =
            prop::option::of(prop::sample::select(vec!["/b", "/a", "/b/deep", "b", "one"]));
        let redirect = redirect.prop_map(|text| text.and_then(|it| Redirect::parse(it.as_bytes())));
        let entry = prop_oneof![
            Just(Upper::Whiteout),
            (any::<bool>(), redirect.clone()).prop_map(|(is_opaque, redirect)| {
                Upper::Directory { is_opaque, redirect, mode: 0o755 }
            }),
            redirect.prop_map(|redirect| Upper::Metadata { redirect }),
            Just(Upper::Whole(Kind::File)),
        ];
        prop::collection::btree_map(path.prop_map(PathBuf::from), entry, 0..8)
    }

    proptest! {
        /// The base with the changes has the names of the view. Overlayfs shows an entry of the base at one place; of an
        /// upper/ that shows one at several, the list may leave some of them out.
        #[test]
        fn changes_lead_from_the_base_to_the_view(upper in any_upper()) {
            let (base, view) = (base(), view(&base(), &upper).unwrap());
            let list = changes(&base, &view);
            let mut names = BTreeSet::new();
            for entry in base.keys() {
                // The nearest change decides.
                let is_replaced = list.iter().any(|it| it.path == *entry && it.what == What::Changed);
                let place = entry.ancestors().find_map(|above| {
                    let to = list.iter().find_map(|it| match &it.what {
                        What::Renamed { from } if from == above => Some(Some(&it.path)),
                        What::Removed if it.path == above => Some(None),
                        _ => None,
                    })?;
                    Some(to.map(|to| to.join(entry.strip_prefix(above).unwrap())))
                });
                match place {
                    _ if is_replaced => {}
                    Some(None) => {}
                    // A name without anything behind it would end in a slash.
                    Some(Some(to)) => _ = names.insert(to.components().collect::<PathBuf>()),
                    None => _ = names.insert(entry.clone()),
                }
            }
            let named = list.iter().filter(|it| it.what != What::Removed);
            names.extend(named.map(|it| it.path.clone()));
            let there: BTreeSet<PathBuf> = view.keys().cloned().collect();
            let sources: Vec<_> = view.values().filter_map(|(_, it)| source_path(it)).collect();
            let distinct: BTreeSet<_> = sources.iter().collect();
            if distinct.len() == sources.len() {
                prop_assert_eq!(names, there, "{:?}", list);
            }
            for change in &list {
                prop_assert_eq!(view.contains_key(&change.path), change.what != What::Removed, "{:?}", change);
            }
        }
    }
}
