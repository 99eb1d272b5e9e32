//! `kitfs warm REF [PATH…]`, and with `--to DIR` into a plain folder.

pub(in crate::cli) mod folder;
mod record;

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use indicatif::{MultiProgress, ProgressBar};

use super::arguments::{IdleArguments, KitArguments, NetworkArguments};
use super::error::CliError;
use super::help::MORE_OPTIONS;
use super::kept::Sought;
use super::opening::{self, Lines, show_pass};
use super::output::{
    bar_name, byte_bar, count_of, print_json, print_line, print_warnings, printable, say,
    say_waiting,
};
use super::reference::parse_reference;
use super::settings::{DEFAULT_UMASK, Settings, absolute};
use super::sizes;
use super::system::{self, Otherwise};
use crate::control::api::{
    FailureKind, KitRequest, KitState, LayerProgress, RawPath, WarmEvent, WarmReport, WarmRequest,
    WarmedLayer,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Downloads what the cache lacks, at full speed, and computes the digest of each
layer that is complete. If one layer fails, the others come, and the command
fails at the end. Ctrl-C keeps the bytes that came.

Run `kitfs daemon start` before a long download: without a daemon the command
keeps the cache folder to itself, and other commands cannot use it meanwhile.

Examples:
  kitfs warm ghcr.io/org/model:v1
  kitfs warm --to ./model ghcr.io/org/model:v1
  kitfs warm ghcr.io/org/model:v1 tokenizer.json weights/
  kitfs warm --trace start.trace ghcr.io/org/model:v1")]
pub(super) struct Arguments {
    /// The kit.
    #[arg(value_name = "REF")]
    reference: String,
    /// Files and directories of the kit; without them, the whole kit.
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// Only these layers, as for kit: TYPE[,TYPE…][:NAME[,NAME…]]; may be repeated.
    #[arg(short, long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Go on also when a filter takes no layer.
    #[arg(long, help_heading = MORE_OPTIONS)]
    allow_empty: bool,
    /// Download the ranges of this access trace (`kitfs trace record`), in its order.
    #[arg(long, value_name = "FILE", conflicts_with = "paths")]
    trace: Option<PathBuf>,
    /// Fill or update this plain folder, for places without FUSE.
    #[arg(long, value_name = "DIR", conflicts_with = "trace")]
    to: Option<PathBuf>,
    /// With --to, remove files that the kit no longer has.
    #[arg(long, requires = "to", conflicts_with = "filters")]
    delete: bool,
    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    kit: KitArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let mut request = WarmRequest {
        kit: KitRequest {
            reference: parse_reference(&arguments.reference)?,
            labels: arguments.kit.choice.labels,
            filters: arguments.filters,
            allow_empty: arguments.allow_empty,
            no_remote: arguments.kit.no_remote,
            umask: DEFAULT_UMASK,
            network: settings.network(&arguments.network)?,
        },
        paths: arguments.paths.into_iter().map(|path| RawPath(path.into_vec())).collect(),
        layers: Vec::new(),
        trace: arguments.trace.as_deref().map(absolute).transpose()?,
    };
    let (kit, needs_own) = (&mut request.kit, request.trace.is_some());
    let backend = system::backend(settings, kit, needs_own, Otherwise::AnyBackend).await?;
    settings.warn_of_other_bounds(&backend, &IdleArguments::default()).await?;
    if let Some(folder) = arguments.to {
        let WarmRequest { kit, paths, .. } = request;
        let wanted = folder::Wanted { folder, paths, deletes: arguments.delete };
        return folder::run(&backend, kit, wanted, arguments.json).await;
    }
    let sought = Sought::of(&request.kit);
    let mut display = Display::new();
    let report = backend.call(request, &mut |event| display.show(event)).await;
    display.clear();
    let report = match report {
        Ok(report) => report,
        Err(failure) => return Err(sought.explain(failure).await.into()),
    };
    print_warnings(&report.warnings);
    match arguments.json {
        true => print_json(&report)?,
        false => tell(&report)?,
    }
    judge(&report)
}

fn tell(report: &WarmReport) -> Result<(), CliError> {
    let wanted_bytes = report.layers.iter().map(|layer| layer.wanted_bytes).sum();
    let count = report.layers.len();
    let is_partial = |layer: &&WarmedLayer| !layer.is_complete && layer.failure.is_none();
    let partial = report.layers.iter().filter(is_partial).count();
    if partial > 0 {
        say(format_args!(
            "{partial} of {} only partly in the cache: kitfs checks the digest of a layer once the \
             whole layer is there",
            count_of(count as u64, "layer is", "layers are")
        ));
    }
    if report.layers.iter().any(|layer| layer.failure.is_some()) {
        return Ok(());
    }
    let what = match (count > 0 && partial == 0, report.layers.iter().all(is_confirmed)) {
        (true, true) => ", every layer confirmed",
        // Objects of S3 stores have no digest.
        (true, false) => ", every layer with a digest confirmed",
        (false, _) => "",
    };
    print_line(format_args!(
        "{} in {} are in the cache{what}",
        sizes::show(wanted_bytes),
        count_of(count as u64, "layer", "layers")
    ))
}

fn is_confirmed(layer: &WarmedLayer) -> bool {
    layer.state == KitState::Confirmed
}

/// Prints the failures. The first one gives the exit code, and the caller prints it.
fn judge(report: &WarmReport) -> Result<(), CliError> {
    let mut failures = report.layers.iter().filter_map(|layer| layer.failure.as_ref());
    let Some(first) = failures.next() else { return check_all_is_there(report) };
    failures.for_each(say);
    Err(first.clone().into())
}

/// Fails when remote data is missing. The warnings have given the reasons.
fn check_all_is_there(report: &WarmReport) -> Result<(), CliError> {
    let missing = report.missing.iter().map(|path| printable(&path.0));
    match missing.collect::<Vec<_>>() {
        missing if missing.is_empty() => Ok(()),
        missing => {
            let message = format!(
                "the kit is not complete: {} could not be downloaded; --no-remote leaves remote data out",
                missing.join(", ")
            );
            Err(CliError::new(FailureKind::Unavailable, message))
        }
    }
}

/// The progress: bars on a terminal, else a line now and then.
struct Display {
    bars: MultiProgress,
    passing: Option<ProgressBar>,
    layers: HashMap<String, ProgressBar>,
    lines: Lines,
}

impl Display {
    fn new() -> Self {
        Self {
            bars: MultiProgress::new(),
            passing: None,
            layers: HashMap::new(),
            lines: Lines::new(),
        }
    }

    fn show(&mut self, event: WarmEvent) {
        match event {
            WarmEvent::Passing(progress) => {
                let bars = &self.bars;
                let bar = self.passing.get_or_insert_with(|| bars.add(opening::bar()));
                show_pass(bar, progress);
                self.lines.say(|| format!("reading headers: {}", opening::percent(progress)));
            }
            WarmEvent::Waiting(waiting) => self.bars.suspend(|| say_waiting(&waiting)),
            WarmEvent::Layers(layers) => {
                layers.iter().for_each(|layer| self.show_layer(layer));
                let done_bytes: u64 = layers.iter().map(|layer| layer.done_bytes).sum();
                let total_bytes: u64 = layers.iter().map(|layer| layer.total_bytes).sum();
                let of = |bytes| sizes::show(bytes);
                self.lines.say(|| format!("{} of {}", of(done_bytes), of(total_bytes)));
            }
        }
    }

    fn show_layer(&mut self, layer: &LayerProgress) {
        let bars = &self.bars;
        let bar = self.layers.entry(layer.name.clone()).or_insert_with(|| {
            bars.add(byte_bar(layer.total_bytes, bar_name(layer.title.as_bytes())))
        });
        let name = layer.file.as_ref().map_or(layer.title.as_bytes(), |file| &file.0);
        bar.set_message(bar_name(name));
        bar.set_position(layer.done_bytes);
    }

    fn clear(&self) {
        // `clear` fails when the terminal is gone, and then no message could be printed.
        let _ = self.bars.clear();
    }
}
