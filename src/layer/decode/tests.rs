//! Decoders against the library's encoders, golden layers, truncation and damage.

use std::path::PathBuf;

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::oci::Digest;

/// Decodes a blob shown in pieces of `piece_bytes`, with room for `room_bytes` at a time.
fn decode(
    compression: Compression,
    blob: &[u8],
    piece_bytes: usize,
    room_bytes: usize,
) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(compression, Windows::Large);
    let mut room = vec![0; room_bytes];
    let mut decoded = Vec::new();
    for mut piece in blob.chunks(piece_bytes) {
        loop {
            let before = piece.len();
            let written = decoder.decode(&mut piece, &mut room)?;
            decoded.extend_from_slice(&room[..written]);
            if written == 0 && piece.is_empty() {
                break;
            }
            assert!(written > 0 || piece.len() < before, "a call without progress");
        }
    }
    decoder.finish()?;
    Ok(decoded)
}

/// A gzip member with stored blocks and a right trailer: enough to test the wrapper around zlib.
fn gzip(content: &[u8]) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let blocks: Vec<&[u8]> = content.chunks(65535).collect();
    for (index, block) in blocks.iter().enumerate() {
        let length = block.len() as u16;
        member.push(u8::from(index + 1 == blocks.len()));
        member.extend(length.to_le_bytes());
        member.extend((!length).to_le_bytes());
        member.extend_from_slice(block);
    }
    if blocks.is_empty() {
        member.extend([3, 0]);
    }
    member.extend(crc32(content).to_le_bytes());
    member.extend((content.len() as u32).to_le_bytes());
    member
}

/// The checksum of a gzip trailer (RFC 1952, 8), bit by bit.
fn crc32(content: &[u8]) -> u32 {
    !content.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ ((sum & 1) * 0xedb8_8320))
    })
}

fn compress(compression: Compression, content: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => content.to_vec(),
        Compression::Gzip => gzip(content),
        Compression::Zstd => zstd::bulk::compress(content, 3).unwrap(),
    }
}

fn compressions() -> impl Strategy<Value = Compression> {
    prop::sample::select(vec![Compression::None, Compression::Gzip, Compression::Zstd])
}

