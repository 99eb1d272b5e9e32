//! The settings of a mounted kit that do not change its files.

use std::time::Duration;

/// The settings of a [`FileSystem`](super::FileSystem).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsConfig {
    /// The time after which a read that waits for the network fails; `None` for never.
    pub read_deadline: Option<Duration>,
    /// Fetch tensors beforehand, by the headers of `*.safetensors` and `*.gguf` files.
    pub tensor_prefetch: bool,
    /// Let the owner write every file and folder, for an overlay over the mount. The mount stays read-only.
    pub owner_may_write: bool,
}

/// The usual deadline of a read. 5 min: registries restart, and networks come back, within it. Frameworks
/// that watch a data loader allow as much (PyTorch: 300 s and more).
pub const READ_DEADLINE: Duration = Duration::from_secs(300);

impl Default for FsConfig {
    /// [`READ_DEADLINE`], with tensor prefetch.
    fn default() -> Self {
        Self { read_deadline: Some(READ_DEADLINE), tensor_prefetch: true, owner_may_write: false }
    }
}
