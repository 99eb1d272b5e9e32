//! Backing files: files of the cache that a kernel may read by itself (FUSE passthrough).
//!
//! A file of a kit has at most one backing file. The cache keeps a big member in a file whose byte
//! 0 is the member's byte 0. The cache decides when the kernel may read that file; this module
//! finds the cache's file of an inode. Nothing here waits for the network or keeps state.

use super::attributes::Ino;
use super::error::FsError;
use super::file_system::FileSystem;
use crate::cache::{BackingLookup, MemberPin};
use crate::fetch::FetchError;
use crate::kit::{Content, NodeKind};

impl FileSystem {
    /// Finds the backing file of an inode, if the kernel may read one now. Looks at the local disk
    /// only.
    ///
    /// # Errors
    /// [`FsError::Fetch`] when the layer is poisoned or its file cannot be opened.
    pub fn backing(&self, ino: Ino) -> Result<BackingLookup, FsError> {
        let kit = self.kit();
        let node = self.node(ino)?;
        let NodeKind::File(Content::Stored { layer, extents }) = kit.tree.kind(node) else {
            return Ok(BackingLookup::Never);
        };
        // The cache's file of a sparse member has the data without the holes, so offsets differ.
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

    /// Finds the pin of an inode's backing file that the kernel has open since an earlier process.
    ///
    /// # Errors
    /// [`FsError::NotFound`] for an unknown inode.
    pub fn handed_out_before(&self, ino: Ino) -> Result<Option<MemberPin>, FsError> {
        let kit = self.kit();
        let NodeKind::File(Content::Stored { layer, extents }) = kit.tree.kind(self.node(ino)?)
        else {
            return Ok(None);
        };
        let store = kit.layers[*layer as usize].store();
        Ok(store.handed_out_before(&extents.stored()))
    }

    /// `true` if any layer has a member that is large enough for a backing file.
    pub fn has_big_members(&self) -> bool {
        self.kit().layers.iter().any(|layer| layer.store().has_big_members())
    }

    /// `true` if the cache lies on a stacked file system, where it hands out no backing files.
    pub fn is_on_stacked_file_system(&self) -> bool {
        let layer = self.kit().layers.first();
        layer.is_some_and(|layer| layer.store().is_on_stacked_file_system())
    }
}
