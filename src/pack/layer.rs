//! Streams one layer into the storage: each file is read once, and hashed and compressed on the way.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;

use sha2::{Digest as _, Sha256};

use super::folder::Folder;
use super::{BlobState, PackError, PackedLayer, Progress, manifest};
use crate::kit::packing::{FolderEntry, FolderEntryKind, PlannedLayer};
use crate::kit::{FileDigest, FileDigests};
use crate::layer::MemberPath;
use crate::layer::encode::{Effort, Encoder};
use crate::layer::tar::write::{END, Entry, EntryKind, padding};
use crate::oci::{BlobId, DiffId, Digest, Format};
use crate::source::kit_storage::writing::{BlobWriter, StorageWriter};

/// The size of one read. At this size a system call costs little, and a few layers at a time take a few MiB.
const READ_BYTES: usize = 1024 * 1024;

/// Writes layers of one folder.
pub(super) struct LayerWriter<'a> {
    pub folder: &'a Folder,
    pub entries: &'a [FolderEntry],
    pub storage: &'a StorageWriter,
    pub progress: &'a Progress,
}

impl LayerWriter<'_> {
    /// Writes a layer.
    pub(super) fn write(
        &self,
        layer: &PlannedLayer,
        effort: Effort,
    ) -> Result<PackedLayer, PackError> {
        let effort = if layer.encoding.is_compressed() { effort } else { Effort::None };
        let mut sink = Sink::new(self.storage.begin()?, effort);
        let mut files = Vec::new();
        let mut metadata = None;
        for &member in &layer.members {
            let entry = &self.entries[member];
            let is_tar = layer.encoding.format == Format::Tar;
            let kind = match entry.kind {
                FolderEntryKind::File(size) => EntryKind::File(size),
                _ => EntryKind::Directory,
            };
            if is_tar {
                let header = Entry { path: &entry.path, kind, mode: entry.mode }.header();
                sink.push(&header)?;
            }
            if let EntryKind::File(size) = kind {
                let (digest, found) = self.copy(&entry.path, size, &mut sink)?;
                files.push(FileDigest { path: entry.path.clone(), size, digest });
                match is_tar {
                    true => sink.push(padding(size))?,
                    false => metadata = Some(manifest::raw_metadata(entry, size, &found)),
                }
            }
        }
        if layer.encoding.format == Format::Tar {
            sink.push(&END)?;
        }
        let (blob, diff_id, is_new) = sink.finish()?;
        let state = if is_new { BlobState::New } else { BlobState::Present };
        let file_list = FileDigests::new(files).encode();
        Ok(PackedLayer { blob, diff_id, state, file_list, metadata })
    }

    /// Copies a file of this size into the layer. Returns its digest.
    fn copy(
        &self,
        path: &MemberPath,
        size: u64,
        sink: &mut Sink,
    ) -> Result<(Digest, Metadata), PackError> {
        let shown = || self.folder.shown(path.as_bytes());
        let changed = |change| PackError::Changed { path: shown(), change };
        let failed = |error| self.folder.failed(path.as_bytes(), error);
        self.progress.begin(path.to_string());
        let mut file = self.folder.open_file(path)?;
        let before = file.metadata().map_err(failed)?;
        if !before.is_file() {
            return Err(changed("was replaced"));
        }
        if before.len() != size {
            return Err(changed("changed its size"));
        }
        let mut hasher = Sha256::new();
        let mut piece = vec![0; READ_BYTES.min(size as usize)];
        let mut rest = size;
        while rest > 0 {
            let wanted = piece.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            let count = read(&mut file, &mut piece[..wanted]).map_err(failed)?;
            if count == 0 {
                return Err(changed("shrank"));
            }
            hasher.update(&piece[..count]);
            sink.push(&piece[..count])?;
            self.progress.add(count);
            rest -= count as u64;
        }
        let after = file.metadata().map_err(failed)?;
        let state = |it: &Metadata| (it.len(), it.mtime(), it.mtime_nsec());
        if state(&before) != state(&after) {
            return Err(changed("changed"));
        }
        Ok((Digest::from_sha256(hasher.finalize().into()), after))
    }
}

fn read(file: &mut File, piece: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match file.read(piece) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Hashes, compresses and writes a stream.
struct Sink {
    blob: BlobWriter,
    encoder: Encoder,
    /// The hash of the stream; `None` where the blob is the stream.
    stream_hash: Option<Sha256>,
    blob_hash: Sha256,
    encoded: Vec<u8>,
}

impl Sink {
    fn new(blob: BlobWriter, effort: Effort) -> Self {
        Self {
            blob,
            encoder: Encoder::new(effort),
            stream_hash: (effort != Effort::None).then(Sha256::new),
            blob_hash: Sha256::new(),
            encoded: Vec::new(),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        match &mut self.stream_hash {
            None => self.write(bytes),
            Some(hash) => {
                hash.update(bytes);
                let mut encoded = std::mem::take(&mut self.encoded);
                encoded.clear();
                self.encoder.push(bytes, &mut encoded);
                self.write(&encoded)?;
                self.encoded = encoded;
                Ok(())
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.blob_hash.update(bytes);
        self.blob.write_all(bytes).map_err(|error| self.blob.failed(error))?;
        Ok(())
    }

    /// Ends the blob. Returns the blob, its diff id, and whether it is new.
    fn finish(mut self) -> Result<(BlobId, DiffId, bool), PackError> {
        let mut encoded = Vec::new();
        let encoder = std::mem::replace(&mut self.encoder, Encoder::new(Effort::None));
        encoder.finish(&mut encoded);
        self.write(&encoded)?;
        let digest = Digest::from_sha256(self.blob_hash.finalize().into());
        let stream = self.stream_hash.map(|hash| Digest::from_sha256(hash.finalize().into()));
        let blob = BlobId { digest, size: self.blob.size() };
        let is_new = self.blob.commit(digest)?;
        Ok((blob, DiffId(stream.unwrap_or(digest)), is_new))
    }
}
