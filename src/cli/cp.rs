//! `kitfs cp REF[/PATH] DEST`.
//!
//! The command writes files under temporary names, and renames the files of a layer together, once
//! all of them have arrived and no digest is wrong. When a copy stops early, the finished layers
//! stay. Names come from a kit and are hostile until `destination` has checked them; `writing` never
//! writes through a symlink in the destination.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use super::arguments::{KitArguments, NetworkArguments};
use super::error::CliError;
use super::output::{byte_bar, count_of, open_kit, print_warnings, printable};
use super::reference::parse_kit_path;
use super::settings::Settings;
use super::system::{self, Otherwise};
use crate::control::api::{Entry, EntryKind, FailureKind, Listing};
use crate::daemon::OpenKit;

pub(super) mod destination;
pub(super) mod writing;

use self::destination::{Destination, relative};
use self::writing::{Numbers, Unfinished};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
As with cp, files go into DEST if it is a directory, else DEST is their new
name. Without PATH the content of the whole kit goes into DEST.

Examples:
  kitfs cp ghcr.io/org/model:v1/config.json .
  kitfs cp -r ghcr.io/org/model:v1/tokenizer ./tokenizer
  kitfs cp -r ghcr.io/org/model:v1 ./model")]
pub(super) struct Arguments {
    /// The kit, or a file or directory of it.
    #[arg(value_name = "REF[/PATH]")]
    from: OsString,
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

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let wanted = parse_kit_path(&arguments.from)?;
    let mut kit = settings.kit(wanted.reference.clone(), &arguments.kit, &arguments.network)?;
    let backend = system::backend(settings, &mut kit, false, Otherwise::AnyBackend).await?;
    // The kit stays open, so a tag that moves cannot mix two kits.
    let kit = open_kit(&backend, kit).await.map_err(|error| wanted.explain(error))?;
    let listing = kit.list(wanted.path, arguments.recursive).await?;
    print_warnings(&listing.warnings);
    if listing.entry.kind == EntryKind::Directory && !arguments.recursive {
        let name = printable(&listing.entry.path.0);
        let name = if name.is_empty() { "the whole kit".into() } else { name };
        return Err(CliError::usage(format!("{name} is a directory: copy it with -r")));
    }
    let destination = Destination::find(&arguments.to, &listing.entry)?;
    let total_bytes = std::iter::once(&listing.entry).chain(&listing.below).map(|entry| entry.size);
    let bar = byte_bar(total_bytes.fold(0, u64::saturating_add), "copying");
    let copying = Copying {
        kit,
        destination,
        bar,
        is_recursive: arguments.recursive,
        numbers: Numbers::default(),
    };
    // Ctrl-C must drop the copy, which removes its unfinished files.
    let copied = tokio::select! {
        copied = copying.all(&listing) => copied,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
    };
    copying.bar.finish_and_clear();
    copied
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
    kit: OpenKit,
    destination: Destination,
    bar: ProgressBar,
    is_recursive: bool,
    numbers: Numbers,
}

impl Copying {
    async fn all(&self, listing: &Listing) -> Result<(), CliError> {
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
            let target = self.destination.place(relative(base, &entry.path.0)?);
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
                EntryKind::Symlink(_) => self.file(entry, &target, None).await?.keep()?,
                EntryKind::File => {
                    let file = self.file(entry, &target, Some(entry.size)).await?;
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
        entry: &Entry,
        target: &Path,
        size: Option<u64>,
    ) -> Result<Unfinished, CliError> {
        let mode = if size.is_some() { entry.mode } else { 0o644 };
        let about = |error: CliError| error.about(&printable(&entry.path.0));
        let bytes =
            self.kit.read(vec![entry.path.clone()]).await.map_err(CliError::from).map_err(about)?;
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
