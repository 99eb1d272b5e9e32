//! Runs the fuzz targets on seeded inputs: good ones, damaged ones and noise. This keeps the targets
//! working without a fuzzer, and does not replace one.

mod support;
#[path = "../fuzz/src/lib.rs"]
mod targets;

use kitfs::layer::tar::Scanner;
use kitfs::layer::{StreamOffset, toc_codec};
use serde_json::json;
use support::Random;
use support::kit_builder::{Kit, Layer, Written};
use support::tar_stream::{self, Stream};

/// The number of damaged copies of each good input.
const MUTANTS: usize = 500;

/// A kit with layers in all encodings, and the folder that holds it.
fn kit() -> (Written, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let tar = Layer::tar("code", "code")
        .directory("code", 0o755)
        .file("code/\u{e9}.py", 0o644, b"print()")
        .file(format!("code/{}", "n".repeat(150)), 0o600, &[7; 700])
        .symlink("code/link", b"main.py");
    let kit = Kit::modelkit()
        .with(tar.clone())
        .with(tar.clone().gzip())
        .with(tar.zstd())
        .with(Layer::raw("docs", "README.md", 0o644, b"# read me"));
    (kit.write(&folder.path().join("kit"), "v1"), folder)
}

fn blobs(written: &Written) -> Vec<Vec<u8>> {
    let blob = |digest: &str| std::fs::read(written.blob(digest)).unwrap();
    written.layers.iter().map(|(digest, _)| blob(digest)).collect()
}

/// Runs `target` on `good`, on copies with bytes changed, removed, doubled and cut off, and on noise.
fn each(seed: u64, good: &[u8], mut target: impl FnMut(&[u8])) {
    target(good);
    let mut random = Random::new(seed);
    for _ in 0..MUTANTS {
        let mut bytes = good.to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len().max(1) as u64) as usize;
            match random.below(5) {
                0 | 1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 => bytes.truncate(at),
                _ => {
                    let end = bytes.len().min(at + random.below(600) as usize);
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        target(&bytes);
    }
    for _ in 0..MUTANTS / 4 {
        let count = random.below(300) as usize;
        target(&random.bytes(count));
    }
}

#[test]
fn decoder() {
    let (written, _folder) = kit();
    for (compression, blob) in blobs(&written)[..3].iter().enumerate() {
        let mut piece_bytes = 0u8;
        each(1, blob, |blob| {
            piece_bytes = piece_bytes.wrapping_add(37);
            targets::decoder(compression as u8, piece_bytes, blob);
        });
    }
}

#[test]
fn kitfile() {
    let (written, _folder) = kit();
    each(2, &std::fs::read(written.blob(&written.config)).unwrap(), targets::kitfile);
}

#[test]
fn manifest() {
    let (written, _folder) = kit();
    each(3, &written.manifest, targets::manifest);
}

#[test]
fn manifest_with_data() {
    let (config, layer) = (digest_of(b"{}"), digest_of(b"x"));
    let manifest = json!({
        "schemaVersion": 2, "artifactType": null, "annotations": {"a": null, "b": "c"},
        "config": {"mediaType": "a/b", "digest": config, "size": 2, "data": "e30="},
        "layers": [{"digest": layer, "size": 1, "data": "eA==", "annotations": null}],
    });
    each(13, manifest.to_string().as_bytes(), targets::manifest);
}

#[test]
fn index() {
    let [one, two] = [digest_of(b"1"), digest_of(b"2")];
    let unknown = json!({"os": "unknown", "architecture": "unknown"});
    let of_kits = json!({
        "schemaVersion": 2, "artifactType": "application/vnd.kitops.modelkit.index.v1+json",
        "manifests": [
            {"digest": one, "size": 1, "modelMetadata": {"size": "small", "n": [1, 2.50]},
                "annotations": {"ml.kitops.modelkit.original-tag": "v1\u{1b}[31m"}},
            {"digest": two, "size": 1, "modelMetadata": {"size": "large"}, "data": "Mg=="},
        ],
    });
    let other = json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"digest": one, "size": 1, "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": two, "size": 1, "platform": unknown},
        ],
    });
    let layout = json!({"manifests": [
        {"digest": one, "annotations": {"org.opencontainers.image.ref.name": "ghcr.io/a/b:v1"}},
        {"digest": two, "annotations": {"io.containerd.image.name": "docker.io/a/b:v1"}},
    ]});
    let tags = json!({"v1": {"digest": one}, "v2": {"digest": two}});
    for (seed, good) in (14..).zip([of_kits, other, layout, tags]) {
        each(seed, good.to_string().as_bytes(), targets::index);
    }
}

fn digest_of(content: &[u8]) -> String {
    kitfs::oci::Digest::of(content).to_string()
}

#[test]
fn reference() {
    each(18, b"s3://my-bucket/a%20b/%1b?x=1&versionId=2#f", |bytes| {
        targets::reference(&String::from_utf8_lossy(bytes));
    });
    let digest = format!("sha256:{}", "0a".repeat(32));
    for good in ["ghcr.io/org/model:v1", "oci:/srv/kits:v1", "[::1]:5000/a__b/c", &digest] {
        let with_digest = format!("{good}@{digest}");
        for text in [good, &with_digest] {
            each(4, text.as_bytes(), |bytes| targets::reference(&String::from_utf8_lossy(bytes)));
        }
    }
}

