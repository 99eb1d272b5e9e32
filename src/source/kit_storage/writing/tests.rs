//! A filed kit is found again, beside the kits that kit has filed. Damage is not overwritten.

use super::*;
use crate::oci::{Origin, Reference};
use crate::source::kit_storage::KitStorage;

fn tags(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn file(home: &Path, repository: &str, content: &[u8], names: &[&str]) -> Vec<(String, Digest)> {
    let writer = StorageWriter::open(home).unwrap();
    let (manifest, _) = writer.store(content).unwrap();
    let origins = Origins::default();
    let filing = Filing { repository, manifest, tags: &tags(names), origins: &origins };
    writer.file(&filing).unwrap()
}

fn json(home: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(home.join("storage").join(name)).unwrap()).unwrap()
}

#[tokio::test]
async fn a_filed_kit_is_listed_and_a_tag_that_moves_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    assert_eq!(file(home, "localhost/a", b"one", &["v1", "latest"]), []);
    assert_eq!(file(home, "localhost/a", b"one", &["v1"]), []);
    let moved = file(home, "localhost/a", b"two", &["latest"]);
    assert_eq!(moved, [("latest".to_owned(), Digest::of(b"one"))]);
    file(home, "ghcr.io/org/b", b"one", &[]);
    let all = KitStorage::all(home).await.unwrap();
    let names: Vec<_> = all.iter().map(KitStorage::repository).collect();
    assert_eq!(names, ["ghcr.io/org/b", "localhost/a"]);
    assert_eq!(all[0].listed().await.unwrap(), [(None, Digest::of(b"one"))]);
    assert_eq!(all[1].tagged("latest").await.unwrap(), Some(Digest::of(b"two")));
    assert_eq!(all[1].tagged("v1").await.unwrap(), Some(Digest::of(b"one")));
    assert_eq!(json(home, "index.json")["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(json(home, "oci-layout")["imageLayoutVersion"], "1.0.0");
}

#[test]
fn fields_and_kits_of_other_tools_stay() {
    let home = tempfile::tempdir().unwrap();
    let storage = home.path().join("storage");
    std::fs::create_dir_all(&storage).unwrap();
    let other = r#"{"future":[1],"manifests":[{"digest":"sha256:x","annotations":{"a":"b"}}]}"#;
    std::fs::write(storage.join("index.json"), other).unwrap();
    file(home.path(), "localhost/a", b"one", &["v1"]);
    let index = json(home.path(), "index.json");
    assert_eq!(index["future"], json!([1]));
    assert_eq!(index["manifests"][0]["annotations"]["a"], "b");
    assert_eq!(index["manifests"][1]["digest"], Digest::of(b"one").to_string());
}

#[test]
fn a_damaged_index_is_named_and_not_replaced() {
    let home = tempfile::tempdir().unwrap();
    let writer = StorageWriter::open(home.path()).unwrap();
    let path = home.path().join("storage/index.json");
    std::fs::write(&path, "{\"manifests\":[").unwrap();
    let (manifest, _) = writer.store(b"one").unwrap();
    let origins = Origins::default();
    let filing = Filing { repository: "localhost/a", manifest, tags: &[], origins: &origins };
    let error = writer.file(&filing).unwrap_err().to_string();
    assert!(error.contains("index.json is damaged"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"{\"manifests\":[");
}

#[test]
fn a_blob_that_is_there_is_not_written_again_and_a_damaged_one_is_replaced() {
    let home = tempfile::tempdir().unwrap();
    let writer = StorageWriter::open(home.path()).unwrap();
    let (blob, is_new) = writer.store(b"content").unwrap();
    assert!(is_new && writer.has(blob));
    assert!(!writer.store(b"content").unwrap().1);
    let path = home.path().join("storage/blobs/sha256").join(blob.digest.hex());
    // A short file, and one of the right size with other bytes.
    for damaged in [&b"con"[..], b"cOntent"] {
        std::fs::write(&path, damaged).unwrap();
        assert!(!writer.is_intact(blob));
        assert!(writer.store(b"content").unwrap().1);
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        std::fs::write(&path, damaged).unwrap();
        let mut again = writer.begin().unwrap();
        again.write_all(b"content").unwrap();
        assert!(again.commit(blob.digest).unwrap());
        assert!(writer.is_intact(blob));
    }
}

/// Several writers want one tag, and none may take it from another kit. The first one gets the tag.
#[test]
fn a_tag_is_compared_and_moved_in_one_step() {
    let home = tempfile::tempdir().unwrap();
    let writer = StorageWriter::open(home.path()).unwrap();
    let tagged = tags(&["latest"]);
    let file_new = &|kit: u8| {
        let (manifest, _) = writer.store(&[kit]).unwrap();
        let origins = Origins::default();
        let filing =
            Filing { repository: "localhost/a", manifest, tags: &tagged, origins: &origins };
        let taken = || StorageError::Damaged { path: "latest".into(), detail: "taken".to_owned() };
        writer.file_if(&filing, |_, before| before.map_or(Ok(()), |_| Err(taken())))
    };
    let won = std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..8u8).map(|kit| scope.spawn(move || file_new(kit).is_ok())).collect();
        writers.into_iter().map(|it| it.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
    let index = json(home.path(), "index.json");
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1, "the others changed nothing");
}

#[test]
fn a_blob_that_is_not_complete_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let writer = StorageWriter::open(home.path()).unwrap();
    let folder = home.path().join("storage/blobs/sha256");
    let mut blob = writer.begin().unwrap();
    blob.write_all(b"half").unwrap();
    drop(blob);
    // A file system without files that have no name.
    let (file, name) = unfinished(&folder).unwrap();
    let blob = BlobWriter { file, folder: folder.clone(), name: Some(name), size: 0 };
    assert_eq!(folder.read_dir().unwrap().count(), 1);
    drop(blob);
    assert_eq!(folder.read_dir().unwrap().count(), 0);
    let (file, name) = unfinished(&folder).unwrap();
    let mut blob = BlobWriter { file, folder: folder.clone(), name: Some(name), size: 0 };
    blob.write_all(b"all").unwrap();
    assert!(blob.commit(Digest::of(b"all")).unwrap());
    assert_eq!(folder.read_dir().unwrap().count(), 1);
}

