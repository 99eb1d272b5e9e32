//! kit's own local storage (modelkit-spec 5.4), as written by `kit pack` and `kit pull`.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Value, json};

use super::kit_builder::Written;

/// A folder for `KITOPS_HOME` and `--config`.
pub struct KitHome {
    folder: PathBuf,
}

impl KitHome {
    /// An empty storage in `folder`.
    pub fn new(folder: &Path) -> Self {
        let storage = folder.join("storage");
        fs::create_dir_all(storage.join("blobs/sha256")).expect("the storage can be made");
        fs::write(storage.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("the storage can be written");
        Self { folder: folder.to_owned() }
    }

    /// The folder.
    pub fn path(&self) -> &str {
        self.folder.to_str().expect("the tests use plain paths")
    }

    /// Files a kit under a repository with its host, and under a tag if one is given.
    pub fn store(&self, repository: &str, tag: Option<&str>, kit: &Written) {
        let storage = self.folder.join("storage");
        for blob in kit.folder.join("blobs/sha256").read_dir().expect("a layout has blobs") {
            let blob = blob.expect("the layout can be read");
            let to = storage.join("blobs/sha256").join(blob.file_name());
            fs::copy(blob.path(), to).expect("the storage can be written");
        }
        let manifest = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": kit.digest, "size": kit.manifest.len(),
        });
        let name = URL_SAFE.encode(repository);
        let empty = json!({"schemaVersion": 2, "manifests": []});
        for index in ["index.json".to_owned(), format!("{name}-index.json")] {
            change(&storage.join(index), &empty, |index| {
                index["manifests"].as_array_mut().expect("a list").push(manifest.clone());
            });
        }
        if let Some(tag) = tag {
            let tags = storage.join(format!("{name}-tags.json"));
            change(&tags, &json!({}), |tags| tags[tag] = manifest.clone());
        }
    }
}

fn change(path: &Path, empty: &Value, change: impl FnOnce(&mut Value)) {
    let mut value = fs::read(path)
        .map_or(empty.clone(), |json| serde_json::from_slice(&json).expect("it was written here"));
    change(&mut value);
    fs::write(path, value.to_string()).expect("the storage can be written");
}
