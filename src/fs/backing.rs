//! Files that a kernel may read by itself, from the cache's own files.
//!
//! A file of a kit has at most one: the cache keeps a big member in a file whose byte 0 is the
//! member's byte 0. When it may be used is for the cache to say; what an inode has to do with it
//! is told here. Nothing here waits for the network, and nothing is remembered.

use super::attributes::Ino;
use super::error::FsError;
use super::file_system::FileSystem;
use crate::cache::BackingLookup;
use crate::fetch::FetchError;
use crate::kit::{Content, NodeKind};

impl FileSystem {
    /// Whether a file can be read from a file of the cache now. Looks at the local disk only.
    ///
    /// # Errors
    /// [`FsError::Fetch`] when the layer is poisoned or its file cannot be opened.
    pub fn backing(&self, ino: Ino) -> Result<BackingLookup, FsError> {
        let kit = self.kit();
        let node = self.node(ino)?;
        let NodeKind::File(Content::Stored { layer, extents }) = kit.tree.kind(node) else {
            return Ok(BackingLookup::Never);
        };
        // The cache's file of a sparse member has its data without the holes.
        if !extents.is_contiguous() {
            return Ok(BackingLookup::Never);
        }
        let store = kit.layers[*layer as usize].store();
        let lookup = store.backing(&extents.stored()).map_err(FetchError::from)?;
        if matches!(lookup, BackingLookup::Ready(_)) {
            self.handed_over(node);
        }
        Ok(lookup)
    }

    /// Whether any layer has a member that could be read so.
    pub fn has_big_members(&self) -> bool {
        self.kit().layers.iter().any(|layer| layer.store().has_big_members())
    }

    /// Whether the cache lies where the kernel is never given a file of it.
    pub fn is_on_stacked_file_system(&self) -> bool {
        let layer = self.kit().layers.first();
        layer.is_some_and(|layer| layer.store().is_on_stacked_file_system())
    }
}
