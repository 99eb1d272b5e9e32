//! The daemon itself: `kitfs daemon`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{MountStatus, UnmountReport};
use crate::control::{NoEvent, Operation};

/// Asks whether the daemon answers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct AliveRequest {}

impl Operation for AliveRequest {
    const NAME: &'static str = "alive";
    const IS_FOR_ALL_VERSIONS: bool = true;
    const IS_QUICK: bool = true;
    type Event = NoEvent;
    type Answer = ();
}

/// Asks for the process, its cache and its mounts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StatusRequest {}

impl Operation for StatusRequest {
    const NAME: &'static str = "status";
    const IS_FOR_ALL_VERSIONS: bool = true;
    const IS_QUICK: bool = true;
    type Event = NoEvent;
    type Answer = DaemonStatus;
}

/// Ends the mounts, then the daemon. The answer comes when the mounts have ended, and names programs that
/// still used one.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StopRequest {}

impl Operation for StopRequest {
    const NAME: &'static str = "stop";
    const IS_FOR_ALL_VERSIONS: bool = true;
    const IS_QUICK: bool = true;
    type Event = NoEvent;
    type Answer = UnmountReport;
}

/// Ends this process of the daemon, and has the keeper start another one that goes on with the mounts.
///
/// Fails with `Daemon` where the daemon has no keeper.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ReplaceRequest {}

impl Operation for ReplaceRequest {
    const NAME: &'static str = "replace";
    const IS_FOR_ALL_VERSIONS: bool = true;
    type Event = NoEvent;
    type Answer = ();
}

/// Ends this process of the daemon, and has keeper and worker go on as another program.
///
/// Fails with `Daemon` where the daemon has no keeper, or the program cannot go on with its mounts. The daemon
/// stays as it is then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpgradeRequest {
    /// The path of the program, absolute: a kitfs of any version.
    pub program: PathBuf,
}

impl Operation for UpgradeRequest {
    const NAME: &'static str = "upgrade";
    const IS_FOR_ALL_VERSIONS: bool = true;
    type Event = NoEvent;
    type Answer = ();
}

/// Makes the mounts of the journal again that have ended with an earlier boot of the machine, or with a
/// signal to the daemon.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RestoreRequest {}

impl Operation for RestoreRequest {
    const NAME: &'static str = "restore";
    type Event = NoEvent;
    type Answer = RestoreReport;
}

/// The outcome of a [`RestoreRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RestoreReport {
    /// The mountpoints that are mounted again.
    pub restored: Vec<PathBuf>,
    /// Mounts that the daemon goes on trying, because their registry is away.
    pub waiting: Vec<Unrestored>,
    /// Mounts that are not made again.
    pub failed: Vec<Unrestored>,
}

/// A mount that was not made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Unrestored {
    /// The mountpoint; the file of the journal where that is unknown.
    pub mountpoint: PathBuf,
    /// Why.
    pub reason: String,
}

/// The traffic of a daemon since it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// The place of a daemon's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LogPlace {
    /// A file.
    File(PathBuf),
    /// The journal (systemd-journald(8)).
    Journal {
        /// The unit that the daemon belongs to.
        unit: String,
        /// Whether the unit is one of a user's service manager.
        is_of_user: bool,
    },
    /// The standard error that the daemon was started with: a terminal, or the log of a container.
    StandardError,
}

/// A daemon, as `kitfs daemon status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DaemonStatus {
    /// The process that stays: the keeper, or the worker where there is no keeper.
    pub pid: u32,
    /// The seconds without mounts and commands after which the daemon ends by itself; `None` for never.
    #[serde(default)]
    pub idle_exit_seconds: Option<u64>,
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
    /// The URL of its HTTP interface (docs/api.md), if it has one: `http://127.0.0.1:9000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// The place of its log; none for an older daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogPlace>,
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
