//! The failed reads of a mount: the errno for the program, and the reason for the log and `kitfs status`.
//!
//! The kernel repeats a failed request. A failure is forgotten when its bytes are read after all, so that
//! `status` tells what a program saw.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::errno::errno;
use super::failure_log::{Entry, FailureLog};
use crate::fs::{FsError, Ino, Nodes, Unopened};

/// The failed reads of a mount. They outlive the session.
pub(super) struct Failures {
    nodes: Nodes,
    log: Mutex<FailureLog>,
    last: Mutex<Last>,
    /// Whether there is a last failure. Looked at for each read, without the lock.
    has_failed: AtomicBool,
}

#[derive(Default)]
struct Last {
    failure: Option<Failure>,
    /// The read that ended the failure before: file, bytes, time. A request that began earlier may fail later, when
    /// its deadline comes; the program has its bytes by then.
    ended_by: Option<(Ino, Range<u64>, Instant)>,
}

/// The last failure.
struct Failure {
    ino: Ino,
    /// The bytes of the file that could not be read; all where the file could not be opened.
    range: Range<u64>,
    /// The path and the reason.
    words: String,
}

impl Failures {
    pub(super) fn new(nodes: Nodes) -> Self {
        let (log, last) = (Mutex::default(), Mutex::default());
        Self { nodes, log, last, has_failed: AtomicBool::new(false) }
    }

    pub(super) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The path and the reason of the last failed read, unless its bytes were read since.
    pub(super) fn last(&self) -> Option<String> {
        self.last.lock().failure.as_ref().map(|failure| failure.words.clone())
    }

    /// The errno of a failed open, lookup or listing. Counts as a failed read only when the content is missing, or
    /// a kit cannot be opened.
    pub(super) fn refusal(&self, ino: Ino, error: &FsError) -> Errno {
        match error {
            FsError::Unopened { why: Unopened::NotThere, .. } => errno(error),
            FsError::Missing(_) | FsError::Unopened { .. } | FsError::TooManyPlaces => {
                self.read_failed(ino, &(0..u64::MAX), Instant::now(), error)
            }
            error => errno(error),
        }
    }

    /// The errno of a failed read that began at `begun`. The reason goes to the log, because the reader sees only the
    /// errno.
    pub(super) fn read_failed(
        &self,
        ino: Ino,
        range: &Range<u64>,
        begun: Instant,
        error: &FsError,
    ) -> Errno {
        let path = self.nodes.path(ino);
        let entry = self.log.lock().note(Instant::now());
        if let Entry::Full { left_out } = entry {
            let kit = self.nodes.name();
            if left_out > 0 {
                tracing::error!(%kit, left_out, "more reads failed than were logged");
            }
            tracing::error!(%kit, path, %error, "a read failed");
        }
        let words = format!("{path}: {error}");
        let mut last = self.last.lock();
        let is_over = last
            .ended_by
            .as_ref()
            .is_some_and(|(read, bytes, at)| *read == ino && overlap(bytes, range) && begun < *at);
        if !is_over {
            last.failure = Some(Failure { ino, range: range.clone(), words });
            self.has_failed.store(true, Ordering::Release);
        }
        errno(error)
    }

    /// Bytes of a file were read: a failure to read some of them is over.
    pub(super) fn succeeded(&self, ino: Ino, range: &Range<u64>) {
        if !self.has_failed.load(Ordering::Acquire) {
            return;
        }
        let mut last = self.last.lock();
        let is_over = |failure: &mut Failure| failure.ino == ino && overlap(&failure.range, range);
        if last.failure.take_if(is_over).is_some() {
            last.ended_by = Some((ino, range.clone(), Instant::now()));
            self.has_failed.store(false, Ordering::Release);
        }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}
