//! The observers of reads: counters for all reads, and a tracer for reads that had to wait.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::fs::{FileSystem, Ino};
use crate::observe::reads::{ReadFailure, Reads};

/// The observers of the reads of all mounts.
#[derive(Clone, Default)]
pub struct Observers {
    /// Counts reads.
    pub reads: Arc<Reads>,
    /// Gets each read that had to wait. `None`: reads are not traced.
    pub tracer: Option<Arc<dyn ReadTracer>>,
}

/// Gets the reads that had to wait for bytes, when they have ended. Must return at once: a thread of the runtime, which
/// serves other reads too, calls it.
pub trait ReadTracer: Send + Sync {
    /// A read has ended.
    fn ended(&self, read: EndedRead);
}

/// A read that had to wait for bytes, and has ended.
pub struct EndedRead {
    /// The file system of its kit.
    pub file_system: Arc<FileSystem>,
    /// The file, by its number in the kit.
    pub ino: Ino,
    /// The bytes of the file that the kernel asked for. The end may lie behind the end of the file.
    pub range: Range<u64>,
    /// The process that read, by its number in this process's view; 0 where it is unknown.
    pub process: u32,
    /// The name of its command; empty where it is unknown.
    pub command: String,
    /// The time at which the request came.
    pub began: Instant,
    /// The time at which its reply was sent.
    pub ended: Instant,
    /// Why it failed: the reason, and the words for it.
    pub failure: Option<(ReadFailure, String)>,
}
