//! Fetching the rest of a mounted kit in the background, once its readers are quiet.
//!
//! ```text
//!            quiet for long enough, its turn          all is in
//! waiting ----------------------------------> running ----------> complete
//!    ^  '---------------------------------------'  |
//!    '--a reader waits; a failure (later again)    '--no room--> waiting for room
//! ```
//!
//! - Nothing is evicted for it: it goes on only while what is missing fits the cache.
//! - Layers on this machine's own disk are left alone: a second copy of them there gains little.
//! - One mount is hydrated at a time, in the order of mounting.
//! - It ends with its mount.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::api::HydrateState;
use super::bringing::{self, pieces};
use crate::cache::Cache;
use crate::fetch::{FetchError, Fetcher, Layer};
use crate::fs::LoadedKit;
use crate::layer::StreamOffset;
use crate::source::Priority;

/// How often room in the cache is looked for, and the shortest look at readers.
const ROOM_INTERVAL: Duration = Duration::from_secs(30);
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

/// Why a run ended before all was in.
enum Pause {
    /// A reader waits.
    Reader,
    /// What is missing does not fit.
    NoRoom,
    Failed(FetchError),
}

impl Hydration {
    pub(super) fn new(cache: Arc<Cache>, fetcher: Arc<Fetcher>) -> Arc<Self> {
        Arc::new(Self { cache, fetcher, turn: Semaphore::new(1) })
    }

    /// Begins to hydrate a kit once no reader has waited for `quiet`; `None` never does.
    pub(super) fn begin(
        self: &Arc<Self>,
        kit: &Arc<LoadedKit>,
        quiet: Option<Duration>,
    ) -> Hydrating {
        let layers: Vec<_> = kit.layers.iter().filter(|layer| layer.is_remote()).cloned().collect();
        let (state, quiet) = match quiet {
            None => (HydrateState::Off, None),
            Some(_) if layers.is_empty() && !kit.layers.is_empty() => (HydrateState::Local, None),
            Some(quiet) => (HydrateState::Waiting, Some(quiet)),
        };
        let state = Arc::new(Mutex::new(state));
        let task = quiet.map(|quiet| {
            let run = self.clone().run(layers, quiet, state.clone());
            AbortOnDropHandle::new(tokio::spawn(run))
        });
        Hydrating { state, _task: task }
    }

    async fn run(
        self: Arc<Self>,
        layers: Vec<Arc<Layer>>,
        quiet: Duration,
        state: Arc<Mutex<HydrateState>>,
    ) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            self.wait_for_quiet(quiet).await;
            let Ok(_turn) = self.turn.acquire().await else { return };
            *state.lock() = HydrateState::Running;
            match self.bring_rest(&layers, quiet).await {
                Ok(()) => {
                    for layer in &layers {
                        layer.confirmed().await;
                    }
                    *state.lock() = HydrateState::Complete;
                    return;
                }
                Err(Pause::Reader) => *state.lock() = HydrateState::Waiting,
                Err(Pause::NoRoom) => {
                    drop(_turn);
                    if !matches!(&*state.lock(), HydrateState::NoRoom) {
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

    async fn wait_for_quiet(&self, quiet: Duration) {
        loop {
            let left = quiet.saturating_sub(self.fetcher.quiet_for());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.max(SHORTEST_WAIT)).await;
        }
    }

    async fn bring_rest(&self, layers: &[Arc<Layer>], quiet: Duration) -> Result<(), Pause> {
        for layer in layers {
            for piece in pieces(bringing::whole(layer)) {
                if layer.is_resident(piece.clone()) {
                    continue;
                }
                if self.fetcher.quiet_for() < quiet {
                    return Err(Pause::Reader);
                }
                self.check_room(layers)?;
                layer.bring(piece, Priority::Hydrate).await.map_err(Pause::Failed)?;
            }
        }
        Ok(())
    }

    /// Whether all that is missing fits without evicting anything.
    fn check_room(&self, layers: &[Arc<Layer>]) -> Result<(), Pause> {
        let missing = layers.iter().map(|layer| {
            let StreamOffset(stream_bytes) = bringing::whole(layer).end;
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
