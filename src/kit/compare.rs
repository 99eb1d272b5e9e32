//! Two versions of a kit, file by file.
//!
//! ```text
//! both trees --walk side by side--> pairs of files --verdict--> same | changed | maybe
//!                '--> on one side only --renames--> added | removed | renamed
//! ```
//!
//! The comparison reads no byte of a file. Two files are
//!
//! - the same, if they are the same bytes of the same layer, or their digests are equal;
//! - changed, if their sizes or digests differ;
//! - *maybe* changed, if nothing here tells: the layers differ, the sizes do not, and a digest is unknown.
//!
//! The digest of a file is known if its layer is that file, or the packer has listed it
//! ([`FileDigests`]). A listed digest is the packer's claim: each verdict says whether it rests on one.
//! [`LayerFiles::check`] drops a list that contradicts the tree.
//!
//! Directories count only if they are empty or appear in the place of a file.

mod renames;

use super::{Content, FileDigests, NodeId, NodeKind, Tree};
use crate::layer::{Extents, MemberPath};
use crate::oci::{Digest, Encoding};

/// One of two versions.
#[derive(Clone, Copy)]
pub struct Version<'a> {
    /// Its files.
    pub tree: &'a Tree,
    /// Its layers, as [`Content::Stored`] numbers them.
    pub layers: &'a [LayerFiles],
}

/// The facts about a layer's files.
#[derive(Clone, Debug)]
pub struct LayerFiles {
    /// The digest of the blob.
    pub digest: Digest,
    /// The layout and compression of the blob.
    pub encoding: Encoding,
    /// The digests that the packer has listed.
    pub claims: Option<FileDigests>,
}

/// The digest of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownDigest {
    /// The sha256 of the content.
    pub digest: Digest,
    /// Whether only the packer says so.
    pub is_claimed: bool,
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChangeKind {
    /// Only the later version has it.
    Added,
    /// Only the earlier version has it.
    Removed,
    /// The content differs, or one is a file and the other a symlink.
    Changed,
    /// The same content at another path.
    Renamed,
    /// The same content with other permission bits.
    Mode,
    /// Nothing tells whether the content differs.
    Maybe,
}

/// A difference between two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its kind.
    pub kind: ChangeKind,
    /// The node in the earlier version.
    pub before: Option<NodeId>,
    /// The node in the later version.
    pub after: Option<NodeId>,
    /// Whether the verdict rests on a packer's claim.
    pub is_claimed: bool,
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// The differences, in the order of the later version's tree.
    pub changes: Vec<Change>,
    /// The number of files and symlinks that are the same at the same path.
    pub same: u64,
    /// The part of them that are the same by a packer's claim.
    pub claimed_same: u64,
}

/// Whether two nodes at one path are the same.
enum Verdict {
    Same { is_claimed: bool },
    Changed { is_claimed: bool },
    Maybe,
}

/// The place of a file's bytes, for files that lie in the same layer of both versions.
type Place<'a> = (Digest, Encoding, &'a Extents);

