//! How far the kernel reads ahead of a program, by itself.
//!
//! The kernel's default for FUSE is 128 KiB, and a file system may only lower it. An administrator
//! may raise it, by `/sys/class/bdi/MAJOR:MINOR/read_ahead_kb`
//! (Documentation/ABI/testing/sysfs-class-bdi). Requests as large as a chunk are half as many, and a
//! cold read on loopback took an eighth less time (docs/performance.md). A larger window would serve
//! streams still better, but the fault of a mapped page asks for the whole window around it: random
//! access would fetch several times as much, and each fault would wait for it. `fs::readahead` reads
//! ahead of streams, not this module.

use std::path::Path;

use super::mount_table::Device;
use crate::layer::layout::CHUNK_BYTES;

/// Lets the kernel read ahead by a chunk in the file system with this device number. Where that is not
/// allowed, the default stays.
pub(super) fn widen(device: Device) {
    let file = Path::new("/sys/class/bdi").join(device.to_string()).join("read_ahead_kb");
    if let Err(error) = std::fs::write(&file, (CHUNK_BYTES / 1024).to_string()) {
        tracing::debug!(file = %file.display(), %error, "the kernel's readahead stays as it is");
    }
}
