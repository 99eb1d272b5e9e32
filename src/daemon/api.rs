//! The messages on the control socket, and between the commands and a service in the same
//! process: plain data, JSON on the wire (docs/format/control.md).

mod failure;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fs::{percent_decoded, percent_encoded};
use crate::source::s3::S3Config;

pub use failure::{Failure, FailureKind};

/// How to reach registries. Read from flags and environment by the commands; mounts with
/// different options share a daemon, not connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkOptions {
    /// Ask kit's own storage before registries.
    pub prefer_local: bool,
    /// Speak plain http to every registry (loopback hosts get it anyway).
    pub plain_http: bool,
    /// Accept any TLS certificate.
    pub insecure_tls: bool,
    /// PEM files with further certificate authorities.
    pub ca_files: Vec<PathBuf>,
    /// PEM file with a client certificate.
    pub client_certificate: Option<PathBuf>,
    /// PEM file with the client certificate's key.
    pub client_key: Option<PathBuf>,
    /// Proxy for http registries, a URL.
    pub http_proxy: Option<String>,
    /// Proxy for https registries, a URL.
    pub https_proxy: Option<String>,
    /// Hosts that are reached directly, as in `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// A folder of `HOST/hosts.toml` files, in containerd's layout.
    pub registries_dir: Option<PathBuf>,
    /// Credential files in Docker's config format, the first that knows a host wins.
    pub credential_files: Vec<PathBuf>,
    /// kit's own folder (`KITOPS_HOME`), for `localhost/…` references.
    pub kitops_home: Option<PathBuf>,
    /// The number of times that a request is repeated after a failure that may pass; `None` for the default.
    pub retries: Option<usize>,
    /// How to reach the S3 store that objects are read from.
    pub s3: S3Config,
    /// How long opening and warming wait for a host that is silent; `None` for the usual.
    #[serde(default)]
    pub open_timeout_seconds: Option<u64>,
}

/// Which kit, and what of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KitRequest {
    /// The reference as the user typed it; layout folders are absolute.
    pub reference: String,
    /// Labels (`key=value`) that choose a kit where the reference is an index.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Filters in kit's grammar; empty takes everything.
    #[serde(default)]
    pub filters: Vec<String>,
    /// Let a filter take nothing.
    #[serde(default)]
    pub allow_empty: bool,
    /// Leave out data sets that lie in other kits and in S3 stores.
    #[serde(default)]
    pub no_remote: bool,
    /// Permission bits that files and directories do not get.
    pub umask: u32,
    /// How to reach registries.
    #[serde(default)]
    pub network: NetworkOptions,
}

/// A mount to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRequest {
    /// The kit.
    pub kit: KitRequest,
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
    /// Let other users read the mount (`allow_other`).
    #[serde(default)]
    pub allow_other: bool,
    /// Mount over a folder that is not empty.
    #[serde(default)]
    pub nonempty: bool,
    /// Refuse to run programs from the mount.
    #[serde(default)]
    pub noexec: bool,
    /// Read every file through the daemon, never from the cache by the kernel itself.
    #[serde(default)]
    pub no_passthrough: bool,
    /// Fetch tensors beforehand as the headers of safetensors and GGUF files tell.
    pub tensor_prefetch: bool,
    /// The files to complete in the background.
    pub hydrate: HydrateMode,
    /// Seconds without a waiting reader before that begins.
    pub hydrate_after_seconds: u64,
    /// An access trace to be fetched in its order, absolute.
    #[serde(default)]
    pub trace: Option<PathBuf>,
}

/// A kit, or files of it, to be brought to the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmRequest {
    /// The kit.
    pub kit: KitRequest,
    /// Files and directories from the kit's root; all of the kit where there are none.
    #[serde(default)]
    pub paths: Vec<RawPath>,
    /// An access trace whose ranges are wanted, in its order, absolute.
    #[serde(default)]
    pub trace: Option<PathBuf>,
}

