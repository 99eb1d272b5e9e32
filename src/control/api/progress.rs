//! The progress of opening a kit.

use serde::{Deserialize, Serialize};

/// The progress of opening a kit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OpenProgress {
    /// Headers of archives are being read, and compressed layers passed over: nothing can be listed before their end.
    Passing(PassProgress),
    /// A host is silent.
    Waiting(Waiting),
}

/// A host that has sent nothing for a while, and is still waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Waiting {
    /// `HOST[:PORT]`.
    pub host: String,
    /// How long the host has sent nothing.
    pub silent_seconds: u64,
    /// How long a host may be silent (`--open-timeout`).
    pub limit_seconds: u64,
}

/// How far the layers were looked through that are not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PassProgress {
    /// Bytes passed so far, those that were skipped too.
    pub passed_bytes: u64,
    /// Bytes of all these layers, as stored.
    pub total_bytes: u64,
}
