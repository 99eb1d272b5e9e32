//! `kitfs cp REF[/PATH]… DEST`.
//!
//! The command writes files under temporary names. It renames the files of a layer together, once all of them have
//! arrived and no digest is wrong. When a copy stops early, the finished layers stay. Names come from a kit, and
//! are hostile until `destination` has checked them. `writing` never writes through a symlink in the destination.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;

use super::arguments::{KitArguments, NetworkArguments};
use super::error::CliError;
use super::globs;
use super::kits::Kits;
use super::output::{bar_name, byte_bar, count_of, print_warnings, printable, say};
use super::reference::parse_kit_path;
use super::settings::Settings;
use crate::control::api::{Entry, EntryKind, FailureKind, Listing, RawPath};
use crate::daemon::OpenKit;

pub(super) mod destination;
pub(super) mod writing;

use self::destination::{Destination, relative};
use self::writing::{Numbers, Unfinished};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
As with cp, files go into DEST if it is a directory, else DEST is the new name of
the one file. Several files need a directory. Without PATH the content of the
whole kit goes into DEST.

Examples:
  kitfs cp ghcr.io/org/model:v1/config.json .
  kitfs cp 'ghcr.io/org/model:v1/weights/*.safetensors' ./weights
  kitfs cp -r ghcr.io/org/model:v1/tokenizer ./tokenizer
  kitfs cp -r ghcr.io/org/model:v1 ./model")]
pub(super) struct Arguments {
    /// A kit, or files and directories of it: a path or a quoted pattern (`*`, `?`, `[a-z]`, `**`).
    #[arg(value_name = "REF[/PATH]", required = true)]
    from: Vec<OsString>,
    /// A file or directory on this machine.
    #[arg(value_name = "DEST")]
    to: PathBuf,
    /// Copy directories and everything below them.
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    kit: KitArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

/// A file or directory to copy.
struct Source {
    kit: Arc<OpenKit>,
    listing: Listing,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let mut kits = Kits::new(settings, &arguments.kit, &arguments.network);
    let mut sources = Vec::new();
    let mut failures = Failures { names_each: arguments.from.len() > 1, first: None };
    for from in &arguments.from {
        let wanted = parse_kit_path(from)?;
        let kit = kits.open(&wanted).await?;
        match globs::expand(&kit, &wanted.path).await {
            Ok(paths) => {
                failures.names_each |= paths.len() > 1;
                for path in paths {
                    match kit.list(path, arguments.recursive).await {
                        Ok(listing) => sources.push(Source { kit: Arc::clone(&kit), listing }),
                        Err(failure) => failures.add(failure.into())?,
                    }
                }
            }
            Err(failure) => failures.add(failure)?,
        }
    }
    // As with cp(1), several sources need a directory, even where some of them have failed.
    if failures.names_each && !arguments.to.is_dir() {
        let place = arguments.to.display();
        let why = match arguments.to.exists() {
            true => "it is not a directory",
            false => "there is no such directory",
        };
        return Err(CliError::usage(format!("cannot copy several files to {place}: {why}")));
    }
    print_warnings(&warnings_of(&sources));
    let entries = sources
        .iter()
        .flat_map(|source| std::iter::once(&source.listing.entry).chain(&source.listing.below));
    let total_bytes = entries.map(|entry| entry.size).fold(0, u64::saturating_add);
    let bar = byte_bar(total_bytes, "copying");
    let mut copying = Copying {
        bar,
        is_recursive: arguments.recursive,
        numbers: Numbers::default(),
        roots: HashMap::new(),
    };
    // Ctrl-C must drop the copy, which removes its unfinished files.
    let copied = tokio::select! {
        copied = copying.every(&sources, &arguments.to, &mut failures) => copied,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
    };
    copying.bar.finish_and_clear();
    copied?;
    failures.end()
}

/// The warnings of all kits, each once.
fn warnings_of(sources: &[Source]) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    for warning in sources.iter().flat_map(|source| &source.listing.warnings) {
        if !warnings.contains(warning) {
            warnings.push(warning.clone());
        }
    }
    warnings
}

/// The failures of a copy of several sources. As with cp(1), the other sources are still copied.
struct Failures {
    /// Whether there are several sources. With one source, its failure is the failure of the command.
    names_each: bool,
    first: Option<FailureKind>,
}

impl Failures {
    /// Notes a failure. Returns it where nothing else is to be copied.
    fn add(&mut self, error: CliError) -> Result<(), CliError> {
        match error {
            CliError::Failure(failure) if self.names_each => {
                say(&failure);
                self.first.get_or_insert(failure.kind);
                Ok(())
            }
            other => Err(other),
        }
    }

    /// The exit code of the first failure. Its message has been printed.
    fn end(self) -> Result<(), CliError> {
        match self.first {
            Some(kind) => Err(CliError::Passed(kind.exit_code())),
            None => Ok(()),
        }
    }
}

/// Complete files that wait for the other files of their layer.
#[derive(Default)]
struct Layers(HashMap<u32, OfLayer>);

#[derive(Default)]
struct OfLayer {
    files_left: u64,
    complete: Vec<Unfinished>,
}

impl Layers {
    fn new(listing: &Listing) -> Self {
        let mut layers = Self::default();
        let entries = std::iter::once(&listing.entry).chain(&listing.below);
        for layer in entries.filter_map(|entry| entry.layer) {
            layers.0.entry(layer).or_default().files_left += 1;
        }
        layers
    }

