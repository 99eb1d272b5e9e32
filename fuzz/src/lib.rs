//! The bodies of the fuzz targets, without a fuzzer. `cargo test` runs them on seeded inputs
//! (`tests/fuzz_targets.rs`), so that they are known to work.

use kitfs::fs::tensors::{Format, shards};
use kitfs::kit::{AuthoredKitfile, FileDigests, GoYaml, Kitfile};
use kitfs::layer::decode::{Decoder, Windows};
use kitfs::layer::tar::{Scanner, TarError};
use kitfs::layer::toc_codec;
use kitfs::layer::{Extents, StreamOffset, Toc};
use kitfs::oci::{
    Compression, Document, Index, LabelSelector, Manifest, ObjectLocation, Origin, Reference,
};
use kitfs::overlay::Record;
use kitfs::source::image_index::ImageIndex;
use kitfs::source::kit_storage::Origins;

/// The most bytes that [`decoder`] decodes: a small input may stand for gigabytes.
const OUTPUT_LIMIT_BYTES: usize = 4 * 1024 * 1024;

/// Each call of a decoder makes progress or fails, for any bytes in pieces of any size.
pub fn decoder(compression: u8, piece_bytes: u8, blob: &[u8]) {
    let all = [Compression::None, Compression::Gzip, Compression::Zstd];
    let mut decoder = Decoder::new(all[usize::from(compression) % 3], Windows::Large);
    let mut room = [0; 4096];
    let mut decoded = 0;
    for mut piece in blob.chunks(usize::from(piece_bytes) + 1) {
        loop {
            let before = piece.len();
            let Ok(written) = decoder.decode(&mut piece, &mut room) else { return };
            decoded += written;
            if decoded > OUTPUT_LIMIT_BYTES {
                return;
            }
            if written == 0 && piece.is_empty() {
                break;
            }
            assert!(written > 0 || piece.len() < before);
        }
    }
    let _ = decoder.finish();
}

/// Kitfiles are decoded or refused, and decoded ones can be written.
pub fn kitfile(json: &[u8]) {
    if let Ok(kitfile) = Kitfile::decode(json) {
        assert!(kitfile.to_yaml(GoYaml::default()).starts_with(b"manifestVersion:"));
    }
}

/// Kitfiles that people wrote are parsed or refused. A message about a refused one is short and does nothing to a
/// terminal.
pub fn yaml(text: &[u8]) {
    if let Err(error) = AuthoredKitfile::parse(text) {
        let words = error.to_string();
        assert!(words.len() < 100_000 && !words.contains(|c: char| c.is_control() && c != '\n'));
    }
}

/// Origins of blobs that decode are the same after they were written again.
pub fn origins(json: &[u8]) {
    if let Ok(origins) = Origins::decode(json) {
        assert_eq!(Origins::decode(&origins.encode()), Ok(origins));
    }
}

/// Digests of files that decode are in order, and the same after they were written again.
pub fn file_digests(text: &str) {
    let Ok(digests) = FileDigests::decode(text) else { return };
    let paths: Vec<_> = digests.iter().map(|file| file.path.clone()).collect();
    assert!(paths.is_sorted());
    let Some(again) = digests.encode() else { return };
    assert_eq!(FileDigests::decode(&again).expect("its own text"), digests);
}

/// The record of a writable view's folder that decodes is the same after it was written again, and its base has a
/// reference.
pub fn overlay_record(bytes: &[u8]) {
    if let Ok(record) = Record::decode(bytes) {
        let _ = record.pinned();
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }
}

/// Manifests are decoded or refused, and their sizes can be added up.
pub fn manifest(json: &[u8]) {
    if let Ok(manifest) = Manifest::decode(json) {
        let layers: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
        assert!(layers + manifest.config.size <= i64::MAX as u64);
    }
}

