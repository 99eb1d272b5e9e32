//! Memory that mounts took, given back to the system.
//!
//! The allocator keeps freed memory for the next allocation. A daemon that had many mounts or big
//! trees would stay as large as it ever was, and count against the limit of its container.

#![allow(unsafe_code, reason = "malloc_trim(3), which no safe interface has")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long after the end of a mount memory is given back. Mounts often end together, and the
/// allocator is locked meanwhile.
const DELAY: Duration = Duration::from_millis(500);

/// Gives memory back, once for all requests that come close together.
#[derive(Default)]
pub(super) struct Memory {
    is_scheduled: AtomicBool,
}

impl Memory {
    /// Gives memory back soon. To be called on the runtime.
    pub(super) fn give_back_soon(self: &Arc<Self>) {
        if self.is_scheduled.swap(true, Ordering::SeqCst) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(DELAY).await;
            this.is_scheduled.store(false, Ordering::SeqCst);
            // It may take some milliseconds for each gigabyte that is free.
            let _ = tokio::task::spawn_blocking(trim).await;
        });
    }
}

/// Returns free pages of the heap to the system.
#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it takes a number and touches the allocator's free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators return free pages by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
