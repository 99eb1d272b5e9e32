//! kit's own kits, unpacked and packed again: the same layers and the same config.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kitfs::kit::{AuthoredKitfile, GoYaml, Kitfile};
use kitfs::layer::encode::Effort;
use kitfs::oci::Format;
use kitfs::pack::{Options, Prepared, Progress, Stamp};
use kitfs::source::kit_storage::writing::StorageWriter;
use serde_json::Value;

use crate::support::golden;

fn blob(kit: &str, digest: &Value) -> Vec<u8> {
    let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    fs::read(golden(kit).join("blobs/sha256").join(hex)).unwrap()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Writes the members of an archive below `root`, with their modes.
fn extract(archive: &[u8], root: &Path) {
    let mut directories = Vec::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = root.join(entry.path().unwrap());
        let mode = entry.header().mode().unwrap();
        if entry.header().entry_type().is_dir() {
            fs::create_dir_all(&path).unwrap();
            directories.push((path, mode));
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    for (path, mode) in directories {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn decoded(layer: &[u8], media_type: &str) -> Vec<u8> {
    match media_type.ends_with("+gzip") {
        true => {
            let mut decoder = kitfs::layer::decode::Decoder::new(
                kitfs::oci::Compression::Gzip,
                kitfs::layer::decode::Windows::Usual,
            );
            let (mut rest, mut room, mut out) = (layer, vec![0; 65536], Vec::new());
            while !rest.is_empty() {
                let count = decoder.decode(&mut rest, &mut room).unwrap();
                out.extend_from_slice(&room[..count]);
            }
            loop {
                match decoder.decode(&mut rest, &mut room).unwrap() {
                    0 => break out,
                    count => out.extend_from_slice(&room[..count]),
                }
            }
        }
        false => layer.to_vec(),
    }
}

/// Packs the files of a golden kit again. Returns kit's config and manifest, and ours.
fn pack_again(kit: &str, ignore: &str, effort: Effort) -> ([Value; 2], [Value; 2]) {
    let index = json(&fs::read(golden(kit).join("index.json")).unwrap());
    let manifest = json(&blob(kit, &index["manifests"][0]["digest"]));
    let config = blob(kit, &manifest["config"]["digest"]);
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("src");
    fs::create_dir(&folder).unwrap();
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let media_type = layer["mediaType"].as_str().unwrap();
        extract(&decoded(&blob(kit, &layer["digest"]), media_type), &folder);
    }
    let yaml = Kitfile::decode(&config).unwrap().to_yaml(GoYaml::Older);
    fs::write(folder.join("Kitfile"), &yaml).unwrap();
    fs::write(folder.join(".kitignore"), ignore).unwrap();
    fs::write(folder.join("not-listed"), "x").unwrap();
    let options = Options { is_model_pack: false, format: Format::Tar, effort };
    let kitfile = AuthoredKitfile::parse(&yaml).unwrap();
    let prepared = Prepared::new(&folder, "Kitfile", kitfile, &[], options).unwrap();
    let home = work.path().join("home");
    let storage = StorageWriter::open(&home).unwrap();
    let stamp = Stamp { created: jiff::Timestamp::UNIX_EPOCH, packer: "test".to_owned() };
    let tags = ["v1".to_owned()];
    let packed =
        prepared.pack(&storage, "localhost/x", &tags, &stamp, &Progress::default()).unwrap();
    let read = |digest: &str| fs::read(crate::blob(&home, digest)).unwrap();
    let ours = json(&read(&packed.manifest.digest.to_string()));
    let our_config = read(ours["config"]["digest"].as_str().unwrap());
    if effort == Effort::None {
        assert_eq!(String::from_utf8_lossy(&our_config), String::from_utf8_lossy(&config), "{kit}");
    }
    ([json(&config), manifest], [json(&our_config), ours])
}

#[test]
fn layers_and_configs_are_the_bytes_of_kit() {
    for (kit, ignore) in [
        ("article", ""),
        ("comp-none", ""),
        ("grandparent", ""),
        ("parent", ""),
        ("child", ""),
        ("small5k", ""),
        ("empty", ""),
        ("noparent", "code/dir\n!code/dir/keep.txt\n"),
    ] {
        let ([_, golden], [_, ours]) = pack_again(kit, ignore, Effort::None);
        assert_eq!(ours["config"], golden["config"], "{kit}");
        let digests = |manifest: &Value| -> Vec<_> {
            let layers = manifest["layers"].as_array().into_iter().flatten();
            layers
                .map(|it| (it["mediaType"].clone(), it["digest"].clone(), it["size"].clone()))
                .collect()
        };
        assert_eq!(digests(&ours), digests(&golden), "{kit}");
        assert_eq!(ours["layers"].is_null(), golden["layers"].is_null(), "{kit}");
    }
}

#[test]
fn compressed_layers_hold_the_bytes_of_kit() {
    for (kit, effort) in [("comp-gzip", Effort::Gzip), ("comp-gzip-fastest", Effort::GzipFastest)] {
        let ([golden, _], [ours, _]) = pack_again(kit, "", effort);
        let diff_ids = |config: &Value| {
            ["code", "datasets", "docs"].map(|section| config[section][0]["diffId"].clone())
        };
        assert_eq!(diff_ids(&ours), diff_ids(&golden), "{kit}");
        assert_eq!(ours["model"]["diffId"], golden["model"]["diffId"], "{kit}");
        assert_ne!(ours["model"]["digest"], ours["model"]["diffId"], "{kit}");
    }
}
