//! Kits that a daemon has open for a command.

use serde::{Deserialize, Serialize};

use super::{NetworkOptions, OpenProgress};
use crate::control::{NoEvent, Operation};
use crate::oci::Origin;

/// A kit, and the part of it that is wanted.
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

impl KitRequest {
    /// Whether the daemon opens paths for it: the kit does not lie in a registry.
    pub fn has_paths(&self) -> bool {
        !matches!(Origin::parse(&self.reference), Ok(Origin::Registry(_)))
    }
}

/// Opens a kit for [`ListRequest`](super::ListRequest) and [`ReadRequest`](super::ReadRequest). The kit stays
/// open until the command closes this connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    /// The kit.
    pub kit: KitRequest,
}

impl Operation for OpenRequest {
    const NAME: &'static str = "open";
    type Event = OpenProgress;
    type Answer = Opened;

    fn has_paths(&self) -> bool {
        self.kit.has_paths()
    }
}

/// Opens the kit that is mounted by a reference, as it is mounted: its version, its filters, its way to the registry.
/// The answer is `None` where no mount has it. The kit stays open until the command closes this connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenMountedRequest {
    /// The reference of the mount, or of its version (`REPOSITORY@DIGEST`).
    pub reference: String,
}

impl Operation for OpenMountedRequest {
    const NAME: &'static str = "open-mounted";
    type Event = NoEvent;
    type Answer = Option<KitHandle>;
}

/// An open kit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Names the kit in the requests that follow.
    pub kit: KitHandle,
    /// The request with the manifest's digest. It names the same kit when the tag moves.
    pub pinned: KitRequest,
}

/// Names an open kit to the process that has it open. A random number: no other user guesses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KitHandle(pub u64);

/// The trust that the bytes of a kit have: that of its worst layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum KitState {
    /// Every layer is complete, and its digest was computed and matches.
    Confirmed,
    /// Some layer's digest is not computed yet; its bytes came over an authenticated channel.
    Unconfirmed,
    /// Some layer's digest does not match: its files cannot be read.
    Poisoned,
}