#[test]
fn leftovers_of_killed_commands_go_and_files_in_use_stay() {
    let home = tempfile::tempdir().unwrap();
    StorageWriter::open(home.path()).unwrap();
    let storage = home.path().join("storage");
    let (_in_use, kept) = unfinished(&storage).unwrap();
    let leftover = storage.join(format!("blobs/sha256/{UNFINISHED}1"));
    std::fs::write(&leftover, b"x").unwrap();
    file(home.path(), "localhost/a", b"one", &["v1"]);
    assert!(kept.exists() && !leftover.exists());
}

#[test]
fn writers_side_by_side_lose_nothing() {
    let home = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let home = home.path();
            scope.spawn(move || {
                for kit in 0..5u8 {
                    let tag = format!("v{writer}-{kit}");
                    file(home, "localhost/a", &[writer, kit], &[&tag]);
                }
            });
        }
    });
    let index = json(home.path(), "index.json");
    assert_eq!(index["manifests"].as_array().unwrap().len(), 20);
    let name = format!("{}-tags.json", URL_SAFE.encode("localhost/a"));
    assert_eq!(json(home.path(), &name).as_object().unwrap().len(), 20);
}

#[tokio::test]
async fn origins_are_filed_beside_the_kit() {
    let home = tempfile::tempdir().unwrap();
    let writer = StorageWriter::open(home.path()).unwrap();
    let (manifest, _) = writer.store(b"one").unwrap();
    let (layer, other) = (Digest::of(b"layer"), Digest::of(b"other"));
    for (digest, place) in [(layer, "ghcr.io/org/a:v1"), (other, "ghcr.io/org/b:v1")] {
        let mut origins = Origins::default();
        origins.add(digest, Origin::parse(place).unwrap());
        let filing = Filing { repository: "localhost/a", manifest, tags: &[], origins: &origins };
        writer.file(&filing).unwrap();
    }
    let reference = Reference::parse(&format!("localhost/a@{}", manifest.digest)).unwrap();
    let storage = KitStorage::open(home.path(), &reference).unwrap();
    assert_eq!(storage.origins(layer), [Origin::parse("ghcr.io/org/a:v1").unwrap()]);
    assert_eq!(storage.origins(other).len(), 1);
    assert_eq!(storage.origins(Digest::of(b"")), []);
}