impl LayerFiles {
    /// Drops the packer's lists that contradict the tree: another set of files, or another size. Returns
    /// the reason for each list that was dropped, with the layer's number.
    pub fn check(layers: &mut [Self], tree: &Tree) -> Vec<(usize, String)> {
        if layers.iter().all(|layer| layer.claims.is_none()) {
            return Vec::new();
        }
        let mut wrong: Vec<(usize, String)> = Vec::new();
        for node in (0..tree.len()).map(NodeId) {
            let NodeKind::File(Content::Stored { layer, .. }) = tree.kind(node) else { continue };
            let number = *layer as usize;
            let Some(claims) = &layers[number].claims else { continue };
            let path = tree.path(node);
            let claim = MemberPath::parse(&path).ok().and_then(|path| claims.get(&path));
            let shown = || String::from_utf8_lossy(&path).into_owned();
            let (bytes, claimed_bytes) = (tree.size(node), claim.map(|claim| claim.size));
            let fault = match claimed_bytes {
                Some(claimed) if claimed == bytes => continue,
                Some(claimed) => format!("`{}` has {bytes} bytes, and not {claimed}", shown()),
                None => format!("`{}` is not listed", shown()),
            };
            layers[number].claims = None;
            wrong.push((number, fault));
        }
        for (number, layer) in layers.iter_mut().enumerate() {
            let is_there = |path: &MemberPath| {
                let node = tree.resolve(path.as_bytes());
                node.is_some_and(|node| match tree.kind(node) {
                    NodeKind::File(Content::Stored { layer, .. }) => *layer as usize == number,
                    // The Kitfile, which may lie in a layer too.
                    NodeKind::File(Content::Inline(_)) => true,
                    NodeKind::Directory | NodeKind::Symlink(_) => false,
                })
            };
            let stranger = layer.claims.as_ref().and_then(|claims| {
                claims.iter().find(|claim| !is_there(&claim.path)).map(|claim| claim.path.clone())
            });
            if let Some(path) = stranger {
                layer.claims = None;
                wrong.push((number, format!("`{path}` is not in the layer")));
            }
        }
        wrong.sort();
        wrong
    }
}

impl<'a> Version<'a> {
    /// The digest of a file, as far as it is known without reading it.
    pub fn digest(self, node: NodeId) -> Option<KnownDigest> {
        match self.tree.kind(node) {
            _ if self.tree.missing(node).is_some() => None,
            NodeKind::File(Content::Inline(bytes)) => {
                Some(KnownDigest { digest: Digest::of(bytes), is_claimed: false })
            }
            NodeKind::File(Content::Stored { layer, .. }) => {
                let layer = &self.layers[*layer as usize];
                if layer.encoding == Encoding::RAW {
                    return Some(KnownDigest { digest: layer.digest, is_claimed: false });
                }
                let path = MemberPath::parse(&self.tree.path(node)).ok()?;
                let digest = layer.claims.as_ref()?.get(&path)?.digest;
                Some(KnownDigest { digest, is_claimed: true })
            }
            NodeKind::Directory | NodeKind::Symlink(_) => None,
        }
    }

    fn place(self, node: NodeId) -> Option<Place<'a>> {
        match self.tree.kind(node) {
            NodeKind::File(Content::Stored { layer, extents }) => {
                let layer = &self.layers[*layer as usize];
                Some((layer.digest, layer.encoding, extents))
            }
            NodeKind::File(Content::Inline(_)) | NodeKind::Directory | NodeKind::Symlink(_) => None,
        }
    }

    fn is_directory(self, node: NodeId) -> bool {
        matches!(self.tree.kind(node), NodeKind::Directory)
    }

    /// The last component of a node's path.
    fn name(self, node: NodeId) -> &'a [u8] {
        self.tree.name(node)
    }
}

/// Compares what lies at and below two nodes, which are the same path in both versions. `None`: the path is
/// in the other version only.
pub fn compare(
    before: Version<'_>,
    after: Version<'_>,
    at: (Option<NodeId>, Option<NodeId>),
) -> Compared {
    let mut compared = Compared::default();
    let mut pending = vec![at];
    while let Some((old, new)) = pending.pop() {
        let old_directory = old.filter(|&node| before.is_directory(node));
        let new_directory = new.filter(|&node| after.is_directory(node));
        // A file whose data cannot be had cannot be compared.
        let is_missing = old.is_some_and(|node| before.tree.missing(node).is_some())
            || new.is_some_and(|node| after.tree.missing(node).is_some());
        match (old, new) {
            (None, None) => {}
            (Some(_), Some(_)) if is_missing => compared.add(ChangeKind::Maybe, old, new, false),
            _ if old_directory.is_some() && new_directory.is_some() => {
                push_pairs(&mut pending, before.tree, old_directory, after.tree, new_directory);
            }
            // A directory in the place of a file: two entries with one path.
            (Some(_), Some(_)) if old_directory.is_some() || new_directory.is_some() => {
                pending.extend([(None, new), (old, None)]);
            }
            (Some(old), Some(new)) => compared.pair(before, old, after, new),
            (Some(node), None) | (None, Some(node)) => {
                let tree = if old.is_some() { before.tree } else { after.tree };
                let is_leaf = tree.children(node).is_empty();
                match (is_leaf, old.is_some()) {
                    (true, true) => compared.add(ChangeKind::Removed, old, None, false),
                    (true, false) => compared.add(ChangeKind::Added, None, new, false),
                    (false, _) => {
                        push_pairs(&mut pending, before.tree, old, after.tree, new);
                    }
                }
            }
        }
    }
    renames::find(&mut compared.changes, before, after);
    compared
}

