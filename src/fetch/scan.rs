//! Finds the table of contents of an uncompressed tar layer by its headers alone.
//!
//! A member's header says where the next header is, so the content in between is never fetched. Reads start small,
//! and double while headers lie close together (many small files). After a jump over a member larger than a chunk
//! (weights), they start small again. Bytes that are read beyond a header are kept, and fetched once. There is one
//! exception. A member of 256 KiB to 1 MiB has no file of its own, so the next header lies inside a chunk whose
//! start was skipped. The 4 KiB of this header are fetched again when the chunk is read.
//!
//! ```text
//! | hdr | big member ........ | hdr hdr f hdr f f hdr ... | big | end |
//!  ^4K                         ^4K ^8K ^16K ...              ^4K   ^tail, asked for at the start
//! ```

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use parking_lot::Mutex;

use super::staging::{self, Staging};
use super::{FetchError, off_the_runtime};
use crate::cache::{Contents, LayerStore};
use crate::layer::StreamOffset;
use crate::layer::layout::CHUNK_BYTES;
use crate::layer::tar::Scanner;
use crate::oci::{BlobId, BlobOffset};
use crate::source::admission::UserId;
use crate::source::{BlobSource, BlobStream, Urgency};

/// The first read at an unknown place: a header, its PAX records and a few small members.
const FIRST_READ_BYTES: u64 = 4 * 1024;
/// The largest read of a scan; bounds its memory.
const LARGEST_READ_BYTES: u64 = 4 * 1024 * 1024;
/// The distance from the last read to the next header up to which the bytes between are read too: one
/// chunk. They would be fetched with it anyway, and a chunk with a gap is fetched again.
const NEAR_BYTES: u64 = CHUNK_BYTES;
/// The end marker and the last member's padding. They are requested together with the first header. So a layer of
/// one big file takes one round trip, not two.
const TAIL_BYTES: u64 = 1024;
/// GNU tar fills its last record, of 10 KiB, with zeros. The scan reads so short a rest of a layer in one request.
const RECORD_BYTES: u64 = 10 * 1024;
/// Smaller layers are read in one request, because the tail is not worth a request of its own.
const SMALL_LAYER_BYTES: u64 = 64 * 1024;

