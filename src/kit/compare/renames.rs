//! Makes one rename of a removed and an added file with the same content.
//!
//! Files are paired by the place of their bytes first, then by digest. Among several with one content,
//! files of one name are paired first, then the rest in the order of their paths. So both directions of a
//! comparison have the same pairs. Files without content are never renamed: too many are alike.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

use super::{Change, ChangeKind, Version};
use crate::kit::{NodeId, NodeKind};

/// A file that may be half of a rename.
#[derive(Clone, Copy)]
struct Half {
    node: NodeId,
    /// Whether only the packer says what it contains.
    is_claimed: bool,
}

/// The files of both versions with one content.
#[derive(Default)]
struct Alike {
    old: Vec<Half>,
    new: Vec<Half>,
}

struct Renames<'a> {
    before: Version<'a>,
    after: Version<'a>,
    /// Files that were removed, and are not paired yet.
    old: Vec<NodeId>,
    /// Files that were added, and are not paired yet.
    new: Vec<NodeId>,
    /// The earlier file, by the later one.
    pairs: HashMap<NodeId, Half>,
}

/// Puts a rename in the place of each pair of a removal and an addition.
pub(super) fn find(changes: &mut Vec<Change>, before: Version<'_>, after: Version<'_>) {
    let is_file = |version: Version<'_>, node: NodeId| {
        matches!(version.tree.kind(node), NodeKind::File(_)) && version.tree.size(node) > 0
    };
    let of_kind = |kind| changes.iter().filter(move |change| change.kind == kind);
    let old = of_kind(ChangeKind::Removed).filter_map(|change| change.before);
    let new = of_kind(ChangeKind::Added).filter_map(|change| change.after);
    let mut renames = Renames {
        before,
        after,
        old: old.filter(|&node| is_file(before, node)).collect(),
        new: new.filter(|&node| is_file(after, node)).collect(),
        pairs: HashMap::new(),
    };
    renames.match_up(|version, node| {
        let (digest, encoding, extents) = version.place(node)?;
        let stored = extents.stored();
        Some(((digest, encoding, stored.start, stored.end, extents.bytes()), false))
    });
    renames.match_up(|version, node| {
        let known = version.digest(node)?;
        Some(((known.digest, version.tree.size(node)), known.is_claimed))
    });
    renames.put_into(changes);
}

impl<'a> Renames<'a> {
    /// Pairs files with equal keys. The key says whether only the packer vouches for it.
    fn match_up<K: Eq + Hash>(&mut self, key: impl Fn(Version<'a>, NodeId) -> Option<(K, bool)>) {
        if self.old.is_empty() || self.new.is_empty() {
            return;
        }
        let mut groups: HashMap<K, Alike> = HashMap::new();
        for &node in &self.old {
            if let Some((key, is_claimed)) = key(self.before, node) {
                groups.entry(key).or_default().old.push(Half { node, is_claimed });
            }
        }
        for &node in &self.new {
            if let Some((key, is_claimed)) = key(self.after, node) {
                groups.entry(key).or_default().new.push(Half { node, is_claimed });
            }
        }
        let mut taken = HashSet::new();
        for alike in groups.into_values() {
            for (old, new) in self.pair(alike) {
                taken.insert(old.node);
                let is_claimed = old.is_claimed || new.is_claimed;
                self.pairs.insert(new.node, Half { is_claimed, ..old });
            }
        }
        self.old.retain(|node| !taken.contains(node));
        self.new.retain(|node| !self.pairs.contains_key(node));
    }

    fn pair(&self, Alike { mut old, mut new }: Alike) -> Vec<(Half, Half)> {
        let mut by_name: HashMap<&[u8], VecDeque<Half>> = HashMap::new();
        for half in &old {
            by_name.entry(self.before.name(half.node)).or_default().push_back(*half);
        }
        let mut pairs = Vec::new();
        new.retain(|half| {
            let of_name = by_name.get_mut(self.after.name(half.node));
            let Some(old) = of_name.and_then(VecDeque::pop_front) else { return true };
            pairs.push((old, *half));
            false
        });
        let paired: HashSet<NodeId> = pairs.iter().map(|(old, _)| old.node).collect();
        old.retain(|half| !paired.contains(&half.node));
        pairs.extend(old.into_iter().zip(new));
        pairs
    }

    fn put_into(self, changes: &mut Vec<Change>) {
        let old: HashSet<NodeId> = self.pairs.values().map(|half| half.node).collect();
        changes.retain_mut(|change| match (change.kind, change.before, change.after) {
            (ChangeKind::Removed, Some(node), _) => !old.contains(&node),
            (ChangeKind::Added, _, Some(node)) => {
                if let Some(half) = self.pairs.get(&node) {
                    *change = Change {
                        kind: ChangeKind::Renamed,
                        before: Some(half.node),
                        is_claimed: half.is_claimed,
                        ..*change
                    };
                }
                true
            }
            _ => true,
        });
    }
}
