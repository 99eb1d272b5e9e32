//! The digest of a whole layer, computed once its last byte is in.
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
    /// It is not, or not any more.
    #[default]
    Idle,
    /// A thread is at it, or waits for its turn.
    Running,
    /// It was wrong, and all of the layer is fetched again.
    FetchingAgain,
    /// It could not be, the last time.
    Failed,
}

impl Confirming {
    /// Whether something will come of it without a reader.
    pub(super) fn goes_on(self) -> bool {
        matches!(self, Self::Running | Self::FetchingAgain)
    }
}

impl Inner {
    /// Starts to compute the blob's digest when every byte is in and it is not known yet.
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

    /// The outcome; `None` where it could not be computed. A layer stays unconfirmed that was closed, or
    /// lost a chunk meanwhile: it is tried again when the layer is complete again, which it may be by
    /// now.
    fn confirm(&self) -> Option<LayerState> {
        let layer = self.spec.blob.digest;
        let was_doubted = self.store.is_doubted();
        let computed = self.store.judge(&|| !self.closed.is_cancelled());
        match &computed {
            Ok(LayerState::Poisoned { got }) => {
                // A target of its own: a command without a mount tells of it itself, with the layer's entry.
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

/// Says that nothing is being computed any more, also when the thread panics or never starts.
struct End {
    inner: Arc<Inner>,
    outcome: Confirming,
}

impl Drop for End {
    fn drop(&mut self) {
        self.inner.confirming.send_replace(self.outcome);
    }
}
