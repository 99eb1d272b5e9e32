//! The settings of a mounted kit that do not change its files.

use std::time::Duration;

/// The settings of a [`FileSystem`](super::FileSystem).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsConfig {
    /// The time after which a read that waits for the network fails.
    pub read_deadline: Duration,
    /// Fetch tensors beforehand, by the headers of `*.safetensors` and `*.gguf` files.
    pub tensor_prefetch: bool,
}

impl Default for FsConfig {
    /// 60 s: longer than the registry client retries before it succeeds, and shorter than the
    /// timeouts of frameworks that watch a data loader (PyTorch: 300 s and more).
    fn default() -> Self {
        Self { read_deadline: Duration::from_secs(60), tensor_prefetch: true }
    }
}
