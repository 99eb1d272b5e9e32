//! Completing a mounted kit in the background, once its readers are quiet.
//!
//! ```text
//!             something is missing       quiet for long enough, its turn
//! begun <--> waiting -------------------------------------> running --all is in--> complete
//!  ^            ^  '-----a reader waits; a failure (later again)-----'  |
//!  |            '--no room--> looks again now and then                  |
//!  '-- only what was begun is completed, and is in <-------------------'
//! ```
//!
//! - The mount chooses what to complete ([`HydrateMode`]): all of the kit, the files that readers have begun
//!   in earnest (`fs::begun`), or nothing.
//! - It evicts nothing: it goes on only while the missing bytes fit the cache.
//! - Layers on this machine's own disk are left alone: a second copy of them there gains little.
//! - One mount is hydrated at a time, in the order of mounting.
//! - It is complete only when every digest was computed and is right. A layer that is poisoned is not
//!   fetched again; one that cannot be had now is tried again later. Neither holds up the others.
//! - It ends with its mount.

mod deciding;
mod quiet;
mod want;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use self::deciding::{Course, Next, RunEnd, SHORTEST_WAIT, Standing, Verdict, beginning, verdict};
use self::quiet::Quiet;
use self::want::{MissingPiece, Want, missing_pieces};
use crate::cache::{Cache, LayerState, why_poisoned};
use crate::control::api::{HydrateMode, HydrateState};
use crate::fetch::{FetchError, Fetcher, Layer};
use crate::fs::FileSystem;
use crate::process::running_time;
use crate::source::Priority;

/// The state that all mounts share.
pub(super) struct Hydration {
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    turn: Semaphore,
}

/// The hydration of one mount; dropping it ends it.
pub(super) struct Hydrating {
    mode: HydrateMode,
    state: Arc<Mutex<HydrateState>>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl Hydrating {
    pub(super) fn mode(&self) -> HydrateMode {
        self.mode
    }

    pub(super) fn state(&self) -> HydrateState {
        self.state.lock().clone()
    }
}

/// The work for one mount.
struct Work {
    hydration: Arc<Hydration>,
    file_system: Arc<FileSystem>,
    /// The layers that are not on this machine's disk.
    layers: Vec<Arc<Layer>>,
    is_all_wanted: bool,
    quiet: Quiet,
    state: Arc<Mutex<HydrateState>>,
}

impl Hydration {
    pub(super) fn new(cache: Arc<Cache>, fetcher: Arc<Fetcher>) -> Arc<Self> {
        Arc::new(Self { cache, fetcher, turn: Semaphore::new(1) })
    }

    /// Begins to hydrate a mount. Work starts when no reader of any mount has waited for `quiet`.
    pub(super) fn begin(
        self: &Arc<Self>,
        file_system: &Arc<FileSystem>,
        mode: HydrateMode,
        quiet: Duration,
    ) -> Hydrating {
        let kit = file_system.kit();
        let standing =
            |layer: &Arc<Layer>| Standing { is_remote: layer.is_remote(), is_here: is_here(layer) };
        let standings: Vec<_> = kit.layers.iter().map(standing).collect();
        let begun = beginning(mode, &standings);
        let layers = kit.layers.iter().filter(|layer| layer.is_remote()).cloned().collect();
        let state = Arc::new(Mutex::new(begun.state));
        let task = begun.has_work.then(|| {
            let work = Work {
                hydration: self.clone(),
                file_system: file_system.clone(),
                layers,
                is_all_wanted: mode == HydrateMode::All,
                quiet: Quiet::new(self.fetcher.clone(), quiet),
                state: state.clone(),
            };
            AbortOnDropHandle::new(tokio::spawn(work.run(begun.done)))
        });
        Hydrating { mode, state, _task: task }
    }

    /// Whether so many bytes fit without evicting anything.
    fn has_room_for(&self, bytes: u64) -> bool {
        // A file system that cannot be asked is not filled.
        self.cache.free_bytes().is_ok_and(|free_bytes| bytes <= free_bytes)
    }
}

impl Work {
    /// Runs until all is here, or cannot be right. `done` is the state then.
    async fn run(self, done: HydrateState) {
        let mut course = Course::new(self.is_all_wanted, done);
        let mut next = course.first();
        let mut has_told_of_room = false;
        loop {
            match next {
                Next::End => return,
                // The ranges are known only once the readers are quiet: they read on meanwhile.
                Next::ReadOn => self.file_system.read_on().await,
                Next::Pause(pause) => running_time::sleep(pause).await,
                Next::Run => {}
            }
            let waiting = Course::waiting(&self.state.lock());
            self.set(waiting);
            self.quiet.wait().await;
            let Ok(turn) = self.hydration.turn.acquire().await else { return };
            let mut has_brought = false;
            let end = self.bring_missing(&mut has_brought).await.unwrap_or_else(|end| end);
            drop(turn);
            match &end {
                RunEnd::Wrong(reason) => tracing::warn!(reason, "a kit is not what it should be"),
                RunEnd::NoRoom if !std::mem::replace(&mut has_told_of_room, true) => {
                    tracing::info!("the rest of a kit is not fetched: it does not fit the cache");
                }
                RunEnd::Failed(reason) => {
                    tracing::warn!(reason, "fetching the rest of a kit failed");
                }
                RunEnd::NoRoom | RunEnd::Brought | RunEnd::Reader => {}
            }
            let is_all_here = self.layers.iter().all(|layer| is_here(layer));
            let (state, step) = course.after(end, has_brought, is_all_here);
            if let Some(state) = state {
                self.set(state);
            }
            next = step;
        }
    }

