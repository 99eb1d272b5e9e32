//! Fetching the rest of a mounted kit in the background, once its readers are quiet.
//!
//! ```text
//!            quiet for long enough, its turn          all is in
//! waiting ----------------------------------> running ----------> complete
//!    ^  '---------------------------------------'  |
//!    '--a reader waits; a failure (later again)    '--no room--> looks again now and then
//! ```
//!
//! - Nothing is evicted for it: it goes on only while what is missing fits the cache.
//! - Layers on this machine's own disk are left alone: a second copy of them there gains little.
//! - One mount is hydrated at a time, in the order of mounting.
//! - It is complete only when every digest was computed and is right. A layer that is poisoned is not
//!   fetched again; one that cannot be had now is tried again later. Neither holds up the others.
//! - It ends with its mount.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::api::HydrateState;
use super::bringing::pieces;
use crate::cache::{Cache, LayerState};
use crate::fetch::{FetchError, Fetcher, Layer};
use crate::fs::LoadedKit;
use crate::layer::StreamOffset;
use crate::source::Priority;

/// How often room in the cache is looked for: it comes when kits are removed.
const ROOM_INTERVAL: Duration = Duration::from_secs(30);
/// How often readers are looked for: soon to a person, nothing to a processor.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// How long to wait after a failure; doubled for each in a row.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
/// The longest of those waits: a registry that is back is noticed within minutes.
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

/// What hydration shares between mounts.
pub(super) struct Hydration {
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    turn: Semaphore,
}

/// The hydration of one mount; dropping it ends it.
pub(super) struct Hydrating {
    state: Arc<Mutex<HydrateState>>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl Hydrating {
    pub(super) fn state(&self) -> HydrateState {
        self.state.lock().clone()
    }
}

/// The quiet that one mount waits for.
struct Quiet {
    fetcher: Arc<Fetcher>,
    /// How long no reader must have waited.
    wanted: Duration,
    /// When the kit was mounted.
    began: Instant,
}

/// Why a run ended before all was in.
enum Pause {
    /// A reader waits.
    Reader,
    /// What is missing does not fit.
    NoRoom,
    Failed(FetchError),
    /// All that can be had is in, and some of it is not what its digest says.
    Wrong(String),
}

impl Hydration {
    pub(super) fn new(cache: Arc<Cache>, fetcher: Arc<Fetcher>) -> Arc<Self> {
        Arc::new(Self { cache, fetcher, turn: Semaphore::new(1) })
    }

    /// Begins to hydrate a kit once it has been mounted for `quiet` and no reader of any mount has
    /// waited meanwhile; `None` never does.
    pub(super) fn begin(
        self: &Arc<Self>,
        kit: &Arc<LoadedKit>,
        quiet: Option<Duration>,
    ) -> Hydrating {
        let (layers, local): (Vec<_>, Vec<_>) =
            kit.layers.iter().cloned().partition(|layer| layer.is_remote());
        let done = match local.iter().all(|layer| is_here(layer)) {
            true => HydrateState::Complete,
            false => HydrateState::Local,
        };
        let (state, quiet) = match quiet {
            None => (HydrateState::Off, None),
            Some(_) if layers.is_empty() && !kit.layers.is_empty() => (HydrateState::Local, None),
            Some(_) if layers.iter().all(|layer| is_here(layer)) => (done.clone(), None),
            Some(quiet) => (HydrateState::Waiting, Some(quiet)),
        };
        let state = Arc::new(Mutex::new(state));
        let task = quiet.map(|quiet| {
            let run = self.clone().run(layers, quiet, state.clone(), done);
            AbortOnDropHandle::new(tokio::spawn(run))
        });
        Hydrating { state, _task: task }
    }