#[test]
fn tar_scanner() {
    let (written, _folder) = kit();
    each(5, &blobs(&written)[0], targets::tar_scanner);
    each(11, &odd_archive(), targets::tar_scanner);
}

/// A sparse file, a path that comes twice, and a second archive after the end.
fn odd_archive() -> Vec<u8> {
    let mut stream = Stream::default();
    let content: Vec<u8> = (0..4000u32).map(|at| at as u8).collect();
    tar_stream::push_sparse(
        &mut stream,
        b"sparse",
        0o644,
        &content,
        &[0..9, 1000..1600, 3999..4000],
    );
    for _ in 0..2 {
        tar_stream::push_member(&mut stream, b"/twice", b'0', 0o644, 3, b"");
        tar_stream::push_padded(&mut stream, b"abc");
    }
    tar_stream::push_member(&mut stream, b"twice/below", b'1', 0o644, 0, b"sparse");
    tar_stream::push_end(&mut stream);
    tar_stream::push_member(&mut stream, b"behind", b'Z', 0o644, 3, b"");
    tar_stream::push_padded(&mut stream, b"abc");
    stream.to_bytes()
}

#[test]
fn toc_codec_file() {
    let (written, _folder) = kit();
    let archive = &blobs(&written)[0];
    let mut scanner = Scanner::new();
    scanner.feed(StreamOffset(0), archive).unwrap();
    let file = toc_codec::encode(&scanner.finish(archive.len() as u64).unwrap());
    // Without the checksum: the target computes it.
    let content = &file[..file.len() - 4];
    each(6, content, targets::toc_codec);
    let archive = odd_archive();
    let mut scanner = Scanner::new();
    scanner.feed(StreamOffset(0), &archive).unwrap();
    let toc = scanner.finish(archive.len() as u64).unwrap();
    assert!(toc.entries() > toc.members.len(), "one of them has holes");
    let file = toc_codec::encode(&toc);
    each(12, &file[..file.len() - 4], targets::toc_codec);
}

#[test]
fn tensor_header() {
    let json = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[9],"data_offsets":[0,1048576]},"b":{"dtype":"F16","shape":[9],"data_offsets":[1048576,9437184]}}"#;
    let safetensors = [&(json.len() as u64).to_le_bytes(), &json[..]].concat();
    each(7, &safetensors, |header| targets::tensor_header(false, header));
    // Noise after the length reaches most of the parser.
    each(8, json, |json| {
        let header = [&(json.len() as u64).to_le_bytes(), json].concat();
        targets::tensor_header(false, &header);
    });
    let mut gguf = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
    gguf.extend(b"\x11\0\0\0\0\0\0\0general.alignment\x04\0\0\0\0\x10\0\0");
    gguf.extend(b"\x01\0\0\0\0\0\0\0t\x09\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0w");
    for offset in [0u64, 1 << 20] {
        gguf.extend(b"\x01\0\0\0\0\0\0\0n\x01\0\0\0\0\x10\0\0\0\0\0\0\x0c\0\0\0");
        gguf.extend(offset.to_le_bytes());
    }
    let length = gguf.len() as u64;
    let tensors = kitfs::fs::tensors::Format::Gguf.parse(&gguf[..], length, 1 << 30).unwrap();
    assert_eq!(tensors.iter().count(), 2, "the input that is damaged is a good one");
    each(9, &gguf, |header| targets::tensor_header(true, header));
}

#[test]
fn shard_index() {
    let index = br#"{"metadata":{},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#;
    each(10, index, targets::shard_index);
}

#[test]
fn yaml() {
    let text = b"manifestVersion: 1.0.0\npackage: {name: a, authors: [b, 'c']}\nmodel: &m\n  path: ./m\n  parts:\n    - {path: p}\n\
        datasets:\n  - path: >-\n      d\n    description: \"\\x41\\u263a\"\ncode: [{path: .}]\n";
    kitfs::kit::AuthoredKitfile::parse(text).unwrap();
    each(20, text, targets::yaml);
}

#[test]
fn origins() {
    let mut origins = kitfs::source::kit_storage::Origins::default();
    for (layer, place) in
        [("a", "ghcr.io/org/a:v1"), ("b", "oci:/srv/kits:v1"), ("a", "ghcr.io/b:v2")]
    {
        let place = kitfs::oci::Origin::parse(place).unwrap();
        origins.add(kitfs::oci::Digest::of(layer.as_bytes()), place);
    }
    each(21, &origins.encode(), targets::origins);
}

#[test]
fn file_digests() {
    let file = |path: &str| kitfs::kit::FileDigest {
        path: kitfs::layer::MemberPath::parse(path.as_bytes()).unwrap(),
        size: path.len() as u64,
        digest: kitfs::oci::Digest::of(path.as_bytes()),
    };
    let digests = kitfs::kit::FileDigests::new(["a", "a/b\u{e9}", "c"].map(file));
    let text = digests.encode().unwrap();
    each(22, text.as_bytes(), |text| targets::file_digests(&String::from_utf8_lossy(text)));
}

#[test]
fn overlay_record() {
    let record = kitfs::overlay::Record {
        reference: "ghcr.io/org/data:v1".to_owned(),
        digest: kitfs::oci::Digest::of(b"manifest"),
        filters: vec!["model".to_owned()],
        umask: 0o022,
        owner: (1000, 100),
        marks: Some(kitfs::overlay::Marks::Trusted),
    };
    each(23, &record.encode(), targets::overlay_record);
}