    fn set(&self, state: HydrateState) {
        *self.state.lock() = state;
    }

    /// The ranges that are to be in the cache, as far as is known now.
    fn wants(file_system: &FileSystem, layers: &[Arc<Layer>], is_all_wanted: bool) -> Vec<Want> {
        if is_all_wanted {
            return layers.iter().map(Want::whole).collect();
        }
        let begun = file_system.begun().into_iter().map(|(layer, ranges)| Want {
            layer: file_system.kit().layers[layer as usize].clone(),
            ranges,
        });
        begun.filter(|want| want.layer.is_remote()).collect()
    }

    /// The missing part of it. A kit has millions of files and chunks: not on a thread of the runtime.
    async fn missing(&self) -> Vec<MissingPiece> {
        let (file_system, layers) = (self.file_system.clone(), self.layers.clone());
        let is_all_wanted = self.is_all_wanted;
        let look = move || missing_pieces(&Self::wants(&file_system, &layers, is_all_wanted));
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// Brings the missing bytes, and says in `has_brought` whether any of it came. A layer that
    /// cannot be had does not hold up the others; the first failure is told in the end.
    async fn bring_missing(&self, has_brought: &mut bool) -> Result<RunEnd, RunEnd> {
        let pieces = self.missing().await;
        let mut left_bytes = pieces.iter().map(|it| it.missing_bytes).fold(0, u64::saturating_add);
        let mut failed: Vec<(Arc<Layer>, String)> = Vec::new();
        for piece in pieces {
            if failed.iter().any(|(layer, _)| Arc::ptr_eq(layer, &piece.layer)) {
                continue;
            }
            if !self.hydration.has_room_for(left_bytes) {
                return Err(RunEnd::NoRoom);
            }
            self.set(HydrateState::Running);
            match self.bring(&piece).await {
                Ok(()) => *has_brought = true,
                Err(RunEnd::Failed(reason)) => failed.push((piece.layer.clone(), reason)),
                Err(end) => return Err(end),
            }
            left_bytes -= piece.missing_bytes;
        }
        match failed.into_iter().next() {
            Some((_, reason)) => Err(RunEnd::Failed(reason)),
            None => self.verify().await.map(|()| RunEnd::Brought),
        }
    }

    /// Brings a piece, unless a reader comes: requests under way then give way to it.
    async fn bring(&self, piece: &MissingPiece) -> Result<(), RunEnd> {
        if self.quiet.is_over() {
            return Err(RunEnd::Reader);
        }
        let bring = piece.layer.bring(piece.range.clone(), Priority::Hydrate);
        tokio::pin!(bring);
        loop {
            tokio::select! {
                brought = &mut bring => return match brought {
                    // The state says so as well.
                    Ok(()) | Err(FetchError::Poisoned { .. }) => Ok(()),
                    Err(error) => Err(RunEnd::Failed(error.to_string())),
                },
                () = tokio::time::sleep(SHORTEST_WAIT) => {
                    if self.quiet.is_over() {
                        return Err(RunEnd::Reader);
                    }
                }
            }
        }
    }

    /// Waits for the digests of layers all of whose bytes came.
    async fn verify(&self) -> Result<(), RunEnd> {
        let mut wrong = None;
        for layer in &self.layers {
            if !self.is_all_wanted && !layer.store().is_complete() {
                continue;
            }
            let title = || self.file_system.kit().title_of(layer);
            let state = layer.confirmed().await;
            match verdict(state, layer.store().is_complete()) {
                Verdict::Right => {}
                Verdict::Evicted => return Err(RunEnd::NoRoom),
                Verdict::Poisoned { got } => {
                    let why = why_poisoned(layer.key().digest, got);
                    wrong = Some(format!("{} is poisoned: {why}", title()));
                }
                Verdict::Unchecked => {
                    wrong = Some(format!("the digest of {} could not be computed", title()));
                }
            }
        }
        wrong.map_or(Ok(()), |reason| Err(RunEnd::Wrong(reason)))
    }
}

/// Whether nothing of a layer is left to be fetched or verified.
pub(super) fn is_here(layer: &Layer) -> bool {
    layer.state() == LayerState::Confirmed && layer.store().is_complete()
}

#[cfg(test)]
mod tests;
