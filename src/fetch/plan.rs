//! From wanted chunks to transfers: pure, so that what is fetched can be tested without fetching.
//!
//! ```text
//! wanted     | 3 4 5 6 7 8 9 |
//! resident   |   4           |
//! in flight  |         7     |
//! transfers  | 3 |   5 6 |   8 9
//! ```

use std::ops::Range;

/// The state of a chunk when a transfer is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkStatus {
    /// Every byte is in the cache.
    Resident,
    /// A transfer will bring it.
    InFlight,
    /// Its first bytes are in the cache: those need not be fetched again.
    Partial,
    /// Nothing of it is in the cache.
    Missing,
}

/// The runs of chunks to fetch so that all of `wanted` becomes resident, in order.
///
/// A run has no chunk that is resident or in flight, and at most `limit` chunks. Only its first chunk may be
/// partial, because a request is one range of the blob.
pub fn transfers(
    wanted: Range<u32>,
    limit: u32,
    status: impl Fn(u32) -> ChunkStatus,
) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for chunk in wanted {
        match status(chunk) {
            ChunkStatus::Resident | ChunkStatus::InFlight => {}
            ChunkStatus::Missing => match runs.last_mut() {
                Some(run) if run.end == chunk && run.end - run.start < limit => run.end += 1,
                _ => runs.push(chunk..chunk + 1),
            },
            ChunkStatus::Partial => runs.push(chunk..chunk + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_status() -> impl Strategy<Value = ChunkStatus> {
        prop_oneof![
            Just(ChunkStatus::Resident),
            Just(ChunkStatus::InFlight),
            Just(ChunkStatus::Partial),
            Just(ChunkStatus::Missing),
        ]
    }

    proptest! {
        #[test]
        fn every_wanted_chunk_is_fetched_exactly_once_or_not_needed(
            statuses in prop::collection::vec(any_status(), 1..80), limit in 1..10u32,
        ) {
            let runs = transfers(0..statuses.len() as u32, limit, |chunk| statuses[chunk as usize]);
            let fetched: Vec<u32> = runs.iter().cloned().flatten().collect();
            let needed: Vec<u32> = (0..statuses.len() as u32)
                .filter(|&chunk| matches!(statuses[chunk as usize], ChunkStatus::Missing | ChunkStatus::Partial))
                .collect();
            prop_assert_eq!(fetched, needed);
            for run in runs {
                prop_assert!(run.end - run.start <= limit.max(1));
                prop_assert!(run.clone().skip(1).all(|chunk| statuses[chunk as usize] == ChunkStatus::Missing));
            }
        }
    }

    #[test]
    fn neighbours_share_a_request() {
        let runs = transfers(0..6, 4, |_| ChunkStatus::Missing);
        assert_eq!(runs, [0..4, 4..6]);
    }
}
