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

mod quiet;
mod want;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use self::quiet::{Quiet, SHORTEST_WAIT};
use self::want::{MissingPiece, Want, missing_pieces};
use crate::cache::{Cache, LayerState, why_poisoned};
use crate::control::api::{HydrateMode, HydrateState};
use crate::fetch::{FetchError, Fetcher, Layer};
use crate::fs::FileSystem;
use crate::process::running_time;
use crate::source::Priority;

/// The interval between two looks for room in the cache: room comes when kits are removed.
const ROOM_INTERVAL: Duration = Duration::from_secs(30);
/// How long to wait after a failure; doubled for each in a row.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
/// The longest of those waits: a registry that is back is noticed within minutes.
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

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

/// Why a run ended before all was in.
enum Pause {
    /// A reader waits.
    Reader,
    /// The missing bytes do not fit.
    NoRoom,
    Failed(FetchError),
    /// All that can be had is in, and some of it is not what its digest says.
    Wrong(String),
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
    /// The state once all of `layers` is here.
    done: HydrateState,
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
        let (layers, local): (Vec<_>, Vec<_>) =
            kit.layers.iter().cloned().partition(|layer| layer.is_remote());
        let done = match local.iter().all(|layer| is_here(layer)) {
            true => HydrateState::Complete,
            false => HydrateState::Local,
        };
        let (state, has_work) = match mode {
            HydrateMode::None => (HydrateState::Off, false),
            _ if layers.is_empty() && !kit.layers.is_empty() => (HydrateState::Local, false),
            _ if layers.iter().all(|layer| is_here(layer)) => (done.clone(), false),
            HydrateMode::All => (HydrateState::Waiting, true),
            HydrateMode::Begun => (HydrateState::Begun, true),
        };
        let state = Arc::new(Mutex::new(state));
        let task = has_work.then(|| {
            let work = Work {
                hydration: self.clone(),
                file_system: file_system.clone(),
                layers,
                is_all_wanted: mode == HydrateMode::All,
                quiet: Quiet::new(self.fetcher.clone(), quiet),
                state: state.clone(),
                done,
            };
            AbortOnDropHandle::new(tokio::spawn(work.run()))
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
    async fn run(self) {
        let mut backoff = FIRST_BACKOFF;
        let mut has_told_of_room = false;
        let mut is_anything_wanted = self.is_all_wanted;
        loop {
            if !is_anything_wanted {
                // The ranges are known only once the readers are quiet: they read on meanwhile.
                self.file_system.read_on().await;
            }
            is_anything_wanted = true;
            if !matches!(*self.state.lock(), HydrateState::Failed { .. } | HydrateState::NoRoom) {
                self.set(HydrateState::Waiting);
            }
            self.quiet.wait().await;
            let Ok(turn) = self.hydration.turn.acquire().await else { return };
            let mut has_brought = false;
            let pause = self.bring_missing(&mut has_brought).await;
            drop(turn);
            if has_brought {
                backoff = FIRST_BACKOFF;
            }
            match pause {
                Ok(()) if self.layers.iter().all(|layer| is_here(layer)) => {
                    return self.set(self.done.clone());
                }
                Ok(()) => {
                    self.set(HydrateState::Begun);
                    is_anything_wanted = self.is_all_wanted;
                }
                Err(Pause::Reader) => {}
                Err(Pause::Wrong(reason)) => {
                    // Every layer was tried, and fetching the same bytes again would not help.
                    tracing::warn!(reason, "a kit is not what it should be");
                    return self.set(HydrateState::Failed { reason });
                }
                Err(Pause::NoRoom) => {
                    if !std::mem::replace(&mut has_told_of_room, true) {
                        tracing::info!(
                            "the rest of a kit is not fetched: it does not fit the cache"
                        );
                    }
                    self.set(HydrateState::NoRoom);
                    running_time::sleep(ROOM_INTERVAL).await;
                }
                Err(Pause::Failed(error)) => {
                    tracing::warn!(%error, again_in = ?backoff, "fetching the rest of a kit failed");
                    self.set(HydrateState::Failed { reason: error.to_string() });
                    running_time::sleep(backoff).await;
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
            }
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
    async fn bring_missing(&self, has_brought: &mut bool) -> Result<(), Pause> {
        let pieces = self.missing().await;
        let mut left_bytes = pieces.iter().map(|it| it.missing_bytes).fold(0, u64::saturating_add);
        let mut failed: Vec<(Arc<Layer>, FetchError)> = Vec::new();
        for piece in pieces {
            if failed.iter().any(|(layer, _)| Arc::ptr_eq(layer, &piece.layer)) {
                continue;
            }
            if !self.hydration.has_room_for(left_bytes) {
                return Err(Pause::NoRoom);
            }
            self.set(HydrateState::Running);
            match self.bring(&piece).await {
                Ok(()) => *has_brought = true,
                Err(Pause::Failed(error)) => failed.push((piece.layer.clone(), error)),
                Err(pause) => return Err(pause),
            }
            left_bytes -= piece.missing_bytes;
        }
        match failed.into_iter().next() {
            Some((_, error)) => Err(Pause::Failed(error)),
            None => self.verify().await,
        }
    }

    /// Brings a piece, unless a reader comes: requests under way then give way to it.
    async fn bring(&self, piece: &MissingPiece) -> Result<(), Pause> {
        if self.quiet.is_over() {
            return Err(Pause::Reader);
        }
        let bring = piece.layer.bring(piece.range.clone(), Priority::Hydrate);
        tokio::pin!(bring);
        loop {
            tokio::select! {
                brought = &mut bring => return match brought {
                    // The state says so as well.
                    Ok(()) | Err(FetchError::Poisoned { .. }) => Ok(()),
                    Err(error) => Err(Pause::Failed(error)),
                },
                () = tokio::time::sleep(SHORTEST_WAIT) => {
                    if self.quiet.is_over() {
                        return Err(Pause::Reader);
                    }
                }
            }
        }
    }

    /// Waits for the digests of layers all of whose bytes came.
    async fn verify(&self) -> Result<(), Pause> {
        let mut wrong = None;
        for layer in &self.layers {
            if !self.is_all_wanted && !layer.store().is_complete() {
                continue;
            }
            let title = || self.file_system.kit().title_of(layer);
            match layer.confirmed().await {
                LayerState::Confirmed => {}
                LayerState::Poisoned { got } => {
                    let why = why_poisoned(layer.key().digest, got);
                    wrong = Some(format!("{} is poisoned: {why}", title()));
                }
                // Others needed the room meanwhile.
                LayerState::Unconfirmed if !layer.store().is_complete() => {
                    return Err(Pause::NoRoom);
                }
                LayerState::Unconfirmed => {
                    wrong = Some(format!("the digest of {} could not be computed", title()));
                }
            }
        }
        wrong.map_or(Ok(()), |reason| Err(Pause::Wrong(reason)))
    }
}

/// Whether nothing of a layer is left to be fetched or verified.
pub(super) fn is_here(layer: &Layer) -> bool {
    layer.state() == LayerState::Confirmed && layer.store().is_complete()
}
