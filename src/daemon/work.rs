//! The transfers under way and the slowest readers of some mounts ([`WorkRequest`](crate::control::api::WorkRequest)).

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::control::api::{Reader, SlowReader, TransferUnderWay, WorkReport};
use crate::fetch::{Outcome, WaitedRead};
use crate::fs::LoadedKit;

/// The most transfers and readers of a report: two screens full.
const MOST_NAMED: usize = 64;
/// The waits that count: a person who looks wants to know what is slow now.
const RECENT: Duration = Duration::from_secs(60);

/// The work for the kits of some mounts. Two mounts of one kit count once.
pub(super) fn report(mounts: &[(PathBuf, Vec<Arc<LoadedKit>>)]) -> WorkReport {
    let mut seen = HashSet::new();
    let mut transfers = Vec::new();
    let mut readers = HashMap::new();
    let since =
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(RECENT);
    let since_ms = millis(since);
    for (mountpoint, kit) in
        mounts.iter().flat_map(|(place, kits)| kits.iter().map(move |kit| (place, kit)))
    {
        for (index, layer) in kit.layers.iter().enumerate() {
            if !seen.insert(layer.key()) {
                continue;
            }
            let past = layer.past(&layer.contents().layout.stream());
            let running = past.transfers.into_iter().filter(|it| it.outcome == Outcome::UnderWay);
            transfers.extend(running.map(|it| TransferUnderWay {
                mountpoint: mountpoint.to_owned(),
                layer: kit.titles[index].clone(),
                bytes: it.range.end - it.range.start,
                cause: it.cause.predictor().unwrap_or(it.cause.as_str()).to_owned(),
                age_ms: millis(it.queued + it.slot + it.answer + it.body),
                host: it.host.as_deref().map(str::to_owned),
                retries: it.retries,
            }));
            let recent = past.waits.iter().filter(|wait| wait.started_at_ms >= since_ms);
            recent.for_each(|wait| note(&mut readers, mountpoint, wait));
        }
    }
    transfers.sort_by_key(|transfer: &TransferUnderWay| Reverse(transfer.age_ms));
    let other_transfers = transfers.len().saturating_sub(MOST_NAMED) as u64;
    transfers.truncate(MOST_NAMED);
    let mut readers: Vec<SlowReader> = readers.into_values().collect();
    readers.sort_by_key(|reader| (Reverse(reader.longest_ms), reader.reader.pid));
    readers.truncate(MOST_NAMED);
    WorkReport { transfers, other_transfers, readers }
}

fn note(readers: &mut HashMap<(u32, PathBuf), SlowReader>, mountpoint: &Path, wait: &WaitedRead) {
    let reader =
        readers.entry((wait.process, mountpoint.to_owned())).or_insert_with(|| SlowReader {
            reader: Reader { pid: wait.process, command: wait.command.clone() },
            mountpoint: mountpoint.to_owned(),
            waits: 0,
            longest_ms: 0,
            total_ms: 0,
            failed: 0,
        });
    reader.waits += 1;
    reader.longest_ms = reader.longest_ms.max(millis(wait.waited));
    reader.total_ms += millis(wait.waited);
    reader.failed += u64::from(wait.error.is_some());
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::StreamOffset;

    #[test]
    fn waits_of_one_process_are_one_reader() {
        let mut readers = HashMap::new();
        let wait = |process, ms, error: Option<&str>| WaitedRead {
            range: StreamOffset(0)..StreamOffset(1),
            process,
            command: "cat".into(),
            started_at_ms: 0,
            waited: Duration::from_millis(ms),
            error: error.map(str::to_owned),
        };
        for wait in [wait(1, 30, None), wait(1, 50, Some("gone")), wait(2, 7, None)] {
            note(&mut readers, Path::new("/models"), &wait);
        }
        let one = &readers[&(1, "/models".into())];
        assert_eq!((one.waits, one.longest_ms, one.total_ms, one.failed), (2, 50, 80, 1));
        assert_eq!(readers.len(), 2);
    }
}
