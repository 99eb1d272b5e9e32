//! An open file of the cache.

use std::fs::File;
use std::io::{ErrorKind, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::super::CacheError;

/// The most buffers of one system call (IOV_MAX, readv(2)).
const MOST_PIECES: usize = 1024;

/// An open file and its path, which its errors name.
pub(in crate::cache) struct DiskFile {
    file: File,
    path: PathBuf,
    #[cfg(test)]
    pub(super) journal: Option<super::journal::Writer>,
}

/// The part of a file's status that changes with each write to the file (inode(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) struct FileStamp {
    /// The number of its inode.
    pub(in crate::cache) inode: u64,
    /// Its length.
    pub(in crate::cache) bytes: u64,
    /// Its ctime: seconds since 1970, and nanoseconds.
    pub(in crate::cache) changed_seconds: i64,
    pub(in crate::cache) changed_nanoseconds: u32,
}

impl FileStamp {
    #[allow(clippy::useless_conversion, reason = "the types of a status differ between machines")]
    pub(super) fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            inode: stat.st_ino.into(),
            bytes: stat.st_size.cast_unsigned(),
            changed_seconds: stat.st_ctime.into(),
            changed_nanoseconds: u32::try_from(stat.st_ctime_nsec).unwrap_or(u32::MAX),
        }
    }

    /// The ctime: seconds since 1970, and nanoseconds.
    pub(in crate::cache) fn changed(&self) -> (i64, u32) {
        (self.changed_seconds, self.changed_nanoseconds)
    }
}