    async fn run(
        self: Arc<Self>,
        layers: Vec<Arc<Layer>>,
        quiet: Duration,
        state: Arc<Mutex<HydrateState>>,
        done: HydrateState,
    ) {
        let quiet = Quiet { fetcher: self.fetcher.clone(), wanted: quiet, began: Instant::now() };
        let mut backoff = FIRST_BACKOFF;
        let mut has_told_of_room = false;
        loop {
            quiet.wait().await;
            let Ok(_turn) = self.turn.acquire().await else { return };
            let mut has_brought = false;
            let pause = self.bring_rest(&layers, &quiet, &state, &mut has_brought).await;
            if has_brought {
                backoff = FIRST_BACKOFF;
            }
            match pause {
                Ok(()) => {
                    *state.lock() = done;
                    return;
                }
                Err(Pause::Wrong(reason)) => {
                    // Every layer was tried, and fetching the same bytes again would not help.
                    tracing::warn!(reason, "the rest of a kit is not what it should be");
                    *state.lock() = HydrateState::Failed { reason };
                    return;
                }
                Err(Pause::Reader) => *state.lock() = HydrateState::Waiting,
                Err(Pause::NoRoom) => {
                    drop(_turn);
                    if !std::mem::replace(&mut has_told_of_room, true) {
                        tracing::info!(
                            "the rest of a kit is not fetched: it does not fit the cache"
                        );
                    }
                    *state.lock() = HydrateState::NoRoom;
                    tokio::time::sleep(ROOM_INTERVAL).await;
                }
                Err(Pause::Failed(error)) => {
                    drop(_turn);
                    tracing::warn!(%error, again_in = ?backoff, "fetching the rest of a kit failed");
                    *state.lock() = HydrateState::Failed { reason: error.to_string() };
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
            }
        }
    }

    /// Brings what is missing, and says in `has_brought` whether any of it came. A layer that
    /// cannot be had does not hold up the others; the first failure is told in the end.
    async fn bring_rest(
        &self,
        layers: &[Arc<Layer>],
        quiet: &Quiet,
        state: &Mutex<HydrateState>,
        has_brought: &mut bool,
    ) -> Result<(), Pause> {
        let mut failed = None;
        for layer in layers {
            for piece in pieces(layer.contents().layout.stream()) {
                if matches!(layer.state(), LayerState::Poisoned { .. }) {
                    break;
                }
                if layer.is_resident(piece.clone()) {
                    continue;
                }
                self.check_room(layers)?;
                *state.lock() = HydrateState::Running;
                match bring(layer, piece, quiet).await {
                    Ok(()) => *has_brought = true,
                    Err(Pause::Failed(error)) => {
                        failed = failed.or(Some(error));
                        break;
                    }
                    Err(pause) => return Err(pause),
                }
            }
        }
        match failed {
            Some(error) => Err(Pause::Failed(error)),
            None => verify(layers).await,
        }
    }

    /// Whether all that is missing fits without evicting anything.
    fn check_room(&self, layers: &[Arc<Layer>]) -> Result<(), Pause> {
        let missing = layers.iter().map(|layer| {
            let stream_bytes = layer.contents().layout.stream_bytes();
            stream_bytes.saturating_sub(layer.resident_bytes())
        });
        let missing = missing.fold(0, u64::saturating_add);
        // A file system that cannot be asked is not filled.
        match self.cache.free_bytes() {
            Ok(free_bytes) if missing <= free_bytes => Ok(()),
            Ok(_) | Err(_) => Err(Pause::NoRoom),
        }
    }
}

impl Quiet {
    /// How long it has been quiet: no longer than the kit has been mounted, whatever the daemon did
    /// before.
    fn lasted(&self) -> Duration {
        self.fetcher.quiet_for().min(self.began.elapsed())
    }

    fn is_over(&self) -> bool {
        let lasted = self.lasted();
        lasted < self.wanted || lasted.is_zero()
    }

    async fn wait(&self) {
        while self.is_over() {
            let left = self.wanted.saturating_sub(self.lasted());
            tokio::time::sleep(left.max(SHORTEST_WAIT)).await;
        }
    }
}

/// Brings a piece, unless a reader comes: what is under way then gives way to it.
async fn bring(layer: &Layer, piece: Range<StreamOffset>, quiet: &Quiet) -> Result<(), Pause> {
    if quiet.is_over() {
        return Err(Pause::Reader);
    }
    let bring = layer.bring(piece, Priority::Hydrate);
    tokio::pin!(bring);
    loop {
        tokio::select! {
            brought = &mut bring => return match brought {
                // The state says so as well.
                Ok(()) | Err(FetchError::Poisoned { .. }) => Ok(()),
                Err(error) => Err(Pause::Failed(error)),
            },
            () = tokio::time::sleep(SHORTEST_WAIT) => {
                if quiet.is_over() {
                    return Err(Pause::Reader);
                }
            }
        }
    }
}

/// Whether nothing of a layer is left to be fetched or verified.
fn is_here(layer: &Layer) -> bool {
    layer.state() == LayerState::Confirmed && layer.store().is_complete()
}

/// Waits for the digests of layers all of whose bytes came.
async fn verify(layers: &[Arc<Layer>]) -> Result<(), Pause> {
    let mut wrong = None;
    for layer in layers {
        let digest = layer.key().digest;
        match layer.confirmed().await {
            LayerState::Confirmed => {}
            LayerState::Poisoned { got } => {
                wrong = Some(format!("{digest} is not what it says: its bytes have {got}"));
            }
            // Others needed the room meanwhile.
            LayerState::Unconfirmed if !layer.store().is_complete() => return Err(Pause::NoRoom),
            LayerState::Unconfirmed => {
                wrong = Some(format!("the digest of {digest} could not be computed"));
            }
        }
    }
    wrong.map_or(Ok(()), |reason| Err(Pause::Wrong(reason)))
}
