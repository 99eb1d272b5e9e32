//! Fetches the tensors of model files beforehand, by the places in their headers.
//!
//! ```text
//! first read of a *.safetensors or *.gguf --> task: header --> TensorMap --.
//!                                              '--> index --> next shard --+--> Reading
//! each read --> Reading: a range of the tensor, the next file --> Layer::prefetch
//! ```
//!
//! Tensors are hints, and no read needs them. A read starts the fetches that follow from the known
//! tensors. The read waits for nothing here, and no failure here fails the read. A file whose header
//! is damaged, too long or out of reach has only the cursors of [`super::readahead`].
//!
//! Invariants:
//! - No lock is held while anything is fetched or parsed.
//! - Everything runs with [`Cause::Tensor`], and ends when the file system is dropped.
//! - The mount's ledger pays for every byte that no reader has asked for.
//! - With `--no-tensor-prefetch` there is no [`TensorPrefetch`].

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::file_system::host_rate;
use super::kit::LoadedKit;
use super::readahead::ledger::Predictor;
use super::readahead::{Guess, Readahead, Wanted};
use super::stored_file::StoredFile;
use super::tensors::reading::Reading;
use super::tensors::{Format, HeaderError, MOST_HEADER_BYTES, TensorMap, shards};
use crate::fetch::{Cause, Layer};
use crate::kit::NodeId;
use crate::layer::Extents;
use crate::layer::layout::CHUNK_BYTES;

/// The parts of the table of files. Each part has a lock of its own, so that readers of different
/// files rarely meet at one.
const SHARDS: usize = 16;

/// The files in each part: 256 in all, the shards of the largest models. A usual file takes some
/// 20 KiB of memory, and a file with the most tensors 1 MiB.
const MOST_FILES: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not zero");

/// The headers that are read at a time. Each takes a round trip, and a thread for some milliseconds.
const MOST_RUNNING: usize = 4;

/// The most files that wait for their headers, running ones included; further files get no hints.
/// A loader opens all shards of a model at once.
const MOST_WAITING: usize = 256;

/// The first part of a header that is fetched: one chunk, which holds most headers as a whole.
const FIRST_HEADER_BYTES: u64 = CHUNK_BYTES;

/// The factor by which each fetch lengthens the known part of a header. 2: at most the length of the header is
/// fetched in vain, and 10 MiB take six round trips.
const HEADER_GROWTH: u64 = 2;

/// The buffer of a header's parser: large, because each refill looks into the cache.
const PIECE_BYTES: usize = 64 * 1024;

/// The most bytes fetched of the next shard: its header, and the start of a stream through it.
const NEXT_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Bounds of the search for an index: entries of the folder, and indexes that are parsed. A model
/// lies in a folder of some tens of files. A model has one index, or one for each precision.
const MOST_ENTRIES: u32 = 65_536;
const MOST_INDEXES: usize = 4;

/// The tensors of a mount's files.
pub(super) struct TensorPrefetch {
    shared: Arc<Shared>,
    runtime: Handle,
    waiting: Arc<Semaphore>,
    closed: CancellationToken,
    _close: DropGuard,
}

/// The state that background tasks share with reads.
struct Shared {
    kit: Arc<LoadedKit>,
    readahead: Arc<Readahead>,
    files: [Mutex<LruCache<u32, Reading>>; SHARDS],
    running: Semaphore,
}

/// A file of a layer.
#[derive(Clone)]
struct File {
    layer: Arc<Layer>,
    extents: Extents,
    bytes: u64,
}

impl TensorPrefetch {
    /// Serves a kit, on the runtime of the caller; `None` without a runtime.
    pub(super) fn new(kit: &Arc<LoadedKit>, readahead: &Arc<Readahead>) -> Option<Self> {
        let runtime = Handle::try_current().ok()?;
        let closed = CancellationToken::new();
        let shared = Arc::new(Shared {
            kit: kit.clone(),
            readahead: readahead.clone(),
            files: std::array::from_fn(|_| Mutex::new(LruCache::new(MOST_FILES))),
            running: Semaphore::new(MOST_RUNNING),
        });
        let waiting = Arc::new(Semaphore::new(MOST_WAITING));
        Some(Self { shared, runtime, waiting, closed: closed.clone(), _close: closed.drop_guard() })
    }

    /// Notes a read of a stream, which has read `run` so far, and starts the fetches that follow.
    pub(super) fn observe(&self, node: NodeId, run: &Range<u64>) {
        let tree = &self.shared.kit.tree;
        if run.is_empty() {
            return;
        }
        let Some(format) = Format::of(tree.name(node)) else { return };
        let mut is_first = false;
        let Some(file) = self.shared.file(node) else { return };
        let wanted = {
            let mut files = self.shared.part(node).lock();
            let reading = files.get_or_insert_mut(node.0, || {
                is_first = true;
                Reading::default()
            });
            reading.observe(run, tree.size(node), &self.shared.grant(&file))
        };
        if is_first || wanted.has_header {
            self.look(node, format);
        }
        if let Some(tensor) = wanted.tensor {
            self.shared.fetch(node, &file, Guess::upward(Predictor::Tensor, tensor));
        }
        self.shared.fetch_next(wanted.next_file);
    }

