//! Open descriptors of cache files, bounded for the whole process.
//!
//! A kit may have thousands of big members, a process about a thousand descriptors. A look-up
//! holds a lock for some nanoseconds, never over I/O on content; the returned `Arc` keeps the file
//! open while it is used, even when it falls out of the table meanwhile.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::layer::CacheFile;

/// Tables, so that readers of different files do not meet at one lock.
const SHARDS: usize = 8;
/// Descriptors kept open in each: 256 in all, a quarter of the usual limit of 1,024.
const FILES_PER_SHARD: NonZeroUsize = NonZeroUsize::new(32).expect("not zero");

/// A file of an open layer. The layer is named by a number that is never used again, so a layer
/// that was removed and opened anew does not meet its old files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    pub(super) layer: u64,
    pub(super) file: LayerFile,
}

/// The files of a layer that are opened often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LayerFile {
    /// The chunk table.
    Chunks,
    /// Content.
    Content(CacheFile),
}

/// The table of open files.
pub(super) struct OpenFiles {
    shards: [Mutex<LruCache<FileKey, Arc<File>>>; SHARDS],
}

impl OpenFiles {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::new(LruCache::new(FILES_PER_SHARD))) }
    }

    /// The open file of `key`; opened by `open` where it is not in the table.
    pub(super) fn get(
        &self,
        key: FileKey,
        open: impl FnOnce() -> std::io::Result<File>,
    ) -> std::io::Result<Arc<File>> {
        let shard = self.shard(key);
        if let Some(file) = shard.lock().get(&key) {
            return Ok(file.clone());
        }
        let file = Arc::new(open()?);
        // Whoever was faster has the same file open; a second descriptor of it does no harm.
        let evicted = shard.lock().push(key, file.clone());
        drop(evicted);
        Ok(file)
    }

    /// Closes every file of a layer that nobody is using.
    pub(super) fn forget(&self, layer: u64) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let keys: Vec<FileKey> =
                shard.iter().map(|(key, _)| *key).filter(|key| key.layer == layer).collect();
            for key in keys {
                shard.pop(&key);
            }
        }
    }

    fn shard(&self, key: FileKey) -> &Mutex<LruCache<FileKey, Arc<File>>> {
        let file = match key.file {
            LayerFile::Chunks => 0,
            LayerFile::Content(CacheFile::Stream) => 1,
            LayerFile::Content(CacheFile::Member(index)) => 2 + u64::from(index),
        };
        &self.shards[((key.layer.wrapping_mul(31) + file) % SHARDS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_bounded_and_the_latest_stay_open() {
        let files = OpenFiles::new();
        let mut opened = 0;
        let key = |index| FileKey { layer: 1, file: LayerFile::Content(CacheFile::Member(index)) };
        for index in 0..2_000 {
            files.get(key(index), tempfile::tempfile).unwrap();
        }
        let held: usize = files.shards.iter().map(|shard| shard.lock().len()).sum();
        assert_eq!(held, SHARDS * FILES_PER_SHARD.get());
        for index in 1_900..2_000 {
            let open = || {
                opened += 1;
                tempfile::tempfile()
            };
            files.get(key(index), open).unwrap();
        }
        assert_eq!(opened, 0);
        files.forget(1);
        assert!(files.shards.iter().all(|shard| shard.lock().is_empty()));
    }
}
