//! The digest of a whole layer, computed once its last byte is in.
//!
//! ```text
//! last chunk --> confirm_when_complete --its turn--> thread of low priority --> confirmed
//!                         ^                                  |           '--> poisoned
//!                         '--a chunk went, and came again----'
//! ```

use std::sync::Arc;

use super::layer::Inner;
use crate::cache::LayerState;

/// How much a thread that hashes stands back (setpriority(2)): readers and transfers come first,
/// and an idle core is used all the same.
const NICE: i32 = 10;

impl Inner {
    /// Starts to compute the blob's digest when every byte is in and it is not known yet.
    pub(super) fn confirm_when_complete(self: &Arc<Self>) {
        if self.is_compressed()
            || self.store.state() != LayerState::Unconfirmed
            || !self.store.is_complete()
        {
            return;
        }
        let is_begun = self.confirming.send_if_modified(|is_confirming| {
            let begins = !*is_confirming;
            *is_confirming = true;
            begins
        });
        if !is_begun {
            return;
        }
        let end = End(self.clone());
        let turn = self.scheduler.hashing_turn();
        self.runtime.spawn(async move {
            let turn = turn.await;
            let layer = end.0.spec.blob.digest;
            let thread = std::thread::Builder::new().name("kitfs-confirm".to_owned());
            let spawned = thread.spawn(move || {
                let _turn = turn;
                // A kernel that refuses leaves the usual priority, which only costs time.
                let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
                let inner = end.0.clone();
                let is_spoiled = inner.confirm();
                drop(end);
                if is_spoiled {
                    inner.confirm_when_complete();
                }
            });
            if let Err(error) = spawned {
                tracing::warn!(%layer, %error, "no thread to verify a layer");
            }
        });
    }

    /// Returns whether chunks went while their digests were computed.
    fn confirm(&self) -> bool {
        let layer = self.spec.blob.digest;
        match self.store.confirm(&|| !self.closed.is_cancelled()) {
            Ok(LayerState::Poisoned { got }) => {
                tracing::error!(%layer, %got, "digest mismatch: the layer is poisoned, its reads fail");
            }
            Ok(LayerState::Confirmed) => tracing::info!(%layer, "layer complete and confirmed"),
            // Closed, or a chunk was evicted: it is tried again when the layer is complete again,
            // which it may be by now.
            Ok(LayerState::Unconfirmed) => return !self.closed.is_cancelled(),
            Err(error) => tracing::warn!(%layer, %error, "could not verify a complete layer"),
        }
        false
    }
}

/// Says that nothing is being computed any more, also when the thread panics or never starts.
struct End(Arc<Inner>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.confirming.send_replace(false);
    }
}
