//! Open descriptors of cache files, bounded for the whole process.
//!
//! A kit may have thousands of big members, a process a bounded number of descriptors (RLIMIT_NOFILE).
//! A look-up holds a lock for some nanoseconds, and never while a file is opened or read. The returned
//! `Arc` keeps the file open while it is used, even when it falls out of the table meanwhile.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::super::CacheError;
use super::DiskFile;
use crate::layer::CacheFile;

/// The number of tables. Readers of different files rarely meet at one lock then.
const SHARDS: usize = 8;

/// A file of an open layer. The layer is named by a number that is never used again, so a layer
/// that was removed and opened anew does not meet its old files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::cache) struct FileKey {
    pub(in crate::cache) layer: u64,
    pub(in crate::cache) file: LayerFile,
}

/// The files of a layer that are opened often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::cache) enum LayerFile {
    /// The chunk table.
    Chunks,
    /// The copy of the chunk table.
    ChunksCopy,
    /// Content.
    Content(CacheFile),
}

type Shard = Mutex<LruCache<FileKey, Arc<DiskFile>>>;

/// The table of open files.
pub(in crate::cache) struct OpenFiles {
    shards: [Shard; SHARDS],
}

impl OpenFiles {
    /// A table that keeps about `most` files open, and at least one in each shard.
    pub(super) fn new(most: usize) -> Self {
        let of_shard = NonZeroUsize::new(most / SHARDS).unwrap_or(NonZeroUsize::MIN);
        Self { shards: std::array::from_fn(|_| Mutex::new(LruCache::new(of_shard))) }
    }

    /// The open file of `key`; opened by `open` where it is not in the table.
    pub(in crate::cache) fn get(
        &self,
        key: FileKey,
        open: impl FnOnce() -> Result<DiskFile, CacheError>,
    ) -> Result<Arc<DiskFile>, CacheError> {
        if let Some(file) = self.get_open(key) {
            return Ok(file);
        }
        let file = Arc::new(open()?);
        // Another thread may have opened the same file meanwhile; a second descriptor does no harm.
        let evicted = self.shard(key).lock().push(key, file.clone());
        drop(evicted);
        Ok(file)
    }

    /// The open file of `key`, if it is in the table.
    pub(in crate::cache) fn get_open(&self, key: FileKey) -> Option<Arc<DiskFile>> {
        self.shard(key).lock().get(&key).cloned()
    }

    /// Closes one file, unless somebody is using it.
    pub(in crate::cache) fn forget_file(&self, key: FileKey) {
        self.shard(key).lock().pop(&key);
    }

    /// Closes every file of a layer that nobody is using.
    pub(in crate::cache) fn forget(&self, layer: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let keys: Vec<FileKey> =
                shard.iter().map(|(key, _)| *key).filter(|key| key.layer == layer).collect();
            for key in keys {
                shard.pop(&key);
            }
        }
    }

    /// Closes the half of the files that was used longest ago; returns how many were closed.
    pub(super) fn close_half(&self) -> usize {
        let mut closed = 0;
        for shard in &self.shards {
            let mut shard = shard.lock();
            for _ in 0..shard.len().div_ceil(2) {
                // A file that somebody uses stays open until its use ends.
                let file = shard.pop_lru();
                closed += usize::from(file.is_some_and(|(_, file)| Arc::strong_count(&file) == 1));
            }
        }
        closed
    }

    fn shard(&self, key: FileKey) -> &Shard {
        let file = match key.file {
            LayerFile::Chunks => 0,
            LayerFile::ChunksCopy => 1,
            LayerFile::Content(CacheFile::Stream) => 2,
            LayerFile::Content(CacheFile::Member(index)) => 3 + u64::from(index),
        };
        &self.shards[((key.layer.wrapping_mul(31) + file) % SHARDS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Root;
    use super::*;

    fn key(index: u32) -> FileKey {
        FileKey { layer: 1, file: LayerFile::Content(CacheFile::Member(index)) }
    }

    #[test]
    fn descriptors_are_bounded_and_the_latest_stay_open() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path(), 256).unwrap();
        let files = OpenFiles::new(256);
        let mut opened = 0;
        let place = root.place("file");
        for index in 0..2_000 {
            files.get(key(index), || place.open_or_create()).unwrap();
        }
        let held = || files.shards.iter().map(|shard| shard.lock().len()).sum::<usize>();
        assert_eq!(held(), 256);
        for index in 1_900..2_000 {
            let open = || {
                opened += 1;
                place.open()
            };
            files.get(key(index), open).unwrap();
        }
        assert_eq!(opened, 0);
        let used = files.get(key(1_999), || place.open()).unwrap();
        assert_eq!(files.close_half(), 128);
        assert_eq!(held(), 128);
        drop(used);
        files.forget(1);
        assert_eq!(held(), 0);
        assert_eq!(files.close_half(), 0);
    }
}
