//! The merged tree of a kit.
//!
//! Nodes lie in breadth-first order with siblings sorted by name, so the children of a directory
//! are a contiguous range, a lookup is a binary search, and a node's number (and with it the
//! inode number, [`NodeId`] + 1) is a function of the kit alone.
#![allow(unused_variables, dead_code, missing_docs)]

use std::ops::Range;

use bytes::Bytes;

use super::Placement;
use crate::layer::{StreamOffset, Toc};
use crate::oci::Digest;

/// The position of a node in its tree; 0 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Where the bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Here: the Kitfile.
    Inline(Bytes),
    /// A range of the stream of a layer: an index into the kit's list of layers.
    Extent { layer: u32, range: Range<StreamOffset> },
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    Directory,
    File(Content),
    Symlink(Box<[u8]>),
}

/// A kit's files and directories.
pub struct Tree {}

/// A layer to merge into a tree.
#[derive(Clone, Copy, Debug)]
pub struct TreeLayer<'a> {
    /// Its index in the kit's list of layers, for [`Content::Extent`].
    pub index: u32,
    /// Its digest, for messages.
    pub digest: Digest,
    /// Where its members go.
    pub placement: &'a Placement,
    /// Its members.
    pub toc: &'a Toc,
}

/// Why layers do not make a tree. Messages name the path and the layers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Two layers (or one layer twice) have a file at the same path; `kit unpack` refuses too.
    #[error("{0}")]
    Collision(String),
    /// A file where another layer has a directory, or below a file or symlink.
    #[error("{0}")]
    Conflict(String),
    /// A path that is too deep or too long, or too many entries.
    #[error("{0}")]
    TooLarge(String),
}

impl Tree {
    /// Merges layers in order, and the Kitfile at the root. Missing parents are made with mode
    /// 0755; `umask` is taken from every mode.
    pub fn merge(
        layers: &[TreeLayer<'_>],
        kitfile: Option<Bytes>,
        umask: u32,
    ) -> Result<Self, TreeError> {
        todo!()
    }

    pub const ROOT: NodeId = NodeId(0);
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u32 {
        todo!()
    }
    pub fn kind(&self, node: NodeId) -> &NodeKind {
        todo!()
    }
    /// Permission bits, umask applied.
    pub fn mode(&self, node: NodeId) -> u32 {
        todo!()
    }
    pub fn mtime_seconds(&self, node: NodeId) -> i64 {
        todo!()
    }
    /// File size in bytes; a symlink's target length; 0 for directories.
    pub fn size(&self, node: NodeId) -> u64 {
        todo!()
    }
    pub fn name(&self, node: NodeId) -> &[u8] {
        todo!()
    }
    /// The root is its own parent.
    pub fn parent(&self, node: NodeId) -> NodeId {
        todo!()
    }
    /// The children of a directory, sorted by name; empty for others.
    pub fn children(&self, node: NodeId) -> Range<u32> {
        todo!()
    }
    /// Directories among the children (a directory's nlink is 2 + this).
    pub fn subdirectories(&self, node: NodeId) -> u32 {
        todo!()
    }
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        todo!()
    }
    /// Follows components from the root (no symlinks); empty and `.` components are skipped.
    pub fn resolve(&self, path: &[u8]) -> Option<NodeId> {
        todo!()
    }
    /// The path from the root, without a leading slash; empty for the root.
    pub fn path(&self, node: NodeId) -> Vec<u8> {
        todo!()
    }
    /// The sum of all file sizes in bytes.
    pub fn file_bytes(&self) -> u64 {
        todo!()
    }
}
