//! The connections that are open at once, and the share of each peer.
//!
//! Connections of the daemon's user and of root wait for a free place. Others get a few places for each peer, and
//! a connection beyond these is closed: a peer that opens many cannot keep the daemon's user out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most connections of the daemon's user and root. 128: a browser has six, and a data loader has one for each
/// worker. Each connection takes a descriptor and at most a piece of a file ([`super::body::PIECE_BYTES`]).
const MOST_OF_OWNER: usize = 128;
/// The most connections of one other peer: a monitoring system has one or two.
const MOST_OF_PEER: usize = 8;
/// The most connections of all other peers together.
const MOST_OF_OTHERS: usize = 64;

/// The other end of a connection, without the daemon's user and root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// Another user of this machine.
    User(u32),
    /// Another machine, or a process whose user is unknown.
    Address(IpAddr),
}

/// The places for connections.
pub(super) struct Places {
    of_owner: Arc<Semaphore>,
    others: Arc<Mutex<HashMap<Peer, usize>>>,
}

/// A place; dropping it frees the place.
pub(super) enum Place {
    Owner(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit),
    Other(Arc<Mutex<HashMap<Peer, usize>>>, Peer),
}

impl Places {
    pub(super) fn new() -> Self {
        Self { of_owner: Arc::new(Semaphore::new(MOST_OF_OWNER)), others: Arc::default() }
    }

    /// A place for the daemon's user or root, once there is one.
    pub(super) async fn of_owner(&self) -> Place {
        let semaphore = self.of_owner.clone();
        Place::Owner(semaphore.acquire_owned().await.expect("the semaphore is never closed"))
    }

    /// A place for another peer; `None` where its places are taken.
    pub(super) fn of_other(&self, peer: Peer) -> Option<Place> {
        let mut others = self.others.lock();
        let is_full = others.values().sum::<usize>() >= MOST_OF_OTHERS;
        if is_full || others.get(&peer).is_some_and(|&open| open >= MOST_OF_PEER) {
            return None;
        }
        *others.entry(peer).or_default() += 1;
        Some(Place::Other(self.others.clone(), peer))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self::Other(others, peer) = self else { return };
        let mut others = others.lock();
        if let Some(open) = others.get_mut(peer) {
            *open -= 1;
            if *open == 0 {
                others.remove(peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_peer_has_a_bounded_number_of_places_and_gets_them_back(
            steps in prop::collection::vec((0..12u32, any::<bool>(), any::<prop::sample::Index>()), 0..300),
        ) {
            let places = Places::new();
            let mut open: Vec<(u32, Place)> = Vec::new();
            for (user, is_closing, which) in steps {
                if is_closing && !open.is_empty() {
                    open.swap_remove(which.index(open.len()));
                    continue;
                }
                let of_user = open.iter().filter(|(other, _)| *other == user).count();
                let place = places.of_other(Peer::User(user));
                let has_room = of_user < MOST_OF_PEER && open.len() < MOST_OF_OTHERS;
                prop_assert_eq!(place.is_some(), has_room);
                open.extend(place.map(|place| (user, place)));
            }
            open.clear();
            prop_assert!(places.others.lock().is_empty());
        }
    }

    #[tokio::test]
    async fn others_take_no_place_of_the_owner() {
        let places = Places::new();
        let taken: Vec<_> =
            (0..1000).filter_map(|user| places.of_other(Peer::User(user))).collect();
        assert_eq!(taken.len(), MOST_OF_OTHERS);
        let mut of_owner = Vec::new();
        for _ in 0..MOST_OF_OWNER {
            of_owner.push(places.of_owner().await);
        }
        let soon = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, places.of_owner()).await.is_err());
        of_owner.pop();
        places.of_owner().await;
    }
}