/// A line of the answer to a [`WarmRequest`]; the last one is `Warmed` or `Failed`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmEvent {
    /// A compressed layer is being passed over, which fetches it.
    Passing(PassProgress),
    /// A host is silent.
    Waiting(Waiting),
    /// The progress of each layer.
    Layers(Vec<LayerProgress>),
    /// It is over; the report says of each layer whether well.
    Warmed(WarmReport),
    /// Nothing was fetched.
    Failed(Failure),
}

/// The progress of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerProgress {
    /// The layer; the name of the file for a trace.
    pub name: String,
    /// Bytes that are in the cache, of those that are wanted.
    pub done_bytes: u64,
    /// Bytes that are wanted.
    pub total_bytes: u64,
}

/// The outcome of a warm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmReport {
    /// The layers that something was wanted of.
    pub layers: Vec<WarmedLayer>,
    /// Warnings about the kit, or about the trace if one was replayed.
    pub warnings: Vec<String>,
    /// Files and directories in the request whose content cannot be had, because their data sets
    /// lie elsewhere; the warnings say why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<RawPath>,
}

/// A layer after a warm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmedLayer {
    /// The layer's digest.
    pub digest: String,
    /// Bytes of it that were wanted.
    pub wanted_bytes: u64,
    /// Bytes of it that are in the cache.
    pub resident_bytes: u64,
    /// The number of them that came shortly before the machine went down, and were not checked since.
    #[serde(default)]
    pub unchecked_bytes: u64,
    /// Whether all of it is; only then can its digest be known.
    pub is_complete: bool,
    /// The trust that its bytes have.
    pub state: KitState,
    /// Why not everything came, or could be verified.
    pub failure: Option<Failure>,
}

/// A mount whose reads are recorded, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordRequest {
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
}

/// The files of a mounted kit that are completed in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HydrateMode {
    /// All of it.
    All,
    /// The files of which readers have read half or more.
    Begun,
    /// Nothing.
    None,
}

impl HydrateMode {
    /// The default of a daemon of an earlier version, which does not say.
    fn none() -> Self {
        Self::None
    }
}

/// The state of the rest of a mounted kit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HydrateState {
    /// Nothing: it was switched off.
    Off,
    /// Nothing: the kit lies on this machine already.
    Local,
    /// The files that readers have begun in earnest are here. Other files come when they are read.
    Begun,
    /// It is fetched once the readers are quiet.
    Waiting,
    /// It is being fetched.
    Running,
    /// It is here.
    Complete,
    /// It does not fit the cache.
    NoRoom,
    /// It cannot be fetched at the moment, or is not what its digests say.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A line of the answer to a [`MountRequest`]; the last one is `Mounted` or `Failed`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountEvent {
    /// How opening the kit goes.
    Progress(OpenProgress),
    /// The tree can be listed.
    Mounted(Box<MountStatus>),
    /// Nothing was mounted.
    Failed(Failure),
}

/// A line of the answer to a request to open a kit; the last one is `Opened` or `Failed`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenEvent {
    /// How opening the kit goes.
    Progress(OpenProgress),
    /// The kit is open, and stays so for the requests that follow.
    Opened {
        /// The reference that names this very kit for ever.
        pinned: String,
    },
    /// The kit cannot be opened.
    Failed(Failure),
}

impl From<Failure> for MountEvent {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Failure> for WarmEvent {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Failure> for OpenEvent {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// How opening a kit goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenProgress {
    /// Compressed layers are being passed over: nothing can be listed before their end.
    Passing(PassProgress),
    /// A host is silent.
    Waiting(Waiting),
}

/// A host that has sent nothing for a while, and is still waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// `HOST[:PORT]`.
    pub host: String,
    /// How long nothing has come.
    pub silent_seconds: u64,
    /// How long a host may be silent (`--open-timeout`).
    pub limit_seconds: u64,
}

/// The progress of the passes over compressed layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassProgress {
    /// Compressed bytes passed so far.
    pub passed_bytes: u64,
    /// Compressed bytes of all layers that need a pass.
    pub total_bytes: u64,
}

/// The trust that the bytes of a kit have: that of its worst layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KitState {
    /// Every layer is complete, and its digest was computed and matches.
    Confirmed,
    /// Some layer's digest is not computed yet; its bytes came over an authenticated channel.
    Unconfirmed,
    /// Some layer's digest does not match: its files cannot be read.
    Poisoned,
}

