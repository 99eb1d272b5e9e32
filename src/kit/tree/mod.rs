//! The merged tree of a kit.
//!
//! ```text
//! nodes | root | a  b  c | a/x  a/y  c/z | ...     breadth first, siblings sorted by their bytes
//!         '--children--'   '-children of a-' ...   contiguous: a lookup is a binary search
//! names | a b c x y z ...                          one buffer; a node holds offset and length
//! ```
//!
//! A node's number (and with it the inode number, [`NodeId`] + 1) is a function of the kit alone.
//! A node takes 64 bytes and its name: about 80 MB for a million files. Nothing is allocated for a
//! node but the target of a symlink; the map of a sparse file is the layer's. [`Tree::merge`] is in
//! `merge`.

mod directory_mtimes;
mod merge;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Placement;
use crate::layer::{Extents, MemberPath, Mtime, Toc};
use crate::oci::Digest;

/// The position of a node in its tree; 0 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// The place of a file's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Here: the Kitfile.
    Inline(Arc<Bytes>),
    /// In the stream of a layer.
    Stored {
        /// The layer's index in the kit's list of layers.
        layer: u32,
        /// The places of its bytes in the stream, and its holes.
        extents: Extents,
    },
}

impl Content {
    /// The size of the file in bytes, holes included.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Stored { extents, .. } => extents.bytes(),
        }
    }

    /// The bytes that are stored, without holes.
    pub fn stored_bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Stored { extents, .. } => extents.stored_bytes(),
        }
    }
}

/// The kind of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link with its target, as stored.
    Symlink(Box<[u8]>),
}

/// A kit's files and directories.
pub struct Tree {
    /// Never empty: the root is first.
    nodes: Vec<Node>,
    names: Vec<u8>,
    file_bytes: u64,
    has_holes: bool,
    /// The reasons why the content of some nodes (remote data sets) cannot be had.
    missing: BTreeMap<NodeId, Box<str>>,
}

struct Node {
    kind: NodeKind,
    mtime: Mtime,
    parent: u32,
    first_child: u32,
    children: u32,
    subdirectories: u32,
    /// The start of its name in [`Tree::names`].
    name: u32,
    mode: u16,
    name_bytes: u8,
}

/// A layer to merge into a tree.
#[derive(Clone, Copy, Debug)]
pub struct TreeLayer<'a> {
    /// Its index in the kit's list of layers, for [`Content::Stored`].
    pub index: u32,
    /// Its digest, which tells the times of its files from those of another layer.
    pub digest: Digest,
    /// The layer's name in messages.
    pub name: &'a str,
    /// The places of its members.
    pub placement: &'a Placement,
    /// Its members.
    pub toc: &'a Toc,
    /// The time of files without one of their own, and of all files of a layer with a
    /// [`Toc::constant_mtime`].
    pub mtime: Mtime,
}

/// The nodes of a tree beside the members of its layers.
#[derive(Clone, Debug, Default)]
pub struct Additions {
    /// The file `Kitfile` at the root.
    pub kitfile: Option<Bytes>,
    /// Directories with mode 0755, whatever the layers say of them.
    pub directories: Vec<MemberPath>,
    /// Files and directories whose content cannot be had.
    pub missing: Vec<Missing>,
}

/// A file or directory that belongs to a kit, and whose content cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its path.
    pub path: MemberPath,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// The reason, for the user who reads it.
    pub reason: String,
}

impl From<Option<Bytes>> for Additions {
    /// The Kitfile alone.
    fn from(kitfile: Option<Bytes>) -> Self {
        Self { kitfile, ..Self::default() }
    }
}

