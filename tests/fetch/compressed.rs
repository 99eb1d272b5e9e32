//! Compressed layers: a pass over the blob decodes each of its bytes once.

use std::sync::atomic::Ordering;

use kitfs::cache::LayerState;
use kitfs::fetch::FetchError;
use kitfs::oci::{Compression, Digest, Format};
use proptest::prelude::*;

use super::memory::{Fault, Memory, PIECE};
use super::support::kit_builder::gzip;
use super::{MIB, content, fetcher, open, read, tar_of, until};

#[tokio::test]
async fn a_compressed_layer_takes_one_pass_and_goes_on_after_an_interruption() {
    let folder = tempfile::tempdir().unwrap();
    let stream = tar_of(&[2 * MIB, 100, MIB + 5]);
    let blob = zstd::encode_all(&stream[..], 1).unwrap();
    let source = Memory::faulty(blob, &[Fault::BreakAfter(MIB), Fault::None]);
    let spec = source.spec(Format::Tar, Compression::Zstd);
    {
        let fetcher = fetcher(folder.path(), None);
        let failed = open(&fetcher, spec, &source).await;
        assert!(matches!(failed, Err(FetchError::Source(_))), "the source's own reason is told");
    }
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, spec, &source).await.unwrap();
    assert_eq!(layer.state(), LayerState::Confirmed);
    assert!(read(&layer, 0..stream.len()).await.unwrap() == stream);
    assert_eq!(source.yielded(), source.bytes.len() as u64);
    assert_eq!(fetcher.cache().resident_bytes(), stream.len() as u64, "the spool is gone");
}

#[tokio::test]
async fn evicted_chunks_of_a_compressed_layer_come_back_by_another_pass() {
    let stream = content(1, 2 * MIB);
    // Blobs of several members or frames, the borders of which are none of chunks or pieces.
    let cut = |compress: &dyn Fn(&[u8]) -> Vec<u8>| {
        stream.chunks(700_001).flat_map(compress).collect::<Vec<u8>>()
    };
    let frames = cut(&|part| zstd::encode_all(part, 1).unwrap());
    for (compression, blob) in [(Compression::Zstd, frames), (Compression::Gzip, cut(&gzip))] {
        let folder = tempfile::tempdir().unwrap();
        let source = Memory::new(blob);
        let fetcher = fetcher(folder.path(), Some(5 * MIB as u64));
        let layer = open(&fetcher, source.spec(Format::Raw, compression), &source).await.unwrap();
        fetcher.cache().make_room(4 * MIB as u64 + 100_000).unwrap();
        assert!(layer.resident_bytes() < MIB as u64);
        assert!(read(&layer, 0..stream.len()).await.unwrap() == stream, "{compression:?}");
        assert_eq!(layer.state(), LayerState::Confirmed);
        assert!(source.yielded() <= 2 * source.bytes.len() as u64, "one more pass");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_windows_of_zstd_are_decoded_with_the_memory_they_need_reserved() {
    use zstd::stream::raw::CParameter;
    let folder = tempfile::tempdir().unwrap();
    let stream = content(1, 8 * MIB);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(CParameter::WindowLog(26)).unwrap();
    std::io::copy(&mut &stream[..], &mut encoder).unwrap();
    let blob = encoder.finish().unwrap();
    let pieces = blob.len().div_ceil(PIECE);
    let source = Memory::gated(blob, pieces);
    let fetcher = fetcher(folder.path(), Some(20 * MIB as u64));
    let window_bytes = 64 * MIB as u64;

    let spec = source.spec(Format::Raw, Compression::Zstd);
    let opening = {
        let (fetcher, source) = (fetcher.clone(), source.clone());
        tokio::spawn(async move { open(&fetcher, spec, &source).await })
    };
    // A part of the first pieces had come when the frame turned out to need more.
    until("the pass is made again", || source.requests.load(Ordering::SeqCst) == 2).await;
    assert!(fetcher.usage().reserved_bytes > window_bytes);
    source.gate.add_permits(2 * pieces);
    let layer = opening.await.unwrap().unwrap();
    assert_eq!(layer.state(), LayerState::Confirmed);
    assert!(source.yielded() < source.bytes.len() as u64 * 3 / 2, "{}", source.yielded());

    fetcher.cache().make_room(18 * MIB as u64).unwrap();
    assert!(layer.resident_bytes() < 4 * MIB as u64);
    assert!(read(&layer, 0..stream.len()).await.unwrap() == stream);
    until("no memory is reserved", || fetcher.usage().reserved_bytes == 0).await;
}

#[tokio::test]
async fn a_wrong_digest_of_a_compressed_layer_refuses_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(zstd::encode_all(&content(1, MIB)[..], 1).unwrap());
    let mut spec = source.spec(Format::Raw, Compression::Zstd);
    spec.blob.digest = Digest::of(b"something else");
    let fetcher = fetcher(folder.path(), None);
    for _ in 0..2 {
        let refused = open(&fetcher, spec, &source).await;
        assert!(matches!(refused, Err(FetchError::Poisoned { .. })));
        assert_eq!(fetcher.cache().resident_bytes(), 0, "nothing of it is kept");
    }
}

/// A member or a frame of its own.
fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        _ => gzip(bytes),
    }
}

/// A frame that decoders pass over (RFC 8878, 3.1.2).
fn skippable(bytes: u32) -> Vec<u8> {
    [&0x184d_2a50u32.to_le_bytes()[..], &bytes.to_le_bytes(), &vec![7; bytes as usize]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_blob_of_many_members_comes_whole_however_its_source_cuts_it(
        compression in prop_oneof![Just(Compression::Gzip), Just(Compression::Zstd)],
        sizes in prop::collection::vec(prop_oneof![Just(0), 1..300usize, 1..400_000usize], 1..6),
        skipped in prop::collection::vec(0..2000u32, 0..3),
        piece_bytes in prop_oneof![1..40usize, 40..200_000usize],
    ) {
        let parts: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(at, &bytes)| content(at as u64, bytes)).collect();
        let mut blob = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            blob.extend(compressed(compression, part));
            if compression == Compression::Zstd {
                blob.extend(skipped.get(at).copied().map(skippable).unwrap_or_default());
            }
        }
        let stream = parts.concat();
        let folder = tempfile::tempdir().unwrap();
        let source = Memory::cut(blob, piece_bytes);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let got = runtime.block_on(async {
            let fetcher = fetcher(folder.path(), None);
            let spec = source.spec(Format::Raw, compression);
            let layer = open(&fetcher, spec, &source).await.unwrap();
            assert_eq!(layer.state(), LayerState::Confirmed);
            read(&layer, 0..stream.len()).await.unwrap()
        });
        prop_assert!(got == stream);
    }
}