/// One mount, as `kitfs status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// The mountpoint.
    pub mountpoint: PathBuf,
    /// The reference as the user typed it.
    pub reference: String,
    /// The labels that chose the kit from an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The digest of the manifest the reference was pinned to.
    pub digest: String,
    /// Files, directories and symlinks.
    pub entries: u64,
    /// The sum of the layers' content in bytes.
    pub total_bytes: u64,
    /// The part of that which is in the cache.
    pub resident_bytes: u64,
    /// The part of that which came shortly before the machine went down, and was not checked since.
    #[serde(default)]
    pub unchecked_bytes: u64,
    /// The trust that the bytes have.
    pub state: KitState,
    /// Seconds since 1970.
    pub mounted_at: i64,
    /// Warnings about parts that were passed over: unknown layer types, devices in tars.
    pub warnings: Vec<String>,
    /// The path and the reason of the last read that failed, which its reader saw as an errno.
    pub last_failure: Option<String>,
    /// Whether the kernel reads complete files from the cache by itself.
    pub passthrough: PassthroughState,
    /// The files that are completed in the background.
    #[serde(default = "HydrateMode::none")]
    pub hydrate_mode: HydrateMode,
    /// The state of that.
    pub hydrate: HydrateState,
    /// The bytes that were fetched before readers asked for them.
    pub readahead: ReadaheadStatus,
}

/// The bytes that a mount has fetched before readers asked for them. Bytes that were in the cache already do not
/// count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadaheadStatus {
    /// Bytes that the mount fetched and readers read.
    pub read_bytes: u64,
    /// Bytes that were guessed, and not read so far: at most a tenth of `read_bytes`, and
    /// a head start once.
    pub unread_bytes: u64,
    /// The account of each predictor.
    pub predictors: Vec<PredictorStatus>,
}

/// The account of one predictor (docs/semantics.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredictorStatus {
    /// Its name: `stream`, `run`, `habit`, `backward`, `block`, `stride`, `tensor`, `header` or
    /// `next_shard`.
    pub name: String,
    /// Bytes that were fetched because of it.
    pub asked_bytes: u64,
    /// Those of them that were then read.
    pub read_bytes: u64,
}

/// The state of FUSE passthrough for a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassthroughState {
    /// Complete, verified files are read from the cache by the kernel itself.
    On {
        /// Files that are open so now.
        open_files: u64,
        /// The number of times that a file was opened so; further opens of an open file are not counted.
        opened_files: u64,
    },
    /// Every read goes through the daemon.
    Off {
        /// Why.
        reason: String,
    },
}

/// The traffic of a daemon since it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchStatus {
    /// Requests for ranges of layers, those that scan headers included.
    pub requests: u64,
    /// Bytes of layers that came.
    pub fetched_bytes: u64,
    /// Memory that is reserved for bytes under way; 0 when nothing is.
    pub reserved_bytes: u64,
    /// The most memory that may be reserved (`--memory`).
    pub memory_bytes: u64,
}

/// A daemon, as `kitfs daemon status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// The process that stays: the keeper, or the worker where there is no keeper.
    pub pid: u32,
    /// The process that serves the mounts. Another one takes its place when it dies.
    #[serde(default)]
    pub worker_pid: u32,
    /// The version of kitfs it runs.
    pub version: String,
    /// The cache folder it owns.
    pub cache_folder: PathBuf,
    /// Whether somebody has removed or replaced the folder since: the daemon goes on with the files that
    /// it has open, commands find it by its mounts only, and it ends with the last of them.
    #[serde(default)]
    pub cache_folder_is_lost: bool,
    /// The part of the file tree that it sees ([`crate::process::view`]); none where it cannot tell.
    #[serde(default)]
    pub view: Option<String>,
    /// Bytes of content in the cache.
    pub cache_resident_bytes: u64,
    /// The most bytes of content the cache may hold, if bounded.
    pub cache_capacity_bytes: Option<u64>,
    /// Free bytes that the cache leaves on its file system.
    pub cache_keep_free_bytes: u64,
    /// The reason why the cache keeps no bytes at the moment, if it keeps none: reads go through
    /// without it.
    #[serde(default)]
    pub cache_trouble: Option<String>,
    /// The traffic since its start, and the bytes under way.
    pub fetch: FetchStatus,
    /// Seconds since 1970.
    pub started_at: i64,
    /// Its mounts, by mountpoint.
    pub mounts: Vec<MountStatus>,
}

