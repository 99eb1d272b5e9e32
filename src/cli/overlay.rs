//! `kitfs overlay`: writable views, and their changes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::arguments::NetworkArguments;
use super::error::{CliError, end_of_comparison};
use super::output::{
    path_text, print_json, print_line, print_table, print_warnings, short_digest, warn,
};
use super::screen::Screen;
use super::settings::{Settings, absolute, mountpoint, overlay_name};
use super::sizes;
use super::system::{self, Otherwise};
use crate::control::api::{Entry, EntryKind, Failure, FailureKind, KitRequest, Listing, RawPath};
use crate::fuse::MountError;
use crate::overlay::{
    Base, BaseEntry, Change, Folder, Kind, Overlay, OverlayError, What, last_mount,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List your writable views, mounted or not.
    Ls(LsArguments),
    /// List what a view has added, changed, renamed and removed.
    Diff(DiffArguments),
    /// Take changes back; the view must be unmounted.
    Reset(ResetArguments),
}

#[derive(Debug, clap::Args)]
struct LsArguments {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each line has a letter and a path:
  A  added     C  changed      M  mode, owner or date were set
  D  removed   R  renamed: the path in the kit, then the path in the view
The list names a removed or renamed folder, and not what lies in it.

The exit code is 0 without changes, 1 with changes, 2 for trouble.")]
struct DiffArguments {
    /// The directory where the view is or was mounted, or its folder UPPER.
    #[arg(value_name = "VIEW")]
    view: PathBuf,
    /// A file or folder of the view, relative to it [default: all].
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

#[derive(Debug, clap::Args)]
struct ResetArguments {
    /// The directory where the view was mounted, or its folder UPPER.
    #[arg(value_name = "VIEW")]
    view: PathBuf,
    /// Paths in the view, relative to it [default: all changes].
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// An element of the JSON array of `ls`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Listed {
    mountpoint: Option<PathBuf>,
    is_mounted: bool,
    reference: String,
    digest: String,
    changed_bytes: Option<u64>,
    upper: PathBuf,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    match arguments.command {
        Command::Ls(arguments) => ls(settings, &arguments),
        Command::Diff(arguments) => end_of_comparison(diff(settings, arguments).await),
        Command::Reset(arguments) => reset(settings, &arguments),
    }
}

/// Remembers an UPPER folder that the user has named, so that `ls` finds it.
pub(super) fn remember(settings: &Settings, upper: &Path) {
    let Ok(folder) = settings.overlays_folder() else { return };
    let Ok(upper) = upper.canonicalize() else { return };
    if upper.parent() == folder.canonicalize().ok().as_deref() {
        return;
    }
    let remember = || {
        std::fs::create_dir_all(&folder)?;
        std::os::unix::fs::symlink(&upper, folder.join(overlay_name(&upper)))
    };
    if let Err(error) = remember()
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        tracing::debug!(%error, "a view is listed only while it is mounted");
    }
}

fn ls(settings: &Settings, arguments: &LsArguments) -> Result<(), CliError> {
    let listed: Vec<Listed> = known(settings)?
        .into_iter()
        .map(|overlay| Listed {
            is_mounted: overlay.mountpoint.is_some(),
            changed_bytes: overlay.disk_bytes().ok(),
            mountpoint: overlay
                .mountpoint
                .or_else(|| Some(last_mount(&overlay.folder)?.mountpoint)),
            reference: overlay.base.reference,
            digest: overlay.base.digest.to_string(),
            upper: overlay.folder,
        })
        .collect();
    if arguments.json {
        return print_json(&listed);
    }
    let rows = listed.iter().map(|view| {
        vec![
            view.mountpoint.as_deref().map_or("-".to_owned(), path_text),
            if view.is_mounted { "mounted" } else { "not mounted" }.to_owned(),
            view.reference.clone(),
            short_digest(&view.digest).to_owned(),
            view.changed_bytes.map_or("-".to_owned(), sizes::show),
            path_text(&view.upper),
        ]
    });
    let mut rows: Vec<Vec<String>> = rows.collect();
    let headings = ["VIEW", "STATE", "KIT", "DIGEST", "CHANGES", "UPPER"];
    // The folder of a view follows from its mountpoint. So the table cuts the folder, and keeps view and kit
    // readable.
    Screen::of_stdout(!settings.is_utf8()).fit(&headings, [2, 5], &mut rows);
    print_table(&headings, &[4], rows)
}

/// Prints the changes. Returns whether there are none.
async fn diff(settings: &Settings, arguments: DiffArguments) -> Result<bool, CliError> {
    let overlay = find(settings, &arguments.view)?;
    let mut kit = KitRequest {
        reference: overlay.base.pinned(),
        labels: Vec::new(),
        filters: overlay.base.filters.clone(),
        allow_empty: true,
        no_remote: false,
        umask: overlay.base.umask,
        network: settings.network(&arguments.network)?,
    };
    let backend = system::backend(settings, &mut kit, false, Otherwise::AnyBackend).await?;
    let kit = backend.open_kit(kit, &mut |_| {}).await?;
    let listing = kit.list(RawPath::default(), true).await?;
    print_warnings(&listing.warnings);
    let mut changes = overlay.changes(&base_of(&listing)).map_err(failure)?;
    if let Some(path) = &arguments.path {
        changes.retain(|change| concerns(change, path));
    }
    match arguments.json {
        true => print_json(&changes)?,
        false => changes.iter().try_for_each(print_change)?,
    }
    Ok(changes.is_empty())
}

/// Whether a change is at a path, below it, or in a folder above it.
fn concerns(change: &Change, path: &Path) -> bool {
    let is_on_the_way = |place: &Path| place.starts_with(path) || path.starts_with(place);
    let from = match &change.what {
        What::Renamed { from } => Some(from),
        What::Added | What::Changed | What::Metadata | What::Removed => None,
    };
    is_on_the_way(&change.path) || from.is_some_and(|from| is_on_the_way(from))
}

/// The entries of a base, as a view shows them.
pub(super) fn base_of(listing: &Listing) -> Base {
    let entry = |entry: &Entry| {
        let kind = match entry.kind {
            EntryKind::Directory => Kind::Directory,
            EntryKind::File => Kind::File,
            EntryKind::Symlink(_) => Kind::Symlink,
        };
        let path = PathBuf::from(OsStr::from_bytes(&entry.path.0));
        (path, BaseEntry { kind, mode: Overlay::mode_in_view(kind, entry.mode) })
    };
    listing.below.iter().map(entry).collect()
}

fn print_change(change: &Change) -> Result<(), CliError> {
    let path = path_text(&change.path);
    let slash = if change.kind == Kind::Directory { "/" } else { "" };
    match &change.what {
        What::Added => print_line(format_args!("A {path}{slash}")),
        What::Changed => print_line(format_args!("C {path}{slash}")),
        What::Metadata => print_line(format_args!("M {path}{slash}")),
        What::Removed => print_line(format_args!("D {path}{slash}")),
        What::Renamed { from } => {
            print_line(format_args!("R {}{slash} {path}{slash}", path_text(from)))
        }
    }
}

fn reset(settings: &Settings, arguments: &ResetArguments) -> Result<(), CliError> {
    let overlay = find(settings, &arguments.view)?;
    if let Some(place) = &overlay.mountpoint {
        let place = place.display();
        let message = format!(
            "the view on {place} is mounted, and its changes cannot be taken back below it: `kitfs umount \
             {place}` first, and mount it again afterwards"
        );
        return Err(CliError::new(FailureKind::Mountpoint, message));
    }
    let folder = Folder::unmounted(&overlay.folder).map_err(failure)?;
    if arguments.paths.is_empty() {
        return folder.reset().map_err(failure);
    }
    for path in &arguments.paths {
        if !folder.reset_path(path).map_err(failure)? {
            warn(format_args!("{} has no change in this view", path_text(path)));
        }
    }
    Ok(())
}

/// The views of this user: those with a folder below the data folder, and those that are mounted.
fn known(settings: &Settings) -> Result<Vec<Overlay>, CliError> {
    let mut known = BTreeMap::new();
    if let Ok(folder) = settings.overlays_folder() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(path) = entry.path().canonicalize() else {
                // The user has removed the folder that this link names.
                let _ = std::fs::remove_file(entry.path());
                continue;
            };
            if let Ok(Some(overlay)) = Overlay::at(&path) {
                known.insert(overlay.folder.clone(), overlay);
            }
        }
    }
    let own = rustix::process::geteuid().as_raw();
    let is_own = |folder: &Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(folder).is_ok_and(|found| found.uid() == own)
    };
    for overlay in Overlay::mounted().map_err(failure)? {
        if is_own(&overlay.folder) {
            known.insert(overlay.folder.clone(), overlay);
        }
    }
    Ok(known.into_values().collect())
}

/// The view at a mountpoint, mounted or not, or with an UPPER folder.
fn find(settings: &Settings, view: &Path) -> Result<Overlay, CliError> {
    let place = mountpoint(view).or_else(|_| absolute(view))?;
    if let Some(overlay) = Overlay::at(&place).map_err(failure)? {
        return Ok(overlay);
    }
    let was_there = |overlay: &Overlay| {
        last_mount(&overlay.folder).is_some_and(|last| last.mountpoint == place)
    };
    known(settings)?.into_iter().find(was_there).ok_or_else(|| {
        let message = format!(
            "there is no writable view on {}: `kitfs overlay ls` lists your views",
            view.display()
        );
        CliError::new(FailureKind::NotFound, message)
    })
}

fn failure(error: OverlayError) -> CliError {
    Failure::from(MountError::from(error)).into()
}
