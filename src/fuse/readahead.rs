//! Sets the kernel's own readahead.
//!
//! The kernel's default for FUSE is 128 KiB, and a file system can only lower it. root can raise it
//! through `/sys/class/bdi/MAJOR:MINOR/read_ahead_kb` (Documentation/ABI/testing/sysfs-class-bdi). With
//! requests as large as a chunk there are half as many, and a cold read on loopback took an eighth less
//! time (docs/performance.md). A still larger window would be better for streams, but the fault of a
//! mapped page reads the whole window around the page. Random access would download several times as
//! much, and each fault would wait for it. `fs::readahead` reads ahead of streams instead.

use std::path::Path;

use crate::layer::layout::CHUNK_BYTES;
use crate::process::mount_table::Device;

/// Sets the readahead of the file system with this device number to one chunk. Without the right to do
/// so, the default stays.
pub(super) fn widen(device: Device) {
    let file = Path::new("/sys/class/bdi").join(device.to_string()).join("read_ahead_kb");
    if let Err(error) = std::fs::write(&file, (CHUNK_BYTES / 1024).to_string()) {
        tracing::debug!(file = %file.display(), %error, "the kernel's readahead stays as it is");
    }
}