/// Bytes of a path or name that need not be UTF-8; percent-encoded on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawPath(pub Vec<u8>);

/// The kind of an entry of a kit's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link and its target.
    Symlink(RawPath),
}

/// One entry of a kit's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The path from the kit's root, without a leading slash; empty for the root itself.
    pub path: RawPath,
    /// Its kind.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of a file; 0 for others.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime_seconds: i64,
    /// Of a file: the layer that has its bytes. The number says no more than that files with the same
    /// are verified together; none is that of bytes which no digest of a layer covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Why its content cannot be had: it belongs to a data set that lies elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A request for entries: those of a directory, or the one that `path` names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// The kit.
    pub kit: KitRequest,
    /// The directory or file, from the kit's root.
    pub path: RawPath,
    /// Everything below it, not only its children.
    #[serde(default)]
    pub recursive: bool,
}

/// The answer to a [`ListRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The entry that was asked for.
    pub entry: Entry,
    /// Its children, or all below it, parents before children, siblings by name.
    pub below: Vec<Entry>,
    /// Warnings about parts that were passed over.
    pub warnings: Vec<String>,
}

/// A request for the bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadRequest {
    /// The kit.
    pub kit: KitRequest,
    /// The files, from the kit's root; their bytes follow one another.
    pub paths: Vec<RawPath>,
}

/// The answer of `kitfs info`: a kit, or an index to choose one from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Info {
    /// A kit.
    Kit(KitInfo),
    /// An index of several, or a ModelKit index that nothing chooses from.
    Index(IndexInfo),
}

/// The answer of `kitfs info` about an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexInfo {
    /// The reference as the user typed it.
    pub reference: String,
    /// The digest of the index.
    pub digest: String,
    /// `ModelKit index` or `image index`.
    pub family: String,
    /// The kits to choose from, in the order of the index.
    pub entries: Vec<IndexEntryInfo>,
    /// Warnings about parts that were passed over.
    pub warnings: Vec<String>,
}

/// A kit to choose from an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntryInfo {
    /// The digest of the manifest, which can be used as a reference's `@DIGEST`.
    pub digest: String,
    /// The tag by which kit added it.
    pub original_tag: Option<String>,
    /// `OS/ARCHITECTURE`, where the index says it.
    pub platform: Option<String>,
    /// Its labels, as `--label KEY=VALUE` takes them.
    pub labels: BTreeMap<String, String>,
}

/// The answer of `kitfs info` about a kit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitInfo {
    /// The reference as the user typed it.
    pub reference: String,
    /// The digest of the manifest.
    pub digest: String,
    /// `ModelKit`, `ModelKit (legacy)` or `ModelPack`.
    pub family: String,
    /// The Kitfile as `kit info` prints it, where the kit has one.
    pub kitfile: Option<String>,
    /// The layers in manifest order.
    pub layers: Vec<LayerInfo>,
    /// The data sets that lie elsewhere.
    pub remote: Vec<RemoteInfo>,
    /// Warnings about parts that were passed over.
    pub warnings: Vec<String>,
}

/// A data set that lies elsewhere, as `kitfs info` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteInfo {
    /// The name of its Kitfile entry.
    pub name: Option<String>,
    /// The path of its Kitfile entry.
    pub path: String,
    /// Its place: a reference or `s3://BUCKET/KEY`.
    pub place: String,
    /// The object's ETag, without quotes.
    pub etag: Option<String>,
}

