//! Any folder: the layers hold exactly its files, for another reader than kitfs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use kitfs::kit::{AuthoredKitfile, FileDigests};
use kitfs::layer::encode::Effort;
use kitfs::oci::{Digest, Format, Manifest};
use kitfs::pack::{Options, Prepared, Progress, Stamp};
use kitfs::source::kit_storage::writing::StorageWriter;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_layer_holds_every_file_with_its_mode_and_digest(
        files in prop::collection::btree_map(
            prop::collection::vec(prop::collection::vec(prop::sample::select(b"a\xc3\xff .~".to_vec()), 1..4), 1..4),
            (prop::collection::vec(any::<u8>(), 0..1500), 0u32..0o1000),
            1..10,
        ),
    ) {
        let work = tempfile::tempdir().unwrap();
        let folder = work.path().join("src");
        fs::create_dir(&folder).unwrap();
        let mut expected = BTreeMap::new();
        for (components, (content, mode)) in &files {
            let path = components.join(&b'/');
            let is_plain = components.iter().all(|name| {
                !matches!(name.as_slice(), b"." | b"..") && !name.windows(2).any(|pair| pair == b"..")
                    && name.trim_ascii() == name.as_slice()
            });
            let whole = folder.join(OsStr::from_bytes(&path));
            if !is_plain || whole.exists() || fs::create_dir_all(whole.parent().unwrap()).is_err() {
                continue;
            }
            fs::write(&whole, content).unwrap();
            // The owner can read it, whoever runs the test.
            let mode = mode | 0o400;
            fs::set_permissions(&whole, fs::Permissions::from_mode(mode)).unwrap();
            expected.insert(path, (content.clone(), mode));
        }
        let kitfile = AuthoredKitfile::parse(b"code: [{path: .}]").unwrap();
        let options = Options { is_model_pack: false, format: Format::Tar, effort: Effort::None };
        let prepared = Prepared::new(&folder, "Kitfile", kitfile, &[], options).unwrap();
        let home = work.path().join("home");
        let storage = StorageWriter::open(&home).unwrap();
        let stamp = Stamp { created: jiff::Timestamp::UNIX_EPOCH, packer: "test".to_owned() };
        let progress = Progress::default();
        let packed = prepared.pack(&storage, "localhost/x", &[], &stamp, &progress).unwrap();
        let read = |digest: Digest| fs::read(crate::blob(&home, &digest.to_string())).unwrap();
        let mut found = BTreeMap::new();
        let archive = read(packed.layers[0].blob.digest);
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.header().entry_type().is_dir() {
                continue;
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let mode = entry.header().mode().unwrap();
            found.insert(entry.path_bytes().into_owned(), (content, mode));
        }
        prop_assert_eq!(&found, &expected);
        let manifest = Manifest::decode(&read(packed.manifest.digest)).unwrap();
        let listed = FileDigests::of(&manifest.layers[0]).unwrap().unwrap();
        prop_assert_eq!(listed.iter().len(), expected.len());
        for file in listed.iter() {
            let (content, _) = &expected[file.path.as_bytes()];
            prop_assert_eq!(file.digest, Digest::of(content));
            prop_assert_eq!(file.size, content.len() as u64);
        }
        prop_assert_eq!(progress.done_bytes(), expected.values().map(|(content, _)| content.len() as u64).sum::<u64>());
    }
}
