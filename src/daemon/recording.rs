//! Recording which ranges of which files are read from a mount (docs/format/trace.md).
//!
//! The kernel answers some reads from its own pages, and a recording does not see them. Files that are opened
//! while somebody records have no passthrough, because the daemon sees no such read either.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::mounts::Served;
use crate::fs::{FileRead, FileSystem, Line, Merger, percent_encoded};

/// The time without a read after which held entries are written, and lost reads are looked for.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a new recording waits for an earlier one that is about to end. The daemon learns only
/// after some time that the reader of the earlier one has gone.
const END_OF_EARLIER: Duration = Duration::from_secs(1);

/// The interval between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The entries of a recording. Dropping this value ends the recording.
struct Recording {
    /// A weak reference, so that a recording does not keep an unmounted mount alive.
    served: Weak<Served>,
    file_system: Arc<FileSystem>,
    accesses: mpsc::Receiver<FileRead>,
    stop: CancellationToken,
    released: CancellationToken,
    began: Instant,
    merger: Merger,
    /// Entries that are ready, as lines; the next one last.
    ready: Vec<Line>,
    is_over: bool,
}

/// Begins to record the reads from a mount; `None` while another recording runs.
pub(super) async fn begin(file_system: &FileSystem) -> Option<mpsc::Receiver<FileRead>> {
    let began = Instant::now();
    loop {
        let reads = file_system.record();
        if reads.is_some() || began.elapsed() > END_OF_EARLIER {
            return reads;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Records from now on until `stop` or the end of the mount; the stream ends with the last reads
/// last.
pub(super) fn lines(
    served: &Arc<Served>,
    file_system: Arc<FileSystem>,
    accesses: mpsc::Receiver<FileRead>,
    header: Line,
    stop: CancellationToken,
) -> BoxStream<'static, Line> {
    served.set_recording(true);
    let recording = Recording {
        served: Arc::downgrade(served),
        file_system,
        accesses,
        stop,
        released: served.released(),
        began: Instant::now(),
        merger: Merger::default(),
        ready: vec![header],
        is_over: false,
    };
    stream::unfold(recording, |mut recording| async move {
        let line = recording.next().await?;
        Some((line, recording))
    })
    .boxed()
}

impl Recording {
    async fn next(&mut self) -> Option<Line> {
        loop {
            if let Some(line) = self.ready.pop() {
                return Some(line);
            }
            if self.is_over {
                return None;
            }
            tokio::select! {
                biased;
                access = self.accesses.recv() => match access {
                    Some(access) => {
                        let range = self.merger.push(access);
                        self.ready.extend(range.map(|range| self.line(range)));
                    }
                    None => self.finish(),
                },
                () = self.stop.cancelled() => self.finish(),
                () = self.released.cancelled() => self.finish(),
                // So that a recording that is cut off lacks little.
                () = tokio::time::sleep(IDLE_INTERVAL) => self.write_what_is_held(),
            }
            let lost = self.file_system.take_lost();
            if lost > 0 {
                self.ready.insert(0, Line::Lost { lost });
            }
        }
    }

    fn finish(&mut self) {
        self.is_over = true;
        self.write_what_is_held();
    }

    fn write_what_is_held(&mut self) {
        let rest = std::mem::take(&mut self.merger).finish();
        let rest: Vec<Line> = rest.into_iter().map(|range| self.line(range)).collect();
        self.ready.splice(0..0, rest.into_iter().rev());
    }

    fn line(&self, range: FileRead) -> Line {
        let at = range.at.saturating_duration_since(self.began);
        Line::Range {
            at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            path: percent_encoded(&self.file_system.kit().tree.path(range.node)),
            offset: range.offset,
            length: range.length,
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(served) = self.served.upgrade() {
            served.set_recording(false);
        }
    }
}
