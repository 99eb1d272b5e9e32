//! Finds the members of an archive that a later member replaces.
//!
//! An archive is a history: `tar --append` and `tar --update` add a file again, and extraction
//! overwrites the earlier one. So the last member of a path counts:
//!
//! ```text
//! archive          tree
//! a   file         a    the second file
//! a   file
//! b/x file         b    a file: it took the place of the folder and of all in it
//! b   file
//! c   file         c/y  a folder: a path below c took the place of the file
//! c/y file
//! ```
//!
//! GNU tar has the same outcome for `a` and `c` by default, and for `b` with `--recursive-unlink`. A folder that is
//! named again keeps its content and takes the later mode and time.

use std::ops::{Range, RangeInclusive};

use super::member_path::tree_order;
use super::{Member, MemberKind};

/// Warnings about replaced members that are kept: enough to see what kind of archive it is.
const WARNINGS_LIMIT: usize = 16;

/// Marks the members that others replace, and returns warnings about them. Members without a path
/// (raw layers) are left alone.
pub fn mark(members: &mut [Member]) -> Vec<String> {
    if is_a_tree_in_order(members) {
        return Vec::new();
    }
    let mut order: Vec<u32> = (0..members.len() as u32).collect();
    let path = |index: u32| path_of(&members[index as usize]);
    order.sort_by(|&a, &b| tree_order(path(a), path(b)).then(a.cmp(&b)));
    let groups = groups(members, &order);
    let below = below(members, &order, &groups);
    let mut replaced: Vec<u32> = Vec::new();
    let mut warnings = Warnings::default();
    // The non-directories above the current group. Each has the first index that it does not
    // replace.
    let mut above: Vec<(u32, u32)> = Vec::new();
    for (group, below) in groups.into_iter().zip(below) {
        let group = &order[group];
        let path = path(group[0]);
        while above.last().is_some_and(|&(it, _)| !is_below(path, path_of(&members[it as usize]))) {
            above.pop();
        }
        let floor = above.last().map_or(0, |&(_, floor)| floor);
        let kept = Kept::of(members, group, floor, below.as_ref());
        replaced.extend(group.iter().copied().filter(|&index| Some(index) != kept.member));
        warnings.note(members, group, floor, below.as_ref(), &kept);
        if let Some(file) = kept.last_file {
            above.push((group[0], file));
        }
    }
    for index in replaced {
        members[index as usize].is_replaced = true;
    }
    warnings.finish()
}

/// Whether the archive is sorted as by a packer that walks a folder: each path is there once, below
/// directories only. Then nothing has to be looked up.
fn is_a_tree_in_order(members: &[Member]) -> bool {
    members.windows(2).all(|pair| {
        let (first, second) = (path_of(&pair[0]), path_of(&pair[1]));
        tree_order(first, second).is_lt()
            && (pair[0].kind == MemberKind::Directory || !is_below(second, first))
    })
}

fn path_of(member: &Member) -> &[u8] {
    member.path.as_ref().map_or(b"", |path| path.as_bytes())
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.get(directory.len()) == Some(&b'/') && path.starts_with(directory)
}

/// The ranges of `order` with one path each.
fn groups(members: &[Member], order: &[u32]) -> Vec<Range<usize>> {
    let is_same =
        |&a: &u32, &b: &u32| path_of(&members[a as usize]) == path_of(&members[b as usize]);
    let mut end = 0;
    order
        .chunk_by(is_same)
        .map(|group| {
            end += group.len();
            end - group.len()..end
        })
        .collect()
}

/// The lowest and the highest index of members below a path.
type Below = RangeInclusive<u32>;

