//! `kitfs explain REF|MOUNT/FILE`.

use std::io::Write;

use super::error::CliError;
use super::output::{count_of, print_json, printable, short_digest};
use super::settings::Settings;
use super::sizes;
use super::subject::{self, SubjectArguments};
use crate::control::api::{
    ExplainRequest, ExplainedTransfer, ExplainedWait, Explanation, Reader, TransferOutcome,
};

/// The transfers and waits that are shown without `--all`: the newest ones.
const USUAL_ENTRIES: usize = 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A line for each transfer that brought bytes of the file: when it began (UTC),
its range, and how long each step took:

  QUEUE    until memory, a thread and a slot of the host were free
  ANSWER   connection, login, and the time until the host sent its answer
  BODY     until the last byte was in the cache
  WHY      `read`, or what asked for the bytes before a reader came: readahead
           and tensor with the name of their predictor, trace, warm, hydrate
           (the rest in the background), rest (bytes between files, or a layer
           again whose digest was wrong). Then the processes that waited, and
           the host.

The daemon remembers the newest 128 transfers and waits of each layer, as long
as the kit is open. It does not see reads that the kernel answers by itself.

Examples:
  kitfs explain /models/weights/model-00001-of-00004.safetensors
  kitfs explain --json ghcr.io/org/model:v1/config.json")]
pub(super) struct Arguments {
    /// Show all that the daemon remembers, and not only the newest entries.
    #[arg(long)]
    all: bool,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    subject: SubjectArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let Arguments { subject, all, json } = arguments;
    let found = subject::find(settings, subject).await?;
    let request = |subject| ExplainRequest { subject, path: found.path.clone() };
    let explanation = found.ask(request).await?;
    if json {
        return print_json(&explanation);
    }
    let most = if all { usize::MAX } else { USUAL_ENTRIES };
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    write(&mut output, &explanation, most)?;
    Ok(output.flush()?)
}

fn write(output: &mut impl Write, explanation: &Explanation, most: usize) -> std::io::Result<()> {
    let Explanation {
        reference,
        path,
        total,
        layer,
        comes_as_a_whole,
        transfers,
        waits,
        forgotten,
    } = explanation;
    writeln!(output, "{} in {}", printable(&path.0), printable(reference.as_bytes()))?;
    let (here, all) = (sizes::show(total.resident_bytes), sizes::show(total.stored_bytes));
    match layer {
        Some(layer) => {
            writeln!(output, "{here} of {all} in the cache, layer {}", short_digest(layer))?;
        }
        None => {
            return writeln!(
                output,
                "The Kitfile comes with the manifest: nothing is fetched for it."
            );
        }
    }
    if *comes_as_a_whole {
        writeln!(output, "The layer is compressed: it comes as a whole.")?;
    }
    if transfers.is_empty() {
        let why = match (total.resident_bytes, forgotten) {
            (0, 0) => "Nothing was fetched: no program has read the file.",
            (_, 0) => {
                "Nothing was fetched since the kit is open: the bytes were in the cache before."
            }
            (_, _) => {
                "The daemon remembers no transfer of this file; it keeps the newest of each layer."
            }
        };
        writeln!(output, "{why}")?;
    } else {
        writeln!(output)?;
        let (shown, left) = newest(transfers, most);
        writeln!(
            output,
            "{:8} {:>21} {:>8} {:>8} {:>8}  WHY",
            "TIME", "BYTES", "QUEUE", "ANSWER", "BODY"
        )?;
        for transfer in shown {
            writeln!(output, "{}", transfer_line(transfer))?;
        }
        tell_left(output, left, "transfer")?;
    }
    let failed = waits.iter().filter(|wait| wait.error.is_some()).count();
    if !waits.is_empty() {
        writeln!(output)?;
        let count = count_of(waits.len() as u64, "read", "reads");
        let longest = waits.iter().map(|wait| wait.waited_ms).max().unwrap_or(0);
        let words = match failed {
            0 => String::new(),
            some => format!(", {some} of them failed"),
        };
        writeln!(output, "{count} had to wait, the longest for {}{words}:", time(longest))?;
        let (shown, left) = newest(waits, most);
        for wait in shown {
            writeln!(output, "{}", wait_line(wait))?;
        }
        tell_left(output, left, "read")?;
    }
    if let Some(error) = waits.iter().rev().find_map(|wait| wait.error.as_ref()) {
        writeln!(output, "\nThe last read that failed: {}", printable(error.as_bytes()))?;
    }
    Ok(())
}

/// The newest entries, and the number of the others.
fn newest<T>(entries: &[T], most: usize) -> (&[T], usize) {
    let left = entries.len().saturating_sub(most);
    (&entries[left..], left)
}

fn tell_left(output: &mut impl Write, left: usize, what: &str) -> std::io::Result<()> {
    match left {
        0 => Ok(()),
        _ => writeln!(
            output,
            "({} before these: --all)",
            count_of(left as u64, what, &format!("{what}s"))
        ),
    }
}

