//! The spans of a read: the read itself, and the steps of the transfers that it waited for.
//!
//! ```text
//! kitfs.read    |-------------------------------------------|
//! kitfs.queue     |---|                                          of a transfer that touches the read's bytes
//! kitfs.slot          |--|
//! kitfs.answer           |-----------|
//! kitfs.body                         |----------------------|
//! ```
//!
//! A transfer may begin before the read and go on behind it. Only the time for which the read waited is shown.

use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{
    IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks,
};

use crate::fetch::{Outcome, PastTransfer};
use crate::fuse::EndedRead;

/// The time of day at a moment of the clock that never jumps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    now: SystemTime,
    then: Instant,
}

impl Clock {
    /// The clock of this moment. It is right for moments that are near: the time of day may be set, and the other clock
    /// stands still while the machine sleeps.
    pub(super) fn now() -> Self {
        Self { now: SystemTime::now(), then: Instant::now() }
    }

    fn time_of_day(&self, moment: Instant) -> SystemTime {
        match moment.checked_duration_since(self.then) {
            Some(later) => self.now + later,
            None => self.now - self.then.duration_since(moment),
        }
    }
}

/// A step of a transfer, as far as a read waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    name: &'static str,
    began: Instant,
    ended: Instant,
}

/// The spans of a read, the read first.
pub(super) fn of_read(
    read: &EndedRead,
    clock: Clock,
    scope: &InstrumentationScope,
) -> Vec<SpanData> {
    let ids = RandomIdGenerator::default();
    let trace = ids.new_trace_id();
    let span = |name, began, ended, parent, kind, attributes, status| SpanData {
        span_context: SpanContext::new(
            trace,
            ids.new_span_id(),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: parent,
        parent_span_is_remote: false,
        span_kind: kind,
        name: std::borrow::Cow::Borrowed(name),
        start_time: clock.time_of_day(began),
        end_time: clock.time_of_day(ended),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: scope.clone(),
    };
    let status = match &read.failure {
        None => Status::Unset,
        Some((_, words)) => Status::error(words.clone()),
    };
    let whole = span(
        "kitfs.read",
        read.began,
        read.ended,
        SpanId::INVALID,
        SpanKind::Internal,
        attributes_of_read(read),
        status,
    );
    let parent = whole.span_context.span_id();
    let mut spans = vec![whole];
    for transfer in read.file_system.transfers(read.ino, &read.range) {
        for Wait { name, began, ended } in waits(&transfer, read.began, read.ended) {
            let status = match &transfer.outcome {
                Outcome::Failed(error) => Status::error(error.clone()),
                Outcome::UnderWay | Outcome::Done | Outcome::GivenUp => Status::Unset,
            };
            let attributes = attributes_of_transfer(&transfer);
            spans.push(span(name, began, ended, parent, SpanKind::Client, attributes, status));
        }
    }
    spans
}

fn attributes_of_read(read: &EndedRead) -> Vec<KeyValue> {
    let kit = read.file_system.kit();
    let mut attributes = vec![
        KeyValue::new("kitfs.kit", kit.origin.to_string()),
        KeyValue::new("kitfs.digest", kit.manifest.to_string()),
        KeyValue::new("kitfs.path", read.file_system.path(read.ino)),
        KeyValue::new("kitfs.offset", signed(read.range.start)),
        KeyValue::new("kitfs.length", signed(read.range.end - read.range.start)),
    ];
    if read.process != 0 {
        attributes.push(KeyValue::new("process.pid", i64::from(read.process)));
        attributes.push(KeyValue::new("process.command", read.command.clone()));
    }
    if let Some((reason, _)) = &read.failure {
        attributes.push(KeyValue::new("error.type", reason.as_str()));
    }
    attributes
}

fn attributes_of_transfer(transfer: &PastTransfer) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("kitfs.cause", transfer.cause.as_str()),
        KeyValue::new("kitfs.length", signed(transfer.range.end - transfer.range.start)),
        KeyValue::new("kitfs.retries", i64::from(transfer.retries)),
    ];
    let predictor = transfer.cause.predictor();
    attributes.extend(predictor.map(|name| KeyValue::new("kitfs.predictor", name)));
    let host = transfer.host.as_deref();
    attributes.extend(host.map(|host| KeyValue::new("server.address", host.to_owned())));
    attributes
}

/// OpenTelemetry has no unsigned numbers.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The steps of a transfer that a read waited for, from `began` to `ended`.
fn waits(transfer: &PastTransfer, began: Instant, ended: Instant) -> Vec<Wait> {
    let steps: [(&'static str, Duration); 4] = [
        ("kitfs.queue", transfer.queued),
        ("kitfs.slot", transfer.slot),
        ("kitfs.answer", transfer.answer),
        ("kitfs.body", transfer.body),
    ];
    let mut at = transfer.began;
    let waits = steps.into_iter().filter_map(|(name, took)| {
        let step = (at.max(began), (at + took).min(ended));
        at += took;
        (step.0 < step.1).then_some(Wait { name, began: step.0, ended: step.1 })
    });
    waits.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fetch::Cause;
    use crate::layer::StreamOffset;

    proptest! {
        #[test]
        fn waits_lie_within_the_read_in_order_and_miss_no_time_of_the_transfer(
            steps_ms in any::<[u8; 4]>(), began_ms in 0..500u64, read_ms in 0..1000u64, transfer_ms in 0..500u64,
        ) {
            let ms = Duration::from_millis;
            let zero = Instant::now();
            let [queued, slot, answer, body] = steps_ms.map(|it| ms(it.into()));
            let transfer = PastTransfer {
                range: StreamOffset(0)..StreamOffset(1),
                cause: Cause::Read,
                is_raised: false,
                started_at_ms: 0,
                began: zero + ms(transfer_ms),
                queued, slot, answer, body,
                host: None,
                retries: 0,
                outcome: Outcome::Done,
            };
            let (began, ended) = (zero + ms(began_ms), zero + ms(began_ms + read_ms));
            let waits = waits(&transfer, began, ended);
            let mut at = began;
            for wait in &waits {
                prop_assert!(at <= wait.began && wait.began < wait.ended && wait.ended <= ended);
                at = wait.ended;
            }
            let shown: Duration = waits.iter().map(|wait| wait.ended - wait.began).sum();
            let whole = transfer.began..transfer.began + queued + slot + answer + body;
            let both = whole.end.min(ended).saturating_duration_since(whole.start.max(began));
            prop_assert_eq!(shown, both);
        }

        #[test]
        fn times_of_day_keep_their_distance(before_ms in 0..100_000u64, after_ms in 0..100_000u64) {
            let then = Instant::now() + Duration::from_secs(1000);
            let clock = Clock { now: SystemTime::now(), then };
            let (early, late) =
                (then - Duration::from_millis(before_ms), then + Duration::from_millis(after_ms));
            let apart = clock.time_of_day(late).duration_since(clock.time_of_day(early)).unwrap();
            prop_assert_eq!(apart, late - early);
        }
    }
}