/// The error for layers that make no tree. Messages name the path and the layers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Two layers (or one layer twice) have a file at the same path; `kit unpack` refuses too.
    #[error("{0}")]
    Collision(String),
    /// A file where another layer has a directory, or something below a file or symlink.
    #[error("{0}")]
    Conflict(String),
    /// A layer's content contradicts the manifest.
    #[error("{0}")]
    Mismatch(String),
    /// A path that is too deep or too long, or too many entries.
    #[error("{0}")]
    TooLarge(String),
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// The number of nodes, the root included.
    #[allow(clippy::len_without_is_empty, reason = "a tree has its root and is never empty")]
    pub fn len(&self) -> u32 {
        // The merge refuses to make more than u32::MAX - 1 nodes.
        self.nodes.len() as u32
    }

    /// The kind of a node.
    pub fn kind(&self, node: NodeId) -> &NodeKind {
        &self.node(node).kind
    }

    /// Permission bits, umask applied.
    pub fn mode(&self, node: NodeId) -> u32 {
        self.node(node).mode.into()
    }

    /// The modification time. The time of a directory is the newest time below it, unless the archive gives the
    /// directory a time. Its nanoseconds change with anything below it.
    pub fn mtime(&self, node: NodeId) -> Mtime {
        self.node(node).mtime
    }

    /// File size in bytes; a symlink's target length; 0 for directories.
    pub fn size(&self, node: NodeId) -> u64 {
        size(&self.node(node).kind)
    }

    /// A node's name; empty for the root.
    pub fn name(&self, node: NodeId) -> &[u8] {
        let node = self.node(node);
        &self.names[node.name as usize..][..node.name_bytes.into()]
    }

    /// The directory that a node is in; the root is its own parent.
    pub fn parent(&self, node: NodeId) -> NodeId {
        NodeId(self.node(node).parent)
    }

    /// The children of a directory, sorted by name; empty for others.
    pub fn children(&self, node: NodeId) -> Range<u32> {
        let node = self.node(node);
        node.first_child..node.first_child + node.children
    }

    /// Directories among the children (a directory's nlink is 2 + this).
    pub fn subdirectories(&self, node: NodeId) -> u32 {
        self.node(node).subdirectories
    }

    /// The child of a directory with this name.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let Range { mut start, mut end } = self.children(directory);
        while start < end {
            let middle = start + (end - start) / 2;
            match self.name(NodeId(middle)).cmp(name) {
                std::cmp::Ordering::Less => start = middle + 1,
                std::cmp::Ordering::Greater => end = middle,
                std::cmp::Ordering::Equal => return Some(NodeId(middle)),
            }
        }
        None
    }

    /// Follows components from the root (no symlinks); empty and `.` components are skipped.
    pub fn resolve(&self, path: &[u8]) -> Option<NodeId> {
        path.split(|&byte| byte == b'/')
            .filter(|component| !matches!(component, [] | [b'.']))
            .try_fold(Self::ROOT, |directory, name| self.lookup(directory, name))
    }

    /// The reason why the content of a node cannot be had, if any. Such a file seems empty, and
    /// such a directory lacks its content.
    pub fn missing(&self, node: NodeId) -> Option<&str> {
        self.missing.get(&node).map(|reason| &**reason)
    }

    /// Every node whose content cannot be had, with the reason.
    pub fn all_missing(&self) -> impl Iterator<Item = (NodeId, &str)> {
        self.missing.iter().map(|(node, reason)| (*node, &**reason))
    }

    /// The path from the root, without a leading slash; empty for the root.
    pub fn path(&self, node: NodeId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = node;
        while at != Self::ROOT {
            names.push(self.name(at));
            at = self.parent(at);
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The sum of all file sizes in bytes, holes left out.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Whether any file has holes.
    pub fn has_holes(&self) -> bool {
        self.has_holes
    }

    fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.0 as usize]
    }
}

fn size(kind: &NodeKind) -> u64 {
    match kind {
        NodeKind::Directory => 0,
        NodeKind::File(content) => content.bytes(),
        NodeKind::Symlink(target) => target.len() as u64,
    }
}

/// The module's documentation and docs/ say so.
const _: () = assert!(size_of::<Node>() == 64);

#[cfg(test)]
mod tests;