fn transfer_line(transfer: &ExplainedTransfer) -> String {
    let range =
        format!("{}+{}", sizes::show(transfer.start), sizes::show(transfer.end - transfer.start));
    let mut line = format!(
        "{:8} {range:>21} {:>8} {:>8} {:>8}  {}",
        clock(transfer.started_at_ms),
        time(transfer.queued_ms + transfer.slot_ms),
        time(transfer.answer_ms),
        time(transfer.body_ms),
        why(transfer),
    );
    if let Some(host) = &transfer.host {
        line += &format!(" from {}", printable(host.as_bytes()));
    }
    if transfer.retries > 0 {
        line += &format!(", {}", count_of(transfer.retries.into(), "retry", "retries"));
    }
    match transfer.outcome {
        TransferOutcome::Done => {}
        TransferOutcome::UnderWay => line += ", under way",
        TransferOutcome::GivenUp => line += ", another transfer brought the bytes",
        TransferOutcome::Failed => {
            let error = transfer.error.as_deref().unwrap_or_default();
            line += &format!(", FAILED: {}", printable(error.as_bytes()));
        }
    }
    line
}

/// The column WHY: what began the transfer, and who waited for it.
fn why(transfer: &ExplainedTransfer) -> String {
    let mut why = match &transfer.predictor {
        Some(predictor) => format!("{} ({predictor})", transfer.cause),
        None => transfer.cause.clone(),
    };
    if let [first, rest @ ..] = &transfer.readers[..] {
        why += &format!(" for {}", process(first));
        if !rest.is_empty() {
            why += &format!(" and {} more", rest.len());
        }
    }
    why
}

fn wait_line(wait: &ExplainedWait) -> String {
    let range = format!("{}+{}", sizes::show(wait.start), sizes::show(wait.end - wait.start));
    let end = if wait.error.is_some() { ", then failed" } else { "" };
    format!(
        "{:8} {range:>21} {:>8}  {}{end}",
        clock(wait.started_at_ms),
        time(wait.waited_ms),
        process(&wait.reader)
    )
}

fn process(reader: &Reader) -> String {
    match &reader.command[..] {
        "" => format!("process {}", reader.pid),
        command => format!("{} {}", printable(command.as_bytes()), reader.pid),
    }
}

/// The time of day in UTC.
fn clock(at_ms: u64) -> String {
    let time = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| "-".to_owned(), |time| time.strftime("%H:%M:%S").to_string())
}

/// A time for people: `3 ms`, `1.20 s`, `75 s`.
fn time(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{}.{:02} s", ms / 1000, ms % 1000 / 10),
        _ => format!("{} s", ms / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{RawPath, ResidencyTotal};

    fn transfer(cause: &str, outcome: TransferOutcome) -> ExplainedTransfer {
        ExplainedTransfer {
            start: 4 << 20,
            end: 8 << 20,
            layer_bytes: 4 << 20,
            cause: cause.into(),
            predictor: None,
            is_raised: false,
            readers: vec![Reader { pid: 42, command: "python3".into() }],
            started_at_ms: 45_296_000,
            queued_ms: 1,
            slot_ms: 2,
            answer_ms: 85,
            body_ms: 1234,
            host: Some("registry.example".into()),
            retries: 0,
            outcome,
            error: None,
        }
    }

    #[test]
    fn a_transfer_is_a_line_that_says_why_and_how_long() {
        let done = transfer_line(&transfer("read", TransferOutcome::Done));
        assert_eq!(
            done,
            "12:34:56       4.0 MiB+4.0 MiB     3 ms    85 ms   1.23 s  read for python3 42 from registry.example"
        );
        let failed = ExplainedTransfer {
            retries: 2,
            error: Some("no route\x1b".into()),
            predictor: Some("run".into()),
            is_raised: true,
            ..transfer("readahead", TransferOutcome::Failed)
        };
        let failed = transfer_line(&failed);
        assert!(failed.contains("  readahead (run) for python3 42 from "), "{failed}");
        assert!(
            failed.ends_with("registry.example, 2 retries, FAILED: no route\\u{1b}"),
            "{failed}"
        );
    }

    #[test]
    fn the_last_failure_ends_the_explanation() {
        let wait = |error: Option<&str>| ExplainedWait {
            start: 0,
            end: 4096,
            reader: Reader { pid: 0, command: String::new() },
            started_at_ms: 0,
            waited_ms: 30_000,
            error: error.map(str::to_owned),
        };
        let explanation = Explanation {
            reference: "a/b@sha256:00".into(),
            path: RawPath(b"f".to_vec()),
            total: ResidencyTotal::default(),
            layer: Some("sha256:00".into()),
            comes_as_a_whole: false,
            transfers: Vec::new(),
            waits: vec![wait(Some("gone")), wait(None)],
            forgotten: 0,
        };
        let mut output = Vec::new();
        write(&mut output, &explanation, 1).unwrap();
        let text = String::from_utf8(output).unwrap();
        assert!(
            text.contains("2 reads had to wait, the longest for 30 s, 1 of them failed"),
            "{text}"
        );
        assert!(text.contains("(1 read before these: --all)"), "{text}");
        assert!(text.ends_with("The last read that failed: gone\n"), "{text}");
    }
}
