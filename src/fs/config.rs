//! How a mount behaves, apart from what it shows.

use std::time::Duration;

/// How a [`FileSystem`](super::FileSystem) reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsConfig {
    /// How long a read that waits for the network may take before it fails.
    pub read_deadline: Duration,
    /// Whether the headers of `*.safetensors` and `*.gguf` files say what to fetch beforehand.
    pub tensor_prefetch: bool,
}

impl Default for FsConfig {
    /// 60 s: longer than the retries of a registry client that recovers, shorter than the
    /// patience of the frameworks that watch a data loader (PyTorch: 300 s and more).
    fn default() -> Self {
        Self { read_deadline: Duration::from_secs(60), tensor_prefetch: true }
    }
}
