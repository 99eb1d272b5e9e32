//! Builds kits as OCI layout folders: every family, format and compression of modelkit-spec 1 to 3
//! and 6. The builder also gives the tree that `kit unpack` would write of the kit.
//!
//! ```no_run
//! let kit = Kit::modelkit()
//!     .with(Layer::tar("model", "model").file("model/weights.bin", 0o644, b"weights").gzip())
//!     .write(folder.path(), "v1");
//! ```

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use super::tar_stream::{self, Stream};
use super::tree::{Entry, Kind, Tree, sha256};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const MODELKIT_CONFIG_TYPE: &str = "application/vnd.kitops.modelkit.config.v1+json";
const MODELPACK_CONFIG_TYPE: &str = "application/vnd.cncf.model.config.v1+json";
const FILEPATH: &str = "org.cncf.model.filepath";
const FILE_METADATA: &str = "org.cncf.model.file.metadata+json";
const UMASK: u32 = 0o022;

/// The kind of artifact to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    ModelKit,
    LegacyModelKit,
    ModelPack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Tar,
    Raw,
}

/// The compression of a layer's blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Clone, Debug)]
enum Member {
    Directory { path: Vec<u8>, mode: u32 },
    File { path: Vec<u8>, mode: u32, content: Vec<u8> },
    Symlink { path: Vec<u8>, target: Vec<u8> },
    Hole { path: Vec<u8>, size: u64 },
    Sparse { path: Vec<u8>, mode: u32, content: Vec<u8>, runs: Vec<Range<usize>> },
}

/// One layer to write.
#[derive(Clone, Debug)]
pub struct Layer {
    role: String,
    path: String,
    name: Option<String>,
    format: Format,
    compression: Compression,
    members: Vec<Member>,
    stream: Option<Stream>,
    media_type: Option<String>,
    subtype: Option<&'static str>,
    annotations: Vec<(String, String)>,
}

/// A kit to write.
#[derive(Clone, Debug)]
pub struct Kit {
    family: Family,
    layers: Vec<Layer>,
    parent: Option<String>,
    remote: Vec<Value>,
    kitfile_annotation: bool,
    config: Option<Vec<u8>>,
    created: Option<String>,
}

/// A kit on disk.
pub struct Written {
    /// The folder of the OCI layout.
    pub folder: PathBuf,
    /// The reference to mount the kit from there.
    pub reference: String,
    /// The digest of the manifest.
    pub digest: String,
    /// The bytes of the manifest.
    pub manifest: Vec<u8>,
    /// Digest and size of each layer's blob.
    pub layers: Vec<(String, u64)>,
    /// Digest of the config blob.
    pub config: String,
    /// The tree that `kit unpack` would write, without the Kitfile.
    pub tree: Tree,
}

impl Layer {
    /// A tar layer of a role (`model`, `modelpart`, `code`, `dataset`, `docs`; for ModelPacks
    /// `weight`, `weight.config`, `code`, `dataset`, `doc`) and the path of its Kitfile entry.
    pub fn tar(role: &str, path: &str) -> Self {
        Self {
            role: role.to_owned(),
            path: path.to_owned(),
            name: None,
            format: Format::Tar,
            compression: Compression::None,
            members: Vec::new(),
            stream: None,
            media_type: None,
            subtype: None,
            annotations: Vec::new(),
        }
    }

    /// A raw layer: the one file `path`.
    pub fn raw(role: &str, path: &str, mode: u32, content: &[u8]) -> Self {
        let layer = Self { format: Format::Raw, ..Self::tar(role, path) };
        layer.file(path, mode, content)
    }

    /// A tar layer of this stream, which may be malformed. The tree leaves the layer out.
    pub fn of_stream(role: &str, path: &str, stream: Stream) -> Self {
        Self { stream: Some(stream), ..Self::tar(role, path) }
    }

    /// Sets the `name` of the layer's Kitfile entry.
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// A prompt: a code layer with the subtype annotation, an entry of `prompts` in the Kitfile.
    pub fn prompt(self) -> Self {
        Self { subtype: Some("prompt"), ..self }
    }

    /// Sets another media type than the one that follows from role, format and compression.
    pub fn media_type(self, media_type: &str) -> Self {
        Self { media_type: Some(media_type.to_owned()), ..self }
    }

