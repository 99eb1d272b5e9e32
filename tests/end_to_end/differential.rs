//! Random kits, mounted and unpacked. The two trees must be equal, and random reads of both must give
//! the same bytes. The `tar` crate and the system's gzip unpack the kits; kitfs's readers share no
//! code with them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::Random;
use crate::support::kit_builder::{Compression, Kit, Layer, Written};
use crate::support::kitfs::Kitfs;
use crate::support::tree::{Kind, Tree};

/// The number of random reads of each kit.
const READS: usize = 200;

#[rstest]
fn a_random_kit_is_mounted_as_it_is_unpacked(
    #[values(1, 2, 3, 4, 5, 6)] seed: u64,
    #[values(Compression::None, Compression::Gzip, Compression::Zstd)] compression: Compression,
) {
    let mut random = Random::new(seed);
    let folder = TempDir::new().unwrap();
    let written = random_kit(&mut random, compression).write(&folder.path().join("kit"), "v1");
    let unpacked = folder.path().join("unpacked");
    unpack(&written, &unpacked);
    let expected = Tree::read(&unpacked);
    expected.assert_equals(&written.tree, "the unpacked tree, against what was built");

    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&written.reference, &[]);
    assert_reads_agree(&mut random, &expected, &unpacked, &mountpoint);
    Tree::read(&mountpoint).without_kitfile().assert_equals(&expected, "the mounted tree");
}

fn random_kit(random: &mut Random, compression: Compression) -> Kit {
    let mut kit = Kit::modelkit();
    for (index, role) in ["model", "modelpart", "code", "dataset", "docs"].iter().enumerate() {
        if random.below(3) == 0 {
            let path = format!("raw{index}/file.bin");
            let mode = random_mode(random);
            let content = random_content(random);
            let layer = Layer::raw(role, &path, mode, &content);
            kit = kit.with(layer.compressed(compression));
            continue;
        }
        let root = format!("layer{index}");
        let mut layer = Layer::tar(role, &root).directory(&root, 0o755);
        let mut directories = vec![root];
        for number in 0..random.below(20) {
            let parent = &directories[random.below(directories.len() as u64) as usize];
            if random.below(4) == 0 {
                let path = format!("{parent}/d{number}");
                // The owner keeps all rights, so that unpacking can fill the directory.
                layer = layer.directory(&path, 0o700 | random_mode(random));
                directories.push(path);
            } else {
                let path = format!("{parent}/{number}-{}", random_name(random));
                let (mode, content) = (random_mode(random), random_content(random));
                layer = layer.file(path, mode, &content);
            }
        }
        kit = kit.with(layer.compressed(compression));
    }
    kit
}

fn random_mode(random: &mut Random) -> u32 {
    0o400 | random.below(0o1000) as u32
}

fn random_name(random: &mut Random) -> String {
    match random.below(4) {
        0 => "ü".repeat(1 + random.below(60) as usize),
        1 => "long".repeat(1 + random.below(50) as usize),
        _ => "name".to_owned(),
    }
}

/// Content with a size near a limit: of a block, of a chunk, of a member with its own file.
fn random_content(random: &mut Random) -> Vec<u8> {
    let borders = [0, 1, 512, 1024, 4096, 256 << 10, 512 << 10, 1 << 20, (1 << 20) + 512];
    let border: usize = borders[random.below(borders.len() as u64) as usize];
    let length = (border + random.below(3) as usize).saturating_sub(1);
    let mut content = random.bytes(length);
    // Half of the content compresses, so that blobs and streams differ in length.
    content[..length / 2].fill(b'z');
    content
}

fn assert_reads_agree(random: &mut Random, tree: &Tree, unpacked: &Path, mounted: &Path) {
    let files: Vec<_> = tree
        .0
        .iter()
        .filter_map(|(path, entry)| match entry.kind {
            Kind::File { size, .. } => Some((std::str::from_utf8(path).unwrap(), size)),
            Kind::Directory | Kind::Symlink(_) => None,
        })
        .collect();
    for _ in 0..READS {
        let (path, size) = files[random.below(files.len() as u64) as usize];
        let start = random.below(size + 2);
        let length = random.below(300_000) as usize;
        let read = |root: &Path| {
            let mut buffer = vec![0; length];
            let file = File::open(root.join(path)).unwrap();
            let read = file.read_at(&mut buffer, start).unwrap();
            buffer.truncate(read);
            buffer
        };
        let (is, should) = (read(mounted), read(unpacked));
        assert!(is == should, "{path}: {length} bytes from {start} differ");
    }
}

fn unpack(written: &Written, folder: &Path) {
    let manifest: Value = serde_json::from_slice(&written.manifest).unwrap();
    fs::create_dir(folder).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let media_type = layer["mediaType"].as_str().unwrap();
        let blob = File::open(written.blob(layer["digest"].as_str().unwrap())).unwrap();
        let stream = decompress(blob, media_type);
        if media_type.contains(".tar") {
            let mut archive = tar::Archive::new(stream.as_slice());
            archive.set_mask(0o022);
            archive.set_preserve_permissions(true);
            archive.unpack(folder).unwrap();
        } else {
            let annotations = &layer["annotations"];
            let path = folder.join(annotations["org.cncf.model.filepath"].as_str().unwrap());
            let metadata = &annotations["org.cncf.model.file.metadata+json"];
            let metadata: Value = serde_json::from_str(metadata.as_str().unwrap()).unwrap();
            let mode = metadata["mode"].as_u64().unwrap() as u32 & !0o022;
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut options = File::options();
            let file = options.write(true).create_new(true).mode(mode).open(&path).unwrap();
            file.write_all_at(&stream, 0).unwrap();
            file.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

fn decompress(blob: File, media_type: &str) -> Vec<u8> {
    if media_type.ends_with("+zstd") {
        return zstd::stream::decode_all(blob).unwrap();
    }
    let program = if media_type.ends_with("+gzip") { "gzip" } else { "cat" };
    let arguments: &[&str] = if program == "gzip" { &["-dc"] } else { &[] };
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::from(blob)).output().unwrap();
    assert!(output.status.success(), "{program} fails");
    output.stdout
}
