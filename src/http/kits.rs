//! The kits that are open for requests.
//!
//! A mounted kit is used as it is mounted. Another kit is opened with the options of the daemon. It stays open for
//! a while, so that a reader of many ranges does not resolve its tag for each range.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::kit_path::canonical;
use crate::control::api::{
    Failure, FailureKind, KitHandle, KitRequest, OpenMountedRequest, OpenRequest,
};
use crate::control::{Connection, Lease, Service};

/// How long a kit stays open. Until then, a tag that was moved still names the earlier kit, as in a browse mount.
const KEEP: Duration = Duration::from_secs(60);
/// The most kits that stay open; each holds its tree in memory. Kits that are being opened come on top, at most one
/// for each connection.
const MOST_OPEN: usize = 16;

/// An open kit.
pub(super) struct OpenKit {
    /// Names it to the service.
    pub(super) handle: KitHandle,
    opened_at: Instant,
    _lease: Lease,
}

/// The lock is held while the kit is opened, so that further requests wait for the same kit.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<OpenKit>>>>;

/// Opens kits, each once.
pub(super) struct Kits<S> {
    connection: Connection<S>,
    options: Option<KitRequest>,
    open: Mutex<HashMap<String, Slot>>,
}

impl<S: Service> Kits<S> {
    pub(super) fn new(service: Arc<S>, options: Option<KitRequest>) -> Self {
        Self { connection: Connection::InProcess(service), options, open: Mutex::default() }
    }

    /// The connection to the service.
    pub(super) fn connection(&self) -> &Connection<S> {
        &self.connection
    }

    /// The request for a kit that need not be mounted.
    ///
    /// # Errors
    /// `Usage` where this daemon has no options for such kits.
    pub(super) fn request(&self, reference: &str) -> Result<KitRequest, Failure> {
        let Some(options) = &self.options else {
            let message =
                format!("{reference} is not mounted, and this daemon opens mounted kits only");
            return Err(Failure::new(FailureKind::Usage, message));
        };
        Ok(KitRequest { reference: reference.to_owned(), ..options.clone() })
    }

    /// Opens a kit, or finds it open.
    pub(super) async fn open(&self, reference: &str) -> Result<Arc<OpenKit>, Failure> {
        let mounted = OpenMountedRequest { reference: reference.to_owned() };
        if let (Some(handle), lease) = self.connection.call(mounted, &[], &mut |_| {}).await? {
            return Ok(Arc::new(OpenKit { handle, opened_at: Instant::now(), _lease: lease }));
        }
        let slot = self.slot(canonical(reference));
        let mut open = slot.lock().await;
        if let Some(kit) = open.as_ref().filter(|kit| kit.opened_at.elapsed() < KEEP) {
            return Ok(kit.clone());
        }
        *open = None;
        let request = OpenRequest { kit: self.request(reference)? };
        let (opened, lease) = self.connection.call(request, &[], &mut |_| {}).await?;
        let kit = OpenKit { handle: opened.kit, opened_at: Instant::now(), _lease: lease };
        Ok(open.insert(Arc::new(kit)).clone())
    }

    fn slot(&self, reference: String) -> Slot {
        let mut open = self.open.lock();
        if open.len() >= MOST_OPEN && !open.contains_key(&reference) {
            // A kit that could not be opened has no time, and goes first. A kit that is being opened stays.
            let opened_at =
                |slot: &Slot| Some(slot.try_lock().ok()?.as_ref().map(|kit| kit.opened_at));
            let oldest = open.iter().filter_map(|(name, slot)| Some((opened_at(slot)?, name)));
            if let Some((_, name)) = oldest.min() {
                let name = name.clone();
                open.remove(&name);
            }
        }
        open.entry(reference).or_default().clone()
    }

    /// Closes kits whose time is over. Kits of running requests stay open until the requests end.
    fn expire(&self) {
        self.open.lock().retain(|_, slot| match slot.try_lock() {
            Ok(kit) => kit.as_ref().is_some_and(|kit| kit.opened_at.elapsed() < KEEP),
            Err(_) => true,
        });
    }
}

/// Closes kits whose time is over, at intervals. Never returns.
pub(super) async fn close_unused<S: Service>(kits: &Kits<S>) -> Infallible {
    loop {
        tokio::time::sleep(KEEP / 4).await;
        kits.expire();
    }
}