    /// Adds an annotation to the layer's descriptor.
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Lists the digests of the files that the layer has by now, as `kitfs pack` does.
    pub fn listed(self) -> Self {
        let files = self.members.iter().filter_map(|member| match member {
            Member::File { path, content, .. } => Some((path, content)),
            _ => None,
        });
        let files: std::collections::BTreeMap<_, _> = files.collect();
        let files = files.into_iter().map(|(path, content)| {
            json!([String::from_utf8_lossy(path), content.len(), sha256(content)])
        });
        let list = json!({"version": 1, "files": files.collect::<Vec<_>>()});
        self.annotated("dev.kitfs.layer.files", &list.to_string())
    }

    /// Adds a file.
    pub fn file(mut self, path: impl AsRef<[u8]>, mode: u32, content: &[u8]) -> Self {
        let path = path.as_ref().to_vec();
        self.members.push(Member::File { path, mode, content: content.to_vec() });
        self
    }

    /// Adds a sparse file as GNU tar packs it: the bytes outside `runs` are zeros, and not stored.
    pub fn sparse_file(
        mut self,
        path: impl AsRef<[u8]>,
        mode: u32,
        content: &[u8],
        runs: Vec<Range<usize>>,
    ) -> Self {
        let (path, content) = (path.as_ref().to_vec(), content.to_vec());
        self.members.push(Member::Sparse { path, mode, content, runs });
        self
    }

    /// Adds a directory.
    pub fn directory(mut self, path: impl AsRef<[u8]>, mode: u32) -> Self {
        self.members.push(Member::Directory { path: path.as_ref().to_vec(), mode });
        self
    }

    /// Adds a symbolic link.
    pub fn symlink(mut self, path: impl AsRef<[u8]>, target: &[u8]) -> Self {
        let (path, target) = (path.as_ref().to_vec(), target.to_vec());
        self.members.push(Member::Symlink { path, target });
        self
    }

    /// Adds a file of zeros that takes no room on disk. The tree leaves the file out. The layer's
    /// digest is then not that of its blob, because hashing so many bytes takes too long.
    pub fn hole(mut self, path: impl AsRef<[u8]>, size: u64) -> Self {
        self.members.push(Member::Hole { path: path.as_ref().to_vec(), size });
        self
    }

    /// Compresses with gzip.
    pub fn gzip(self) -> Self {
        self.compressed(Compression::Gzip)
    }

    /// Compresses with zstd.
    pub fn zstd(self) -> Self {
        self.compressed(Compression::Zstd)
    }

    /// Compresses.
    pub fn compressed(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    fn uncompressed(&self, strip: &[u8]) -> Stream {
        if let Some(stream) = &self.stream {
            return stream.clone();
        }
        if self.format == Format::Raw {
            return match self.members.as_slice() {
                [Member::File { content, .. }] => Stream::of(content.clone()),
                [Member::Hole { size, .. }] => {
                    let mut stream = Stream::default();
                    stream.push_zeros(*size);
                    stream
                }
                _ => panic!("a raw layer is one file"),
            };
        }
        let mut stream = Stream::default();
        for member in &self.members {
            member.push_to(&mut stream, strip);
        }
        tar_stream::push_end(&mut stream);
        stream
    }

    fn expect_in(&self, tree: &mut Tree) {
        for member in &self.members {
            match member {
                Member::Directory { path, mode } => {
                    // A directory keeps the mode of the layer that had it first.
                    if !tree.0.contains_key(path) {
                        let mode = mode & 0o777 & !UMASK;
                        tree.add(path, Entry { mode, kind: Kind::Directory });
                    }
                }
                Member::File { path, mode, content }
                | Member::Sparse { path, mode, content, .. } => {
                    tree.add_file(path, mode & 0o777 & !UMASK, content);
                }
                Member::Symlink { path, target } => {
                    tree.add(path, Entry { mode: 0o777, kind: Kind::Symlink(target.clone()) });
                }
                Member::Hole { .. } => {}
            }
        }
    }

    fn suffix(&self) -> String {
        let format = match self.format {
            Format::Tar => "tar",
            Format::Raw => "raw",
        };
        let compression = match self.compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        format!("v1.{format}{compression}")
    }
}

impl Member {
    /// Appends the member. Legacy archives leave out the prefix `strip` of its path.
    fn push_to(&self, stream: &mut Stream, strip: &[u8]) {
        let path = match self {
            Self::Directory { path, .. }
            | Self::File { path, .. }
            | Self::Sparse { path, .. }
            | Self::Symlink { path, .. }
            | Self::Hole { path, .. } => path.strip_prefix(strip).expect("below the layer's path"),
        };
        match self {
            Self::Directory { mode, .. } => {
                tar_stream::push_member(stream, path, b'5', *mode, 0, b"");
            }
            Self::File { mode, content, .. } => {
                tar_stream::push_member(stream, path, b'0', *mode, content.len() as u64, b"");
                tar_stream::push_padded(stream, content);
            }
            Self::Sparse { mode, content, runs, .. } => {
                tar_stream::push_sparse(stream, path, *mode, content, runs);
            }
            Self::Symlink { target, .. } => {
                tar_stream::push_member(stream, path, b'2', 0o777, 0, target);
            }
            Self::Hole { size, .. } => {
                tar_stream::push_member(stream, path, b'0', 0o644, *size, b"");
                stream.push_zeros(*size);
                tar_stream::push_padding(stream, *size);
            }
        }
    }
}

impl Kit {
    /// A ModelKit as written by kit v0.5.0 and later.
    pub fn modelkit() -> Self {
        Self::of(Family::ModelKit)
    }