    /// Reads the header of a file in the background.
    fn look(&self, node: NodeId, format: Format) {
        let Ok(turn) = self.waiting.clone().try_acquire_owned() else { return };
        let (shared, closed) = (self.shared.clone(), self.closed.clone());
        self.runtime.spawn(async move {
            let _turn = turn;
            tokio::select! {
                () = closed.cancelled() => {}
                () = shared.look(node, format) => {}
            }
        });
    }
}

impl Shared {
    fn part(&self, node: NodeId) -> &Mutex<LruCache<u32, Reading>> {
        &self.files[node.0 as usize % SHARDS]
    }

    /// The file at a node; `None` if its bytes do not lie in a layer.
    fn file(&self, node: NodeId) -> Option<File> {
        let StoredFile { layer, extents } = StoredFile::of(&self.kit, node)?;
        let (layer, extents) = (layer.clone(), extents.clone());
        Some(File { bytes: extents.bytes(), layer, extents })
    }

    /// The ledger's grants for the tensors of this file.
    fn grant(&self, file: &File) -> impl Fn(u64, u64) -> u64 {
        let rate = host_rate(&file.layer);
        move |bytes, ahead| {
            let wanted = Wanted::more(bytes, ahead, 16, rate);
            self.readahead.ledger().grant(Predictor::Tensor, wanted, rate.head_start_bytes)
        }
    }

    /// Starts to fetch a guess.
    fn fetch(&self, node: NodeId, file: &File, guess: Option<Guess>) {
        let Some(guess) = guess else { return };
        let ranges = guess.ranges.iter().cloned();
        let cause = Cause::Tensor(guess.predictor.name());
        let started: Vec<_> =
            ranges.flat_map(|range| file.stored().prefetch(range, cause)).collect();
        self.readahead.started(node.0, &started, &(0..0), &(0..0), Some(&guess));
    }

    /// Brings the first `bytes` of a file to the cache. The ledger pays for missing bytes.
    async fn bring_head(&self, node: NodeId, file: &File, bytes: u64) -> Result<(), HeaderError> {
        if !file.stored().is_resident(0..bytes) {
            let head_start_bytes = host_rate(&file.layer).head_start_bytes;
            let ledger = self.readahead.ledger();
            let granted = ledger.grant(Predictor::Header, Wanted::some(bytes), head_start_bytes);
            if granted < bytes {
                ledger.settle(Predictor::Header, granted, 0);
                return Err(HeaderError::Dear { needed: bytes });
            }
            self.fetch(node, file, Guess::upward(Predictor::Header, 0..bytes));
        }
        file.bring_free(bytes).await
    }

    async fn look(&self, node: NodeId, format: Format) {
        let Ok(_turn) = self.running.acquire().await else { return };
        let Some(file) = self.file(node) else { return };
        let found = loop {
            match self.tensors(node, &file, format).await {
                Err(HeaderError::Dear { needed }) => {
                    let mut files = self.part(node).lock();
                    let is_waiting =
                        files.peek_mut(&node.0).is_none_or(|it| it.wait_for_header(needed));
                    if is_waiting {
                        return;
                    }
                    // A reader has asked for these bytes meanwhile, so the next look takes them.
                }
                found => break found,
            }
        };
        match found {
            Ok(tensors) => self.learn(node, &file, tensors),
            Err(error) => self.say(node, &error),
        }
        if format == Format::Safetensors
            && let Some(next) = self.next_shard(node).await
        {
            let mut files = self.part(node).lock();
            let wanted = files.peek_mut(&node.0).and_then(|reading| reading.learn_next(next.0));
            drop(files);
            self.fetch_next(wanted);
        }
    }

    /// Keeps the tensors of a file, and fetches the tensors that its streams are in.
    fn learn(&self, node: NodeId, file: &File, tensors: TensorMap) {
        let grant = self.grant(file);
        let mut files = self.part(node).lock();
        let learned = files.peek_mut(&node.0).map(|reading| reading.learn(tensors, &grant));
        drop(files);
        for range in learned.unwrap_or_default() {
            self.fetch(node, file, Guess::upward(Predictor::Tensor, range));
        }
    }

    /// Fetches the start of the file that a program is expected to read next.
    fn fetch_next(&self, file: Option<u32>) {
        let Some(node) = file.map(NodeId) else { return };
        let Some(file) = self.file(node) else { return };
        let wanted = file.bytes.min(NEXT_FILE_BYTES);
        let head_start_bytes = host_rate(&file.layer).head_start_bytes;
        let granted = self.readahead.ledger().grant(
            Predictor::NextShard,
            Wanted::some(wanted),
            head_start_bytes,
        );
        self.fetch(node, &file, Guess::upward(Predictor::NextShard, 0..granted));
    }

