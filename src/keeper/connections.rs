//! Ends the FUSE connections of mounts that nobody will serve.

use std::io::Write as _;
use std::num::NonZeroU32;

use super::Held;

/// Aborts the connection of each mount, so that no reader waits for ever (Documentation/filesystems/fuse).
///
/// To close the last descriptor ends a connection, too. But another process may have a copy, such as a
/// program that was started by the worker. Works for root and for the user who mounted, where the control
/// file system is mounted; elsewhere closing has to do.
pub(super) fn abort<'a>(mounts: impl Iterator<Item = &'a Held>) {
    for connection in mounts.filter_map(|held| held.connection) {
        let _ = std::fs::OpenOptions::new()
            .write(true)
            .open(abort_file(connection))
            .and_then(|mut file| file.write_all(b"1"));
    }
}

fn abort_file(connection: NonZeroU32) -> String {
    format!("/sys/fs/fuse/connections/{connection}/abort")
}