/// A layer, as `kitfs info` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// `model`, `modelpart`, `dataset`, … or the media type where it is unknown.
    pub role: String,
    /// The media type.
    pub media_type: String,
    /// The digest of the blob.
    pub digest: String,
    /// The size of the blob in bytes.
    pub blob_bytes: u64,
    /// The path of the Kitfile entry, where there is one.
    pub path: Option<String>,
}

/// A tag, or a kit without one, as `kitfs list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagInfo {
    /// The repository, where kits of several may lie: in kit's storage and in folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The tag; `None` for a kit without one.
    pub tag: Option<String>,
    /// The digest of its manifest.
    pub digest: String,
    /// The sum of its layers' blobs in bytes.
    pub blob_bytes: u64,
    /// The kit's name from its Kitfile, where it has one.
    pub name: Option<String>,
    /// The author, where the Kitfile names one.
    pub author: Option<String>,
    /// Of an index: how many kits can be chosen from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_entries: Option<u64>,
    /// Why the tag is not a kit, where it is not.
    pub problem: Option<String>,
}

/// A request for the tags of a repository, or of all repositories of kit's storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagsRequest {
    /// The repository (`HOST/REPO`), or `oci:FOLDER`; `None` for all of kit's storage.
    pub reference: Option<String>,
    /// List only the tag or digest that the reference names.
    #[serde(default)]
    pub is_one: bool,
    /// How to reach registries.
    #[serde(default)]
    pub network: NetworkOptions,
}

/// A request for the repositories of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueRequest {
    /// The registry: `HOST[:PORT]`.
    pub host: String,
    /// How to reach registries.
    #[serde(default)]
    pub network: NetworkOptions,
}

/// A mount to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnmountRequest {
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
    /// Take it out of the tree at once, even while programs use it.
    #[serde(default)]
    pub lazy: bool,
}

/// The outcome of ending a mount, or all mounts of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmountReport {
    /// Warnings about programs that still use a mount.
    pub warnings: Vec<String>,
}

/// A layer in the cache, as `kitfs cache ls` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedLayer {
    /// The digest of the blob.
    pub digest: String,
    /// `tar`, `raw`, `tar+gzip`, …
    pub encoding: String,
    /// The size of the blob in bytes.
    pub blob_bytes: u64,
    /// The size of its content in bytes, once known.
    pub stream_bytes: Option<u64>,
    /// The part of the content that is in the cache.
    pub resident_bytes: u64,
    /// The part of that which came shortly before the machine went down, and was not checked since.
    #[serde(default)]
    pub unchecked_bytes: u64,
    /// The trust that its bytes have.
    pub state: KitState,
    /// References of kits that use it.
    pub references: Vec<String>,
    /// Seconds since 1970.
    pub last_used: i64,
}

/// The request of a `kitfs cache` command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CacheRequest {
    /// Lists the layers.
    List,
    /// Removes the layers of a kit (its reference or manifest digest) or one layer (its digest).
    Remove(String),
    /// Removes everything that is not in use.
    Clear,
    /// Checks every resident byte against the recorded digests, and drops wrong bytes.
    Verify,
}

/// The outcome of a `kitfs cache` command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheReport {
    /// The layers: all for `List`, those touched for the others.
    pub layers: Vec<CachedLayer>,
    /// Manifests, indexes and configs that were removed (`Clear`).
    #[serde(default)]
    pub removed_documents: u64,
    /// Bytes that were removed.
    pub removed_bytes: u64,
    /// Chunks that were wrong and dropped (`Verify`).
    pub dropped_chunks: u64,
    /// Bytes that were checked (`Verify`).
    pub checked_bytes: u64,
    /// The layers that were left alone, and why: `sha256:… is mounted at /models`.
    pub kept: Vec<String>,
    /// The parts that failed, and why; the rest was done.
    pub failed: Vec<String>,
}

impl Serialize for RawPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&percent_encoded(&self.0))
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = percent_decoded(&text);
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("malformed percent-encoding"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_survive_the_wire(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let path = RawPath(bytes);
            let text = serde_json::to_string(&path).unwrap();
            prop_assert_eq!(serde_json::from_str::<RawPath>(&text).unwrap(), path);
        }
    }
}