    /// Finds the shard that follows a file in an index beside it.
    async fn next_shard(&self, node: NodeId) -> Option<NodeId> {
        let tree = &self.kit.tree;
        let folder = tree.parent(node);
        let name = std::str::from_utf8(tree.name(node)).ok()?.to_owned();
        let children = tree.children(folder);
        let indexes = children.take(MOST_ENTRIES as usize).map(NodeId);
        let indexes = indexes.filter(|&child| tree.name(child).ends_with(shards::INDEX_SUFFIX));
        for index in indexes.take(MOST_INDEXES) {
            let Some(file) = self.file(index) else { continue };
            if file.bytes > shards::MOST_INDEX_BYTES {
                continue;
            }
            match self.shard_after(index, &file, &name).await {
                Ok(Some(next)) => return tree.lookup(folder, next.as_bytes()),
                Ok(None) => {}
                Err(error) => self.say(index, &error),
            }
        }
        None
    }

    fn say(&self, node: NodeId, error: &HeaderError) {
        let path = crate::layer::member_path::shown(&self.kit.tree.path(node));
        tracing::debug!(kit = %self.kit.origin, path, %error, "no hints for prefetching");
    }
}

impl Shared {
    /// Finds the tensors of a file. Fetches the header as far as the parser needs it, in few steps.
    async fn tensors(
        &self,
        node: NodeId,
        file: &File,
        format: Format,
    ) -> Result<TensorMap, HeaderError> {
        let most = file.bytes.min(MOST_HEADER_BYTES);
        let (mut parsed, mut needed) = (0, FIRST_HEADER_BYTES.min(most));
        loop {
            let mut bytes = needed.max(parsed * HEADER_GROWTH).min(most);
            match self.bring_head(node, file, bytes).await {
                // The ledger does not pay for more, but bytes that readers have fetched, or have on
                // their way, are free.
                Err(HeaderError::Dear { .. }) => {
                    let readers = self.part(node).lock().peek(&node.0).map(Reading::head_bytes);
                    let readers = readers.unwrap_or_default().min(bytes);
                    bytes = file.resident_head(bytes).max(readers);
                    if bytes < needed {
                        return Err(HeaderError::Dear { needed });
                    }
                    file.bring_free(bytes).await?;
                }
                result => result?,
            }
            let file_bytes = file.bytes;
            let parse = move |prefix| format.parse(prefix, bytes, file_bytes);
            match file.parse(bytes, parse).await {
                Err(HeaderError::Ended { needed: more }) if bytes < most && more <= most => {
                    // Each step parses at least one byte more, so the loop ends.
                    (parsed, needed) = (bytes, more.max(bytes + 1));
                }
                result => return result,
            }
        }
    }

    async fn shard_after(
        &self,
        index: NodeId,
        file: &File,
        name: &str,
    ) -> Result<Option<String>, HeaderError> {
        let name = name.to_owned();
        let parse = move |index| {
            let shards =
                shards::parse(index).map_err(|error| HeaderError::Malformed(error.to_string()))?;
            Ok(shards::after(&shards, &name).map(str::to_owned))
        };
        self.bring_head(index, file, file.bytes).await?;
        file.parse(file.bytes, parse).await
    }
}

impl File {
    fn stored(&self) -> StoredFile<'_> {
        StoredFile { layer: &self.layer, extents: &self.extents }
    }

    /// Waits for the first `bytes` of the file, which a reader's fetch or a grant has paid for.
    async fn bring_free(&self, bytes: u64) -> Result<(), HeaderError> {
        let brought = self.stored().bring(0..bytes, Cause::Tensor(Predictor::Header.name())).await;
        brought.map_err(|error| HeaderError::Unreadable(error.to_string()))
    }

    /// The resident bytes at the start of the file, up to `most`, in whole chunks.
    fn resident_head(&self, most: u64) -> u64 {
        let ends = (CHUNK_BYTES..).step_by(CHUNK_BYTES as usize).map(|end| end.min(most));
        let mut start = 0;
        for end in ends {
            if start == most || !self.stored().is_resident(start..end) {
                break;
            }
            start = end;
        }
        start
    }

    /// Parses the first `bytes` of the file on a thread that may block. The bytes are in the cache.
    async fn parse<T: Send + 'static>(
        &self,
        bytes: u64,
        parse: impl FnOnce(io::BufReader<Prefix>) -> Result<T, HeaderError> + Send + 'static,
    ) -> Result<T, HeaderError> {
        let prefix = Prefix { file: self.clone(), range: 0..bytes };
        let parsed = tokio::task::spawn_blocking(move || {
            parse(io::BufReader::with_capacity(PIECE_BYTES, prefix))
        });
        parsed.await.map_err(|error| HeaderError::Unreadable(error.to_string()))?
    }
}

/// The resident start of a file.
struct Prefix {
    file: File,
    /// The bytes that the parser has not read so far.
    range: Range<u64>,
}

impl io::Read for Prefix {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.range.end - self.range.start;
        let bytes = left.min(buffer.len() as u64) as usize;
        let end = self.range.start + bytes as u64;
        match self.file.stored().read_resident(self.range.start..end, &mut buffer[..bytes]) {
            Ok(true) => {}
            Ok(false) => return Err(io::Error::other("the bytes were evicted")),
            Err(error) => return Err(io::Error::other(error)),
        }
        self.range.start = end;
        Ok(bytes)
    }
}
