//! Reservations: the right of a transfer to run, and its memory. The locks and wake-ups of `transfers`.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::transfers::Whose;
use super::{Admission, now};
use crate::source::Urgency;

/// The right to run, and the reserved memory. Dropping it gives both back.
pub(crate) struct Reservation {
    admission: Arc<Admission>,
    id: u64,
}

impl Admission {
    /// Waits until a transfer may run that takes at most `bytes` of memory. The call takes the place in the queue,
    /// not the first poll of the future, because tasks begin in any order.
    pub(crate) fn transfer(
        self: &Arc<Self>,
        whose: Whose,
        bytes: u64,
        urgency: Urgency,
    ) -> impl Future<Output = Reservation> + Send + use<> {
        let (start, started) = oneshot::channel();
        let id = self.transfers.lock().ask(whose, bytes, urgency, start);
        let reservation = Reservation { admission: self.clone(), id };
        self.reconsider();
        async move {
            // The sender is dropped only by the reservation, which this future holds.
            let _ = started.await;
            reservation
        }
    }

    /// Whether a reservation of `bytes` leaves enough memory for others.
    pub(crate) fn can_hold(&self, bytes: u64) -> bool {
        self.transfers.lock().can_hold(bytes)
    }

    /// Admits each transfer that may run: after one has ended, or an urgency has changed.
    pub(crate) fn reconsider(&self) {
        let ceiling = |host: Option<&str>| self.hosts.ceiling(host);
        let admitted = self.transfers.lock().admit(self.readers.wait(), &ceiling, now());
        for start in admitted {
            // A task that gave up meanwhile has a reservation that is being dropped.
            let _ = start.send(());
        }
    }

    /// Memory of transfers that is reserved or set aside now, in bytes.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.transfers.lock().taken_bytes()
    }

    /// Sets memory aside for bytes that the cache could not keep; `false` where there is none.
    pub(crate) fn set_aside(&self, bytes: u64) -> bool {
        let mut transfers = self.transfers.lock();
        let is_free = bytes <= transfers.free_aside_bytes();
        if is_free {
            transfers.aside_bytes += bytes;
        }
        is_free
    }

    /// The same without the bound: for bytes that a reader waits for, where nothing else is held.
    pub(crate) fn set_aside_anyway(&self, bytes: u64) {
        self.transfers.lock().aside_bytes += bytes;
    }

    /// Returns memory that was set aside.
    pub(crate) fn give_back_aside(&self, bytes: u64) {
        self.transfers.lock().aside_bytes -= bytes;
        self.reconsider();
    }

    /// Memory that can be set aside now, in bytes.
    pub(crate) fn free_aside_bytes(&self) -> u64 {
        self.transfers.lock().free_aside_bytes()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.admission.transfers.lock().remove(self.id, now());
        self.admission.reconsider();
    }
}
