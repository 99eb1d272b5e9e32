//! Mounts, and the reads from them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{KitHandle, KitRequest, KitState};
use crate::control::{NoEvent, Operation};
use crate::fs::READ_DEADLINE;
use crate::fuse::{DeviceNumber, MountPlace};

/// A mount, as its command describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountDescription {
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
    /// Check cached files again before the kernel reads them by itself, those too that an earlier process has
    /// checked.
    #[serde(default)]
    pub recheck: bool,
    /// Fetch tensors beforehand as the headers of safetensors and GGUF files tell.
    pub tensor_prefetch: bool,
    /// The files to complete in the background.
    pub hydrate: HydrateMode,
    /// Seconds without a waiting reader before that begins.
    pub hydrate_after_seconds: u64,
    /// An access trace to be fetched in its order, absolute.
    #[serde(default)]
    pub trace: Option<PathBuf>,
    /// Seconds between two looks whether the tag names another kit, which then takes the place of this one.
    #[serde(default)]
    pub follow_seconds: Option<u64>,
    /// Seconds after which a read fails that gets no bytes; `None` for never.
    #[serde(default = "usual_read_deadline")]
    pub read_deadline_seconds: Option<u64>,
    /// The user whom the files belong to; the user of the command where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group of the files; that of the command where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The folder for the changes of a writable view, absolute. The mount is then below an overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<PathBuf>,
    /// Kits are reached by path, and `kit` has the options of each; its reference is [`BROWSE_REFERENCE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub browse: Option<BrowseDescription>,
}

/// The reference of a browse mount, which names no kit.
pub const BROWSE_REFERENCE: &str = "browse";

/// A mount with kits by path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BrowseDescription {
    /// The registries that may be asked (`HOST[:PORT]`), beside kit's own storage.
    pub registries: Vec<String>,
    /// How long a tag is taken to name the same kit.
    pub tag_ttl_ms: u64,
    /// The most kits in memory.
    pub most_kits: u32,
    /// How long a kit stays in memory that nobody uses.
    pub idle_ms: u64,
}

/// A request without the field is of an earlier version, which had no such option.
fn usual_read_deadline() -> Option<u64> {
    Some(READ_DEADLINE.as_secs())
}

/// Serves a mount. The command has made it in the part of the file tree that it sees, and sends its FUSE
/// device with the request. A second descriptor is the owner of the mount, a pidfd (pidfd_open(2)): the daemon
/// ends the mount when that process has ended. The answer comes when the handshake is done. After a failure, the
/// command ends the mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRequest {
    /// The kit; none for kits by path.
    #[serde(default)]
    pub kit: Option<KitHandle>,
    /// The options of the command.
    pub mount: MountDescription,
    /// The place of the mount.
    pub place: MountPlace,
    /// The device number of the mount whose place this one will take. The command puts it there after the
    /// answer, and unmounts the other one.
    #[serde(default)]
    pub replaces: Option<DeviceNumber>,
}

/// Waits until a mount has ended, and fails with `NotFound` when none is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwaitEndRequest {
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
    /// The part of the file tree that the command sees ([`crate::process::view`]); that of the daemon where it
    /// is missing.
    #[serde(default)]
    pub view: Option<String>,
}

impl Operation for AwaitEndRequest {
    const NAME: &'static str = "await-end";
    type Event = NoEvent;
    type Answer = ();
}

/// Records the reads from a mount. The bytes of the answer are the lines of an access trace
/// (docs/format/trace.md). They end with the mount, or when [`StopRecordingRequest`] says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordRequest {
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
    /// The part of the file tree that the command sees ([`crate::process::view`]); that of the daemon where it
    /// is missing.
    #[serde(default)]
    pub view: Option<String>,
}

impl Operation for MountRequest {
    const NAME: &'static str = "mount";
    type Event = NoEvent;
    type Answer = MountStatus;

    fn has_paths(&self) -> bool {
        self.mount.trace.is_some()
    }
}

impl Operation for RecordRequest {
    const NAME: &'static str = "record";
    type Event = NoEvent;
    type Answer = ();
}

/// Ends a recording. Its last lines still come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRecordingRequest {
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
    /// The part of the file tree that the command sees ([`crate::process::view`]); that of the daemon where it
    /// is missing.
    #[serde(default)]
    pub view: Option<String>,
}

impl Operation for StopRecordingRequest {
    const NAME: &'static str = "stop-recording";
    type Event = NoEvent;
    type Answer = ();
}

impl Operation for UnmountRequest {
    const NAME: &'static str = "unmount";
    const IS_FOR_ALL_VERSIONS: bool = true;
    type Event = NoEvent;
    type Answer = UnmountReport;
}

/// The files of a mounted kit that are completed in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// The state of the bytes of a mounted kit that are not in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