/// For each group, the members below its path.
fn below(members: &[Member], order: &[u32], groups: &[Range<usize>]) -> Vec<Option<Below>> {
    // Paths whose parents are still to come, from the last in the order to the first. Each has the
    // indexes at and below it.
    let mut open: Vec<(u32, Below)> = Vec::new();
    let mut found: Vec<Option<Below>> = vec![None; groups.len()];
    for (group, found) in groups.iter().zip(&mut found).rev() {
        let group = &order[group.clone()];
        let path = path_of(&members[group[0] as usize]);
        while let Some((_, below)) =
            open.pop_if(|(below, _)| is_below(path_of(&members[*below as usize]), path))
        {
            *found = Some(found.take().map_or(below.clone(), |found| hull(&found, &below)));
        }
        let own = group[0]..=group[group.len() - 1];
        open.push((group[0], found.as_ref().map_or(own.clone(), |found| hull(found, &own))));
    }
    found
}

fn hull(a: &Below, b: &Below) -> Below {
    *a.start().min(b.start())..=*a.end().max(b.end())
}

/// The outcome for a path.
struct Kept {
    /// The member that counts. `None` where nothing does, or a folder without a member of its own.
    member: Option<u32>,
    /// The last file or symlink at the path. It replaced everything below that came before it.
    last_file: Option<u32>,
}

impl Kept {
    /// `floor` is the first index that nothing above replaces.
    fn of(members: &[Member], group: &[u32], floor: u32, below: Option<&Below>) -> Self {
        let is_directory = |index: &u32| members[*index as usize].kind == MemberKind::Directory;
        let live = || group.iter().copied().filter(|&index| index >= floor);
        let last_file = live().rfind(|index| !is_directory(index));
        let last_directory = live().rfind(|index| is_directory(index));
        let is_directory_in_the_end =
            last_directory.max(below.map(|below| *below.end())) > last_file;
        let member = match is_directory_in_the_end {
            true => last_directory.filter(|&index| Some(index) > last_file),
            false => last_file,
        };
        Self { member, last_file }
    }
}

#[derive(Default)]
struct Warnings {
    kept: Vec<String>,
    more: usize,
}

impl Warnings {
    /// Warns about a path, unless its members are folders or one and the same file.
    fn note(
        &mut self,
        members: &[Member],
        group: &[u32],
        floor: u32,
        below: Option<&Below>,
        kept: &Kept,
    ) {
        let Some(file) = kept.last_file else { return };
        let live = group.iter().filter(|&&index| index >= floor);
        let others = live.map(|&index| &members[index as usize]);
        let file_kind = &members[file as usize].kind;
        let others = others.filter(|other| other.kind != *file_kind).collect::<Vec<_>>();
        let is_file = kept.member == Some(file);
        let was_folder = below.is_some_and(|below| *below.start() < file)
            || others.iter().any(|other| other.kind == MemberKind::Directory);
        let what = match is_file {
            false => "is a file and then a folder: the folder counts",
            true if was_folder => {
                "is a folder and then a file: the file counts, and what was in the folder is left out"
            }
            true if !others.is_empty() => "is there more than once: the last one counts",
            true => return,
        };
        if self.kept.len() == WARNINGS_LIMIT {
            self.more += 1;
            return;
        }
        let path = members[file as usize].path.as_ref();
        let path = path.map(ToString::to_string).unwrap_or_default();
        self.kept.push(format!("`{path}` {what}"));
    }

