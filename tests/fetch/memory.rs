//! A source in memory whose streams stall and fail as a test wishes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt;
use kitfs::fetch::LayerSpec;
use kitfs::oci::{BlobId, BlobOffset, Compression, Digest, Encoding, Format};
use kitfs::source::{BlobSource, BlobStream, SourceError, Urgency};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub const PIECE: usize = 16 * 1024;

/// A blob in memory that counts what is asked of it.
pub struct Memory {
    pub bytes: Bytes,
    pub is_without_ranges: bool,
    host: Option<Arc<str>>,
    /// How long its pieces are.
    piece_bytes: usize,
    /// The faults of the next streams, in order.
    pub faults: Mutex<Vec<Fault>>,
    /// Bytes that are changed the next time that they are asked for.
    pub flips: Mutex<Vec<usize>>,
    /// Pieces that may be yielded; more are waited for.
    pub gate: Arc<Semaphore>,
    pub requests: AtomicUsize,
    yielded_bytes: Arc<AtomicU64>,
    /// Streams that are alive.
    pub streams: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    Refuse,
    BreakAfter(usize),
    Whole,
}

impl Memory {
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self::with(bytes, false))
    }

    pub fn with(bytes: Vec<u8>, is_without_ranges: bool) -> Self {
        Self {
            bytes: bytes.into(),
            is_without_ranges,
            host: None,
            piece_bytes: PIECE,
            faults: Mutex::default(),
            flips: Mutex::default(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            requests: AtomicUsize::new(0),
            yielded_bytes: Arc::default(),
            streams: Arc::default(),
        }
    }

    /// A blob that comes from another host.
    pub fn at_host(bytes: Vec<u8>, host: &str) -> Arc<Self> {
        Arc::new(Self { host: Some(host.into()), ..Self::with(bytes, false) })
    }

    /// A blob whose first `pieces` pieces come at once, and the rest when the gate gets permits.
    pub fn gated(bytes: Vec<u8>, pieces: usize) -> Arc<Self> {
        Arc::new(Self { gate: Arc::new(Semaphore::new(pieces)), ..Self::with(bytes, false) })
    }

    /// A blob that comes in pieces of this length.
    pub fn cut(bytes: Vec<u8>, piece_bytes: usize) -> Arc<Self> {
        Arc::new(Self { piece_bytes, ..Self::with(bytes, false) })
    }

    /// As [`Self::gated`], with pieces of a byte.
    pub fn tiny(bytes: Vec<u8>, pieces: usize) -> Arc<Self> {
        let gate = Arc::new(Semaphore::new(pieces));
        Arc::new(Self { piece_bytes: 1, gate, ..Self::with(bytes, false) })
    }

    pub fn faulty(bytes: Vec<u8>, faults: &[Fault]) -> Arc<Self> {
        let memory = Self::with(bytes, false);
        *memory.faults.lock() = faults.iter().rev().copied().collect();
        Arc::new(memory)
    }

    pub fn spec(&self, format: Format, compression: Compression) -> LayerSpec {
        let blob = BlobId { digest: Digest::of(&self.bytes), size: self.bytes.len() as u64 };
        LayerSpec { blob, encoding: Encoding { format, compression } }
    }

    pub fn raw(&self) -> LayerSpec {
        self.spec(Format::Raw, Compression::None)
    }

    /// The bytes of a range that starts at `start`, with the changes on their way.
    fn with_flips(&self, bytes: Bytes, start: usize) -> Bytes {
        let mut flips = self.flips.lock();
        let end = start + bytes.len();
        let here: Vec<usize> = flips.extract_if(.., |at| (start..end).contains(at)).collect();
        if here.is_empty() {
            return bytes;
        }
        let mut changed = bytes.to_vec();
        here.iter().for_each(|at| changed[at - start] ^= 1);
        changed.into()
    }

    pub fn yielded(&self) -> u64 {
        self.yielded_bytes.load(Ordering::SeqCst)
    }
}

/// Counts a stream for as long as it is alive.
struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub fn unavailable() -> SourceError {
    SourceError::Unavailable { place: "memory".into(), detail: "as the test wishes".into() }
}

impl BlobSource for Memory {
    fn host(&self) -> Option<Arc<str>> {
        self.host.clone()
    }

    fn place(&self) -> Option<String> {
        self.host().map(|host| host.to_string())
    }

    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        _urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        assert!(range.start < range.end && range.end <= blob.end(), "the contract of open");
        self.requests.fetch_add(1, Ordering::SeqCst);
        let fault = self.faults.lock().pop().unwrap_or(Fault::None);
        let is_whole = self.is_without_ranges || matches!(fault, Fault::Whole);
        let range = if is_whole { blob.whole() } else { range };
        let bytes = self.bytes.slice(BlobOffset::indices(&range));
        let bytes = self.with_flips(bytes, range.start.get() as usize);
        let mut pieces: Vec<Result<Bytes, SourceError>> = Vec::new();
        match fault {
            Fault::Refuse => return Box::pin(async { Err(unavailable()) }),
            Fault::BreakAfter(length) => {
                let length = length.min(bytes.len() - 1);
                pieces.extend(cut(&bytes.slice(..length), self.piece_bytes).map(Ok));
                pieces.push(Err(unavailable()));
            }
            Fault::None | Fault::Whole => pieces.extend(cut(&bytes, self.piece_bytes).map(Ok)),
        }
        self.streams.fetch_add(1, Ordering::SeqCst);
        let alive = Alive(self.streams.clone());
        let (gate, yielded) = (self.gate.clone(), self.yielded_bytes.clone());
        let bytes = futures_util::stream::iter(pieces).then(move |piece| {
            let _alive = &alive;
            let (gate, yielded) = (gate.clone(), yielded.clone());
            async move {
                gate.acquire().await.unwrap().forget();
                if let Ok(piece) = &piece {
                    yielded.fetch_add(piece.len() as u64, Ordering::SeqCst);
                }
                piece
            }
        });
        let stream = BlobStream { range, bytes: bytes.boxed() };
        Box::pin(async move { Ok(stream) })
    }
}

fn cut(bytes: &Bytes, piece_bytes: usize) -> impl Iterator<Item = Bytes> + use<> {
    let bytes = bytes.clone();
    (0..bytes.len())
        .step_by(piece_bytes)
        .map(move |start| bytes.slice(start..(start + piece_bytes).min(bytes.len())))
}