    /// A ModelKit as written by kit before v0.5.0.
    pub fn legacy() -> Self {
        Self::of(Family::LegacyModelKit)
    }

    /// A CNCF ModelPack as written by modctl.
    pub fn modelpack() -> Self {
        Self::of(Family::ModelPack)
    }

    fn of(family: Family) -> Self {
        let (layers, remote) = (Vec::new(), Vec::new());
        let (parent, kitfile_annotation, config, created) = (None, false, None, None);
        Self { family, layers, parent, remote, kitfile_annotation, config, created }
    }

    /// Adds a layer.
    pub fn with(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Makes `model.path` a reference to another kit.
    pub fn with_parent(self, reference: &str) -> Self {
        Self { parent: Some(reference.to_owned()), ..self }
    }

    /// Adds a remote data set. The tree leaves it out.
    pub fn with_remote(mut self, path: &str, remote_path: &str, remote_hash: &str) -> Self {
        let mut entry = json!({"path": path, "remotePath": remote_path});
        if !remote_hash.is_empty() {
            entry["remoteHash"] = remote_hash.into();
        }
        self.remote.push(entry);
        self
    }

    /// Adds the Kitfile as a manifest annotation, as `kit pack --use-model-pack` does.
    pub fn with_kitfile_annotation(self) -> Self {
        Self { kitfile_annotation: true, ..self }
    }

    /// Sets the time of creation in the manifest, as kit from 1.10 on does.
    pub fn created(self, time: &str) -> Self {
        Self { created: Some(time.to_owned()), ..self }
    }

    /// Sets another config blob than the one that follows from the layers.
    pub fn with_config(self, config: &[u8]) -> Self {
        Self { config: Some(config.to_vec()), ..self }
    }

    /// Writes the kit into the OCI layout `folder` under `tag`. The folder may hold other kits.
    pub fn write(&self, folder: &Path, tag: &str) -> Written {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("the layout can be made");
        let mut tree = Tree::default();
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            let stream = layer.uncompressed(self.stripped_prefix(layer));
            let (digest, diff_id, size) = write_layer(&blobs, &stream, layer.compression);
            descriptors.push(self.descriptor(layer, &digest, size, stream.len()));
            diff_ids.push(diff_id);
            layer.expect_in(&mut tree);
        }
        let layers: Vec<_> = descriptors
            .iter()
            .map(|it| {
                (it["digest"].as_str().expect("set").to_owned(), it["size"].as_u64().unwrap())
            })
            .collect();
        let config = match &self.config {
            Some(config) => config.clone(),
            None => self.config_json(&layers, &diff_ids).to_string().into_bytes(),
        };
        let config_digest = write_blob(&blobs, &config);
        let annotation = self.kitfile_annotation.then(|| self.kitfile(&layers, &diff_ids));
        let manifest = self.manifest(&config_digest, config.len(), descriptors, annotation);
        let manifest = manifest.to_string().into_bytes();
        let digest = write_blob(&blobs, &manifest);
        write_index(folder, tag, &digest, manifest.len());
        let reference = format!("oci:{}:{tag}", folder.display());
        let folder = folder.to_owned();
        Written { folder, reference, digest, manifest, layers, config: config_digest, tree }
    }