/// Indexes of registries and of local stores are decoded or refused. The chosen entry has the labels;
/// a message is short and does nothing to a terminal.
pub fn index(json: &[u8]) {
    let harmless = |text: String| assert!(!text.contains(|c: char| c.is_control() && c != '\n'));
    let mut indexes: Vec<Index> = Index::decode(json).into_iter().collect();
    if let Ok(Document::Index(index)) = Document::decode(json) {
        indexes.push(index);
    }
    for index in indexes {
        for labels in [&[][..], &["size=small"]] {
            let labels = LabelSelector::parse(labels).expect("it is KEY=VALUE");
            match index.choose(&labels) {
                Ok(entry) => assert!(labels.matches(&entry.labels)),
                Err(error) => {
                    assert!(error.to_string().len() < 100_000);
                    harmless(error.to_string());
                }
            }
        }
    }
    for decode in [ImageIndex::decode, ImageIndex::decode_tags] {
        let names = decode(json, "index.json").map(|index| index.names()).unwrap_or_default();
        names.iter().for_each(|name| harmless(name.to_string()));
    }
}

/// The canonical text of a reference or origin parses back to it. The place of an object does nothing
/// to a terminal.
pub fn reference(text: &str) {
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
    }
    if let Ok(origin) = Origin::parse(text) {
        assert_eq!(Origin::parse(&origin.to_string()), Ok(origin));
    }
    if let Some(object) = ObjectLocation::parse(text) {
        let shown = object.map_or_else(|error| error.to_string(), |object| object.to_string());
        assert!(!shown.contains(char::is_control));
    }
}

/// An archive shown whole, in pieces and by headers only gives the same table, inside the stream.
pub fn tar_scanner(archive: &[u8]) {
    let whole = scan(archive, archive.len().max(1), false);
    assert_eq!(scan(archive, 100, false), whole);
    assert_eq!(scan(archive, 512, true), whole);
    for member in whole.map(|toc| toc.members).unwrap_or_default() {
        if let Some(stored) = member.kind.extents().map(Extents::stored) {
            assert!(stored.start <= stored.end && stored.end.get() <= archive.len() as u64);
        }
    }
}

fn scan(archive: &[u8], piece_bytes: usize, jumps: bool) -> Result<Toc, TarError> {
    let mut scanner = Scanner::new();
    let mut at = 0;
    while at < archive.len() && !scanner.is_finished() {
        let piece = &archive[at..archive.len().min(at + piece_bytes)];
        scanner.feed(StreamOffset(at as u64), piece)?;
        at = if jumps { scanner.next_offset().get() as usize } else { at + piece.len() };
    }
    scanner.finish(archive.len() as u64)
}

/// Headers of tensors are parsed or refused. The tensors of a header lie in the file and do not
/// overlap.
pub fn tensor_header(is_gguf: bool, header: &[u8]) {
    let format = if is_gguf { Format::Gguf } else { Format::Safetensors };
    let file_bytes = header.len() as u64 + (1 << 30);
    let Ok(tensors) = format.parse(header, header.len() as u64, file_bytes) else { return };
    let mut end = 0;
    for tensor in tensors.iter() {
        assert!(end <= tensor.start && tensor.start < tensor.end && tensor.end <= file_bytes);
        end = tensor.end;
    }
}

/// The shards of an index lie beside it, and each but the last has a next one.
pub fn shard_index(index: &[u8]) {
    let Ok(names) = shards::parse(index) else { return };
    for name in &names {
        assert!(!name.contains('/'));
        assert!(shards::after(&names, name).is_some() || Some(name) == names.last());
    }
}

/// A file that decodes has the bytes that its table encodes to. The checksum is made right first,
/// to get behind it.
pub fn toc_codec(content: &[u8]) {
    let _ = toc_codec::decode(content);
    let sealed = [content, &crc32c(content).to_le_bytes()].concat();
    let is_of_this_version = content.get(8) == Some(&2);
    if let Ok(toc) = toc_codec::decode(&sealed)
        && is_of_this_version
    {
        assert_eq!(toc_codec::encode(&toc), sealed);
    }
}

/// CRC-32C, bit by bit.
fn crc32c(content: &[u8]) -> u32 {
    !content.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ ((sum & 1) * 0x82f6_3b78))
    })
}