    /// Adds a complete file. The last file of a layer renames all files of the layer.
    fn complete(&mut self, layer: Option<u32>, file: Unfinished) -> Result<(), CliError> {
        let Some(layer) = layer else { return file.keep() };
        let of_layer = self.0.entry(layer).or_default();
        of_layer.complete.push(file);
        of_layer.files_left = of_layer.files_left.saturating_sub(1);
        match of_layer.files_left {
            0 => std::mem::take(&mut of_layer.complete).into_iter().try_for_each(Unfinished::keep),
            _ => Ok(()),
        }
    }
}

struct Copying {
    bar: ProgressBar,
    is_recursive: bool,
    numbers: Numbers,
    /// The source of each place. A later source must not replace the copy of an earlier one.
    roots: HashMap<PathBuf, RawPath>,
}

impl Copying {
    /// Copies one source after the other.
    async fn every(
        &mut self,
        sources: &[Source],
        to: &Path,
        failures: &mut Failures,
    ) -> Result<(), CliError> {
        for Source { kit, listing } in sources {
            let copied = match self.destination(listing, to) {
                Ok(destination) => self.all(kit, &destination, listing).await,
                Err(error) => Err(error),
            };
            if let Err(error) = copied {
                failures.add(error)?;
            }
        }
        Ok(())
    }

    fn destination(&mut self, listing: &Listing, to: &Path) -> Result<Destination, CliError> {
        let path = &listing.entry.path;
        if listing.entry.kind == EntryKind::Directory && !self.is_recursive {
            let name = printable(&path.0);
            let name = if name.is_empty() { "the whole kit".into() } else { name };
            return Err(CliError::usage(format!("{name} is a directory: copy it with -r")));
        }
        let destination = Destination::find(to, &listing.entry)?;
        // The files of several whole kits may go into one directory, as with `cp -r a/. b/. to`.
        let place = destination.place(PathBuf::new());
        match self.roots.get(&place).filter(|_| !path.0.is_empty()) {
            Some(before) => Err(CliError::usage(format!(
                "{} is not copied: {} would take the place of {}, which was just copied there",
                printable(&path.0),
                place.display(),
                printable(&before.0)
            ))),
            None => {
                self.roots.insert(place, path.clone());
                Ok(destination)
            }
        }
    }

    async fn all(
        &self,
        kit: &OpenKit,
        destination: &Destination,
        listing: &Listing,
    ) -> Result<(), CliError> {
        let base = &listing.entry.path.0;
        let mut left_out = 0;
        let mut missing = Vec::new();
        let mut directories = Vec::new();
        let mut layers = Layers::new(listing);
        for entry in std::iter::once(&listing.entry).chain(&listing.below) {
            if entry.missing.is_some() {
                // The warnings have given the reason.
                missing.push(printable(&entry.path.0).into_owned());
                continue;
            }
            let target = destination.place(relative(base, &entry.path.0)?);
            match &entry.kind {
                EntryKind::Directory => {
                    if writing::directory(&target)? {
                        directories.push((target, entry.mode));
                    }
                }
                EntryKind::Symlink(link) if self.is_recursive => {
                    let is_inside = destination::stays_inside(base, &entry.path.0, &link.0);
                    match is_inside {
                        true => writing::symlink(&self.numbers, &target, &link.0)?,
                        false => {
                            left_out += 1;
                            warn_left_out(entry, &link.0);
                        }
                    }
                }
                // Without -r the copy is the file that the symlink leads to.
                EntryKind::Symlink(_) => self.file(kit, entry, &target, None).await?.keep()?,
                EntryKind::File => {
                    let file = self.file(kit, entry, &target, Some(entry.size)).await?;
                    layers.complete(entry.layer, file)?;
                }
            }
        }
        // Modes come last, and for the deepest directories first: a directory without write
        // permission must have its content by then. Directories that existed before keep their
        // modes, as with cp.
        for (path, mode) in directories.into_iter().rev() {
            writing::set_mode(&path, mode)?;
        }
        if !missing.is_empty() {
            let missing = missing.join(", ");
            let message = format!("{missing} could not be downloaded; the rest was copied");
            return Err(CliError::new(FailureKind::Unavailable, message));
        }
        match left_out {
            0 => Ok(()),
            count => Err(CliError::new(
                FailureKind::BadContent,
                format!(
                    "{}; the rest was copied",
                    count_of(count, "symlink was not copied", "symlinks were not copied")
                ),
            )),
        }
    }

    async fn file(
        &self,
        kit: &OpenKit,
        entry: &Entry,
        target: &Path,
        size: Option<u64>,
    ) -> Result<Unfinished, CliError> {
        let mode = if size.is_some() { entry.mode } else { 0o644 };
        let about = |error: CliError| error.about(&printable(&entry.path.0));
        self.bar.set_message(bar_name(&entry.path.0));
        let bytes =
            kit.read(vec![entry.path.clone()]).await.map_err(CliError::from).map_err(about)?;
        let file = writing::file(&self.numbers, target, bytes, mode, size, &self.bar);
        file.await.map_err(about)
    }
}

fn warn_left_out(entry: &Entry, target: &[u8]) {
    print_warnings(&[format!(
        "the symlink {} -> {} is not copied: it leads out of the copied directory",
        printable(&entry.path.0),
        printable(target)
    )]);
}
