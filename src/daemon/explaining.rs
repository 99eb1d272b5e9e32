//! The history of a file ([`ExplainRequest`](crate::control::api::ExplainRequest)).

use std::ops::Range;
use std::time::Duration;

use super::kits::pinned_reference;
use super::paths::{self, LastLink};
use super::residency;
use crate::control::api::{
    ExplainedTransfer, ExplainedWait, Explanation, Failure, FailureKind, RawPath, Reader,
    TransferOutcome,
};
use crate::fetch::{Outcome, Past, PastTransfer, WaitedRead};
use crate::fs::{LoadedKit, StoredFile};
use crate::kit::NodeKind;
use crate::layer::{Extents, StreamOffset};

/// The readers that are named of a transfer.
const MOST_READERS: usize = 8;

/// Explains a file of a loaded kit.
///
/// # Errors
/// `NotFound` for a path that is not there, `Usage` for a directory.
pub(super) fn explain(kit: &LoadedKit, path: &RawPath) -> Result<Explanation, Failure> {
    let tree = &kit.tree;
    let node = paths::find(kit, path, LastLink::Follow)?;
    paths::check_is_there(tree, node)?;
    if matches!(tree.kind(node), NodeKind::Directory) {
        let shown = match path.0.is_empty() {
            true => "the kit".to_owned(),
            false => format!("`{}`", String::from_utf8_lossy(&path.0)),
        };
        let message =
            format!("{shown} is a directory: name a file in it; `kitfs map` shows directories");
        return Err(Failure::new(FailureKind::Usage, message));
    }
    let mut explanation = Explanation {
        reference: pinned_reference(&kit.origin, kit.manifest),
        path: RawPath(tree.path(node)),
        total: residency::total_of(kit, node),
        layer: None,
        comes_as_a_whole: false,
        transfers: Vec::new(),
        waits: Vec::new(),
        forgotten: 0,
    };
    if let Some(file) = StoredFile::of(kit, node) {
        let Past { transfers, waits, forgotten, .. } = file.layer.past(&file.extents.stored());
        let explained = transfers.iter().map(|it| transfer(it, &waits, file.extents));
        explanation.transfers = explained.collect();
        explanation.waits = waits.iter().map(|it| wait(it, file.extents)).collect();
        explanation.forgotten = forgotten;
        explanation.layer = Some(file.layer.key().digest.to_string());
        explanation.comes_as_a_whole = !file.layer.has_ranges();
    }
    Ok(explanation)
}

fn transfer(past: &PastTransfer, waits: &[WaitedRead], extents: &Extents) -> ExplainedTransfer {
    let Range { start, end } = extents.file_of(past.range.clone());
    let (outcome, error) = match &past.outcome {
        Outcome::UnderWay => (TransferOutcome::UnderWay, None),
        Outcome::Done => (TransferOutcome::Done, None),
        Outcome::GivenUp => (TransferOutcome::GivenUp, None),
        Outcome::Failed(error) => (TransferOutcome::Failed, Some(error.clone())),
    };
    ExplainedTransfer {
        start,
        end,
        layer_bytes: past.range.end - past.range.start,
        cause: past.cause.as_str().to_owned(),
        predictor: past.cause.predictor().map(str::to_owned),
        is_raised: past.is_raised,
        readers: readers(past, waits),
        started_at_ms: past.started_at_ms,
        queued_ms: millis(past.queued),
        slot_ms: millis(past.slot),
        answer_ms: millis(past.answer),
        body_ms: millis(past.body),
        host: past.host.as_deref().map(str::to_owned),
        retries: past.retries,
        outcome,
        error,
    }
}

/// The processes that waited for bytes of a transfer while it ran.
fn readers(past: &PastTransfer, waits: &[WaitedRead]) -> Vec<Reader> {
    let took = past.queued + past.slot + past.answer + past.body;
    // A read is noted with the clock of the day, to the millisecond, so the borders get one more.
    let ran = past.started_at_ms.saturating_sub(1)..=past.started_at_ms + millis(took) + 1;
    let overlaps = |one: &Range<StreamOffset>, other: &Range<StreamOffset>| {
        one.start < other.end && other.start < one.end
    };
    let mut readers: Vec<Reader> = Vec::new();
    for wait in waits.iter().filter(|wait| overlaps(&wait.range, &past.range)) {
        let waited = wait.started_at_ms..=wait.started_at_ms + millis(wait.waited);
        let was_there = waited.start() <= ran.end() && ran.start() <= waited.end();
        let reader = reader(wait);
        if was_there && !readers.contains(&reader) && readers.len() < MOST_READERS {
            readers.push(reader);
        }
    }
    readers
}

fn wait(waited: &WaitedRead, extents: &Extents) -> ExplainedWait {
    let Range { start, end } = extents.file_of(waited.range.clone());
    ExplainedWait {
        start,
        end,
        reader: reader(waited),
        started_at_ms: waited.started_at_ms,
        waited_ms: millis(waited.waited),
        error: waited.error.clone(),
    }
}

fn reader(waited: &WaitedRead) -> Reader {
    Reader { pid: waited.process, command: waited.command.clone() }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::Cause;

    fn stream(start: u64, end: u64) -> Range<StreamOffset> {
        StreamOffset(start)..StreamOffset(end)
    }

    fn past(range: Range<StreamOffset>, started_at_ms: u64, ms: u64) -> PastTransfer {
        PastTransfer {
            range,
            cause: Cause::Read,
            is_raised: false,
            started_at_ms,
            began: std::time::Instant::now(),
            queued: Duration::ZERO,
            slot: Duration::ZERO,
            answer: Duration::from_millis(ms),
            body: Duration::ZERO,
            host: None,
            retries: 0,
            outcome: Outcome::Done,
        }
    }

    fn waited(range: Range<StreamOffset>, process: u32, started_at_ms: u64, ms: u64) -> WaitedRead {
        WaitedRead {
            range,
            process,
            command: "cat".into(),
            started_at_ms,
            waited: Duration::from_millis(ms),
            error: None,
        }
    }

    #[test]
    fn a_transfer_has_the_readers_that_waited_for_its_bytes_while_it_ran() {
        let transfer = past(stream(100, 200), 5000, 50);
        let waits = [
            waited(stream(150, 160), 1, 5010, 30),
            waited(stream(150, 160), 1, 5011, 30),
            waited(stream(199, 300), 2, 4000, 2000),
            // Of other bytes, before it, and behind it.
            waited(stream(200, 300), 3, 5010, 30),
            waited(stream(100, 200), 4, 4000, 900),
            waited(stream(100, 200), 5, 5060, 1),
        ];
        let pids: Vec<_> = readers(&transfer, &waits).iter().map(|reader| reader.pid).collect();
        assert_eq!(pids, [1, 2]);
        let many: Vec<_> = (0..50).map(|pid| waited(stream(100, 200), pid, 5000, 50)).collect();
        assert_eq!(readers(&transfer, &many).len(), MOST_READERS);
    }

    #[test]
    fn ranges_are_those_of_the_file() {
        let extents = Extents::contiguous(stream(1000, 5000));
        let explained = transfer(&past(stream(500, 2000), 0, 1), &[], &extents);
        assert_eq!((explained.start, explained.end, explained.layer_bytes), (0, 1000, 1500));
        let explained = wait(&waited(stream(1200, 1300), 7, 0, 1), &extents);
        assert_eq!((explained.start, explained.end), (200, 300));
    }
}
