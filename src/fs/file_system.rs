//! The requests of a kernel to a loaded kit: lookup, attributes, entries, open, read.

use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::mpsc;

use super::attributes::{Attributes, FileKind, Ino, Owner, Totals};
use super::begun::ReadChunks;
use super::config::FsConfig;
use super::error::FsError;
use super::kit::LoadedKit;
use super::read::{PendingRead, Read};
use super::readahead::ledger::{HEAD_START, LedgerState};
use super::readahead::{HostRate, Observed, Readahead};
use super::stored_file::StoredFile;
use super::tensor_prefetch::TensorPrefetch;
use super::trace::{AccessLog, FileRead};
use super::xattr;
use crate::cache::page_aligned;
use crate::fetch::{Cause, Layer, PastTransfer};
use crate::kit::{Content, NodeId, NodeKind};
use crate::layer::{Extents, StreamOffset, member_path};

/// The rate of the host that a layer comes from, as measured so far.
pub(super) fn host_rate(layer: &Layer) -> HostRate {
    HostRate {
        request_bytes: layer.request_bytes(),
        head_start_bytes: layer.bytes_in(HEAD_START),
        round_trip_bytes: layer.bytes_in(layer.round_trip()),
    }
}

/// Read and write for the owner of a file.
const OWNER_WRITES_FILE: u32 = 0o600;
/// List, enter and change for the owner of a directory.
const OWNER_USES_DIRECTORY: u32 = 0o700;

/// A loaded kit as a file system. All methods may be called from any thread.
pub struct FileSystem {
    kit: Arc<LoadedKit>,
    owner: Owner,
    config: FsConfig,
    readahead: Arc<Readahead>,
    tensors: Option<TensorPrefetch>,
    log: AccessLog,
    read_chunks: ReadChunks,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry<'a> {
    /// The inode.
    pub ino: Ino,
    /// The kind of the inode.
    pub kind: FileKind,
    /// The name: `.`, `..`, or any bytes except `/` and NUL.
    pub name: &'a [u8],
    /// The offset of the entry that follows.
    pub next_offset: u64,
}

/// The target of [`FileSystem::seek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// Stored bytes.
    Data,
    /// Zeros that are not stored, or the end of the file.
    Hole,
}

/// The rights that a caller of `access` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Read a file, list a directory.
    pub read: bool,
    /// Change anything.
    pub write: bool,
    /// Run a file, pass through a directory.
    pub execute: bool,
}

impl FileSystem {
    /// A file system over `kit` whose files belong to `owner`.
    ///
    /// The caller's tokio runtime reads the headers of tensor files. Without a runtime there is no
    /// tensor prefetch.
    pub fn new(kit: Arc<LoadedKit>, owner: Owner, config: FsConfig) -> Self {
        let readahead = Arc::<Readahead>::default();
        let tensors = config.tensor_prefetch.then(|| TensorPrefetch::new(&kit, &readahead));
        Self {
            read_chunks: ReadChunks::new(kit.layers.len()),
            kit,
            owner,
            config,
            readahead,
            tensors: tensors.flatten(),
            log: AccessLog::default(),
        }
    }

    /// The kit.
    pub fn kit(&self) -> &Arc<LoadedKit> {
        &self.kit
    }

    /// The bytes of the kit that are in the cache. In an incomplete layer, bytes that came with the headers when
    /// the kit was opened count only after a reader of this mount has read there.
    pub fn resident_bytes(&self) -> u64 {
        let layers = self.kit.layers.iter().enumerate().map(|(index, layer)| {
            if layer.store().is_complete() {
                return layer.resident_bytes();
            }
            let unread =
                layer.scanned().filter(|(chunk, _)| !self.read_chunks.has(index as u32, *chunk));
            let unread: u64 = unread.map(|(_, filled)| u64::from(filled)).sum();
            layer.resident_bytes().saturating_sub(unread)
        });
        layers.fold(0, u64::saturating_add)
    }

    /// Records every read from now on, until the receiver is dropped. `None` while another recorder
    /// runs.
    pub fn record(&self) -> Option<mpsc::Receiver<FileRead>> {
        self.log.start()
    }

    /// The number of reads since the last call that the recorder was too slow to take.
    pub fn take_lost(&self) -> u64 {
        self.log.take_lost()
    }