impl HydrateState {
    /// The word for it, in the column REST of `kitfs status` and on the daemon's page.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Off => "on demand",
            Self::Begun => "begun files",
            Self::Local => "local",
            Self::Waiting => "waits",
            Self::Running => "coming",
            Self::Complete => "here",
            Self::NoRoom => "no room",
            Self::Failed { .. } => "failed",
        }
    }
}

/// One mount, as `kitfs status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MountStatus {
    /// The mountpoint.
    pub mountpoint: PathBuf,
    /// The part of the file tree in which it lies, where the daemon sees another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<String>,
    /// The user who has mounted it, where the daemon has several users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// The reference as the user typed it.
    pub reference: String,
    /// The labels that chose the kit from an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The folder with the changes of a writable view.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<PathBuf>,
    /// The digest of the manifest the reference was pinned to; empty for kits by path.
    pub digest: String,
    /// The kits by path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub browse: Option<BrowseStatus>,
    /// The digest of the manifest that the tag names by now, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<String>,
    /// Why the kit that the tag names could not take the place of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow_failure: Option<String>,
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
    /// The process whose end ends the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// Warnings about parts that were passed over: unknown layer types, devices in tars.
    pub warnings: Vec<String>,
    /// The path and the reason of the last read that failed, which its reader saw as an errno.
    pub last_failure: Option<String>,
    /// Ranges of files that came wrong at first, and are right now: programs that read them before may have
    /// wrong bytes. The first ones, since this daemon serves the mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<ReplacedStatus>,
    /// The number of such ranges that are not named.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replaced_others: u64,
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

impl MountStatus {
    /// Whether a process that sees the part `view` of the file tree finds the mount at its mountpoint. `daemon`
    /// is the part that the daemon sees.
    pub fn is_seen_from(&self, view: Option<&str>, daemon: Option<&str>) -> bool {
        let place = self.elsewhere.as_deref().or(daemon);
        place.is_none() || view.is_none() || place == view
    }

    /// The state of its bytes in a word that people have.
    pub fn content(&self) -> ContentState {
        match self.state {
            KitState::Poisoned => ContentState::Bad,
            KitState::Confirmed => ContentState::Verified,
            KitState::Unconfirmed if self.resident_bytes >= self.total_bytes => {
                ContentState::Complete
            }
            KitState::Unconfirmed => ContentState::Fetching,
        }
    }
}

/// The state of a mount's bytes, as `kitfs status`, `kitfs top` and the daemon's page show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentState {
    /// Bytes are missing. They come when programs read them.
    Fetching,
    /// Every byte is in the cache. The digests are not computed yet, or the kit has none, as data of an S3 store.
    Complete,
    /// Every byte is in the cache and matches its digest.
    Verified,
    /// A layer does not match its digest.
    Bad,
}

impl ContentState {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Complete => "complete",
            Self::Verified => "verified",
            Self::Bad => "BAD",
        }
    }
}

/// The kits of a browse mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BrowseStatus {
    /// The registries that may be asked.
    pub registries: Vec<String>,
    /// The kits that programs use or have used, and that the kernel has not forgotten.
    pub kits: Vec<BrowsedKit>,
}

/// A kit of a browse mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BrowsedKit {
    /// The path below the mount.
    pub path: String,
    /// The digest of the manifest.
    pub digest: String,
    /// Whether the kit is in memory.
    pub is_in_memory: bool,
}

/// A range of a file that came wrong at first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReplacedStatus {
    /// The path of the file in the mount.
    pub path: String,
    /// The first byte.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The bytes that a mount has fetched before readers asked for them. Bytes that were in the cache already do not
/// count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReadaheadStatus {
    /// Bytes that the mount fetched and readers read.
    pub read_bytes: u64,
    /// Bytes that were guessed, and not read so far: at most a tenth of `read_bytes`, and
    /// a head start once.
    pub unread_bytes: u64,
    /// The account of each predictor.
    pub predictors: Vec<PredictorStatus>,
}

impl ReadaheadStatus {
    /// The sum of two accounts with the same predictors.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        self.read_bytes += other.read_bytes;
        self.unread_bytes += other.unread_bytes;
        for (own, other) in self.predictors.iter_mut().zip(other.predictors) {
            own.asked_bytes += other.asked_bytes;
            own.read_bytes += other.read_bytes;
        }
        self
    }
}

/// The account of one predictor (docs/semantics.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// Ends a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnmountRequest {
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
    /// Take it out of the tree at once, even while programs use it.
    #[serde(default)]
    pub lazy: bool,
    /// The device number of the mount, where another one may have its place by now.
    #[serde(default)]
    pub device: Option<DeviceNumber>,
    /// The part of the file tree that the command sees ([`crate::process::view`]); that of the daemon where it
    /// is missing.
    #[serde(default)]
    pub view: Option<String>,
}

/// The outcome of ending a mount, or all mounts of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UnmountReport {
    /// Warnings about programs that still use a mount.
    pub warnings: Vec<String>,
}