    fn finish(mut self) -> Vec<String> {
        if self.more > 0 {
            self.kept.push(format!("{} more paths are there more than once", self.more));
        }
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::layer::{Extents, MemberPath, StreamOffset};

    fn member(path: &str, number: usize, is_directory: bool) -> Member {
        let kind = match is_directory {
            true => MemberKind::Directory,
            false => MemberKind::File(Extents::contiguous(StreamOffset(number as u64).range(1))),
        };
        let path = MemberPath::parse(path.as_bytes()).ok();
        Member { path, kind, mode: 0o644, mtime: None, is_replaced: false }
    }

    fn marked(members: &[(&str, bool)]) -> (Vec<bool>, Vec<String>) {
        let members = members.iter().enumerate();
        let mut members: Vec<_> = members.map(|(n, &(path, is))| member(path, n, is)).collect();
        let warnings = mark(&mut members);
        (members.iter().map(|member| member.is_replaced).collect(), warnings)
    }

    /// Extracts one member after the other: a map from each path to the number of its member,
    /// `None` for folders without one.
    fn extracted(members: &[(String, bool)]) -> BTreeMap<String, Option<usize>> {
        let mut tree: BTreeMap<String, (Option<usize>, bool)> = BTreeMap::new();
        for (number, (path, is_directory)) in members.iter().enumerate() {
            for (slash, _) in path.match_indices('/') {
                let above = tree.entry(path[..slash].to_owned()).or_insert((None, true));
                if !above.1 {
                    *above = (None, true);
                }
            }
            if !is_directory {
                tree.retain(|it, _| !it.starts_with(&format!("{path}/")));
            }
            tree.insert(path.clone(), (Some(number), *is_directory));
        }
        tree.into_iter().map(|(path, (number, _))| (path, number)).collect()
    }

    proptest! {
        #[test]
        fn the_shown_members_are_those_that_extraction_leaves(
            members in prop::collection::vec(("[ab.]{1,2}(/[ab.]{1,2}){0,3}", any::<bool>()), 0..12),
        ) {
            let members: Vec<_> =
                members.into_iter().filter(|(path, _)| !path.split('/').any(|it| it.starts_with('.'))).collect();
            let mut table: Vec<_> =
                members.iter().enumerate().map(|(n, (path, is))| member(path, n, *is)).collect();
            let warnings = mark(&mut table);
            let mut shown: BTreeMap<String, Option<usize>> = BTreeMap::new();
            for (number, member) in table.iter().enumerate().filter(|(_, it)| !it.is_replaced) {
                let path = members[number].0.clone();
                prop_assert_eq!(member.path.as_ref().unwrap().as_bytes(), path.as_bytes());
                for (slash, _) in path.match_indices('/') {
                    shown.entry(path[..slash].to_owned()).or_default();
                }
                prop_assert_eq!(shown.insert(path, Some(number)).flatten(), None);
            }
            prop_assert_eq!(shown, extracted(&members));
            let replaced = || table.iter().filter(|member| member.is_replaced);
            let is_file_replaced = replaced().any(|it| it.kind != MemberKind::Directory);
            prop_assert!(!is_file_replaced || !warnings.is_empty());
            prop_assert!(replaced().count() > 0 || warnings.is_empty());
        }
    }

    #[test]
    fn the_last_member_of_a_path_counts() {
        let (replaced, warnings) = marked(&[("a", false), ("b", true), ("a", false)]);
        assert_eq!(replaced, [true, false, false]);
        assert_eq!(warnings, ["`a` is there more than once: the last one counts"]);
        let (replaced, warnings) = marked(&[("a", true), ("a/x", false), ("a", true)]);
        assert_eq!(replaced, [true, false, false]);
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_file_takes_the_place_of_a_folder_with_all_in_it_and_a_folder_that_of_a_file() {
        let (replaced, warnings) = marked(&[("a", true), ("a/x/y", false), ("a", false)]);
        assert_eq!(replaced, [true, true, false]);
        assert_eq!(
            warnings,
            [
                "`a` is a folder and then a file: the file counts, and what was in the folder is left out"
            ]
        );
        let (replaced, warnings) = marked(&[("a", false), ("a/x", false)]);
        assert_eq!(replaced, [true, false]);
        assert_eq!(warnings, ["`a` is a file and then a folder: the folder counts"]);
        let history = [("a/x", false), ("a", false), ("a/y", false)];
        assert_eq!(marked(&history).0, [true, true, false]);
    }

    #[test]
    fn a_file_that_links_to_itself_is_no_surprise() {
        let file = member("a", 0, false);
        let mut members = [file.clone(), file];
        assert!(mark(&mut members).is_empty());
        assert!(members[0].is_replaced && !members[1].is_replaced);
    }

    #[test]
    fn warnings_are_bounded() {
        let names: Vec<String> =
            (0..40).flat_map(|n| [format!("{n:02}"), format!("{n:02}")]).collect();
        let members: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), false)).collect();
        let (_, warnings) = marked(&members);
        assert_eq!(warnings.len(), WARNINGS_LIMIT + 1);
        assert_eq!(warnings[WARNINGS_LIMIT], "24 more paths are there more than once");
    }
}
