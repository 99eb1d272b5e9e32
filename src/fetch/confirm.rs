//! The digest of a whole layer, computed once its last byte is resident.
//!
//! ```text
//! last chunk --> confirm_when_complete --its turn--> thread of low priority --> confirmed
//!                         ^                                  |           '--> poisoned
//!                         |--a chunk went, and came again----|
//!                         '--wrong once: all comes again-----'
//! ```

use std::sync::Arc;

use super::layer::Inner;
use crate::cache::LayerState;

/// The nice value of a thread that hashes (setpriority(2)): readers and transfers come first,
/// and an idle core is used all the same.
const NICE: i32 = 10;

/// Whether the digest of a whole layer is being computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Confirming {
    /// The digest is not being computed.
    #[default]
    Idle,
    /// A thread computes the digest, or waits for its turn.
    Running,
    /// The digest was wrong, and the whole layer is fetched again.
    FetchingAgain,
    /// The last attempt failed before there was a digest.
    Failed,
}

impl Confirming {
    /// Whether there will be an outcome although no reader asks for bytes.
    pub(super) fn goes_on(self) -> bool {
        matches!(self, Self::Running | Self::FetchingAgain)
    }
}

impl Inner {
    /// Starts to compute the blob's digest when every byte is resident and the digest is unknown.
    pub(super) fn confirm_when_complete(self: &Arc<Self>) {
        if self.is_compressed()
            || !self.spec.encoding.is_verifiable()
            || self.store.state() != LayerState::Unconfirmed
            || !self.store.is_complete()
        {
            return;
        }
        let is_begun = self.confirming.send_if_modified(|confirming| {
            std::mem::replace(confirming, Confirming::Running) != Confirming::Running
        });
        if !is_begun {
            return;
        }
        let mut end = End { inner: self.clone(), outcome: Confirming::Failed };
        let turn = self.turns.hashing();
        self.runtime.spawn(async move {
            let turn = turn.await;
            let layer = end.inner.spec.blob.digest;
            let thread = std::thread::Builder::new().name("kitfs-confirm".to_owned());
            let spawned = thread.spawn(move || {
                // A kernel that refuses leaves the usual priority, which only costs time.
                let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
                let inner = end.inner.clone();
                let computed = inner.confirm();
                end.outcome = match computed {
                    Some(_) if inner.store.is_doubted() => Confirming::FetchingAgain,
                    Some(_) => Confirming::Idle,
                    None => Confirming::Failed,
                };
                drop(end);
                drop(turn);
                match computed {
                    Some(LayerState::Confirmed) => inner.sync_quietly(),
                    Some(LayerState::Unconfirmed) if !inner.closed.is_cancelled() => {
                        inner.confirm_when_complete();
                        inner.complete_quietly(None);
                    }
                    _ => {}
                }
            });
            if let Err(error) = spawned {
                tracing::warn!(%layer, %error, "no thread to verify a layer");
            }
        });
    }

    /// The outcome; `None` where the digest could not be computed. A layer that was closed or lost a chunk
    /// meanwhile stays unconfirmed. The next attempt follows when the layer is complete again, which may be now.
    fn confirm(&self) -> Option<LayerState> {
        let layer = self.spec.blob.digest;
        let was_doubted = self.store.is_doubted();
        let computed = self.store.judge(&|| !self.closed.is_cancelled());
        match &computed {
            Ok(LayerState::Poisoned { got }) => {
                // This has a target of its own, because a command without a mount reports the poisoned layer
                // itself, with its entry in the manifest.
                tracing::error!(target: "kitfs::poisoned", %layer, %got,
                    "the digest of a layer is wrong: it is poisoned, and its reads fail");
            }
            Ok(LayerState::Confirmed) if was_doubted => {
                tracing::warn!(%layer, "the layer came right the second time: complete and confirmed");
            }
            Ok(LayerState::Confirmed) => tracing::info!(%layer, "layer complete and confirmed"),
            Ok(LayerState::Unconfirmed) if self.store.is_doubted() && !was_doubted => {
                tracing::warn!(%layer, "the digest of a layer is wrong: all of it is fetched again");
                self.passing.forget(self.number());
                self.ask_next_source_first();
            }
            Ok(LayerState::Unconfirmed) => {}
            Err(error) => tracing::warn!(%layer, %error, "could not verify a complete layer"),
        }
        computed.ok()
    }
}

/// Sets the state back when the thread ends, also when the thread panics or never starts.
struct End {
    inner: Arc<Inner>,
    outcome: Confirming,
}

impl Drop for End {
    fn drop(&mut self) {
        self.inner.confirming.send_replace(self.outcome);
    }
}