    /// Legacy archives start at the parent of the layer's path (modelkit-spec 3.4).
    fn stripped_prefix<'a>(&self, layer: &'a Layer) -> &'a [u8] {
        let end = layer.path.trim_end_matches('/').rfind('/').map_or(0, |slash| slash + 1);
        match self.family {
            Family::LegacyModelKit => &layer.path.as_bytes()[..end],
            Family::ModelKit | Family::ModelPack => b"",
        }
    }

    fn descriptor(&self, layer: &Layer, digest: &str, size: u64, stream_bytes: u64) -> Value {
        let vendor = match self.family {
            Family::ModelPack => "cncf.model",
            Family::ModelKit | Family::LegacyModelKit => "kitops.modelkit",
        };
        let media_type = layer.media_type.clone().unwrap_or_else(|| {
            format!("application/vnd.{vendor}.{}.{}", layer.role, layer.suffix())
        });
        let mut annotations = Map::new();
        if self.family != Family::LegacyModelKit {
            annotations.insert(FILEPATH.into(), layer.path.trim_end_matches('/').into());
        }
        if let (Format::Raw, [Member::File { path, mode, .. }]) =
            (layer.format, layer.members.as_slice())
        {
            let name = String::from_utf8_lossy(path);
            let name = name.rsplit('/').next().unwrap_or_default();
            let metadata = json!({
                "name": name, "mode": mode, "uid": 0, "gid": 0, "size": stream_bytes,
                "mtime": "2024-05-29T16:26:40.25Z", "typeflag": 48,
            });
            annotations.insert(FILE_METADATA.into(), metadata.to_string().into());
        }
        if let Some(subtype) = layer.subtype {
            annotations.insert("ml.kitops.modelkit.layer-subtype".into(), subtype.into());
        }
        for (key, value) in &layer.annotations {
            annotations.insert(key.clone(), value.as_str().into());
        }
        json!({
            "mediaType": media_type, "digest": digest, "size": size, "annotations": annotations,
        })
    }

    fn manifest(
        &self,
        config_digest: &str,
        config_bytes: usize,
        layers: Vec<Value>,
        kitfile: Option<Value>,
    ) -> Value {
        let config_type = match self.family {
            Family::ModelPack => MODELPACK_CONFIG_TYPE,
            Family::ModelKit | Family::LegacyModelKit => MODELKIT_CONFIG_TYPE,
        };
        let mut manifest = json!({
            "schemaVersion": 2,
            "config": {"mediaType": config_type, "digest": config_digest, "size": config_bytes},
            "layers": if layers.is_empty() { Value::Null } else { layers.into() },
            "annotations": {"ml.kitops.modelkit.cli-version": "1.15.0"},
        });
        if self.family == Family::ModelPack {
            manifest["artifactType"] = "application/vnd.cncf.model.manifest.v1+json".into();
        }
        if let Some(created) = &self.created {
            manifest["annotations"]["org.opencontainers.image.created"] = created.as_str().into();
        }
        if let Some(kitfile) = kitfile {
            let kitfile = kitfile.to_string();
            manifest["annotations"]["ml.kitops.modelkit.kitfile"] = kitfile.into();
        }
        manifest
    }

    fn config_json(&self, layers: &[(String, u64)], diff_ids: &[String]) -> Value {
        match self.family {
            Family::ModelPack => json!({
                "descriptor": {"family": "test", "name": "test"},
                "modelfs": {"type": "layers", "diffIds": diff_ids},
                "config": {"format": "safetensors"},
            }),
            Family::ModelKit => self.kitfile(layers, diff_ids),
            Family::LegacyModelKit => self.kitfile(&[], &[]),
        }
    }

    /// The Kitfile as JSON. If `layers` is empty, the entries have no digests.
    fn kitfile(&self, layers: &[(String, u64)], diff_ids: &[String]) -> Value {
        let mut kitfile = json!({"manifestVersion": "1.0.0", "package": {"name": "test"}});
        if let Some(parent) = &self.parent {
            kitfile["model"] = json!({"name": "test-model", "path": parent});
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let mut entry = Map::new();
            if let Some(name) = &layer.name {
                entry.insert("name".into(), name.as_str().into());
            }
            entry.insert("path".into(), layer.path.as_str().into());
            if let (Some((digest, _)), Some(diff_id)) = (layers.get(index), diff_ids.get(index)) {
                entry.insert("digest".into(), digest.as_str().into());
                entry.insert("diffId".into(), diff_id.as_str().into());
            }
            let role = layer.subtype.unwrap_or(&layer.role);
            let section = match role {
                "model" | "weight" if kitfile["model"]["path"].is_null() => {
                    let model = kitfile["model"].as_object().cloned().unwrap_or_default();
                    entry.extend(model);
                    kitfile["model"] = entry.into();
                    continue;
                }
                "model" | "weight" | "modelpart" | "weight.config" => {
                    &mut kitfile["model"]["parts"]
                }
                "code" => &mut kitfile["code"],
                "dataset" => &mut kitfile["datasets"],
                "docs" | "doc" => &mut kitfile["docs"],
                "prompt" => &mut kitfile["prompts"],
                "mcpb" => &mut kitfile["mcpServers"],
                // A layer of an unknown type has no entry.
                _ => continue,
            };
            if section.is_null() {
                *section = json!([]);
            }
            section.as_array_mut().expect("a list").push(entry.into());
        }
        if !self.remote.is_empty() {
            let mut datasets = kitfile["datasets"].as_array().cloned().unwrap_or_default();
            datasets.extend(self.remote.iter().cloned());
            kitfile["datasets"] = datasets.into();
        }
        kitfile
    }
}