impl AsFd for DiskFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl DiskFile {
    pub(super) fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            #[cfg(test)]
            journal: None,
        }
    }

    pub(in crate::cache) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn as_std(&self) -> &File {
        &self.file
    }

    /// The descriptor alone, for a library that writes the file by itself.
    pub(in crate::cache) fn into_std(self) -> File {
        self.file
    }

    fn error(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> CacheError {
        CacheError::io(action, &self.path)
    }

    /// The file's length in bytes.
    pub(in crate::cache) fn length(&self) -> Result<u64, CacheError> {
        Ok(self.file.metadata().map_err(self.error("look at"))?.len())
    }

    /// The status that changes with each write.
    pub(in crate::cache) fn stamp(&self) -> Result<FileStamp, CacheError> {
        let stat = rustix::fs::fstat(&self.file).map_err(|e| self.error("look at")(e.into()))?;
        Ok(FileStamp::of(&stat))
    }

    /// Whether it is a file, rather than a folder or a device that took its name.
    pub(in crate::cache) fn is_regular(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.is_file())
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// As std reports them, because callers tell a short file and a broken disk apart.
    pub(in crate::cache) fn read_exact_at(
        &self,
        buffer: &mut [u8],
        offset: u64,
    ) -> std::io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Fills `buffer` from the kernel's page cache. `false` where the kernel would have to wait for the disk, or
    /// the file system lacks the flag (RWF_NOWAIT, preadv2(2)).
    pub(in crate::cache) fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> bool {
        let mut at = 0;
        while at < buffer.len() {
            let buffers = &mut [std::io::IoSliceMut::new(&mut buffer[at..])];
            let flags = ReadWriteFlags::NOWAIT;
            match rustix::io::preadv2(&self.file, buffers, offset + at as u64, flags) {
                Ok(0) => return false,
                Ok(read) => at += read,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads at most as many bytes as `buffer` has; 0 at the end.
    pub(in crate::cache) fn read_at(
        &self,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<usize, CacheError> {
        self.file.read_at(buffer, offset).map_err(self.error("read"))
    }

    pub(in crate::cache) fn write_all_at(
        &self,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), CacheError> {
        self.write_pieces_at(&[IoSlice::new(bytes)], offset)
    }

    /// Writes buffers one after the other, from `offset` on. If that fails, some of the bytes may have been
    /// written.
    pub(in crate::cache) fn write_pieces_at(
        &self,
        pieces: &[IoSlice<'_>],
        offset: u64,
    ) -> Result<(), CacheError> {
        #[cfg(test)]
        self.note(|journal| {
            journal.wrote(offset, &pieces.iter().flat_map(|p| p.to_vec()).collect::<Vec<u8>>())
        });
        write_pieces(&self.file, &mut pieces.to_vec(), offset).map_err(self.error("write"))
    }

    pub(in crate::cache) fn set_len(&self, bytes: u64) -> Result<(), CacheError> {
        #[cfg(test)]
        self.note(|journal| journal.set_len(bytes));
        self.file.set_len(bytes).map_err(self.error("write"))
    }

    /// Gives `bytes` bytes from `offset` on back to the file system; they read as zeros from then on.
    pub(in crate::cache) fn punch_hole(&self, offset: u64, bytes: u64) -> Result<(), CacheError> {
        #[cfg(test)]
        self.note(|journal| journal.punched(offset, bytes));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, offset, bytes)
            .map_err(|error| self.error("free space in")(error.into()))
    }

    /// Returns when content and length are on the disk (fdatasync(2)).
    pub(in crate::cache) fn sync(&self) -> Result<(), CacheError> {
        self.file.sync_data().map_err(self.error("sync"))?;
        #[cfg(test)]
        self.note(|journal| journal.synced());
        Ok(())
    }

    /// The first stretch at or behind `from` that is no hole, as the file system tells it
    /// (SEEK_DATA, lseek(2)); one without holes is all data.
    pub(in crate::cache) fn data_from(&self, from: u64) -> Result<Option<Range<u64>>, CacheError> {
        let seek = |at| rustix::fs::seek(&self.file, at);
        let start = match seek(SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(error) => return Err(self.error("look for data in")(error.into())),
        };
        let end = seek(SeekFrom::Hole(start));
        let end = end.map_err(|error| self.error("look for holes in")(error.into()))?;
        Ok(Some(start..end.max(start + 1)))
    }

    #[cfg(test)]
    fn note(&self, note: impl FnOnce(&super::journal::Writer)) {
        if let Some(journal) = &self.journal {
            note(journal);
        }
    }
}

fn write_pieces(
    file: &File,
    mut pieces: &mut [IoSlice<'_>],
    mut offset: u64,
) -> std::io::Result<()> {
    IoSlice::advance_slices(&mut pieces, 0);
    while !pieces.is_empty() {
        match rustix::io::pwritev(file, &pieces[..pieces.len().min(MOST_PIECES)], offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut pieces, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path) -> DiskFile {
        super::super::Root::open(folder, 16).unwrap().place("stream").open_or_create().unwrap()
    }

    #[test]
    fn a_punched_range_reads_as_zeros_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        file.write_all_at(&[7; 30_000], 0).unwrap();
        file.punch_hole(5_000, 20_000).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 30_000);
        assert!(bytes[5_000..25_000].iter().all(|&byte| byte == 0));
        assert!(bytes[..5_000].iter().chain(&bytes[25_000..]).all(|&byte| byte == 7));
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_at_once_are_written_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let bytes: Vec<u8> = (0..3_000u32).map(|i| i as u8).collect();
        let mut pieces: Vec<IoSlice<'_>> = bytes.chunks(1).map(IoSlice::new).collect();
        pieces.insert(0, IoSlice::new(&[]));
        file.write_pieces_at(&pieces, 10).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap()[10..], bytes);
        file.write_pieces_at(&[], 0).unwrap();
    }

    #[test]
    fn stretches_of_data_hold_every_byte_that_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        file.set_len(1 << 30).unwrap();
        assert!(file.data_from(0).unwrap().is_none_or(|data| data.end == 1 << 30));
        let places = [0, 5 << 20, (1 << 30) - 1];
        places.iter().for_each(|&at| file.write_all_at(&[1], at).unwrap());
        let (mut at, mut found) = (0, 0);
        while let Some(data) = file.data_from(at).unwrap() {
            assert!(data.start >= at && data.end > data.start);
            found += places.iter().filter(|place| data.contains(place)).count();
            at = data.end;
        }
        assert_eq!(found, places.len());
    }

    #[test]
    fn bytes_that_are_in_memory_are_read_without_waiting_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        file.write_all_at(&[7; 10_000], 0).unwrap();
        let mut buffer = [0; 5_000];
        assert!(!file.read_cached_at(&mut buffer, 6_000), "it ends before");
        if file.read_cached_at(&mut buffer, 5_000) {
            assert_eq!(buffer, [7; 5_000]);
        }
    }
}