/// Scans the headers of `blob`, and makes its contents known to `store`. `progress` is called with the blob bytes
/// that the scan has passed.
pub(super) async fn run(
    blob: BlobId,
    store: &Arc<LayerStore>,
    source: &Arc<dyn BlobSource>,
    user: UserId,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Arc<Contents>, FetchError> {
    let staging = Staging::new(staging::begin(store).await?);
    let headers = Headers { blob, scanner: Scanner::new(), staging };
    let mut scan = Scan { blob, user, headers: Arc::new(Mutex::new(headers)), tail: None };
    if blob.size <= SMALL_LAYER_BYTES {
        if blob.size > 0 {
            scan.read(source.open(blob, blob.whole(), opening(user)).await?).await?;
        }
    } else {
        let tail_range = BlobOffset(blob.size - TAIL_BYTES)..blob.end();
        // The head is read to its end here. Its stream holds a slot of the host, and the tail may be waiting for a
        // slot.
        let (head, tail) = tokio::join!(
            async {
                scan.read(
                    source.open(blob, BlobOffset(0).range(FIRST_READ_BYTES), opening(user)).await?,
                )
                .await
            },
            read_exactly(source.as_ref(), blob, tail_range.clone(), user),
        );
        head?;
        // Without a tail, the scan requests these bytes when it gets there, and returns the error then.
        scan.tail =
            tail.ok().flatten().map(|bytes| (tail_range.start.in_uncompressed_stream(), bytes));
        scan.jump_from_header_to_header(source.as_ref(), progress).await?;
    }
    scan.finish().await
}

struct Scan {
    blob: BlobId,
    user: UserId,
    headers: Arc<Mutex<Headers>>,
    tail: Option<(StreamOffset, Bytes)>,
}

/// The headers so far, and the bytes that came with them. They move to a thread that may wait for the disk.
struct Headers {
    blob: BlobId,
    scanner: Scanner,
    staging: Staging,
}

impl Headers {
    fn feed(&mut self, at: StreamOffset, bytes: &[u8]) -> Result<(), FetchError> {
        if at <= self.scanner.next_offset() {
            self.scanner
                .feed(at, bytes)
                .map_err(|error| FetchError::malformed(self.blob, error))?;
        }
        self.staging.learn(self.scanner.members());
        Ok(self.staging.write(at, bytes)?)
    }

    fn is_done(&self) -> bool {
        self.scanner.is_finished() || self.scanner.next_offset().get() >= self.blob.size
    }

    /// The start of the padding before a header. The chunks behind a big member are counted from there, the end of
    /// its content. Bytes behind a gap in a chunk would not count as resident.
    fn before_padding(&self, header: StreamOffset) -> StreamOffset {
        let last = self.scanner.members().last().and_then(|member| member.kind.extents());
        match last.map(|extents| extents.stored().end) {
            Some(end) if end <= header && header - end < 512 => end,
            _ => header,
        }
    }
}

impl Scan {
    async fn jump_from_header_to_header(
        &mut self,
        source: &dyn BlobSource,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        let mut read_bytes = FIRST_READ_BYTES;
        let mut last_end = StreamOffset(FIRST_READ_BYTES);
        loop {
            let (is_done, at, before_padding) = {
                let headers = self.headers.lock();
                let at = headers.scanner.next_offset();
                (headers.is_done(), at, headers.before_padding(at))
            };
            progress(at.get().min(self.blob.size));
            if is_done {
                break;
            }
            if let Some((tail, bytes)) = self.tail.take_if(|(tail, _)| *tail <= at) {
                self.feed(tail, bytes).await?;
                continue;
            }
            let is_near = at <= last_end + NEAR_BYTES;
            read_bytes =
                if is_near { (read_bytes * 2).min(LARGEST_READ_BYTES) } else { FIRST_READ_BYTES };
            let start = if is_near { last_end.min(at) } else { before_padding };
            let blob_end = self.blob.end().in_uncompressed_stream();
            let known = self.tail.as_ref().map_or(blob_end, |(tail, _)| *tail);
            let mut end = (at + read_bytes).min(known);
            if known - end <= RECORD_BYTES {
                end = known;
            }
            let range = start.in_uncompressed_blob()..end.in_uncompressed_blob();
            self.read(source.open(self.blob, range, opening(self.user)).await?).await?;
            last_end = end;
        }
        if let Some((tail, bytes)) = self.tail.take() {
            self.feed(tail, bytes).await?;
        }
        Ok(())
    }

    /// Stages all bytes of a stream. A source without ranges sends the whole layer, and its bytes are kept as far
    /// as there is room.
    async fn read(&mut self, mut stream: BlobStream) -> Result<(), FetchError> {
        let mut at = stream.range.start.in_uncompressed_stream();
        while let Some(piece) = stream.bytes.next().await {
            let piece = piece?;
            let next = at + piece.len() as u64;
            self.feed(at, piece).await?;
            at = next;
        }
        Ok(())
    }

    async fn feed(&self, at: StreamOffset, bytes: Bytes) -> Result<(), FetchError> {
        let headers = self.headers.clone();
        off_the_runtime(move || headers.lock().feed(at, &bytes)).await
    }

    async fn finish(self) -> Result<Arc<Contents>, FetchError> {
        let blob = self.blob;
        let headers = Arc::into_inner(self.headers).map(Mutex::into_inner);
        let Headers { scanner, staging, .. } = headers.expect("no piece is being fed any more");
        let toc = scanner.finish(blob.size).map_err(|error| FetchError::malformed(blob, error))?;
        let (stage, covered) = off_the_runtime(|| staging.into_parts()).await?;
        staging::finish(stage, toc, covered).await
    }
}

fn opening(user: UserId) -> Urgency {
    Urgency::opening().of_user(user)
}

/// The bytes of a small range; `None` where the source would send the whole blob.
async fn read_exactly(
    source: &dyn BlobSource,
    blob: BlobId,
    range: Range<BlobOffset>,
    user: UserId,
) -> Result<Option<Bytes>, FetchError> {
    let mut stream = source.open(blob, range.clone(), opening(user)).await?;
    if stream.range != range {
        return Ok(None);
    }
    let mut bytes = BytesMut::with_capacity((range.end - range.start) as usize);
    while let Some(piece) = stream.bytes.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(Some(bytes.freeze()))
}
