//! Traces of reads, for a collector of OpenTelemetry (docs/tracing.md).
//!
//! ```text
//! a read that waited has ended --queue (bounded)--> its transfers --spans--> batch --OTLP/HTTP--> collector
//! ```
//!
//! Reads never wait here. A full queue or a collector that is away costs traces, and a warning counts them.

mod losses;
mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::{InstrumentationScope, Key, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use self::losses::Losses;
use self::spans::Clock;
use crate::control::api::{Failure, FailureKind};
use crate::fuse::{EndedRead, ReadTracer};
use crate::process::running_time;

/// The reads that wait to be sent. 4096: a thousand programs that each wait for four reads within a batch.
const QUEUED_READS: usize = 4096;
/// The most reads in a batch. A read has up to about ten spans of 300 bytes, so a request stays below 2 MiB.
const BATCH_READS: usize = 512;
/// The time for which a batch gathers reads: short enough to watch a program.
const BATCH_TIME: Duration = Duration::from_secs(1);
/// The time that a collector may take for a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that the last batch may take when the daemon ends.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The traces of a daemon. Dropping it ends them at once.
pub(super) struct Traces {
    queue: Arc<Queue<EndedRead>>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
    ending: CancellationToken,
}

/// The reads on their way to the task that sends them.
struct Queue<T> {
    reads: mpsc::Sender<T>,
    /// The reads that found no place, since the last look.
    refused: AtomicU64,
}

impl<T> Queue<T> {
    fn new() -> (Arc<Self>, mpsc::Receiver<T>) {
        let (reads, receiver) = mpsc::channel(QUEUED_READS);
        (Arc::new(Self { reads, refused: AtomicU64::new(0) }), receiver)
    }

    /// Takes a read, or counts it where the queue is full.
    fn offer(&self, read: T) {
        if self.reads.try_send(read).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }
}

impl ReadTracer for Queue<EndedRead> {
    fn ended(&self, read: EndedRead) {
        self.offer(read);
    }
}

impl Traces {
    /// Starts to send traces to a collector, whose base URL this is.
    ///
    /// # Errors
    /// When no HTTP client can be made for it.
    pub(super) fn start(collector: &Url) -> Result<Self, Failure> {
        let exporter = exporter(collector)?;
        let (queue, receiver) = Queue::new();
        let ending = CancellationToken::new();
        let sending = Sending {
            exporter,
            queue: queue.clone(),
            scope: InstrumentationScope::builder("kitfs")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            losses: Losses::default(),
        };
        let task = tokio::spawn(sending.run(receiver, ending.clone()));
        Ok(Self { queue, task: Mutex::new(Some(AbortOnDropHandle::new(task))), ending })
    }

    /// The receiver of reads.
    pub(super) fn tracer(&self) -> Arc<dyn ReadTracer> {
        self.queue.clone()
    }

    /// Sends what is queued, as far as that comes to its end soon.
    pub(super) async fn finish(&self) {
        self.ending.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task
            && running_time::timeout(FINISH_TIMEOUT, task).await.is_err()
        {
            tracing::warn!("the collector did not take the last traces in time: they are lost");
        }
    }
}

fn exporter(collector: &Url) -> Result<SpanExporter, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        let message = format!("--otlp: traces cannot be sent to {collector}: {error}");
        Failure::new(FailureKind::Daemon, message)
    };
    let endpoint = format!("{}/v1/traces", collector.as_str().trim_end_matches('/'));
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| failed(&error))?;
    exporter.set_resource(&resource());
    Ok(exporter)
}

/// The attributes of the process: those of the standard variables, and the name `kitfs` where they have none.
fn resource() -> Resource {
    const NAME: &str = "service.name";
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let given = Resource::builder().with_attribute(version.clone()).build();
    let name = given.get(&Key::from_static_str(NAME));
    let is_named = name.is_some_and(|name: Value| !name.as_str().starts_with("unknown_service"));
    match is_named {
        true => given,
        false => Resource::builder().with_service_name("kitfs").with_attribute(version).build(),
    }
}

/// The task that sends batches.
struct Sending {
    exporter: SpanExporter,
    queue: Arc<Queue<EndedRead>>,
    scope: InstrumentationScope,
    losses: Losses,
}

impl Sending {
    async fn run(mut self, mut receiver: mpsc::Receiver<EndedRead>, ending: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_READS);
        loop {
            let is_ending = tokio::select! {
                biased;
                () = gather(&mut receiver, &mut batch) => false,
                () = ending.cancelled() => true,
            };
            if is_ending {
                while batch.len() < BATCH_READS
                    && let Ok(read) = receiver.try_recv()
                {
                    batch.push(read);
                }
            }
            self.send(&mut batch).await;
            if is_ending && receiver.is_empty() {
                warn(self.losses.rest());
                return;
            }
        }
    }

    async fn send(&mut self, batch: &mut Vec<EndedRead>) {
        if batch.is_empty() {
            return;
        }
        let (reads, clock) = (batch.len() as u64, Clock::now());
        let spans = batch.drain(..).flat_map(|read| spans::of_read(&read, clock, &self.scope));
        let sent = self.exporter.export(spans.collect()).await;
        self.losses.note(self.queue.take_refused(), &"the queue is full");
        if let Err(error) = sent {
            self.losses.note(reads, &error);
        }
        warn(self.losses.due(Instant::now()));
    }
}

fn warn(lost: Option<(u64, String)>) {
    if let Some((reads, why)) = lost {
        tracing::warn!(reads, why, "traces of reads were lost");
    }
}

/// Waits for a read, and gathers those that follow within [`BATCH_TIME`]. Cancel safe: `batch` keeps what came.
async fn gather(receiver: &mut mpsc::Receiver<EndedRead>, batch: &mut Vec<EndedRead>) {
    // The daemon has a sender for as long as the task runs.
    batch.extend(receiver.recv().await);
    let more = async {
        while batch.len() < BATCH_READS {
            match receiver.recv().await {
                Some(read) => batch.push(read),
                None => return,
            }
        }
    };
    let _ = running_time::timeout(BATCH_TIME, more).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_keeps_the_oldest_reads_and_counts_the_others() {
        let (queue, mut receiver) = Queue::new();
        (0..QUEUED_READS + 7).for_each(|read| queue.offer(read));
        assert_eq!((queue.take_refused(), queue.take_refused()), (7, 0));
        assert_eq!(receiver.recv().await, Some(0));
        queue.offer(QUEUED_READS);
        queue.offer(QUEUED_READS + 1);
        assert_eq!(queue.take_refused(), 1);
        for read in 1..=QUEUED_READS {
            assert_eq!(receiver.recv().await, Some(read));
        }
        assert!(receiver.is_empty());
    }
}