impl Written {
    /// The file that holds a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a digest");
        self.folder.join("blobs/sha256").join(hex)
    }

    /// The sum of the layers' blobs in bytes.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|(_, size)| size).sum()
    }
}

/// Writes a layer's blob; returns its digest, its diffId and its size.
fn write_layer(blobs: &Path, stream: &Stream, compression: Compression) -> (String, String, u64) {
    if stream.is_sparse() {
        assert_eq!(compression, Compression::None, "a hole is not compressed");
        let digest = sha256(format!("{stream:?}").as_bytes());
        stream.write_to(&blobs.join(&digest)).expect("a blob can be written");
        let digest = format!("sha256:{digest}");
        return (digest.clone(), digest, stream.len());
    }
    let bytes = stream.to_bytes();
    let diff_id = format!("sha256:{}", sha256(&bytes));
    let stored = match compression {
        Compression::None => bytes,
        Compression::Gzip => gzip(&bytes),
        Compression::Zstd => zstd::stream::encode_all(bytes.as_slice(), 3).expect("zstd"),
    };
    (write_blob(blobs, &stored), diff_id, stored.len() as u64)
}

fn write_blob(blobs: &Path, bytes: &[u8]) -> String {
    let hex = sha256(bytes);
    fs::write(blobs.join(&hex), bytes).expect("a blob can be written");
    format!("sha256:{hex}")
}

pub(super) fn write_index(folder: &Path, tag: &str, digest: &str, size: usize) {
    let path = folder.join("index.json");
    let mut index = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).expect("the index is JSON"),
        Err(_) => json!({"schemaVersion": 2, "manifests": []}),
    };
    let name = "org.opencontainers.image.ref.name";
    let manifests = index["manifests"].as_array_mut().expect("a list");
    manifests.retain(|manifest| manifest["annotations"][name] != tag);
    manifests.push(json!({
        "mediaType": MANIFEST_TYPE, "digest": digest, "size": size, "annotations": {name: tag},
    }));
    fs::write(&path, index.to_string()).expect("the index can be written");
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    fs::write(folder.join("oci-layout"), layout.to_string()).expect("the layout can be written");
}

/// Compresses with the system's gzip: an encoder that shares no code with the decoder under test.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip")
        .args(["-n", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip is installed");
    let mut input = child.stdin.take().expect("the input is piped");
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).expect("gzip reads its input"));
        let output = child.wait_with_output().expect("gzip ends");
        assert!(output.status.success(), "gzip failed");
        output.stdout
    })
}
