//! The operations of a daemon: plain data, JSON on the wire (docs/format/control.md).
//!
//! - [`AliveRequest`], [`StatusRequest`], [`ActivityRequest`], [`StopRequest`], [`ReplaceRequest`], [`UpgradeRequest`],
//!   [`RestoreRequest`]: the daemon.
//! - [`OpenRequest`], [`OpenMountedRequest`], [`ListRequest`], [`StatRequest`], [`ReadRequest`], [`CloneRequest`]:
//!   an open kit.
//! - [`InfoRequest`], [`TagsRequest`], [`CatalogueRequest`]: looking at registries.
//! - [`CompareRequest`]: two versions.
//! - [`MountRequest`], [`UnmountRequest`], [`RecordRequest`], [`StopRecordingRequest`]: mounts.
//! - [`WorkRequest`]: the work of this moment. [`ExplainRequest`]: why bytes were fetched.
//! - [`WarmRequest`], [`ResidencyRequest`], [`CacheRequest`]: the cache.

mod activity;
mod cache;
mod compare;
mod daemon;
mod describe;
mod explain;
mod failure;
mod kits;
mod mounts;
mod network;
mod progress;
mod residency;
mod tree;
mod warm;
mod work;

pub use activity::{
    ActivityReport, ActivityRequest, ActivitySample, FailedReads, FetchedBytes, HostActivity,
    ReadActivity, SourceActivity,
};
pub use cache::{CacheReport, CacheRequest, CachedLayer};
pub use compare::{
    CompareEvent, CompareRequest, ComparedFile, ComparedVersion, Comparison, FileChange,
    FileChangeKind, LayerChange, LayerChangeKind, Switch,
};
pub use daemon::{
    AliveRequest, DaemonStatus, FetchStatus, LogPlace, ReplaceRequest, RestoreReport,
    RestoreRequest, StatusRequest, StopRequest, Unrestored, UpgradeRequest,
};
pub use describe::{
    CatalogueRequest, Fact, IndexEntryInfo, IndexInfo, Info, InfoRequest, KitInfo, LayerInfo,
    RemoteInfo, TagInfo, TagsRequest,
};
pub use explain::{
    ExplainRequest, ExplainedTransfer, ExplainedWait, Explanation, Reader, TransferOutcome,
};
pub use failure::{Failure, FailureKind};
pub use kits::{KitHandle, KitRequest, KitState, OpenMountedRequest, OpenRequest, Opened};
pub use mounts::{
    AwaitEndRequest, BROWSE_REFERENCE, BrowseDescription, BrowseStatus, BrowsedKit, ContentState,
    HydrateMode, HydrateState, MountDescription, MountRequest, MountStatus, PassthroughState,
    PredictorStatus, ReadaheadStatus, RecordRequest, ReplacedStatus, StopRecordingRequest,
    UnmountReport, UnmountRequest,
};
pub use network::NetworkOptions;
pub use progress::{OpenProgress, PassProgress, Waiting};
pub use residency::{
    Cell, RangeState, Residency, ResidencyRequest, ResidencyRow, ResidencyRows, ResidencyTotal,
    ResidentRange, Subject,
};
pub use tree::{
    CloneRequest, Cloned, Entry, EntryKind, FilePart, FileStat, ListRequest, ListedLayer, Listing,
    RawPath, ReadRequest, StatRequest,
};
pub use warm::{LayerProgress, WarmEvent, WarmReport, WarmRequest, WarmedLayer};
pub use work::{SlowReader, TransferUnderWay, WorkReport, WorkRequest};