    /// The ranges that complete the files that readers have begun, by layer. Looks at every file of
    /// the kit.
    pub fn begun(&self) -> Vec<(u32, Vec<Range<StreamOffset>>)> {
        self.read_chunks.begun(&self.kit)
    }

    /// The files that readers have read from, and the parts that were read. Looks at every file of the kit.
    pub(super) fn read_files(&self) -> Vec<(Ino, Range<u64>)> {
        let read = self.read_chunks.read(&self.kit).into_iter();
        let files = read.flat_map(|(layer, ranges)| {
            self.sharers(self.kit.layers[layer as usize].key(), &ranges)
        });
        files.collect()
    }

    /// Waits until a reader reads a chunk that no reader has read before. For one waiting task.
    pub async fn read_on(&self) {
        self.read_chunks.changed().await;
    }

    /// The bytes that were fetched ahead of readers, and the part of them that readers then read.
    pub fn ledger(&self) -> LedgerState {
        self.readahead.ledger().state()
    }

    /// The entry `name` of a directory.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotADirectory`], [`FsError::NameTooLong`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, FsError> {
        let directory = self.directory(parent)?;
        if name.len() > Totals::NAME_BYTES as usize {
            return Err(FsError::NameTooLong);
        }
        match self.kit.tree.lookup(directory, name) {
            Some(node) => Ok(self.attributes_of(node)),
            None => self.check_is_there(directory).and(Err(FsError::NotFound)),
        }
    }

    /// The remembered transfers that touch a range of a file, the oldest first.
    pub fn transfers(&self, ino: Ino, range: &Range<u64>) -> Vec<PastTransfer> {
        let file = self.node(ino).ok().and_then(|node| StoredFile::of(&self.kit, node));
        file.map_or_else(Vec::new, |file| {
            let end = range.end.min(file.extents.bytes());
            let start = range.start.min(end);
            file.layer.past(&file.extents.stored_of(start..end)).transfers
        })
    }

    /// The attributes of an inode, for `stat`.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, FsError> {
        Ok(self.attributes_of(self.node(ino)?))
    }

    /// The entries of a directory from `offset` on: 0, or the [`DirectoryEntry::next_offset`] of an
    /// entry. Offsets stay valid for ever.
    pub fn entries(
        &self,
        ino: Ino,
        offset: u64,
    ) -> Result<impl Iterator<Item = DirectoryEntry<'_>>, FsError> {
        let directory = self.directory(ino)?;
        self.check_is_there(directory)?;
        let tree = &self.kit.tree;
        let children = tree.children(directory);
        let count = u64::from(children.end - children.start) + 2;
        Ok((offset.min(count)..count).map(move |position| {
            let (node, name): (NodeId, &[u8]) = match position {
                0 => (directory, b"."),
                1 => (tree.parent(directory), b".."),
                _ => {
                    let child = NodeId(children.start + (position - 2) as u32);
                    (child, tree.name(child))
                }
            };
            let (ino, kind) = (Ino::of(node), self.kind_of(node));
            DirectoryEntry { ino, kind, name, next_offset: position + 1 }
        }))
    }

    /// The target of a symbolic link, as stored.
    pub fn link_target(&self, ino: Ino) -> Result<&[u8], FsError> {
        match self.kit.tree.kind(self.node(ino)?) {
            NodeKind::Symlink(target) => Ok(target),
            NodeKind::Directory | NodeKind::File(_) => Err(FsError::NotASymlink),
        }
    }

    /// The totals of the kit, for `statfs`.
    pub fn totals(&self) -> Totals {
        let tree = &self.kit.tree;
        Totals { file_bytes: tree.file_bytes(), inodes: u64::from(tree.len()) }
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<String, FsError> {
        xattr::value(&self.kit, self.node(ino)?, name).ok_or(FsError::NoSuchAttribute)
    }

    /// Checks that the mode grants `caller` the rights in `wanted`. Ignores supplementary groups,
    /// which the kernel checks by itself (`default_permissions`).
    ///
    /// # Errors
    /// [`FsError::ReadOnly`] for writing, with any mode; [`FsError::Denied`].
    pub fn access(&self, ino: Ino, caller: Owner, wanted: Access) -> Result<(), FsError> {
        let node = self.node(ino)?;
        if wanted.write {
            return Err(FsError::ReadOnly);
        }
        let mode = self.kit.tree.mode(node);
        let is_directory = self.kind_of(node) == FileKind::Directory;
        let granted = match caller.uid {
            // root reads every file, and runs a file that has any execute bit.
            0 => 0o4 | u32::from(is_directory || mode & 0o111 != 0),
            uid if uid == self.owner.uid => mode >> 6,
            _ if caller.gid == self.owner.gid => mode >> 3,
            _ => mode,
        };
        let needed = u32::from(wanted.read) << 2 | u32::from(wanted.execute);
        if granted & needed == needed { Ok(()) } else { Err(FsError::Denied) }
    }

    /// The first byte of data, or of a hole, from `offset` on (`SEEK_DATA`, `SEEK_HOLE` of lseek(2)).
    ///
    /// # Errors
    /// [`FsError::NoSuchOffset`] beyond the end of the file, and for data where only a hole follows.
    pub fn seek(&self, ino: Ino, offset: u64, wanted: Seek) -> Result<u64, FsError> {
        let whole;
        let extents = match self.kit.tree.kind(self.node(ino)?) {
            NodeKind::Directory | NodeKind::Symlink(_) => return Err(FsError::NotAFile),
            NodeKind::File(Content::Stored { extents, .. }) => extents,
            NodeKind::File(Content::Inline(bytes)) => {
                whole = Extents::contiguous(StreamOffset(0)..StreamOffset(bytes.len() as u64));
                &whole
            }
        };
        let found = match wanted {
            Seek::Data => extents.next_data(offset),
            Seek::Hole => extents.next_hole(offset),
        };
        found.ok_or(FsError::NoSuchOffset)
    }

    /// Checks that a file can be read. Opening changes no state.
    pub fn open(&self, ino: Ino, for_writing: bool) -> Result<(), FsError> {
        let node = self.node(ino)?;
        match self.kit.tree.kind(node) {
            NodeKind::Directory => Err(FsError::IsADirectory),
            NodeKind::Symlink(_) => Err(FsError::NotAFile),
            NodeKind::File(_) if for_writing => Err(FsError::ReadOnly),
            NodeKind::File(_) => self.check_is_there(node),
        }
    }

    /// Reads up to `size` bytes at `offset`; fewer at the end of the file.
    ///
    /// Resident bytes of a layer are copied into `buffer`, which grows as needed.
    pub fn read<'a>(
        &'a self,
        ino: Ino,
        offset: u64,
        size: u32,
        buffer: &'a mut BytesMut,
    ) -> Result<Read<'a>, FsError> {
        let node = self.node(ino)?;
        let content = match self.kit.tree.kind(node) {
            NodeKind::Directory => return Err(FsError::IsADirectory),
            NodeKind::Symlink(_) => return Err(FsError::NotAFile),
            NodeKind::File(content) => content,
        };
        self.check_is_there(node)?;
        let file_bytes = self.kit.tree.size(node);
        let end = offset.saturating_add(u64::from(size)).min(file_bytes);
        if offset >= end {
            return Ok(Read::Resident(&[]));
        }
        self.log.note(node, offset, end - offset);
        match content {
            Content::Inline(bytes) => Ok(Read::Resident(&bytes[offset as usize..end as usize])),
            Content::Stored { layer: index, extents } => {
                let layer = &self.kit.layers[*index as usize];
                let layout = &layer.contents().layout;
                self.read_chunks.note(*index, layout, extents.stored_of(offset..end));
                self.read_stored(node, StoredFile { layer, extents }, offset..end, buffer)
            }
        }
    }

    fn read_stored<'a>(
        &'a self,
        node: NodeId,
        file: StoredFile<'_>,
        wanted: Range<u64>,
        buffer: &'a mut BytesMut,
    ) -> Result<Read<'a>, FsError> {
        let bytes = (wanted.end - wanted.start) as usize;
        if buffer.len() < bytes {
            *buffer = page_aligned(bytes);
        }
        let is_resident = file.read_resident(wanted.clone(), &mut buffer[..bytes])?;
        self.fetch(node, file, &wanted, is_resident);
        if is_resident {
            return Ok(Read::Resident(&buffer[..bytes]));
        }
        Ok(Read::Pending(PendingRead {
            layer: file.layer.clone(),
            extents: file.extents.clone(),
            wanted,
            deadline: self.config.read_deadline,
        }))
    }

    /// Starts to fetch the missing bytes of a read, and the bytes that readahead expects next.
    fn fetch(&self, node: NodeId, file: StoredFile<'_>, wanted: &Range<u64>, is_resident: bool) {
        if !file.layer.has_ranges() {
            // Such a layer is fetched as a whole, so there are no ranges to guess.
            return;
        }
        let (rate, file_bytes) = (host_rate(file.layer), file.extents.bytes());
        let Observed { guess, run } = self.readahead.observe(node.0, wanted, file_bytes, rate);
        let mut missing = (!is_resident).then(|| wanted.clone());
        let mut started = Vec::new();
        let ranges = guess.iter().flat_map(|guess| {
            let cause = Cause::Readahead(guess.predictor.name());
            guess.ranges.iter().map(move |range| (range, cause))
        });
        for (range, cause) in ranges {
            // The missing bytes of the read come first, in one request with the guess that follows.
            match missing.take() {
                Some(missing) if missing.end == range.start => {
                    started.extend(file.prefetch(missing.start..range.end, cause));
                    continue;
                }
                Some(missing) => started.extend(file.prefetch(missing, Cause::Read)),
                None => {}
            }
            started.extend(file.prefetch(range.clone(), cause));
        }
        if let Some(missing) = missing {
            started.extend(file.prefetch(missing, Cause::Read));
        }
        if guess.is_some() || !started.is_empty() {
            let chunks = file.chunks(wanted);
            self.readahead.started(node.0, &started, wanted, &chunks, guess.as_ref());
        }
        if let Some(tensors) = &self.tensors {
            tensors.observe(node, &run);
        }
    }

    /// `true` if the content of a file or directory could not be fetched when the kit was loaded.
    ///
    /// Such a file seems empty. Opening it must fail, because programs do not read an empty file.
    pub fn has_missing(&self) -> bool {
        self.kit.has_missing()
    }

    /// Fails for a node whose content could not be fetched when the kit was loaded.
    fn check_is_there(&self, node: NodeId) -> Result<(), FsError> {
        match self.kit.tree.missing(node) {
            Some(reason) => Err(FsError::Missing(reason.to_owned())),
            None => Ok(()),
        }
    }

    /// The path of an inode from the root, for messages.
    pub fn path(&self, ino: Ino) -> String {
        match self.node(ino) {
            Ok(node) => member_path::shown(&self.kit.tree.path(node)),
            Err(error) => error.to_string(),
        }
    }

    /// Ends readahead for a file that the kernel reads by itself from now on.
    pub(super) fn handed_over(&self, node: NodeId) {
        self.readahead.forget(node.0);
    }

    pub(super) fn node(&self, ino: Ino) -> Result<NodeId, FsError> {
        let node = ino.0.checked_sub(1).and_then(|node| u32::try_from(node).ok());
        let node = node.filter(|&node| node < self.kit.tree.len());
        node.map(NodeId).ok_or(FsError::NoSuchInode(ino.0))
    }

    fn directory(&self, ino: Ino) -> Result<NodeId, FsError> {
        let node = self.node(ino)?;
        match self.kind_of(node) {
            FileKind::Directory => Ok(node),
            FileKind::File | FileKind::Symlink => Err(FsError::NotADirectory),
        }
    }

    fn kind_of(&self, node: NodeId) -> FileKind {
        match self.kit.tree.kind(node) {
            NodeKind::Directory => FileKind::Directory,
            NodeKind::File(_) => FileKind::File,
            NodeKind::Symlink(_) => FileKind::Symlink,
        }
    }

    fn attributes_of(&self, node: NodeId) -> Attributes {
        let tree = &self.kit.tree;
        let kind = self.kind_of(node);
        let links = match kind {
            FileKind::Directory => tree.subdirectories(node).saturating_add(2),
            FileKind::File | FileKind::Symlink => 1,
        };
        Attributes {
            ino: Ino::of(node),
            kind,
            size: tree.size(node),
            mode: match (self.config.owner_may_write, kind) {
                (false, _) | (true, FileKind::Symlink) => tree.mode(node),
                (true, FileKind::File) => tree.mode(node) | OWNER_WRITES_FILE,
                (true, FileKind::Directory) => tree.mode(node) | OWNER_USES_DIRECTORY,
            },
            links,
            mtime: tree.mtime(node),
            stored_bytes: match tree.kind(node) {
                NodeKind::File(content) => content.stored_bytes(),
                NodeKind::Directory | NodeKind::Symlink(_) => tree.size(node),
            },
            owner: self.owner,
        }
    }
}