impl Compared {
    fn add(
        &mut self,
        kind: ChangeKind,
        before: Option<NodeId>,
        after: Option<NodeId>,
        is_claimed: bool,
    ) {
        self.changes.push(Change { kind, before, after, is_claimed });
    }

    fn pair(&mut self, before: Version<'_>, old: NodeId, after: Version<'_>, new: NodeId) {
        let (kind, is_claimed) = match verdict(before, old, after, new) {
            Verdict::Same { is_claimed } if before.tree.mode(old) == after.tree.mode(new) => {
                self.same += 1;
                self.claimed_same += u64::from(is_claimed);
                return;
            }
            Verdict::Same { is_claimed } => (ChangeKind::Mode, is_claimed),
            Verdict::Changed { is_claimed } => (ChangeKind::Changed, is_claimed),
            Verdict::Maybe => (ChangeKind::Maybe, false),
        };
        self.add(kind, Some(old), Some(new), is_claimed);
    }
}

/// Pushes the children of two directories, paired by name, so that they are popped in the order of names.
fn push_pairs(
    pending: &mut Vec<(Option<NodeId>, Option<NodeId>)>,
    before: &Tree,
    old: Option<NodeId>,
    after: &Tree,
    new: Option<NodeId>,
) {
    let mut old = old.map(|node| before.children(node)).unwrap_or_default().rev().peekable();
    let mut new = new.map(|node| after.children(node)).unwrap_or_default().rev().peekable();
    loop {
        let old_name = old.peek().map(|&node| before.name(NodeId(node)));
        let new_name = new.peek().map(|&node| after.name(NodeId(node)));
        // The last name first. `None` is less than every name.
        let pair = match old_name.cmp(&new_name) {
            std::cmp::Ordering::Equal if old_name.is_none() => return,
            std::cmp::Ordering::Equal => (old.next(), new.next()),
            std::cmp::Ordering::Greater => (old.next(), None),
            std::cmp::Ordering::Less => (None, new.next()),
        };
        pending.push((pair.0.map(NodeId), pair.1.map(NodeId)));
    }
}

fn verdict(before: Version<'_>, old: NodeId, after: Version<'_>, new: NodeId) -> Verdict {
    let certain = |is_same| match is_same {
        true => Verdict::Same { is_claimed: false },
        false => Verdict::Changed { is_claimed: false },
    };
    match (before.tree.kind(old), after.tree.kind(new)) {
        (NodeKind::Symlink(old), NodeKind::Symlink(new)) => return certain(old == new),
        (NodeKind::File(_), NodeKind::File(_)) => {}
        _ => return certain(false),
    }
    let (old_bytes, new_bytes) = (before.tree.size(old), after.tree.size(new));
    if old_bytes != new_bytes || old_bytes == 0 {
        return certain(old_bytes == new_bytes);
    }
    let place = before.place(old);
    if place.is_some() && place == after.place(new) {
        return certain(true);
    }
    match (before.digest(old), after.digest(new)) {
        (Some(old), Some(new)) => {
            let is_claimed = old.is_claimed || new.is_claimed;
            match old.digest == new.digest {
                true => Verdict::Same { is_claimed },
                false => Verdict::Changed { is_claimed },
            }
        }
        _ => Verdict::Maybe,
    }
}

#[cfg(test)]
mod tests;