/// Bytes with repetitions, so that decoders have windows to look back into.
fn content() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(any::<u8>(), 0..600), 0..40usize)
        .prop_map(|(part, times)| part.repeat(times))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn members_and_frames_come_back_in_pieces_of_any_size(
        compression in compressions(), parts in prop::collection::vec(content(), 1..4),
        piece_bytes in 1..5000usize, room_bytes in 1..5000usize,
    ) {
        let blob: Vec<u8> = parts.iter().flat_map(|part| compress(compression, part)).collect();
        prop_assert_eq!(decode(compression, &blob, piece_bytes, room_bytes), Ok(parts.concat()));
    }

    #[test]
    fn a_cut_is_noticed_at_any_byte(
        compression in prop::sample::select(vec![Compression::Gzip, Compression::Zstd]),
        content in content(), cut in any::<prop::sample::Index>(),
    ) {
        let blob = compress(compression, &content);
        let cut = cut.index(blob.len());
        let error = decode(compression, &blob[..cut], 333, 777).unwrap_err();
        let DecodeError::Truncated { offset, .. } = error else { panic!("{error}") };
        prop_assert_eq!(offset, cut as u64);
    }

    #[test]
    fn damage_is_noticed_or_harmless_and_never_a_panic(
        compression in prop::sample::select(vec![Compression::Gzip, Compression::Zstd]),
        content in content(), place in any::<prop::sample::Index>(), flip in 1..=255u8,
    ) {
        let mut blob = compress(compression, &content);
        let place = place.index(blob.len());
        blob[place] ^= flip;
        let decoded = decode(compression, &blob, 333, 777);
        // gzip's checksum covers everything behind the header; zstd has none by default. In a run
        // of equal bytes, a copy from two places back is as good as one from one place back.
        if compression == Compression::Gzip && place >= 10 {
            prop_assert!(decoded.is_err() || decoded == Ok(content));
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(
        compression in compressions(), bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = decode(compression, &bytes, 50, 50);
    }
}

#[rstest]
#[case(Compression::Gzip, "gzip")]
#[case(Compression::Zstd, "zstd")]
fn an_empty_blob_and_nonsense_are_refused(
    #[case] compression: Compression,
    #[case] format: &'static str,
) {
    let empty = decode(compression, b"", 1, 1);
    assert_eq!(empty, Err(DecodeError::Truncated { format, offset: 0 }));
    let error = decode(compression, b"not compressed at all", 100, 100).unwrap_err();
    assert_eq!(error, DecodeError::OtherFormat { format });
    // Bytes that begin well and are something else then.
    let begun = [&compress(compression, b"a")[..1], b"not compressed at all"].concat();
    let error = decode(compression, &begun, 100, 100).unwrap_err();
    assert!(error.to_string().starts_with(&format!("malformed {format} data at byte")), "{error}");
    assert_eq!(decode(compression, &compress(compression, b""), 100, 100), Ok(Vec::new()));
}

#[test]
fn zeros_behind_gzip_members_are_padding_and_other_bytes_are_not() {
    let padded = [gzip(b"a"), gzip(b"b"), vec![0; 700]].concat();
    assert_eq!(decode(Compression::Gzip, &padded, 7, 100), Ok(b"ab".to_vec()));
    for tail in [&b"\0\0x"[..], b"x", b"\0\x1f\x8b"] {
        let blob = [&gzip(b"a"), tail].concat();
        let error = decode(Compression::Gzip, &blob, 100, 100).unwrap_err();
        assert!(error.to_string().contains("neither a member nor zeros"), "{error}");
    }
}

#[test]
fn skippable_zstd_frames_are_skipped() {
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let frame = compress(Compression::Zstd, b"content");
    let blob = [&skippable[..], &frame, &skippable].concat();
    for piece_bytes in [1, 5, 1000] {
        assert_eq!(decode(Compression::Zstd, &blob, piece_bytes, 3), Ok(b"content".to_vec()));
    }
}

#[test]
fn a_zstd_window_above_the_limit_is_refused() {
    // Magic, a descriptor without content size, and a window of 2^31 bytes.
    let blob = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 1, 0, 0];
    let error = decode(Compression::Zstd, &blob, 100, 100).unwrap_err();
    assert!(matches!(error, DecodeError::Malformed { .. }), "{error}");
    let blob = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (27 - 10) << 3, 1, 0, 0];
    assert_eq!(decode(Compression::Zstd, &blob, 100, 100), Ok(Vec::new()));
}

#[test]
fn a_zstd_window_that_was_not_reserved_is_told_from_damage() {
    let frame = |log: u8| [0x28, 0xb5, 0x2f, 0xfd, 0x00, (log - 10) << 3, 1, 0, 0];
    let first = |windows, blob: &[u8]| {
        Decoder::new(Compression::Zstd, windows).decode(&mut &blob[..], &mut [0; 100])
    };
    assert_eq!(first(Windows::Usual, &frame(23)), Ok(0));
    let error = first(Windows::Usual, &frame(24)).unwrap_err();
    assert!(matches!(error, DecodeError::LargeWindow { .. }), "{error}");
    assert_eq!(first(Windows::Large, &frame(27)), Ok(0));
    let error = first(Windows::Large, &frame(28)).unwrap_err();
    assert!(matches!(error, DecodeError::Malformed { .. }), "{error}");
}

#[test]
fn golden_gzip_layers_have_their_diff_ids() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut layers = 0;
    for kit in ["comp-gzip", "comp-gzip-fastest"] {
        let listing = std::fs::read(golden.join(format!("{kit}.layers.json"))).unwrap();
        let listing: serde_json::Value = serde_json::from_slice(&listing).unwrap();
        for layer in listing["layers"].as_array().unwrap() {
            let hex = &layer["digest"].as_str().unwrap()["sha256:".len()..];
            let blob = std::fs::read(golden.join(kit).join("blobs/sha256").join(hex)).unwrap();
            let stream = decode(Compression::Gzip, &blob, 1000, 1 << 16).unwrap();
            assert_eq!(Digest::of(&stream).to_string(), layer["diffId"], "{kit}");
            assert_eq!(decode(Compression::Gzip, &blob, 17, 999), Ok(stream));
            layers += 1;
        }
    }
    assert_eq!(layers, 8);
}

#[test]
fn decoders_move_between_threads() {
    fn check<T: Send + 'static>() {}
    check::<Decoder>();
}
